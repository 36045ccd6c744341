"""A function of named axes on their whole product: vmapped, in chunks, by many workers, saved as it
goes.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import platform
import queue
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.batching import evaluate
from ..core.checks import check_count, inside_transform
from ..core.processes import follow_parent
from ..core.progress import progress_bar
from ._points import Axis, Chunk, Points

if TYPE_CHECKING:
    import xarray


class Unfinished(KeyboardInterrupt):
    """Raised by `grid` instead of KeyboardInterrupt, with what was computed so far.

    `.dataset` is NaN where a point is missing; integers become floats for it. With a `path` the
    same call goes on where this one was; without one it begins again.
    """

    def __init__(self, dataset: xarray.Dataset, done: int, total: int, rest: str) -> None:
        super().__init__(f"grid interrupted after {done} of {total} points; {rest}")
        self.dataset = dataset


class Unwritten(OSError):
    """Raised by `grid` where a folder takes no more files; `.dataset` is that of `Unfinished`."""

    def __init__(self, error: OSError, dataset: xarray.Dataset, done: int, total: int) -> None:
        super().__init__(
            error.errno,
            f"{error.strerror}; .dataset of this error has {done} of {total} points, and the same "
            "call goes on from those that were written",
            error.filename,
        )
        self.dataset = dataset


class WorkerError(futures.BrokenExecutor):
    """Raised by `grid` where an executor's worker died; `.dataset` is that of `Unfinished`."""

    def __init__(self, text: str, dataset: xarray.Dataset) -> None:
        super().__init__(text)
        self.dataset = dataset


def grid(
    f: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    points_at_once: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    path: str | os.PathLike[str] | None = None,
    executor: Any = None,
    shard: tuple[int, int] | None = None,
) -> xarray.Dataset:
    """`f(**point)` at every point of the product of named axes, as a labelled dataset.

    Args:
        f: takes every axis by its name and returns a tensor, or a (nested) dict or NamedTuple of
            tensors, of the same shapes everywhere.
        axes: `{name: values}`. A tensor `[n]` is vmapped: `f` gets 0-d tensors (a seed is a key's
            integer). A list of numbers or strings, or a dict `{label: value}` of anything (rules,
            modules, settings), is looped over in Python: `f` gets the value itself.
        points_at_once: at most how many points are evaluated in one vmap, which bounds the memory;
            None is the product of all tensor axes, 1 a plain loop without vmap, for a function that
            cannot be vmapped. A chunk is also what a worker gets and what is written.
        dims: names of the axes of what `f` returns, `{variable: names}`, such as `{"losses":
            ("step", "task")}`; those not named are `losses_dim_0`, `losses_dim_1`.
        path: a folder, made if need be: every finished chunk is written there, whole, and a second
            call with the same axes evaluates only what is missing, whatever its points_at_once. The
            values of a dict are compared as well: their data, their code, and the globals that code
            names; of an installed package the names alone. What `f` does is not compared, only the
            names, shapes and dtypes it returns: take a new folder where its code changes. One call
            at a time has the folder; shards share it.
        executor: evaluates the chunks side by side: a `concurrent.futures.ProcessPoolExecutor` with
            `multiprocessing.get_context("spawn")`, Dask's `client.get_executor()`, those of
            mpi4py, ipyparallel, loky and submitit: what has `submit(f, *arguments)`. Workers take
            this process's default dtype and number of threads (`torch.set_num_threads(1)` before,
            where they fill the cores), so answers are bitwise those of one process.
        shard: `(i, n)`: of the chunks only every n-th from the i-th on, for job arrays that share
            `path`. The dataset has what the folder holds at the end, and NaN elsewhere; a call
            without `shard` collects all, and evaluates what is missing.

    Returns:
        an `xarray.Dataset` with the axes as its first dimensions, in the order of `axes`. A tensor
        becomes the variable `value`, a nested field `outer.inner`. Coordinates of a float32 axis
        are its shortest decimals, so that `.sel(c=0.4)` finds them. On several points vmapped
        together `f` must keep the rules of `torch.func.vmap`.

    Raises:
        Unfinished: on Ctrl-C; a KeyboardInterrupt that carries the dataset so far. With `path` the
            same call goes on where it was.
        OSError: where the folder takes no more files, as on a full disk; its `.dataset` has what
            was computed so far, also what could not be written.
        WorkerError: where a worker died, a `concurrent.futures.BrokenExecutor`; `.dataset` has what
            the others did.
        ValueError: for axes that are empty, repeated or not finite, outputs that differ between
            points, a folder that holds another grid, other files or a broken one, values that a
            folder cannot be compared with (files, locks, generators), and a shard that is none or
            has no chunk.
        TypeError: for axes of the wrong kind, outputs that are not tensors, and an `f` or values
            that the executor cannot pickle.
        RuntimeError: under a transform, where plain nested `vmap` is the way, for an `f` that
            cannot be vmapped, and while another call has the folder.

    Examples:
        >>> def power(seed, c):
        ...     return {"power": c ** torch.arange(2.0) + seed}
        >>> found = grid(power, {"seed": torch.arange(3), "c": torch.tensor([0.2, 0.4])})
        >>> dict(found.sizes)
        {'seed': 3, 'c': 2, 'power_dim_0': 2}
        >>> [round(value, 4) for value in found["power"].sel(seed=2, c=0.4).values.tolist()]
        [3.0, 2.4]
    """
    if inside_transform():
        raise RuntimeError(
            "grid: a dataset cannot be made under a torch.func transform; nest torch.func.vmap "
            "instead, or call grid outside"
        )
    check_count(points_at_once, "points_at_once", none=True)
    if not isinstance(axes, Mapping):
        kind = type(axes).__name__
        raise TypeError(f"axes: expected a dict {{argument of f: values}}, got {kind}")
    if not axes:
        raise ValueError("axes: expected at least one axis, {name: values}")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor: expected a concurrent.futures.Executor, or what has its submit(), got "
            f"{type(executor).__name__}"
        )
    if not isinstance(dims, Mapping | None):
        kind = type(dims).__name__
        raise TypeError(f'dims: expected a dict {{"variable of f": [names]}}, got {kind}')
    table = {name: _axis(name, values) for name, values in axes.items()}
    named = {k: (x,) if isinstance(x, str) else tuple(x) for k, x in (dims or {}).items()}
    points = Points(table, named, None if path is None else Path(path))
    chunks = points.chunks(points_at_once)
    i, n = _shard(shard, path, len(chunks))
    if executor is not None and len(chunks) == 1 < points.total:
        warnings.warn(
            f"executor: all {points.total} points are one chunk, which one worker evaluates; pass "
            "points_at_once= to share them out",
            stacklevel=2,
        )
    with points.hold_folder(i, n):
        points.resume()
        left = [chunk.drop_done(points.done) for chunk in chunks[i::n]]
        left = [chunk for chunk in left if len(chunk.flat)]
        if left:
            points.check_writable()
        had = int(points.done.sum())
        total = had + sum(len(chunk.flat) for chunk in left)
        try:
            with progress_bar(total=total, initial=had, desc="grid", unit="point") as bar:
                run = _evaluate_serially if executor is None else _evaluate_in_workers
                run(points, f, left, executor, bar)
        except KeyboardInterrupt as stop:
            done = int(points.done.sum())
            raise Unfinished(points.dataset(), done, points.total, _resumed(points)) from stop
        except OSError as error:
            place = None if error.filename is None else Path(error.filename)
            if place is None or points.folder is None or not place.is_relative_to(points.folder):
                raise  # f's own
            done = int(points.done.sum())
            raise Unwritten(error, points.dataset(), done, points.total) from error
        if n > 1:
            points.load()  # of the other shards
    return points.dataset()


def _shard(
    shard: tuple[int, int] | None, path: str | os.PathLike[str] | None, chunks: int
) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    pair = isinstance(shard, Sequence) and [isinstance(x, int) for x in shard] == [True, True]
    if not pair or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, got {shard!r}")
    if path is None:
        raise ValueError("shard: needs a path, the folder that the shards share")
    if shard[1] > chunks:
        raise ValueError(
            f"shard: {chunks} chunk(s) cannot be shared by {shard[1]}; pass a smaller "
            "points_at_once, the same one to every shard"
        )
    return shard[0], shard[1]


# ---- evaluating a chunk, here or elsewhere ----


def _evaluate(
    f: Callable[..., Any],
    names: Sequence[str],
    batched: dict[str, Tensor],
    fixed: dict[str, Any],
    count: int,
) -> dict[str, np.ndarray]:
    def evaluate_point(point: dict[str, Tensor]) -> dict[str, Tensor]:
        given = point | fixed
        return _variables(f(**{name: given[name] for name in names}))

    found = evaluate(evaluate_point, batched, count, "f")
    return {name: _array(value) for name, value in found.items()}


class Home(NamedTuple):
    """What evaluating depends on besides its arguments; a worker takes it over."""

    process: tuple[str, int]
    dtype: torch.dtype
    threads: int

    @classmethod
    def of_this_process(cls) -> Home:
        process = platform.node(), os.getpid()
        return cls(process, torch.get_default_dtype(), torch.get_num_threads())


RAISED = "f raised this"
"""Tells an error of `f` from one of the executor that could not send it."""


def _work(
    home: Home,
    f: Callable[..., Any],
    names: Sequence[str],
    batched: bytes,
    fixed: dict[str, Any],
    count: int,
) -> tuple[tuple[str, int], dict[str, np.ndarray]]:
    """What a worker does: which process it is, and its answers.

    Axes come pickled: torch would send tensors as open files, of which a process may have few.
    """
    here = Home.of_this_process()
    if here.process != home.process:
        torch.set_default_dtype(home.dtype)
        if here.threads != home.threads:
            torch.set_num_threads(home.threads)
        parent = multiprocessing.parent_process()
        if parent is not None and (here.process[0], parent.pid) == home.process:
            follow_parent(os.getpid())
    try:
        return here.process, _evaluate(f, names, pickle.loads(batched), fixed, count)
    except Exception as error:
        error.add_note(f"grid: {RAISED} in process {here.process[1]} on {here.process[0]}")
        raise


def _evaluate_serially(
    points: Points, f: Callable[..., Any], chunks: list[Chunk], executor: None, bar: Any
) -> None:
    for chunk in chunks:
        batched, count = points.batch(chunk.flat), len(chunk.flat)
        try:
            found = _evaluate(f, list(points.axes), batched, chunk.fixed, count)
        except Exception as error:
            error.add_note(f"grid: {points.describe(chunk.flat)}")
            raise
        points.store(chunk.flat, found)
        bar.update(count)


def _evaluate_in_workers(
    points: Points, f: Callable[..., Any], chunks: list[Chunk], executor: Any, bar: Any
) -> None:
    """Chunks by an executor's workers, stored as they come; after an error, those at work still."""
    home, waiting, failed = Home.of_this_process(), {}, []
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    counts: Counter[tuple[str, int]] = Counter()
    names = list(points.axes)
    try:
        for chunk in chunks:
            batched = pickle.dumps(points.batch(chunk.flat))
            job = (_work, home, f, names, batched, chunk.fixed, len(chunk.flat))
            try:
                future = executor.submit(*job)
                waiting[future] = chunk
                if isinstance(future, futures.Future):
                    future.add_done_callback(done.put)
            except Exception as error:  # of an executor that pickles at once, or is broken
                failed.append((chunk, error))
                break
        while waiting:
            if failed:
                for job in waiting:
                    job.cancel()
            for job in _finished_jobs(waiting, done):
                chunk = waiting.pop(job)
                try:
                    worker, found = job.result()
                except futures.CancelledError:
                    continue
                except Exception as error:
                    failed.append((chunk, error))
                    continue
                points.store(chunk.flat, found)
                counts[worker] += len(chunk.flat)
                shares = ", ".join(str(count) for count in counts.values())
                bar.set_postfix_str(f"{len(counts)} workers: {shares}", refresh=False)
                bar.update(len(chunk.flat))
    except KeyboardInterrupt:
        for job, chunk in waiting.items():
            if not job.cancel() and job.done() and job.exception() is None:
                points.store(chunk.flat, job.result()[1])
        raise
    finally:
        for job in waiting:
            job.cancel()
    if failed:
        _explain(points, chunks, *min(failed, key=lambda pair: int(pair[0].flat[0])))


def _finished_jobs(waiting: dict[Any, Chunk], done: queue.SimpleQueue[Any]) -> list[Any]:
    """Jobs that are done, at least one: as futures say it themselves; others, submitit's, are asked
    in turn.
    """
    while True:
        try:
            return [done.get(timeout=0.5)]
        except queue.Empty:
            others = [job for job in waiting if not isinstance(job, futures.Future) and job.done()]
            if others:
                return others


def _resumed(points: Points) -> str:
    """Where the finished points are, and how to go on."""
    if points.folder is None:
        return "what is done is in .dataset; with a path, the same call would go on from there"
    return f"what is done is in .dataset and {points.folder}, and the same call goes on from there"


def _explain(points: Points, chunks: list[Chunk], chunk: Chunk, error: Exception) -> None:
    """Raise what ended a job, with what to do."""
    if isinstance(error, futures.BrokenExecutor):
        lost = [chunk.drop_done(points.done) for chunk in chunks]
        lost = [points.describe(chunk.flat) for chunk in lost if len(chunk.flat)]
        raise WorkerError(
            f"executor: a worker died with {int(points.done.sum())} of {points.total} points done: "
            "killed, for memory perhaps, or it could not import f, which must stand at the top "
            "level of a module that workers can import (a script starts its pool under `if "
            '__name__ == "__main__":`). Not evaluated: '
            f"{'; '.join(lost[:5])}{f' and {len(lost) - 5} more chunks' if lost[5:] else ''}; "
            f"{_resumed(points)}",
            points.dataset(),
        ) from error
    said = [str(error), *getattr(error, "__notes__", ())]  # Ray and submitit quote the notes
    if "pickl" in f"{type(error)} {said[0]}".lower() and not any(RAISED in text for text in said):
        raise TypeError(
            f"executor: it cannot send f or the value of an axis to its workers ({error}); write f "
            "at the top level of a module, not as a lambda or inside another function, and make "
            "what cannot be sent, such as a rule made of a lambda, inside f, from its name"
        ) from error
    error.add_note(f"grid: {points.describe(chunk.flat)}")
    raise error


def _axis(name: str, values: Any) -> Axis:
    where = f"axes[{name!r}]"
    if isinstance(values, Tensor):
        if values.ndim != 1 or values.is_complex():
            raise ValueError(
                f"{where}: expected a tensor [n] of real numbers, got {values.dtype} of shape "
                f"{list(values.shape)}; index what is larger inside f"
            )
        labels: Any = values.detach().cpu()
        # 0.4 in float32 is 0.4000000059604645; its shortest decimals are what was meant.
        if values.dtype == torch.float32:
            labels = labels.numpy().astype(str).astype(float)
        axis = Axis(labels.tolist(), values.detach())
    elif isinstance(values, Mapping):
        axis = Axis(list(values), list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        axis = Axis(list(values), list(values))
    else:
        raise TypeError(
            f"{where}: expected a tensor [n], a list of numbers or strings, or a dict {{label: "
            f"value}}, got {type(values).__name__}{_cure(values)}"
        )
    if not axis.labels:
        raise ValueError(f"{where}: empty; every axis needs at least one value")
    if not any(all(isinstance(x, kind) for x in axis.labels) for kind in (str, Real)):
        kinds = ", ".join(sorted({type(x).__name__ for x in axis.labels}))
        raise TypeError(
            f"{where}: positions are named by all strings or all numbers, got {kinds}; pass a "
            "dict {label: value}"
        )
    if any(isinstance(x, Real) and not math.isfinite(x) for x in axis.labels):
        text = f"{where}: NaN or infinite values in {axis.labels}; expected finite numbers"
        raise ValueError(text)
    repeated = sorted({x for x in axis.labels if axis.labels.count(x) > 1})
    if repeated:
        raise ValueError(f"{where}: {repeated} more than once; each value names one position")
    return axis


def _variables(out: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of what `f` returned, by name; an empty tuple or dict, such as `Info.aux` without
    one, holds none.
    """
    if isinstance(out, Tensor):
        return {name or "value": out}
    fields: Any = {} if isinstance(out, tuple) and not out else out
    fields = fields._asdict() if hasattr(fields, "_asdict") else fields
    if isinstance(fields, Mapping):
        found: dict[str, Tensor] = {}
        for field, value in fields.items():
            inner = _variables(value, f"{name}.{field}" if name else str(field))
            if twice := sorted(found.keys() & inner):
                raise ValueError(f"f: returns two values called {twice[0]!r}; rename one")
            found |= inner
        if found or name:
            return found
    got = f"{type(out).__name__}{f' as {name!r}' if name else ''}{_cure(out)}"
    raise TypeError(f"f: expected a tensor, or a dict or NamedTuple of tensors, got {got}")


def _cure(value: Any) -> str:
    """What makes it right, if that is one call."""
    if isinstance(value, Iterator):
        return "; use list"
    return "; use torch.as_tensor" if isinstance(value, np.ndarray | Real) else ""


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    # NumPy has no bfloat16
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
