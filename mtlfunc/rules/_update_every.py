"""Any rule, at every k-th step; its weights are held in between."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core._torch import tree_map
from ..core.checks import check_count
from ..core.expect import expect_rule
from ..types import Geometry, Rule, State, constructor
from .common import reading_also


class UpdateEveryState(NamedTuple):
    rule: State
    weights: Float[Tensor, " row"]  # the last answer
    steps: Int[Tensor, ""]


@constructor
def update_every(rule: Rule, period: int) -> Rule:
    """The rule's weights at steps 0, k, 2k, …; at all others the last ones, and its state stays.

    Weights that are all 0, the answer to a batch without labels, are not held: the rule is updated
    again at the next step.

    Args:
        rule: any `Rule`.
        period: k >= 1, in steps.

    Returns:
        the rule's weights. Absent tasks get 0; a task that was absent when the rule was updated
        gets 0 until its next update. The probe measures the geometry at every step all the same.

    Raises:
        ValueError: for a period below 1.
        TypeError: for a rule that is none.

    Source:
        `update_weights_every` of Nash-MTL (Navon et al. 2022), for any rule.

    Examples:
        >>> import mtlfunc as mf
        >>> mf.weights(update_every(mf.mgda(), 10), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    expect_rule(rule)
    check_count(period, "period")

    def init(losses: Tensor, key: Tensor) -> State:
        none = torch.zeros_like(losses[0], dtype=torch.int64)
        return UpdateEveryState(rule.init(losses, key), torch.zeros_like(losses), none)

    def update(geometry: Geometry, state: UpdateEveryState) -> tuple[Tensor, State]:
        now, inner = rule.update(geometry, state.rule)
        due = (state.steps % period == 0) | ~(state.weights != 0).any()
        weights = torch.where(due, now, state.weights.to(now))
        inner = tree_map(lambda new, old: torch.where(due, new, old), inner, state.rule)
        held = UpdateEveryState(inner, weights.to(state.weights), state.steps + 1)
        return weights.where(geometry.present, 0.0), held

    return Rule(init, update, reading_also(rule, "present"))
