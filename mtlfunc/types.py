"""Every type of the library: a method is a probe, a rule and perhaps a solver.

What is called is a `Protocol`, for type checkers: any function with such a signature will do.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

# what makes rules imports `constructor` with their types
from .calls import constructor, shown  # noqa: F401

Params = dict[str, Tensor]
"""Parameters by the names of `module.named_parameters()`; a complex leaf is two real ones."""

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

Select = str | Callable[[str], bool] | nn.Module | Iterable[str | Tensor | nn.Module]
"""Which parameters: a glob on names, a predicate, a module, or several globs or parameters."""


@runtime_checkable
class LossesFn(Protocol):
    """Stateless losses: a vector `[task]`, a tuple or a dict of T scalars, or `(losses, aux)`."""

    def __call__(self, params: Params, batch: Batch, /) -> Any: ...


@shown
class Geometry(NamedTuple):
    """All that a rule may see of one step.

    Attributes:
        losses: of the rows, which are tasks or mixtures of them.
        gramian: G = J Jᵀ `[row, row]`; None from a probe that measures none.
        preference: how the rows mix into the mean gradient; sums to 1.
        present: which tasks have labels in this batch.
        extra: by name, what a special probe measured.
    """

    losses: Float[Tensor, " row"]
    gramian: Float[Tensor, "..."] | None
    preference: Float[Tensor, " row"]
    present: Bool[Tensor, " row"]
    extra: dict[str, Tensor]


class Metric(NamedTuple):
    """The step that an optimizer will make of a gradient g: -(carried + P·g)."""

    scale: Params  # P, a diagonal, learning rates included; 0-d where it is one number
    # c: momentum, weight decay, and gradients that wait in `.grad`; of leaves that have any
    carried: Params


@shown
class TaskGradients(NamedTuple):
    """What a probe measured in one step, and the way back from weights to a gradient."""

    losses: Float[Tensor, " task"]
    geometry: Geometry
    combine: Callable[[Tensor], Params]  # from weights [row] to one gradient for every parameter
    aux: Any
    part: Tensor | None = None  # [task], this process's of each loss; None is all of it


@shown
class Probe(NamedTuple):
    """Decides what is differentiated and where the geometry of the tasks is measured."""

    # (run, batch, key): one forward pass, no backward: the losses [row] and the first state
    init: Callable[[Any, Batch, Tensor], tuple[Tensor, State]]
    # (run, batch, state): the passes of one step: what was measured, and the next state
    update: Callable[[Any, Batch, Any], tuple[TaskGradients, State]]
    group: Any = None  # the processes whose batches are one batch (see `mtlfunc.jacobian`)
    # what it measures next to losses, preference and present, as in `Rule.reads`; None is unknown
    measures: frozenset[str] | None = None
    shared: Select = "*"  # which parameters it measures the tasks in, or shares among them
    # whether its tasks are weightings of the losses of samples: always, or if a Balancer is given
    # them (False); None never
    weightings: bool | None = None
    mixes: bool = False  # tasks into rows, whose weights are not the tasks'
    calls_model: bool = False  # itself, so that it has no use for losses that exist already
    metric: bool = False  # whether it measures in the metric of an optimizer (`Run.metric`)


GRAMIANS = frozenset({"gramian", "cross_gramian", "tracked_gramian"})
"""Names of what `Geometry.gramian` can hold: JJᵀ; J₁J₂ᵀ of two batches, which is not symmetric; JJᵀ
of log losses; YYᵀ of tracked gradients.
"""


LAST_LOSSES = ("last_losses", "last_losses_now", "last_present")
"""Keys of `Geometry.extra`: the last batch's losses then and now, and which tasks it had."""


Heads = Literal["plain", "own", "weighted"]
"""What parameters that are not shared get: the gradient of the mean loss, of the sum of the losses
(each head's own, undiminished), or of the weighted loss Σ w_t L_t.
"""


@shown
class Rule(NamedTuple):
    """Turns geometry and its own state into weights."""

    init: Callable[[Tensor, Tensor], State]  # from the first losses [row] and a key
    update: Callable[[Geometry, Any], tuple[Tensor, State]]  # weights [row] and the next state
    # the values of the geometry that decide the weights, now or later: "losses", "preference",
    # "present", names of GRAMIANS, keys of `Geometry.extra`; None is unknown: perhaps all of them
    reads: frozenset[str] | None = None
    # what parameters that are not shared get by default, where a probe's `heads` says nothing
    heads: Heads = "plain"


@shown
class Optimizer(NamedTuple):
    """Moves parameters along a gradient."""

    init: Callable[[Params], State]  # the first state
    # (grads, state, params): the parameters after one step, and the next state
    update: Callable[[Params, Any, Params], tuple[Params, State]]
    # (state, params): P and c such that the step is -(c + P·g); None where it is not linear in g
    scales: Callable[[Any, Params], tuple[Params, Params]] | None = None


@shown
class Info(NamedTuple):
    """Diagnostics of one step; never carried to the next.

    Attributes:
        losses: as they were before the step.
        gramian: G = J Jᵀ; `[0, 0]` from a probe that measures none.
        weights: as applied: with `reduction="sum"` T times the rule's.
        rates: G @ weights (+ J c of a metric), how fast each loss falls at first; `[0]` without G.
        aux: what `losses_fn` returned besides losses.
        tasks: each task's loss by its name, from a dict of losses; else empty.
    """

    losses: Float[Tensor, " task"]
    gramian: Float[Tensor, "..."]
    weights: Float[Tensor, " row"]
    rates: Float[Tensor, "..."]
    aux: Any
    tasks: dict[str, Tensor]


class Conflict(NamedTuple):
    """What samples say of every pair of expected gradients (`mtlfunc.diagnostics.conflict`)."""

    inner: Float[Tensor, "task task"]  # ⟨E g_s, E g_t⟩, unbiased; diagonal: squared lengths
    low: Float[Tensor, "task task"]
    high: Float[Tensor, "task task"]
    cosine: Float[Tensor, "task task"]  # NaN where noise hides a length
    needed: Float[Tensor, "task task"]  # samples for a verdict, about; inf where inner is 0
    verdict: Int8[Tensor, "task task"]  # -1 conflict, 1 agreement, 0 open or withheld
    effective: Float[Tensor, "task task"]  # samples that make up the noise; below 6 no verdict
    # kinds of samples rarer than this may not show: a verdict assumes that they would not turn it
    rare: Float[Tensor, ""]


class ConflictSums(NamedTuple):
    """What `running_conflict` remembers: sums over the steps."""

    steps: Int[Tensor, ""]
    samples: Int[Tensor, ""]
    inner: Float[Tensor, "task task"]  # of U
    variance: Float[Tensor, "task task"]  # of the jackknife's variances of U
    fourth: Float[Tensor, "task task"]  # of the fourth powers of what each sample adds to them


class SampleNoise(NamedTuple):
    """Mean and spread of per-sample gradients, by task."""

    signal: Float[Tensor, " task"]  # ‖E g_t‖², unbiased; may be negative where noise hides it
    noise: Float[Tensor, " task"]  # tr Cov(g_t), of one sample's gradient
    # signal / noise; 1/ratio is the simple noise scale, the batch at which both weigh the same
    ratio: Float[Tensor, " task"]
    # share of pairs of different samples with g_bt·g_cs < 0; diagonal: within a task
    conflicts: Float[Tensor, "task task"]


class Stationarity(NamedTuple):
    """A certificate about 0 and the convex hull of the gradients."""

    weights: Float[Tensor, " task"]  # of the shortest combination found
    length: Float[Tensor, ""]  # its length: an upper bound on the distance of 0 from the hull
    # a lower bound on that distance; > 0 proves that the point is not Pareto stationary
    lower: Float[Tensor, ""]
    # lengths below this are rounding of the Gramian; NaN if orthogonal gradients are below it
    noise: Float[Tensor, ""]
    stationary: Bool[Tensor, ""]  # length <= noise: numerically Pareto stationary


class Change(NamedTuple):
    """What the losses did between two points, and what their gradients foretold."""

    predicted: Float[Tensor, " task"]  # g_t·(θ' - θ), to first order
    actual: Float[Tensor, " task"]  # L_t(θ') - L_t(θ)


@shown
class BalanceState(NamedTuple):
    """What a balanced step carries: the probe's state, the rule's, and which tasks there are."""

    probe: State
    rule: State
    tasks: Any  # {name: 0-d number of the task}, or those numbers [task] where losses have no names


@runtime_checkable
class BalanceInit(Protocol):
    """The first state: one forward pass; `key` is an integer or a 0-d integer tensor."""

    def __call__(self, params: Params, batch: Batch, key: int | Tensor = 0) -> BalanceState: ...


@runtime_checkable
class BalanceUpdate(Protocol):
    """One gradient with the names and shapes of `params`, the next state and diagnostics."""

    def __call__(
        self, params: Params, batch: Batch, state: BalanceState
    ) -> tuple[Params, BalanceState, Info]: ...


@shown
class Balance(NamedTuple):
    """A step without an optimizer: parameters and a batch in, one gradient out."""

    init: BalanceInit
    update: BalanceUpdate


@shown
class TrainState(NamedTuple):
    """What a training run carries from step to step."""

    params: Params
    balance: BalanceState
    optimizer: State


class StepInit(Protocol):
    """The first state: one forward pass; `key` is an integer or a 0-d integer tensor."""

    def __call__(self, params: Params, batch: Batch, key: int | Tensor = 0) -> TrainState: ...


class StepUpdate(Protocol):
    """The state after one step, and its diagnostics."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Info]: ...


@shown
class Step(NamedTuple):
    """A step with an optimizer."""

    init: StepInit
    update: StepUpdate


@shown
class Solution(NamedTuple):
    """A solver's answer with its certificate, both made in float64 and then rounded to the dtype of
    the Gramian; `mtlfunc.solvers.certify` says what the rounded weights are worth.
    """

    weights: Float[Tensor, " task"]  # coefficients of the direction d = J'weights
    dual: Float[Tensor, " task"]  # simplex weights (min-norm, CAGrad) or multipliers (dual cone)
    rates: Float[Tensor, " task"]  # gramian @ weights
    value: Float[Tensor, ""]  # the objective at `dual`
    gap: Float[Tensor, ""]  # how far `value` can be from the optimum, computed from the answer
    steps: Int[Tensor, ""]


class Certificate(NamedTuple):
    """What is proved of an answer; all numbers but `gap` are free of scale, `str()` is one line."""

    # bounds what the objective (CAGrad: the worst task's rate) can still gain
    gap: Float[Tensor, ""]
    relative_gap: Float[Tensor, ""]  # the gap in units of max ‖g_t‖ · Σ|w_t|‖g_t‖
    # 1 is exact, < 0 means the step raises a loss, NaN that this dtype cannot tell; see `certify`
    kappa: Float[Tensor, ""]
    # the constraint missed by most; CAGrad's in units of ‖g₀‖, if this is more than rounding
    infeasibility: Float[Tensor, ""]
    # KKT: the worst task's rate below what optimality asks, as a cosine
    violation: Float[Tensor, ""]
    complementarity: Float[Tensor, ""]  # KKT: Σ weight · |its multiplier|
    worst: Tensor  # the task with the lowest rate, as a cosine
    stationary: Bool[Tensor, ""]  # numerically Pareto stationary: kappa is noise
    # the weights, up to this fraction of Σ|w_s|‖g_s‖ (of a dual cone's given w, wherever that is
    # larger), meet the optimality conditions of a G' with |G' - G| <= 3 backward ‖g_s‖‖g_t‖; NaN
    # for cagrad
    backward: Float[Tensor, ""]
    # to so much a Gramian of this dtype tells whether d is in CAGrad's ball; else 0
    resolution: Float[Tensor, ""]

    def __str__(self) -> str:
        if self.gap.ndim:
            return "\n".join(str(Certificate(*one)) for one in zip(*self, strict=True))
        # half precision rounds the weights themselves, and what is said of them
        eps = torch.finfo(self.gap.dtype).eps
        rounding = (16 if eps > 1e-4 else 64) * eps + 1e4 * torch.finfo(torch.float64).eps
        loose = self.resolution > rounding
        kappa, relative, missed = map(float, (self.kappa, self.relative_gap, self.infeasibility))
        numbers = f"(kappa {kappa:.6g}, relative gap {relative:.1e}, infeasibility {missed:.1e}"
        numbers += f" ± {float(self.resolution):.1e})" if loose else ")"
        if not all(bool(x.isfinite()) for x in (self.gap, self.infeasibility, self.violation)):
            return "no answer: NaN or infinite weights or Gramian"
        if self.infeasibility > rounding + self.resolution:
            said = f"infeasible: a constraint is missed by {missed:.1e}"
        elif self.stationary:
            said = "numerically Pareto stationary: no step improves all tasks by more than rounding"
        elif max(self.relative_gap, self.violation, self.complementarity) <= rounding:
            said = "optimal to rounding"
            if loose:
                said = "optimal as far as the Gramian can say: it tells the length of d to "
                said += f"{float(self.resolution):.1e}‖g₀‖"
        elif self.backward <= rounding:
            said = "optimal as far as the Gramian can say: for one within "
            said += f"{float(self.backward) / eps:.0f} machine epsilons of it"
        elif self.kappa.isnan():
            said = f"{self.gap.dtype} cannot tell whether the gradients cancel; accumulate the "
            said = f"{said}Gramian in float32".removeprefix("torch.")
        elif self.kappa < 0:
            said = f"not optimal, and the step raises the loss of task {int(self.worst)}"
        else:
            said = f"not optimal: task {int(self.worst)} is served worst"
        return f"{said} {numbers}"


class Laplacian(NamedTuple):
    """What one pass has of a network at every point."""

    value: Float[Tensor, " n *out"]
    gradient: Float[Tensor, " n *out d"]
    laplacian: Float[Tensor, " n *out"]  # Σ_i ∂²u/∂x_i²


class LineSearch(NamedTuple):
    """The best of several step lengths."""

    params: Params  # after the step of that length
    factor: Float[Tensor, ""]
    values: Float[Tensor, " factor"]  # the objective at every length


class NewtonError(NamedTuple):
    """What is missing in (G + λ s I) w = r, in units of ‖r‖."""

    residual: Float[Tensor, ""]  # ‖(G + λ s I) w - r‖ for the Gramian as it was measured
    # by how much the last bit of every entry of G can change it; from about 0.1 on the direction
    # is that of rounding: widen the Gramian, or damp more
    rounding: Float[Tensor, ""]


@runtime_checkable
class Solver(Protocol):
    """From a problem of `mtlfunc.solvers` to its solution."""

    def __call__(self, problem: Any, /) -> Solution: ...
