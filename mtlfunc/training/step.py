"""A training step as a pure function: probe, rule and optimizer composed; and many of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from ..core import random
from ..core.checks import (
    all_present,
    check_finite,
    check_gradients,
    check_params,
    is_pair,
    transformed,
)
from ..types import (
    Balance,
    Batch,
    Geometry,
    Info,
    LossesFn,
    Optimizer,
    Params,
    Probe,
    Rule,
    State,
    Step,
    TrainState,
)

Reduction = Literal["mean", "sum"]


class BalanceState(NamedTuple):
    probe: State
    rule: State


def balance(
    losses_fn: LossesFn,
    rule: Rule,
    probe: Probe,
    *,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> Balance:
    """A step without an optimizer: parameters and a batch in, one gradient out.

    Args:
        losses_fn: stateless, `(params, batch) -> losses`: a vector `[task]`, or a tuple or dict of
            T scalars.
        rule: turns geometry into weights.
        probe: measures the geometry and combines.
        reduction: `"mean"`: with rule `mean()` the gradient is that of the mean loss; `"sum"`
            multiplies everything by T, or by the number of present tasks.
        has_aux: `losses_fn` returns `(losses, aux)`; aux, a pytree of tensors, is handed on in
            `Info.aux`.

    Returns:
        `init(params, batch, key=0) -> state` (one forward; key is an integer or a 0-d integer
        tensor) and `update(params, batch, state) -> (grads, state, info)`; grads have the names and
        shapes of params.

    Raises:
        ValueError: for NaN or infinite losses, gradients or weights, where they can be seen (on
            CPU, outside transforms); elsewhere they end up as NaN in grads.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction={reduction!r}: expected "mean" or "sum"')

    def declared(params: Params, batch: Batch) -> Any:
        out = losses_fn(params, batch)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError("has_aux=True, but losses_fn did not return a pair (losses, aux)")
        if has_aux and not is_pair(out):
            raise ValueError(
                "losses_fn: expected losses of shape [task] in (losses, aux), got a scalar; with "
                "one task, return losses[None]"
            )
        if not has_aux and is_pair(out):
            raise ValueError(
                "losses_fn returned (losses, aux): pass has_aux=True; or, if these are two "
                "losses, reduce each to one number"
            )
        return out

    def init(params: Params, batch: Batch, key: int | Tensor = 0) -> State:
        check_params(params)
        leaf = next(iter(params.values()))
        # Adding a zero of the parameters batches the key where they are batched: an expanded state
        # would make the compiler start twice.
        root = random.key(key, leaf.device) + leaf.new_zeros((), dtype=torch.int64)
        losses, probe_state = probe.init(declared, params, batch, random.fold_in(root, 0))
        return BalanceState(probe_state, _init_rule(rule, losses, random.fold_in(root, 1)))

    def update(params: Params, batch: Batch, state: BalanceState) -> tuple[Params, State, Info]:
        _refuse_autocast(params)
        measured, probe_state = probe.update(declared, params, batch, state.probe)
        geometry = measured.geometry
        present, losses = geometry.present, measured.losses
        check_finite(
            losses.where(present, 0.0) if present.shape == losses.shape else losses, "losses"
        )
        check_finite(geometry.gramian.diagonal(0, -2, -1), "gradients (squared lengths by task)")
        weights, rule_state = _update_rule(rule, geometry, state.rule)
        check_finite(weights, "weights (the rule's answer)")
        grads = measured.combine(weights)
        check_gradients(grads)
        if reduction == "sum":
            count = (
                len(losses)
                if present.shape != losses.shape or all_present(present)
                else present.sum()
            )
            grads = {name: count * grad for name, grad in grads.items()}
        gramian = geometry.gramian
        return (
            grads,
            BalanceState(probe_state, rule_state),
            Info(losses, gramian, weights, _rates(gramian, weights), measured.aux),
        )

    return Balance(init, update)


def _init_rule(rule: Rule, losses: Tensor, key: Tensor) -> State:
    """The rule's first state; one for each group, with keys of their own, where the probe has
    groups: losses [group, row].
    """
    if losses.ndim == 1:
        return rule.init(losses, key)
    # outside of vmap it can look at values, and say what is wrong with them
    rule.init(losses[0], key)
    keys = torch.stack([random.fold_in(key, group) for group in range(len(losses))])
    return tree_map(torch.Tensor.contiguous, vmap(rule.init)(losses, keys))


def _update_rule(rule: Rule, geometry: Geometry, state: State) -> tuple[Tensor, State]:
    """The rule, or the rule mapped over the groups: gramian [group, row, row], and a state for
    each; of what a probe added, [row] is common to them.
    """
    if geometry.gramian.ndim == 2:
        return rule.update(geometry, state)

    def one(gramian: Tensor, extra: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        return rule.update(geometry._replace(gramian=gramian, extra=extra), state)

    dims = {name: None if leaf.ndim == 1 else 0 for name, leaf in geometry.extra.items()}
    return vmap(one, (0, dims, 0))(geometry.gramian, geometry.extra, state)


def _rates(gramian: Tensor, weights: Tensor) -> Tensor:
    if not gramian.numel():
        return gramian.new_zeros(0)
    wide = weights.to(gramian.dtype)
    return gramian @ wide if gramian.ndim == 2 else (gramian @ wide[..., None])[..., 0]


def _refuse_autocast(params: Params) -> None:
    if torch.is_autocast_enabled(next(iter(params.values())).device.type):
        raise RuntimeError(
            "autocast is active around the step and would round the Gramian to half precision; "
            "open it inside losses_fn instead"
        )


def descend(
    losses_fn: LossesFn,
    rule: Rule,
    optimizer: Optimizer,
    probe: Probe,
    *,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> Step:
    """A step with an optimizer: `init(params, batch, key=0) -> TrainState`, `update(state, batch)
    -> (TrainState, Info)`.

    Arguments and errors as in `balance`.
    """
    inner = balance(losses_fn, rule, probe, reduction=reduction, has_aux=has_aux)

    def init(params: Params, batch: Batch, key: int | Tensor = 0) -> TrainState:
        return TrainState(params, inner.init(params, batch, key), optimizer.init(params))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Info]:
        grads, balance_state, info = inner.update(state.params, batch, state.balance)
        params, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(params, balance_state, optimizer_state), info

    return Step(init, update)


class Interrupted(KeyboardInterrupt):
    """Raised by `rollout` in place of KeyboardInterrupt, with what was computed: `.state`, and
    `.record` as rollout would return it.
    """

    def __init__(self, state: State, record: Any) -> None:
        super().__init__("rollout interrupted; .state and .record hold what was computed")
        self.state, self.record = state, record


def rollout(
    step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    record: Callable[[TrainState, Info], Any] | None = None,
    every: int = 1,
) -> tuple[TrainState, Any]:
    """Many steps: one for each batch, with a progress bar outside transforms and a plain loop
    inside them.

    Args:
        step, state: from `descend`.
        batches: any iterable; `itertools.repeat(batch, 1000)` for a full batch.
        record: `(state after the step, info) -> tensors`, a tensor or a nested tuple or dict; None
            records info without aux.
        every: record every so many steps, from the first.

    Returns:
        the final state and the record, each tensor stacked along a new first axis (None if there
        was no step).

    Raises:
        Interrupted: a KeyboardInterrupt that carries state and record, on Ctrl-C.
    """
    if every < 1:
        raise ValueError(f"every: expected a number of steps >= 1, got {every}")
    take = record or (lambda state, info: info._replace(aux=()))
    kept: list[Any] = []
    quiet = transformed() or torch.compiler.is_compiling()
    try:
        for count, batch in enumerate(
            batches
            if quiet
            else tqdm(
                batches, total=operator.length_hint(batches) or None, leave=False, desc="steps"
            )
        ):
            state, info = step.update(state, batch)
            if count % every == 0:
                kept.append(take(state, info))
    except KeyboardInterrupt as stop:
        raise Interrupted(state, _stacked(kept)) from stop
    return state, _stacked(kept)


def _stacked(kept: list[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *kept) if kept else None
