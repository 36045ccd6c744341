"""What docs/results.py and docs/images.py make of rows and runs."""

from docs import images, results
from docs.blocks import marked, row_of


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


def test_figures_of_an_earlier_study_are_left(tmp_path, monkeypatch):
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
