"""Long computations that are done once: by whichever question needs them first, in any process.

What a kept function returned is in the process's memory and, while a run has a folder for it, in a
file: so another question, another worker and the next run after an interruption also have it.
"""

import functools
import hashlib
import os
import pickle
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from tqdm import tqdm

from common import sources
from common.locks import InUse, digest, hold_lock
from mtlfunc.core.files import write_whole

from .cache import versions

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
R = TypeVar("R")


class Store:
    """Where this process keeps what it computes; a run sets it."""

    folder: Path | None = None
    draw: int = 0  # see `draws`
    owner: str = ""  # the question at work in this process, with its settings
    # what it computed: by key, seconds that it took in an earlier run
    earlier: ClassVar[dict[str, float]] = {}
    # what it needed, whoever computed it: by key, seconds that it took
    used: ClassVar[dict[str, float]] = {}


class Part(NamedTuple):
    """What a file holds."""

    owner: str  # that computed it
    seconds: float  # of processor time that it took
    result: Any


def spent() -> float:
    """Seconds of processor time that this process has taken, with what compilers took."""
    return sum(os.times()[:4])


class Kept(Generic[P, R]):
    """A function whose results are kept, under all that they depend on: see `kept`."""

    def __init__(self, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        # now, while the sources are what is imported: they may be edited while a run goes on
        file = Path(function.__code__.co_filename)
        self.base = sources.key([file], versions(), function.__module__, function.__qualname__)
        self.memory: dict[str, Part] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.together({"": functools.partial(self.now, *args, **kwargs)})[""]

    def together(self, calls: Mapping[K, Callable[[], R]]) -> dict[K, R]:
        """Results of several calls, partials of `now` by name and in their order; what another
        process is at is waited for last.
        """
        found: dict[K, R] = {}
        while len(found) < len(calls):
            count = len(found)
            for name in [name for name in calls if name not in found]:
                with suppress(InUse):
                    found[name] = calls[name]()
            if len(found) == count:
                time.sleep(0.2)
        return {name: found[name] for name in calls}

    def now(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, kept or computed. Raises InUse while another process computes it."""
        key = digest([], self.base, f"draw {Store.draw}", *_texts((args, kwargs)))
        if key not in self.memory:
            self.memory[key] = self._part(key, functools.partial(self.function, *args, **kwargs))
        part = self.memory[key]
        Store.used[key] = part.seconds
        if part.owner == Store.owner:
            Store.earlier.setdefault(key, part.seconds)
        return part.result

    def _part(self, key: str, function: Callable[[], R]) -> Part:
        """From its file, or computed."""

        def compute() -> Part:
            begin = spent()
            result = function()
            Store.earlier[key] = 0.0
            sources.check()
            return Part(Store.owner, spent() - begin, result)

        if Store.folder is None:
            return compute()
        folder, end = Store.folder, f"{self.function.__name__}-{key[:24]}"

        def place() -> Path:
            return next(folder.glob(f"*-{end}"), folder / f"{Store.owner}-{end}")

        if not place().exists():
            with hold_lock(folder / f"{end}.lock"):
                if not place().exists():  # nor has another process just finished it
                    content = pickle.dumps(compute())
                    write_whole(place(), hashlib.sha256(content).digest() + content)
        path = place()
        try:
            return read(path)
        except Exception as error:  # whatever pickle says of a damaged file
            tqdm.write(f"{path.name} is damaged ({error}) and computed again")
            path.unlink(missing_ok=True)
            return self._part(key, function)


def kept(function: Callable[P, R]) -> Kept[P, R]:
    """A function of settings, numbers, texts and tensors whose results are kept. The key is of the
    arguments, the function's source and all that it imports, the package and the versions of the
    libraries. It calls no other such function: what that took would count twice.
    """
    return Kept(function)


OURS = re.compile(r"([\w.]*-)*\w+-[0-9a-f]{24}(\.lock)?")
"""Names of what runs write into a folder of long computations."""


def drop(folder: Path, owners: Iterable[str] = ("",)) -> None:
    """Take away the long computations of those whose names begin so, or all, and an empty folder;
    what no run wrote stays.
    """
    begins = tuple(owners)
    for path in filter(Path.is_file, folder.glob("*")):
        if OURS.fullmatch(path.name) and (path.suffix == ".lock" or path.name.startswith(begins)):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def read(path: Path) -> Part:
    """What a file holds. Raises whatever pickle says of a damaged one."""
    raw = path.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise ValueError("not what was written")
    return pickle.loads(raw[32:])


def _texts(value: Any) -> list[str]:
    """An argument as texts that are the same in every process: tensors, numbers, strings, None,
    and mappings and sequences of these.
    """
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
        return [f"{value.dtype}{list(value.shape)}{hashlib.sha256(content).hexdigest()}"]
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, tuple | list):
        inside = (text for item in value for text in _texts(item))
        return [type(value).__name__, *inside, "end"]
    if value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        return [repr(value)]
    raise TypeError(
        f"a kept function takes no {type(value).__name__}: {value!r} says not all of it"
    )
