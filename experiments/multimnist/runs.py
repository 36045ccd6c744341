"""Finished runs in one file, which goes from machine to machine and from version to version."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.cells import Cell, Store, filled, plain
from common.files import DataError, Files
from common.locks import writer_lock
from common.study import Numbers
from mtlfunc.core.files import write_whole

from .train import Settings

OWN = ("data", "device")  # settings of a machine, of which no number is asked to depend


class Recorded(Store):
    """A store whose runs are also in a file; a run of the file counts as finished. The file names
    the torch and the digest of the code that made each run, and nothing asks that they be today's:
    a study of hours goes on after a change of the code. `taken` counts what was read of others.
    """

    def __init__(
        self, path: Path, folder: Path, sources: Iterable[Path], settings: Settings, files: Files
    ) -> None:
        """Raises DataError for a file of something else."""
        super().__init__(folder, sources, settings, files=files)
        self.file, self.taken = path, set[Cell]()
        own = {k: v for k, v in settings._asdict().items() if k not in OWN}
        self.name = json.dumps(own, ensure_ascii=False)
        self.runs: dict[str, dict[str, Any]] = _read(path).get(self.name, {})

    def read(self, cell: Any) -> dict[str, Any] | None:
        """From the folder, else from the file."""
        found = super().read(cell)
        if found is not None:
            self._add(cell, found)  # a run of a machine whose file was lost
            return found
        row = self.runs.get(str(cell))
        if row is None:
            return None
        if row["code"] != self.key:
            self.taken.add(cell)
        return filled(row["numbers"])

    def write(self, cell: Any, numbers: dict[str, Any]) -> None:
        """Into both. Raises as `Store.write`."""
        super().write(cell, numbers)
        self._add(cell, numbers)

    def _add(self, cell: Cell, numbers: Numbers) -> None:
        if str(cell) in self.runs:
            return
        row = {"code": self.key, "torch": torch.__version__, "numbers": plain(numbers)}
        with writer_lock(self.file):  # another set's command
            every = _read(self.file)
            self.runs = every.setdefault(self.name, {})
            self.runs.setdefault(str(cell), row)
            write_whole(self.file, _text(every))

    def said(self) -> list[str]:
        """A note for the table; none where all runs are of this code."""
        if not self.taken:
            return []
        return [
            f"{len(self.taken)} runs are of {self.file.name}, made by other versions of the code "
            "or of torch, which it names."
        ]


def _read(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    if not path.exists():
        return {}
    found: Any = None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for runs in found.values() for row in runs.values()]
        whole = all({"code", "torch", "numbers"} <= {*row} for row in rows)
    except (ValueError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"--runs: {path} holds something else than runs of this study")
    return found


def _text(every: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each run, so that a change of the file shows which ones came."""
    parts = []
    for name, runs in every.items():
        lines = [f"  {json.dumps(k)}: {json.dumps(runs[k], allow_nan=False)}" for k in sorted(runs)]
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"
