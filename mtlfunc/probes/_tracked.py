"""Rows averaged over steps: the geometry of tracked gradients (MoCo, DB-MTL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import can_look, check_scalar
from ..types import Probe, Rows, Scalar, Select, State
from ._jacobian import Edit, Heads, row_probe
from .common import Present
from .groups import Blocks, Groups

Rate = Scalar | Callable[[Tensor], Tensor]


class TrackedState(NamedTuple):
    rows: Rows  # Y, {name: [task, *shape]}
    # how much of Y is gradients, the rest being its start at 0: 1 - Π(1 - β)
    mass: Float[Tensor, " task"]
    steps: Int[Tensor, " task"]


def tracked(
    shared: Select = "*",
    *,
    rate: Rate = 0.1,
    corrected: bool = False,
    measure: Select | None = None,
    groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "plain",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Probe:
    """Y ← Y - β(Y - J), from Y = 0: the Gramian is YYᵀ, and the combination is of the rows of Y.

    Args:
        shared, measure, groups, present, heads, chunk_size, gramian_dtype: as in
            `mtlfunc.jacobian`. A task's row stands still where it is absent.
        rate: β in (0, 1], or a function of the step, counted from 1 for each task `[task]`: `lambda
            k: 0.5 / k**0.5`; 1 does not average at all.
        corrected: divide Y by 1 - Π(1 - β), as Adam does: an average of gradients from the first
            step on, where Y itself starts β times as long.

    Returns:
        a probe that remembers T rows over the shared parameters. Weights 1/T give the tracked mean
        gradient there, the current one on the heads.

    Raises:
        ValueError: as in `mtlfunc.jacobian`, and for a rate outside (0, 1].

    Source:
        Fernando et al. 2023, Algorithm 1 (MoCo: `rate` is β_k, not corrected). DB-MTL's average
        (Lin et al. 2023, section 3.2), with decay β/k^σ, is `rate=lambda k: 1 - 0.9 / k**0.5,
        corrected=True`; its code does not correct, so the first step is a tenth as long.
    """
    if not callable(rate):
        check_scalar(rate, "rate", positive=True)
        if can_look(rate) and rate > 1:
            raise ValueError(f"rate: expected a number in (0, 1], got {float(rate)}")

    def init(zeros: Rows) -> State:
        first = next(iter(zeros.values()))
        count = first.new_zeros(len(first))
        return TrackedState(zeros, count, count.to(torch.int64))

    def update(
        rows: Rows, present: Tensor, blocks: Blocks, state: TrackedState
    ) -> tuple[Rows, dict[str, Tensor], State]:
        steps = state.steps + present
        beta = (
            rate(steps.clamp_min(1).to(state.mass)) if callable(rate) else rate
        ) * torch.ones_like(state.mass)
        if callable(rate) and can_look(beta) and not bool(((beta > 0) & (beta <= 1)).all()):
            raise ValueError(
                f"rate: expected numbers in (0, 1], got {beta.tolist()} at steps {steps.tolist()}"
            )
        beta = beta.to(state.mass).where(present, 0.0)

        def over(vector: Tensor, leaf: Tensor) -> Tensor:
            return vector.reshape(-1, *[1] * (leaf.ndim - 1)).to(leaf.dtype)

        mass = state.mass + beta * (1 - state.mass)
        kept = {name: y + over(beta, y) * (rows[name] - y) for name, y in state.rows.items()}
        shown = present.to(mass) / mass.where(mass > 0, 1.0) if corrected else present.to(mass)
        return (
            {name: over(shown, y) * y for name, y in kept.items()},
            {"tracked": steps},
            TrackedState(kept, mass, steps),
        )

    return row_probe(
        shared,
        measure=measure,
        edit=Edit(init, update),
        groups=groups,
        present=present,
        heads=heads,
        chunk_size=chunk_size,
        gramian_dtype=gramian_dtype,
    )
