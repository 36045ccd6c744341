"""GLS: descend the geometric mean of the losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import no_state, preference_of, reading
from .losswise import MAY_BE_0, require_positive


@constructor
def gls(*, preference: Float[Tensor, " task"] | None = None, eps: Scalar = 0.0) -> Rule:
    """The gradient of Π_t L_t^(p_t), where every task counts by its relative progress: weights
    p_t·Π_s L_s^(p_s) / L_t.

    Args:
        preference: exponents p `[task]` >= 0, scaled to sum 1; None: the geometry's (unmixed 1/T).
        eps: >= 0, added to every loss, for losses that may be 0. It has their unit.

    Returns:
        weights >= 0 that do not change when all losses are scaled together; they sum to 1 when the
        losses are equal, and to more otherwise (the geometric over the harmonic mean).

    Raises:
        ValueError: for a bad preference or eps; at a step, for losses (plus eps) that are not
            positive (NaN where that cannot be seen).

    Source:
        Chennupati et al. 2019 (MultiNet++), the geometric loss strategy. TorchJD's GeometricMean
        and LibMTL's GLS are the same loss; the latter takes the product first, which leaves the
        range of floats for many tasks, and reports weights that are not those applied.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(gls(), torch.eye(2), losses=torch.tensor([1.0, 4.0])).tolist()
        [1.0, 0.25]
    """

    check_scalar(eps, "eps")

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        p, present = preference_of(geometry, preference), geometry.present
        losses = require_positive(geometry.losses + eps, present, "gls", MAY_BE_0)
        # Relative to the largest: no product leaves the range, and a common factor changes no bit.
        largest = losses.where(present, 0.0).amax().where(present.any(), 1.0)
        logs = torch.log(losses / largest).where(present, 0.0)
        return poison(p * torch.exp((p * logs).sum() - logs), geometry.losses, losses), ()

    reads = reading("losses", preference=preference)
    return Rule(no_state(preference), update, reads, heads="weighted")
