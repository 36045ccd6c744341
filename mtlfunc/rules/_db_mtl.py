"""DB-MTL: every task's tracked log-gradient at the length of the longest one."""

from torch import Tensor

from ..core.checks import poison
from ..solvers.problems import root
from ..types import Geometry, Rule, State, constructor
from .common import gramian_of, no_state, preference_of, reading


@constructor
def db_mtl(*, preference: Tensor | None = None) -> Rule:
    """All the rows that are not zero come to the length of the longest: w_t = p_t max_j‖B_j‖/‖B_t‖.

    Args:
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.

    Returns:
        weights >= p that sum to 1 when all rows are as long; the **mean** of the rescaled rows,
        where the paper steps along their sum, T times as long. A zero row has weight p_t. The rows
        are averages of ∇log L: return log losses, and take the probe
        `mtlfunc.moving_average("trunk.*", rate=…, corrected=True)`, without averages at `rate=1`.

    Raises:
        ValueError: for a bad preference.

    Source:
        Lin et al. 2023 (DB-MTL), section 3 and Algorithm 1. LibMTL adds 1e-8 to the lengths and
        starts its average at 0 without correction, so that its first step is a tenth as long.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(db_mtl(), torch.diag(torch.tensor([1.0, 4.0])))
        tensor([1.0000, 0.5000])
    """

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        gramian = gramian_of(geometry)
        length = root(gramian.diagonal())
        ratio = (length.amax() / length.where(length > 0, 1.0)).where(length > 0, 1.0)
        return poison(preference_of(geometry, preference, gramian) * ratio, gramian), ()

    reads = reading("tracked_gramian", preference=preference)
    return Rule(no_state(preference), update, reads)
