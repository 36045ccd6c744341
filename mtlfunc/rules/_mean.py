"""The mean of the task gradients, or a weighted one: scalarisation."""

from jaxtyping import Float
from torch import Tensor

from ..types import Geometry, Heads, Rule, State, constructor
from .common import no_state, preference_of, reading


@constructor
def mean(*, preference: Float[Tensor, " task"] | None = None) -> Rule:
    """Static weights: the gradient of Σ p_t L_t.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights that sum to 1 (over the present tasks) and depend on neither gradients nor losses.
        Runs on every probe, `losses_only()` included.

    Raises:
        ValueError: for a preference of another length, with negative entries or sum 0.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(mf.mean(preference=torch.tensor([1.0, 3.0])), torch.eye(2)).tolist()
        [0.25, 0.75]
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        return preference_of(geometry, preference), ()

    heads: Heads = "plain" if preference is None else "weighted"  # "plain" costs one pass less
    return Rule(no_state(preference), update, reading(preference=preference), heads)
