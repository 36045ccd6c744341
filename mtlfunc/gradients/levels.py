"""The leaves of one forward pass: plain tensors, or, under a transform, those of a level of `vjp`.

Outside of transforms the losses run on plain leaves, and everything that autograd takes works:
batch norm in train mode, hooks, functions whose forward takes ctx. A level is opened
where a transform is active, the compiler traces, or inference mode forbids plain leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.func import vjp

from ..core.internals import forward_level, keeps_weights, tree_leaves
from ..core.restore import WritesUndone, assignments_undone
from ..core.transforms import enable_grad, inside_transform
from ..core.wrappers import refuse_wrapped_calls
from ..types import Params
from .layerwise.graph import run_backward
from .safe_ops import SafeOps

Forward = Callable[[Params], tuple[Any, Any]]  # of values that are differentiated, and aux
Pulled = tuple[Any, Callable[[Any], tuple[Params]], Any]  # the values, their pullback, and aux


def needs_level(params: Params) -> bool:
    """Whether derivatives at `params` are taken at a level of `torch.func`."""
    return (
        torch.compiler.is_compiling()
        or inside_transform()
        or forward_level() >= 0
        or torch.is_inference_mode_enabled()
        or any(leaf.is_inference() for leaf in params.values())
    )


def explained_vjp(f: Forward, params: Params) -> Pulled:
    """`vjp` with aux, on plain leaves where these do, and errors that name the cure. Plain leaves
    hand the answers of `f` on with their graph; the pullback is recorded where gradients are
    enabled around the call.
    """
    try:
        with refuse_wrapped_calls():
            if not needs_level(params):
                try:
                    return _plain(f, params)
                except RuntimeError as error:
                    if "Inference tensors cannot be saved" not in str(error):
                        raise
            # Before torch 2.12 a level of `torch.func` records nothing in inference mode.
            with enable_grad(torch.is_grad_enabled()):
                return vjp(f, params, has_aux=True)  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        _name_cure(error, params)
        raise


@contextmanager
def explained(params: Params) -> Iterator[None]:
    """Around other calls of `losses_fn`: the same operations, and errors that name the cure."""
    try:
        with SafeOps():
            yield
        refuse_kept_weights()
    except RuntimeError as error:
        _name_cure(error, params)
        raise


def refuse_kept_weights() -> None:
    """Raise after a call of `losses_fn` whose weights `parametrize.cached()` has kept."""
    if keeps_weights():
        raise RuntimeError(
            "losses_fn: torch.nn.utils.parametrize.cached() is open around the call and keeps its "
            "weights, also for other parameters; open it inside losses_fn instead"
        )


def _name_cure(error: RuntimeError, params: Params) -> None:
    message = str(error)
    for words, cure in _CURES.items():
        if any(some in message for some in words):
            leaf = next(iter(params.values()))
            where = f"params are {leaf.dtype} on {leaf.device}"
            raise RuntimeError(cure.format(where=where, message=message)) from error


def _plain(f: Forward, params: Params) -> Pulled:
    outside = torch.is_grad_enabled()
    # A view is a place of its own, if two names hold one tensor.
    leaves = {
        name: x.view_as(x) if outside and x.requires_grad else x.detach().requires_grad_()
        for name, x in params.items()
    }
    with torch.enable_grad():
        out, aux = f(leaves)

    def pull(cotangent: Any) -> tuple[Params]:
        pairs = zip(tree_leaves(out), tree_leaves(cotangent), strict=True)
        known = [(x, v) for x, v in pairs if x.requires_grad]
        roots, cotangents = zip(*known, strict=True) if known else ((), ())
        places, record = (*leaves.values(),), torch.is_grad_enabled()
        grads = run_backward(roots, cotangents, places, record=record)
        found = zip(leaves, grads, strict=True)
        return ({name: torch.zeros_like(params[name]) if x is None else x for name, x in found},)

    return out, pull, aux


def without_trace(params: Params) -> AbstractContextManager[Any]:
    """For a forward pass that is not a step: what it changes is restored afterwards.

    In place: statistics of batch norm, vectors of spectral norm; under a transform torch refuses
    such changes. And tensors that a module re-assigns, which transforms do not refuse.
    """
    found = ExitStack()
    if not torch.compiler.is_compiling():
        found.enter_context(assignments_undone())
    if not needs_level(params):
        found.enter_context(WritesUndone())
    return found


CHECKPOINTING = (
    "losses_fn uses activation checkpointing (or other hooks on saved tensors, under a transform): "
    "it runs again in the backward pass, when the module has its own parameters back. Call the "
    "module without it, as chunk_size bounds memory; or hand its losses to mtlfunc.Balancer."
)
_CURES = {
    ("in-place operation", "will be updated in place"): (
        "losses_fn changes a tensor in place that it did not make itself: most often a batch-norm "
        "layer in train mode updating its running statistics. Either call module.eval(), or pass "
        "the buffers in the batch (under vmap batched, too): clone them inside losses_fn and give "
        "them to functional_call beside the parameters. A step returns them as aux, (losses, "
        "buffers), with has_aux=True; put its info.aux into the next batch."
    ),
    # of reentrant checkpoints; of others; of these before torch 2.12
    ("not compatible with .grad()", "saved tensor hooks", "_NoopSaveInputs"): CHECKPOINTING,
    ("must override the setup_context",): (
        "losses_fn calls a torch.autograd.Function whose forward takes ctx, which torch.func does "
        "not take. If it is your own, write forward(*inputs) without ctx, and "
        "setup_context(ctx, inputs, output). If you wrote none, a module has a full backward hook "
        "(register_full_backward_hook or register_full_backward_pre_hook), which is such a "
        "Function: remove the hook, or register one on the tensor, output.register_hook. So is an "
        "operation of torch.library with register_autograd: write its formula as a Function; and "
        "reentrant activation checkpointing, which goes with the losses of mtlfunc.Balancer alone, "
        "as use_reentrant=False."
    ),
    ("Cannot access data pointer",): (
        "losses_fn calls an operation that reads a tensor's memory directly, which torch.func does "
        "not take; most often it is pack_padded_sequence: give the padded sequences to the "
        "recurrent layer, and mask the outputs beyond each one's length."
    ),
    ("retain_grad",): (
        "losses_fn calls Tensor.retain_grad, which torch.func does not take: return the tensor as "
        "aux, or take its gradient by torch.autograd.grad outside."
    ),
    ("forward AD",): (
        "losses_fn calls an operation that torch cannot differentiate in forward mode: write it "
        "with others. It said: {message}"
    ),
    ("same dtype", "same device", "expected device"): (
        "losses_fn mixes dtypes or devices: {where}; convert the batch (and the module's buffers) "
        "to that. torch said: {message}"
    ),
}
"""What torch says, and what to do about it."""
