"""Gramians G = J Jᵀ of task and sample gradients, layer by layer; the matrix J is never formed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_dtype, check_option, check_params
from ..core.transforms import enable_grad
from ..core.tree import dot, real_of, root, select
from ..types import Batch, LossesFn, Params, Rows, Select
from .by_samples import BySamples, gramian_of_samples, split_samples, squares_of_samples
from .explain import Explanation, explanation
from .layerwise.plan import Engine
from .levels import without_trace
from .losses import Losses, parse_samples
from .operator import TaskJacobian, task_jacobian, with_zeros
from .run import check_connected, run


def task_gramian(
    losses_fn: LossesFn, params: Params, batch: Batch, *, shared: Select = "*",
    weightings: Tensor | None = None, engine: Engine = "auto", chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " task"], Float[Tensor, "task task"]]:  # fmt: skip
    """Losses and the Gramian of the tasks' gradients: `mtlfunc.task_jacobian(...).gramian()`.

    Args:
        losses_fn: `(params, batch) -> losses`, a vector `[task]` or a tuple or dict of T scalars.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters to sum over, as in `task_jacobian`.
        weightings: as in `task_jacobian`.
        engine: as in `task_jacobian`.
        chunk_size: as in `task_jacobian`.
        gramian_dtype: the dtype of the accumulation; None is the rows' own, at least float32.
            float64 is worth its cost near Pareto stationarity, where float32 Gramians are noise.

    Returns:
        losses `[task]` on `batch`, and G `[task, task]`.

    Raises:
        ValueError: as in `task_jacobian`, and its other errors.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> task_gramian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    jacobian = task_jacobian(
        losses_fn, params, batch, shared=shared, weightings=weightings, engine=engine,
        chunk_size=chunk_size,
    )  # fmt: skip
    return jacobian.losses, jacobian.gramian(dtype=gramian_dtype)


def sample_gramian(
    losses_fn: LossesFn, params: Params, batch: Batch, *, shared: Select = "*",
    engine: Engine = "auto", gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*entry"], Float[Tensor, "n n"]]:  # fmt: skip
    """Losses and the Gramian of per-sample gradients, from one backward pass a task.

    One pass holds the deltas of all samples, however many there are; the autograd graph proves
    that they do not mix (as for dense, convolutional, recurrent, attention networks). Leaves that
    another operation reads cost one backward pass a sample and task (`explain_gramian(...,
    samples=True)` names them).

    Args:
        losses_fn: `(params, batch) -> [sample]` or `[sample, task]`, row i of sample i only.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: as in `task_gramian`.
        engine: `"auto"` and `"layerwise"` are the same here; `"rows"` differentiates every entry,
            whatever it depends on, as all do where `losses_fn` puts hooks on derivatives.
        gramian_dtype: as in `task_gramian`.

    Returns:
        the losses on `batch` as they came and the Gramian `[n, n]` over the flattened losses.
        `diagnostics.sample_noise` reads noise off it; `sample_norms` has its diagonal for less.

    Raises:
        TypeError: as in `task_jacobian`.
        ValueError: as there, and where the graph does not prove that samples stay separate
            (train-mode batch norm, a contrastive loss, an operation that it does not know).
        RuntimeError: as there, and for an embedding with `scale_grad_by_freq=True`.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> sample_gramian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    losses, side, rows = _by_sample(losses_fn, params, batch, shared, engine, gramian_dtype)
    with enable_grad() if side else nullcontext():
        gramian = gramian_of_samples(side) if side else dot(rows, rows, rows, gramian_dtype)
    return losses, 0.5 * (gramian + gramian.mT)


def sample_norms(
    losses_fn: LossesFn, params: Params, batch: Batch, *, shared: Select = "*",
    engine: Engine = "auto", gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*entry"], Float[Tensor, "*entry"]]:  # fmt: skip
    """Losses and the lengths ‖g‖ of per-sample gradients: the roots of `sample_gramian`'s diagonal.

    From the same passes, but each sample's own inputs and deltas alone enter: cost and memory grow
    with the number of samples, not with its square. Rows of other leaves are made a few at a time.

    Args:
        losses_fn: as in `sample_gramian`.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: as in `task_gramian`.
        engine: as in `sample_gramian`; `"rows"` holds a row of every entry at once.
        gramian_dtype: as in `task_gramian`.

    Returns:
        the losses as they came, `[sample]` or `[sample, task]`, and the lengths in their shape, for
        `diagnostics.noise_scale`, clipping or a choice of samples. A length 0 has the derivative 0.

    Raises:
        ValueError: as in `sample_gramian`, and its other errors.

    Source:
        Goodfellow 2015 (arXiv:1510.01799) for linear layers.

    Examples:
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> sample_norms(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [5.0, 1.0]
    """
    losses, side, rows = _by_sample(losses_fn, params, batch, shared, engine, gramian_dtype)
    if side:
        with enable_grad():
            squares = squares_of_samples(side)
    else:
        wide = gramian_dtype or torch.promote_types(losses.dtype, torch.float32)
        parts = [x.to(wide).square().reshape(losses.numel(), -1).sum(1) for x in rows.values()]
        squares = torch.stack(parts).sum(0)
    return losses, root(squares).reshape(losses.shape)


def explain_gramian(
    losses_fn: LossesFn, params: Params, batch: Batch, *, shared: Select = "*",
    samples: bool = False, combined: bool = False, weightings: Tensor | None = None,
) -> Explanation:  # fmt: skip
    """How `engine="auto"` makes the Gramian, layer by layer, from one forward pass alone.

    Args:
        losses_fn: as in `task_gramian`; with `samples` as in `sample_gramian`.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: as in `task_gramian`.
        samples: explain the per-sample Gramian.
        combined: the rows are combined afterwards, as in the probe `jacobian`: a plan without rows
            then pays one more backward pass.
        weightings: explain the Gramian of these, as in `task_gramian`.

    Returns:
        an object with `.layers`, `.rows` and `.passes`, and a table as its `str`. The
        floating-point operations are those of a layer's part of G from inputs and deltas, or rows.

    Raises:
        ValueError: as in `task_gramian`; for `samples` with `weightings`, or where samples mix.

    Examples:
        >>> import torch
        >>> losses = lambda p, x: torch.nn.functional.linear(x, p["w"]).square().mean(0)
        >>> print(explain_gramian(losses, {"w": torch.ones(4, 300)}, torch.ones(2, 300)))
        4 rows; engine "rows" throughout: too little for layer products to save
        leaf  calls   form  GFLOP     alternatives, GFLOP
        w     linear  rows  5.76e-05  gemm 5.76e-05, kernel 2.78e-06
    """
    if samples and weightings is not None:
        raise ValueError("samples: not with weightings=, another Gramian; leave one of them out")
    check_params(params)
    with without_trace(params), torch.no_grad():
        if samples:
            forward = run(losses_fn, params, batch, parse=parse_samples, separable=False)
            jacobian = TaskJacobian(forward, select(params, shared), params, "auto")
        else:
            given = {"shared": shared, "weightings": weightings}
            jacobian = task_jacobian(losses_fn, params, batch, **given)
    return explanation(jacobian, samples=samples, combined=combined)


def _by_sample(
    losses_fn: LossesFn, params: Params, batch: Batch, shared: Select, engine: Engine,
    dtype: torch.dtype | None,
) -> tuple[Tensor, BySamples | None, Rows]:  # fmt: skip
    """Losses of samples as they came, and their pass split by sample, or a row of every entry."""
    check_params(params)
    check_option(engine, "engine", get_args(Engine))
    check_dtype(dtype, "gramian_dtype", none=True)
    names, apart = select(params, shared), engine != "rows" and not torch.compiler.is_compiling()

    def flat_losses(out: Any) -> Losses:
        losses = parse_samples(out).vector
        return Losses(losses.flatten(), aux=losses)

    parse = parse_samples if apart else flat_losses
    forward = run(losses_fn, params, batch, parse=parse, separable=not apart)
    check_connected(forward, samples=True)
    if apart and not any(name in forward.params for name in names):
        return forward.value, None, with_zeros(real_of(params), {}, names, forward.value.numel())
    if apart:
        return forward.value, split_samples(forward, names, dtype), {}
    return forward.aux, None, TaskJacobian(forward, names, real_of(params)).rows()
