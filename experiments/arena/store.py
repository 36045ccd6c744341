"""Finished cells on disk, each under a key of all that it depends on.

So a study that was stopped goes on where it was, and what changed is run again.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from experiments.common.cells import package, slug
from mtlfunc.core.files import digest, write_whole
from mtlfunc.studies.arena import Cell, Settings


class Store:
    """One JSON file for each problem and rule."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        name = settings.optimizer.__qualname__
        plain = settings._replace(optimizer=name)  # type: ignore[arg-type]
        self.common = digest(sorted(sources()), plain, torch.__version__)

    def key(self, problem: str, rule: str, source: bytes) -> str:
        """Of the settings, the sources, and a rule's own module `source`."""
        return digest([], self.common, problem, rule, source)

    def read(self, problem: str, rule: str, source: bytes) -> Cell | None:
        """What an earlier run with this key left; None for another key or an unreadable file."""
        try:
            kept = json.loads(self._path(problem, rule).read_text(encoding="utf-8"))
            return _cell(kept["cell"]) if kept["key"] == self.key(problem, rule, source) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, problem: str, rule: str, source: bytes, cell: Cell) -> None:
        """Keep a cell, with its key."""
        path = self._path(problem, rule)
        path.parent.mkdir(parents=True, exist_ok=True)
        key = self.key(problem, rule, source)
        kept = {"problem": problem, "rule": rule, "key": key, "cell": plain(cell._asdict())}
        write_whole(path, json.dumps(kept))

    def _path(self, problem: str, rule: str) -> Path:
        return self.folder / slug(problem) / f"{slug(rule)}.json"


def sources() -> list[Path]:
    """What a cell's numbers may depend on."""
    here = Path(__file__).parent
    return [
        *package(),
        here / "contestants.py",
        here / "digits.py",
        here.parent / "digits" / "data.py",
    ]


def plain(value: Any) -> Any:
    """For JSON: tensors as lists, and null for what is not finite."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(kept: dict[str, Any]) -> Cell:
    """`plain`, backwards; what was not finite is NaN."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        return math.nan if value is None else value

    def tensor(value: Any) -> torch.Tensor:
        return torch.tensor(filled(value), dtype=torch.float64)

    numbers = {name: tensor(kept[name]) for name in kept if name not in ODD}
    weights = None if kept["weights"] is None else tensor(kept["weights"])
    step_ms = filled(kept["step_ms"])
    return Cell(**numbers, weights=weights, step_ms=step_ms, error=kept["error"])


ODD = ("weights", "step_ms", "error")
"""Fields of a cell that are not always tensors."""
