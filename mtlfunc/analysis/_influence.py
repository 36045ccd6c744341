"""What each sample of a batch does to another loss in the optimizer's next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from ..core.tree import parameters, trained
from ..gradients.levels import explained, without_trace
from ..gradients.losses import parse_samples
from ..gradients.rows import task_gradients
from ..gradients.run import UNCONNECTED
from ..training._metric import check_metric, metric_of
from ..types import Batch, LossesFn, Params


def influence(
    losses_fn: LossesFn,
    module: nn.Module,
    batch: Batch,
    target_fn: Callable[[Params], Tensor],
    optimizer: Any,
) -> Float[Tensor, "*entry"]:
    """By how much every sample's gradient lowers a target loss in the optimizer's next step.

    To first order, g_target·P g_n in the optimizer's metric P. The step -(c + P·g) is linear in the
    gradient, so samples add up: sample n of a mean over N contributes 1/N of its entry, and a step
    without it lowers the target by so much less. One gradient of the target and one pass in forward
    mode, for any number of samples: no rows and no Gramian.

    For SGD this is the step itself. Adam and its like also put the gradient into P, which is not
    counted (see `metric_error`).

    Args:
        losses_fn: `(params, batch) -> [sample]`, or `[sample, task]`.
        module: holds the parameters, at which losses are taken.
        batch: handed to `losses_fn`.
        target_fn: from parameters to the loss that is to fall, 0-d: on validation data, say.
        optimizer: as for `metric=` of `mtlfunc.Balancer`. It moves its own parameters alone.

    Returns:
        in the shape of the losses, learning rate included; positive where the sample helps.

    Raises:
        ValueError: for an optimizer without a metric, such as Muon, or that holds nothing that
            trains; for other shapes of losses and target, and those that ignore `params`.
        TypeError: for another module or optimizer.
        RuntimeError: where torch has no forward mode for `losses_fn`, and under autocast.

    Examples:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [-3.0]])
        >>> influence(
        ...     lambda p, x: (x @ p["weight"].T)[:, 0], net, x, lambda p: p["weight"].sum(),
        ...     torch.optim.SGD(net.parameters(), lr=0.5))
        tensor([ 0.5000, -1.5000])
    """
    params, leaves = parameters(module), trained(module)
    check_metric(optimizer)
    held = {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}
    names = tuple(name for name, leaf in leaves.items() if id(leaf) in held)
    if not names:
        raise ValueError(
            "optimizer: it holds none of the module's parameters that train; pass one that does"
        )
    metric = metric_of(optimizer, leaves, names, None)

    def aimed(params: Params, _: Batch) -> Tensor:
        loss = target_fn(params)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            raise ValueError("target_fn: expected a 0-d tensor, floating, such as a mean loss")
        return loss[None]

    with explained(params), without_trace(params):
        try:
            aim = task_gradients(aimed, params, None)[1]
        except (ValueError, RuntimeError) as error:
            if "losses_fn" not in str(error):
                raise
            raise type(error)(str(error).replace("losses_fn", "target_fn")) from error
    moved = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    moved |= {name: metric.scale[name] * aim[name][0] for name in names}
    at = (params,), (moved,)
    with explained(params), without_trace(params):
        try:
            return jvp(lambda p: parse_samples(losses_fn(p, batch)).vector, *at, strict=True)[1]
        except RuntimeError as error:
            if "strict=True" in str(error):
                raise ValueError(UNCONNECTED) from error
            raise
