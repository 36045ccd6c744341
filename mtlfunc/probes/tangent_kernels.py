"""A probe that also measures the trace of every term's neural tangent kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.checks import check_option
from ..core.expect import expect_function, expect_probe
from ..gradients import sample_norms
from ..gradients.operator import Engine
from ..types import Batch, Params, Probe, State, TaskGradients, constructor
from .common import Run

Residuals = Callable[[Params, Batch], Tensor]
"""Of one term of the loss, at its points: `[n]`."""

Trace = Literal["sum", "mean"]


@constructor
def kernel_traces(
    residuals: Sequence[Residuals], probe: Probe, *, trace: Trace = "sum", engine: Engine = "auto"
) -> Probe:
    """Another probe, and tr K_k = Σ_i ‖∇r_ki‖² for every term k of the loss: the trace of the
    neural tangent kernel of its residuals r_k.

    It costs one more forward and backward pass a term (`mtlfunc.sample_norms`).

    Args:
        residuals: one function `(params, batch) -> [n_k]` a task, in the order of the losses: the
            signed residuals, of which the loss is the mean square.
        probe: any probe whose rows are the tasks, such as `mtlfunc.losses_only()`.
        trace: "sum" over a term's points, as published, or "mean", whatever their number.
        engine: as in `mtlfunc.sample_norms`; "rows" for residuals that share a mean over points.

    Returns:
        a probe that measures as the given one does; `geometry.extra` gets `trace` `[task]`.

    Raises:
        TypeError: for a probe or residuals that are none.
        ValueError: for no functions, another `trace` or `engine`, a probe of several processes; at
            a step, for a term without points or another number of tasks.

    Source:
        Wang, Yu & Perdikaris 2022 (arXiv:2007.14527).

    Examples:
        >>> import torch, mtlfunc as mf
        >>> terms = [lambda p, x: p["a"] * x, lambda p, x: 3 * p["a"] - x[:1]]
        >>> losses = lambda p, x: tuple(term(p, x).square().mean() for term in terms)
        >>> probe = mf.physics.kernel_traces(terms, mf.losses_only())
        >>> step = mf.balance(losses, mf.physics.ntk(), probe)
        >>> params, x = {"a": torch.ones(1)}, torch.tensor([1.0, 2.0])
        >>> _, _, info = step.update(params, x, step.init(params, x))
        >>> info.weights.tolist()  # traces 5 and 9: (5 + 9)/5 and (5 + 9)/9, halved
        [1.39..., 0.77...]
    """
    expect_probe(probe)
    check_option(trace, "trace", get_args(Trace))
    check_option(engine, "engine", get_args(Engine))
    if not isinstance(residuals, list | tuple) or not len(residuals):
        raise ValueError(
            "residuals: expected a list of functions (params, batch) -> [n], one a task in the "
            f"order of the losses, got {type(residuals).__name__} {residuals!s:.40}"
        )
    for i, term in enumerate(residuals):
        expect_function(term, f"residuals[{i}]", "params, batch")
    if probe.group is not None:
        raise ValueError(
            "probe: kernel_traces does not sum over processes; leave group= out of its probe"
        )

    def update(run: Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        measured, state = probe.update(run, batch, state)
        geometry = measured.geometry
        if len(residuals) != len(geometry.losses):
            raise ValueError(
                f"residuals: {len(residuals)} functions for {len(geometry.losses)} losses; give "
                "one a task, in the order of the losses"
            )
        traces = [_squares(i, term, run.params, batch, engine) for i, term in enumerate(residuals)]
        traces = [x.sum() if trace == "sum" else x.mean() for x in traces]
        extra = geometry.extra | {"trace": torch.stack(traces).to(geometry.losses)}
        return measured._replace(geometry=geometry._replace(extra=extra)), state

    measures = None if probe.measures is None else probe.measures | {"trace"}
    return probe._replace(update=update, measures=measures, calls_model=True)


def _squares(index: int, term: Residuals, params: Params, batch: Batch, engine: Engine) -> Tensor:
    """‖∇r_i‖² `[n]` of a term's residuals."""

    def vector(params: Params, batch: Batch) -> Tensor:
        found = term(params, batch)
        if not isinstance(found, Tensor) or found.ndim != 1 or not len(found):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"residuals[{index}]: expected residuals [n] of n > 0 points, got {shape}"
            )
        return found

    return sample_norms(vector, params, batch, engine=engine)[1].square()
