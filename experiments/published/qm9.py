"""QM9: eleven properties of a molecule, as Nash-MTL's and FAMO's code learns them.

FOLDER/raw/qm9_v3.pt or FOLDER/qm9_v3.pt: PyTorch Geometric's file, a list with a dictionary per
molecule: `x` [atom, 11], `pos` [atom, 3], `edge_index` [2, edge], `edge_attr` [edge, 4] and
`y` [1, 19].

Every pair of atoms is an edge; its five features are the kind of its bond, or zeros, and its
length. The targets are columns 0, 1, 2, 3, 5, 6, 12, 13, 14, 15 and 11 of `y`, scaled to mean 0 and
deviation 1 of the training molecules. The metric is the mean absolute error in the data's units,
those in eV as meV. 10,000 molecules test and 10,000 choose the epoch, drawn by the seed; of fewer
than 100,000 molecules a tenth each.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import mtlfunc as mf
from common.files import DataError, listed, reading

from .benchmark import Batch, Benchmark, Splits

FILE = "qm9_v3.pt"
NAMES = ("mu", "alpha", "homo", "lumo", "r2", "zpve", "U0", "U", "H", "G", "Cv")
COLUMNS = (0, 1, 2, 3, 5, 6, 12, 13, 14, 15, 11)
MILLI = torch.tensor([1.0, 1, 1e3, 1e3, 1, 1e3, 1e3, 1e3, 1e3, 1e3, 1], dtype=torch.float64)
HELD_OUT = 10_000
ATOM, BOND, PROPERTIES = 11, 4, 19
BASE = (0.0671, 0.1814, 60.576, 53.915, 0.5027, 4.539, 58.838, 64.244, 63.852, 66.223, 0.07212)
"""Of networks that learn one property alone, as Nash-MTL's and FAMO's code has them."""
EXPECTED = (
    "qm9: raw/qm9_v3.pt or qm9_v3.pt, of data.pyg.org/datasets/qm9_v3.zip, which PyTorch "
    "Geometric's QM9(FOLDER) downloads where rdkit is not installed, unpacked"
)


class Molecules(NamedTuple):
    """A batch, filled up to the largest molecule."""

    atoms: Tensor  # [molecule, atom, 11]
    pairs: Tensor  # [molecule, atom, atom, 5]: kind of bond, distance
    real: Tensor  # [molecule, atom]: 1.0 for an atom, 0.0 for what fills up


class Targets(NamedTuple):
    """Of every molecule."""

    scaled: Tensor  # [molecule, property], mean 0 and deviation 1
    units: Tensor  # [molecule, property]: of what 1 is in the metric's units, the same in all rows


Molecule = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Atoms, places, edges, bonds and properties."""


class Held:
    """Some of the molecules that are in memory."""

    def __init__(self, all_of: list[Molecule], chosen: list[int], mean: Tensor, std: Tensor):
        """`mean` and `std` of the training molecules, by property."""
        self.all_of, self.chosen, self.mean, self.std = all_of, chosen, mean, std

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, index: Sequence[int]) -> Batch:
        """Molecules as dense graphs, and their scaled properties."""
        found = [self.all_of[self.chosen[i]] for i in index]
        most = max(len(molecule[0]) for molecule in found)
        atoms = torch.zeros(len(found), most, ATOM)
        pairs = torch.zeros(len(found), most, most, BOND + 1)
        real = torch.zeros(len(found), most)
        for i, (x, places, edges, bonds, _) in enumerate(found):
            n = len(x)
            atoms[i, :n], real[i, :n] = x, 1
            # what an edge's target sees of its source
            pairs[i, edges[1], edges[0], :BOND] = bonds
            pairs[i, :n, :n, BOND] = (places[:, None] - places[None]).norm(dim=-1)
        wanted = torch.stack([molecule[-1] for molecule in found])
        scaled = ((wanted - self.mean) / self.std).float()
        units = (self.std * MILLI).expand(len(found), -1)
        return Batch(Molecules(atoms, pairs, real), Targets(scaled, units))


def _file(folder: Path) -> Path:
    for place in (folder / "raw" / FILE, folder / FILE):
        if place.is_file():
            return place
    raise DataError(
        f"{folder}: looked for raw/{FILE} and {FILE}, found {listed(folder)}; in raw: "
        f"{listed(folder / 'raw')}. Expected {EXPECTED}"
    )


def files(folder: Path) -> list[Path]:
    """The one file. Raises DataError for a folder of another layout."""
    return [_file(folder)]


def _molecule(path: Path, number: int, held: Any) -> Molecule:
    """One entry, checked."""
    where, names = f"{path}, molecule {number}", ("x", "pos", "edge_index", "edge_attr", "y")
    if not isinstance(held, dict) or any(not isinstance(held.get(name), Tensor) for name in names):
        raise DataError(
            f"{where}: expected a dictionary with tensors {', '.join(names)}, got "
            f"{', '.join(map(str, held)) if isinstance(held, dict) else type(held).__name__}"
        )
    x, places, edges, bonds, y = (held[name] for name in names)
    n, m = len(x), edges.shape[-1]
    wanted = {"x": (n, ATOM), "pos": (n, 3), "edge_index": (2, m), "edge_attr": (m, BOND)}
    for name, shape in (wanted | {"y": (1, PROPERTIES)}).items():
        if tuple(held[name].shape) != shape:
            raise DataError(f"{where}: {name} of shape {tuple(held[name].shape)}; expected {shape}")
    if m and not 0 <= int(edges.min()) <= int(edges.max()) < n:
        raise DataError(f"{where}: edges outside its {n} atoms")
    found = y[0, list(COLUMNS)].double()
    if not all(bool(leaf.isfinite().all()) for leaf in (x, places, bonds, found)):
        raise DataError(f"{where}: holds numbers that are not finite")
    return x.float(), places.float(), edges.long(), bonds.float(), found


@functools.lru_cache(maxsize=1)
def _all(path: Path, stamp: tuple[int, int]) -> list[Molecule]:
    try:
        with reading(path):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch.load's errors are of many kinds
        raise DataError(
            f"{path}: cannot be read as a list of dictionaries of tensors ({error}); objects of "
            f"PyTorch Geometric, as in processed/, are refused. Expected {EXPECTED}"
        ) from error
    if not isinstance(held, list) or len(held) < 10:
        raise DataError(
            f"{path}: holds {len(held) if isinstance(held, list) else type(held).__name__}; "
            "expected a list of at least 10 molecules"
        )
    return [_molecule(path, i, each) for i, each in enumerate(held)]


def read(folder: Path, seed: int) -> Splits[Held]:
    """Molecules divided by the seed.

    Raises:
        DataError: for a folder of another layout, or a file that holds something else.
    """
    path = _file(folder)
    with reading(path):
        stat = path.stat()
    every = _all(path, (stat.st_mtime_ns, stat.st_size))
    order = mf.random.permutation(mf.random.key(seed), len(every)).tolist()
    count = min(HELD_OUT, len(every) // 10)
    parts = order[2 * count :], order[count : 2 * count], order[:count]
    learnt = torch.stack([every[i][-1] for i in parts[0]])
    mean, std = learnt.mean(0), learnt.std(0)
    if not bool((std > 0).all()):
        same = [name for name, each in zip(NAMES, std, strict=True) if not each > 0]
        raise DataError(f"{path}: all training molecules have the same {', '.join(same)}")
    return Splits(*(Held(every, part, mean, std) for part in parts))


class Network(nn.Module):
    """Three rounds of messages (NNConv, its mean over all other atoms, and a GRU), then Set2Set.

    As PyTorch Geometric's example has it, on dense graphs. The matrix of a message is linear in the
    edge's hidden features, so it is applied to every atom before messages are summed, rather than
    made for every edge.
    """

    def __init__(self, narrower: int = 1) -> None:
        super().__init__()
        width, hidden = 64 // narrower, 128 // narrower
        self.width = width
        self.trunk = nn.ModuleDict(
            {
                "first": nn.Linear(ATOM, width),
                "edge": nn.Linear(BOND + 1, hidden),
                "matrix": nn.Linear(hidden, width * width),
                "own": nn.Linear(width, width),
                "round": nn.GRUCell(width, width),
                "reading": nn.LSTMCell(2 * width, width),
                "last": nn.Linear(2 * width, width),
            }
        )
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in NAMES)

    def forward(self, seen: Molecules) -> Float[Tensor, "molecule property"]:
        trunk, (count, most), width = self.trunk, seen.real.shape, self.width
        matrix = trunk["matrix"]
        assert isinstance(matrix, nn.Linear)
        weight, bias = matrix.weight.view(width, width, -1), matrix.bias.view(width, width)
        others = seen.real[:, :, None] * seen.real[:, None] * (1 - torch.eye(most).to(seen.real))
        share = others / others.sum(-1, keepdim=True).clamp_min(1)
        edges = F.relu(trunk["edge"](seen.pairs)) * share[..., None]
        z = F.relu(trunk["first"](seen.atoms))
        for _ in range(3):
            applied = torch.einsum("bji,iok->bjko", z, weight)
            messages = torch.einsum("bijk,bjko->bio", edges, applied) + share @ z @ bias
            flat = F.relu(trunk["own"](z) + messages).flatten(0, 1)
            z = trunk["round"](flat, z.flatten(0, 1)).view(count, most, width)
        star, state = z.new_zeros(count, 2 * width), None
        for _ in range(3):
            state = trunk["reading"](star, state)
            asked = torch.einsum("bno,bo->bn", z, state[0])
            chosen = asked.masked_fill(seen.real == 0, -torch.inf).softmax(-1)
            star = torch.cat([state[0], torch.einsum("bn,bno->bo", chosen, z)], -1)
        representation = F.relu(trunk["last"](star))
        return torch.cat([head(representation) for head in self.heads], 1)


def losses(outputs: Tensor, targets: Targets) -> Float[Tensor, " property"]:
    """Mean squared errors of the scaled properties."""
    return (outputs - targets.scaled).square().mean(0)


def tally(outputs: Tensor, targets: Targets) -> Float[Tensor, "property 2"]:
    """Absolute errors in the metric's units, and molecules."""
    errors = ((outputs - targets.scaled).double().abs() * targets.units).sum(0)
    return torch.stack([errors, torch.full_like(errors, len(outputs))], -1)


def score(values: list[float]) -> float:
    """-Δm against the published base, as Nash-MTL and FAMO choose the epoch."""
    return -100 * sum(v / b - 1 for v, b in zip(values, BASE, strict=True)) / len(BASE)


def make(folder: Path) -> None:
    """60 chains of atoms at random places."""
    generator = torch.Generator().manual_seed(0)
    molecules = []
    for i in range(60):
        n = 3 + i % 7
        one, two = torch.arange(n - 1), torch.arange(1, n)
        edges = torch.stack([torch.cat([one, two]), torch.cat([two, one])])
        kinds = torch.randint(0, BOND, (n - 1,), generator=generator).repeat(2)
        x = torch.rand(n, ATOM, generator=generator)
        y = torch.randn(1, PROPERTIES, generator=generator) + n
        places = torch.randn(n, 3, generator=generator)
        molecule = {"x": x, "pos": places, "edge_index": edges, "y": y, "name": f"made {i}"}
        molecules.append(molecule | {"edge_attr": F.one_hot(kinds, BOND).float(), "idx": i})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw").mkdir(exist_ok=True)
    torch.save(molecules, folder / "raw" / FILE)


QM9 = Benchmark(
    title="QM9",
    tasks=NAMES,
    metric="mean absolute error",
    higher_is_better=False,
    epochs=300,
    batch=120,
    rate=1e-3,
    optimizer="adam",
    schedule="plateau",
    expected=EXPECTED,
    files=files,
    read=read,
    network=Network,
    losses=losses,
    tally=tally,
    measured=lambda sums: sums[:, 0] / sums[:, 1].clamp_min(1),
    score=score,
    only=lambda batch, task: batch,
    make=make,
    base=BASE,
)
