"""Exponentiated weights for the tasks whose gradients lower a target loss: DoGE, DGA."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_option, check_scalar, normalized_preference
from ..core.transforms import values_readable
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import gramian_of, preference_of, reading
from .losswise import exponentiate

Target = Literal["loss", "mean"]


class AlignState(NamedTuple):
    logits: Float[Tensor, " task"]  # log weights


@constructor
def align(
    eta: Scalar, target: Target = "loss", *, preference: Float[Tensor, " task"] | None = None
) -> Rule:
    """Weights grow for the tasks whose gradients lower a target loss: w ← softmax(log w + η a), a_t
    = g_t·g_target, mirror ascent on the fall of that loss, which is w·a to first order.

    Args:
        eta: η > 0. It carries the unit 1/‖gradient‖²: the method is not scale-free. After n steps
            at which a differs by δ between two tasks their weights differ by the factor exp(nηδ).
        target: `"loss"`: the last loss is the target's, of a batch from where the model is to be
            good; it gets weight 0. `"mean"`: Σ p_t L_t of the tasks themselves, a = Gp.
        preference: with `target="mean"` p `[task]` >= 0, scaled to sum 1: what the tasks count in
            the target, not their weights in the step. None is the geometry's, mostly 1/T.

    Returns:
        weights >= 0 that sum to 1, those after the step; they begin at 1/T. Absent tasks have
        weight 0 and keep their log w; the present ones share what they had together. Heads get
        the weighted loss; `heads="plain"` would have the target's loss in it.

    Raises:
        ValueError: for eta <= 0, or so large that η a overflows; for another target, a bad
            preference, or one with `target="loss"`; for one loss alone, the target's.

    Source:
        Fan et al. 2024 (DGA, arXiv 2410.02498), Algorithm 1 without its moving average of the
        weights (`momentum(align(eta))` keeps one); Fan, Pagliardini & Jaggi 2024 (DoGE), Algorithm
        1, η the learning rate over μ: with target domains `"loss"`, without them `"mean"`, p = 1.
        DoGE's code also divides a by the mean length of the gradients, cuts it off below 0, so that
        a task that harms is not weighed down for that, and leaves g_t·g_t out where the targets are
        the tasks. Dynamic reward weighting (Lu et al. 2025) is `"mean"` with p = 1, its a averaged
        over several steps. Auto-λ (Liu et al. 2022) steps on λ itself, by Adam and without a
        softmax, along an a after a virtual step, a finite difference in its code.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: (params["x"] - batch).square()
        >>> step = mf.balance(losses, align(0.1), mf.jacobian())
        >>> params, batch = {"x": torch.tensor(0.0)}, torch.tensor([1.0, -1.0, 1.0])
        >>> step.update(params, batch, step.init(params, batch))[2].weights
        tensor([0.6900, 0.3100, 0.0000])
    """
    check_scalar(eta, "eta", positive=True)
    check_option(target, "target", get_args(Target))
    if preference is not None and target == "loss":
        raise ValueError(
            'preference: it says what the tasks count in target="mean"; a target loss of its own '
            "has none, so leave it out"
        )

    aimed = target == "loss"

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        if aimed and losses.shape[-1] == 1:
            raise ValueError(
                "losses: align takes the last as the target's, and there is no other; append it, "
                'or align towards the mean loss, align(eta, "mean")'
            )
        return AlignState(torch.zeros_like(losses))

    def update(geometry: Geometry, state: AlignState) -> tuple[Tensor, State]:
        gramian, present = gramian_of(geometry), geometry.present
        if aimed:
            products = gramian[..., -1]
            present = torch.cat([present[:-1], torch.zeros_like(present[:1])])
        else:
            products = gramian @ preference_of(geometry, preference, gramian)
        products = products.to(state.logits)
        slope = eta * products
        if values_readable(slope) and bool((products.isfinite() & ~slope.isfinite()).any()):
            raise ValueError(
                "eta: times the products with the target's gradient, up to "
                f"{products.abs().max():.3g}, it overflows {slope.dtype}; η has the unit "
                "1/‖gradient‖², take a smaller one"
            )
        weights, logits = exponentiate(state.logits, slope, present)
        return weights, AlignState(logits)

    reads = frozenset({"gramian", "present"}) if aimed else None
    return Rule(init, update, reads or reading("gramian", preference=preference), heads="weighted")
