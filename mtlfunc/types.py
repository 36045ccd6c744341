"""Every type of the library on one screen: a method is a probe, a rule and perhaps a solver."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Parameters by the names of `module.named_parameters()`; every leaf is a floating tensor."""

Rows = dict[str, Tensor]
"""Rows of a Jacobian, leaf by leaf: `{name: [row, *shape]}`."""

Batch = Any
"""Whatever `losses_fn` takes: a tensor, a tuple, a dict."""

State = Any
"""A tensor or a (nested) tuple or dict of tensors; never anything else."""

Scalar = float | int | Float[Tensor, ""]
"""A hyper-parameter: a number, or a 0-d tensor, which may be batched or differentiated."""

Key = Int[Tensor, ""]
"""A random key: a 0-d int64 tensor (see `mtlfunc.random`)."""

Losses = Float[Tensor, " task"]
Weights = Float[Tensor, " row"]
Gramian = Float[Tensor, "row row"]

LossesFn = Callable[[Params, Batch], Any]
"""Stateless losses: a vector `[task]`, a tuple or a dict of T scalars, or `(losses, aux)`."""

Select = str | Callable[[str], bool] | nn.Module | Iterable[str | Tensor | nn.Module]
"""Which parameters: a glob on names, a predicate, a module, or several globs or parameters."""


class Geometry(NamedTuple):
    """All that a rule may see of one step."""

    losses: Float[Tensor, " row"]
    gramian: Float[Tensor, "..."]  # [row, row]; [0, 0] from a probe that measures none
    preference: Float[Tensor, " row"]  # how the rows mix into the mean gradient; sums to 1
    present: Bool[Tensor, " row"]  # tasks that have labels in this batch
    extra: dict[str, Tensor]  # what a special probe measured


class TaskGradients(NamedTuple):
    """What a probe measured in one step, and the way back from weights to a gradient."""

    losses: Float[Tensor, " task"]
    geometry: Geometry
    combine: Callable[[Tensor], Params]  # weights [row] -> one gradient for every parameter
    aux: Any


class Probe(NamedTuple):
    """Decides what is differentiated and where the geometry of the tasks is measured."""

    # (losses_fn, params, batch, key) -> (losses [row], S)
    init: Callable[..., tuple[Tensor, State]]
    update: Callable[..., tuple[TaskGradients, State]]  # (losses_fn, params, batch, S) -> (_, S)


class Rule(NamedTuple):
    """Turns geometry and its own state into weights."""

    init: Callable[[Tensor, Tensor], State]  # (losses [row], key) -> S
    update: Callable[[Geometry, State], tuple[Tensor, State]]  # (geometry, S) -> (weights [row], S)


class Optimizer(NamedTuple):
    """Moves parameters along a gradient."""

    init: Callable[[Params], State]
    # (grads, S, params) -> (params, S)
    update: Callable[[Params, State, Params], tuple[Params, State]]


class Info(NamedTuple):
    """Diagnostics of one step; never carried to the next."""

    losses: Float[Tensor, " task"]
    gramian: Float[Tensor, "..."]
    weights: Float[Tensor, " row"]
    # gramian @ weights: each row's first-order gain; [0] without a Gramian
    rates: Float[Tensor, "..."]
    aux: Any


class Balance(NamedTuple):
    """A step without an optimizer: parameters and a batch in, one gradient out."""

    init: Callable[..., State]  # (params, batch, key=0) -> S
    update: Callable[[Params, Batch, State], tuple[Params, State, Info]]


class TrainState(NamedTuple):
    params: Params
    balance: State
    optimizer: State


class Step(NamedTuple):
    """A step with an optimizer."""

    init: Callable[..., TrainState]  # (params, batch, key=0) -> TrainState
    update: Callable[[TrainState, Batch], tuple[TrainState, Info]]


class Solution(NamedTuple):
    """A solver's answer with its certificate."""

    weights: Float[Tensor, " task"]  # coefficients of the direction d = J'weights
    dual: Float[Tensor, " task"]  # simplex weights (min-norm, CAGrad) or multipliers (dual cone)
    rates: Float[Tensor, " task"]  # gramian @ weights
    value: Float[Tensor, ""]  # the objective at `dual`
    gap: Float[Tensor, ""]  # how far `value` can be from the optimum, computed from the answer
    steps: Int[Tensor, ""]


Solver = Callable[[Any], Solution]
"""From a problem of `mtlfunc.solvers` to its solution."""
