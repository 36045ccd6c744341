"""Excess risks: how far every task is from convergence, by squared gradients over their accumulated
size (ExcessMTL).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Probe, Rows, Select, State
from ._jacobian import Edit, Heads, row_probe
from .common import Present
from .groups import Blocks, Groups


def excess_risk(
    shared: Select = "*",
    *,
    groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "weighted",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Probe:
    """S ← S + J∘J, and for every task e_t = Σ_k J_tk²/√S_tk, which is g_tᵀH_t⁻¹g_t with AdaGrad's
    diagonal for H_t: `geometry.extra["excess"]` `[task]`.

    Args:
        shared, groups, present, chunk_size, gramian_dtype: as in `mtlfunc.jacobian`; a task's
            squares stand still where it is absent. With groups e is `[group, task]`.
        heads: as there, but `"weighted"` unless asked for: the method weighs losses (with groups,
            `"plain"` or `"own"`).

    Returns:
        `mtlfunc.jacobian`'s probe, with T rows of squares to remember and e in the geometry. e is
        homogeneous, like a gradient's length.

    Raises:
        ValueError: as in `mtlfunc.jacobian`.

    Source:
        He et al. 2024, eqs. 6–7. The official code, LibMTL and TorchJD add 1e-7 under the root;
        here 0/√0 is 0.
    """

    def init(zeros: Rows) -> State:
        return zeros

    def update(
        rows: Rows, present: Tensor, blocks: Blocks, state: Rows
    ) -> tuple[Rows, dict[str, Tensor], State]:
        # an absent task's row is 0
        squares = {name: s + rows[name].square() for name, s in state.items()}
        risks = {
            name: (rows[name].square() / squares[name].where(squares[name] > 0, 1.0).sqrt())
            .flatten(1)
            .sum(1)
            for name in rows
        }
        groups = [
            torch.stack([risks[name] for name in names]).sum(0)
            for names in blocks or (tuple(rows),)
        ]
        return rows, {"excess": torch.stack(groups) if blocks else groups[0]}, squares

    return row_probe(
        shared,
        edit=Edit(init, update),
        groups=groups,
        present=present,
        heads=heads,
        chunk_size=chunk_size,
        gramian_dtype=gramian_dtype,
    )
