"""Krum: trust the gradients that have the closest neighbours."""

import torch
from torch import Tensor

from ..core.checks import check_count, poison
from ..core.transforms import all_present
from ..types import Geometry, Rule, State, constructor
from .common import gramian_of


@constructor
def krum(byzantine: int = 0, select: int = 1) -> Rule:
    """The mean of the `select` gradients with the lowest scores; a score is the sum of the squared
    distances to the T - f - 2 nearest others.

    Args:
        byzantine: f >= 0, how many rows may be anything; the paper's guarantee needs 2f + 2 < T.
        select: how many rows are averaged (1 is Krum, more is Multi-Krum); at most all.

    Returns:
        weights >= 0 that sum to 1: 1/select for those selected, 0 for the others. Rows that tie for
        the last places share them, as the two closest rows do when one neighbour counts: with T = f
        + 3, and with fewer rows, where the paper's score would count none. Distances below √ε of
        the rows' lengths are rounding, ε that of the Gramian's dtype. Derivatives are 0.

    Raises:
        ValueError: for byzantine < 0, select < 1, or 2f + 2 >= T with f > 0.

    Source:
        Blanchard et al. 2017, sec. 4. TorchJD's distances are not squared: it may take another row.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> gramian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.2, 0.0], [0.0, 0.0, 9.0]])
        >>> mf.weights(krum(), gramian).tolist()
        [0.5, 0.5, 0.0]
    """
    check_count(byzantine, "byzantine", 0)
    check_count(select, "select")

    def init(losses: Tensor, key: Tensor) -> State:
        if byzantine and 2 * byzantine + 2 >= len(losses):
            raise ValueError(
                f"byzantine: {byzantine} of {len(losses)} rows; the guarantee needs 2 * "
                f"byzantine + 2 < {len(losses)}"
            )
        return ()

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        given, present = gramian_of(geometry), geometry.present
        gramian = given.double()  # sums of squares near the top of their dtype leave it
        total, square = len(gramian), gramian.diagonal()
        distance = (square[:, None] + square - (gramian + gramian.mT)).clamp_min(0)
        if all_present(present):
            # the first is the row itself
            score = distance.sort(-1).values[:, 1 : 1 + max(total - byzantine - 2, 1)].sum(-1)
            kept = min(select, total)
        else:
            place, count = torch.arange(total, device=present.device), present.sum()
            near = (place > 0) & (place <= (count - byzantine - 2).clamp_min(1)) & (place < count)
            nearest = distance.where(present, torch.inf).sort(-1).values
            score = torch.where(near, nearest, 0.0).sum(-1).where(present, torch.inf)
            kept = count.clamp_max(select)
        return poison(_select_lowest(score, kept).where(present, 0.0), gramian).to(given), ()

    return Rule(init, update, frozenset({"gramian", "present"}))


def _select_lowest(score: Tensor, kept: int | Tensor) -> Tensor:
    """Equal weights on the `kept` lowest scores; those that tie for the last places share them."""
    if isinstance(kept, int) and kept == 1:
        last = (score == score.amin()).to(score)
        return last / last.sum()
    place = torch.arange(len(score), device=score.device)
    last = torch.where(place == kept - 1, score.sort().values, 0.0).sum()
    sure, tied = (score < last).to(score), (score == last).to(score)
    count = kept if isinstance(kept, int) else kept.clamp_min(1)
    return (sure + tied * (kept - sure.sum()) / tied.sum().clamp_min(1)) / count
