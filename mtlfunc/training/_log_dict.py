"""What people log of a step, as plain numbers by name."""

from collections.abc import Sequence

import numpy as np
import torch

from ..core.transforms import inside_transform
from ..types import Info


def log_dict(info: Info, *, names: Sequence[str] | None = None) -> dict[str, float]:
    """What people log of a step, by name, in one transfer from the device.

    Args:
        info: of one step.
        names: of the tasks; None takes those of a dict of losses, or 0, 1, 2, …

    Returns:
        `loss/near`, `weight/near` and, where a Gramian was measured: `rate/near`, of `info.rates`,
        below 0 where that loss rises; `cosine/near-far`; `conflict`, the share of negative ones;
        `length`, ‖d‖ along d = Jᵀw with weights scaled to sum 1, where that is positive; and
        `shortfall`, ‖d‖² - min_t g_t·d: ½‖d‖² is within it of the least of convex combinations.
        Tasks without a gradient have no part in pairs and shortfall.

    Raises:
        TypeError: for anything but an `Info`.
        ValueError: for that of several steps or runs, and names that do not fit.
        RuntimeError: under a transform.

    Examples:
        >>> log_dict(Info(torch.ones(1), torch.eye(1), torch.ones(1), torch.ones(1), (), {}))
        {'loss/0': 1.0, 'weight/0': 1.0, 'rate/0': 1.0, 'length': 1.0, 'shortfall': 0.0}
    """
    one = "take one, log_dict(torch.utils._pytree.tree_map(lambda x: x[i], info))"
    if not isinstance(info, Info):
        raise TypeError(f"info: expected the Info of a step, got {type(info).__name__}")
    if inside_transform():
        raise RuntimeError(f"log_dict: there are no numbers under a transform; outside {one}")
    if info.losses.ndim != 1:
        raise ValueError(f"info: {list(info.losses.shape)} are of several steps or runs; {one}")
    tasks = [str(x) for x in (info.tasks or range(len(info.losses)) if names is None else names)]
    if isinstance(names, str) or len(tasks) != len(info.losses):
        raise ValueError(f"names: expected {len(info.losses)} strings, one a task, got {names!r}")
    rows = tasks if len(info.weights) == len(tasks) else [*map(str, range(len(info.weights)))]
    parts = [x.detach().flatten() for x in (info.losses, info.weights, info.rates, info.gramian)]
    flat = np.array(torch.cat(parts).tolist())
    loss, weight, rate, gramian = np.split(flat, np.cumsum([len(x) for x in parts[:-1]]))
    found = [*zip([f"loss/{name}" for name in tasks], loss, strict=True)]
    found += zip([f"weight/{name}" for name in rows], weight, strict=True)
    if len(gramian):
        found += zip([f"rate/{name}" for name in rows], rate, strict=True)
        inner = gramian.reshape(len(rows), -1)
        inner = 0.5 * (inner + inner.T)  # they differ for a Gramian of two batches alone
        some = np.flatnonzero(~(inner.diagonal() <= 0))  # NaN stays
        s, t = (some[i] for i in np.triu_indices(len(some), 1))
        with np.errstate(all="ignore"):  # what is not finite ends as NaN
            along = gramian.reshape(len(rows), -1) @ weight  # rates without momentum's part
            size = np.sqrt(inner.diagonal())
            cosine = np.clip(inner[s, t] / size[s] / size[t], -1, 1)
        found += [(f"cosine/{rows[i]}-{rows[j]}", x) for i, j, x in zip(s, t, cosine, strict=True)]
        if len(cosine):
            found.append(("conflict", np.where(np.isnan(cosine), np.nan, cosine < 0).mean()))
        total = weight.sum() if weight.sum() > 0 else 1.0
        # rounding alone, or two batches, take it below 0
        square = np.maximum(weight / total @ (along / total), 0.0)
        short = square - min(along[some] / total, default=square)
        found += [("length", np.sqrt(square)), ("shortfall", short)]
    if len(numbers := {name: float(x) for name, x in found}) < len(found):
        raise ValueError(f"names: {tasks} give one key to two numbers; let them differ, without -")
    return numbers
