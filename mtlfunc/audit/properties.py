"""The properties that one instance can show or break, as pure functions that a vmap batches.

Answers are compared as directions d = Jᵀw, because weights are not unique if gradients are linearly
dependent. The unit is Σ|w_t|‖g_t‖, the norm that d has without cancellation: rounding in d is a
multiple of it, whatever the norm of d itself (`size`). A rule with state is tested over several
updates on the same gradients, a rule that draws random numbers with key 0 throughout.
Transformations of an integer Jacobian are exact, so only the rule can make a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..core.transforms import inside_transform
from ..solvers.problems import or_one
from .harness import EVERY, Weigh
from .instances import independent, stationary, wave

FLOOR = 1e-6  # of the usual size of an answer: what is smaller than that counts as 0
MOVES = {1e-10: 1e-3, 1e-6: 0.05}
"""Continuity: when gradients move by the first share of their size, the direction may move by the
second.

A square root, the steepest that a projection on a hull can be, moves by 1e-5 and 1e-3. A jump at a
gradient that leaves the span of the others shows at the longer move only: squared, the shorter one
is below the Gramian's rounding.
"""

JUMP = MOVES[1e-10]
STEP = 1e-5  # differentiability: the step of the difference quotients, of the gradients' size
WIDER = 10  # times that is the step for second derivatives
SCALES = tuple(2.0**k for k in (-33, -17, 17, 33))  # close to 1e-10, 1e-5, 1e5 and 1e10
SEVERAL = EVERY[1:]

Compared = tuple[Tensor, Tensor, Tensor]
"""(violation [update], before [update, …], after [update, …])."""


class Instance(NamedTuple):
    """One instance, with what the rule answers to it."""

    rows: Tensor  # [task, param]
    losses: Tensor  # [update, task]
    weights: Tensor  # [update, task]
    unit: float  # what Σ|w_t|‖g_t‖ / max‖g_t‖ usually is for this rule and T

    @property
    def direction(self) -> Tensor:
        return self.weights @ self.rows


class Outcome(NamedTuple):
    """What a check saw, in one instance or a batch."""

    # [variant, update]: more than what is tolerated is a failure; a negative one says that the
    # check does not apply to this instance
    violation: Tensor
    before: Tensor  # [variant, update, …]: the numbers that the explanation shows
    after: Tensor


class Check(NamedTuple):
    """One line of the table: what is computed at an instance, and how a failure is explained."""

    name: str
    run: Callable[[Weigh, Instance], Outcome]  # pure, so that a vmap batches it
    # with {before} and {after}: one for each variant, perhaps made for T, or one for all of them;
    # {task} is the one of `chosen_tasks` that the variant changes
    sentences: Sequence[str] | Callable[[int], list[str]]
    # which of the integer Jacobians [case, task, param]; None is all
    where: Callable[[Tensor], Tensor] | None = None
    families: tuple[str, ...] = ("gaussian", "spread")  # of `instances.generic`
    tasks: tuple[int, ...] = EVERY  # of several also two that the audit's key draws
    large: bool = False  # also with `harness.MANY` tasks
    tolerance: float | None = None  # of the violation; None is the audit's
    most: int | None = None  # integer Jacobians for each T; None is the audit's
    grows: bool = False  # whether it also evaluates T + 1 tasks
    everything: bool = False  # also at instances without valid weights
    contract: bool = False  # about how the rule computes: a failure is a defect

    def explain(self, count: int, variant: int, before: Tensor, after: Tensor) -> str:
        """What was seen at a counterexample with T = count tasks."""
        said = self.sentences(count) if callable(self.sentences) else list(self.sentences)
        if "{task}" in said[0]:
            said = [said[0].replace("{task}", str(t)) for t in chosen_tasks(count)]
        before_it, after_it = told_apart(before, after)
        return said[variant % len(said)].format(before=before_it, after=after_it)


def spent(rows: Tensor, weights: Tensor) -> Tensor:
    """Σ|w_t|‖g_t‖ of every update."""
    return weights.abs() @ torch.linalg.vector_norm(rows, dim=-1)


def size(rows: Tensor, weights: Tensor, unit: float) -> Tensor:
    """Σ|w_t|‖g_t‖, above two floors in units of max‖g_t‖; below them there is only rounding.

    A thousandth of Σ|w_t|: if all weight is on a zero gradient, the others' rounding is not an
    answer. A millionth of what the rule usually gives: if the direction is 0 and weights are 1e-17,
    they are not an answer either.
    """
    longest = torch.linalg.vector_norm(rows, dim=-1).amax()
    floor = (1e-3 * weights.abs().sum(-1)).clamp_min(FLOOR * unit) * longest
    return torch.maximum(spent(rows, weights), floor)


def distance(one: Tensor, other: Tensor, *sizes: Tensor) -> Tensor:
    """The distance of two directions, in units of the largest size."""
    return torch.linalg.vector_norm(one - other, dim=-1) / or_one(torch.stack(sizes).amax(0))


def compare(x: Instance, rows: Tensor, weights: Tensor, expected: Tensor | None = None) -> Compared:
    """The direction of `weights` against `expected`, by default the instance's."""
    expected = x.direction if expected is None else expected
    found = weights @ rows
    sizes = size(rows, weights, x.unit), size(x.rows, x.weights, x.unit)
    return distance(found, expected, *sizes), expected, found


def weigh_all(
    weigh: Weigh, problems: Sequence[tuple[Tensor, ...]], *names: str, refuse: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Rows and weights at several problems (rows, losses, and what else `names` says).

    Inside a vmap those of one shape in one call. With `refuse` NaN if the rule raises.
    """

    def one(rows: Tensor, losses: Tensor, *rest: Tensor) -> Tensor:
        try:
            return weigh(rows, losses, **dict(zip(names, rest, strict=True)))
        except Exception:
            if refuse:
                return torch.full_like(losses, torch.nan)
            raise

    if not inside_transform():
        return [(problem[0], one(*problem)) for problem in problems]
    found: dict[int, Tensor] = {}
    for count in {len(problem[0]) for problem in problems}:
        places = [i for i, problem in enumerate(problems) if len(problem[0]) == count]
        stacked = (torch.stack(x) for x in zip(*(problems[i] for i in places), strict=True))
        found |= zip(places, vmap(one)(*stacked).unbind(0), strict=True)
    return [(problem[0], found[i]) for i, problem in enumerate(problems)]


def outcomes(*variants: Compared) -> Outcome:
    """All variants side by side; a NaN is a violation without bound."""
    violation, before, after = (torch.stack(x) for x in zip(*variants, strict=True))
    return Outcome(violation.nan_to_num(torch.inf), before, after)


def chosen_tasks(count: int) -> list[int]:
    """The tasks that are changed, one at a time: the first, one inside and the last."""
    return sorted({0, count // 2, count - 1})


def told_apart(*two: Tensor) -> list[str]:
    """Two vectors, in more than four digits if they would read the same and are not."""
    written = [[vector(x, digits) for x in two] for digits in (4, 8, 17)]
    return next((texts for texts in written if texts[0] != texts[1]), written[0])


def vector(x: Tensor, digits: int = 4) -> str:
    """Numbers in parentheses; of more than twelve the first four and the last."""
    numbers = [f"{0.0 if abs(v) < 1e-12 else v:.{digits}g}" for v in x.flatten().tolist()]
    numbers = [*numbers[:4], "…", numbers[-1]] if len(numbers) > 12 else numbers
    return numbers[0] if x.ndim == 0 else f"({', '.join(numbers)})"


def permute(weigh: Weigh, x: Instance) -> Outcome:
    """Tasks (gradients with their losses) in another order: the same direction.

    A rotation and a swap, which generate all orders.
    """
    problems = [(x.rows[order], x.losses[:, order]) for order in orders(len(x.rows))]
    return outcomes(*(compare(x, *each) for each in weigh_all(weigh, problems)))


def orders(count: int) -> list[list[int]]:
    rotation, swap = [*range(1, count), 0], [1, 0, *range(2, count)]
    return [rotation] if count == 2 else [rotation, swap]


def scaled(name: str, scales: Sequence[float], power: float = 0.0) -> Check:
    """All gradients times s, from 1e-10 to 1e10, losses as they are: w times a power of s."""

    def scale(weigh: Weigh, x: Instance) -> Outcome:
        found = weigh_all(weigh, [(s * x.rows, x.losses) for s in scales])
        both = zip(scales, (v for _, v in found), strict=True)
        return outcomes(*((compare(x, x.rows, v / s**power)[0], x.weights, v) for s, v in both))

    text = "weights {{before}} become {{after}} when all gradients are multiplied by {:.1e}"
    if power:
        text += f"; where they grow, weights go with the power {power:.3g} of their length"
    return Check(name, scale, [text.format(s) for s in scales])


def rescale(weigh: Weigh, x: Instance) -> Outcome:
    """One task, gradient and loss, times 2 or 1024: d keeps its direction, not always its norm."""

    def pointed(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The unit vector along d, and the share of Σ|w_t|‖g_t‖ that cancellation left."""
        d = w @ rows
        norm = torch.linalg.vector_norm(d, dim=-1)
        floor = FLOOR * x.unit * torch.linalg.vector_norm(rows, dim=-1).amax()
        return d / or_one(norm)[:, None], norm / or_one(spent(rows, w).clamp_min(floor))

    before, share = pointed(x.rows, x.weights)

    def turned(rows: Tensor, v: Tensor) -> Compared:
        after, other = pointed(rows, v)
        # The less is left, the more of the angle is rounding.
        turn = torch.linalg.vector_norm(before - after, dim=-1) * torch.maximum(share, other)
        return turn, x.direction, v @ rows

    task = torch.arange(len(x.rows))
    c = [torch.where(task == t, f, 1.0).to(x.rows) for t, f in factors(len(x.rows))]
    problems = [(each[:, None] * x.rows, each * x.losses) for each in c]
    return outcomes(*(turned(*each) for each in weigh_all(weigh, problems)))


def factors(count: int) -> list[tuple[int, float]]:
    """Tasks and factors: the first one times 2, three times 1024."""
    return [(0, 2.0), *((task, 1024.0) for task in chosen_tasks(count))]


def shift(weigh: Weigh, x: Instance) -> Outcome:
    """A constant added to one task's loss at every update: the same direction.

    1, and -10, which makes the loss negative; a rule may refuse that by raising or by NaN.
    """

    task = torch.arange(len(x.rows))
    tasks = chosen_tasks(len(x.rows))
    raised, lowered = ([(x.rows, x.losses + c * (task == t)) for t in tasks] for c in (1.0, -10.0))
    variants = [(compare(x, *each)[0], x.weights, each[1]) for each in weigh_all(weigh, raised)]
    for _, v in weigh_all(weigh, lowered, refuse=True):
        far = compare(x, x.rows, v)[0].nan_to_num(torch.inf)
        variants.append((torch.where(v.isnan().all(-1), -1.0, far), x.weights, v))
    return outcomes(*variants)


def duplicates(x: Instance) -> list[tuple[Tensor, Tensor]]:
    """Gradients and losses with one task listed twice."""
    lists = [[*range(len(x.rows)), task] for task in chosen_tasks(len(x.rows))]
    return [(x.rows[tasks], x.losses[:, tasks]) for tasks in lists]


def duplicate(weigh: Weigh, x: Instance) -> Outcome:
    """One task listed twice: the same direction."""
    return outcomes(*(compare(x, *each) for each in weigh_all(weigh, duplicates(x))))


def prefer(weigh: Weigh, x: Instance) -> Outcome:
    """Twice the preference for a task: the direction that the task listed twice has."""
    shares = [(x.rows, x.losses, c / (len(c) + 1)) for c in doubled(x)]
    preferred = weigh_all(weigh, shares, "preference")
    expected = [w @ rows for rows, w in weigh_all(weigh, duplicates(x))]
    return outcomes(*(compare(x, *v, d) for v, d in zip(preferred, expected, strict=True)))


def doubled(x: Instance) -> list[Tensor]:
    """Factors [task]: one task's is 2, those of the others are 1."""
    task = torch.arange(len(x.rows))
    return [torch.where(task == t, 2.0, 1.0).to(x.rows) for t in chosen_tasks(len(task))]


def combine(weigh: Weigh, x: Instance) -> Outcome:
    """d(diag(c)J) is linear in c > 0, also losses times c.

    With c = 1 and c' = (1, …, 2, …, 1): d(diag(c + c')J) is d(J) + d(diag(c')J).
    """
    factors = (c for two in doubled(x) for c in (two, 1 + two))
    answers = weigh_all(weigh, [(c[:, None] * x.rows, c * x.losses) for c in factors])

    def added(second: tuple[Tensor, Tensor], both: tuple[Tensor, Tensor]) -> Compared:
        parts, total = x.direction + second[1] @ second[0], both[1] @ both[0]
        sizes = (size(*each, x.unit) for each in ((x.rows, x.weights), second, both))
        return distance(total, parts, *sizes), parts, total

    return outcomes(*(added(*pair) for pair in zip(answers[::2], answers[1::2], strict=True)))


def reproduce(weigh: Weigh, x: Instance) -> Outcome:
    """All tasks share one gradient g and one loss, as one task does: d = g, weights sum to 1."""
    w = weigh(x.rows, x.losses[:, :1].expand_as(x.losses))
    g = x.rows[:1].expand(len(w), -1)
    return outcomes((distance(w @ x.rows, g, size(x.rows, w, x.unit)), g, w @ x.rows))


def agree(weigh: Weigh, x: Instance) -> Outcome:
    """No task is raised to first order: g_t·d >= 0, up to the tolerance times ‖g_t‖·Σ|w_s|‖g_s‖."""
    rates = x.weights @ (x.rows @ x.rows.mT)
    norms = torch.linalg.vector_norm(x.rows, dim=-1)
    unit = norms * size(x.rows, x.weights, x.unit)[:, None]
    return outcomes(((-rates / or_one(unit)).amax(-1).clamp_min(0), x.weights, rates))


def keep_mean(weigh: Weigh, x: Instance) -> Outcome:
    """No two gradients conflict (all g_i·g_j >= 0): d is the mean gradient."""
    mean, w = x.rows.mean(0).expand(len(x.losses), -1), x.weights
    sizes = (size(x.rows, v, x.unit) for v in (w, torch.full_like(w, 1 / len(x.rows))))
    return outcomes((distance(x.direction, mean, *sizes), mean, x.direction))


def mix(weigh: Weigh, x: Instance) -> Outcome:
    """Weights >= 0 that sum to 1."""
    total = x.weights.sum(-1)
    violation = torch.maximum(-x.weights.amin(-1), (total - 1).abs())
    return outcomes((violation, x.weights, total))


def rest(weigh: Weigh, x: Instance) -> Outcome:
    """Jᵀw = 0 for some weights w, all of them positive: d = 0.

    There every direction that lowers one task raises another. (With some w_t = 0 a point is Pareto
    also stationary, if only because one gradient is zero. A direction may then lower a task without
    raising any, so the check does not apply.)
    """
    d = x.direction
    unit = or_one(size(x.rows, x.weights, x.unit))
    return outcomes((torch.linalg.vector_norm(d, dim=-1) / unit, x.weights, d))


def perturbation(x: Tensor, variant: int) -> Tensor:
    """A fixed matrix of the shape and size of x."""
    return wave(x, variant) * torch.linalg.vector_norm(x, dim=-1).amax()


MOVED = ((1e-10, 0), (1e-10, 1), (1e-6, 3))
NUDGES = tuple((*moved, sign) for moved in MOVED for sign in (1, -1))


def nudge(weigh: Weigh, x: Instance) -> Outcome:
    """Gradients and losses moved by a little, along lines both ways: d moves by a little.

    In units of max‖g_t‖ times Σ|w_t| or what the rule usually gives, if that is more: the weights
    of a gradient that has just left 0 may be huge, and all of them 1e-17 at a direction of 0. The
    check does not apply where the moved instance has no valid weights.
    """
    longest = torch.linalg.vector_norm(x.rows, dim=-1).amax()
    whole = longest * x.weights.abs().sum(-1).clamp_min(x.unit)

    def moved(move: float, variant: int, sign: int) -> tuple[Tensor, Tensor]:
        """Gradients and losses."""
        rows, losses = (y + sign * move * perturbation(y, variant) for y in (x.rows, x.losses))
        return rows, losses

    problems = [moved(*each) for each in NUDGES]
    found, variants = weigh_all(weigh, problems, refuse=True), []
    for (rows, v), (move, *_) in zip(found, NUDGES, strict=True):
        far = distance(v @ rows, x.direction, spent(rows, v), whole) * (JUMP / MOVES[move])
        variants.append((torch.where(v.isfinite().all(-1), far, -1.0), x.direction, v @ rows))
    return outcomes(*variants)


def differentiate(weigh: Weigh, x: Instance) -> Outcome:
    """The first two derivatives of the weights, by gradients and losses, are difference quotients:
    those of the weights and of the first derivative.

    Linearly independent gradients only, and only if the quotients of both sides and of two steps
    agree: a kink or a jump has no derivative.
    """
    # The derivative is that of one number, made of all weights; bends are looked for in each.
    mark = torch.arange(1, len(x.rows) + 1).to(x.rows) ** 0.5
    across, beside = perturbation(x.rows, 1), 0.1 * perturbation(x.losses, 3)

    def weights(t: Tensor) -> Tensor:
        return weigh(x.rows + t * across, x.losses + t * beside)

    def total(t: Tensor) -> Tensor:
        return (weights(t) * mark).sum()

    def along(f: Callable[[Tensor], Tensor], places: Tensor) -> list[Tensor]:
        return [*vmap(f)(places)] if inside_transform() else [*map(f, places)]

    here = x.weights
    slope = grad(total)

    def compared(exact: Tensor, step: float, values: list[Tensor], limit: float) -> Compared:
        """A derivative against the quotient of values at 0, step, -step and 2 step."""
        at, ahead, behind, far = values
        quotient = ((ahead - behind) * mark).sum() / (2 * step)
        unit = (here.abs() * mark).sum() + quotient.abs()
        bend = torch.stack([ahead - 2 * at + behind, far - 2 * ahead + at]).abs().amax() / step
        wrong = ((exact - quotient).abs() / or_one(unit)).nan_to_num(torch.inf)
        return torch.where(bend > limit * unit, -1.0, wrong)[None], quotient[None], exact[None]

    places = torch.tensor([0.0, 1.0, -1.0, 2.0]).to(x.rows)
    slopes = along(slope, WIDER * STEP * places)
    values = [here, *along(weights, STEP * places[1:])]
    first = compared(slopes[0], STEP, values, 1e-4)
    curvature, shares = grad(slope)(places[0]), [each / mark.sum() for each in slopes]
    second = compared(curvature, WIDER * STEP, shares, 1e-2)
    # a kink of the weights is not a place for a second derivative
    return outcomes(first, (torch.where(first[0] < 0, -1.0, second[0]), *second[1:]))


PROPERTIES = (
    Check("permutation equivariance", permute, lambda count: [
        "the direction is {before}, but {after} with the tasks in the order "
        + ", ".join(map(str, order)) for order in orders(count)
    ], tasks=SEVERAL, large=True),
    scaled("positive homogeneity", SCALES),
    Check("invariance to rescaling one task", rescale, lambda count: [
        f"the direction turns from {{before}} to {{after}} when task {task} is multiplied "
        f"by {factor:g}" for task, factor in factors(count)
    ], tasks=SEVERAL),
    Check("invariance to shifting a loss", shift, lambda count: [
        f"weights {{before}} become {{after}} when the loss of task {t} is {change}"
        for change in ("raised by 1", "lowered by 10") for t in chosen_tasks(count)
    ], tasks=SEVERAL),
    Check("identical tasks", reproduce, [
        "all gradients are {before}, but the direction is {after}"
    ], lambda rows: (rows == rows[:, :1]).flatten(1).all(-1), ("identical",), large=True),
    Check("duplicate tasks", duplicate, [
        "the direction is {before}, but {after} with task {task} listed twice"
    ], grows=True),
    Check("preference", prefer, [
        "the direction is {before} with task {task} listed twice, but {after} with twice the "
        "preference for it"
    ], tasks=SEVERAL, most=100, grows=True),
    Check("non-conflict", agree, [
        "weights {before} give the rates g·d = {after}: a task with a negative rate rises"
    ], families=("gaussian", "spread", "weak"), tasks=SEVERAL, large=True),
    Check("identity without conflict", keep_mean, [
        "nothing conflicts and the mean gradient is {before}, but the direction is {after}"
    ], lambda rows: (rows @ rows.mT >= 0).flatten(1).all(-1), ("agreeing",), SEVERAL, large=True),
    Check("convex weights", mix, ["weights {before} sum to {after}"], large=True),
    Check("Pareto-stationary fixed points", rest, [
        "a positive combination of the gradients is 0, but weights {before} give the direction "
        "{after}"
    ], stationary, ("stationary",), SEVERAL, large=True),
    Check("linear under scaling", combine, [
        "d(J) + d(J with task {task} doubled) is {before}, but the tasks times 2, task {task} "
        "times 3, give {after}"
    ], tasks=SEVERAL),
    Check("continuity", nudge, [
        f"the direction jumps from {{before}} to {{after}} when the gradients move by {move:g} "
        "of their size" for move, _, _ in NUDGES
    ], families=("gaussian",), tolerance=JUMP),
    Check("differentiability", differentiate, [
        "torch.func.grad gives a slope of {after} along one line, difference quotients give "
        "{before}",
        "torch.func.grad of torch.func.grad gives a second derivative of {after} along one "
        "line, difference quotients of the slope give {before}",
    ], independent, ("gaussian",), tolerance=1e-3, most=100),
)  # fmt: skip
"""What a rule does: no answer is wrong by itself."""
