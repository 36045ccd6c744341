"""Finished cells of the arena's table on disk, each under a key of all that it depends on."""

import functools
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
        self.of = functools.cache(self._of)

    def read(self, problem: str, rule: str, source: str) -> Cell | None:
        """What an earlier run with this key left; None for another key or an unreadable file."""
        kept = self.of(source).read(Place(problem, rule))
        try:
            return None if kept is None else Cell(**{k: _tensor(v) for k, v in kept.items()})
        except (TypeError, ValueError, AttributeError):
            return None

    def write(self, problem: str, rule: str, source: str, cell: Cell) -> None:
        """Keep a cell, with its key."""
        self.of(source).write(Place(problem, rule), cell._asdict())

    def drop(self, problem: str, rule: str, source: str) -> None:
        """Take away what an earlier run left."""
        self.of(source).path(Place(problem, rule)).unlink(missing_ok=True)

    def _of(self, source: str) -> cells.Store:
        """The store of rules from a module of the user's, by its digest `source`."""
        made_by = [Path(__file__).with_name("cells.py")]
        return cells.Store(self.folder, made_by, (self.settings, source))


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
