"""Finished cells on disk, each under a key of all that it depends on, so that a study that was
stopped goes on where it was.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mtlfunc as mf
from mtlfunc.studies.arena import Cell, Settings


class Store:
    """One JSON file for each problem and rule."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        plain = settings._replace(optimizer=settings.optimizer.__qualname__)  # type: ignore[arg-type]
        digest = hashlib.sha256(f"{plain} {torch.__version__}".encode())
        for path in sorted(sources()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        self.common = digest.hexdigest()

    def key(self, problem: str, rule: str, source: bytes) -> str:
        return hashlib.sha256(f"{self.common} {problem} {rule}".encode() + source).hexdigest()

    def read(self, problem: str, rule: str, source: bytes) -> Cell | None:
        """What an earlier run with this key left; None if nothing did, or the file cannot be read."""
        try:
            kept = json.loads(self._path(problem, rule).read_text(encoding="utf-8"))
            return _cell(kept["cell"]) if kept["key"] == self.key(problem, rule, source) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, problem: str, rule: str, source: bytes, cell: Cell) -> None:
        path = self._path(problem, rule)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "problem": problem,
            "rule": rule,
            "key": self.key(problem, rule, source),
            "cell": plain(cell._asdict()),
        }
        replace(path, lambda temporary: temporary.write_text(json.dumps(content), encoding="utf-8"))

    def _path(self, problem: str, rule: str) -> Path:
        return self.folder / _slug(problem) / f"{_slug(rule)}.json"


def sources() -> list[Path]:
    """What a cell's numbers may depend on."""
    here = Path(__file__).parent
    return [
        *Path(mf.__file__).parent.rglob("*.py"),
        here / "contestants.py",
        here / "digits.py",
        here.parent / "digits" / "data.py",
    ]


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and put it in place when it is whole."""
    # the name's ending tells savefig the format
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        return (
            [filled(item) for item in value]
            if isinstance(value, list)
            else math.nan
            if value is None
            else value
        )

    tensors = {
        name: torch.tensor(filled(kept[name]), dtype=torch.float64)
        for name in kept
        if name not in ("weights", "step_ms", "error")
    }
    weights = (
        None if kept["weights"] is None else torch.tensor(kept["weights"], dtype=torch.float64)
    )
    return Cell(**tensors, weights=weights, step_ms=filled(kept["step_ms"]), error=kept["error"])


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name)
