"""The points of a grid: cut into chunks, and their answers in memory and in a folder."""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.files import InUse, digest, hold_lock, write_whole
from ._values import Incomparable, digest_of

if TYPE_CHECKING:
    import xarray


class Axis(NamedTuple):
    """One axis of a grid: what names its positions, and what `f` is given there."""

    labels: list[Any]
    values: Tensor | list[Any]  # a tensor is vmapped, a list is looped over


class Chunk(NamedTuple):
    """Points that share the values of the looped axes."""

    flat: np.ndarray  # their flat indices
    fixed: dict[str, Any]  # those values

    def drop_done(self, done: np.ndarray) -> Chunk:
        return self._replace(flat=self.flat[~done[self.flat]])


class Points:
    """The answers at all points, in memory and in the folder, by flat index (looped and vmapped
    axes in the caller's order).
    """

    def __init__(
        self, axes: dict[str, Axis], dims: dict[str, tuple[str, ...]], folder: Path | None
    ) -> None:
        self.axes, self.dims, self.folder = axes, dims, folder
        self.sizes = [len(axis.labels) for axis in axes.values()]
        self.total = math.prod(self.sizes)
        self.done = np.zeros(self.total, dtype=bool)
        self.values: dict[str, np.ndarray] = {}
        self.seen: set[str] = set()  # files whose points are in memory

    def chunks(self, points_at_once: int | None) -> list[Chunk]:
        """All points in chunks; they depend on the axes and points_at_once alone, not on what is
        done, so that every shard and every later call cuts alike.
        """
        looped = {n: x.values for n, x in self.axes.items() if not isinstance(x.values, Tensor)}
        flat = np.arange(self.total).reshape(self.sizes)
        size, found = points_at_once or self.total, []
        for choice in itertools.product(*(range(len(values)) for values in looped.values())):
            at = dict(zip(looped, choice, strict=True))
            here = flat[tuple(at.get(name, slice(None)) for name in self.axes)].ravel()
            fixed = {name: looped[name][k] for name, k in at.items()}
            found += [Chunk(here[i : i + size], fixed) for i in range(0, len(here), size)]
        return found

    def batch(self, flat: np.ndarray) -> dict[str, Tensor]:
        """The values of the vmapped axes at these points, `{name: [point]}`."""
        positions = dict(zip(self.axes, np.unravel_index(flat, self.sizes), strict=True))
        return {
            name: axis.values[torch.from_numpy(positions[name])]
            for name, axis in self.axes.items()
            if isinstance(axis.values, Tensor)
        }

    def describe(self, flat: np.ndarray) -> str:
        """The point, or the first and last of a chunk, in words."""
        names = []
        for i in sorted({int(flat[0]), int(flat[-1])}):
            at = zip(self.axes.items(), np.unravel_index(i, self.sizes), strict=True)
            names.append(", ".join(f"{name}={axis.labels[k]}" for (name, axis), k in at))
        return "at " + " … ".join(f"({name})" for name in names)

    def store(self, flat: np.ndarray, found: dict[str, np.ndarray]) -> None:
        self.keep_answers(flat, found, f"f {self.describe(flat)}")
        if self.folder:
            arrays: Any = {"points": flat} | {f"f.{name}": x for name, x in found.items()}
            # no two chunks have one name, however two calls cut: none replaces another's points
            name = f"points-{flat[0]:09d}-{flat[-1]:09d}-{len(flat)}.npz"
            try:
                write_whole(self.folder / name, lambda file: np.savez(file, **arrays))
            except OSError:  # the answers are there, where no file takes them
                self.done[flat] = True
                raise
            self.seen.add(name)
        self.done[flat] = True
        self.check_dims()  # with others the same call goes on from what is written

    def keep_answers(self, flat: np.ndarray, found: dict[str, np.ndarray], source: str) -> None:
        """Put the answers where they belong, if they are of the kind of those before."""
        if not self.values:
            self.values = {
                name: np.zeros((self.total, *x.shape[1:]), x.dtype) for name, x in found.items()
            }
        before, now = _kinds(self.values), _kinds(found)
        if before != now:
            hint = f", or {self.folder} holds the points of another function: pass another path"
            raise ValueError(
                f"{source}: found {now} but {before} before; every point must give the same names, "
                f"shapes and dtypes{hint if self.folder else ''}"
            )
        for name, x in found.items():
            self.values[name][flat] = x

    def check_dims(self) -> None:
        shapes = {name: x.shape[1:] for name, x in self.values.items()}
        taken = sorted(set(shapes) & set(self.axes))
        if taken:
            raise ValueError(
                f"f: returns {taken}, which axes of the grid are called; rename them in what f "
                "returns"
            )
        unknown = sorted(set(self.dims) - set(shapes))
        if unknown:
            raise ValueError(f"dims: f returns no {unknown}; it returns {sorted(shapes)}")
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            names = self.names(name, len(shape))
            if len({*names} - {*self.axes, *shapes}) < len(shape) or len(names) != len(shape):
                raise ValueError(
                    f"dims[{name!r}]: expected {len(shape)} names for shape {list(shape)}, all "
                    f"different and none of an axis or a variable, got {list(names)}"
                )
            for dim, size in zip(names, shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(
                        f"dims[{name!r}]: {dim!r} has length {size} here but {sizes[dim]} "
                        "elsewhere; give it a name of its own"
                    )

    def names(self, variable: str, ndim: int) -> tuple[str, ...]:
        return self.dims.get(variable, tuple(f"{variable}_dim_{k}" for k in range(ndim)))

    @contextmanager
    def hold_folder(self, i: int, n: int) -> Iterator[None]:
        """The folder, for this call alone, or for this shard next to other shards."""
        if not self.folder:
            yield
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"path: {self.folder} is a file; expected a folder, or a name for a new one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            yield  # a finished study can be read
            return
        mine, whole = self.folder / f".lock-{i}-of-{n}", self.folder / ".lock-0-of-1"
        try:
            with hold_lock(mine):
                for lock in [whole] if n > 1 else sorted(self.folder.glob(".lock-*-of-*")):
                    if lock != mine and lock.exists():
                        with hold_lock(lock):
                            pass
                yield
        except InUse as error:
            raise RuntimeError(
                f"path: {self.folder} is in use by another call of grid ({error.holder}); wait "
                "for it, pass another path, or share the work with shard=(i, n), another i in each "
                f"call{error.cure}"
            ) from error

    def check_writable(self) -> None:
        """Raise before anything is evaluated that could not be kept."""
        if self.folder and not os.access(self.folder, os.W_OK):
            raise ValueError(
                f"path: {self.folder} lacks {self.total - int(self.done.sum())} of {self.total} "
                "points and cannot be written; pass a folder that can"
            )

    def resume(self) -> None:
        """Read what the folder holds; begin it where it is new."""
        if not self.folder:
            return
        header = self.folder / "axes.json"
        mine = {name: _facts(name, axis) for name, axis in self.axes.items()}
        # Looked at before the header is: another shard may begin the folder just now.
        others = any(not file.name.startswith(".") for file in self.folder.iterdir())
        if header.exists():
            self.check_header(header, json.loads(json.dumps(mine, default=_number)))
            self.load()
        elif others:
            raise ValueError(
                f"path: {self.folder} holds other files and no axes.json; pass an empty or a "
                "new folder"
            )
        else:
            write_whole(header, json.dumps(mine, default=_number))

    def load(self) -> None:
        """Read the chunks in the folder that are not in memory."""
        assert self.folder
        for file in sorted(self.folder.glob("points-*.npz")):
            if file.name not in self.seen:
                flat, found = self.read_chunk(file)
                self.keep_answers(flat, found, f"path: {file}")
                self.done[flat] = True
                self.seen.add(file.name)
                self.check_dims()

    def check_header(self, header: Path, mine: dict[str, Any]) -> None:
        """Raise unless the folder's axes are these."""
        try:
            theirs = json.loads(header.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = f"path: {header} is not readable ({error}); pass a new folder"
            raise ValueError(why) from error
        if not isinstance(theirs, dict):
            raise ValueError(
                f"path: {header} holds no axes of a grid; it was written by another version or "
                "another program: pass a new folder"
            )
        if list(mine) != list(theirs):
            raise ValueError(
                f"path: {self.folder} holds a grid over {list(theirs)}, not {list(mine)}; pass "
                "another path, or the axes of before"
            )
        for name, axis in mine.items():
            other = theirs[name]
            if _same(axis, other):
                continue
            what, cure = f"= {other}, not {axis}", "axes"
            if isinstance(other, dict) and _same(axis | {"values": ""}, other | {"values": ""}):
                what, cure = "with other values under the same labels", "values"
            raise ValueError(
                f"path: {self.folder} holds axes[{name!r}] {what}; pass another path, or the "
                f"{cure} of before"
            )

    def read_chunk(self, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The flat indices and the answers of one finished chunk."""
        try:
            with file.open("rb") as raw, np.load(raw, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            flat = arrays.pop("points")
        except Exception as error:  # whatever zipfile and NumPy say of a broken file
            raise ValueError(
                f"path: {file} is broken ({error}); delete it, and its points are evaluated again"
            ) from error
        readable = flat.dtype == np.int64 and flat.ndim == 1 and bool(arrays)
        if not readable or not (
            ((flat >= 0) & (flat < self.total)).all()
            and all(key.startswith("f.") for key in arrays)
            and all(x.ndim and len(x) == len(flat) for x in arrays.values())
        ):
            raise ValueError(
                f"path: {file} holds no points of this grid; delete it, and its points are "
                "evaluated again"
            )
        return flat, {key.removeprefix("f."): x for key, x in arrays.items()}

    def dataset(self) -> xarray.Dataset:
        import xarray  # it brings pandas, and only a finished grid needs it

        def whole(x: np.ndarray) -> np.ndarray:
            if not self.done.all():
                x = x.astype(x.dtype if x.dtype.kind in "fc" else np.float64)
                x[~self.done] = np.nan
            return x.reshape(*self.sizes, *x.shape[1:])

        dims = {
            name: (*self.axes, *self.names(name, x.ndim - 1)) for name, x in self.values.items()
        }
        return xarray.Dataset(
            {name: (dims[name], whole(x)) for name, x in self.values.items()},
            {name: (name, np.array(axis.labels)) for name, axis in self.axes.items()},
        )


def _kinds(values: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{x.dtype} {list(x.shape[1:])}" for name, x in values.items()}


def _number(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else str(x)


def _same(x: Any, y: Any) -> bool:
    """Whether two headers say the same: 1, 1.0 and True are equal in Python, and not to `f`."""
    return json.dumps(x, sort_keys=True) == json.dumps(y, sort_keys=True)


def _facts(name: str, axis: Axis) -> dict[str, Any]:
    """What the folder says of an axis: of one `{label: value}` also a digest of the values;
    elsewhere the labels are the values.
    """
    looped, plain = not isinstance(axis.values, Tensor), (bool, int, float, str)
    dtype = str(getattr(axis.values, "dtype", ""))
    facts = {"looped": looped, "dtype": dtype, "labels": axis.labels}
    named = any(type(x) not in plain and not isinstance(x, np.generic) for x in axis.labels)
    if not looped or (not named and all(map(operator.is_, axis.labels, axis.values))):
        return facts
    found: list[str] = []
    for label, value in zip(axis.labels, axis.values, strict=True):
        try:
            found.append(digest_of(value))
        except Incomparable as error:
            raise ValueError(
                f"axes[{name!r}][{label!r}]: {error} cannot be compared with the value of an "
                "earlier call; make it inside f, from a name or a number, or leave out path="
            ) from error
    return facts | {"values": digest([], *found)}
