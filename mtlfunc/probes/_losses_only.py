"""The probe of rules that read losses alone: one forward, one backward."""

from __future__ import annotations

from torch import Tensor

from ..core.checks import check_params
from ..processes import Group
from ..types import Batch, Geometry, Params, Probe, State, TaskGradients, constructor
from .common import Present, Run, check_leak, check_memory, checked, first_losses


@constructor
def losses_only(*, present: Present | None = None, group: Group = None) -> Probe:
    """No gradient is measured: for rules that read losses alone, at the price of one backward pass.

    Args:
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, as in
            `mtlfunc.jacobian`; None is all.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`; the step's
            gradient is all-reduced.

    Returns:
        a probe without a Gramian: `mtlfunc.balance` refuses a rule that reads one. Every parameter
        gets the gradient of Σ w_t L_t.

    Raises:
        TypeError: for `present` that is not a function.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([params["x"], 3 * params["x"]])
        >>> step = mf.balance(losses, mf.mean(), mf.losses_only())
        >>> params = {"x": torch.tensor(1.0)}
        >>> step.update(params, (), step.init(params, ()))[0]["x"].item()
        2.0
    """
    checked("*", None, present, group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        check_params(run.params, mixed=group is None)
        counts = run.labels(present, batch, counts=group is not None)
        losses = first_losses(run, batch, tuple(run.params), counts=counts)
        return run.started(losses, counts), ()

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, tuple) and not state)
        counts = run.labels(present, batch, counts=group is not None)
        found = run(batch, counts).measure()
        geometry = Geometry(found.mixed, None, found.preference, found.present, {})

        def combined(weights: Tensor) -> Params:
            grads = found.combine(weights)
            check_leak(found, *grads.values())
            return grads

        return TaskGradients(found.losses, geometry, combined, found.aux, found.part), state

    return Probe(init, update, group, frozenset())
