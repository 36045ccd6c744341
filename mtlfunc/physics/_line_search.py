"""The best of several lengths of a step, by one mapped forward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ..core.tree import map_params, same_shapes
from ..types import Batch, LineSearch, Params


def line_search(
    objective: Callable[[Params, Batch], Tensor],
    params: Params,
    direction: Params,
    batch: Batch,
    factors: Float[Tensor, " factor"],
) -> LineSearch:
    """The step x - a·d with the lowest objective, over some lengths a, by one forward pass that is
    mapped over all of them. A device picks the length itself.

    Args:
        objective: `(params, batch) -> ` a 0-d tensor, for instance half the sum of the residuals'
            squares; `torch.func.vmap` maps it over the parameters.
        params: x.
        direction: d, with the names and shapes of `params`: the gradient of a step.
        batch: handed to `objective`.
        factors: the lengths a `[factor]`, for instance `0.5 ** torch.arange(8)`. With 0 among them
            the objective never rises.

    Returns:
        the parameters after the best step, its length, and the objective at all lengths. NaN counts
        as the worst, and makes the step NaN where all are; the first of equal lengths is taken.

    Raises:
        ValueError: for factors that are not a vector, a direction of other names or shapes than
            `params`, or an objective that is not 0-d.

    Examples:
        >>> found = line_search(
        ...     lambda params, batch: (params["x"] - batch).square(), {"x": torch.tensor(0.0)},
        ...     {"x": torch.tensor(-4.0)}, torch.tensor(1.0), torch.tensor([1.0, 0.5, 0.25]))
        >>> found.factor.item(), found.params["x"].item()
        (0.25, 1.0)
    """
    if not isinstance(factors, Tensor) or factors.ndim != 1 or not len(factors):
        found = list(factors.shape) if isinstance(factors, Tensor) else type(factors).__name__
        raise ValueError(f"factors: expected a tensor [factor] of step lengths, got {found}")
    if not same_shapes(direction, params):
        raise ValueError("direction: expected a tensor for each of params, in its shape")

    def moved(factor: Tensor) -> Params:
        return map_params(lambda x, d: x - (factor * d).to(x.dtype), params, direction)

    def value(factor: Tensor) -> Tensor:
        answer = objective(moved(factor), batch)
        if not isinstance(answer, Tensor) or answer.ndim:
            shape = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"objective: expected a 0-d tensor, got {shape}; sum the losses")
        return answer

    values = vmap(value)(factors)
    best = factors.gather(0, values.detach().nan_to_num(torch.inf).argmin(keepdim=True))[0]
    best = best.where(~values.isnan().all(), torch.nan)
    return LineSearch(moved(best), best, values)
