"""Any probe, on the logarithms of the losses: gradients ∇L/L, which have no units (DB-MTL)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import check_scalar, poison, values_readable
from ..core.expect import expect_probe
from ..gradients.losses import Losses
from ..types import Batch, Params, Probe, Scalar, State, TaskGradients, constructor
from ._double_sampling import stepped_on
from .common import Run


@constructor
def log_losses(probe: Probe, eps: Scalar = 0.0) -> Probe:
    """Another probe on log(L + eps) instead of L: rows are ∇L/(L + eps).

    The heads also follow the logarithms.

    Args:
        probe: any, `mtlfunc.moving_average(...)` for DB-MTL; `mtlfunc.representation`'s decode must
            give the logarithms itself.
        eps: >= 0, in the losses' unit. 0, the default, is exactly scale-free; DB-MTL's code adds
            1e-8.

    Returns:
        a probe whose geometry holds the logarithms; `Info.losses` shows the losses. Where L + eps
        <= 0 the step raises; where values cannot be read, Gramian and gradients are NaN.

    Raises:
        TypeError: for `probe` that is none.
        NotImplementedError: for a probe with `group=`.
        ValueError: for eps < 0; at a step, for a loss that has no logarithm.

    Source:
        Lin et al. 2023 (DB-MTL), section 3.1.

    Examples:
        >>> import mtlfunc as mf
        >>> losses = lambda params, batch: torch.stack([params["x"], 100 * params["x"]])
        >>> probe, params = log_losses(mf.jacobian()), {"x": torch.tensor(2.0)}
        >>> _, state = probe.init(mf.Run(losses, params), (), mf.random.key(0))
        >>> probe.update(mf.Run(losses, params), (), state)[0].geometry.gramian.tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    expect_probe(probe)
    if probe.group is not None:
        raise NotImplementedError(
            "probe: the logarithm of a group's loss is not the mean of its processes' logarithms; "
            "log_losses takes probes without group="
        )
    check_scalar(eps, "eps")

    def logarithm(x: Tensor) -> Tensor:
        positive = x + eps > 0  # an absent task's 0 must have no infinite derivative, nor a NaN one
        return torch.where(positive, (x + eps).where(positive, 1.0).log(), float("nan"))

    def logged(losses: Losses) -> Losses:
        aux = losses.vector, losses.aux
        if losses.scalars is None:
            return Losses(logarithm(losses.vector), None, losses.names, aux)
        scalars = tuple(logarithm(x) for x in losses.scalars)
        return Losses(torch.stack(scalars), scalars, losses.names, aux)

    def init(run: Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        try:
            return probe.init(run.edited(logged), batch, key)
        except ValueError as error:
            error.add_note("log_losses: the losses are logarithms here, NaN where L + eps <= 0")
            raise

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        measured, state = probe.update(run.edited(logged), batch, state)
        if not measured.aux:  # of a representation, whose decode gave the logarithms
            losses, aux = measured.losses.exp() - eps, ()
            several = (losses,)
        elif isinstance(measured.aux[0], Tensor):
            losses, aux = measured.aux
            several = (losses,)
        else:  # one such pair for each of several batches
            several, aux = zip(*measured.aux, strict=True)
            losses, aux = torch.stack(stepped_on(several)).mean(0), () if aux[0] == () else aux
        geometry = measured.geometry
        positive = (torch.stack(several) + eps > 0).all(0)
        if geometry.present.shape == positive.shape:
            positive = positive | ~geometry.present
        _check_positive(positive, losses)
        # a logarithm that is NaN has a derivative of 0
        nothing = torch.zeros_like(losses).where(positive, torch.nan)
        if geometry.gramian is not None:
            geometry = geometry._replace(gramian=poison(geometry.gramian, nothing))
        inner = measured.combine

        def combine(weights: Tensor) -> Params:
            return {name: poison(grad, nothing) for name, grad in inner(weights).items()}

        return measured._replace(losses=losses, geometry=geometry, combine=combine, aux=aux), state

    logs = {"log_gramian"} if "gramian" in (probe.measures or ()) else set()
    measures = None if probe.measures is None else probe.measures | logs
    return probe._replace(init=init, update=update, measures=measures)


def _check_positive(positive: Tensor, losses: Tensor) -> None:
    if not values_readable(positive, losses) or not bool(losses.isfinite().all()):
        return  # of data that are not finite the step says so
    tasks = (~positive).nonzero().flatten().tolist()
    if tasks:
        raise ValueError(
            f"log_losses: tasks {tasks} (counted from 0) have L + eps <= 0, which has no "
            "logarithm; use losses that are positive, or a larger eps"
        )
