"""One property over all its instances, and the smallest that breaks it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cases as instances
from .cases import Case
from .evaluate import Batch, one_by_one, together
from .properties import Property
from .report import Row, trimmed
from .shrink import shrink
from .subject import Subject, finite, pool, ready

PART = 2000
"""Instances in one call of the deeper search."""

MOST = 100
"""Instances of one T that are tested one by one."""


class Tested(NamedTuple):
    """What came of one batch."""

    cases: Case  # those tested: not all of the batch, if it had to be looped over
    generic: Tensor
    tested: int
    failing: list[int]
    update: int  # the earliest at which one fails
    first: int  # the first that fails there
    batch: Batch


def search(subject: Subject, each: Property, rows: dict[int, Tensor] | None = None) -> Row:
    """The row of a property: over `rows` for each T, or over the integer Jacobians and the generic
    families that it names.
    """
    tested, failing, dependent, general = 0, 0, True, False
    worst: tuple[tuple[bool, int, int, int], Tested] | None = None
    for count, generic, cases in batches(subject, each, rows):
        found = check_batch(subject, each, cases, generic)
        tested += found.tested
        failing += len(found.failing)
        general |= bool(instances.independent(found.cases.jacobian).any())
        if found.failing:
            dependent &= not bool(instances.independent(found.cases.jacobian[found.failing]).any())
            rank = (bool(found.generic[found.first]), count, found.update, found.first)
            worst = min(worst or (rank, found), (rank, found), key=lambda x: x[0])
    if not tested:
        return Row(
            each.name,
            "not applicable",
            0,
            0,
            "no instance with valid weights that it speaks of",
            contract=each.contract,
        )
    if worst is None:
        return Row(each.name, "holds", tested, 0, contract=each.contract)
    (drawn, count, _, first), found = worst
    case = Case(*(x[first] for x in found.cases))
    if rows is None:
        case = smaller(subject, each, case, drawn)
    losses = case.losses if subject.reads_losses else None
    return Row(
        each.name,
        "fails",
        tested,
        failing,
        describe(subject, each, case),
        trimmed(case.jacobian),
        losses,
        dependent and general,
        each.contract,
    )


def batches(
    subject: Subject, each: Property, rows: dict[int, Tensor] | None
) -> list[tuple[int, Tensor, Case]]:
    """(T, which are no integer Jacobians, instances) of all that a property speaks of."""
    if rows is not None:
        given = [
            (count, ready(subject, x, updates=1 if count > 5 else 0)) for count, x in rows.items()
        ]
        return [
            (count, torch.zeros(len(cases.losses), dtype=torch.bool), cases)
            for count, cases in given
        ]
    found = []
    numbers = [1 + instances.FAMILIES.index(family) for family in each.families]
    for count in each.tasks:
        cases, family, valid = pool(subject, count)
        whole = (family == 0) & (True if each.where is None else each.where(cases.jacobian))
        kept = (whole | torch.isin(family, torch.tensor(numbers, dtype=torch.int64))) & (
            valid | each.everything
        )
        if each.grows and not bool(
            finite(subject, ready(subject, instances.generic("gaussian", count + 1, 1))).any()
        ):
            continue
        if bool(kept.any()):
            found.append((count, family[kept] > 0, Case(*(x[kept] for x in cases))))
    return found


def check_batch(
    subject: Subject, each: Property, cases: Case, generic: Tensor | None = None
) -> Tested:
    """A property of a batch; `generic` says which of them are no integer Jacobians, None that it
    does not matter.
    """
    if generic is None:
        generic = torch.zeros(len(cases.losses), dtype=torch.bool)
    batch = together(each.check, subject.evaluate, cases) if subject.vmapped else None
    if batch is None:
        cases, generic = (
            Case(*(instances.pick(x, MOST) for x in cases)),
            instances.pick(generic, MOST),
        )
        batch = one_by_one(each.check, subject.evaluate, cases)
    count, updates = cases.losses.shape[:2]
    failed, skipped = torch.zeros(count, updates, dtype=torch.bool), 0
    if batch.outcome is not None:
        violation = batch.outcome.violation
        failed = (violation > tolerance(subject, each)).any(1).expand(count, updates).clone()
        skipped = int((violation < 0).flatten(1).all(-1).sum())
    failed[list(batch.errors), 0] = True
    failing = failed.any(-1).nonzero().flatten().tolist()
    # An integer one before any other, the earliest update, the first in the order of the instances.
    candidates = failed & ~generic[:, None] if bool(failed[~generic].any()) else failed
    update = int(candidates.any(0).nonzero()[0]) if failing else 0
    first = int(candidates[:, update].nonzero()[0]) if failing else 0
    return Tested(cases, generic, count - skipped, failing, update, first, batch)


def tolerance(subject: Subject, each: Property) -> float:
    return subject.tolerance if each.tolerance is None else each.tolerance


def smaller(subject: Subject, each: Property, case: Case, drawn: bool) -> Case:
    """The first integer Jacobian with fewer tasks that fails, of more than were tested so far; or
    the case.

    For a case that was drawn: the first with up to three tasks; or else the case itself, simplified
    as long as it fails.
    """
    for count in each.tasks:
        if count > 3 or (count >= len(case.jacobian) and not drawn):
            continue
        rows = instances.integers(count, deep=subject.vmapped)
        for part in (rows if each.where is None else rows[each.where(rows)]).split(PART):
            cases = ready(subject, part)
            kept = finite(subject, cases) | each.everything
            if bool(kept.any()):
                found = check_batch(subject, each, Case(*(x[kept] for x in cases)))
                if found.failing:
                    return Case(*(x[found.failing[0]] for x in found.cases))

    def fails(candidate: Case) -> bool:
        one = Case(*(x[None] for x in candidate))
        if len(candidate.jacobian) < min(each.tasks) or (
            each.where is not None and not bool(each.where(one.jacobian)[0])
        ):
            return False
        return (each.everything or bool(finite(subject, one)[0])) and bool(
            check_batch(subject, each, one).failing
        )

    return shrink(case, fails) if drawn else case


def describe(subject: Subject, each: Property, case: Case) -> str:
    """What is seen at the counterexample."""
    batch = check_batch(subject, each, Case(*(x[None] for x in case))).batch
    if batch.errors:
        return batch.errors[0]
    assert batch.outcome is not None
    broken = batch.outcome.violation[0] > tolerance(subject, each)  # [variant, update]
    update, variant = divmod(int(broken.mT.flatten().nonzero()[0]), len(broken))
    # Directions without the columns that are zero for every task, where that is how it fails.
    plain = check_batch(
        subject, each, Case(trimmed(case.jacobian)[None], case.losses[None])
    ).batch.outcome
    shown = (
        plain
        if plain is not None
        and bool(plain.violation[0, variant, update] > tolerance(subject, each))
        else batch.outcome
    )
    text = each.describe(
        len(case.jacobian),
        variant,
        shown.before[0, variant, update],
        shown.after[0, variant, update],
    )
    return text + (f" (at update {update + 1})" if update else "")
