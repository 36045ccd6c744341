"""What `python -m experiments.physics` found, for docs/benchmarks.md."""

import shutil
from pathlib import Path

from docs.blocks import bullets, day, listed, marked, paragraph, replaced

ROOT = Path(__file__).parent.parent
LEFT = ROOT / "experiments" / "physics" / "out" / "default"


def block() -> str:
    """Errors of networks that solve differential equations, and where Gauss-Newton loses."""
    try:
        page = (LEFT / "table.md").read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"{error}; run python -m experiments.physics") from error
    said, table, notes, *_ = page.split("\n\n")
    said = f"Taken on {day(LEFT / 'table.md')}. {said}"
    return marked("physics", paragraph(said), table, bullets(listed(notes)))


def write() -> None:
    """The block and the figures."""
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text(replaced(page.read_text(), "physics", block()))
    for name in ("errors", "fields"):
        shutil.copy(LEFT / f"{name}.png", page.parent / f"physics-{name}.png")
