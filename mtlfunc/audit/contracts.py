"""Contracts: how a rule computes, whatever its mathematics, as checks of one instance.

What one instance under a vmap cannot show (purity, states, vmap or loop) is in `execution`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .harness import Finding, Harness, Weigh, attempt, describe_error, quiet
from .instances import SMALL, Case, independent
from .properties import (
    SEVERAL,
    Check,
    Compared,
    Instance,
    Outcome,
    chosen_tasks,
    compare,
    distance,
    outcomes,
    perturbation,
    size,
    vector,
    weigh_all,
)

FLOAT32_ERROR = 1e-3
"""The root of float32's machine epsilon, 3e-4, is what an exact solver loses near a
Pareto-stationary point.
"""


def require_valid(weigh: Weigh, x: Instance) -> Outcome:
    """Weights are a finite tensor [task] in the Gramian's dtype at every update, no exception."""
    w = weigh(x.rows, x.losses, strict=True)
    return outcomes((torch.where(w.isfinite().all(-1), 0.0, torch.inf), w, w))


def altered_tasks(count: int) -> list[int]:
    """The tasks that become NaN, low or absent, one at a time: all, or of many some."""
    return list(range(count)) if count <= 5 else chosen_tasks(count)


# ---- NaN ---------------------------------------------------------------------------------------


def propagate_nan(gramian: bool, losses: bool) -> Check:
    """NaN in one task's gradient, or loss, raises or gives NaN weights at some update.

    Of gradients and losses those that the rule reads.
    """

    def run(weigh: Weigh, x: Instance) -> Outcome:
        tasks, task = altered_tasks(len(x.rows)), torch.arange(len(x.rows))
        nan = torch.nan
        in_rows = [(x.rows.where(task[:, None] != t, nan), x.losses) for t in tasks]
        in_losses = [(x.rows, x.losses.where(task != t, nan)) for t in tasks]
        found = weigh_all(weigh, in_rows * gramian + in_losses * losses, refuse=True)
        wrong = [torch.where(w.isfinite().all(), torch.inf, 0.0).expand(len(w)) for w in found]
        return outcomes(*zip(wrong, found, found, strict=True))

    def sentences(count: int) -> list[str]:
        return [
            f"weights are {{after}} although the {what} of task {t + 1} is NaN"
            for what in ("gradient",) * gramian + ("loss",) * losses
            for t in altered_tasks(count)
        ]

    return Check("NaN", run, sentences, tasks=SEVERAL, most=40, contract=True, large=True)


# ---- losses of 0 or below ----------------------------------------------------------------------


def allow_low_losses(signs: bool) -> Check:
    """Losses of 0 or below raise, give only NaN (in a vmap), or weights that are finite.

    With `signs`, for a rule whose weights are otherwise all >= 0, none turns negative, which would
    raise the loss of its task.
    """

    def run(weigh: Weigh, x: Instance) -> Outcome:
        def judged(given: Tensor, w: Tensor) -> Compared:
            wrong = ~w.isfinite().all(-1)
            if signs:
                wrong = wrong | (w < -1e-9 * w.abs().sum(-1, keepdim=True)).any(-1)
            # All NaN at an update is a refusal, also from then on.
            refusal = w.isnan().all(-1).cumsum(0) > 0
            return torch.where(refusal, -1.0, torch.where(wrong, torch.inf, 0.0)), given, w

        values = torch.tensor(low_losses(len(x.rows)), dtype=x.losses.dtype)
        given = values[:, None].expand(-1, *x.losses.shape)
        found = weigh_all(weigh, [(x.rows, losses) for losses in given], refuse=True)
        return outcomes(*(judged(*pair) for pair in zip(given, found, strict=True)))

    text = "weights are {after} where the losses are {before}"
    return Check("losses of 0 or below", run, [text], most=40, contract=True)


def low_losses(count: int) -> list[list[float]]:
    """Losses 2, but 0 or -1 for one task or for all."""
    single = [
        [x if t == i else 2.0 for t in range(count)]
        for i in altered_tasks(count)
        for x in (0.0, -1.0)
    ]
    return single + [[x] * count for x in (0.0, -1.0)]


def check_refusals(harness: Harness) -> Finding:
    """Outside a transform, where losses can be read, low losses raise rather than give NaN."""
    tested = 0
    with quiet():
        for case in harness.few():
            for losses in low_losses(len(case.jacobian)) if len(case.jacobian) <= SMALL else ():
                given = torch.tensor(losses).to(case.losses).expand_as(case.losses)
                weights = attempt(harness.weigh, case.jacobian, given)
                tested += 1
                if weights is not None and bool(weights.isnan().any()):
                    seen = (
                        f"weights are {vector(weights[-1])} where the losses are {vector(given[0])}"
                    )
                    return Finding(tested, f"{seen}, without an error", Case(case.jacobian, given))
    return Finding(tested)


# ---- absent tasks ------------------------------------------------------------------------------


def absences(count: int) -> list[list[int]]:
    """Who is absent: each task alone, two of three or more, all."""
    single = [[t] for t in altered_tasks(count)]
    return [*single, *([[0, count - 1]] if count > 2 else []), list(range(count))]


def drop_absent(draws: bool) -> Check:
    """Absent tasks get weight 0, the others what they get alone; with no task present all are 0.

    Only the zeros if the rule draws random numbers: alone, the others draw other numbers.
    """

    def run(weigh: Weigh, x: Instance) -> Outcome:
        every = range(len(x.rows))
        rests = [[i for i in every if i not in missing] for missing in absences(len(x.rows))]
        here = [torch.tensor([i in rest for i in every]) for rest in rests]
        found = weigh_all(weigh, [(x.rows, x.losses, present) for present in here], "present")
        expected = [torch.zeros_like(w) for w in found]
        if not draws:
            alone = weigh_all(weigh, [(x.rows[rest], x.losses[:, rest]) for rest in rests[:-1]])
            for i, v in enumerate(alone):
                expected[i] = expected[i].index_copy(-1, torch.tensor(rests[i]), v)

        def judged(present: Tensor, w: Tensor, v: Tensor) -> Compared:
            violation, kept = (w.abs() * ~present).amax(-1), w * present
            sizes = size(x.rows, kept, x.unit), size(x.rows, v, x.unit)
            far = distance(kept @ x.rows, v @ x.rows, *sizes)
            return violation if draws else torch.maximum(violation, far), v, w

        return outcomes(*(judged(*each) for each in zip(here, found, expected, strict=True)))

    def sentences(count: int) -> list[str]:
        others = "" if draws else "; alone the others have {before}"
        said = []
        for missing in absences(count):
            who = " and ".join(str(t + 1) for t in missing)
            tasks = f"task{'s' * (len(missing) > 1)} {who}"
            said.append(f"weights are {{after}} with {tasks} absent{others}")
        return [*said[:-1], "weights are {after} with no task present"]

    return Check("absent tasks", run, sentences, tasks=SEVERAL, most=40, contract=True)


def refuse_absent(harness: Harness, x: Instance) -> tuple[bool, str]:
    """Whether the rule refuses, outside a vmap, that one task of several is absent; its error.

    A refusal is a ValueError or NotImplementedError; any other error is a defect.
    """
    present = torch.arange(len(x.rows)) > 0
    try:
        harness.weigh(x.rows, x.losses, present=present)
    except Exception as error:  # whatever a rule may raise
        return isinstance(error, ValueError | NotImplementedError), describe_error(error)
    return False, ""


# ---- float32 -----------------------------------------------------------------------------------


def convert(weigh: Weigh, x: Instance) -> Outcome:
    """A float32 Gramian gives finite float32 weights, whose direction is float64's to 1e-3.

    Linearly independent gradients only, and only if float64's own direction stays when they move by
    as little as float32 resolves.
    """
    v = weigh(x.rows.float(), x.losses.float(), strict=True).to(x.rows)
    eps, unit = 4 * torch.finfo(torch.float32).eps, size(x.rows, x.weights, x.unit)
    losses = x.losses + eps * perturbation(x.losses, 0)
    moves = [(x.rows + sign * eps * perturbation(x.rows, 0), losses) for sign in (1, -1)]
    moved = [
        distance(w @ rows, x.direction, unit)
        for (rows, _), w in zip(moves, weigh_all(weigh, moves), strict=True)
    ]
    unstable = torch.stack(moved).amax() > FLOAT32_ERROR / 10
    violation, before, after = outcomes((compare(x, x.rows, v)[0], x.weights, v))
    return Outcome(torch.where(unstable, -1.0, violation), before, after)


VALID = Check(
    "valid weights", require_valid, ["weights are {after}"], everything=True, contract=True
)
FLOAT32 = Check(
    "float32",
    convert,
    ["weights {before} in float64 are {after} in float32"],
    independent,
    ("gaussian",),
    tolerance=FLOAT32_ERROR,
    contract=True,
    large=True,
)
