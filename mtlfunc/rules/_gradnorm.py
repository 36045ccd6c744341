"""GradNorm: learn the weights that give every task's gradient the length its progress calls for."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import optim
from ..core.checks import check_scalar, poison
from ..core.transforms import values_readable
from ..solvers.problems import or_one, root, rounding
from ..types import Geometry, Optimizer, Rule, Scalar, State, constructor
from .common import gramian_of, mean_present, total_present
from .losswise import begin, check_shape, learn, optimizer_at, require_nonnegative


class GradNormState(NamedTuple):
    weights: Float[Tensor, " task"]  # sum to T, as in the paper
    initial: Float[Tensor, " task"]  # L_i(0)
    optimizer: State


def exact_adam(lr: Scalar) -> Optimizer:
    """Multiplying every gradient by a constant changes nothing, while squares stay in range."""
    return optim.adam(lr, eps=0.0)


@constructor
def gradnorm(
    alpha: Scalar,
    lr: Scalar = 0.025,
    *,
    optimizer: Callable[[Scalar], Optimizer] = exact_adam,
    floor: float = 1e-3,
    normalize_targets: bool = False,
    reference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """Weights w descend L_grad = Σ_i |G_i - Ḡ r_i^α|, where G_i = w_i‖∇_W L_i‖, r_i = (L_i/L_i(0))
    / mean and the target is held constant.

    Only lengths and losses enter: ∂L_grad/∂w_i = sign(G_i - target_i)·‖∇_W L_i‖ for w_i > 0, so no
    second backward pass is made. W are the probe's shared leaves, in the paper the last shared
    layer: `mtlfunc.jacobian("trunk.3.*")`. All other parameters get the weighted loss's gradient.

    Args:
        alpha: strength >= 0 of the pull towards a common training rate; 0 equalises the lengths.
        lr: learning rate > 0 of the weights.
        optimizer: from a learning rate to the weights' optimizer. `mf.adam` with eps=0 (default),
            `mf.sgd` (the paper's plain step, the one choice that is not scale-free),
            `mf.optim.multiplicative` (w ← w·exp(∓lr)).
        floor: smallest weight before the renormalisation to sum T; equilibrium weights can be
            smaller than one absolute step.
        normalize_targets: targets Ḡ r_i^α / mean(r^α). Without it the targets sum to T·Ḡ only for α
            of 0 or 1 or equal rates, and L_grad has no zero.
        reference: losses `[task]` > 0 instead of L_i(0), as log K for cross-entropy.

    Returns:
        weights > 0 that sum to **1**, those of before this step's update; the paper's, which sum to
        T, are the state's. Use `reduction="sum"` to step along Σ w_i ∇L_i at the paper's scale.

    Raises:
        ValueError: for alpha < 0, lr <= 0, floor outside (0, 1), initial or reference losses that
            are not positive; and for later losses below 0, where they can be seen (elsewhere: NaN).

    Source:
        Chen et al. 2018, eqs. 1–2 and Algorithm 1. Ports overwrite L(0) at every batch, measure the
        first layer, flip the sign of α, make a new Adam at each step or let weight decay act on w.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(gradnorm(0.12), torch.eye(2), losses=torch.ones(2)).tolist()
        [0.5, 0.5]
    """
    check_scalar(alpha, "alpha")
    check_scalar(floor, "floor", positive=True, below=1.0)
    move = optimizer_at(optimizer, lr)

    def init(losses: Tensor, key: Tensor) -> State:
        check_shape(reference, losses, "reference")
        initial = losses if reference is None else reference.to(losses) + torch.zeros_like(losses)
        if values_readable(initial) and not bool((initial > 0).all()):
            raise ValueError(
                "gradnorm: relative rates L(t)/L(0) need initial losses > 0, got "
                f"{initial.tolist()} (0 where a task is absent); shift the losses, begin with all, "
                "or pass reference=, for instance log K for K-class cross-entropy"
            )
        weights = torch.ones_like(losses)
        # NaN where that could not be read: the ratio of two negative losses would look plausible.
        initial = initial.where(initial > 0, float("nan"))
        return GradNormState(weights, initial, begin(move, weights))

    def update(geometry: Geometry, state: GradNormState) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        losses = require_nonnegative(geometry.losses, "gradnorm: relative rates L(t)/L(0) need")
        w, present = state.weights, geometry.present
        length = root(gramian.diagonal()).to(w.dtype)
        norm = w * length
        ratio = losses / state.initial
        mean_ratio = mean_present(ratio, present)
        rate = torch.where(mean_ratio == 0, 1.0, ratio / or_one(mean_ratio)) ** alpha
        target = mean_present(norm, present) * (
            rate / mean_present(rate, present) if normalize_targets else rate
        )
        excess = (norm - target).detach()
        # a length is off by ε/4 of the Gramian's dtype; within that the slope has no sign
        noise = max(rounding(1, w.dtype), rounding(1, gramian.dtype) / 4) * (norm + target)
        slope = torch.where(excess.abs() <= noise, 0.0, torch.sign(excess)) * length
        moved, optimizer_state = learn(move, w, slope, state.optimizer, present)
        following = moved.clamp_min(floor)
        total = total_present(w, present, float(len(w)))
        following = poison(total * following / or_one(following.where(present, 0.0).sum()), ratio)
        answer = poison(w.where(present, 0.0) / total, gramian, geometry.losses)
        return answer, GradNormState(following.where(present, w), state.initial, optimizer_state)

    return Rule(init, update, frozenset({"gramian", "losses", "present"}), heads="weighted")
