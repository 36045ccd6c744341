"""The probe of rules that read losses alone: one forward, one backward."""

from __future__ import annotations

from torch import Tensor

from ..core.checks import check_params
from ..gradients.linearize import linearize
from ..types import Batch, Geometry, LossesFn, Params, Probe, State, TaskGradients
from .common import (
    Present,
    check_leak,
    check_memory,
    check_present,
    first_losses,
    is_empty,
    labelled,
    labels,
    with_labels,
)


def losses_only(*, present: Present | None = None) -> Probe:
    """No gradient is measured: for rules that read losses alone, at the price of one backward pass.

    Args:
        present: `batch -> Bool[task]`, the tasks that have labels in this batch, as in
            `mtlfunc.jacobian`; None is all.

    Returns:
        a probe whose Gramian is `[0, 0]`, so that a rule that needs one raises; every parameter
        gets the gradient of Σ w_t L_t.

    Raises:
        TypeError: for `present` that is no function.

    Examples:
        >>> import torch, mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([params["x"], 3 * params["x"]])
        >>> step = mf.balance(losses, mf.mean(), mf.losses_only())
        >>> params = {"x": torch.tensor(1.0)}
        >>> step.update(params, (), step.init(params, ()))[0]["x"].item()
        2.0
    """
    check_present(present)

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        check_params(params)
        here = labels(present, batch)
        return first_losses(losses_fn, params, batch, tuple(params), present=here), ()

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        check_memory(is_empty(state))
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
