"""All properties of one rule."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ..core.checks import check_count
from ..core.expect import rule_name
from ..core.progress import progress_bar
from ..rules.common import as_rule, required_arguments
from ..testing.integers import trimmed
from ..types import Rule
from . import instances as instances_of
from .contracts import (
    FLOAT32,
    VALID,
    allow_low_losses,
    check_refusals,
    drop_absent,
    propagate_nan,
    refuse_absent,
)
from .execution import check_batching, check_purity, check_state
from .harness import EVERY, LONG, MANY, Extra, Finding, Harness, describe_error, quiet
from .instances import SMALL, Case
from .properties import PROPERTIES, Instance
from .report import Report, Row
from .search import search

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
        key: draws two numbers of tasks, one up to 12 and one beyond, next to T = 1 to 5 and 128;
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
    made, called = as_rule(rule), rule_name(rule)
    plain = not isinstance(rule, Rule) and required_arguments(rule) > 0  # of the Gramian alone
    unknown = [only] if isinstance(only, str) else [each for each in only if each not in NAMES]
    if unknown:
        raise ValueError(
            f"only: expected a list of names among {', '.join(NAMES)}; got "
            f"{', '.join(map(repr, unknown))}"
        )
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    check_count(instances, "instances")
    label = name or called
    wanted = [each for each in NAMES if each in only or not only]
    generator = torch.get_rng_state()
    try:
        harness = Harness(made, plain, extra, tolerance, instances, key)
        rows = make_rows(harness, wanted, label, instances)
    finally:
        torch.set_rng_state(generator)
    return Report(label, rows, harness.updates, not_tried(harness, wanted))


def not_tried(harness: Harness, wanted: list[str]) -> tuple[str, ...]:
    """What a reader might take for tested, in words."""
    said = [f"numbers of tasks but {', '.join(map(str, (*harness.counts, MANY)))}"]
    left = [name for name in NAMES if name not in wanted]
    if left:
        said.append(f"{len(left)} properties that were not asked for")
    if not harness.vmapped:
        said.append("most integer Jacobians, since the rule cannot be vmapped")
    if harness.updates > 1:
        said.append(f"more than {LONG} updates")
    return (*said, "torch.compile", "other devices than the CPU")


def make_rows(harness: Harness, wanted: list[str], label: str, most: int) -> tuple[Row, ...]:
    """The rows, in the order of the table."""
    purity, batching = check_purity(harness), Finding(0)
    if harness.repeats:
        batching = check_batching(harness)
        harness.most = most if harness.vmapped else harness.most
    rows = {}
    for name in progress_bar(wanted, desc=f"audit of {label}", delay=3):
        if name == "vmapped == loop" and harness.repeats:
            rows[name] = row_of(harness, name, batching)
        elif name != "purity":
            rows[name] = make_row(harness, name)
    if "purity" in wanted:  # after all calls, each of which is compared with its inputs
        mutated = harness.mutation
        found = purity if mutated is None else mutated._replace(instances=purity.instances)
        rows["purity"] = row_of(harness, "purity", found)
    return tuple(rows[name] for name in wanted)


def make_row(harness: Harness, name: str) -> Row:
    """One line of the table."""
    if name == "valid weights":
        return search(harness, VALID)
    if not harness.repeats:
        return not_applicable(name, "the same input gives different answers")
    if name == "state round-trip":
        found = check_state(harness)
        return row_of(harness, name, found) if found else not_applicable(name, "it has no state")
    if name == "zero gradients":
        zeros = {count: torch.zeros(1, count, 1, dtype=torch.float64) for count in EVERY}
        return search(harness, VALID._replace(name=name), zeros)
    if name == "T = 128":
        return check_many(harness, name)
    if name == "NaN":
        if not harness.reads_gramian and not harness.reads_losses:
            return not_applicable(name, "weights depend on neither gradients nor losses")
        return search(harness, propagate_nan(harness.reads_gramian, harness.reads_losses))
    if name == "losses of 0 or below":
        if not harness.reads_losses:
            return not_applicable(name, "weights do not depend on losses")
        pools = [harness.pool(count) for count in (1, 2, 3)]
        weights = [pool.weights[pool.valid] for pool in pools]
        signed = all(bool((w >= -1e-9 * w.abs().sum(-1, keepdim=True)).all()) for w in weights)
        silent = check_refusals(harness)
        if silent.seen:
            return row_of(harness, name, silent)
        found = search(harness, allow_low_losses(signed))
        refused = not_applicable(name, "the rule refuses losses of 0 and below")
        return found if found.instances else refused
    if name == "absent tasks":
        pool = harness.pool(3)
        answers = zip(*pool.cases, pool.weights, strict=True)
        first = Instance(*next(answers), pool.unit)
        refuses, seen = refuse_absent(harness, first)
        if refuses:
            why = "the rule refuses batches in which a task is absent"
            return not_applicable(name, f"{why}: {seen}")
        if seen:
            broken = f"{seen} with task 1 absent"
            return row_of(harness, name, Finding(1, broken, Case(first.rows, first.losses)))
        return search(harness, drop_absent(harness.draws))
    if name == "preference" and harness.plain:
        return not_applicable(name, "a function of the Gramian does not see the preference")
    return search(
        harness, FLOAT32 if name == "float32" else next(x for x in PROPERTIES if x.name == name)
    )


def check_many(harness: Harness, name: str) -> Row:
    """Valid weights for many tasks, whose size does not leap from one T to the next."""
    families = ("gaussian", "agreeing", "spread")
    rows = {MANY: torch.cat([instances_of.generic(family, MANY, 1) for family in families])}
    tested = search(harness, VALID._replace(name=name), rows)
    if tested.status != "holds":
        return tested
    totals: list[float] = []
    counts = (*range(4, 17), 31, 32, 33, 63, 64, 65, MANY - 1, MANY, MANY + 1)
    for i, count in enumerate(counts):
        eye = torch.eye(count, dtype=torch.float64)
        case, seen = Case(eye, torch.full((1, count), 2.0, dtype=torch.float64)), ""
        try:
            with quiet():
                totals.append(float(harness.weigh(*case).abs().sum()))
        except Exception as error:
            seen = describe_error(error)
        if not seen and i and not totals[-2] / LEAP <= totals[-1] <= totals[-2] * LEAP:
            seen = (
                f"the weights of {count} orthonormal gradients add up to {totals[-1]:.4g}, those "
                f"of {counts[i - 1]} to {totals[-2]:.4g}"
            )
        if seen:
            return row_of(harness, name, Finding(tested.instances, seen, case))
    return tested


LEAP = 4.0
"""Sums of weights of orthonormal gradients grow at most that much from one number of tasks to the
next one tested, which is at most twice as many.
"""


def not_applicable(name: str, why: str) -> Row:
    """A line that says why there is nothing to say."""
    return Row(name, "not applicable", 0, 0, why, contract=name in CONTRACTS)


def row_of(harness: Harness, name: str, finding: Finding) -> Row:
    """The row of a test of the whole rule."""
    case = finding.case
    if finding.seen and case is not None:
        jacobian = trimmed(case.jacobian) if len(case.jacobian) <= SMALL else case.jacobian
        losses = case.losses if harness.reads_losses else None
        return Row(
            name, "fails", finding.instances, 1, finding.seen, jacobian, losses, contract=True
        )
    if not finding.instances:
        return not_applicable(name, "no instance with valid weights")
    return Row(name, "holds", finding.instances, 0, contract=True)
