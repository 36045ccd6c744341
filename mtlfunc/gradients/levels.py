"""The leaves of one forward pass: plain tensors, or, under a transform, those of a level of `vjp`.

Outside of transforms the losses run on plain leaves, and everything that autograd takes works:
batch norm in train mode, hooks, functions whose forward takes ctx. A level is opened
where a transform is active, the compiler traces, or inference mode forbids plain leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import vjp

from ..core._torch import (
    TorchDispatchMode,
    autograd_engine,
    forward_level,
    hooks_of_all_modules,
    memory,
    tree_leaves,
)
from ..core.checks import gradient_edge, inside_transform
from ..core.tree import as_real
from ..core.wrappers import refuse_wrapped_calls
from ..types import Params
from .safe_ops import SafeOps

Node = Any  # torch.autograd.graph.Node


def needs_level(params: Params) -> bool:
    """Whether derivatives at `params` are taken at a level of `torch.func`."""
    return (
        torch.compiler.is_compiling()
        or inside_transform()
        or forward_level() >= 0
        or torch.is_inference_mode_enabled()
        or any(leaf.is_inference() for leaf in params.values())
    )


def explained_vjp(
    f: Callable[[Params], tuple[Any, Any]], params: Params
) -> tuple[Any, Callable[[Any], tuple[Params]], Any]:
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
            with _outside_inference_mode():
                return vjp(f, params, has_aux=True)  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        _name_cure(error, params)
        raise


def _outside_inference_mode() -> AbstractContextManager[Any]:
    """Before torch 2.12 a level of `torch.func` records nothing in inference mode."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    recording, found = torch.is_grad_enabled(), ExitStack()
    found.enter_context(torch.inference_mode(False))
    found.enter_context(torch.set_grad_enabled(recording))
    return found


@contextmanager
def explained(params: Params) -> Iterator[None]:
    """Around other calls of `losses_fn`: the same operations, and errors that name the cure."""
    try:
        with SafeOps():
            yield
    except RuntimeError as error:
        _name_cure(error, params)
        raise


def _name_cure(error: RuntimeError, params: Params) -> None:
    message = str(error)
    for words, cure in _CURES.items():
        if words in message:
            leaf = next(iter(params.values()))
            where = f"params are {leaf.dtype} on {leaf.device}"
            raise RuntimeError(cure.format(where=where, message=message)) from error


def _plain(
    f: Callable[[Params], tuple[Any, Any]], params: Params
) -> tuple[Any, Callable[[Any], tuple[Params]], Any]:
    outside = torch.is_grad_enabled()
    # A view is a place of its own, if two names hold one tensor.
    leaves = {
        name: leaf.view_as(leaf)
        if outside and leaf.requires_grad
        else leaf.detach().requires_grad_()
        for name, leaf in params.items()
    }
    with torch.enable_grad():
        out, aux = f(leaves)

    def pull(cotangent: Any) -> tuple[Params]:
        pairs = zip(tree_leaves(out), tree_leaves(cotangent), strict=True)
        roots = [(x, v) for x, v in pairs if x.requires_grad]
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if roots:
            grads = strided(
                torch.autograd.grad(
                    [x for x, _ in roots],
                    list(leaves.values()),
                    [v for _, v in roots],
                    retain_graph=True,
                    create_graph=torch.is_grad_enabled(),
                    allow_unused=True,
                )
            )
        found = zip(leaves, grads, strict=True)
        return ({name: torch.zeros_like(params[name]) if x is None else x for name, x in found},)

    return out, pull, aux


def run_backward(
    roots: GradientEdge | Tensor | tuple[GradientEdge | Tensor, ...],
    cotangents: Tensor | tuple[Tensor, ...],
    places: tuple[GradientEdge | Tensor, ...],
    *,
    keep: bool = True,
    record: bool = False,
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad`, without a third of a small pass: what it does to arguments of all
    kinds before it calls this. `keep`: the graph.
    """
    if not places:  # autograd would take that for backward(), which adds to .grad
        return ()
    if not isinstance(cotangents, tuple):
        roots, cotangents = (roots,), (cotangents,)  # pyright: ignore
    return strided(
        autograd_engine.run_backward(
            roots, cotangents, keep, record, places, True, accumulate_grad=False
        )
    )


def strided(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """`grads`, all dense; complex ones, of leaves, as two real ones.

    Raises:
        RuntimeError: for a sparse one, of which no products are made.
    """
    others = [x for x in grads if x is not None and (x.is_sparse or x.is_complex())]
    if not others:
        return grads
    sparse = [x for x in others if x.is_sparse]
    if sparse:
        raise RuntimeError(
            f"a parameter of shape {list(sparse[0].shape)} has sparse gradients, of which no rows "
            "are stacked and no products made, nor sums where it is not shared: make its "
            "embedding with sparse=False"
        )
    return [as_real(x) for x in grads]


class Strangers:
    """Tensors that require grad and enter what a pass on plain `leaves` computed."""

    def __init__(self, leaves: Params) -> None:
        self.seen: set[Node] = {leaf.grad_fn for leaf in leaves.values() if leaf.grad_fn}
        self.own: set[int] = set(map(id, leaves.values()))
        self.found: list[Tensor] = []

    def enter(self, values: Iterable[Tensor]) -> bool:
        """Whether any has been found, in the graph of these values or of those before."""
        todo = [gradient_edge(x).node for x in values if x.requires_grad]
        while todo:
            node = todo.pop()
            if node not in self.seen:
                self.seen.add(node)
                variable = getattr(node, "variable", None)
                if variable is None:
                    todo.extend(child for child, _ in node.next_functions if child is not None)
                elif id(variable) not in self.own:
                    self.found.append(variable)
        return bool(self.found)


def without_trace(params: Params) -> AbstractContextManager[Any]:
    """For a forward pass that is not a step: what it changes is restored afterwards.

    In place: statistics of batch norm, vectors of spectral norm; under a transform torch refuses
    such changes. And tensors that a module re-assigns, which transforms do not refuse.
    """
    found = ExitStack()
    if not torch.compiler.is_compiling():
        found.enter_context(_reassigned())
    if not needs_level(params):
        found.enter_context(_changed())
    return found


@contextmanager
def _changed() -> Iterator[None]:
    changes = _Changes()
    try:
        with changes:
            yield
    finally:
        with torch.no_grad():
            for tensor, before in changes.kept.values():
                if not torch.equal(tensor, before):
                    tensor.copy_(before)


@contextmanager
def _reassigned() -> Iterator[None]:
    """Undo what modules re-assign in a call: buffers, and other attributes that are tensors."""
    here, inside = get_ident(), False
    changes: list[tuple[dict[str, Any], str, Any, Any]] = []
    keys: list[tuple[nn.Module, Any]] = []

    def watch(module: nn.Module, _: Any) -> None:
        nonlocal inside
        if inside or get_ident() != here:
            return
        inside = True
        del hooks_of_all_modules[mine]  # which what is compiled inside would be compiled with
        held = [
            (place, dict(place))
            for part in module.modules()
            if not isinstance(part, torch.jit.ScriptModule)
            for place in (vars(part), part._buffers)
        ]

        def compare(*_: Any) -> None:
            nonlocal inside
            if not inside or keys[-1][1] is not key:
                return  # of an earlier call
            inside = False
            hooks_of_all_modules[mine] = watch
            for place, before in held:
                for name in before.keys() | place.keys():
                    old, new = before.get(name), place.get(name)
                    if new is not old and (isinstance(old, Tensor) or isinstance(new, Tensor)):
                        changes.append((place, name, before.get(name, place), new))

        # after the module's own hooks; functional_call exchanges buffers before and after both.
        # Without a handle, which would be taken for one of a hook on derivatives.
        key: Any = object()
        keys.append((module, key))
        module._forward_hooks[key] = compare
        module._forward_hooks_always_called[key] = True

    mine: Any = object()
    hooks_of_all_modules[mine] = watch
    try:
        with warnings.catch_warnings():  # of a compiled module that is the outer one
            warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there")
            yield
    finally:
        hooks_of_all_modules.pop(mine, None)
        for module, key in keys:
            del module._forward_hooks[key], module._forward_hooks_always_called[key]
        for place, name, old, new in reversed(changes):
            if place.get(name) is not new:  # an exchanged one, which functional_call took back
                continue
            if old is place:  # there was none
                del place[name]
            else:
                place[name] = old


class _Changes(TorchDispatchMode):
    """Keeps a copy of every tensor from outside, before it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()  # memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        norm = "batch_norm" in func.__name__  # its schema does not admit the change
        arguments = func._schema.arguments
        values = [*args, *(kwargs.get(each.name) for each in arguments[len(args) :])]
        for argument, value in zip(arguments, values, strict=True):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or (norm and argument.name.startswith("running_")):
                for tensor in tree_leaves(value):
                    self._keep(tensor)
        out = func(*args, **kwargs)
        self.made |= _memories(out) - _memories((args, kwargs))
        return out

    def _keep(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            return
        if memory(tensor) not in self.made and id(tensor) not in self.kept:
            self.kept[id(tensor)] = (tensor, tensor.clone())


def _memories(values: Any) -> set[int]:
    return {memory(x) for x in tree_leaves(values) if isinstance(x, Tensor)}


_MIXED = (
    "losses_fn mixes dtypes or devices: {where}; convert the batch (and the module's buffers) to "
    "that. torch said: {message}"
)
_IN_PLACE = (
    "losses_fn changes a tensor in place that it did not make itself: most often a batch-norm "
    "layer in train mode updating its running statistics. Either call module.eval(), or pass "
    "the buffers in the batch: clone them inside losses_fn, give them to functional_call "
    "beside the parameters, return them as aux, (losses, buffers), with has_aux=True, and put "
    "info.aux into the next batch."
)
CHECKPOINTING = (
    "losses_fn uses activation checkpointing (or other hooks on saved tensors, under a transform): "
    "it runs again in the backward pass, when the module has its own parameters back. Call the "
    "module without it, as chunk_size bounds memory; or hand its losses to mtlfunc.Balancer."
)
_CURES = {
    "in-place operation": _IN_PLACE,
    "will be updated in place": _IN_PLACE,
    "not compatible with .grad()": CHECKPOINTING,  # of reentrant checkpoints
    "saved tensor hooks": CHECKPOINTING,
    "_NoopSaveInputs": CHECKPOINTING,  # of checkpointing, before torch 2.12
    "must override the setup_context": (
        "losses_fn calls a torch.autograd.Function whose forward takes ctx, which torch.func does "
        "not take. If it is your own, write forward(*inputs) without ctx, and "
        "setup_context(ctx, inputs, output). If you wrote none, a module has a full backward hook "
        "(register_full_backward_hook or register_full_backward_pre_hook), which is such a "
        "Function: remove the hook, or register one on the tensor, output.register_hook. So is an "
        "operation of torch.library with register_autograd: write its formula as a Function; and "
        "reentrant activation checkpointing, which goes with the losses of mtlfunc.Balancer alone, "
        "as use_reentrant=False."
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
    "forward AD": (
        "losses_fn calls an operation that torch cannot differentiate in forward mode: write it "
        "with others. It said: {message}"
    ),
    "same dtype": _MIXED,
    "same device": _MIXED,
    "expected device": _MIXED,
}
"""What torch says, and what to do about it."""
