"""FAMO: raise the weights of the tasks whose losses the last step lowered least, relatively."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import optim
from ..core.checks import check_scalar, normalized_preference, poison
from ..solvers.problems import or_one
from ..types import LAST_LOSSES, Geometry, Optimizer, Rule, Scalar, State, constructor
from .common import preference_of, reading
from .losswise import MAY_BE_0, begin, check_shape, learn, optimizer_at, require_positive, softmax


class FAMOState(NamedTuple):
    logits: Float[Tensor, " task"]
    optimizer: State
    last: State  # with full_batch: losses before the last step, and who was present in it; else ()


@constructor
def famo(
    lr: Scalar = 0.025,
    decay: Scalar = 1e-3,
    *,
    lower: Float[Tensor, " task"] | None = None,
    full_batch: bool = False,
    optimizer: Callable[[Scalar], Optimizer] = optim.adam,
    preference: Float[Tensor, " task"] | None = None,
    eps: Scalar = 0.0,
) -> Rule:
    """Descend Σ_t z_t log(L_t - b_t), z = softmax(ξ), at the length of a convex combination; ξ
    descends z·δ, δ_t the fall of log(L_t - b_t) in the last step.

    The fall is that of the last step's own batch, evaluated again after the step: wrap the probe,
    `mtlfunc.second_evaluation(mtlfunc.losses_only())`. The heads belong to the same objective.

    Args:
        lr: learning rate > 0 of the logits ξ.
        decay: weight decay >= 0 of the logits, added to their slope.
        lower: b `[task]`, a lower bound of each loss; None is 0.
        full_batch: every step sees the same batch, so this step's losses are the last batch's
            evaluated again, and no `second_evaluation` is needed. Not for rows that are other tasks
            at every step (`mix=subset(n)`): their losses would be compared with each other.
        optimizer: from a learning rate to the optimizer of the logits.
        preference: p `[task]` >= 0, sum 1: z ∝ p∘exp(ξ). None: the geometry's (unmixed 1/T).
        eps: >= 0, added to every L - b, for losses that may be 0. It has their unit; 1e-8 in the
            official code, TorchJD and LibMTL.

    Returns:
        weights c·z_t/(L_t - b_t), c such that they sum to 1.

    Raises:
        ValueError: for lr <= 0, decay or eps < 0, a bad preference or lower; at a step, for losses
        (plus eps) not above their lower bound (NaN where that cannot be seen).

    Source:
        Liu et al. 2023, Algorithm 2. The official code, TorchJD and LibMTL update ξ at the end of
        the step rather than the start of the next, which is the same. Decay is 1e-3 in TorchJD and
        LibMTL, .01 in the official class, which also clips at norm 1.

    Examples:
        >>> import mtlfunc as mf
        >>> rule = famo(full_batch=True)
        >>> mf.weights(rule, torch.eye(2), losses=torch.tensor([1.0, 3.0])).tolist()
        [0.75, 0.25]
    """
    check_scalar(decay, "decay")
    check_scalar(eps, "eps")
    move = optimizer_at(optimizer, lr)

    def losses_above(losses: Tensor, present: Tensor) -> Tensor:
        name = "famo" if lower is None else "famo (less their lower bounds)"
        above = losses if lower is None else losses - lower.to(losses)
        return require_positive(above + eps, present, name, MAY_BE_0)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        check_shape(lower, losses, "lower")
        zero = torch.zeros_like(losses)
        last = (zero.clone(), torch.zeros_like(losses, dtype=torch.bool)) if full_batch else ()
        return FAMOState(zero, begin(move, zero), last)

    def update(geometry: Geometry, state: FAMOState) -> tuple[Tensor, State]:
        losses, present, extra = geometry.losses, geometry.present, geometry.extra
        if full_batch:
            before, after, both = state.last[0], losses, state.last[1] & present
        else:
            before, after, both = (extra[name] for name in LAST_LOSSES)
        fall = torch.log(losses_above(before, both) / losses_above(after, both))
        even = geometry.preference if full_batch else torch.full_like(losses, 1 / len(losses))
        prior = preference_of(geometry._replace(present=both, preference=even), preference)
        z = softmax(state.logits, prior)
        slope = z * (fall - (z * fall).sum()) + decay * state.logits
        logits, optimizer_state = learn(move, state.logits, slope, state.optimizer, both)

        distance = losses_above(losses, present)
        share = softmax(logits, preference_of(geometry, preference)) / distance
        weights = poison(share / or_one(share.sum()), losses, distance, logits)
        # Laid out as before: a state of other strides would make the compiler start twice.
        now = (losses, present) if full_batch else ()
        last = tuple(torch.zeros_like(x) + y for x, y in zip(state.last, now, strict=True))
        return weights, FAMOState(logits, optimizer_state, last)

    last = () if full_batch else LAST_LOSSES
    return Rule(init, update, reading("losses", *last, preference=preference), heads="weighted")
