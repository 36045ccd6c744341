"""COSMOS: the weighted sum of the losses, less their cosine with the preference."""

from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_scalar, poison
from ..solvers.problems import or_one
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import no_state, preference_of, reading
from .losswise import unit_and_length


@constructor
def cosmos(penalty: Scalar, *, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """The gradient of p·L - λ cos(p, L), which pulls the losses towards the ray of p.

    Args:
        penalty: λ >= 0, in the unit of the losses; 0 is the weighted sum.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights p - λ(p/‖p‖ - cos(p, L) L/‖L‖)/‖L‖. The second part is orthogonal to L, so w·L =
        p·L; they sum to 1 when L is on the ray of equal p, and a task whose loss is too low for the
        ray can get a negative one. Where all losses are 0 they are p.

    Raises:
        ValueError: for a negative penalty or a bad preference.

    Source:
        Ruchte & Grabocka 2021, the objective alone: the paper also draws p from a Dirichlet
        distribution at every batch and feeds it to the network. As in TorchJD.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(cosmos(2.0), torch.eye(2), losses=torch.tensor([0.0, 1.0]))
        tensor([-0.9142,  0.5000])
    """
    check_scalar(penalty, "penalty")

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        p = preference_of(geometry, preference)
        losses = geometry.losses.where(geometry.present, 0.0)
        (ray, _), (unit, size) = unit_and_length(p), unit_and_length(losses)
        off = ray - (ray @ unit) * unit
        slope = (off / or_one(size)).where(size != 0, 0.0)
        return poison(p - penalty * slope, geometry.losses), ()

    reads = reading("losses", preference=preference)
    return Rule(no_state(preference), update, reads, heads="weighted")
