"""One cell of a study, and the finished ones on disk, each under a key of all that it rests on."""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.sources import check, key
from mtlfunc.core.files import write_whole

from .files import Files
from .locks import digest
from .progress import Progress
from .signals import unbroken


class Cell(NamedTuple):
    """One training run."""

    problem: str  # "" where a study has one
    method: str
    variant: str  # one of several among which validation chooses, static weights say; "" for one
    rate: float
    seed: int

    @property
    def file(self) -> Path:
        """Where a store keeps it, in its folder."""
        method = slug(f"{self.method} {self.variant}".strip())
        return Path(slug(self.problem), method, f"rate {self.rate:g} seed {self.seed}.json")

    def __str__(self) -> str:
        named = [x for x in (self.problem, self.method, self.variant) if x]
        return f"{', '.join(named)}, rate {self.rate:g}, seed {self.seed}"


class Store:
    """One JSON file per cell, a named tuple with its `.file`.

    What was made with other sources or settings is not read.
    """

    def __init__(
        self,
        folder: Path,
        sources: Iterable[Path],
        settings: object,
        unfinished: Path | None = None,
        files: Files | None = None,
    ) -> None:
        """Nothing is touched on disk.

        Args:
            folder: where the files are, in a folder for these settings, made with the first one.
            sources: files of the experiment that the numbers depend on; so do those they import.
            settings: everything else that they depend on and the cell does not say.
            unfinished: where runs keep their state as they go (`state_of`), which is removed as
                soon as their numbers are kept, and not before.
            files: of the data. What they hold is in `settings` (`Files.source`); here it is seen
                whether they stay as they are.
        """
        own = digest((), settings)[:8]  # a try keeps its own runs
        self.folder, self.unfinished, self.files = folder / own, unfinished, files
        self.key = key(sources, settings, torch.__version__)

    def read(self, cell: Any) -> dict[str, Any] | None:
        """What an earlier run left; None for another key or an unreadable file."""
        try:
            kept = json.loads(self.path(cell).read_text(encoding="utf-8"))
            if kept["key"] != self.key or kept["cell"] != list(cell):
                return None
            return filled(kept["numbers"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, cell: Any, numbers: dict[str, Any]) -> None:
        """Keep a cell, whole.

        Raises:
            OSError: where that cannot be done, on a full disk say.
            DataError: where the data have changed since the study began, or the code (Edited).
        """
        check()
        if self.files is not None:
            self.files.check()
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"cell": list(cell), "key": self.key, "numbers": plain(numbers)}
        write_whole(path, json.dumps(kept, allow_nan=False))
        if self.unfinished is not None:
            state_of(self.unfinished, cell).unlink(missing_ok=True)

    def kept(self, cell: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an earlier run left, or else what `make` returns, which is then kept."""
        if (numbers := self.read(cell)) is not None:
            return numbers
        numbers = plain(make())
        with unbroken():
            self.write(cell, numbers)
        return filled(numbers)

    def path(self, cell: Any) -> Path:
        """The file of a cell."""
        return self.folder / cell.file


def sources_of(here: Path) -> list[Path]:
    """The files of an experiment, less what only shows numbers."""
    shown = ("report.py", "judge.py", "__main__.py")
    return [path for path in here.glob("*.py") if path.name not in shown]


def unfinished_in(out: Path, sources: Iterable[Path], settings: object) -> Path:
    """Where runs keep their state as they go: by version, as no run is to have two.

    Args:
        out: the study's folder.
        sources: as of `Store`.
        settings: as of `Store`.
    """
    return out / "unfinished" / key(sources, settings, torch.__version__)[:16]


def state_of(unfinished: Path, cell: Cell) -> Path:
    """The file of a run's state."""
    return unfinished / f"{slug(str(cell))}.pt"


def keep_state(path: Path, settings: object, cell: Cell, state: dict[str, Any]) -> None:
    """Write the state of a run, whole, with what it was made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: torch.save((settings, cell, state), file))


def kept_state(path: Path, settings: object, cell: Cell, device: str) -> dict[str, Any]:
    """The state that `keep_state` wrote; empty where it is of other settings or another cell."""
    made_with, whose, state = torch.load(path, map_location=device, weights_only=False)
    return state if (made_with, whose) == (settings, cell) else {}


class Refusal:
    """Around a step: a rule refuses what has diverged, and then `came` is true and the rest of the
    block is left out.
    """

    came = False

    def __enter__(self) -> "Refusal":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.came = isinstance(error, ValueError) and "NaN" in str(error)
        return self.came


class Resumable:
    """A run whose state is kept as it goes: the attributes that `KEPT` names, `done` among them."""

    KEPT: tuple[str, ...]
    settings: Any  # with a `device`
    cell: Cell
    done = 0
    failed = False

    def advance(self) -> None:
        """Add one to `done`, or say that the run `failed`."""
        raise NotImplementedError

    def numbers(self) -> dict[str, Any]:
        """What the run leaves."""
        raise NotImplementedError

    def to_end(self, unfinished: Path, length: int, what: str, every: int = 1) -> dict[str, Any]:
        """The numbers of a run to its end, `length` of what is counted.

        It goes on where an earlier one was stopped: the state is kept in a folder each time that
        `every` more are done; 0 is never.
        """
        kept = state_of(unfinished, self.cell)
        self.resume(kept)
        with Progress(length, str(self.cell), what, self.done) as progress:
            while self.done < length and not self.failed:
                self.advance()
                progress.update()
                if every and self.done % every == 0 and self.done < length and not self.failed:
                    self.keep(kept)
        return self.numbers()

    def keep(self, path: Path) -> None:
        """Write all that `resume` needs, whole."""
        state = {name: getattr(self, name) for name in self.KEPT}
        keep_state(path, self.settings, self.cell, state)

    def resume(self, path: Path) -> None:
        """Go on after what was kept; what was kept with other settings is left."""
        if path.is_file():
            kept = kept_state(path, self.settings, self.cell, self.settings.device)
            for name, value in kept.items():
                setattr(self, name, value)


NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain(value: Any) -> Any:
    """For JSON: tensors as lists, and `{"float": "nan"}` for what is not finite."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def filled(value: Any) -> Any:
    """`plain`, backwards, as far as JSON's types go."""
    if isinstance(value, dict):
        if list(value) == ["float"] and value["float"] in NOT_FINITE:
            return NOT_FINITE[value["float"]]
        return {key: filled(item) for key, item in value.items()}
    return [filled(item) for item in value] if isinstance(value, list) else value


def slug(name: str) -> str:
    """A name of a file; names that are equal but for odd characters would meet in one."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name)
