"""RLW: random weights, new ones at every step; the litmus test for every other rule."""

import torch
from torch import Tensor

from ..core import random
from ..core.transforms import all_present
from ..types import Geometry, Rule, State, constructor


@constructor
def rlw() -> Rule:
    """Random weights: w = softmax(z), z ~ N(0, I) drawn at each step.

    Returns:
        weights > 0 that sum to 1 (over the present tasks), with mean 1/T, from the rule's own key:
        the same key gives the same sequence. Runs on every probe, `losses_only()` included.

    Source:
        Lin et al. 2022, Algorithm 1 (random loss weighting) and, with `mtlfunc.jacobian`, Algorithm
        2 (random gradient weighting), with the normal distribution, which their code uses by
        default. TorchJD (Random) and LibMTL draw from torch's global generator.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> w = mf.weights(rlw(), torch.eye(3), key=1)
        >>> bool((w > 0).all()), round(float(w.sum()), 6)
        (True, 1.0)
    """

    def init(losses: Tensor, key: Tensor) -> State:
        return random.stream(key)

    def update(geometry: Geometry, state: random.Stream) -> tuple[Tensor, State]:
        losses, present = geometry.losses, geometry.present
        key, state = random.draw(state)
        draws = random.normal(key, tuple(losses.shape), losses.dtype)
        if all_present(present):
            return torch.softmax(draws, -1), state
        return torch.softmax(draws.where(present, -torch.inf), -1).where(present, 0.0), state

    return Rule(init, update, frozenset({"present"}), heads="weighted")
