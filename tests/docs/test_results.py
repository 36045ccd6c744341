"""What docs/results.py and docs/images.py make of rows and runs."""

import pytest

from docs import images, results
from docs.blocks import marked, row_of

SPREAD = (-0.002, -0.001, 0.0, 0.001, 0.002)


def solved(solver: str, time: float, batch: int = 1, failed: int = 0) -> dict:
    about = {"kind": "min_norm", "tasks": 32, "solver": solver, "batch": batch}
    return about | {"median": time, "gap": 2e-9, "failed": failed, "zero": 0}


def test_solvers_that_are_faster_than_ours_are_named():
    rows = [solved("active_set", 2e-5), solved("active_set", 1.5e-6, batch=4096)]
    rows += [solved("TorchJD (defaults)", 1e-5, failed=3)]
    found = row_of(results.solver_table(rows), "min-norm (MGDA) | 32")
    shown = ["20 (2e-09)", "1.5 (2e-09)", "10 (2e-09, 3 failed)"]
    assert list(found.values())[2:] == shown
    peer = "min-norm (MGDA), T = 32 (TorchJD (defaults), ours takes 2.0 times)"
    assert results.slower_solvers(rows) == f"A peer is faster on: {peer}."


@pytest.mark.parametrize("shift", [0.01, 0.0])
def test_rules_that_differ_from_the_mean_loss_are_named(shift):
    levels = {"mean": 0.9, "up": 0.9 + shift, "same": 0.9, "down": 0.9 - shift}
    base = {n: {"left": [x + s for s in SPREAD], "right": [x - s / 3 for s in SPREAD]}
            for n, x in levels.items()}  # fmt: skip
    base |= {f"{task} alone": {task: SPREAD} for task in ("left", "right")}
    found = {"accuracies": {"hard sharing": base}, "seeds": SPREAD, "settings": {"epochs": 10}}
    rows = "| hard sharing   | up   | 0.3 (edge) |\n| hard sharing   | down | 0.1        |"
    page = "\n".join(marked(name, rows) for name in ("images", "images-mixed"))
    long = base | {"up": {task: [1.0] * 5 for task in ("left", "right")}}
    wider = {"hard sharing": base, "twice as wide": base, "twice as long": long}
    kept = {"mnist": found | {"accuracies": wider}, "mixed": found}
    first, elsewhere = images.sentences(kept, page)
    edge, mixed = " (at the end of its learning rates)", "MNIST with Fashion-MNIST"
    shown = (
        f"up is better on MultiMNIST{edge}, down is worse on MultiMNIST, up is better on {mixed}"
    )
    differ = f"4 of 6 comparisons with the mean loss show a difference: {shown}{edge}, down"
    told = differ if shift else "0 of 6 comparisons with the mean loss show a difference."
    assert told in " ".join(first.split())
    told = "4 of 6 show one: down is worse 2 times, up is better 2 times."
    told = told if shift else "1 of 6 shows one: up is better once."
    assert told in " ".join(elsewhere.split())


def test_figures_of_an_earlier_study_are_left(tmp_path, monkeypatch):
    """Its folder may hold them beside those of the study."""
    (tmp_path / "docs").mkdir()
    page, left = tmp_path / "docs" / "benchmarks.md", tmp_path / "left"
    page.write_text(marked("images-fashion", "before"))
    left.mkdir()
    (left / "table.md").write_text("a table")
    for name in images.FIGURES:
        (left / f"{name}.png").write_text("drawn")
    monkeypatch.setattr(images, "ROOT", tmp_path)
    found = {"settings": {"set": "fashion"}, "problems": {"hard sharing": {}}, "fronts": {}}
    images.write(left, found)
    shown = ["images-fashion-accuracies.png", "images-fashion-multimnist.png"]
    assert sorted(path.name for path in (tmp_path / "docs").glob("*.png")) == shown
    assert "fronts" not in page.read_text()
