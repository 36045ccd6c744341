"""Gramians G = J Jᵀ of task and sample gradients, layer by layer; the matrix J is never formed."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import check_dtype, check_params, enable_grad
from ..core.tree import dot, root, select
from ..types import Batch, LossesFn, Params, Rows, Select
from .by_samples import BySamples, gramian_of_samples, split_samples, squares_of_samples
from .layerwise.plan import Engine
from .linearize import Request, linearize
from .losses import Losses, parse_samples
from .operator import check_engine, task_jacobian
from .run import check_connected, run


def task_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    weightings: Tensor | None = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " task"], Float[Tensor, "task task"]]:
    """Losses and the Gramian of the tasks' gradients.

    Args:
        losses_fn: `(params, batch) -> losses`, a vector `[task]` or a tuple or dict of T scalars.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters to sum over: a glob on their names, a list of globs, a predicate
            on names, a module (`net.trunk`) or parameters of one.
        weightings: A `[task, sample]`, or `[task, sample, part]`: task k has the loss Σ A_kn ℓ_n of
            the ℓ `[sample]`, or `[sample, part]`, that `losses_fn` then returns, and all tasks cost
            one backward pass (one a part).
        engine: `"layerwise"` takes the inputs and deltas of every layer it knows and forms no row
            of it where that is cheaper (linear, convolutions, embedding, attention's projections,
            matmul and einsum with a parameter); leaves it does not know, or that are used outside
            known calls too, are differentiated row by row in the same passes. `"rows"` does that
            for all leaves. `"auto"` chooses leaf by leaf (`explain_gramian` shows what), and is
            `"rows"` for small layers and few tasks. All give the same numbers; while compiling,
            and where `losses_fn` puts hooks on derivatives, all are `"rows"`.
        chunk_size: how many tasks one backward pass carries, which bounds what it holds; 1 is a
            plain loop, None the faster of all and 1, by a model of the device. What all passes
            bring back is kept until the end: T deltas of every layer, or rows of every leaf.
        gramian_dtype: the dtype of the accumulation; None is the rows' own, at least float32.
            float64 is worth its cost near Pareto stationarity, where float32 Gramians are noise.

    Returns:
        losses `[task]` on `batch`, and G `[task, task]`.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape, or losses that do not
            depend on `params`.
        RuntimeError: under autocast (open it inside `losses_fn`), and for a `losses_fn` that
            torch.func does not take.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> task_gramian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    check_dtype(gramian_dtype)
    jacobian = task_jacobian(
        losses_fn, params, batch, shared=shared, engine=engine, chunk_size=chunk_size
    )
    jacobian = jacobian if weightings is None else jacobian.weighted(weightings)
    return jacobian.losses, jacobian.gramian(dtype=gramian_dtype)


def sample_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    engine: Engine = "auto",
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*entry"], Float[Tensor, "n n"]]:
    """Losses and the Gramian of per-sample gradients, from one backward pass a task.

    One pass holds the deltas of all samples, however many there are; the autograd graph proves
    that they do not mix (as for dense, convolutional, recurrent, attention networks). Leaves that
    another operation reads cost one backward pass a sample and task (`explain_gramian(...,
    samples=True)` names them).

    Args:
        losses_fn: `(params, batch) -> [sample]` or `[sample, task]`; entry i depends on sample i
            alone.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters to sum over, as in `task_gramian`.
        engine: `"auto"` and `"layerwise"` are the same here; `"rows"` differentiates every entry,
            whatever it depends on, as all do where `losses_fn` puts hooks on derivatives.
        gramian_dtype: the dtype of the accumulation; None is the rows' own, at least float32.

    Returns:
        the losses on `batch` as they came and the Gramian `[n, n]` over the flattened losses.
        `diagnostics.sample_noise` reads noise and conflict off it, and `sample_norms` has its
        diagonal for less.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: where the graph does not prove that samples stay separate (train-mode batch
            norm, a contrastive loss, an operation that it does not know). If `shared` matches
            nothing; for losses of another shape, or losses that do not depend on `params`.
        RuntimeError: under autocast (open it inside `losses_fn`), for an embedding with
            `scale_grad_by_freq=True`, and for a `losses_fn` that torch.func does not take.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> sample_gramian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    check_params(params)
    check_engine(engine)
    check_dtype(gramian_dtype)
    names = select(params, shared)
    if engine == "rows" or torch.compiler.is_compiling():
        losses, rows = _rows(losses_fn, params, batch, names)
        gramian = dot(rows, rows, names, gramian_dtype)
    else:
        side = _side(losses_fn, params, batch, names, gramian_dtype)
        with enable_grad():
            losses, gramian = side.losses, gramian_of_samples(side)
    return losses, 0.5 * (gramian + gramian.mT)


def sample_norms(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    engine: Engine = "auto",
    gramian_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*entry"], Float[Tensor, "*entry"]]:
    """Losses and the lengths ‖g‖ of per-sample gradients: the roots of `sample_gramian`'s diagonal.

    From the same passes, but each sample's own inputs and deltas alone enter: cost and memory grow
    with the number of samples, not with its square. Rows of leaves that another operation reads are
    made a few at a time.

    Args:
        losses_fn: as in `sample_gramian`.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters to sum over, as in `task_gramian`.
        engine: as in `sample_gramian`; `"rows"` holds a row of every entry at once.
        gramian_dtype: the dtype of the accumulation; None is the rows' own, at least float32.

    Returns:
        the losses as they came, `[sample]` or `[sample, task]`, and the lengths in their shape, for
        `diagnostics.noise_scale`, clipping or the choice of samples. The derivative of a length 0
        is 0.

    Raises:
        TypeError: as in `sample_gramian`.
        ValueError: as in `sample_gramian`.
        RuntimeError: as in `sample_gramian`.

    Source:
        Goodfellow 2015 (arXiv:1510.01799) for linear layers.

    Examples:
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> sample_norms(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)[1].tolist()
        [5.0, 1.0]
    """
    check_params(params)
    check_engine(engine)
    check_dtype(gramian_dtype)
    names = select(params, shared)
    if engine != "rows" and not torch.compiler.is_compiling():
        side = _side(losses_fn, params, batch, names, gramian_dtype)
        with enable_grad():
            losses, squares = side.losses, squares_of_samples(side)
    else:
        losses, rows = _rows(losses_fn, params, batch, names)
        wide = gramian_dtype or torch.promote_types(losses.dtype, torch.float32)
        parts = [rows[name].to(wide).square().reshape(losses.numel(), -1).sum(1) for name in names]
        squares = torch.stack(parts).sum(0)
    return losses, root(squares).reshape(losses.shape)


def _side(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    names: tuple[str, ...],
    gramian_dtype: torch.dtype | None,
) -> BySamples:
    """One forward, and its pass split by sample."""
    forward = run(losses_fn, params, batch, parse=parse_samples, separable=False)
    check_connected(forward, samples=True)
    return split_samples(forward, names, gramian_dtype)


def _rows(
    losses_fn: LossesFn, params: Params, batch: Batch, names: tuple[str, ...]
) -> tuple[Tensor, Rows]:
    """The losses [sample] or [sample, task] as they came, and a row of every entry."""

    def flat_losses(out: Any) -> Losses:
        losses = parse_samples(out).vector
        return Losses(losses.flatten(), aux=losses)

    forward = run(losses_fn, params, batch, parse=flat_losses)
    check_connected(forward, samples=True)
    linear = linearize(forward, Request(names))
    return linear.aux, linear.rows
