"""A training step without an optimizer: a probe and a rule composed into one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..core import random
from ..core.checks import (
    check_finite,
    check_gradients,
    check_losses,
    check_option,
    check_params,
    check_weights,
    expect_answer,
    expect_measurement,
    init_probe,
    init_rule,
)
from ..core.expect import expect_losses_fn, expect_measured, expect_state, heads_of
from ..core.internals import functorch
from ..core.transforms import all_present, has_finite_sum, innermost_tensor, values_readable
from ..core.tree import like
from ..gradients.losses import Losses, Tasks, check_task_count, parse_declared, parse_weightings
from ..probes.common import Run
from ..processes import describe_params, union_of, warn_without_group
from ..types import (
    Balance,
    BalanceInit,
    BalanceState,
    Batch,
    Geometry,
    Info,
    LossesFn,
    Metric,
    Params,
    Probe,
    Rule,
    State,
    TaskGradients,
    constructor,
)
from ._forms import changes, flatten, leaf_name

Reduction = Literal["mean", "sum"]


@constructor
def balance(
    losses_fn: LossesFn,
    rule: Rule,
    probe: Probe,
    *,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> Balance:
    """A step without an optimizer: parameters and a batch in, one gradient out.

    Losses in a dict are read by name: their order at `init` is that of the tasks from then on,
    whatever their order at a later step, and `Info.tasks` is `{name: loss}` in this order.

    Args:
        losses_fn: stateless, `(params, batch) -> losses`: a vector `[task]`, or a tuple or dict of
            T scalars.
        rule: turns geometry into weights, for instance `mtlfunc.cagrad(0.4)`.
        probe: measures the geometry and combines, for instance `mtlfunc.jacobian("trunk.*")`.
        reduction: `"mean"`: with rule `mean()` the gradient is that of the mean loss; `"sum"`
            multiplies gradient, weights and rates by T, or by the number of present tasks.
        has_aux: `losses_fn` returns `(losses, aux)`; `Info.aux` is then aux, a pytree of tensors.

    Returns:
        `init(params, batch, key=0) -> state` (one forward, and for losses in a vector one at NaN,
        which shows what reads the shared parameters; key is an integer or a 0-d integer tensor) and
        `update(params, batch, state) -> (grads, state, info)`; grads are like params.

    Raises:
        TypeError: for a rule, probe, losses_fn or state that is something else.
        ValueError: for a rule that reads what the probe does not measure (`Rule.reads`,
            `Probe.measures`); for tasks that come or go between steps; for a state of another rule,
            where that can be known; for NaN or infinite losses, gradients or weights, where they
            can be seen (on CPU, outside transforms); elsewhere grads are those of such a loss.
        RuntimeError: for autocast around the step.
        NotImplementedError: for modules or parameters of several processes.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: {
        ...     "near": (params["x"] - 1).square(), "far": (params["x"] + 3).square()}
        >>> step = mf.balance(losses, mf.mgda(), mf.jacobian())
        >>> params = {"x": torch.tensor(0.0)}
        >>> grads, state, info = step.update(params, (), step.init(params, ()))
        >>> grads["x"].item(), [round(w, 2) for w in info.weights.tolist()]
        (0.0, [0.75, 0.25])
        >>> {name: loss.item() for name, loss in info.tasks.items()}
        {'near': 1.0, 'far': 9.0}
    """
    init, update = metric_balance(losses_fn, rule, probe, reduction, has_aux, metric=False)
    return Balance(init, lambda params, batch, state: update(params, batch, state, None))


def metric_balance(
    losses_fn: LossesFn,
    rule: Rule,
    probe: Probe,
    reduction: Reduction,
    has_aux: bool,
    *,
    metric: bool,
) -> tuple[BalanceInit, Callable[[Params, Batch, BalanceState, Metric | None], Any]]:
    """`balance`, whose update also takes the optimizer's step; `metric`: whether it gets one."""
    expect_losses_fn(losses_fn)
    expect_measured(rule, probe, metric=metric)
    check_option(reduction, "reduction", get_args(Reduction))
    heads = heads_of(rule)

    def parsed(out: Any, tasks: Tasks) -> Losses:
        if probe.weightings:
            return parse_weightings(out, has_aux=has_aux)
        return parse_declared(out, tasks, has_aux=has_aux)

    def init(params: Params, batch: Batch, key: int | Tensor = 0) -> BalanceState:
        if probe.group is None:
            warn_without_group()
        union = union_of(probe.group, params)
        check_params(params, mixed=True)
        tasks: Tasks = ()

        def first_losses(out: Any) -> Losses:
            nonlocal tasks
            losses = parsed(out, tasks)
            tasks = tasks or losses.tasks
            return losses

        leaf = next(iter(params.values()))
        # Batched where the parameters are: an expanded state would make the compiler start twice.
        root = random.key(key, leaf.device) + leaf.new_zeros((), dtype=torch.int64)

        def facts() -> dict[str, Any]:
            names = () if probe.weightings else tasks  # samples are a rank's own
            given = {"rule": rule, "reduction": reduction, "key": int(key)}
            return given | {"the names of the tasks": list(names)} | describe_params(params)

        run = Run.of(losses_fn, params, first_losses, union=union, facts=facts)
        losses, probe_state = init_probe(probe, run, batch, random.fold_in(root, 0))
        if probe.weightings:
            tasks = ((),) * losses.shape[-1]
        return BalanceState(probe_state, init_rule(rule, losses, random.fold_in(root, 1)), tasks)

    def update(
        params: Params, batch: Batch, state: BalanceState, metric: Metric | None
    ) -> tuple[Params, BalanceState, Info]:
        expect_state(state, BalanceState)
        if not isinstance(params, Mapping):
            check_params(params)
        union = union_of(probe.group, params)
        run = Run.of(
            losses_fn, params, lambda out: parsed(out, state.tasks), union=union, heads=heads,
            metric=None if metric is None else lambda names: metric,
        )  # fmt: skip
        measured, probe_state = expect_measurement(probe.update(run, batch, state.probe))
        if probe.weightings:
            check_task_count(measured.losses, state.tasks, "init")
        info, following, gradient = weigh(rule, measured, state.rule, state.tasks, reduction)
        grads = like(params, check_gradients(gradient(), params))
        return grads, BalanceState(probe_state, following, state.tasks), info

    return init, update


def weigh(
    rule: Rule, measured: TaskGradients, state: State, tasks: Tasks, reduction: Reduction
) -> tuple[Info, State, Callable[[], Params]]:
    """The rule's answer to what was measured, its next state, and what makes the step's gradient.

    A rule sees means over the tasks; of a sum weights, rates and gradient are T times as large.
    """
    losses, geometry = measured.losses, measured.geometry
    gramian = losses.new_zeros(0, 0) if geometry.gramian is None else geometry.gramian
    if not (values_readable(losses, gramian) and has_finite_sum(losses, gramian)):
        here = geometry.present.shape == losses.shape
        check_losses(losses.where(geometry.present, 0.0) if here else losses, tasks)
        check_finite(gramian.diagonal(0, -2, -1), "gradients (squared lengths by task)")
    total = None
    if reduction == "sum":  # over all tasks, or those present, as far as that can be seen
        whole = geometry.present.shape != losses.shape or all_present(geometry.present)
        total = len(losses) if whole else geometry.present.sum()
    drift = geometry.extra.get("carried")  # of the optimizer, in units of the rule's weights
    if drift is not None and total is not None:
        drift = drift / (total.clamp_min(1) if isinstance(total, Tensor) else total)
        geometry = geometry._replace(extra=geometry.extra | {"carried": drift})
    weights, following = _weigh(rule, geometry, state)
    if not (isinstance(following, tuple) and not following):  # it may keep what it saw or answered
        losses, gramian, weights = losses.clone(), gramian.clone(), weights.clone()
    rates = gramian @ weights.to(gramian) if gramian.numel() else gramian.new_zeros(0)
    rates = rates if drift is None else rates + drift.to(rates)

    def gradient() -> Params:
        grads = measured.combine(weights)
        return grads if total is None else {name: total * grad for name, grad in grads.items()}

    named = dict(zip(tasks, losses.unbind(), strict=True)) if isinstance(tasks, dict) else {}
    scaled = (weights, rates) if total is None else (total * weights, total * rates)
    return Info(losses, gramian, *scaled, measured.aux, named), following, gradient


def _weigh(rule: Rule, geometry: Geometry, state: State) -> tuple[Tensor, State]:
    """The rule's weights, checked, and its next state; a state of another rule is named."""
    if torch.compiler.is_compiling():
        return expect_answer(rule.update(geometry, state))
    before = _marks(geometry, state)
    try:
        weights, following = expect_answer(rule.update(geometry, state))
    except Exception as error:
        _refuse_foreign(rule, geometry, state, error)
        raise
    if (after := _marks(geometry, state)) != before:
        places = [i for i, mark in enumerate(after) if mark not in before]
        names = [leaf_name(("geometry", "state"), (geometry, state), i) for i in places]
        raise RuntimeError(
            f"rule: update of {rule!r} wrote into {', '.join(names) or 'its state'}, which it was "
            "given to read; let it make a new tensor (x + 1, not x += 1), or write into x.clone()"
        )
    if following is not state and (changed := changes(state, following)):
        _refuse_foreign(rule, geometry, state)
        raise ValueError(
            f"rule: the state from update of {rule!r} has another form than the one that it was "
            f"given: {changed}; return the keys, lengths and shapes that init returns"
        )
    check_weights(weights, geometry.losses.shape)
    return weights, following


def _marks(geometry: Geometry, state: State) -> list[tuple[int, int]]:
    """Which tensors a rule is given, and how often each was written to."""
    leaves = [*geometry[:4], *geometry.extra.values(), *(flatten(state)[1] if state != () else ())]
    inner = leaves
    if functorch.get_interpreter_stack():
        inner = [innermost_tensor(x) if isinstance(x, Tensor) else x for x in leaves]
    try:
        return [(id(x), getattr(y, "_version", 0)) for x, y in zip(leaves, inner, strict=True)]
    except RuntimeError:  # those of inference mode keep no count
        return []


def _refuse_foreign(rule: Rule, geometry: Geometry, state: State, error: Any = None) -> None:
    """Raise where a rule that starts here has a state of other names or shapes than `state`."""
    losses = geometry.losses
    try:
        fresh = init_rule(rule, losses, torch.zeros_like(losses[..., 0].sum(), dtype=torch.int64))
    except Exception:  # it cannot start here: the state is not to blame
        return
    if changes(fresh, state):
        raise ValueError(
            "state: its rule's part is not what this step's rule started with; it comes from a "
            "step with another rule or another number of tasks: use init of this step"
        ) from error
