"""One run of `losses_fn`: what it returned, what was watched in it, and errors that name a cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from ..core.checks import at_level, depth, differentiated, innermost, is_pair
from ..core.distributed import refusing_wrapped_calls
from ..types import Batch, LossesFn, Params
from .layerwise import Tapped
from .safe_ops import SafeOps, mistaken, unbatched


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
    if torch.compiler.is_compiling():
        return
    several = out.values() if isinstance(out, dict) else out
    losses = tuple(several) if isinstance(out, dict | tuple | list) else (out,)
    if losses and all(isinstance(x, Tensor) and not at_level(x) for x in losses):
        raise ValueError(
            "losses_fn: no loss depends on params, so every gradient would be zero; call the "
            "module as torch.func.functional_call(module, params, (x,)), with the params that "
            "losses_fn is given, and neither detach them nor work under torch.no_grad"
        )


class Forward(NamedTuple):
    """One run, and what was seen of it."""

    out: Any
    taps: Tapped | None
    # Whether a hook may sit on some derivative: then only ordinary differentiation, from the losses
    # as they were returned, does what it does.
    hooked: bool


def forward_pass(run: Callable[[], Any], watch: Callable[[], Tapped | None]) -> Forward:
    """`run()`, watched, with every operation written out that torch differentiates wrongly there.

    Under a transform outside all of them are written out, elsewhere those that a closure enters
    which requires grad. What a transform inside `run` did, and what torch cannot differentiate
    again, show only afterwards, in the graph or in a refusal: then `run` is called a second time.

    Args:
        run: gives the losses, or a tuple whose first entry they are.
        watch: makes the taps for one run; None is none.

    Returns:
        what `run` returned; the taps, unless there are hooks, for which taps cannot answer.
    """

    def once(always: bool) -> Forward:
        taps = watch()
        guard = _Guard(always, watched=taps is not None)
        with taps or nullcontext(), guard:
            out = run()
        return Forward(out, None if guard.hooked else taps, guard.hooked)

    if depth() > 1:
        return once(always=True)
    try:
        found = once(always=False)
    except RuntimeError as error:
        if unbatched(error):
            return once(always=True)
        raise
    losses = found.out[0] if isinstance(found.out, tuple) else found.out
    if mistaken(losses, again=differentiated(losses, own_levels=1)):
        return once(always=True)
    return found


class _Guard(SafeOps):
    """Notes whether hooks can have been put on derivatives, and writes out what `SafeOps` does:
    always, or in those calls that a closure enters which requires grad.
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
        if self.always or self._needed(args) or (kwargs and self._needed(kwargs.values())):
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs) if kwargs else func(*args)

    def _needed(self, given: Iterable[Any]) -> bool:
        """Whether one of the tensors inside all wrappers requires grad."""
        with torch._C.DisableTorchFunction() if self.watched else _NOTHING:
            for x in given:
                if isinstance(x, Tensor) and innermost(x).requires_grad:
                    return True
        return False


_NOTHING = nullcontext()
_HOOKING = {Tensor.register_hook, Tensor.grad_fn.__get__}  # pyright: ignore
"""What is called, or read, to put a hook on a tensor or on the node that made it."""


def explained_vjp(
    f: Callable[[Params], tuple[Any, Any]], params: Params
) -> tuple[Any, Callable[..., Any], Any]:
    """`vjp` with aux, and errors that name the cure for what torch.func does not take."""
    try:
        with refusing_wrapped_calls():
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
