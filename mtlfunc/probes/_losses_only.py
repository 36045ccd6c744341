"""The probe of rules that read losses alone: one forward, one backward."""

from __future__ import annotations

from torch import Tensor

from ..processes import Group
from ..types import Batch, Geometry, Params, Probe, State, TaskGradients, constructor
from .common import Present, Run, check_leak, check_memory, check_options


@constructor
def losses_only(*, present: Present | None = None, group: Group = None) -> Probe:
    """No gradient is measured: for rules that read losses alone, at the price of one backward pass.

    Args:
        present: the tasks that have labels in this batch, as in `mtlfunc.jacobian`.
        group: as in `mtlfunc.jacobian`; the step's gradient is all-reduced.

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
    options = check_options(present=present, group=group)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        return options.start(run, batch, several=False), ()

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        check_memory(isinstance(state, tuple) and not state)
        found, _ = options.measure(run, batch)
        geometry = Geometry(found.mixed, None, found.preference, found.present, {})

        def combine(weights: Tensor) -> Params:
            grads = found.combine(weights)
            check_leak(found, *grads.values())
            return grads

        return TaskGradients(found.losses, geometry, combine, found.aux, found.part), state

    return Probe(init, update, group, frozenset())
