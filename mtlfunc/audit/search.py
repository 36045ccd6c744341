"""One check over all its instances, and the smallest instance that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from . import instances
from .harness import BATCHED, LONG, Harness, attempt, describe_error, quiet, usual
from .instances import LARGEST, SMALL, Case, nudged, trimmed
from .properties import Check, Instance, Outcome
from .report import Row

PART = 2000
"""Instances in one call of the deeper search."""

MOST = 100
"""Instances of one T that are tested one by one."""

TRIES = 100
"""Simplifications of a counterexample that are tried."""

NUDGE = 1e-13
"""By which share of its size a gradient or loss is moved before a failure counts: 500 times
float64's rounding, and far below every tolerance.
"""

AMPLIFIED = 30.0
"""A failure does not count if nudges turn the direction by that many times the violation: rounding,
500 times smaller than a nudge, then explains it.
"""


class Group(NamedTuple):
    """Instances of one T, with what the rule answers."""

    cases: Case
    weights: Tensor  # [case, update, task]
    generic: Tensor  # which are drawn, not integer Jacobians
    independent: Tensor
    unit: float

    def take(self, places: Tensor | list[int]) -> Group:
        """Some of the instances."""
        cases = Case(*(x[places] for x in self.cases))
        rest = (x[places] for x in (self.weights, self.generic, self.independent))
        return Group(cases, *rest, self.unit)


class Tested(NamedTuple):
    """What came of one group."""

    group: Group  # those tested: not all, if they had to be called one by one
    tested: int
    failing: list[int]
    update: int  # the earliest at which one fails
    first: int  # the first that fails there
    outcome: Outcome | None  # None if the rule raised at every instance
    errors: dict[int, str]  # by instance: what the rule raised

    @property
    def case(self) -> Case:
        return Case(*(x[self.first] for x in self.group.cases))


def search(harness: Harness, check: Check, rows: dict[int, Tensor] | None = None) -> Row:
    """The row of a check.

    Over `rows` for each T, or over the integer Jacobians and the generic families that it names.
    """
    tested, failing, dependent, general = 0, 0, True, False
    worst: tuple[tuple[bool, int, int, int], Tested] | None = None
    for group in groups(harness, check, rows):
        found = check_group(harness, check, group)
        tested += found.tested
        failing += len(found.failing)
        general |= bool(found.group.independent.any())
        if found.failing:
            dependent &= not bool(found.group.independent[found.failing].any())
            count = group.cases.losses.shape[-1]
            rank = (bool(found.group.generic[found.first]), count, found.update, found.first)
            worst = min(worst or (rank, found), (rank, found), key=lambda x: x[0])
    if not tested:
        why = "no instance with valid weights that it speaks of"
        return Row(check.name, "not applicable", 0, 0, why, contract=check.contract)
    if worst is None:
        return Row(check.name, "holds", tested, 0, contract=check.contract)
    found = worst[1] if rows is not None else smaller(harness, check, worst[1])
    case, detail = found.case, explain(harness, check, found)
    return Row(
        check.name,
        "fails",
        tested,
        failing,
        detail,
        case.jacobian if len(case.jacobian) > SMALL else trimmed(case.jacobian),
        case.losses if harness.reads_losses else None,
        dependent and general,
        check.contract,
    )


def groups(harness: Harness, check: Check, rows: dict[int, Tensor] | None) -> Iterator[Group]:
    """All instances that a check applies to."""
    if rows is not None:
        for count, x in rows.items():
            yield answered(harness, harness.ready(x, 1 if count > SMALL else 0))
        return
    more = harness.between if check.between else ()
    for count in (*check.tasks, *more, *((128,) if check.large else ())):
        pool = harness.pool(count)
        families = check.families if count <= BATCHED else check.families[:1]
        numbers = torch.tensor([1 + instances.FAMILIES.index(f) for f in families]).long()
        whole = pool.family == 0
        if check.where is not None and bool(whole.any()):
            whole = whole & check.where(pool.cases.jacobian)
        kept = (whole | torch.isin(pool.family, numbers)) & (pool.valid | check.everything)
        if check.grows:
            grown = harness.ready(instances.generic("gaussian", count + 1, 1))
            if not bool(harness.answers(grown)[1].any()):
                continue
        places = kept.nonzero().flatten()
        if check.most is not None:
            integer = places[pool.family[places] == 0]
            places = torch.cat(
                [instances.pick(integer, check.most), places[pool.family[places] > 0]]
            )
        if len(places):
            free = pool.independent
            yield Group(pool.cases, pool.weights, pool.family > 0, free, pool.unit).take(places)
    if check.name == "valid weights" and harness.updates > 1:
        for count in (1, 2, 3):
            x = instances.pick(instances.integers(count), 20)
            yield answered(harness, harness.ready(x, LONG))


def answered(harness: Harness, cases: Case, unit: float | None = None) -> Group:
    """A group of given instances."""
    weights, valid = harness.answers(cases)
    if unit is None:
        unit = usual(cases.jacobian[valid], weights[valid])
    drawn = torch.zeros(len(weights), dtype=torch.bool)
    return Group(cases, weights, drawn, instances.independent(cases.jacobian), unit)


def check_group(harness: Harness, check: Check, group: Group) -> Tested:
    """A check of every instance of a group; failures that hang on the last bits do not count."""
    group, outcome, errors = evaluate(harness, check, group)
    count, updates = group.cases.losses.shape[:2]
    failed, skipped = torch.zeros(count, updates, dtype=torch.bool), 0
    if outcome is not None:
        failed = excess(harness, check, outcome.violation).expand(count, updates).clone()
        skipped = int((outcome.violation < 0).flatten(1).all(-1).sum())
    if not check.contract and outcome is not None and bool(failed.any()):
        places = failed.any(-1).nonzero().flatten()
        failed[places] &= confirmed(harness, check, group.take(places), outcome, places)
    failed[list(errors), 0] = True
    failing = failed.any(-1).nonzero().flatten().tolist()
    # An integer one before any other, the earliest update, the first in the order of the instances.
    plain = failed & ~group.generic[:, None]
    candidates = plain if bool(plain.any()) else failed
    update = int(candidates.any(0).nonzero()[0]) if failing else 0
    first = int(candidates[:, update].nonzero()[0]) if failing else 0
    return Tested(group, count - skipped, failing, update, first, outcome, errors)


def excess(harness: Harness, check: Check, violation: Tensor) -> Tensor:
    """Which instances fail in some variant, [case, update]."""
    limit = harness.tolerance if check.tolerance is None else check.tolerance
    return (violation > limit).any(1)


def evaluate(
    harness: Harness, check: Check, group: Group, most: int = MOST
) -> tuple[Group, Outcome | None, dict[int, str]]:
    """The outcomes of a group in one vmapped call, or one by one if that raises.

    One by one it shows which instance raises; then at most `most` instances are called.
    """

    def run(rows: Tensor, losses: Tensor, weights: Tensor) -> Outcome:
        return check.run(harness.weigh, Instance(rows, losses, weights, group.unit))

    with quiet():
        if harness.vmapped and group.cases.losses.shape[-1] <= BATCHED:
            outcome = attempt(vmap(run), *group.cases, group.weights)
            if outcome is not None:
                return group, outcome, {}
        group = group.take(instances.pick(torch.arange(len(group.weights)), most))
        found: list[Outcome | None] = []
        errors = {}
        for i, x in enumerate(zip(*group.cases, group.weights, strict=True)):
            try:
                found.append(run(*x))
            except Exception as error:
                errors[i] = describe_error(error)
                found.append(None)
    like = next((outcome for outcome in found if outcome is not None), None)
    if like is None:
        return group, None, errors
    blank = Outcome(*(torch.full_like(x, float("nan")) for x in like))
    parts = zip(*(outcome or blank for outcome in found), strict=True)
    return group, Outcome(*(torch.stack(x) for x in parts)), errors


def confirmed(
    harness: Harness, check: Check, group: Group, outcome: Outcome, places: Tensor
) -> Tensor:
    """Which failures [case, update] any machine finds.

    All of them come again when gradients and losses are nudged, which breaks ties the same way
    everywhere; and the rule does not amplify the nudge, and so rounding, beyond the violation.
    """
    violation = outcome.violation[places]
    kept = excess(harness, check, violation)
    most = violation.amax(1)
    direction = group.weights @ group.cases.jacobian
    norms = torch.linalg.vector_norm(group.cases.jacobian, dim=-1)
    unit = (group.weights.abs() * norms[:, None]).sum(-1).clamp_min(1e-300)
    both = zip(*(nudged(group.cases, sign * NUDGE) for sign in (1, -1)), strict=True)
    moved = answered(harness, Case(*map(torch.cat, both)), group.unit)
    _, again, _ = evaluate(harness, check, moved, len(moved.weights))
    if again is None:  # it raises there, and so fails
        return kept
    turn = (moved.weights @ moved.cases.jacobian).unflatten(0, (2, -1)) - direction
    stays = torch.linalg.vector_norm(turn, dim=-1) / unit <= AMPLIFIED * most
    repeated = excess(harness, check, again.violation).unflatten(0, (2, -1))
    return kept & (repeated & stays).all(0)


# ---- the smallest counterexample ---------------------------------------------------------------


def smaller(harness: Harness, check: Check, found: Tested) -> Tested:
    """The first integer Jacobian with fewer tasks that fails, of more than were tested so far.

    For a case that was drawn, the first with up to three tasks if it has at most four; or else the
    case itself, simplified as long as it fails, unless it has too many tasks to print. Without any
    of these `found`.
    """
    drawn, tasks = bool(found.group.generic[found.first]), len(found.case.jacobian)
    for count in check.tasks:
        if count > 3 or (tasks > 4 if drawn else count >= tasks):
            continue
        rows = instances.integers(count, deep=harness.vmapped)
        for part in (rows if check.where is None else rows[check.where(rows)]).split(PART):
            group = answered(harness, harness.ready(part), found.group.unit)
            kept = group.weights.isfinite().flatten(1).all(-1) | check.everything
            if bool(kept.any()):
                deeper = check_group(harness, check, group.take(kept))
                if deeper.failing:
                    return deeper._replace(first=deeper.failing[0])
    if not drawn or tasks > SMALL:
        return found

    def fails(candidate: Case) -> bool:
        if len(candidate.jacobian) < min(check.tasks):
            return False
        if check.where is not None and not bool(check.where(candidate.jacobian[None])[0]):
            return False
        one = check_one(harness, check, candidate, found.group.unit)
        valid = check.everything or bool(one.group.weights.isfinite().all())
        return valid and bool(one.failing)

    simplest = check_one(harness, check, shrink(found.case, fails), found.group.unit)
    return simplest if simplest.failing else found


def check_one(harness: Harness, check: Check, case: Case, unit: float) -> Tested:
    """A check of one instance."""
    one = Case(*(x[None] for x in case))
    return check_group(harness, check, answered(harness, one, unit))


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Takes the first simplification that still fails, as long as there is one."""
    looked, found = 0, True
    while found:
        found = False
        for candidate in simplifications(case):
            if looked >= TRIES:
                break
            looked += 1
            if fails(candidate):
                case, found = candidate, True
                break
    return case


def simplifications(case: Case) -> Iterator[Case]:
    """A task less; small integers; a parameter less; an entry less; fewer digits. Each is simpler
    than `case`, so that shrinking ends.
    """
    rows, losses = case
    count, columns = rows.shape
    for i in range(count if count > 1 else 0):
        rest = [j for j in range(count) if j != i]
        yield Case(rows[rest], losses[:, rest])
    largest = rows.abs().amax()
    whole = bool((rows == rows.round()).all())
    for limit in range(1, LARGEST + 1):
        rounded = (rows * limit / largest).round()
        if bool((rounded != 0).any()) and (not whole or limit < largest):
            yield Case(rounded, losses)
    for i in range(columns if columns > 1 else 0):
        if bool((rows[:, i] != 0).any()):
            yield Case(rows.index_fill(1, torch.tensor(i), 0.0), losses)
    for i in rows.flatten().nonzero().flatten().tolist():
        yield Case(rows.flatten().index_fill(0, torch.tensor(i), 0.0).reshape(rows.shape), losses)
    for digits in (1, 2, 3):
        numbers = [float(f"{x:.{digits}g}") for x in rows.flatten().tolist()]
        rounded = torch.tensor(numbers, dtype=rows.dtype).reshape(rows.shape)
        if letters(rounded) < letters(rows):
            yield Case(rounded, losses)


def letters(rows: Tensor) -> int:
    """The length of the matrix in print."""
    return sum(len(repr(x)) for x in rows.flatten().tolist())


def explain(harness: Harness, check: Check, found: Tested) -> str:
    """What is seen at the counterexample."""
    if found.first in found.errors:
        return found.errors[found.first]
    shown, i = found, found.first
    if len(found.case.jacobian) <= SMALL:
        # without the columns that are zero for every task, if it fails so, too
        plain = Case(trimmed(found.case.jacobian), found.case.losses)
        one = check_one(harness, check, plain, found.group.unit)
        shown, i = (one, 0) if one.failing and one.outcome is not None else (shown, i)
    outcome = shown.outcome
    assert outcome is not None
    limit = harness.tolerance if check.tolerance is None else check.tolerance
    broken = outcome.violation[i] > limit  # [variant, update]
    update, variant = divmod(int(broken.mT.flatten().nonzero()[0]), len(broken))
    before, after = outcome.before[i, variant, update], outcome.after[i, variant, update]
    text = check.explain(len(found.case.jacobian), variant, before, after)
    return text + (f" (at update {update + 1})" if update else "")
