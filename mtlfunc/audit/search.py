"""One check over all its instances, and the smallest instance that fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..testing.integers import integers, pick, trimmed
from ..testing.judge import attempt, describe_error, quiet
from . import instances
from .harness import BATCHED, LONG, MANY, Finding, Harness, Inapplicable, Pool
from .instances import SMALL, Case, nudged
from .properties import Check, Instance, Outcome

PART = 2000  # instances in one call of the deeper search
MOST = 100  # instances of one T that are tested one by one
# By which share of its size a gradient or loss is moved before a failure counts: 500 times
# float64's rounding, far below every tolerance. If this turns the direction by more than so many
# times the violation, rounding explains the failure, and it does not count.
NUDGE, AMPLIFIED = 1e-13, 30.0


class Tested(NamedTuple):
    """What came of one group."""

    group: Pool  # those tested: not all, if they had to be called one by one
    tested: int
    failing: list[int]
    update: int  # the earliest at which one fails
    first: int  # the first that fails there
    outcome: Outcome | None  # None if the rule raised at every instance
    errors: dict[int, str]  # by instance: what the rule raised

    @property
    def case(self) -> Case:
        return self.group.cases.at(self.first)


def search(harness: Harness, check: Check, rows: dict[int, Tensor] | None = None) -> Finding:
    """What a check finds over `rows` for each T, or over the integer Jacobians and its families."""
    tested, failing, dependent, general = 0, 0, True, False
    worst: tuple[tuple[bool, int, int, int], Tested] | None = None
    for group in choose_instances(harness, check, rows):
        found = check_group(harness, check, group)
        tested += found.tested
        failing += len(found.failing)
        general |= bool(found.group.independent.any())
        if found.failing:
            dependent &= not bool(found.group.independent[found.failing].any())
            count = group.cases.losses.shape[-1]
            rank = (bool(found.group.family[found.first] > 0), count, found.update, found.first)
            worst = min(worst or (rank, found), (rank, found), key=lambda x: x[0])
    if not tested:
        raise Inapplicable("no instance with valid weights that it speaks of")
    if worst is None:
        return Finding(tested)
    found = worst[1] if rows is not None else smaller(harness, check, worst[1])
    seen = explain(harness, check, found)
    return Finding(tested, seen, found.case, failing, dependent and general)


def choose_instances(
    harness: Harness, check: Check, rows: dict[int, Tensor] | None
) -> Iterator[Pool]:
    """All instances that a check applies to."""
    if rows is not None:
        for count, x in rows.items():
            yield harness.answered(harness.ready(x, 1 if count > SMALL else 0))
        return
    more = harness.between if len(check.tasks) > 1 else ()
    for count in (*check.tasks, *more, *((MANY,) if check.large else ())):
        if check.grows and not harness.takes(count + 1):
            continue
        pool = harness.pool(count)
        families = check.families if count <= BATCHED else check.families[:1]
        numbers = torch.tensor([1 + instances.FAMILIES.index(f) for f in families]).long()
        whole = pool.family == 0
        if (where := check.where) is not None and bool(whole.any()):
            whole = whole & where(pool.cases.jacobian)
        kept = (whole | torch.isin(pool.family, numbers)) & (pool.valid | check.everything)
        places = kept.nonzero().flatten()
        if check.most is not None:
            integer = places[pool.family[places] == 0]
            places = torch.cat([pick(integer, check.most), places[pool.family[places] > 0]])
        if len(places):
            yield pool.take(places)
    if check.name == "valid weights" and harness.updates > 1:
        for count in (1, 2, 3):
            x = pick(integers(count), 20)
            yield harness.answered(harness.ready(x, LONG))


def check_group(harness: Harness, check: Check, group: Pool) -> Tested:
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
    plain = failed & (group.family == 0)[:, None]
    candidates = plain if bool(plain.any()) else failed
    update = int(candidates.any(0).nonzero()[0]) if failing else 0
    first = int(candidates[:, update].nonzero()[0]) if failing else 0
    return Tested(group, count - skipped, failing, update, first, outcome, errors)


def excess(harness: Harness, check: Check, violation: Tensor) -> Tensor:
    """Which instances fail in some variant, [case, update]."""
    limit = harness.tolerance if check.tolerance is None else check.tolerance
    return (violation > limit).any(1)


def evaluate(
    harness: Harness, check: Check, group: Pool, most: int = MOST
) -> tuple[Pool, Outcome | None, dict[int, str]]:
    """The outcomes of a group in one vmapped call, or one by one if that raises. One by one it
    shows which instance raises; then at most `most` instances are called.
    """

    def run(rows: Tensor, losses: Tensor, weights: Tensor) -> Outcome:
        return check.run(harness.weigh, Instance(rows, losses, weights, group.unit))

    with quiet():
        if harness.vmapped and group.cases.losses.shape[-1] <= SMALL:
            outcome = attempt(vmap(run), *group.cases, group.weights)
            if outcome is not None:
                return group, outcome, {}
        group = group.take(pick(torch.arange(len(group.weights)), most))
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
    harness: Harness, check: Check, group: Pool, outcome: Outcome, places: Tensor
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
    moved = harness.answered(Case(*map(torch.cat, both)), group.unit)
    _, again, _ = evaluate(harness, check, moved, len(moved.weights))
    if again is None:  # it raises there, and so fails
        return kept
    turn = (moved.weights @ moved.cases.jacobian).unflatten(0, (2, -1)) - direction
    stays = torch.linalg.vector_norm(turn, dim=-1) / unit <= AMPLIFIED * most
    repeated = excess(harness, check, again.violation).unflatten(0, (2, -1))
    return kept & (repeated & stays).all(0)


def smaller(harness: Harness, check: Check, found: Tested) -> Tested:
    """The first integer Jacobian with fewer tasks that fails, of more than were tested so far.

    For a drawn case, the first with up to three tasks if it has at most four. `found` for none.
    """
    drawn, tasks = bool(found.group.family[found.first] > 0), len(found.case.jacobian)
    for count in check.tasks:
        if count > 3 or (tasks > 4 if drawn else count >= tasks):
            continue
        rows = integers(count, deep=harness.vmapped)
        for part in (rows if check.where is None else rows[check.where(rows)]).split(PART):
            group = harness.answered(harness.ready(part), found.group.unit)
            kept = group.valid | check.everything
            if bool(kept.any()):
                deeper = check_group(harness, check, group.take(kept))
                if deeper.failing:
                    return deeper._replace(first=deeper.failing[0])
    return found


def explain(harness: Harness, check: Check, found: Tested) -> str:
    """What is seen at the counterexample."""
    if found.first in found.errors:
        return found.errors[found.first]
    shown, i = found, found.first
    if len(found.case.jacobian) <= SMALL:
        # without the columns that are zero for every task, if it fails so, too
        plain = Case(trimmed(found.case.jacobian), found.case.losses)
        alone = harness.answered(Case(*(x[None] for x in plain)), found.group.unit)
        one = check_group(harness, check, alone)
        shown, i = (one, 0) if one.failing and one.outcome is not None else (shown, i)
    outcome = shown.outcome
    assert outcome is not None
    limit = harness.tolerance if check.tolerance is None else check.tolerance
    broken = outcome.violation[i] > limit  # [variant, update]
    update, variant = divmod(int(broken.mT.flatten().nonzero()[0]), len(broken))
    before, after = outcome.before[i, variant, update], outcome.after[i, variant, update]
    text = check.explain(len(found.case.jacobian), variant, before, after)
    return text + (f" (at update {update + 1})" if update else "")
