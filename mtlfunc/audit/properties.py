"""The properties that one instance can show or break, as pure functions that a vmap batches.

Answers are compared as directions d = Jᵀw, because weights are not unique where gradients depend on
each other, and in units of Σ|w_t|‖g_t‖, the length that d has without cancellation: rounding in d
is a multiple of that, whatever d's own length (`size`). A rule with state is tested over several
updates on the same gradients, one that draws random numbers with key 0 throughout. Transformations
of an integer Jacobian are exact in floating point, so that nothing but the rule can make a
difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from ..solvers.problems import or_one
from .cases import independent, stationary
from .evaluate import Check, Evaluate, Outcome

FLOOR = 1e-6
"""Of the usual size of an answer: what is that much smaller counts as 0."""

MOVES = {1e-10: 1e-3, 1e-6: 0.05}
"""Continuity: gradients move by the one of their size, the direction may move by the other.

A square root, the steepest that a projection on a hull can be, moves by 1e-5 and 1e-3. What jumps
where a gradient gets out of the others' span is seen at the longer move alone: squared, the shorter
one is below the Gramian's rounding.
"""

JUMP = MOVES[1e-10]

STEP = 1e-5
"""Differentiability: the step of the difference quotients, of the gradients' size."""

SCALES = tuple(2.0**k for k in (-33, -17, 17, 33))
"""Powers of two next to 1e-10, 1e-5, 1e5 and 1e10."""


class Property(NamedTuple):
    """One line of the table: a check, the words for what it saw, and where it applies."""

    name: str
    check: Check
    # (T, variant, before, after) -> what was seen at the counterexample
    describe: Callable[[int, int, Tensor, Tensor], str]
    # of the integer Jacobians [case, task, param]; None is all
    where: Callable[[Tensor], Tensor] | None = None
    families: tuple[str, ...] = ("gaussian", "spread")  # of `cases.generic`
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)
    between: bool = True  # also with two numbers of tasks that the audit's key draws
    large: bool = False  # also with `subject.MANY` tasks
    tolerance: float | None = None  # of the violation; None is the audit's
    most: int | None = None  # integer Jacobians for each T; None is the audit's
    grows: bool = False  # whether it also evaluates T + 1 tasks
    everything: bool = False  # also of instances without valid weights
    contract: bool = False  # about how the rule computes: a failure is a defect


def direction(jacobian: Tensor, weights: Tensor) -> Tensor:
    return weights @ jacobian


def spent(jacobian: Tensor, weights: Tensor) -> Tensor:
    """Σ|w_t|‖g_t‖ of every update."""
    return weights.abs() @ torch.linalg.vector_norm(jacobian, dim=-1)


def size(jacobian: Tensor, weights: Tensor, unit: float) -> Tensor:
    """Σ|w_t|‖g_t‖, above two floors in units of max‖g_t‖, below which there is rounding alone.

    A thousandth of Σ|w_t|: where all weight is on a zero gradient the others' rounding is no
    answer. A millionth of what the rule usually gives: where the direction is 0 and weights are
    1e-17, they are no answer either.
    """
    longest = torch.linalg.vector_norm(jacobian, dim=-1).amax()
    floor = (1e-3 * weights.abs().sum(-1)).clamp_min(FLOOR * unit) * longest
    return torch.maximum(spent(jacobian, weights), floor)


def apart(one: Tensor, other: Tensor, *sizes: Tensor) -> Tensor:
    """How far two directions are apart, in units of the largest size."""
    return torch.linalg.vector_norm(one - other, dim=-1) / or_one(torch.stack(sizes).amax(0))


def outcomes(*variants: tuple[Tensor, Tensor, Tensor]) -> Outcome:
    """(violation [update], before, after) of every variant; NaN is a violation without bound."""
    violation, before, after = (torch.stack(x) for x in zip(*variants, strict=True))
    return Outcome(violation.nan_to_num(torch.inf), before, after)


def some(count: int) -> list[int]:
    """The tasks that are changed, one at a time: the first, one inside and the last."""
    return sorted({0, count // 2, count - 1})


def vector(x: Tensor) -> str:
    """Numbers as a reader wants them; of many the ends."""
    numbers = [f"{0.0 if abs(v) < 1e-12 else v:.4g}" for v in x.flatten().tolist()]
    if len(numbers) > MOST_NUMBERS:
        numbers = [*numbers[:4], "…", numbers[-1]]
    return f"({', '.join(numbers)})"


MOST_NUMBERS = 12


# ---- transformations of the problem ------------------------------------------------------------


def permuted(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Tasks (gradients with their losses) in another order: the same direction.

    A rotation and a swap, which generate all orders.
    """
    count = len(rows)
    w = evaluate(rows, losses)
    d = direction(rows, w)

    def one(order: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        moved = rows[order]
        v = evaluate(moved, losses[:, order])
        return (
            apart(direction(moved, v), d, size(rows, w, unit), size(moved, v, unit)),
            d,
            direction(moved, v),
        )

    return outcomes(*(one(order) for order in orders(count)))


def orders(count: int) -> list[list[int]]:
    rotation, swap = [*range(1, count), 0], [1, 0, *range(2, count)]
    return [rotation] if count == 2 else [rotation, swap]


def describe_permuted(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    order = ", ".join(str(i + 1) for i in orders(count)[variant])
    return (
        f"the direction is {vector(before)}, but {vector(after)} with the tasks in the order "
        f"{order}"
    )


def scaled(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """All gradients times s, from 1e-10 to 1e10 (powers of two), losses as they are: d times s.

    A rule with an absolute epsilon fails.
    """
    w = evaluate(rows, losses)

    def one(s: float) -> tuple[Tensor, Tensor, Tensor]:
        v = evaluate(s * rows, losses)
        return (
            apart(direction(rows, v), direction(rows, w), size(rows, v, unit), size(rows, w, unit)),
            w,
            v,
        )

    return outcomes(*(one(s) for s in SCALES))


def describe_scaled(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"weights {vector(before)} become {vector(after)} when all gradients are multiplied "
        f"by {SCALES[variant]:.1e}"
    )


def rescaled(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """One task, gradient and loss, times 2 or 1024: d keeps its direction, maybe not its length."""
    w = evaluate(rows, losses)

    def pointed(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The unit vector along d, and the share of Σ|w_t|‖g_t‖ that cancellation left."""
        d = direction(rows, w)
        length = torch.linalg.vector_norm(d, dim=-1)
        floor = FLOOR * unit * torch.linalg.vector_norm(rows, dim=-1).amax()
        return d / or_one(length)[:, None], length / or_one(spent(rows, w).clamp_min(floor))

    before, share = pointed(rows, w)

    def one(task: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        c = torch.where(torch.arange(len(rows)) == task, factor, 1.0).to(rows)
        changed = c[:, None] * rows
        v = evaluate(changed, c * losses)
        after, other = pointed(changed, v)
        # The less is left, the more of the angle is rounding.
        turn = torch.linalg.vector_norm(before - after, dim=-1) * torch.maximum(share, other)
        return turn, direction(rows, w), direction(changed, v)

    return outcomes(*(one(task, factor) for task, factor in stretched(len(rows))))


def stretched(count: int) -> list[tuple[int, float]]:
    """Tasks and factors: one far, three farther."""
    return [(0, 2.0), *((task, 1024.0) for task in some(count))]


def describe_rescaled(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    task, factor = stretched(count)[variant]
    return (
        f"the direction turns from {vector(before)} to {vector(after)} when task {task + 1} is "
        f"multiplied by {factor:g}"
    )


def shifted(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """A constant, 1, added to one task's loss at every update: the same direction."""
    w = evaluate(rows, losses)
    d = direction(rows, w)

    def one(task: int) -> tuple[Tensor, Tensor, Tensor]:
        v = evaluate(rows, losses + (torch.arange(len(rows)) == task).to(losses))
        return apart(direction(rows, v), d, size(rows, v, unit), size(rows, w, unit)), w, v

    return outcomes(*(one(task) for task in some(len(rows))))


def describe_shifted(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"weights {vector(before)} become {vector(after)} when the loss of task "
        f"{some(count)[variant] + 1} is raised by 1"
    )


def duplicated(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """One task listed twice: the same direction."""
    w = evaluate(rows, losses)
    d = direction(rows, w)

    def one(task: int) -> tuple[Tensor, Tensor, Tensor]:
        more = torch.cat([rows, rows[task : task + 1]])
        v = evaluate(more, torch.cat([losses, losses[:, task : task + 1]], -1))
        return (
            apart(direction(more, v), d, size(more, v, unit), size(rows, w, unit)),
            d,
            direction(more, v),
        )

    return outcomes(*(one(task) for task in some(len(rows))))


def describe_duplicated(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"the direction is {vector(before)}, but {vector(after)} with task "
        f"{some(count)[variant] + 1} listed twice"
    )


def linear(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """d(diag(c)J) is linear in c > 0, losses times c too.

    With c = 1 and c' = (1, …, 2, …, 1): d(diag(c + c')J) is d(J) + d(diag(c')J).
    """
    count = len(rows)
    w = evaluate(rows, losses)

    def one(task: int) -> tuple[Tensor, Tensor, Tensor]:
        double = torch.where(torch.arange(count) == task, 2.0, 1.0).to(rows)
        second, both = double[:, None] * rows, (1 + double)[:, None] * rows
        v, whole = evaluate(second, double * losses), evaluate(both, (1 + double) * losses)
        parts, total = direction(rows, w) + direction(second, v), direction(both, whole)
        return (
            apart(
                total, parts, size(both, whole, unit), size(rows, w, unit), size(second, v, unit)
            ),
            parts,
            total,
        )

    return outcomes(*(one(task) for task in some(count)))


def describe_linear(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    task = some(count)[variant] + 1
    return (
        f"d(J) + d(J with task {task} doubled) is {vector(before)}, but the tasks times 2, "
        f"task {task} times 3, give {vector(after)}"
    )


# ---- the answer itself -------------------------------------------------------------------------


def identical(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """All tasks share one gradient g and one loss: d = g, the weights sum to 1."""
    w = evaluate(rows, losses[:, :1].expand_as(losses))
    return outcomes(
        (
            apart(direction(rows, w), rows[:1], size(rows, w, unit)),
            rows[:1].expand(len(losses), -1),
            direction(rows, w),
        )
    )


def all_identical(rows: Tensor) -> Tensor:
    return (rows == rows[:, :1]).flatten(1).all(-1)


def describe_identical(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"all gradients are {vector(before)}, but the direction is {vector(after)}"


def alone(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """One task: the weight is 1, so d = g."""
    w = evaluate(rows, losses)
    return outcomes((torch.linalg.vector_norm(w - 1, dim=-1), torch.ones_like(w), w))


def describe_alone(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"the weight of the only task is {vector(after)[1:-1]}"


def agrees(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """No task is raised to first order: g_t·d >= 0, up to the tolerance times ‖g_t‖·Σ|w_s|‖g_s‖."""
    w = evaluate(rows, losses)
    rates = w @ (rows @ rows.mT)
    scale = torch.linalg.vector_norm(rows, dim=-1) * size(rows, w, unit)[:, None]
    return outcomes(((-rates / or_one(scale)).amax(-1).clamp_min(0), w, rates))


def describe_agrees(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    raised = [str(i + 1) for i, rate in enumerate(after.tolist()) if rate < 0]
    who = (
        f"task {raised[0]} rises"
        if len(raised) == 1
        else f"tasks {', '.join(raised[:-1])} and {raised[-1]} rise"
    )
    return f"weights {vector(before)} give the rates g·d = {vector(after)}: {who}"


def harmless(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """No two gradients conflict (all g_i·g_j >= 0): d is the mean gradient."""
    w = evaluate(rows, losses)
    mean = rows.mean(0).expand(len(losses), -1)
    return outcomes(
        (
            apart(
                direction(rows, w),
                mean,
                size(rows, w, unit),
                size(rows, torch.full_like(w, 1 / len(rows)), unit),
            ),
            mean,
            direction(rows, w),
        )
    )


def no_conflict(rows: Tensor) -> Tensor:
    return (rows @ rows.mT >= 0).flatten(1).all(-1)


def describe_harmless(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"nothing conflicts and the mean gradient is {vector(before)}, but the direction is "
        f"{vector(after)}"
    )


def convex(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Weights >= 0 that sum to 1."""
    w = evaluate(rows, losses)
    return outcomes((torch.maximum(-w.amin(-1), (w.sum(-1) - 1).abs()), w, w.sum(-1, keepdim=True)))


def describe_convex(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights {vector(before)} sum to {vector(after)[1:-1]}"


def rests(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Jᵀw = 0 for some weights w, all of them positive: d = 0.

    There every direction that lowers one task raises another. (With some w_t = 0 a point is Pareto
    stationary too, if only because one gradient is zero: what then moves may lower a task without
    raising any, so that is not held against a rule.)
    """
    w = evaluate(rows, losses)
    d = direction(rows, w)
    return outcomes((torch.linalg.vector_norm(d, dim=-1) / or_one(size(rows, w, unit)), w, d))


def describe_rests(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"a positive combination of the gradients is 0, but weights {vector(before)} give the "
        f"direction {vector(after)}"
    )


# ---- small changes -----------------------------------------------------------------------------


def nudge(x: Tensor, variant: int) -> Tensor:
    """A fixed matrix of the shape and size of x: a Weyl sequence, without pattern or generator."""
    positions = torch.arange(1, x.numel() + 1, dtype=torch.float64)
    positions = positions * (2 + variant) ** 0.5  # irrational for 0, 1 and 3
    wave = (2 * (positions - positions.floor()) - 1).reshape(x.shape).to(x)
    return wave * torch.linalg.vector_norm(x, dim=-1).amax()


NUDGES = tuple(
    (move, variant, sign)
    for move, variants in ((1e-10, (0, 1)), (1e-6, (3,)))
    for variant in variants
    for sign in (1, -1)
)


def continuous(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """Gradients and losses moved by a little, along lines both ways: d moves by a little.

    In units of max‖g_t‖ times Σ|w_t| or what the rule usually gives, if that is more: the weights
    of a gradient that has just left 0 may be huge, and all of them 1e-17 where the direction is 0.
    """
    w = evaluate(rows, losses)
    d = direction(rows, w)
    longest = torch.linalg.vector_norm(rows, dim=-1).amax()
    whole = longest * w.abs().sum(-1).clamp_min(unit)

    def one(move: float, variant: int, sign: int) -> tuple[Tensor, Tensor, Tensor]:
        moved = rows + sign * move * nudge(rows, variant)
        v = evaluate(moved, losses + sign * move * nudge(losses, variant))
        far = apart(direction(moved, v), d, spent(moved, v), whole)
        return far * (JUMP / MOVES[move]), d, direction(moved, v)

    return outcomes(*(one(*each) for each in NUDGES))


def describe_continuous(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"the direction jumps from {vector(before)} to {vector(after)} when the gradients "
        f"move by {NUDGES[variant][0]:g} of their size"
    )


def differentiable(evaluate: Evaluate, rows: Tensor, losses: Tensor, unit: float) -> Outcome:
    """torch.func.grad of the weights, by gradients and losses, is their difference quotient.

    Where the gradients are linearly independent, and the quotients of both sides and of two steps
    agree: at a kink or a jump there is no derivative to get right.
    """
    # One number of all weights, of which the derivative is taken; bends are looked for in each.
    mark = torch.arange(1, len(rows) + 1).to(rows) ** 0.5
    across, beside = nudge(rows, 1), 0.1 * nudge(losses, 3)

    def weights(t: Tensor) -> Tensor:
        return evaluate(rows + t * across, losses + t * beside)

    zero = rows.new_zeros(())
    slope = grad(lambda t: (weights(t) * mark).sum())(zero)
    here, ahead, behind, far = (
        weights(zero),
        weights(zero + STEP),
        weights(zero - STEP),
        weights(zero + 2 * STEP),
    )
    quotient = ((ahead - behind) * mark).sum() / (2 * STEP)
    scale = (here.abs() * mark).sum() + quotient.abs()
    bend = torch.stack([ahead - 2 * here + behind, far - 2 * ahead + here]).abs().amax() / STEP
    wrong = ((slope - quotient).abs() / scale).nan_to_num(torch.inf)
    return Outcome(
        torch.where(bend > 1e-4 * scale, -1.0, wrong)[None, None],
        quotient[None, None, None],
        slope[None, None, None],
    )


def describe_differentiable(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"torch.func.grad gives a slope of {vector(after)[1:-1]} along one line, difference "
        f"quotients give {vector(before)[1:-1]}"
    )


SEVERAL = (2, 3, 4, 5)

PROPERTIES = (
    Property("permutation equivariance", permuted, describe_permuted, tasks=SEVERAL, large=True),
    Property("positive homogeneity", scaled, describe_scaled),
    Property("invariance to rescaling one task", rescaled, describe_rescaled, tasks=SEVERAL),
    Property("invariance to shifting a loss", shifted, describe_shifted, tasks=SEVERAL),
    Property(
        "identical tasks",
        identical,
        describe_identical,
        all_identical,
        ("identical",),
        SEVERAL,
        large=True,
    ),
    Property("duplicate tasks", duplicated, describe_duplicated, grows=True),
    Property(
        "non-conflict",
        agrees,
        describe_agrees,
        families=("gaussian", "spread", "weak"),
        tasks=SEVERAL,
        large=True,
    ),
    Property(
        "identity without conflict",
        harmless,
        describe_harmless,
        no_conflict,
        ("agreeing",),
        SEVERAL,
        large=True,
    ),
    Property("convex weights", convex, describe_convex, large=True),
    Property(
        "Pareto-stationary fixed points",
        rests,
        describe_rests,
        stationary,
        ("stationary",),
        SEVERAL,
        large=True,
    ),
    Property("linear under scaling", linear, describe_linear, tasks=SEVERAL),
    Property("continuity", continuous, describe_continuous, None, ("gaussian",), tolerance=JUMP),
    Property(
        "differentiability",
        differentiable,
        describe_differentiable,
        independent,
        ("gaussian",),
        tolerance=1e-3,
    ),
    Property("T = 1", alone, describe_alone, None, (), (1,), everything=True, between=False),
)
"""What a rule is: no answer is wrong by itself."""
