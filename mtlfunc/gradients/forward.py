"""One run of `losses_fn`: what it returned, what was watched in it, and errors that name a cure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from ..core.checks import at_level, depth, differentiated, innermost, is_pair
from ..types import Batch, LossesFn, Params
from .layerwise import Tapped
from .safe_ops import WRITTEN, SafeOps, final


def split_output(out: Any) -> tuple[Tensor, tuple[Tensor, ...] | None, Any]:
    """What `losses_fn` returned, as (losses [task], the scalars if they came separately, aux).

    Args:
        out: a tuple whose first entry is not a 0-d tensor is read as `(losses, aux)`.

    Raises:
        ValueError: unless the losses are a vector, or a tuple or dict of scalars.
        TypeError: unless they are floating.
    """
    out, aux = out if is_pair(out) else (out, ())
    if isinstance(out, Tensor):
        losses, scalars = out, None
        if out.ndim != 1 or out.shape[0] == 0:
            cure = (
                "return losses[None] if there is one task, else one loss a task"
                if out.ndim == 0
                else "reduce over samples, for instance with .mean(0)"
            )
            raise ValueError(
                f"losses_fn: expected losses of shape [task], got {list(out.shape)}; {cure}"
            )
    else:
        several = out.values() if isinstance(out, dict) else out
        scalars = tuple(several) if isinstance(out, dict | tuple | list) else ()
        if not scalars or not all(isinstance(x, Tensor) and x.ndim == 0 for x in scalars):
            kinds = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in scalars]
            raise ValueError(
                "losses_fn: expected a vector [task], or a tuple or dict of scalar tensors, got "
                f"{kinds or type(out).__name__}; reduce each loss to one number"
            )
        losses = torch.stack(scalars)
    if not losses.is_floating_point():
        raise TypeError(f"losses_fn: expected floating losses, got {losses.dtype}")
    return losses, scalars, aux


def losses_alone(losses_fn: LossesFn) -> LossesFn:
    """`losses_fn`, refusing a pair that could be read as (losses, aux), and losses that ignore
    the parameters.
    """

    def alone(params: Params, batch: Batch) -> Any:
        out = losses_fn(params, batch)
        if is_pair(out):
            raise ValueError(
                "losses_fn: got a pair of which the first is not a scalar; reduce each loss to "
                "one number, or leave aux out"
            )
        check_connected(out)
        return out

    return alone


def check_connected(out: Any) -> None:
    """Raise where no loss depends on any of the parameters that are being differentiated."""
    losses = () if torch.compiler.is_compiling() else _losses(out)
    if losses and not any(map(at_level, losses)):
        raise ValueError(
            "losses_fn: no loss depends on params, so every gradient would be zero; call the "
            "module as torch.func.functional_call(module, params, (x,)), with the params that "
            "losses_fn is given, and neither detach them nor work under torch.no_grad"
        )


def _losses(out: Any) -> tuple[Tensor, ...]:
    """The tensors in what `losses_fn` returned; none where that is not what it should be."""
    out = out[0] if is_pair(out) else out
    several = out.values() if isinstance(out, dict) else out
    losses = tuple(several) if isinstance(out, dict | tuple | list) else (out,)
    return losses if all(isinstance(x, Tensor) for x in losses) else ()


class Forward(NamedTuple):
    """One run, and what was seen of it."""

    out: Any
    taps: Tapped | None
    # Whether a hook may sit on some derivative: then only ordinary differentiation, from the losses
    # as they were returned, does what it does.
    hooked: bool


def forward_pass(run: Callable[[], Any], taps: Callable[[], Tapped | None]) -> Forward:
    """`run()`, watched, with every operation written out that torch gets wrong there.

    That is so under a transform, outside or inside `run`, and for an operation that something
    enters which requires grad. What needs no second derivative of an operation but meets one after
    it (a flash attention, and then a scale that requires grad) shows only in the finished graph:
    there alone `run` is called a second time.

    Args:
        run: gives what `losses_fn` returned.
        taps: makes the taps of one run, or None.

    Returns:
        what `run` returned; the taps, unless there are hooks, for which taps cannot answer.
    """

    def once(always: bool) -> Forward:
        watching = taps()
        guard = _Guard(always, watching is not None)
        with watching or nullcontext(), guard:
            out = run()
        return Forward(out, None if guard.hooked else watching, guard.hooked)

    found = once(always=depth() > 1)
    losses = _losses(found.out)
    if depth() == 1 and differentiated(losses, own_levels=1) and any(map(final, losses)):
        return once(always=True)
    return found


class _Guard(SafeOps):
    """`SafeOps` where it is needed; and whether hooks can have been put on derivatives.

    Args:
        always: it is needed for every operation.
        watched: another mode is active, which is not to see the questions asked here.
    """

    def __init__(self, always: bool, watched: bool) -> None:
        super().__init__()
        self.always, self.watched, self.hooked = always, watched, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _HOOKING:
            self.hooked = True
        if self.always or (func in WRITTEN and self._needed(args, kwargs or {})):
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs) if kwargs else func(*args)

    def _needed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Under a transform inside `run`, or where a tensor inside all wrappers requires grad."""
        with torch._C.DisableTorchFunction() if self.watched else _NOTHING:
            given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            return depth() > 1 or any(innermost(x).requires_grad for x in given)


_NOTHING = nullcontext()
_HOOKING = {Tensor.register_hook, Tensor.grad_fn.__get__}  # pyright: ignore
"""What is called, or read, to put a hook on a tensor or on the node that made it."""


def explained_vjp(
    f: Callable[[Params], tuple[Any, Any]], params: Params
) -> tuple[Any, Callable[..., Any], Any]:
    """`vjp` with aux, and errors that name the cure for what torch.func does not take."""
    try:
        return vjp(f, params, has_aux=True)  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        message = str(error)
        for words, cure in _CURES.items():
            if words in message:
                leaf = next(iter(params.values()))
                where = f"params are {leaf.dtype} on {leaf.device}"
                raise RuntimeError(cure.format(where=where, message=message)) from error
        raise


_MIXED = (
    "losses_fn mixes dtypes or devices: {where}; convert the batch (and the module's buffers) to "
    "that. torch said: {message}"
)
_CURES = {
    "in-place operation": (
        "losses_fn changes a tensor in place that it did not make itself: most often a batch-norm "
        "layer in train mode updating its running statistics. Either call module.eval(), or pass "
        "the buffers in the batch: clone them inside losses_fn, give them to functional_call "
        "beside the parameters, return them as aux, (losses, buffers), with has_aux=True, and put "
        "info.aux into the next batch."
    ),
    "saved tensor hooks": (
        "losses_fn uses activation checkpointing (or other hooks on saved tensors), which "
        "torch.func does not take: call the module without it; chunk_size bounds the memory of "
        "the backward passes instead."
    ),
    "must override the setup_context": (
        "losses_fn calls a torch.autograd.Function whose forward takes ctx, which torch.func does "
        "not take. If it is your own, write forward(*inputs) without ctx, and "
        "setup_context(ctx, inputs, output). If you wrote none, a module has a full backward hook "
        "(register_full_backward_hook or register_full_backward_pre_hook), which is such a "
        "Function: remove the hook, or register one on the tensor, output.register_hook."
    ),
    "Cannot access data pointer": (
        "losses_fn calls an operation that reads a tensor's memory directly, which torch.func does "
        "not take; most often it is pack_padded_sequence: give the padded sequences to the "
        "recurrent layer, and mask the outputs beyond each one's length."
    ),
    "retain_grad": (
        "losses_fn calls Tensor.retain_grad, which torch.func does not take: return the tensor as "
        "aux, or take its gradient by torch.autograd.grad outside."
    ),
    "same dtype": _MIXED,
    "same device": _MIXED,
    "expected device": _MIXED,
}
"""What torch says, and what to do about it."""
