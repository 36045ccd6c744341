"""DWA: weigh most the tasks whose loss fell least from one epoch to the next."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_count, check_scalar, normalized_preference, poison
from ..core.transforms import all_present, select_where, values_readable
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import preference_of, reading
from .losswise import softmax


class DWAState(NamedTuple):
    # mean loss of the last epoch over that of the one before; 1 until there are two
    rate: Float[Tensor, " task"]
    mean: Float[Tensor, " task"]  # of the last epoch; 0 before there is one
    total: Float[Tensor, " task"]  # of this epoch so far
    seen: Int[Tensor, " task"]  # steps of this epoch in which the task was present
    steps: Int[Tensor, ""]  # of this epoch


@constructor
def dwa(
    epoch: int, temperature: Scalar = 2.0, *, preference: Float[Tensor, " task"] | None = None
) -> Rule:
    """Tasks whose losses fall slowly count more: w = softmax(r/τ), where r_t is task t's mean loss
    over the last epoch divided by that over the epoch before.

    Args:
        epoch: steps in one epoch, >= 1.
        temperature: τ > 0; the larger, the more equal the weights.
        preference: p `[task]` >= 0, scaled to sum 1: w ∝ p∘exp(r/τ). None is the geometry's.

    Returns:
        weights > 0 that sum to **1** (p during the first two epochs), where the paper's sum to T:
        `reduction="sum"` is its scale. A task's epoch mean is over the steps in which it was
        present; an epoch without it leaves its r as it was.

    Raises:
        ValueError: for epoch < 1, temperature <= 0, a bad preference; at a step, for losses below 0
            or a mean over a whole epoch of 0 (NaN where that cannot be seen).

    Source:
        Liu, Johns & Davison 2019, Dynamic Weight Average. As in the official code, TorchJD and
        LibMTL, but for the sum. TorchJD's epochs end with a call of its `step`; LibMTL
        averages over the epoch in its trainer.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(dwa(100), torch.eye(2), losses=torch.tensor([1.0, 9.0])).tolist()
        [0.5, 0.5]
    """
    check_count(epoch, "epoch")  # no count of steps would ever equal a fraction
    check_scalar(temperature, "temperature", positive=True)

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        zero = torch.zeros_like(losses)
        none = losses.new_zeros((), dtype=torch.int64)
        return DWAState(zero + 1, zero, zero.clone(), zero.to(torch.int64), none)

    def update(geometry: Geometry, state: DWAState) -> tuple[Tensor, State]:
        losses, present = geometry.losses, geometry.present
        whole, readable = all_present(present), values_readable(losses, present)
        if readable and any(x < 0 for x in (losses if whole else losses[present]).tolist()):
            raise ValueError(
                "losses: dwa takes ratios of epoch means, which need losses >= 0, got "
                f"{losses.tolist()}; shift them by a lower bound"
            )
        weights = softmax(state.rate / temperature, preference_of(geometry, preference))
        weights = poison(weights, losses, state.rate)
        if not readable:  # what can be read was checked above
            losses = losses.where(losses >= 0, float("nan"))
        total = state.total + (losses if whole else losses.where(present, 0.0))
        seen, steps = state.seen + present, state.steps + 1
        ended = values_readable(steps)
        if ended and int(steps) < epoch:
            return weights, DWAState(state.rate, state.mean, total, seen, steps)
        mean = total / seen.clamp_min(1)
        over, known = steps >= epoch, state.mean != 0
        counts = seen > 0 if ended else over & (seen > 0)
        solved = counts & (mean == 0)
        if values_readable(solved) and True in solved.tolist():
            raise ValueError(
                "losses: dwa divides by the means of epochs, and those of tasks "
                f"{solved.nonzero().flatten().tolist()} are 0; leave these out"
            )
        mean = select_where(mean, ~solved, float("nan"))
        rate = select_where(mean / select_where(state.mean, known, 1.0), counts & known, state.rate)
        mean = select_where(mean, counts, state.mean)
        begun = total, seen, steps
        begun = (torch.zeros_like(x) if ended else x.where(~over, 0) for x in begun)
        return weights, DWAState(rate, mean, *begun)

    return Rule(init, update, reading("losses", preference=preference), heads="weighted")
