"""Finished cells of the arena's table on disk, each under a key of all that it depends on."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import cells
from common.cells import slug
from mtlfunc.studies.arena import Cell, Settings


class Place(NamedTuple):
    """What names a cell."""

    problem: str
    rule: str

    @property
    def file(self) -> Path:
        return Path(slug(self.problem)) / f"{slug(self.rule)}.json"


class Store:
    """One JSON file for each problem and rule."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = {**settings._asdict(), "optimizer": settings.optimizer.__qualname__}

    def read(self, problem: str, rule: str, source: bytes) -> Cell | None:
        """What an earlier run with this key left; None for another key or an unreadable file."""
        kept = self.of(source).read(Place(problem, rule))
        try:
            return None if kept is None else Cell(**{k: _tensor(v) for k, v in kept.items()})
        except (TypeError, ValueError, AttributeError):
            return None

    def write(self, problem: str, rule: str, source: bytes, cell: Cell) -> None:
        """Keep a cell, with its key."""
        self.of(source).write(Place(problem, rule), cell._asdict())

    def of(self, source: bytes) -> cells.Store:
        """The store of rules from a module of the user's, by its text `source`."""
        return cells.Store(self.folder, sources(), (self.settings, source))


def sources() -> list[Path]:
    """What a cell's numbers may depend on, next to the package."""
    here = Path(__file__).parent
    pairs = here.parents[1] / "common" / "problems" / "digits.py"
    return [here / "contestants.py", here / "digits.py", pairs]


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
