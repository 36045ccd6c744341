"""A function of named axes on their whole product: vmapped, in chunks, saved as it goes."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.checks import transformed
from ..core.files import write_whole
from ..core.points import check_chunk_size, evaluate

if TYPE_CHECKING:
    import xarray


class Unfinished(KeyboardInterrupt):
    """Raised by `grid` in place of KeyboardInterrupt, with what was computed so far.

    `.dataset` is NaN where a point is missing; integers become floats for it.
    """

    def __init__(self, dataset: xarray.Dataset, done: int, total: int) -> None:
        super().__init__(f"grid interrupted after {done} of {total} points; .dataset holds them")
        self.dataset = dataset


class Axis(NamedTuple):
    """One axis of a grid: what names its positions, and what `f` is given there."""

    labels: list[Any]
    values: Tensor | list[Any]  # a tensor is vmapped, a list is looped over


def grid(
    f: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    chunk_size: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> xarray.Dataset:
    """`f(**point)` at every point of the product of named axes, as a labelled dataset.

    Args:
        f: takes every axis by its name and returns a tensor, or a (nested) dict or NamedTuple of
            tensors, of the same shapes everywhere.
        axes: `{name: values}`. A tensor `[n]` is vmapped: `f` gets 0-d tensors (a seed is a key's
            integer). A list of numbers or strings, or a dict `{label: value}` of anything (rules,
            modules, settings), is looped over in Python: `f` gets the value itself.
        chunk_size: at most how many points are evaluated in one vmap, which bounds the memory; None
            is the product of all tensor axes, 1 a plain loop without vmap, for a function that
            cannot be vmapped.
        dims: names of the axes of what `f` returns, `{variable: names}`, such as `{"losses":
            ("step", "task")}`; those not named are `losses_dim_0`, `losses_dim_1`.
        path: a folder, made if need be: every finished chunk is written there, whole, and a second
            call with the same axes evaluates only what is missing, whatever its chunk_size. What
            `f` does is not compared, only the names, shapes and dtypes it returns: take a new
            folder where its code changes.

    Returns:
        an `xarray.Dataset` with the axes as its first dimensions, in the order of `axes`. A tensor
        becomes the variable `value`, a nested field `outer.inner`. Coordinates of a float32 axis
        are its shortest decimals, so that `.sel(c=0.4)` finds them. On several points vmapped
        together `f` must keep the rules of `torch.func.vmap`.

    Raises:
        Unfinished: on Ctrl-C; a KeyboardInterrupt that carries the dataset so far.
        ValueError: for axes that are empty, repeated or not finite, outputs that differ between
            points, and a folder that holds another grid, other files or a broken one.
        TypeError: for axes of the wrong kind, and outputs that are no tensors.
        RuntimeError: under a transform, where plain nested `vmap` is the way, or for an `f` that
            cannot be vmapped.

    Examples:
        >>> def power(seed, c):
        ...     return {"power": c ** torch.arange(2.0) + seed}
        >>> found = grid(power, {"seed": torch.arange(3), "c": torch.tensor([0.2, 0.4])})
        >>> dict(found.sizes)
        {'seed': 3, 'c': 2, 'power_dim_0': 2}
        >>> [round(value, 4) for value in found["power"].sel(seed=2, c=0.4).values.tolist()]
        [3.0, 2.4]
    """
    if transformed():
        raise RuntimeError(
            "grid: a dataset cannot be made under a torch.func transform; nest torch.func.vmap "
            "instead, or call grid outside"
        )
    check_chunk_size(chunk_size)
    if not axes:
        raise ValueError("axes: expected at least one axis, {name: values}")
    table = {name: _axis(name, values) for name, values in axes.items()}
    named = {
        name: (names,) if isinstance(names, str) else tuple(names)
        for name, names in (dims or {}).items()
    }
    from tqdm import tqdm

    points = Points(table, named, None if path is None else Path(path))
    points.resume()
    looped = [name for name, axis in table.items() if not isinstance(axis.values, Tensor)]
    try:
        with tqdm(
            total=points.total,
            initial=int(points.done.sum()),
            leave=False,
            desc="grid",
            unit="point",
        ) as bar:
            for flat, positions, fixed in points.missing(looped, chunk_size):
                batched = {
                    name: axis.values[positions[name]]
                    for name, axis in table.items()
                    if isinstance(axis.values, Tensor)
                }

                def at(
                    point: dict[str, Tensor], fixed: dict[str, Any] = fixed
                ) -> dict[str, Tensor]:
                    return _variables(
                        f(**{name: fixed[name] if name in fixed else point[name] for name in table})
                    )

                try:
                    found = evaluate(at, batched, len(flat), "f")
                except Exception as error:
                    error.add_note(f"grid: {points.describe(flat)}")
                    raise
                points.store(flat, {name: _array(value) for name, value in found.items()})
                bar.update(len(flat))
    except KeyboardInterrupt as stop:
        raise Unfinished(points.dataset(), int(points.done.sum()), points.total) from stop
    return points.dataset()


def _axis(name: str, values: Any) -> Axis:
    where = f"axes[{name!r}]"
    if isinstance(values, Tensor):
        if values.ndim != 1 or values.is_complex():
            raise ValueError(
                f"{where}: expected a tensor [n] of real numbers, got {values.dtype} of shape "
                f"{list(values.shape)}; index what is larger inside f"
            )
        numbers = values.detach().cpu()
        # 0.4 in float32 is 0.4000000059604645; its shortest decimals are what was meant.
        labels = (
            numbers.numpy().astype(str).astype(float) if values.dtype == torch.float32 else numbers
        )
        axis = Axis(labels.tolist(), values.detach())
    elif isinstance(values, Mapping):
        axis = Axis(list(values), list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        axis = Axis(list(values), list(values))
    else:
        raise TypeError(
            f"{where}: expected a tensor [n], a list of numbers or strings, or a dict {{label: "
            f"value}}, got {type(values).__name__}"
        )
    if not axis.labels:
        raise ValueError(f"{where}: empty; every axis needs at least one value")
    if not (
        all(isinstance(x, str) for x in axis.labels)
        or all(isinstance(x, Real) for x in axis.labels)
    ):
        kinds = ", ".join(sorted({type(x).__name__ for x in axis.labels}))
        raise TypeError(
            f"{where}: positions are named by all strings or all numbers, got {kinds}; pass a "
            "dict {label: value}"
        )
    if any(isinstance(x, Real) and not math.isfinite(x) for x in axis.labels):
        raise ValueError(
            f"{where}: NaN or infinite values in {axis.labels}; expected finite numbers"
        )
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
    empty = isinstance(out, tuple) and not out
    fields: Any = (
        out
        if isinstance(out, Mapping)
        else getattr(out, "_asdict", lambda: {} if empty else None)()
    )
    if fields is not None:
        found = {
            key: leaf
            for field, value in fields.items()
            for key, leaf in _variables(value, f"{name}.{field}" if name else str(field)).items()
        }
        if found or name:
            return found
    raise TypeError(
        "f: expected a tensor, or a dict or NamedTuple of tensors, got "
        f"{type(out).__name__}{f' as {name!r}' if name else ''}"
    )


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    # NumPy has no bfloat16
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


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

    def missing(
        self, looped: list[str], chunk_size: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor], dict[str, Any]]]:
        """Chunks of points that share the values of the looped axes: their flat indices, their
        positions on every axis, and those values.
        """
        position = dict(
            zip(self.axes, np.unravel_index(np.arange(self.total), self.sizes), strict=True)
        )
        for choice in itertools.product(*(range(len(self.axes[name].labels)) for name in looped)):
            here = ~self.done
            for name, at in zip(looped, choice, strict=True):
                here &= position[name] == at
            fixed = {
                name: self.axes[name].values[at] for name, at in zip(looped, choice, strict=True)
            }
            flat = np.flatnonzero(here)
            for start in range(0, len(flat), chunk_size or self.total):
                chunk = flat[start : start + (chunk_size or self.total)]
                yield (
                    chunk,
                    {name: torch.from_numpy(position[name][chunk]) for name in self.axes},
                    fixed,
                )

    def describe(self, flat: np.ndarray) -> str:
        """The point, or the first and last of a chunk, in words."""
        ends = [
            dict(zip(self.axes, np.unravel_index(int(i), self.sizes), strict=True))
            for i in {int(flat[0]), int(flat[-1])}
        ]
        names = [
            "(" + ", ".join(f"{name}={self.axes[name].labels[i]}" for name, i in end.items()) + ")"
            for end in sorted(ends, key=lambda e: [*e.values()])
        ]
        return "at " + " … ".join(names)

    def store(self, flat: np.ndarray, found: dict[str, np.ndarray]) -> None:
        self.keep(flat, found, f"f {self.describe(flat)}")
        if self.folder:
            arrays: dict[str, Any] = {"points": flat} | {
                f"f.{name}": x for name, x in found.items()
            }
            write_whole(
                self.folder / f"points-{flat[0]:09d}.npz", lambda file: np.savez(file, **arrays)
            )
        self.done[flat] = True

    def keep(self, flat: np.ndarray, found: dict[str, np.ndarray], source: str) -> None:
        """Put the answers where they belong, if they are of the kind of those before."""
        if not self.values:
            self.check_dims({name: x.shape[1:] for name, x in found.items()})
            self.values = {
                name: np.zeros((self.total, *x.shape[1:]), x.dtype) for name, x in found.items()
            }
        kinds = [
            {name: f"{x.dtype} {list(x.shape[1:])}" for name, x in side.items()}
            for side in (self.values, found)
        ]
        if kinds[0] != kinds[1]:
            hint = (
                f", or {self.folder} holds the points of another function: pass another path"
                if self.folder
                else ""
            )
            raise ValueError(
                f"{source}: found {kinds[1]} but {kinds[0]} before; every point must give the "
                f"same names, shapes and dtypes{hint}"
            )
        for name, x in found.items():
            self.values[name][flat] = x

    def check_dims(self, shapes: dict[str, tuple[int, ...]]) -> None:
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
            if (
                len(names) != len(shape)
                or len(set(names)) < len(names)
                or set(names) & {*self.axes, *shapes}
            ):
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

    def resume(self) -> None:
        """Read what the folder holds; begin it where it is new."""
        if not self.folder:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"path: {self.folder} is a file; expected a folder, or a name for a new one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        header = self.folder / "axes.json"
        mine = {
            name: {
                "looped": not isinstance(axis.values, Tensor),
                "dtype": str(getattr(axis.values, "dtype", "")),
                "labels": axis.labels,
            }
            for name, axis in self.axes.items()
        }
        if not header.exists():
            if any(not file.name.startswith(".") for file in self.folder.iterdir()):
                raise ValueError(
                    f"path: {self.folder} holds other files and no axes.json; pass an empty or a "
                    "new folder"
                )
            write_whole(header, json.dumps(mine, default=_number))
            return
        self.check_header(header, json.loads(json.dumps(mine, default=_number)))
        for file in sorted(self.folder.glob("points-*.npz")):
            flat, found = self.read(file)
            self.keep(flat, found, f"path: {file}")
            self.done[flat] = True

    def check_header(self, header: Path, mine: dict[str, Any]) -> None:
        """Raise unless the folder's axes are these."""
        try:
            theirs = json.loads(header.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"path: {header} is not readable ({error}); pass a new folder"
            ) from error
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
            if axis != theirs[name]:
                raise ValueError(
                    f"path: {self.folder} holds axes[{name!r}] = {theirs[name]}, not {axis}; pass "
                    "another path, or the axes of before"
                )

    def read(self, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The flat indices and the answers of one finished chunk."""
        try:
            with file.open("rb") as raw, np.load(raw, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            flat = arrays.pop("points")
        except Exception as error:  # whatever zipfile and NumPy say of a broken file
            raise ValueError(
                f"path: {file} is broken ({error}); delete it, and its points are evaluated again"
            ) from error
        whole = flat.dtype == np.int64 and flat.ndim == 1
        readable = (
            whole
            and bool(((flat >= 0) & (flat < self.total)).all())
            and bool(arrays)
            and all(key.startswith("f.") for key in arrays)
            and all(x.ndim and len(x) == len(flat) for x in arrays.values())
        )
        if not readable:
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

        variables = {
            name: ((*self.axes, *self.names(name, x.ndim - 1)), whole(x))
            for name, x in self.values.items()
        }
        return xarray.Dataset(
            variables, {name: (name, np.array(axis.labels)) for name, axis in self.axes.items()}
        )


def _number(x: Any) -> Any:
    return x.item()  # NumPy's scalars
