"""All properties of one rule."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from . import cases as instances_of
from .contracts import FLOAT32, VALID, Finding, missing, nan, resumes
from .evaluate import Extra, as_rule
from .properties import PROPERTIES
from .report import Report, Row, trimmed
from .search import search
from .subject import Subject, few, study

MANY = 128

CONTRACTS = (
    "valid weights",
    "vmapped == loop",
    "state round-trip",
    "purity",
    "zero gradients",
    "NaN",
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
) -> Report:
    """Tests a rule for its mathematical properties and for how it computes, and finds the smallest
    instance that breaks each.

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

    Returns:
        a `Report`. Print it, show it in a notebook, or take `.records()`; `report["non-conflict"]`
        is one row, with its counterexample as `.jacobian` and as code in `.literal`. A rule with
        state is tested at three successive updates on the same gradients, a random one with key 0.
        The same rule gives the same report, whatever was drawn before.

    Whatever the rule does (raise, answer with the wrong shape or type, change its inputs) is a
    finding. An instance without valid weights is reported under "valid weights" and tested by no
    property of character; of a rule whose answers do not repeat nothing else is tested.

    Raises:
        TypeError: for what cannot be a rule. ValueError: for an unknown property, a tolerance
        outside (0, 1) or no instances.

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
    from tqdm import tqdm

    generator = torch.get_rng_state()
    try:
        subject = study(made, plain, extra, tolerance, instances)
        rows = tuple(
            row(subject, each)
            for each in tqdm(wanted, desc=f"audit of {label}", leave=False, delay=3)
        )
    finally:
        torch.set_rng_state(generator)
    return Report(label, rows, subject.updates)


def row(subject: Subject, name: str) -> Row:
    """One line of the table."""
    if name == "purity":
        return found(subject, name, subject.purity)
    if name == "valid weights":
        return search(subject, VALID)
    if not subject.repeats:
        return Row(
            name,
            "not applicable",
            0,
            0,
            "the same input gives different answers",
            contract=name in CONTRACTS,
        )
    if name == "vmapped == loop":
        return found(subject, name, subject.batching)
    if name == "state round-trip":
        resumed = resumes(subject.rule, few(subject), subject.extra)
        return (
            found(subject, name, resumed)
            if resumed
            else Row(name, "not applicable", 0, 0, "the rule has no state", contract=True)
        )
    if name == "zero gradients":
        return search(
            subject,
            VALID._replace(name=name),
            {count: torch.zeros(1, count, 1, dtype=torch.float64) for count in (1, 2, 3)},
        )
    if name == "T = 128":
        rows = [
            instances_of.generic(family, MANY, 1) for family in ("gaussian", "agreeing", "spread")
        ]
        return search(subject, VALID._replace(name=name), {MANY: torch.cat(rows)})
    if name == "NaN":
        if not subject.reads_gramian and not subject.reads_losses:
            return Row(
                name,
                "not applicable",
                0,
                0,
                "weights depend on neither gradients nor losses",
                contract=True,
            )
        return search(subject, nan(subject.reads_gramian, subject.reads_losses))
    if name == "absent tasks":
        if subject.plain:
            return Row(
                name,
                "not applicable",
                0,
                0,
                "a function of the Gramian does not see who is absent",
                contract=True,
            )
        tested = search(subject, missing(subject.draws))
        return (
            tested
            if tested.instances
            else replace(tested, detail="the rule refuses batches in which a task is absent")
        )
    return search(
        subject,
        FLOAT32 if name == FLOAT32.name else next(each for each in PROPERTIES if each.name == name),
    )


def found(subject: Subject, name: str, finding: Finding) -> Row:
    """The row of a property that looks at the rule from outside."""
    if finding.seen and finding.case is not None:
        losses = finding.case.losses if subject.reads_losses else None
        return Row(
            name,
            "fails",
            finding.instances,
            1,
            finding.seen,
            trimmed(finding.case.jacobian),
            losses,
            contract=True,
        )
    if not finding.instances:
        return Row(name, "not applicable", 0, 0, "no instance with valid weights", contract=True)
    return Row(name, "holds", finding.instances, 0, contract=True)
