"""Excess risks: how far each task is from convergence, by its accumulated gradients (ExcessMTL)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.tree import same_shapes
from ..processes import Group
from ..types import Blocks, Probe, Rows, Select, State, constructor
from ._jacobian import Edit, Heads, RowOptions, row_probe
from .common import Present, check_memory
from .groups import Groups


@constructor
def excess_risk(
    shared: Select = "*",
    *,
    param_groups: Groups | None = None,
    present: Present | None = None,
    heads: Heads = "weighted",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
    group: Group = None,
) -> Probe:
    """`mtlfunc.jacobian`, and how far each task is from convergence, e_t = Σ_k J_tk²/√S_tk.

    S ← S + J∘J sums squares over the steps, so e_t is g_tᵀH_t⁻¹g_t with AdaGrad's diagonal for H_t.

    Args:
        shared: which parameters the tasks share: a glob on names, a predicate, a module, or several
            globs, modules or parameters.
        param_groups: groups of shared parameters, each with weights of its own, as in
            `mtlfunc.jacobian`; None is one group.
        present: `batch -> Bool[task]`, the tasks that have labels, as in `mtlfunc.jacobian`; a
            task's squares stand still where it is absent. None is all.
        heads: the gradient of the other parameters, as in `mtlfunc.jacobian`; `"weighted"`, since
            the method weighs losses (with groups, `"plain"` or `"own"`).
        chunk_size: rows differentiated in one batched pass; None is all.
        gramian_dtype: dtype of the Gramian's accumulation; None is the rows' own, at least float32.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`; all keep the
            same memory.

    Returns:
        a probe with T rows of squares to remember; `geometry.extra["excess_risk"]` is e, `[task]`
        or `[group, task]`. It is homogeneous, like a gradient's length.

    Raises:
        ValueError: for what `mtlfunc.jacobian` refuses.

    Source:
        He et al. 2024, eqs. 6–7. The official code, LibMTL and TorchJD add 1e-7 under the root;
        here 0/√0 is 0.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([3 * params["x"], -4 * params["x"]])
        >>> probe, params = excess_risk(), {"x": torch.tensor(1.0)}
        >>> _, state = probe.init(mf.Run(losses, params), (), mf.random.key(0))
        >>> measured, _ = probe.update(mf.Run(losses, params), (), state)
        >>> measured.geometry.extra["excess_risk"].tolist()
        [3.0, 4.0]
    """

    def update(
        rows: Rows, present: Tensor, blocks: Blocks, state: State
    ) -> tuple[Rows, dict[str, Tensor], State]:
        check_memory(same_shapes(state, rows))
        # an absent task's row is 0
        squares = {name: s + rows[name].square() for name, s in state.items()}
        risks = {name: _risk(rows[name], squares[name]) for name in rows}
        members = blocks or (tuple(rows),)
        groups = [torch.stack([risks[name] for name in names]).sum(0) for names in members]
        return rows, {"excess_risk": torch.stack(groups) if blocks else groups[0]}, squares

    options = RowOptions(
        shared,
        edit=Edit(lambda zeros: zeros, update, frozenset({"excess_risk"})),
        param_groups=param_groups,
        present=present,
        heads=heads,
        chunk_size=chunk_size,
        gramian_dtype=gramian_dtype,
        group=group,
    )
    return row_probe(options)


def _risk(row: Tensor, squares: Tensor) -> Tensor:
    """Σ J²/√S over the coordinates of one leaf, [task]; 0/√0 is 0."""
    risk = row.square() / squares.where(squares > 0, 1.0).sqrt()
    return risk.reshape(len(row), -1).sum(1)
