"""What is found out about a rule before its properties are tested, and the instances for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..core import random
from ..types import Rule
from . import cases as instances
from .cases import SMALL, Case
from .evaluate import Evaluate, Extra, describe_error, evaluator, quiet, start
from .program import Finding, Inconsistent, at, batched, differs, other_answer, pure
from .properties import Property, spent

UPDATES = 3
"""Over which a rule with state is tested."""

MANY = 128
"""The largest number of tasks."""

GENERIC = 16
"""Instances of every generic family for T <= 3; half as many up to BATCHED, then two, then one."""

BATCHED = 5
"""The most tasks of instances that go through the rule in one vmap; more go one by one."""

LOOPED = 50
"""The most integer Jacobians for each T where a rule has to be called one instance at a time."""

PLAIN = (0, *(1 + instances.FAMILIES.index(family) for family in ("gaussian", "agreeing")))
"""Families whose answers have the usual size."""

LOOKED = 3
"""Instances of a batch whose answers are compared with those of a loop."""


class Pool(NamedTuple):
    """All instances with T tasks, in one batch: integer Jacobians first, then generic families."""

    cases: Case
    family: Tensor  # 0 for the integer ones, 1 + its number for a family of `cases.FAMILIES`
    valid: Tensor  # whether the rule has valid weights
    independent: Tensor  # whether the gradients are linearly independent
    unit: float  # what Σ|w_t|‖g_t‖ / max‖g_t‖ usually is
    positive: bool  # whether no valid weight is negative


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
    updates: int  # over which each answer is tested
    most: int  # integer Jacobians for each T
    between: tuple[int, ...]  # numbers of tasks that the audit's key draws
    repeats: bool = True  # whether the same input gives the same answer
    purity: Finding = Finding(0)
    vmapped: bool = False  # whether answers under vmap can be used
    batching: Finding = Finding(0)

    def after(self, seen: Inconsistent, most: int) -> Subject:
        """What is known once an answer did not come again."""
        if seen.name == "purity":
            return self._replace(purity=seen.finding, repeats=False)
        return self._replace(batching=seen.finding, vmapped=False, most=min(most, LOOPED))


class Study:
    """A subject with its instances, made when they are first needed."""

    def __init__(self, subject: Subject, first: list[Tensor | None]) -> None:
        self.subject = subject
        self.first = first  # answers before all others
        self.pools: dict[int, Pool] = {}

    def pool(self, count: int) -> Pool:
        """All instances of T = count tasks."""
        if count not in self.pools:
            self.pools[count] = make_pool(self.subject, count)
        return self.pools[count]

    def unit(self, count: int) -> float:
        return self.pool(count).unit


def study(
    rule: Rule, plain: bool, extra: Extra | None, tolerance: float, most: int, key: int
) -> Study:
    """The facts that decide how the rule is tested."""
    evaluate = evaluator(rule, extra)
    draw = random.uniform(random.key(key), (2,), torch.float64).tolist()
    between = (6 + int(draw[0] * (SMALL - 5)), SMALL + 1 + int(draw[1] * 20))
    reads = traits(rule, evaluate)
    few_of = min(most, LOOPED)
    subject = Subject(rule, plain, evaluate, extra, tolerance, *reads, few_of, between)
    first = recorded(subject)
    purity, repeats = pure(rule, few(subject), extra)
    subject = subject._replace(purity=purity, repeats=repeats)
    if not repeats:
        return Study(subject, first)
    batching, vmapped = batched(evaluate, samples(subject))
    most = most if vmapped else few_of
    return Study(subject._replace(batching=batching, vmapped=vmapped, most=most), first)


def traits(rule: Rule, evaluate: Evaluate) -> tuple[bool, bool, bool, int]:
    """Whether weights depend on losses, Gramian and key, and over how many updates to test."""
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
    updates = updates or subject.updates
    read = subject.reads_losses and rows.shape[1] <= SMALL
    return instances.with_losses(rows, instances.patterns(rows.shape[1], updates, read))


def few(subject: Subject) -> list[Case]:
    """A few small cases whose gradients differ in length and angle, then two or one of every T."""
    rows = [instances.integers(count)[[0, 3, 7]] for count in (2, 3, 1)]
    for count in (*range(4, 11), *subject.between, MANY):
        families = ("gaussian", "stationary") if count <= SMALL else ("gaussian",)
        rows.append(torch.cat([instances.generic(family, count, 1) for family in families]))
    return [Case(*case) for x in rows for case in zip(*ready(subject, x), strict=True)]


def recorded(subject: Subject) -> list[Tensor | None]:
    """The weights of the first small cases; None where there are none."""
    found: list[Tensor | None] = []
    with quiet():
        for case in few(subject)[:RECORDED]:
            try:
                found.append(subject.evaluate(*case).detach().clone())
            except Exception:  # for valid weights to report
                found.append(None)
    return found


RECORDED = 9


def samples(subject: Subject) -> dict[int, tuple[Case, float]]:
    """A few instances of every T that are valid one by one, and their unit."""
    found = {}
    for count in (*range(1, 9), *subject.between, MANY):
        rows = (
            instances.pick(instances.integers(count), 8)
            if count <= 3
            else instances.generic("gaussian", count, 3 if count <= SMALL else 1)
        )
        cases = ready(subject, rows, 1 if count > SMALL else 0)
        weights, fine = answers(subject, cases)
        if bool(fine.any()):
            unit = usual(cases.jacobian[fine], weights[fine])
            found[count] = Case(*(x[fine] for x in cases)), unit
    return found


def make_pool(subject: Subject, count: int) -> Pool:
    """All instances of T = count tasks, and what the rule answers to them."""
    size = GENERIC // (1 if count <= 3 else 2 if count <= BATCHED else 8)
    size = size if count <= SMALL else 1
    whole = [instances.pick(instances.integers(count), subject.most)] if count <= 3 else []
    families = instances.FAMILIES if count > 1 else ()
    parts = [*whole, *(instances.generic(family, count, size) for family in families)]
    width = max(part.shape[-1] for part in parts)
    rows = torch.cat([instances.widened(part, max(width, count + 2)) for part in parts])
    first = 0 if whole else 1
    family = torch.cat([torch.full((len(x),), first + i) for i, x in enumerate(parts)])
    # of many tasks one update does: what a state does is seen on few
    cases = ready(subject, rows, 1 if count > SMALL else 0)
    weights, valid = answers(subject, cases)
    family = family.repeat_interleave(len(cases.losses) // len(family))
    plain = valid & torch.isin(family, torch.tensor(PLAIN))
    unit = usual(cases.jacobian[plain], weights[plain])
    if subject.repeats and subject.vmapped and count <= BATCHED:
        compare(subject, Case(*(x[valid] for x in cases)), weights[valid], unit)
    return Pool(
        cases,
        family,
        valid,
        instances.independent(cases.jacobian),
        unit,
        not bool((weights[valid] < -1e-9 * weights[valid].abs().sum(-1, keepdim=True)).any()),
    )


def usual(jacobian: Tensor, weights: Tensor) -> float:
    """The median of Σ|w_t|‖g_t‖ / max‖g_t‖ over instances and updates; 0 without any."""
    longest = torch.linalg.vector_norm(jacobian, dim=-1).amax(-1)
    some = longest > 0
    if not bool(some.any()):
        return 0.0
    shares = [
        spent(rows, w) / most
        for rows, w, most in zip(jacobian[some], weights[some], longest[some], strict=True)
    ]
    return float(torch.stack(shares).median())


def compare(subject: Subject, cases: Case, weights: Tensor, unit: float) -> None:
    """Raises where answers [case, update, task] of a batch are not those of a loop."""
    if not len(weights):
        return
    places = torch.linspace(0, len(weights) - 1, LOOKED).long().unique()
    picked = Case(*(x[places] for x in cases))
    with quiet():
        try:
            loop = torch.stack([subject.evaluate(*case) for case in zip(*picked, strict=True)])
        except Exception as error:
            seen = f"in a loop it {describe_error(error)}, but under vmap it does not"
            raise Inconsistent("vmapped == loop", seen, at(picked, 0)) from error
    wrong = differs(picked, weights[places], loop, unit)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        how = f"vmap over {len(weights)} instances"
        seen = other_answer(weights[places][i], loop[i], how, "in a loop")
        raise Inconsistent("vmapped == loop", seen, at(picked, i))


def answers(subject: Subject, cases: Case) -> tuple[Tensor, Tensor]:
    """Weights [case, update, task] as far as there are any, and which instances are valid."""
    count, updates, tasks = cases.losses.shape
    with quiet():
        if subject.vmapped and tasks <= BATCHED:
            try:
                found = torch.func.vmap(subject.evaluate)(*cases)
                return found, found.isfinite().flatten(1).all(-1)
            except Exception:  # whatever a rule may raise
                pass
        found = torch.full((count, updates, tasks), torch.nan, dtype=cases.losses.dtype)
        for i, case in enumerate(zip(*cases, strict=True)):
            try:
                found[i] = subject.evaluate(*case)
            except Exception:  # for valid weights to report
                continue
    return found, found.isfinite().flatten(1).all(-1)


def counts(subject: Subject, each: Property) -> tuple[int, ...]:
    """The numbers of tasks that a property is tested with."""
    between = subject.between if each.between else ()
    return (*each.tasks, *between, *((MANY,) if each.large else ()))
