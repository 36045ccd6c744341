"""GLS: descend the geometric mean of the losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import poison
from ..types import Geometry, Rule, State, constructor
from .common import no_state, preference_of, reading
from .losswise import require_positive


@constructor
def gls(*, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """The gradient of Π_t L_t^(p_t), where every task counts by its relative progress: weights
    p_t·Π_s L_s^(p_s) / L_t.

    Args:
        preference: exponents p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T unless
            tasks were mixed.

    Returns:
        weights >= 0 that do not change when all losses are scaled together; they sum to 1 when the
        losses are equal, and to more otherwise (the geometric over the harmonic mean).

    Raises:
        ValueError: for a bad preference; at a step, for losses that are not positive (NaN where
            that cannot be seen).

    Source:
        Chennupati et al. 2019 (MultiNet++), the geometric loss strategy. TorchJD's GeometricMean
        and LibMTL's GLS are the same loss; the latter takes the product first, which leaves the
        range of floats for many tasks, and reports weights that are not those applied.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(gls(), torch.eye(2), losses=torch.tensor([1.0, 4.0])).tolist()
        [1.0, 0.25]
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        p, present = preference_of(geometry, preference), geometry.present
        losses = require_positive(geometry.losses, present, "gls")
        # Relative to the largest, so that no product leaves the range of floats and a common factor
        # changes no bit.
        largest = geometry.losses.where(present, 0.0).amax().where(present.any(), 1.0)
        logs = torch.log(losses / largest).where(present, 0.0)
        return poison(p * torch.exp((p * logs).sum() - logs), geometry.losses, losses), ()

    return Rule(
        no_state(preference), update, reading("losses", preference=preference), heads="weighted"
    )
