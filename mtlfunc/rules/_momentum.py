"""Momentum on the weights of any rule: they depend less on the batch that they are applied to."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import check_scalar
from ..core.expect import expect_rule, heads_of
from ..types import Geometry, Rule, Scalar, State, constructor
from .common import reading_also


class MomentumState(NamedTuple):
    rule: State
    weights: Float[Tensor, " row"]  # λ of the step before
    begun: Bool[Tensor, " row"]  # tasks that have been present


@constructor
def momentum(rule: Rule, decay: Scalar = 0.9) -> Rule:
    """The rule's own weights λ̂_k, averaged over steps: λ_k = a λ_{k-1} + (1 - a) λ̂_k.

    Args:
        rule: any `Rule`.
        decay: a in [0, 1); 0 is the rule itself.

    Returns:
        weights λ_k; as convex as the rule's while the same tasks are present. A task's λ starts as
        its first λ̂, and stays where it is while the task is absent; its weight is 0 then, and what
        the others lack of the rule's sum comes back at the rate 1 - a.

    Raises:
        ValueError: for a decay outside [0, 1).
        TypeError: for a rule that is none.

    Source:
        CR-MOGM, Zhou et al. 2022. TorchJD's `CRMOGMWeighting` also starts with λ̂_1 by default.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> mf.weights(momentum(mf.mgda()), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    expect_rule(rule)
    check_scalar(decay, "decay", below=1.0)

    def init(losses: Tensor, key: Tensor) -> State:
        none = torch.zeros_like(losses, dtype=torch.bool)
        return MomentumState(rule.init(losses, key), torch.zeros_like(losses), none)

    def update(geometry: Geometry, state: MomentumState) -> tuple[Tensor, State]:
        now, inner = rule.update(geometry, state.rule)
        present = geometry.present
        mixed = torch.where(state.begun, decay * state.weights + (1 - decay) * now, now)
        kept = torch.where(present, mixed, state.weights)
        held = MomentumState(inner, kept.to(state.weights), state.begun | present)
        return torch.where(present, mixed, 0.0), held

    return Rule(init, update, reading_also(rule, "present"), heads_of(rule))
