"""Excess risks: how far each task is from convergence, by its accumulated gradients (ExcessMTL)."""

import torch
from torch import Tensor

from ..core.tree import same_shapes
from ..processes import Group
from ..types import Batch, Heads, Probe, Select, State, TaskGradients, constructor
from .common import Present, Run, answer, check_memory, check_options


@constructor
def excess_risk(
    shared: Select = "*", *, present: Present | None = None, heads: Heads | None = None,
    group: Group = None,
) -> Probe:  # fmt: skip
    """`mtlfunc.jacobian`, and how far each task is from convergence, e_t = Σ_k J_tk²/√S_tk.

    S ← S + J∘J sums squares over the steps, so e_t is g_tᵀH_t⁻¹g_t with AdaGrad's diagonal for H_t.

    Args:
        shared: which parameters the tasks share, as in `mtlfunc.jacobian`.
        present: as in `mtlfunc.jacobian`; a task's squares stand still where it is absent.
        heads: the gradient of the other parameters, as in `mtlfunc.jacobian`.
        group: as in `mtlfunc.jacobian`; all processes keep the same memory.

    Returns:
        a probe with T rows of squares to remember; `geometry.extra["excess_risk"]` is e `[task]`,
        homogeneous like a gradient's length.

    Raises:
        ValueError: for what `mtlfunc.jacobian` refuses.

    Source:
        He et al. 2024, eqs. 6–7; 0/√0 is 0, where official code, LibMTL and TorchJD add 1e-7.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([3 * params["x"], -4 * params["x"]])
        >>> probe, params = excess_risk(), {"x": torch.tensor(1.0)}
        >>> _, state = probe.init(mf.Run.of(losses, params), (), mf.random.key(0))
        >>> measured, _ = probe.update(mf.Run.of(losses, params), (), state)
        >>> measured.geometry.extra["excess_risk"].tolist()
        [3.0, 4.0]
    """

    options = check_options(shared, heads=heads, present=present, group=group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        losses = options.start(run, batch)
        return losses, options.zeros(run, len(losses))

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        found, metric = options.measure(run, batch, rows=True)
        check_memory(same_shapes(state, found.rows))
        rows = {name: x.to(state[name]) for name, x in found.rows.items()}  # an absent task's is 0
        squares = {name: s + rows[name].square() for name, s in state.items()}
        roots = {name: s.where(s > 0, 1.0).sqrt() for name, s in squares.items()}  # 0/√0 is 0
        risks = [(rows[name].square() / x).reshape(len(x), -1).sum(1) for name, x in roots.items()]
        extra = {"excess_risk": torch.stack(risks).sum(0)}
        return answer(found, metric, extra), squares

    measures = frozenset({"gramian", "excess_risk"})
    return Probe(init, update, group, measures, options.shared, metric=True)
