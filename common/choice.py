"""One rule of several, as a lane of one program."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import mtlfunc as mf


def one_of(rules: Sequence[mf.Rule], which: Tensor) -> mf.Rule:
    """The rule `rules[which]`.

    All are worked out and one is taken, so that lanes of different rules make one program.
    """

    def update(geometry: mf.Geometry, states: Any) -> tuple[Tensor, Any]:
        weights, states = zip(
            *(rule.update(geometry, state) for rule, state in zip(rules, states, strict=True)),
            strict=True,
        )
        return torch.stack(weights).index_select(0, which.reshape(1))[0], states

    return mf.Rule(lambda losses, key: tuple(rule.init(losses, key) for rule in rules), update)
