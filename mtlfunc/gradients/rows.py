"""Per-task and per-sample gradients of stateless losses: one forward, one batched backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from ..core.checks import check_count, check_params
from ..core.internals import tree_leaves, tree_map
from ..types import Batch, LossesFn, Params, Rows
from .losses import parse_alone
from .operator import TaskJacobian, task_jacobian
from .run import check_connected, run


def task_gradients(
    losses_fn: LossesFn, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> tuple[Tensor, Rows]:
    """Gradients of every task with respect to every parameter: one forward, one batched backward.

    Args:
        losses_fn: `(params, batch) -> losses`, as in `task_jacobian`.
        params: `{name: tensor}`, for instance `mtlfunc.parameters(module)`.
        batch: handed to `losses_fn`.
        chunk_size: as in `task_jacobian`.

    Returns:
        losses `[task]` and rows `{name: [task, *shape]}`.

    Raises:
        ValueError: as in `task_jacobian`, and its other errors.
        RuntimeError: also where `losses_fn` mutates a captured tensor.

    Examples:
        >>> params, x = {"w": torch.tensor([1.0, 2.0])}, torch.tensor([3.0, 1.0])
        >>> losses, rows = task_gradients(lambda p, x: (p["w"] * x) ** 2, params, x)
        >>> rows["w"].tolist()
        [[18.0, 0.0], [0.0, 4.0]]
    """
    jacobian = task_jacobian(losses_fn, params, batch, chunk_size=chunk_size)
    return jacobian.losses, jacobian.rows()


def sample_gradients(
    losses_fn: LossesFn, params: Params, batch: Batch, *, samples_at_once: int | None = None
) -> tuple[Tensor, Rows]:
    """Gradients of every task on every sample, in one `vmap` over samples of `task_gradients`.

    `losses_fn` sees one sample at a time, as a batch of one: a mean over samples is its loss.

    Args:
        losses_fn: as in `task_gradients`; must not mix samples (as train-mode batch norm does).
        params: `{name: tensor}`.
        batch: a tensor, or a nested tuple or dict of tensors, whose first axis is the sample.
        samples_at_once: how many samples are differentiated at once; None is all of them. 1 is a
            plain loop, which also takes what `vmap` does not: random numbers (train-mode dropout),
            branches on values, `nn.RNN` and `nn.GRU`.

    Returns:
        losses `[sample, task]` and rows `{name: [sample, task, *shape]}`.

    Raises:
        ValueError: as in `task_gradients`; for a batch without one common first axis.
        RuntimeError: where `vmap` cannot batch `losses_fn`; for an embedding with
            `scale_grad_by_freq=True`, which divides by counts of the batch; as in `task_gradients`.

    Examples:
        >>> losses, rows = sample_gradients(
        ...     lambda p, x: (x @ p["w"]).mean(0), {"w": torch.ones(2, 1)}, torch.eye(2)
        ... )
        >>> rows["w"].shape
        torch.Size([2, 1, 2, 1])
    """
    check_params(params)
    check_count(samples_at_once, "samples_at_once", none=True)
    lengths = {leaf.shape[:1] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "batch: expected tensors with one common first axis, the sample; found first axes "
            f"{sorted(map(list, lengths))}"
        )

    def gradients_of_sample(sample: Batch) -> tuple[Tensor, Rows]:
        alone = tree_map(lambda x: x[None] if isinstance(x, Tensor) else x, sample)
        forward = run(losses_fn, params, alone, parse=parse_alone)
        check_connected(forward, samples=True)
        return forward.value, TaskJacobian(forward, tuple(params), params).rows()

    if samples_at_once == 1:
        ((count,),) = lengths
        at = lambda i: tree_map(lambda x: x[i] if isinstance(x, Tensor) else x, batch)  # noqa: E731
        each = [gradients_of_sample(at(i)) for i in range(count)]
        return tree_map(lambda *leaves: torch.stack(leaves), *each)
    try:
        return vmap(gradients_of_sample, chunk_size=samples_at_once)(batch)
    except RuntimeError as error:
        if any(words in str(error) for words in _UNBATCHED):
            raise RuntimeError(
                "losses_fn does something that vmap cannot batch over samples: random numbers, a "
                "branch on a value, .item(), a torch.autograd.Function without generate_vmap_rule, "
                "nn.RNN or nn.GRU; pass samples_at_once=1, a plain loop over samples, or use "
                f"sample_gramian, which needs no vmap. torch said: {error}"
            ) from error
        raise


_UNBATCHED = ("vmap", "Batching rule", "batching rule", "doesn't match the broadcast shape")
"""How torch begins to say so."""
