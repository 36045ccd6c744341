"""Contracts: how a rule computes, whatever its mathematics, as checks of one instance.

What cannot be seen in one instance under a vmap (purity, states, vmap or loop) is in `program`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import independent
from .evaluate import Evaluate, Outcome
from .properties import Property, apart, direction, nudge, outcomes, size, some, vector

FLOAT32_ERROR = 1e-3
"""The root of float32's machine epsilon, 3e-4, is what an exact solver loses near a
Pareto-stationary point.
"""


def valid(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Weights are a finite tensor [task] in the Gramian's dtype at every update, no exception."""
    w = evaluate(rows, losses, strict=True)
    return outcomes((torch.where(w.isfinite().all(-1), 0.0, torch.inf), w, w))


def describe_valid(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights are {vector(after)}"


# ---- NaN ---------------------------------------------------------------------------------------


def poisoned_tasks(count: int) -> list[int]:
    """Those that become NaN, one at a time: every one, or of many some."""
    return list(range(count)) if count <= 5 else some(count)


def nan_in_gradients(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """NaN in one task's gradient raises, or gives NaN weights at some update: nothing plausible."""
    task = torch.arange(len(rows))[:, None]
    bad = [rows.where(task != t, torch.nan) for t in poisoned_tasks(len(rows))]
    return outcomes(*(refused(evaluate, x, losses) for x in bad))


def nan_in_losses(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """The same of one loss, for a rule that reads losses."""
    task = torch.arange(len(rows))
    bad = [losses.where(task != t, torch.nan) for t in poisoned_tasks(len(rows))]
    return outcomes(*(refused(evaluate, rows, x) for x in bad))


def nan_in_both(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """The one, then the other."""
    found = (check(evaluate, rows, losses, unit) for check in (nan_in_gradients, nan_in_losses))
    return Outcome(*(torch.cat(pair) for pair in zip(*found, strict=True)))


def refused(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """No violation if the rule raises or gives NaN."""
    try:
        w = evaluate(rows, losses)
    except Exception:  # just what it should do
        w = torch.full_like(losses, torch.nan)
    return torch.where(w.isfinite().all(), torch.inf, 0.0).expand(len(losses)), w, w


def describe_nan(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    tasks = poisoned_tasks(count)
    what = "gradient" if variant < len(tasks) else "loss"
    return (
        f"weights are {vector(after)} although the {what} of task "
        f"{tasks[variant % len(tasks)] + 1} is NaN"
    )


def describe_nan_loss(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return describe_nan(count, variant + len(poisoned_tasks(count)), before, after)


# ---- losses of 0 or below ----------------------------------------------------------------------


def low_losses(count: int) -> list[list[float]]:
    """Losses 2, but 0 or -1 for one task or for all."""
    tasks = poisoned_tasks(count)
    single = [[x if t == i else 2.0 for t in range(count)] for i in tasks for x in (0.0, -1.0)]
    return single + [[x] * count for x in (0.0, -1.0)]


def low(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Losses of 0 or below raise, give NaN alone, or weights that are finite."""
    return below_zero(evaluate, rows, losses, signs=False)


def low_keeps_signs(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """The same of a rule whose weights are otherwise >= 0: none turns negative, which would raise
    its task's loss.
    """
    return below_zero(evaluate, rows, losses, signs=True)


def below_zero(evaluate: Evaluate, rows: Tensor, losses: Tensor, *, signs: bool) -> Outcome:
    def one(values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        given = torch.tensor(values, dtype=losses.dtype).expand_as(losses)
        try:
            w = evaluate(rows, given)
        except Exception:  # it refuses
            w = torch.full_like(losses, torch.nan)
        wrong = ~w.isfinite().all(-1)
        if signs:
            wrong = wrong | (w < -1e-9 * w.abs().sum(-1, keepdim=True)).any(-1)
        # All NaN at an update is a refusal, from then on, too.
        refusal = w.isnan().all(-1).cumsum(0) > 0
        return torch.where(refusal, -1.0, torch.where(wrong, torch.inf, 0.0)), given, w

    found = [one(values) for values in low_losses(len(rows))]
    return Outcome(*(torch.stack(x) for x in zip(*found, strict=True)))


def describe_low(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights are {vector(after)} where the losses are {vector(before)}"


# ---- absent tasks ------------------------------------------------------------------------------


def absences(count: int) -> list[list[int]]:
    """Who is absent: each one alone, two of three or more, everybody."""
    single = [[t] for t in poisoned_tasks(count)]
    return [*single, *([[0, count - 1]] if count > 2 else []), list(range(count))]


def absent(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Absent tasks get weight 0 and the others what they get alone; with nobody present all are 0.

    A rule that raises, or gives NaN, where a task is absent refuses: no case.
    """
    return without(evaluate, rows, losses, unit, alone=True)


def absent_zero(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """The same for a rule that draws: others draw other numbers alone, so only zeros are tested."""
    return without(evaluate, rows, losses, unit, alone=False)


def without(
    evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float, *, alone: bool
) -> Outcome:
    count = len(rows)

    def one(missing: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        rest = [i for i in range(count) if i not in missing]
        present = torch.tensor([i in rest for i in range(count)])
        try:
            w = evaluate(rows, losses, present=present)
        except Exception:  # it refuses
            w = torch.full_like(losses, torch.nan)
        violation, expected = (w.abs() * ~present).amax(-1), torch.zeros_like(w)
        if alone and rest:
            v = evaluate(rows[rest], losses[:, rest])
            expected = v.new_zeros(w.shape).index_copy(-1, torch.tensor(rest), v)
            kept = w * present
            sizes = size(rows, kept, unit), size(rows, expected, unit)
            far = apart(direction(rows, kept), direction(rows, expected), *sizes)
            violation = torch.maximum(violation, far)
        return violation, expected, w

    found = [one(missing) for missing in absences(count)]
    violation, before, after = (torch.stack(x) for x in zip(*found, strict=True))
    refusal = after.isnan().any(-1)
    kept = violation.where(~refusal, torch.inf)
    return Outcome(torch.where(refusal.all(), -1.0, kept), before, after)


def describe_absent(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    missing = absences(count)[variant]
    if len(missing) == count:
        return f"weights are {vector(after)} with no task present"
    who = " and ".join(str(t + 1) for t in missing)
    tasks = f"task{'s' * (len(missing) > 1)} {who}"
    return (
        f"weights are {vector(after)} with {tasks} absent; alone the others have {vector(before)}"
    )


def describe_absent_zero(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return describe_absent(count, variant, before, after).partition(";")[0]


# ---- float32 -----------------------------------------------------------------------------------


def float32(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """A float32 Gramian gives finite float32 weights, whose direction is float64's to 1e-3.

    Where the gradients are linearly independent, and float64's own direction does not change when
    they move by as little as float32 resolves.
    """
    w = evaluate(rows, losses)
    v = evaluate(rows.float(), losses.float(), strict=True).to(rows)
    d, eps = direction(rows, w), 4 * torch.finfo(torch.float32).eps
    moved = [
        apart(direction(x, evaluate(x, losses + eps * nudge(losses, 0))), d, size(rows, w, unit))
        for x in (rows + sign * eps * nudge(rows, 0) for sign in (1, -1))
    ]
    far = apart(direction(rows, v), d, size(rows, v, unit), size(rows, w, unit))
    violation, before, after = outcomes((far, w, v))
    unstable = torch.stack(moved).amax() > FLOAT32_ERROR / 10
    return Outcome(torch.where(unstable, -1.0, violation), before, after)


def describe_float32(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights {vector(before)} in float64 are {vector(after)} in float32"


# ---- rows of the table -------------------------------------------------------------------------

VALID = Property("valid weights", valid, describe_valid, everything=True, contract=True)
FLOAT32 = Property(
    "float32",
    float32,
    describe_float32,
    independent,
    ("gaussian",),
    tolerance=FLOAT32_ERROR,
    contract=True,
    large=True,
)


def missing(draws: bool) -> Property:
    """For a rule that draws random numbers, or one that does not."""
    check, describe = (absent_zero, describe_absent_zero) if draws else (absent, describe_absent)
    return Property("absent tasks", check, describe, tasks=(2, 3, 4, 5), most=40, contract=True)


def nan(gramian: bool, losses: bool) -> Property:
    """For a rule that reads the one, the other or both."""
    check = nan_in_both if gramian and losses else nan_in_gradients if gramian else nan_in_losses
    describe = describe_nan if gramian else describe_nan_loss
    return Property("NaN", check, describe, tasks=(2, 3, 4, 5), most=40, contract=True, large=True)


def low_loss(positive: bool) -> Property:
    """For a rule whose weights are otherwise all >= 0, or one whose are not."""
    check = low_keeps_signs if positive else low
    return Property("losses of 0 or below", check, describe_low, most=40, contract=True)
