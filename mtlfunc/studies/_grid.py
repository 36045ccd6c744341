"""A function of named axes on their whole product, in chunks that workers take and files keep."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from numbers import Real
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_count
from ..core.files import write_whole
from ..core.progress import progress_bar
from ..core.transforms import inside_transform

if TYPE_CHECKING:
    import xarray


class Unfinished(KeyboardInterrupt):
    """Raised by `grid` on Ctrl-C; `.dataset` is NaN, and float, where a point is missing."""

    def __init__(self, dataset: xarray.Dataset, done: int, total: int) -> None:
        super().__init__(f"grid interrupted after {done} of {total} points, which are in .dataset")
        self.dataset = dataset


def grid(
    f: Callable[..., Any], axes: Mapping[str, Any], *, points_at_once: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None, path: str | os.PathLike[str] | None = None,
    executor: Any = None,
) -> xarray.Dataset:  # fmt: skip
    """`f(**point)` at every point of the product of named axes, as a labelled dataset.

    Args:
        f: takes every axis by its name and returns a tensor, or a (nested) dict or NamedTuple of
            tensors, of the same shapes everywhere.
        axes: `{name: values}`. A tensor `[n]` is vmapped: `f` gets 0-d tensors (a seed is a key's
            integer). A list of numbers or strings, or a dict `{label: value}` of anything (rules,
            modules, settings), is looped over in Python: `f` gets the value itself.
        points_at_once: at most how many points are in one vmap, which bounds the memory; 1 is a
            plain loop, for what torch cannot vmap or vmaps wrongly (index_fill by a tensor). A
            worker and a file get such a chunk. None is all of the tensor axes; with `path` and no
            `executor` a 32nd, then twice as many while that takes hardly longer, or all where that
            takes half a minute.
        dims: names of the axes of what `f` returns, `{variable: names}`, such as `{"losses":
            ("step", "task")}`; those not named are `losses_dim_0`, `losses_dim_1`.
        path: a folder, made if need be: every finished chunk is written there, whole, and a second
            call with the same axes, or more values on them, evaluates only what is missing,
            whatever its points_at_once. Names, labels and dtypes of axes are compared. What `f`
            does, and the values of a dict, are not: take a new folder where they change.
        executor: evaluates the chunks side by side: a `concurrent.futures.ProcessPoolExecutor` with
            `multiprocessing.get_context("spawn")`, Dask's `client.get_executor()`, those of
            mpi4py, ipyparallel, loky and submitit: what has `submit(f, *arguments)`. Workers take
            this process's default dtype and number of threads, so answers are bitwise its own.
            Threads of a pool take turns: `functional_call` exchanges a module's parameters.

    Returns:
        an `xarray.Dataset` with the axes as its first dimensions, in the order of `axes`. A tensor
        becomes the variable `value`, a nested field `outer.inner`. Coordinates of a float16
        or float32 axis are its shortest decimals, so that `.sel(c=0.4)` finds them.

    Raises:
        KeyboardInterrupt: on Ctrl-C; its `dataset` is the one so far.
        ValueError: for bad axes, outputs that differ between points, and a folder of another grid.
        TypeError: for axes of the wrong kind and outputs that are not tensors.
        RuntimeError: under a transform, for an `f` that cannot be vmapped, for forks of a process
            whose torch has several threads, and for a pool of threads where the `f` of a grid calls
            another one.

    Examples:
        >>> power = lambda seed, c: {"power": c ** torch.arange(2.0) + seed}
        >>> found = grid(power, {"seed": torch.arange(3), "c": torch.tensor([0.2, 0.4])})
        >>> [round(value, 4) for value in found["power"].sel(seed=2, c=0.4).values.tolist()]
        [3.0, 2.4]
    """
    if inside_transform():
        raise RuntimeError("grid: not under a torch.func transform; nest torch.func.vmap instead")
    if isinstance(executor, futures.ThreadPoolExecutor) and _TURN._is_owned():  # pyright: ignore
        raise RuntimeError("executor: f of another grid calls this one, whose turn never comes")
    context = getattr(executor, "_mp_context", None)  # of a ProcessPoolExecutor
    if context and context.get_start_method() == "fork" and torch.get_num_threads() > 1:
        raise RuntimeError(
            "executor: its workers are forks of this process, without its threads, and would wait "
            'for them; give it mp_context=multiprocessing.get_context("spawn")'
        )
    check_count(points_at_once, "points_at_once", none=True)
    if not isinstance(axes, Mapping) or not axes or not isinstance(dims, Mapping | None):
        raise TypeError("axes, dims: expected dicts by name, the first of at least one axis")
    table = {name: _axis(name, values) for name, values in axes.items()}
    named = {k: (x,) if isinstance(x, str) else tuple(x) for k, x in (dims or {}).items()}
    points = _Points(table, named, None if path is None else Path(path))
    points.resume()
    had, total = int(points.done.sum()), points.total
    points.at_once, small = points_at_once or total, max(2, -(-(total - had) // 32))
    if points_at_once is None and path is not None and executor is None:
        points.at_once, points.grows = small, True
    run = _serially if executor is None else _by_workers
    try:
        with progress_bar(total=total, initial=had, desc="grid", unit="point") as bar:
            for flat, found in run(f, points, executor):
                points.store(flat, found)
                bar.update(len(flat))
    except KeyboardInterrupt as stop:
        raise Unfinished(points.dataset(), int(points.done.sum()), total) from stop
    return points.dataset()


Answers = Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]


class _Chunk(NamedTuple):
    """Points that share the values of the looped axes."""

    flat: np.ndarray  # their flat indices
    fixed: dict[str, Any]  # those values
    batched: dict[str, Tensor]  # the others', [point]
    where: str  # in words

    def answers(self, f: Callable[..., Any]) -> dict[str, np.ndarray]:
        def point(given: dict[str, Tensor]) -> dict[str, Tensor]:
            return _variables(f(**given, **self.fixed))

        try:
            if len(self.flat) > 1:
                found = torch.func.vmap(point)(self.batched)
            else:
                found = point({name: x[0] for name, x in self.batched.items()})
                found = {name: x[None] for name, x in found.items()}
        except Exception as error:
            told, words = error, ("vmap", "data pointer", "storage")
            if len(self.flat) > 1 and any(x in str(error) for x in words):
                told = RuntimeError(
                    "f: cannot be vmapped; pass points_at_once=1, a plain loop, or write it without"
                    " .item(), if and while on tensors, NumPy and torch's own random numbers "
                    f"(mtlfunc.random has keys that can be vmapped). torch said: {error}"
                )
            told.add_note(f"grid: {self.where}")
            if told is error:
                raise
            raise told from error
        # NumPy has no bfloat16; and f may write the next point's answer into the same tensor
        found = {n: x.float() if x.dtype == torch.bfloat16 else x for n, x in found.items()}
        return {n: x.numpy(force=True).copy() for n, x in found.items()}


def _serially(f: Callable[..., Any], points: _Points, _: Any) -> Answers:
    """Chunks grow where all is soon done, or as long as one twice as large takes hardly longer."""
    paces: dict[int, float] = {}  # seconds per point, by the size of the chunk
    for chunk in points.chunks():
        begin = time.monotonic()
        found = chunk.answers(f)
        size = len(chunk.flat)
        paces[size] = pace = (time.monotonic() - begin) / size
        cheaper = size == points.at_once and pace < 0.7 * paces.get(size // 2, math.inf)
        if points.grows and pace * (points.total - points.done.sum()) < 30.0:
            points.at_once = points.total
        elif points.grows and cheaper:
            points.at_once *= 2
        yield chunk.flat, found


def _sent(chunk: _Chunk) -> bytes | _Chunk:
    """A chunk pickled, since torch would send tensors as open files; itself where pickle cannot."""
    with suppress(Exception):  # of a lambda on an axis, which threads take
        return pickle.dumps(chunk)
    return chunk


_TURN = RLock()
if hasattr(os, "register_at_fork"):  # whose child would wait for a thread that it has not
    os.register_at_fork(after_in_child=lambda: globals().update(_TURN=RLock()))


def _work(dtype: torch.dtype, threads: int, f: Callable[..., Any], chunk: bytes | _Chunk) -> Any:
    """What a worker does."""
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with _TURN:
        return (pickle.loads(chunk) if isinstance(chunk, bytes) else chunk).answers(f)


def _by_workers(f: Callable[..., Any], points: _Points, executor: Any) -> Answers:
    """As they come. After an error no further chunk begins, and those at work are kept."""
    home, failed = (torch.get_default_dtype(), torch.get_num_threads()), None
    jobs = {executor.submit(_work, *home, f, _sent(x)): x.flat for x in points.chunks()}
    try:
        for job in _as_they_come([*jobs]):
            try:
                yield jobs[job], job.result()
            except futures.CancelledError:
                continue
            except Exception as error:
                failed = failed or error
                for other in jobs:
                    other.cancel()
    finally:
        for job in jobs:
            job.cancel()
    if failed is not None:
        if isinstance(failed, futures.BrokenExecutor):
            failed.add_note("grid: a worker was killed, for memory perhaps, or cannot import f")
        elif not hasattr(failed, "__notes__"):  # no error of f's own
            failed.add_note("grid: workers import f and what axes hold from a module's top level")
        raise failed


def _as_they_come(jobs: list[Any]) -> Iterator[Any]:
    """Futures of any library as they end; in order those that cannot tell."""
    while jobs:
        ended = [job for job in jobs if not hasattr(job, "done") or job.done()]
        yield from ended
        jobs = [job for job in jobs if job not in ended]
        if jobs and not ended:
            time.sleep(0.01)


class _Points:
    """The answers at all points, by flat index. Axes are `{name: (labels, values)}`."""

    def __init__(self, axes: dict[str, Any], dims: dict[str, Any], folder: Path | None) -> None:
        self.axes, self.dims, self.folder = axes, dims, folder
        self.sizes = [len(labels) for labels, _ in axes.values()]
        self.total = math.prod(self.sizes)
        self.at_once, self.grows = self.total, False  # points of a chunk
        self.done = np.zeros(self.total, dtype=bool)
        self.values: dict[str, np.ndarray] = {}

    def chunks(self) -> Iterator[_Chunk]:
        """All points that are not done, `at_once` of them, which may change meanwhile."""
        looped = {n: x for n, (_, x) in self.axes.items() if not isinstance(x, Tensor)}
        vmapped = {n: x for n, (_, x) in self.axes.items() if isinstance(x, Tensor)}
        flat = np.arange(self.total).reshape(self.sizes)
        for choice in itertools.product(*(range(len(values)) for values in looped.values())):
            at = dict(zip(looped, choice, strict=True))
            here = flat[tuple(at.get(name, slice(None)) for name in self.axes)].ravel()
            here = here[~self.done[here]]
            fixed = {name: looped[name][k] for name, k in at.items()}
            while len(here):
                part, here = np.split(here, [self.at_once])
                each = dict(zip(self.axes, np.unravel_index(part, self.sizes), strict=True))
                batched = {name: x[torch.from_numpy(each[name])] for name, x in vmapped.items()}
                yield _Chunk(part, fixed, batched, self.describe(part))

    def describe(self, flat: np.ndarray) -> str:
        """The first point of a chunk, in words."""
        at = zip(self.axes.items(), np.unravel_index(int(flat[0]), self.sizes), strict=True)
        said = ", ".join(f"{name}={labels[k]}" for (name, (labels, _)), k in at)
        return f"at ({said}){' …' if len(flat) > 1 else ''}"

    def resume(self) -> None:
        """Read what the folder holds; begin it where it is new."""
        if not self.folder:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"path: {self.folder} is a file, or in one; name a folder") from error
        facts = {n: [str(getattr(x, "dtype", "")), labels] for n, (labels, x) in self.axes.items()}
        self.text, last, places = json.dumps(facts, default=str), "", {}
        for k in itertools.count(1):  # a header each time that values were added
            header = self.folder / f"axes{f'-{k}' if k > 1 else ''}.json"
            if last == self.text and not header.exists():
                break
            with suppress(FileExistsError):  # of a call that began with us
                if not header.exists():  # in a folder that can only be read
                    write_whole(header, self.text, new=True)
            last = header.read_text(encoding="utf-8")
            places[_digest(last)] = _places(header, json.loads(last), json.loads(self.text))
        for file in sorted(self.folder.glob("points-*.npz")):
            try:
                with file.open("rb") as raw, np.load(raw, allow_pickle=False) as saved:
                    of, then = places[str(saved["axes"])], saved["points"]
                    found = {key[2:]: saved[key] for key in saved.files if key.startswith("f.")}
                then = np.unravel_index(then, [len(x) for x in of])
                at = zip(of, then, strict=True)
                flat = np.ravel_multi_index([np.array(x)[k] for x, k in at], self.sizes)
                self.keep(flat, found)
                self.done[flat] = True
            except Exception as error:  # whatever zipfile and NumPy say of a broken file
                cure = "delete it, and its points are evaluated again"
                raise ValueError(f"path: {file} is broken or alien, {error}; {cure}") from error
        self.name()

    def store(self, flat: np.ndarray, found: dict[str, np.ndarray]) -> None:
        self.keep(flat, found)
        if not self.done.any():  # later ones are alike
            self.name()
        if self.folder:
            axes = _digest(self.text)
            arrays: Any = {"axes": axes, "points": flat} | {f"f.{n}": x for n, x in found.items()}
            # no two chunks have one name, however two calls cut: none replaces another's points
            name = f"points-{flat[0]:09d}-{flat[-1]:09d}-{len(flat)}-{axes}.npz"
            write_whole(self.folder / name, lambda file: np.savez(file, **arrays))
        self.done[flat] = True

    def keep(self, flat: np.ndarray, found: dict[str, np.ndarray]) -> None:
        """Put the answers where they belong, if they are of the kind of those before."""
        made = {n: np.zeros((self.total, *x.shape[1:]), x.dtype) for n, x in found.items()}
        self.values = self.values or made
        both = [{n: f"{x.dtype} {x.shape[1:]}" for n, x in y.items()} for y in (self.values, made)]
        if both[0] != both[1]:
            what = f"f {self.describe(flat)}: found {both[1]} but {both[0]} before"
            raise ValueError(
                f"{what}; every point must give the same names, shapes and dtypes; "
                "take a new folder where f has changed"
            )
        for name, x in found.items():
            self.values[name][flat] = x

    def name(self) -> None:
        """All axes of what `f` returns; a wrong `dims` is refused at the first chunk."""
        if (self.values and self.dims.keys() - self.values) or self.values.keys() & self.axes:
            raise ValueError(f"dims: f returns {[*self.values]}; axes are called {[*self.axes]}")
        sizes: dict[str, int] = {}
        for name, x in self.values.items():
            names = self.dims.get(name, tuple(f"{name}_dim_{k}" for k in range(x.ndim - 1)))
            taken = self.axes.keys() | self.values.keys()
            if len(taken | {*names}) < len(taken) + x.ndim - 1 or len(names) != x.ndim - 1:
                raise ValueError(f"dims[{name!r}]: expected {x.ndim - 1} new names, got {names}")
            both = [(k, n, sizes.setdefault(k, n)) for k, n in zip(names, x.shape[1:], strict=True)]
            if clash := [pair for pair in both if pair[1] != pair[2]]:
                raise ValueError(f"dims[{name!r}]: {clash} (name, size, another's); use two names")
            self.dims[name] = names

    def dataset(self) -> xarray.Dataset:
        import xarray  # it brings pandas, and only a finished grid needs it

        variables = {}
        for name, found in self.values.items():
            x = found
            if not self.done.all():
                x = x.astype(x.dtype if x.dtype.kind in "fc" else np.float64)
                x[~self.done] = np.nan
            variables[name] = (*self.axes, *self.dims[name]), x.reshape(*self.sizes, *x.shape[1:])
        places = {name: (name, np.array(labels)) for name, (labels, _) in self.axes.items()}
        return xarray.Dataset(variables, places)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _places(header: Path, old: Any, new: Any) -> list[list[int]]:
    """Where the values of a header's axes are among the new ones."""
    at = {n: {json.dumps(x): k for k, x in enumerate(xs)} for n, (_, xs) in new.items()}
    if [(n, kind) for n, (kind, _) in old.items()] == [(n, kind) for n, (kind, _) in new.items()]:
        with suppress(KeyError):
            return [[at[n][json.dumps(x)] for x in xs] for n, (_, xs) in old.items()]
    cure = "pass these and more values on them, or a new folder"
    raise ValueError(f"path: {header} says other axes, dtypes or labels; {cure}")


def _axis(name: str, values: Any) -> tuple[list[Any], Tensor | list[Any]]:
    """What names the positions of an axis, and what `f` is given there."""
    where = f"axes[{name!r}]"
    if isinstance(values, Tensor) and values.ndim == 1 and not values.is_complex():
        given = values.detach().resolve_neg()
        labels: Any = given.cpu()
        if values.dtype in (torch.float16, torch.float32):
            x = labels.numpy()
            # .4 in float32 is .4000000059604645, 1e11 is 99999997952; shortest decimals were meant
            whole = (x == x.round()) & (abs(x) < np.float32(2**24))
            labels = np.where(whole, x, x.astype(str).astype(float))
        labels = labels.tolist()
    elif isinstance(values, Mapping | Sequence) and not isinstance(values, str):
        labels = list(values)
        given = list(values.values()) if isinstance(values, Mapping) else labels
    else:
        kinds = "a real tensor [n], a list of numbers or strings, or a dict {label: value}"
        raise TypeError(f"{where}: expected {kinds}, got {type(values).__name__}")
    if not any(all(isinstance(x, kind) for x in labels) for kind in (str, Real)):
        raise TypeError(f"{where}: positions are named by all strings or all numbers; pass a dict")
    finite = all(math.isfinite(x) for x in labels if isinstance(x, Real))
    if not labels or len({*labels}) < len(labels) or not finite:
        raise ValueError(f"{where}: expected at least one value, each once and finite")
    return labels, given


def _variables(out: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of what `f` returned, by name; an empty tuple, such as `Info.aux`, holds none."""
    if isinstance(out, Tensor):
        return {name or "value": out}
    fields: Any = {} if isinstance(out, tuple) and not out else out
    fields = fields._asdict() if hasattr(fields, "_asdict") else fields
    if not isinstance(fields, Mapping) or not (fields or name):
        got = f"{type(out).__name__}{f' as {name!r}' if name else ''}"
        raise TypeError(f"f: expected a tensor, or a dict or NamedTuple of tensors, got {got}")
    inner = [_variables(x, f"{name}.{key}" if name else str(key)) for key, x in fields.items()]
    found = {key: value for each in inner for key, value in each.items()}
    if len(found) < sum(map(len, inner)):
        raise ValueError(f"f: returns two values of one name among {sorted(found)}; rename one")
    return found
