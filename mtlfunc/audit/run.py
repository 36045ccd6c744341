"""All properties of one rule."""

from collections.abc import Iterable
from typing import Any

import torch
from numpy import random as numpy_random

from ..core.checks import check_count
from ..core.compiling import COMPILER
from ..core.expect import not_measured, quoted, rule_name
from ..core.progress import progress_bar
from ..rules.common import as_rule, required_arguments
from ..testing.integers import trimmed
from ..types import GRAMIANS, Rule
from .contracts import CONTRACTS, VALID, Test
from .harness import LONG, MANY, Extra, Finding, Harness, Inapplicable
from .instances import SMALL
from .properties import PROPERTIES
from .report import Report, Row
from .search import search

NAMES = (*(each.name for each in PROPERTIES), *CONTRACTS)
"""All properties, in the order of the table."""


def audit(
    rule: Any, *, only: Iterable[str] = (), instances: int = 400, tolerance: float = 1e-5,
    extra: Extra | None = None, name: str | None = None, key: int = 0,
) -> Report:  # fmt: skip
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
        key: draws two more numbers of tasks, up to 12 and beyond, next to T = 1 to 8 and 128.

    Returns:
        a `Report`. Print it, show it in a notebook, or take `.records()`; `report["non-conflict"]`
        is one row, with its counterexample as `.jacobian` and as code in `.literal`. A rule with
        state is tested at three successive updates on the same gradients, a random one with key 0.
        The same rule gives the same report, whatever was drawn before.

    Raises:
        TypeError: for what cannot be a rule.
        ValueError: for an unknown property, a tolerance outside (0, 1), no instances, or what the
            rule reads and `extra` does not measure.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> report = audit(mf.mean(), only=["convex weights", "non-conflict"])
        >>> report["convex weights"].status, report["non-conflict"].status
        ('holds', 'fails')
        >>> report["non-conflict"].literal
        'torch.tensor([[2.], [-1.]])'
        >>> mf.aggregate(mf.mean(), torch.tensor([[2.], [-1.]]))  # task 1, of gradient -1, rises
        tensor([0.5000])
    """
    made, called = as_rule(rule), rule_name(rule)
    plain = not isinstance(rule, Rule) and required_arguments(rule) > 0  # of the Gramian alone
    asked = [only] if isinstance(only, str) else list(only)
    if unknown := [each for each in asked if isinstance(only, str) or each not in NAMES]:
        got = ", ".join(map(repr, unknown))
        raise ValueError(f"only: expected a list of names among {', '.join(NAMES)}; got {got}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    check_count(instances, "instances")
    label = name or called
    wanted = [each for each in NAMES if each in asked or not asked]
    generators = torch.get_rng_state(), numpy_random.get_state()  # noqa: NPY002
    recorded = torch.is_grad_enabled()
    missing = not_measured(made, GRAMIANS)
    try:
        if missing and extra:
            two = torch.eye(2, dtype=torch.float64)
            missing = not_measured(made, GRAMIANS.union(extra(two, two[0] + 1)))
        if missing:
            raise ValueError(
                f"extra: {called} reads {quoted(missing)}; pass a function (jacobian [task, "
                "param], losses [task]) -> dict that measures it, mtlfunc.audit(rule, extra=...)"
            )
        harness = Harness(made, plain, extra, tolerance, instances, key)
        rows = make_rows(harness, wanted, label, instances)
    finally:
        torch.set_rng_state(generators[0])
        numpy_random.set_state(generators[1])  # noqa: NPY002
        torch.set_grad_enabled(recorded)
    return Report(label, rows, harness.updates, not_tried(harness, wanted))


def not_tried(harness: Harness, wanted: list[str]) -> tuple[str, ...]:
    """What a reader might take for tested, in words."""
    said = [f"numbers of tasks but {', '.join(map(str, (*harness.counts, MANY)))}"]
    if left := [name for name in NAMES if name not in wanted]:
        said.append(f"{len(left)} properties that were not asked for")
    if not harness.vmapped:
        said.append("most integer Jacobians, since the rule cannot be vmapped")
    if harness.updates > 1:
        said.append(f"more than {LONG} updates, and what is remembered of absent tasks")
    return (*said, "torch.compile", "other devices than the CPU")


@COMPILER.allowed()  # interpreted and compiled kernels differ in the last bits
def make_rows(harness: Harness, wanted: list[str], label: str, most: int) -> tuple[Row, ...]:
    """The rows, in the order of the table."""
    purity, batching = CONTRACTS["purity"](harness), Finding(0)
    if harness.repeats:
        batching = CONTRACTS["vmapped == loop"](harness)
        harness.most = most if harness.vmapped else harness.most
    known = {
        "purity": lambda rule: (rule.mutation or purity)._replace(instances=purity.instances),
        "vmapped == loop": lambda rule: batching,
    }
    # purity after all calls, each of which is compared with its inputs
    order = progress_bar(sorted(wanted, key="purity".__eq__), desc=f"audit of {label}", delay=3)
    rows = {name: make_row(harness, name, (CONTRACTS | known).get(name)) for name in order}
    return tuple(rows[name] for name in wanted)


def make_row(harness: Harness, name: str, contract: Test | None) -> Row:
    """One line of the table."""
    check = next((x for x in PROPERTIES if x.name == name), VALID)
    try:
        if not harness.repeats and name not in ("purity", "valid weights"):
            raise Inapplicable("the same input gives different answers")
        if name == "preference" and harness.plain:
            raise Inapplicable("a function of the Gramian does not see the preference")
        found = contract(harness) if contract else search(harness, check)
        if not found.instances and not found.seen:
            raise Inapplicable("no instance with valid weights")
    except Inapplicable as why:
        return Row(name, "not applicable", 0, 0, str(why), contract=contract is not None)
    if found.case is None:
        return Row(name, "holds", found.instances, 0, contract=contract is not None)
    rows, losses = found.case
    shown = trimmed(rows) if len(rows) <= SMALL else rows, losses if harness.reads_losses else None
    seen = found.instances, found.failures, found.seen, *shown, found.dependent
    return Row(name, "fails", *seen, contract is not None)
