"""One property over all its instances, and the smallest that breaks it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cases as instances
from .cases import SMALL, Case
from .evaluate import Batch, one_by_one, together
from .program import REMEMBERS, Inconsistent, differs, other_answer
from .properties import Property
from .report import Row, trimmed
from .shrink import shrink
from .subject import BATCHED, Study, answers, counts, ready

PART = 2000
"""Instances in one call of the deeper search."""

MOST = 100
"""Instances of one T that are tested one by one."""


class Group(NamedTuple):
    """Instances of one T."""

    cases: Case
    generic: Tensor  # which are no integer Jacobians
    independent: Tensor
    unit: float


class Tested(NamedTuple):
    """What came of one group."""

    group: Group  # those tested: not all, if it had to be looped over
    tested: int
    failing: list[int]
    update: int  # the earliest at which one fails
    first: int  # the first that fails there
    batch: Batch

    @property
    def case(self) -> Case:
        return Case(*(x[self.first] for x in self.group.cases))


def search(study: Study, each: Property, rows: dict[int, Tensor] | None = None) -> Row:
    """The row of a property.

    Over `rows` for each T, or over the integer Jacobians and the generic families that it names.

    Raises:
        Inconsistent: where a failure does not come again.
    """
    tested, failing, dependent, general = 0, 0, True, False
    worst: tuple[tuple[bool, int, int, int], Tested] | None = None
    for group in groups(study, each, rows):
        found = check_group(study, each, group)
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
        return Row(each.name, "not applicable", 0, 0, why, contract=each.contract)
    if worst is None:
        return Row(each.name, "holds", tested, 0, contract=each.contract)
    found = worst[1]
    drawn = bool(found.group.generic[found.first])
    if rows is None:
        settle(study, each, found)
        found = smaller(study, each, found, drawn)
    detail = describe(study, each, found)
    case = found.case
    many = len(case.jacobian) > SMALL
    return Row(
        each.name,
        "fails",
        tested,
        failing,
        detail,
        case.jacobian if many else trimmed(case.jacobian),
        case.losses if study.subject.reads_losses else None,
        dependent and general,
        each.contract,
    )


def groups(study: Study, each: Property, rows: dict[int, Tensor] | None) -> list[Group]:
    """All instances that a property speaks of."""
    subject = study.subject
    if rows is not None:
        return [
            made(study, ready(subject, x, updates=1 if count > 5 else 0))
            for count, x in rows.items()
        ]
    found = []
    numbers = torch.tensor([1 + instances.FAMILIES.index(f) for f in each.families]).long()
    for count in counts(subject, each):
        pool = study.pool(count)
        whole = pool.family == 0
        if each.where is not None and bool(whole.any()):
            whole = whole & each.where(pool.cases.jacobian)
        kept = (whole | torch.isin(pool.family, numbers)) & (pool.valid | each.everything)
        if each.grows:
            more = ready(subject, instances.generic("gaussian", count + 1, 1))
            if not bool(answers(subject, more)[1].any()):
                continue
        places = kept.nonzero().flatten()
        if each.most is not None:
            integer = places[pool.family[places] == 0]
            places = torch.cat([integer[: each.most], places[pool.family[places] > 0]])
        if len(places):
            cases = Case(*(x[places] for x in pool.cases))
            generic, free = pool.family[places] > 0, pool.independent[places]
            found.append(Group(cases, generic, free, pool.unit))
    return found


def made(study: Study, cases: Case) -> Group:
    """A group of given instances."""
    count, tasks = len(cases.losses), cases.losses.shape[-1]
    unit = study.unit(tasks)
    free = instances.independent(cases.jacobian)
    return Group(cases, torch.zeros(count, dtype=torch.bool), free, unit)


def check_group(study: Study, each: Property, group: Group) -> Tested:
    """A property of every instance of a group."""
    subject = study.subject
    few_tasks = group.cases.losses.shape[-1] <= BATCHED
    batch = None
    if subject.vmapped and few_tasks:
        batch = together(each.check, subject.evaluate, group.cases, group.unit)
    if batch is None:
        cases = Case(*(instances.pick(x, MOST) for x in group.cases))
        generic, free = (instances.pick(x, MOST) for x in (group.generic, group.independent))
        group = Group(cases, generic, free, group.unit)
        batch = one_by_one(each.check, subject.evaluate, cases, group.unit)
    count, updates = group.cases.losses.shape[:2]
    failed, skipped = torch.zeros(count, updates, dtype=torch.bool), 0
    if batch.outcome is not None:
        violation = batch.outcome.violation
        failed = (violation > tolerance(study, each)).any(1).expand(count, updates).clone()
        skipped = int((violation < 0).flatten(1).all(-1).sum())
    failed[list(batch.errors), 0] = True
    failing = failed.any(-1).nonzero().flatten().tolist()
    # An integer one before any other, the earliest update, the first in the order of the instances.
    plain = failed & ~group.generic[:, None]
    candidates = plain if bool(plain.any()) else failed
    update = int(candidates.any(0).nonzero()[0]) if failing else 0
    first = int(candidates[:, update].nonzero()[0]) if failing else 0
    return Tested(group, count - skipped, failing, update, first, batch)


def tolerance(study: Study, each: Property) -> float:
    return study.subject.tolerance if each.tolerance is None else each.tolerance


def alone(study: Study, each: Property, case: Case) -> Tested:
    """A property of one instance."""
    return check_group(study, each, made(study, Case(*(x[None] for x in case))))


def settle(study: Study, each: Property, found: Tested) -> None:
    """Raises where a failure in a group does not come again and the rule's answers are why.

    What fails by a hair may fail in a batch alone, where products round differently.
    """
    subject = study.subject
    if not subject.repeats or alone(study, each, found.case).failing:
        return
    here, tasks = found.case, found.group.cases.losses.shape[-1]
    one, (loop, fine) = Case(*(x[None] for x in here)), answers(subject, found.group.cases)
    again = subject._replace(vmapped=False)
    first, second = answers(again, one)[0], answers(again, one)[0]
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise Inconsistent("purity", REMEMBERS, here)
    if subject.vmapped and tasks <= BATCHED and bool(fine[found.first]):
        together_ = loop[found.first][None]
        if bool(differs(one, together_, first, found.group.unit).any()):
            how = f"vmap over {len(loop)} instances"
            seen = other_answer(together_[0], first[0], how, "in a loop")
            raise Inconsistent("vmapped == loop", seen, here)
    if found.first not in check_group(study, each, found.group).failing:
        raise Inconsistent("purity", REMEMBERS, here)


def smaller(study: Study, each: Property, found: Tested, drawn: bool) -> Tested:
    """The first integer Jacobian with fewer tasks that fails, of more than were tested so far.

    For a case that was drawn: the first with up to three tasks; or else the case itself, simplified
    as long as it fails, unless it has too many tasks to print. Without any of these `found`.
    """
    subject, tasks = study.subject, len(found.case.jacobian)
    for count in each.tasks:
        if count > 3 or (count >= tasks and not drawn):
            continue
        rows = instances.integers(count, deep=subject.vmapped)
        for part in (rows if each.where is None else rows[each.where(rows)]).split(PART):
            cases = ready(subject, part)
            kept = answers(subject, cases)[1] | each.everything
            if bool(kept.any()):
                group = made(study, Case(*(x[kept] for x in cases)))
                deeper = check_group(study, each, group)
                if deeper.failing:
                    return deeper._replace(first=deeper.failing[0])
    if not drawn or tasks > SMALL:
        return found

    def fails(candidate: Case) -> bool:
        one = Case(*(x[None] for x in candidate))
        if len(candidate.jacobian) < min(each.tasks):
            return False
        if each.where is not None and not bool(each.where(one.jacobian)[0]):
            return False
        valid = each.everything or bool(answers(subject, one)[1][0])
        return valid and bool(alone(study, each, candidate).failing)

    simplest = alone(study, each, shrink(found.case, fails))
    return simplest if simplest.failing else found


def describe(study: Study, each: Property, found: Tested) -> str:
    """What is seen at the counterexample."""
    i = found.first
    if i in found.batch.errors:
        return found.batch.errors[i]
    assert found.batch.outcome is not None
    limit = tolerance(study, each)
    broken = found.batch.outcome.violation[i] > limit  # [variant, update]
    update, variant = divmod(int(broken.mT.flatten().nonzero()[0]), len(broken))
    shown, place = found.batch.outcome, i
    case = found.case
    if len(case.jacobian) <= SMALL and study.subject.repeats:
        # Directions without the columns that are zero for every task, where that is how it fails.
        plain = alone(study, each, Case(trimmed(case.jacobian), case.losses)).batch.outcome
        if plain is not None and bool(plain.violation[0, variant, update] > limit):
            shown, place = plain, 0
    before, after = shown.before[place, variant, update], shown.after[place, variant, update]
    text = each.describe(len(case.jacobian), variant, before, after)
    return text + (f" (at update {update + 1})" if update else "")
