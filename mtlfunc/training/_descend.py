"""A training step with an optimizer: a pure function from state and batch to state."""

from torch import Tensor

from ..core.expect import expect_optimizer, expect_state
from ..types import (
    Batch,
    Info,
    LossesFn,
    Metric,
    Optimizer,
    Params,
    Probe,
    Rule,
    Step,
    TrainState,
    constructor,
)
from ._balance import Reduction, metric_balance


@constructor
def descend(
    losses_fn: LossesFn,
    rule: Rule,
    probe: Probe,
    optimizer: Optimizer,
    *,
    reduction: Reduction = "mean",
    has_aux: bool = False,
    metric: bool = False,
) -> Step:
    """A step with an optimizer: a whole training run is a loop of one pure function.

    Args:
        losses_fn: stateless, `(params, batch) -> losses`, as in `mtlfunc.balance`.
        rule: turns geometry into weights, for instance `mtlfunc.cagrad(0.4)`.
        probe: measures the geometry and combines, for instance `mtlfunc.jacobian("trunk.*")`.
        optimizer: moves the parameters, for instance `mtlfunc.adam(1e-3)`; one of `torch.optim`
            goes with `mtlfunc.balance` and `mtlfunc.assign_gradients` instead.
        reduction: `"mean"` or `"sum"` over the tasks, as in `mtlfunc.balance`.
        has_aux: `losses_fn` returns `(losses, aux)`; aux is handed on in `Info.aux`.
        metric: measure in the metric of the optimizer, whose step is -(c + P·g): `Info.gramian` is
            J P Jᵀ, and `Info.rates` are J(c + P·g), by how much each loss falls in this step to
            first order. A rule's promise then holds for the optimizer's own step without momentum,
            and `mtlfunc.safe(rule)` makes it hold with it.

    Returns:
        `init(params, batch, key=0) -> TrainState` and `update(state, batch) -> (TrainState, Info)`.

    Raises:
        TypeError: for a part or a state that is something else.
        ValueError: as in `mtlfunc.balance`, and for an optimizer's state of other parameters; for a
            metric of an optimizer without (`Optimizer.scales`), or of a probe of no gradients.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: (params["x"] - batch).square()
        >>> step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.5))
        >>> batch = torch.tensor([1.0, 3.0])
        >>> state, info = step.update(step.init({"x": torch.zeros(())}, batch), batch)
        >>> state.params["x"].item()
        2.0
    """
    start, balanced = metric_balance(losses_fn, rule, probe, reduction, has_aux, metric=metric)
    expect_optimizer(optimizer)
    scales = getattr(optimizer, "scales", None)
    if metric and scales is None:
        raise ValueError(
            "metric: this optimizer has none (Optimizer.scales is None): multiplicative is not "
            "linear in the gradient; use mtlfunc.adam or mtlfunc.sgd, or say of your own "
            "scales(state, params) -> (P, c), for a step of -(c + P·g)"
        )

    def init(params: Params, batch: Batch, key: int | Tensor = 0) -> TrainState:
        return TrainState(params, start(params, batch, key), optimizer.init(params))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Info]:
        expect_state(state, TrainState)
        now = Metric(*scales(state.optimizer, state.params)) if metric and scales else None
        grads, balance_state, info = balanced(state.params, batch, state.balance, now)
        params, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(params, balance_state, optimizer_state), info

    return Step(init, update)
