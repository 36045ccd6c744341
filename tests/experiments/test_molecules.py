"""QM9's molecules: the reader of the package's files, one run, a made-up study."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from common import tuned
from common.cells import Cell
from common.files import DataError
from common.problems import molecules
from experiments.molecules import __main__ as study
from experiments.molecules import train
from experiments.published import qm9

PLACES = (
    '"[[-0.0126981359,1.0858041578,0.0080009958],[0.002150416,-0.0060313176,0.0019761204],'
    "[1.0117308433,1.4637511618,0.0002765748],[-0.540815069,1.4475266138,-0.8766437152],"
    '[-0.5238136345,1.4379326443,0.9063972942]]"'
)
VALUES = "0.,13.21,-0.3877,0.1171,35.3641,0.044749,-40.47893,-40.476062,-40.475117,-40.498597,6.469"
"""With them a row of the package, methane's, in the columns that are read."""


def folder_of(path: Path, before: str = "", after: str = "") -> Path:
    """Twelve times methane, with one text in place of another."""
    row = f"\"['C','H','H','H','H']\",{PLACES},{VALUES}".replace(before, after)
    head = ",".join(["Elements", "XYZ_Ang", *molecules.COLUMNS.values()])
    for name in molecules.FILES:
        (path / name).write_text("\n".join([head, *[row] * 4, ""]), encoding="utf-8")
    return path


def test_methane(tmp_path):
    found = molecules.read(folder_of(tmp_path), tmp_path / "kept")
    assert found.numbers[11].tolist() == [6, 1, 1, 1, 1] + [0] * 24
    assert found.places[3, 4].tolist() == pytest.approx([-0.5238136345, 1.4379326443, 0.9063972942])
    # of gdb9.sdf.csv, another distribution, in kcal/mol
    apart = torch.tensor([-395.999594594, -398.643290011, -401.014646522, -372.471772148])
    orbitals = torch.tensor([-0.3877, 0.1171, 35.3641 / 27211.386, 0.044749]) * 27211.386
    expected = torch.cat([torch.tensor([0, 13.21]), orbitals, apart * 4184 / 96.4853321])
    assert found.properties[5, :10].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    (kept,) = (tmp_path / "kept").iterdir()
    again = molecules.read(tmp_path, tmp_path / "kept")
    kept.write_bytes(kept.read_bytes()[:999])
    molecules._held.cache_clear()
    for other in (again, molecules.read(tmp_path, tmp_path / "kept")):
        assert all(map(torch.equal, found, other))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(PLACES, "none", r"part1.csv, line 2: XYZ_Ang: expected a list such as .* got 'none'"),
     ("'C'", "'X'", "Elements: expected H, C, N, O, F, got 'X'"),
     ("'C',", "", "15 coordinates of 4 atoms; expected three of each"),
     (",6.469", "", "Heatcapacity_Cv_cal_mol_K: expected a finite number, got ''"),
     ("13.21", "nan", "Polarizability_bohr3: expected a finite number, got 'nan'")],
)  # fmt: skip
def test_a_bad_cell_is_named(before, after, said, tmp_path):
    with pytest.raises(DataError, match=said):
        molecules.read(folder_of(tmp_path, before, after), tmp_path)


def test_other_files_are_refused(tmp_path, capsys):
    call = [f"--record={tmp_path}/x", "run", f"--data={folder_of(tmp_path)}", f"--out={tmp_path}"]
    for said in ("not the files of qm9pack 1.0.3: qm9_part1", "qm9_part3.csv not there"):
        assert study.main(call) == 2
        assert said in capsys.readouterr().err
        (tmp_path / "qm9_part3.csv").unlink(missing_ok=True)


def test_one_run(tmp_path):
    """Features next to a loop over pairs; every method learns, one property alone as well."""
    qm9.make(tmp_path)
    every = molecules.read(tmp_path, tmp_path)
    atoms, real = molecules.described(every)
    numbers, places = every.numbers[8].tolist(), every.places[8]
    heavy = [i for i, number in enumerate(numbers) if number > 1]
    expected = torch.zeros(len(heavy), 5, 16)
    for row, i in enumerate(heavy):
        for j, number in enumerate(x for x in numbers if x):
            far = (places[i] - places[j]).norm() - torch.linspace(0.9, 6, 16)
            expected[row, int(number == 6)] += (i != j) * torch.exp(-((far / 0.34) ** 2) / 2)
    torch.testing.assert_close(atoms[8, : len(heavy), 5:].view_as(expected), expected)
    assert real[8].sum() == len(heavy)
    settings = train.Settings(tmp_path, tmp_path, (40, 10, 10), epochs=2, batch=20)
    cells = {x: Cell("", x, "", 1e-3, 3) for x in study.DESIGN.methods}
    runs = [train.perform(settings, [cell])[0] for cell in cells.values()]
    assert [len(run["test"]) for run in runs] == [11] * 4 + [1] * 11 + [11] * 12
    assert all(0 < x < math.inf for run in runs for x in (*run["test"], math.exp(run["score"])))
    for cell, alone in zip(cells.values(), runs, strict=True):  # as one of a device's lanes
        every = [cell._replace(rate=1e30), cell, cell._replace(seed=4)]
        failed, same, other = train.perform(settings, every)
        assert same["test"] == pytest.approx(alone["test"], rel=1e-5) != other["test"]
        assert math.isnan(failed["score"] + sum(failed["test"]))
    [failed] = train.perform(settings, [cells["mgda"]._replace(rate=1e30)])
    assert math.isnan(failed["score"] + sum(failed["test"]))


def test_a_made_up_study(tmp_path, capsys):
    """It finds the effects that there are and no others, and the order."""
    draw, path = np.random.default_rng(3), tmp_path / "molecules.json"
    record, effect = tuned.Record(path, study.DESIGN), {"famo": 0.8, "rlw": 1.3, "nash-mtl": 0.9}
    for _, cells in tuned.to_do(record):
        for cell in cells:
            level = [effect.get(cell.method, 1.0) * (1 + draw.normal(0, 0.01))]
            score = -abs(math.log2(cell.rate / 0.004)) + draw.normal(0, 0.01)
            count = 1 if cell.method in train.SINGLE else 11
            record.runs[str(cell)] = [0, score, 20, *level * count]
    assert record.chosen("", study.UNTUNED) == 0.001
    text, figure = study.shown(record)
    rows = {line.split("|")[1].strip(): line for line in reversed(text.split("\n")) if "|" in line}
    verdicts = {0.8: "better", 0.9: "better", 1.3: "worse", 1.0: "not shown"}
    assert all(f"**{verdicts[effect.get(x, 1.0)]}**" in rows[x] for x in train.METHODS[1:])
    here = [np.mean([*study.errors_of(record, x).values()]) for x in study.PUBLISHED]
    tau: Any = kendalltau([*study.PUBLISHED.values()], here)
    assert f"Kendall's τ {tau.statistic:+.2f} [" in text
    assert len(figure.axes) == 12
    assert "| all " in study.power(record)
    for name in ("uw", "dwa"):
        at = Cell("", name, "", record.chosen("", name), 103)
        record.runs[str(at)] = [0, None, 20, *[None] * 11]
    text = study.shown(record)[0]
    rows = [x for x in text.partition("| mean absolute")[0].split("\n") if x.startswith("| ")]
    assert [x.split("|")[1].strip() for x in rows[-2:] if "**failed**" in x] == ["uw", "dwa"]
    assert "order of 9 methods" in text
    assert "Left out, since a run failed: dwa, uw." in text
    at = Cell("", "mean", "", record.chosen("", "mean"), 104)
    record.runs[str(at)] = [0, None, 20, *[None] * 11]
    assert study.shown(record)[0].count("**failed**") == 2  # whom nothing compares has not failed
    (failed, *_) = train.SINGLE
    record.runs[str(Cell("", failed, "", record.chosen("", failed), 104))] = [0, None, 20, None]
    with pytest.raises(DataError, match=f"no finite error of {failed}, seed 104: without its line"):
        study.shown(record)
    record.add(Cell("", "mean", "", 0.004, 101), [1.0, 2.0], "here")
    path.write_text(path.read_text(encoding="utf-8").replace("30 epochs", "31 epochs"))
    assert study.main(["--record", str(path), "show"]) == 2
    assert "is of other decisions (molecules" in capsys.readouterr().err


@pytest.mark.skipif("QM9" not in os.environ, reason="QM9 names no folder of qm9pack's files")
def test_the_whole_of_qm9(tmp_path):
    found = molecules.read(folder := Path(os.environ["QM9"]), tmp_path)
    assert (molecules.checked(folder), found.numbers.shape) == ("", (130_831, 29))
    own = dict(zip(molecules.NAMES, found.properties.T, strict=True))
    # with kT in hartree: U > U₀, an atom's being 3/2 kT above; H = U + kT of it and of its atoms
    count, kt = (found.numbers > 0).sum(1), 0.00094418 * molecules.MEV
    assert bool((own["U"] - own["U0"] + 1.5 * count * kt > 0).all())
    assert bool(((own["U"] - own["H"]) / kt - count + 1).abs().max() < 0.04)  # digits
