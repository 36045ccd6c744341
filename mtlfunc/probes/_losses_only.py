"""The probe of rules that read losses alone: one forward, one backward."""

from __future__ import annotations

from torch import Tensor

from ..core.checks import check_params
from ..gradients.linearize import linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, State, TaskGradients
from .common import Present, check_leak, first_losses, labelled, labels, with_labels


def losses_only(*, present: Present | None = None) -> Probe:
    """Measure no gradient: the Gramian is `[0, 0]`, so a rule that needs one raises; every
    parameter gets the gradient of Σ w_t L_t.

    The cost is that of one backward pass, whatever the number of tasks.

    Args:
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, as in
            `mtlfunc.jacobian`.
    """

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        return first_losses(
            losses_fn, params, batch, tuple(params), present=labels(present, batch)
        ), ()

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        here = labels(present, batch)
        linear = linearize(with_labels(losses_fn, here), params, batch, shared=())
        found = labelled(linear, here)
        geometry = Geometry(
            linear.losses, linear.losses.new_zeros(0, 0), found.preference, found.present, {}
        )

        def combined(weights: Tensor) -> Params:
            grads = linear.pullback(weights)
            check_leak(found, *grads.values())
            return grads

        return TaskGradients(found.losses, geometry, combined, found.aux), state

    return Probe(init, update)
