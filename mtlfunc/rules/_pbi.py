"""PBI: the distance along the preference direction, and a penalty on the distance from it."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, normalized_preference, poison
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import preference_of, reading
from .losswise import check_shape, unit_and_length


@constructor
def pbi(
    theta: Scalar = 5.0,
    *,
    preference: Float[Tensor, " task"] | None = None,
    reference: Float[Tensor, " task"] | None = None,
) -> Rule:
    """The gradient of ‖p‖(d₁ + θd₂): with u = p/‖p‖, d₁ = u·(L - z) is how far the losses are along
    the ray z + Ru, d₂ how far off it.

    Args:
        theta: θ >= 0, the penalty off the ray; 0 is the weighted sum, 5 the paper's.
        preference: p `[task]` >= 0, scaled to sum 1, the ray's direction; None is the geometry's,
            1/T unless tasks were mixed.
        reference: the ideal point z `[task]`; None is 0.

    Returns:
        weights p + θ‖p‖n, n the unit vector from the ray to L, and 0 where L is on it up to
        rounding. They sum to 1 there; a task whose loss is too low for the ray can get a negative
        one. ‖p‖ times the paper's, so that T enters no learning rate.

    Raises:
        ValueError: for a negative theta, a bad preference, a reference of another shape.

    Source:
        Zhang & Li 2007 (MOEA/D), section III. TorchJD's PBI is this without the factor, and with
        1e-12 under the root of d₂, in the loss' unit.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(pbi(0.5), torch.eye(2), losses=torch.tensor([0.0, 1.0]))
        tensor([0.2500, 0.7500])
    """
    check_scalar(theta, "theta")

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        check_shape(reference, losses, "reference")
        return ()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        dtype, losses = geometry.losses.dtype, geometry.losses.double()
        p = preference_of(geometry, preference, losses)
        shifted = losses - (0.0 if reference is None else reference.to(dtype).to(losses))
        ray, length = unit_and_length(p)
        unit, _ = unit_and_length(shifted.where(geometry.present, 0.0))
        normal, distance = unit_and_length(unit - (ray @ unit) * ray)
        # of L's own length: what is left is rounding, and has no direction
        eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
        on_ray = distance <= max(eps, 4 * len(p) * min(eps, single))
        weights = p + theta * length * normal.where(~on_ray, 0.0)
        return poison(weights, losses).to(dtype), ()

    return Rule(init, update, reading("losses", preference=preference), heads="weighted")
