"""STCH: descend a smooth maximum of the weighted losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import check_scalar, normalized_preference, poison
from ..core.transforms import values_readable
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import preference_of, reading
from .losswise import check_shape, require_positive, softmax


class STCHState(NamedTuple):
    total: Float[Tensor, " task"]  # losses of the averaging steps, summed
    seen: Int[Tensor, " task"]
    steps: Int[Tensor, ""]


@constructor
def stch(
    mu: Scalar,
    *,
    preference: Float[Tensor, " task"] | None = None,
    reference: Float[Tensor, " task"] | None = None,
    warmup: tuple[int, int] | None = None,
) -> Rule:
    """The gradient of T·μ·log Σ_t exp(p_t(L_t - z_t)/μ): a smooth max_t p_t(L_t - z_t), whose
    minima are Pareto optimal for every p > 0.

    Args:
        mu: smoothing μ > 0, in the unit of p_t·L_t: as it shrinks the weights go to the worst task
            alone, as it grows to p.
        preference: p `[task]` >= 0, scaled to sum 1; None is the geometry's, 1/T without a mix.
        reference: the ideal point z `[task]`, a lower bound of each loss; None is 0.
        warmup: `(first, then)`, as the official multi-task code trains: the objective is Σ p_t log
            L_t for first + then steps, and afterwards the smooth maximum above with log(L_t/n_t)
            for L_t - z_t, where n is the mean loss of the `then` steps. Excludes reference.

    Returns:
        weights T·p_t·softmax(p(L - z)/μ)_t: for equal p convex ones that sum to 1, else between
        T·min p and T·max p. T times the paper's, whose p = 1/T would shorten the step by T. With
        warmup they are divided by L_t (before its end: p_t/L_t).

    Raises:
        ValueError: for mu <= 0, a bad preference or reference, warmup with counts that are negative
            or average over no step; with warmup, at a step, for losses that are not positive (NaN
            where that cannot be seen).

    Source:
        Lin et al. 2024, the smooth Tchebycheff scalarization, max-shifted as in appendix B.1.
        TorchJD's STCH is 1/T of this, without warmup. The official multi-task code and LibMTL have
        the warm-up, the factor T, and 1 instead of p = 1/T, so that their μ is T times this one.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(stch(1e-3), torch.eye(2), losses=torch.tensor([1.0, 4.0])).tolist()
        [0.0, 1.0]
    """
    check_scalar(mu, "mu", positive=True)
    pair = isinstance(warmup, tuple | list) and [isinstance(x, int) for x in warmup] == [True, True]
    if warmup is not None and not (pair and reference is None and warmup[0] >= 0 < warmup[1]):
        raise ValueError(
            f"warmup: expected (steps >= 0, steps >= 1) and no reference, got {warmup} with "
            f"reference={reference}"
        )

    def init(losses: Tensor, key: Tensor) -> State:
        normalized_preference(preference, losses)
        check_shape(reference, losses, "reference")
        if warmup is None:
            return ()
        zero = torch.zeros_like(losses)
        return STCHState(zero, zero.to(torch.int64), losses.new_zeros((), dtype=torch.int64))

    def update(geometry: Geometry, state: State) -> tuple[Tensor, State]:
        losses, present = geometry.losses, geometry.present
        p = preference_of(geometry, preference)

        def slopes(objective: Tensor) -> Tensor:
            return present.sum() * p * softmax(p * objective, present.to(losses), mu)

        if warmup is None:
            above = losses if reference is None else losses - reference.to(losses)
            return poison(slopes(above), losses), ()
        first, then = warmup
        losses = require_positive(losses, present, "stch with warmup")
        averaged = present & (state.steps >= first) & (state.steps < first + then)
        total, seen = state.total + losses.where(averaged, 0.0), state.seen + averaged
        ready = state.steps >= first + then
        unknown = ready & present & (seen == 0)
        if values_readable(unknown) and bool(unknown.any()):
            raise ValueError(
                f"warmup: tasks {unknown.nonzero().flatten().tolist()} were absent from all "
                f"{then} steps of averaging; average over more"
            )
        mean = (total / seen.clamp_min(1)).where(seen > 0, float("nan"))
        nadir = torch.where(ready & present, mean, 1.0)
        weights = torch.where(ready, slopes(torch.log(losses / nadir)), p) / losses
        following = STCHState(total, seen, state.steps + 1)
        return poison(weights, geometry.losses, losses, nadir), following

    return Rule(init, update, reading("losses", preference=preference), heads="weighted")
