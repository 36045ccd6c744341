"""All properties of one rule."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from . import cases as instances_of
from .cases import Case
from .contracts import FLOAT32, VALID, low_loss, missing, nan
from .evaluate import Extra, as_rule, describe_error, quiet
from .program import REMEMBERS, Finding, Inconsistent, resumes, same
from .properties import PROPERTIES, Property
from .report import Report, Row, trimmed
from .search import search
from .subject import BATCHED, MANY, Study, few, recorded, study

CONTRACTS = (
    "valid weights",
    "vmapped == loop",
    "state round-trip",
    "purity",
    "zero gradients",
    "NaN",
    "losses of 0 or below",
    "T = 128",
    "float32",
    "absent tasks",
)
"""How a rule computes: a failure is a defect."""

NAMES = (*(each.name for each in PROPERTIES), *CONTRACTS)
"""All properties, in the order of the table."""


def audit(
    rule: Any,
    *,
    only: Collection[str] = (),
    instances: int = 400,
    tolerance: float = 1e-5,
    extra: Extra | None = None,
    name: str | None = None,
    key: int = 0,
) -> Report:
    """What a rule promises and how it computes, with the smallest instance that breaks each.

    Whatever the rule does (raise, answer with the wrong shape or type, change its inputs) is a
    finding. An instance without valid weights is reported under "valid weights" and tested by no
    other property; of a rule whose answers do not repeat nothing else is tested.

    Args:
        rule: a `Rule`, a factory of one that needs no arguments, or a function of the Gramian
            `[task, task]`, or of the Gramian and the losses `[task]`, that gives weights `[task]`.
        only: names of the properties to test, those of the table; empty is all.
        instances: the most integer Jacobians for each T of 1, 2 and 3; 50 at most for a rule that
            cannot be vmapped.
        tolerance: violations up to this are rounding, relative to Σ|w_t|‖g_t‖ where directions are
            compared. A rule with an iterative solver inside may need more.
        extra: `(jacobian, losses) -> dict`, for rules that read `geometry.extra`.
        name: of the rule in the table; None is its function's.
        key: draws two numbers of tasks, one up to 12 and one beyond, beside T = 1 to 5 and 128;
            another key tests others.

    Returns:
        a `Report`. Print it, show it in a notebook, or take `.records()`; `report["non-conflict"]`
        is one row, with its counterexample as `.jacobian` and as code in `.literal`. A rule with
        state is tested at three successive updates on the same gradients, a random one with key 0.
        The same rule gives the same report, whatever was drawn before.

    Raises:
        TypeError: for what cannot be a rule.
        ValueError: for an unknown property, a tolerance outside (0, 1) or no instances.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> report = audit(mf.mean(), only=["convex weights", "non-conflict"])
        >>> report["convex weights"].status, report["non-conflict"].status
        ('holds', 'fails')
        >>> report["non-conflict"].literal
        'torch.tensor([[2.], [-1.]])'
        >>> mf.aggregate(mf.mean(), torch.tensor([[2.], [-1.]]))  # task 2, of gradient -1, rises
        tensor([0.5000])
    """
    made, called, plain = as_rule(rule)
    unknown = [only] if isinstance(only, str) else [each for each in only if each not in NAMES]
    if unknown:
        raise ValueError(
            f"only: expected a list of names among {', '.join(NAMES)}; got "
            f"{', '.join(map(repr, unknown))}"
        )
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    if instances < 1:
        raise ValueError(f"instances: expected a number >= 1, got {instances}")
    label = name or called
    wanted = [each for each in NAMES if each in only or not only]
    generator = torch.get_rng_state()
    try:
        subject = study(made, plain, extra, tolerance, instances, key)
        rows = all_rows(subject, wanted, label, instances)
    finally:
        torch.set_rng_state(generator)
    return Report(label, rows, subject.subject.updates)


def all_rows(found: Study, wanted: list[str], label: str, most: int) -> tuple[Row, ...]:
    """The rows, from the start again where an answer did not repeat, which is a finding, too."""
    from tqdm import tqdm

    while True:
        bar = tqdm(wanted, desc=f"audit of {label}", leave=False, delay=3)
        try:
            rows = tuple(row(found, each) for each in bar)
            if found.subject.repeats and "purity" in wanted:
                once_more(found)
            return rows
        except Inconsistent as seen:
            bar.close()
            found.subject = found.subject.after(seen, most)
            found.pools.clear()


def once_more(found: Study) -> None:
    """Purity again, after thousands of calls: what counts them may have waited."""
    for one, other, case in zip(
        found.first, recorded(found.subject), few(found.subject), strict=False
    ):
        if not same(one, other):
            raise Inconsistent("purity", REMEMBERS, case)


def row(found: Study, name: str) -> Row:
    """One line of the table."""
    subject = found.subject
    if name == "purity":
        return outside(found, name, subject.purity)
    if name == "valid weights":
        return search(found, VALID)
    if not subject.repeats:
        return none(name, "the same input gives different answers")
    if name == "vmapped == loop":
        for count in (1, 2, 3) if subject.vmapped else ():
            found.pool(count)  # compares answers of large batches, too
        return outside(found, name, subject.batching)
    if name == "state round-trip":
        cases = [case for case in few(subject) if len(case.jacobian) <= BATCHED]
        resumed = resumes(subject.rule, cases, subject.extra)
        return outside(found, name, resumed) if resumed else none(name, "the rule has no state")
    if name == "zero gradients":
        zeros = {count: torch.zeros(1, count, 1, dtype=torch.float64) for count in range(1, 6)}
        return search(found, VALID._replace(name=name), zeros)
    if name == "T = 128":
        return many(found, name)
    if name == "NaN" and not subject.reads_gramian and not subject.reads_losses:
        return none(name, "weights depend on neither gradients nor losses")
    if name == "losses of 0 or below" and not subject.reads_losses:
        return none(name, "weights do not depend on losses")
    if name == "absent tasks" and subject.plain:
        return none(name, "a function of the Gramian does not see who is absent")
    tested = search(found, property_of(found, name))
    if tested.instances:
        return tested
    if name == "absent tasks":
        return replace(tested, detail="the rule refuses batches in which a task is absent")
    if name == "losses of 0 or below":
        return replace(tested, detail="the rule refuses losses of 0 and below")
    return tested


def property_of(found: Study, name: str) -> Property:
    """The check behind a line of the table."""
    subject = found.subject
    if name == "NaN":
        return nan(subject.reads_gramian, subject.reads_losses)
    if name == "losses of 0 or below":
        return low_loss(all(found.pool(count).positive for count in (1, 2, 3)))
    if name == "absent tasks":
        return missing(subject.draws)
    return FLOAT32 if name == "float32" else next(x for x in PROPERTIES if x.name == name)


def many(found: Study, name: str) -> Row:
    """Valid weights for many tasks, whose size does not leap from one T to the next."""
    subject = found.subject
    families = ("gaussian", "agreeing", "spread")
    rows = {MANY: torch.cat([instances_of.generic(family, MANY, 1) for family in families])}
    tested = search(found, VALID._replace(name=name), rows)
    if tested.status != "holds":
        return tested
    before: tuple[int, float] | None = None
    for count in (*range(4, 17), 31, 32, 33, 63, 64, 65, MANY - 1, MANY, MANY + 1):
        eye = torch.eye(count, dtype=torch.float64)
        losses = torch.full((1, count), 2.0, dtype=torch.float64)
        with quiet():
            try:
                total = float(subject.evaluate(eye, losses).abs().sum())
            except Exception as error:
                seen = describe_error(error)
                return outside(found, name, Finding(tested.instances, seen, Case(eye, losses)))
        if before and not before[1] / LEAP <= total <= before[1] * LEAP:
            seen = (
                f"the weights of {count} orthonormal gradients add up to {total:.4g}, those of "
                f"{before[0]} to {before[1]:.4g}"
            )
            return outside(found, name, Finding(tested.instances, seen, Case(eye, losses)))
        before = (count, total)
    return tested


LEAP = 4.0
"""Sums of weights of orthonormal gradients grow at most that much from one number of tasks to the
next one tested, which is at most twice as many.
"""


def none(name: str, why: str) -> Row:
    """A line that says why there is nothing to say."""
    return Row(name, "not applicable", 0, 0, why, contract=name in CONTRACTS)


def outside(found: Study, name: str, finding: Finding) -> Row:
    """The row of a contract that looks at the rule from outside."""
    case = finding.case
    if finding.seen and case is not None:
        few_tasks = len(case.jacobian) <= instances_of.SMALL
        jacobian = trimmed(case.jacobian) if few_tasks else case.jacobian
        losses = case.losses if found.subject.reads_losses else None
        seen = finding.seen
        return Row(name, "fails", finding.instances, 1, seen, jacobian, losses, contract=True)
    if not finding.instances:
        return none(name, "no instance with valid weights")
    return Row(name, "holds", finding.instances, 0, contract=True)
