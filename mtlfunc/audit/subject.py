"""What is found out about a rule before its properties are tested, and the instances to test them
on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..types import Rule
from . import cases as instances
from .cases import Case
from .contracts import Finding, batched, pure, valid
from .evaluate import Evaluate, Extra, Outcome, evaluator, one_by_one, quiet, start, together

UPDATES = 3
"""That a rule with state is tested at."""

GENERIC = 16
"""Instances of every generic family for each T."""

LOOPED = 50
"""The most integer Jacobians for each T where a rule has to be called one instance at a time."""


class Pool(NamedTuple):
    """All instances with T tasks, in one batch: the integer Jacobians first, then every generic
    family.
    """

    cases: Case
    family: Tensor  # 0 for the integer ones, 1 + its number for a family of `cases.FAMILIES`
    valid: Tensor  # whether the rule has valid weights


class Subject(NamedTuple):
    """A rule under audit."""

    rule: Rule
    plain: bool  # whether it was given as a function of the Gramian
    evaluate: Evaluate
    extra: Extra | None
    tolerance: float
    reads_losses: bool
    reads_gramian: bool
    draws: bool  # whether weights depend on the key
    updates: int  # that each answer is tested at
    repeats: bool  # whether the same input gives the same answer
    purity: Finding
    vmapped: bool  # whether answers under vmap can be used
    batching: Finding
    most: int  # integer Jacobians for each T
    pools: dict[int, Pool]  # by T, filled when they are first needed


def study(rule: Rule, plain: bool, extra: Extra | None, tolerance: float, most: int) -> Subject:
    """The facts that decide how the rule is tested."""
    evaluate = evaluator(rule, extra)
    found = traits(rule, evaluate)
    nothing = Finding(0)
    subject = Subject(
        rule,
        plain,
        evaluate,
        extra,
        tolerance,
        *found,
        True,
        nothing,
        False,
        nothing,
        min(most, LOOPED),
        {},
    )
    purity, repeats = pure(rule, few(subject), extra)
    subject = subject._replace(purity=purity, repeats=repeats)
    if not repeats:
        return subject
    batching, vmapped = batched(evaluate, samples(subject))
    return subject._replace(
        batching=batching, vmapped=vmapped, most=most if vmapped else min(most, LOOPED)
    )


def traits(rule: Rule, evaluate: Evaluate) -> tuple[bool, bool, bool, int]:
    """Whether weights depend on the losses, on the Gramian and on the key, and how many updates to
    test: several where there is a state.
    """
    losses = gramian = draws = state = False
    with quiet():
        for count in (2, 3):
            rows = instances.integers(count)[[2, 5, 9, 14]]
            level, falling = instances.patterns(count, UPDATES, True)
            try:
                plain = [evaluate(each, level) for each in rows]
                state |= bool(tree_leaves(start(rule, level[0])))
                gramian |= any(not torch.equal(each, plain[0]) for each in plain)
                losses |= any(
                    not torch.equal(evaluate(each, falling), old)
                    for each, old in zip(rows, plain, strict=True)
                )
                draws |= any(
                    not torch.equal(evaluate(each, level, torch.tensor(1)), old)
                    for each, old in zip(rows, plain, strict=True)
                )
            except Exception:  # for valid weights to report
                continue
    return losses, gramian, draws, UPDATES if state else 1


def ready(subject: Subject, rows: Tensor, updates: int = 0) -> Case:
    """Jacobians with their losses."""
    return instances.with_losses(
        rows, instances.patterns(rows.shape[1], updates or subject.updates, subject.reads_losses)
    )


def few(subject: Subject) -> list[Case]:
    """A few small ones whose gradients differ in length and angle, one by one."""
    return [
        Case(*case)
        for count in (2, 3, 1)
        for case in zip(*ready(subject, instances.integers(count)[[0, 3, 7]]), strict=True)
    ]


def samples(subject: Subject) -> dict[int, Case]:
    """A few instances of every T that are valid one by one."""
    found = {}
    for count in (1, 2, 3, 5):
        cases = ready(
            subject,
            instances.pick(instances.integers(count), 8)
            if count < 5
            else instances.generic("gaussian", 5, 4),
        )
        fine = finite(subject, cases)
        if bool(fine.any()):
            found[count] = Case(*(x[fine] for x in cases))
    return found


def pool(subject: Subject, count: int) -> Pool:
    """All instances of T = count tasks."""
    if count not in subject.pools:
        whole = instances.pick(instances.integers(count), subject.most) if count <= 3 else None
        families = (
            [instances.generic(family, count, GENERIC) for family in instances.FAMILIES]
            if count > 1
            else []
        )
        width = count + 2
        parts = [
            instances.widened(rows, width) for rows in ([] if whole is None else [whole]) + families
        ]
        first = 0 if whole is not None else 1
        cases = ready(subject, torch.cat(parts))
        family = torch.cat([torch.full((len(rows),), first + i) for i, rows in enumerate(parts)])
        subject.pools[count] = Pool(
            cases,
            family.repeat_interleave(len(cases.losses) // len(family)),
            finite(subject, cases),
        )
    return subject.pools[count]


def finite(subject: Subject, cases: Case) -> Tensor:
    """Which instances have valid weights, up to their dtype."""

    def check(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
        return valid(lambda *x, **_: evaluate(*x), rows, losses)

    found = (together(check, subject.evaluate, cases) if subject.vmapped else None) or one_by_one(
        check, subject.evaluate, cases
    )
    if found.outcome is None:
        return torch.zeros(len(cases.losses), dtype=torch.bool)
    return (found.outcome.violation == 0).flatten(1).all(-1)
