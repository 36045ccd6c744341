"""The probe of rules that read losses alone: one forward, one backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.checks import check_params, peers_here
from ..core.distributed import Group, agree, check_group
from ..gradients.linearize import Linear, linearize
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
    mask_of,
    with_labels,
)
from .together import Part, part_of, scaled, shares, summed, totals


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
    check_group(group)

    def init(
        losses_fn: LossesFn, params: Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, State]:
        peers = peers_here(group, params)

        def alone() -> tuple[tuple[Tensor, Tensor | None], dict[str, Any]]:
            check_params(params, group)
            counts = labels(present, batch, counts=group is not None)
            here = mask_of(counts)
            losses = first_losses(losses_fn, params, batch, tuple(params), present=here)
            return (losses, counts), {
                "the number of tasks": len(losses),
                "whether present= is given": present is not None,
            }

        losses, counts = agree(peers, alone)
        part = part_of(peers, counts)
        return losses if part is None else part.total(losses), ()

    def update(
        losses_fn: LossesFn, params: Params, batch: Batch, state: State
    ) -> tuple[TaskGradients, State]:
        check_memory(is_empty(state))
        counts = labels(present, batch, counts=group is not None)
        part, here = part_of(peers_here(group, params), counts), mask_of(counts)
        local = scaled(losses_fn, part, params) if part else with_labels(losses_fn, here)
        return weighted_losses(linearize(local, params, batch, shared=()), here, part), state

    return Probe(init, update, group, frozenset())


def weighted_losses(linear: Linear, here: Tensor | None, part: Part | None = None) -> TaskGradients:
    """The losses alone, and the gradient of their weighted sum."""
    if part is not None:
        linear, here = totals(linear, part)[0], part.present
    found = labelled(linear, here)
    geometry = Geometry(
        linear.losses, None, found.preference, found.present, shares(part, linear.losses)
    )

    def combined(weights: Tensor) -> Params:
        grads = summed(linear.pullback(weights), part.peers if part else None)
        check_leak(found, *grads.values())
        return grads

    return TaskGradients(found.losses, geometry, combined, found.aux)
