"""Whether an argument is the part of a method that it should be; if not, what to do instead."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from ..types import (
    GRAMIANS,
    LAST_LOSSES,
    Balance,
    Heads,
    Optimizer,
    Probe,
    Rule,
    Step,
    TrainState,
)
from .checks import check_option

_PARTS: dict[type, tuple[str, str]] = {
    Rule: ("a rule", "mtlfunc.cagrad(0.4)"),
    Probe: ("a probe", "mtlfunc.jacobian('trunk.*')"),
    Optimizer: ("an optimizer", "mtlfunc.adam(1e-3)"),
    Balance: ("a balance", "mtlfunc.balance(losses_fn, rule, probe)"),
    Step: ("a step", "mtlfunc.descend(losses_fn, rule, probe, optimizer)"),
}


def _expect(part: type, value: Any) -> None:
    """Raise TypeError unless `value` is such a part: a pair of functions `init` and `update`."""
    shaped = callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    if shaped and type(value) not in _PARTS.keys() - {part}:
        return  # anything with that shape fits
    noun, example = _PARTS[part]
    argument, such = noun.split()[1], f"expected {noun}, such as {example}"
    if isinstance(value, part):
        raise TypeError(f"{argument}: init and update of {noun} must be functions, got {value}")
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, torch.optim.Optimizer):
        raise TypeError(
            f"{argument}: got torch.optim.{kind.__name__}, and {such}; "
            "a Balancer leaves the optimizer to your loop (or takes it as metric=)"
            if part is Rule
            else f"{argument}: got torch.optim.{kind.__name__}, which moves parameters in place, "
            "but a step is a pure function; use mtlfunc.adam(lr) or mtlfunc.sgd(lr), or keep it in "
            "a loop of mtlfunc.balance, mtlfunc.assign_gradients and optimizer.step()"
        )
    expected = f"{argument}: {such}, got"
    if type(value) in _PARTS:
        raise TypeError(
            f"{expected} {_describe(value)}; the order is balance(losses_fn, rule, probe) and "
            "descend(losses_fn, rule, probe, optimizer)"
        )
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        wrap = ", or mtlfunc.stateless(f) where f gives weights from a Gramian"
        raise TypeError(
            f"{expected} the function {name} itself; call it, {name}(...), if it makes one"
            f"{wrap if part is Rule else ''}"
        )
    raise TypeError(f"{expected} {_describe(value)}")


expect_rule: Callable[[Any], None] = partial(_expect, Rule)
expect_probe: Callable[[Any], None] = partial(_expect, Probe)
expect_optimizer: Callable[[Any], None] = partial(_expect, Optimizer)


def expect_solver(value: Any) -> None:
    """Raise TypeError unless `value` is None or can be called with a problem."""
    known = torch.compiler.is_compiling() or value is None
    if not (known or (callable(value) and _binds(value, 1))):
        raise TypeError(
            "solver: expected what the solvers of mtlfunc.solvers return when they are called, "
            f"such as mtlfunc.solvers.auto(), got {_describe(value)}"
        )


def expect_measured(rule: Rule, probe: Probe, *, metric: bool = False, cure: str = "") -> None:
    """Raise TypeError unless these are a rule and a probe; ValueError, with a `cure`, unless the
    probe measures what the rule reads, also in a `metric`.
    """
    expect_rule(rule)
    expect_probe(probe)
    measures = reads_of(probe, "probe", "measures")
    if metric and not getattr(probe, "metric", False):
        raise ValueError(
            "metric: this probe does not measure gradients of parameters in an optimizer's metric; "
            "mtlfunc.jacobian, moving_average, excess_risk and double_sampling do, also inside "
            "second_evaluation"
        )
    missing, reads = not_measured(rule, measures, metric=metric), reads_of(rule) or set()
    expect_carried(rule, missing)
    if missing:
        if "gramian" in reads and reads & {"cross_gramian", "second_losses"}:
            cure = "no probe measures both; wrap another rule, or use normalize(rule, by='loss')"
        raise ValueError(
            f"rule: {rule_name(rule)} reads {quoted(missing)}, but the probe measures "
            f"{quoted(measures or ()) or 'the losses alone'}; "
            f"{cure or f'use {probe_for(rule)} as probe'}"
        )


def expect_carried(rule: Rule, missing: frozenset[str]) -> None:
    """Raise ValueError where an optimizer, and not a probe, says what is missing."""
    if "carried" in missing:
        raise ValueError(
            f"rule: {rule_name(rule)} reads 'carried', what the optimizer carries along from "
            "earlier steps; say which one steps, mtlfunc.Balancer(module, rule, metric=optimizer) "
            "or mtlfunc.descend(..., optimizer, metric=True)"
        )


def reads_of(rule: Any, part: str = "rule", field: str = "reads") -> frozenset[str] | None:
    """What a rule reads or a probe measures; None if it does not say."""
    names = getattr(rule, field, None)
    if not isinstance(names, frozenset | None):
        raise TypeError(f"{part}: {field} is {names!r}; give a frozenset of names, or None")
    return names


def heads_of(rule: Any) -> Heads:
    """What a rule, or what has its shape, gives to parameters that are not shared."""
    heads: Heads = getattr(rule, "heads", "plain")
    check_option(heads, "rule: heads", get_args(Heads))
    return heads


def not_measured(
    rule: Rule, measures: frozenset[str] | None, *, metric: bool = False
) -> frozenset[str]:
    """What a rule reads and no probe measures; empty if there is nothing, or if unknown."""
    reads = reads_of(rule)
    if reads is None or measures is None:
        return frozenset()
    return reads - measures - _GIVEN - ({"carried"} if metric else set())


def expect_of_gramian(rule: Rule) -> None:
    """Raise for a rule that reads what a Gramian does not hold."""
    missing = not_measured(rule, GRAMIANS)
    expect_carried(rule, missing)
    if missing:
        raise ValueError(
            f"rule: {rule_name(rule)} reads {quoted(missing)}, which a Gramian does not hold; use "
            f"mtlfunc.balance(losses_fn, rule, {probe_for(rule)})"
        )


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, in the order of the alphabet."""
    return ", ".join(map(repr, sorted(names)))


def probe_for(rule: Rule) -> str:
    """A probe of this package that measures what a rule reads, as one writes it."""
    reads = reads_of(rule) or frozenset()
    made = next((call for name, call in _SOURCES.items() if name in reads), "mtlfunc.losses_only()")
    if not reads.isdisjoint(LAST_LOSSES):
        made = f"mtlfunc.second_evaluation({made})"
    if "trace" in reads:
        made = f"mtlfunc.physics.kernel_traces(residuals, {made})"
    known = {*_SOURCES, *LAST_LOSSES, *_GIVEN, "trace"}
    strange = reads - known
    own = f"a probe of your own that measures {quoted(strange)} (mtlfunc's: {quoted(known)})"
    return own if strange else made


_GIVEN = {"losses", "preference", "present"}  # with any probe
_SOURCES = {
    "excess_risk": "mtlfunc.excess_risk(...)",
    "cross_gramian": "mtlfunc.double_sampling(...)",
    "second_losses": "mtlfunc.double_sampling(...)",
    "tracked_gramian": "mtlfunc.moving_average(...)",
    "gramian": "mtlfunc.jacobian(...)",
}
"""The probe that measures a quantity; the most special probe comes first."""


def rule_name(rule: Any, unnamed: str = "rule") -> str:
    """The name of the function that made a rule, or of a function; `unnamed` for a lambda."""
    f, part = (rule.update, 0) if hasattr(rule, "update") else (rule, -1)
    if hasattr(f, "call") and getattr(f, "__name__", "") == "stateless":  # of a user's function
        user = next(iter(f.call.arguments.values()))
        f = f if getattr(user, "__name__", "") == "<lambda>" else user
    name = getattr(f, "__qualname__", type(f).__name__).split(".<locals>")[part].lstrip(".")
    return unnamed if name == "<lambda>" else name


def expect_losses_fn(value: Any) -> None:
    """Raise TypeError unless `value` can be called with parameters and a batch."""
    if isinstance(value, nn.Module) and not _binds(value, 2):
        raise TypeError(
            f"losses_fn: got the module {type(value).__name__} itself; write a function of "
            "(params, batch) that calls torch.func.functional_call(module, params, (inputs,)) and "
            "returns one loss a task"
        )
    expect_function(value, "losses_fn", "params, batch")


def expect_function(value: Any, argument: str, takes: str) -> None:
    """Raise TypeError unless `value` can be called with as many arguments as `takes` names."""
    wanted = f"{argument}: expected a function of ({takes})"
    if not callable(value):
        cure = "; pass what makes it, not called" if type(value) in _PARTS else ""
        raise TypeError(f"{wanted}, got {_describe(value)}{cure}")
    if torch.compiler.is_compiling():
        return
    names, signature = takes.split(", "), _signature(value)
    if not _binds(value, len(names)):
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{wanted}, but {name} takes {signature}")
    # whether the arguments have these names in another order, as far as that can be known
    found = [name for name in signature.parameters if name in names]
    if found != [name for name in names if name in found]:
        raise TypeError(f"{wanted}, in this order, but it takes {signature}")


def _binds(function: Any, count: int) -> bool:
    """Whether a function takes that many positional arguments, as far as that can be known."""
    try:
        _signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _signature(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # it may take anything
        return inspect.signature(lambda *_, **__: None)


def expect_state(value: Any, kind: type) -> None:
    """Raise TypeError unless `value` is the state that `init` of a step returns."""
    if isinstance(value, kind):
        return
    if isinstance(value, TrainState):
        cure = "pass its .balance"
    elif isinstance(value, tuple) and value and isinstance(value[0], kind):
        cure = "unpack what update returns"
    else:
        cure = "start with state = init(params, batch), then pass on what update returns"
    raise TypeError(f"state: expected what init returned, got {_describe(value)}; {cure}")


def _describe(value: Any) -> str:
    if type(value) in _PARTS:
        return _PARTS[type(value)][0]
    named = value is None or isinstance(value, str)
    return repr(value) if named else f"an object of type {type(value).__name__}"
