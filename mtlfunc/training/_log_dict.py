"""What people log of a step, as plain numbers by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core.checks import inside_transform
from ..types import Conflict, Info


def log_dict(
    info: Info, conflict: Conflict | None = None, names: Sequence[str] | None = None
) -> dict[str, float]:
    """The numbers that people log of a step, by name: for TensorBoard, W&B, Lightning's `log_dict`.

    One transfer from the device, and nothing but NumPy after it. A family is a prefix: `{name: x
    for name, x in mf.log_dict(info).items() if not name.startswith("cosine/")}` leaves out the
    pairs of many tasks.

    Args:
        info: of one step, from `mtlfunc.balance` or `mtlfunc.descend`.
        conflict: of the same tasks, from `mtlfunc.diagnostics.conflict` or `running_conflict`.
        names: of the tasks; None takes those of a dict of losses, or 0, 1, 2, …

    Returns:
        for tasks near and far: `"loss/near"`, `"weight/near"`, and, where a Gramian was measured,

        - `"rate/near"`: g_t·d, the first-order gain of that loss along d = Jᵀw; below 0 it rises;
        - `"cosine/near-far"`: of the angle between two gradients;
        - `"conflict"`: the share of pairs of tasks with g_s·g_t < 0;
        - `"length"`: ‖d‖ with the weights scaled to sum 1, where their sum is positive;
        - `"gap"`: ‖d‖² - min_t g_t·d of the same d, the duality gap of the min-norm problem: ½‖d‖²
          is within it of the least that any convex combination of the gradients has. The distance
          from Pareto stationarity is at most `length` and, for weights >= 0, at least (length² -
          gap) / length.

        With `conflict` also `"inner/near-far"`, the unbiased inner product, `"inner_low/near-far"`
        and `"inner_high/near-far"`, its interval, `"verdict/near-far"`, -1, 0 or 1, and
        `"conflict_proved"`, the share of pairs with -1.

        Tasks without a gradient (absent ones, say) have no cosine and count neither in `conflict`
        nor in `gap`; `conflict` needs two with one. With groups of parameters a weight has its
        group's number, `"weight/near/0"`, and the rest is of all groups together. Rows that mix
        tasks (`mix=`) are numbered where they are not as many as tasks. A Gramian of two batches
        (MoDo, SDMGrad) gives estimates.

    Raises:
        TypeError: for anything but an `Info`, and a `Conflict`.
        ValueError: for several steps' or runs' info, names or a conflict of another number of
            tasks, or a name that would stand for two numbers.
        RuntimeError: under a transform, which has no numbers yet.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: {
        ...     "near": (params["x"] - 1).square(), "far": (params["x"] + 3).square()}
        >>> step = mf.balance(losses, mf.mean(), mf.jacobian())
        >>> params = {"x": torch.tensor(0.0)}
        >>> log_dict(step.update(params, (), step.init(params, ()))[2])
        {'loss/near': 1.0, 'loss/far': 9.0, 'weight/near': 0.5, 'weight/far': 0.5,
         'rate/near': -4.0, 'rate/far': 12.0, 'cosine/near-far': -1.0, 'conflict': 1.0,
         'length': 2.0, 'gap': 8.0}
    """
    if not isinstance(info, Info):
        raise TypeError(
            f"info: expected the Info of a step, got {type(info).__name__}; it is the last of what "
            "update returns"
        )
    if inside_transform():
        raise RuntimeError(
            "log_dict: there are no numbers to read under a torch.func transform; return info from "
            f"the transformed function, and outside {_ONE}"
        )
    if info.losses.ndim != 1:
        raise ValueError(
            f"info: expected one step's, with losses [task], got losses {list(info.losses.shape)} "
            f"of several steps or runs; {_ONE}"
        )
    tasks, rows = len(info.losses), info.weights.shape[-1]
    given = [str(name) for name in names or info.tasks or range(tasks)]
    if isinstance(names, str) or len(given) != tasks:
        raise ValueError(f"names: expected {tasks} strings, one a task, got {names!r}")
    labels = given if rows == tasks else [str(row) for row in range(rows)]
    doubt = [] if conflict is None else _doubt_of(conflict, tasks)
    whole = info.gramian.sum(0) if info.gramian.ndim == 3 else info.gramian
    parts = [x.detach() for x in (info.losses, info.weights, info.rates, whole, *doubt)]
    flat = np.array(torch.cat([x.flatten() for x in parts]).tolist())
    pieces = np.split(flat, np.cumsum([x.numel() for x in parts[:-1]]))
    loss, weight, rate, gramian, *known = (
        x.reshape(part.shape) for x, part in zip(pieces, parts, strict=True)
    )
    found = [(f"loss/{name}", x) for name, x in zip(given, loss, strict=True)]
    if weight.ndim == 1:
        found += [(f"weight/{name}", x) for name, x in zip(labels, weight, strict=True)]
    else:
        found += [
            (f"weight/{name}/{group}", weight[group, row])
            for row, name in enumerate(labels)
            for group in range(len(weight))
        ]
    if gramian.size:
        found += _geometry(gramian, weight.reshape(-1, rows), rate.reshape(-1, rows), labels)
    if known:
        found += _pairs(known, given)
    numbers = {name: float(x) for name, x in found}
    if len(numbers) < len(found):
        raise ValueError(
            f"names: {given} give one key to two numbers; pass names= that differ, and without -"
        )
    return numbers


_ONE = "take one, log_dict(torch.utils._pytree.tree_map(lambda x: x[i], info))"
_DOUBT = ("inner", "inner_low", "inner_high", "verdict")


def _doubt_of(conflict: Conflict, tasks: int) -> list[torch.Tensor]:
    """What is logged of a conflict, if it is of `tasks` tasks."""
    if not isinstance(conflict, Conflict):
        raise TypeError(
            "conflict: expected what mtlfunc.diagnostics.conflict returned, got "
            f"{type(conflict).__name__}; names of the tasks are passed as names="
        )
    if conflict.inner.shape != (tasks, tasks):
        raise ValueError(
            f"conflict: expected one of {tasks} tasks, got tensors {list(conflict.inner.shape)}"
        )
    return [conflict.inner, conflict.low, conflict.high, conflict.verdict]


def _pairs(known: list[np.ndarray], names: list[str]) -> list[tuple[str, float]]:
    """What a conflict says of every pair, by name."""
    one, other = np.triu_indices(len(names), 1)
    found = [
        (f"{kind}/{names[s]}-{names[t]}", matrix[s, t])
        for kind, matrix in zip(_DOUBT, known, strict=True)
        for s, t in zip(one, other, strict=True)
    ]
    verdict = known[-1][one, other]
    return [*found, ("conflict_proved", (verdict < 0).mean())] if len(verdict) else found


def _geometry(
    gramian: np.ndarray, weight: np.ndarray, rate: np.ndarray, names: list[str]
) -> list[tuple[str, float]]:
    """What a Gramian [row, row], weights and rates [group, row] say, by name."""
    found = [(f"rate/{name}", x) for name, x in zip(names, rate.sum(0), strict=True)]
    square = gramian.diagonal()
    some = np.flatnonzero(~(square <= 0))  # NaN stays
    inner = 0.5 * (gramian + gramian.T)  # they differ for a Gramian of two batches alone
    one, other = (some[i] for i in np.triu_indices(len(some), 1))
    product = inner[one, other]
    with np.errstate(all="ignore"):  # what is not finite ends as NaN
        cosine = np.clip(product / np.sqrt(square[one]) / np.sqrt(square[other]), -1, 1)
        found += [
            (f"cosine/{names[s]}-{names[t]}", x) for s, t, x in zip(one, other, cosine, strict=True)
        ]
        if len(product):
            found.append(("conflict", np.where(np.isnan(product), product, product < 0).mean()))
        total = weight.sum(1, keepdims=True)
        scale = np.where(total > 0, total, 1.0)
        rate = rate / scale
        # rounding alone, or two batches, take it below 0
        length = np.maximum(np.sum(weight / scale * rate), 0.0)
        gap = length - min(rate.sum(0)[some], default=length)
    return [*found, ("length", np.sqrt(length)), ("gap", gap)]
