"""The leaves of one forward pass: plain tensors, or, under a transform, those of a level of `vjp`.

Outside of transforms the losses run on plain leaves, and everything that autograd takes works:
batch norm in train mode, hooks, functions whose forward takes ctx. A level is opened
where a transform is active, the compiler traces, or inference mode forbids plain leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from ..core.checks import enable_grad, gradient_edge, inside_transform, tensors_of
from ..core.internals import (
    ENGINE,
    TorchDispatchMode,
    Trust,
    autograd_engine,
    forward_level,
    hooks_of_all_modules,
    memory,
    tree_leaves,
)
from ..core.tree import as_real
from ..core.wrappers import refuse_wrapped_calls
from ..types import Params
from .layerwise.graph import Place
from .layerwise.uses import Node
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
    except RuntimeError as error:
        _name_cure(error, params)
        raise


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


def run_backward(
    roots: Place | tuple[Place, ...], cotangents: Tensor | tuple[Tensor, ...],
    places: tuple[Place, ...], *, keep: bool = True, record: bool = False,
) -> Sequence[Tensor | None]:  # fmt: skip
    """`torch.autograd.grad`, without what it does to arguments of all kinds, a third of a small
    pass; complex derivatives, of leaves, as two real ones. `keep`: the graph.

    Raises:
        RuntimeError: for a sparse one, of which no products are made.
    """
    if not isinstance(cotangents, tuple):
        roots, cotangents = (roots,), (cotangents,)  # pyright: ignore
    if not (places and cotangents):  # without places autograd would add to .grad
        return (None,) * len(places)
    engine = autograd_engine if Trust.private else ENGINE
    grads = engine.run_backward(
        roots, cotangents, keep, record, places, True, accumulate_grad=False
    )
    others = [x for x in grads if x is not None and (x.is_sparse or x.is_complex())]
    for x in others:
        if x.is_sparse:
            raise RuntimeError(
                f"a parameter of shape {list(x.shape)} has sparse gradients, of which no rows are "
                "stacked and no products made, nor sums where it is not shared: make its "
                "embedding with sparse=False"
            )
    return [as_real(x) for x in grads] if others else grads


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
        found.enter_context(_Changes())
    return found


@contextmanager
def _reassigned() -> Iterator[None]:
    """Undo what modules re-assign in a call: buffers, and other attributes that are tensors."""
    here, called = get_ident(), list[nn.Module]()
    mine: Any = object()
    outer: nn.Module | None = None
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    changes: list[tuple[dict[str, Any], str, Any, Any]] = []

    def watch(module: nn.Module, _: Any) -> None:
        nonlocal outer
        if outer is not None or get_ident() != here:
            return
        outer = module
        del hooks_of_all_modules[mine]  # which what is compiled inside would be compiled with
        parts = (x for x in module.modules() if not isinstance(x, torch.jit.ScriptModule))
        held[:] = [(place, dict(place)) for x in parts for place in (vars(x), x._buffers)]
        # after the module's own hooks; functional_call exchanges buffers before and after both.
        # Without a handle, which would be taken for one of a hook on derivatives.
        called.append(module)
        module._forward_hooks[mine] = compare
        module._forward_hooks_always_called[mine] = True

    def compare(module: nn.Module, *_: Any) -> None:
        nonlocal outer
        if module is not outer:
            return
        outer = None
        hooks_of_all_modules[mine] = watch
        for place, before in held:
            for name in before.keys() | place.keys():
                old, new = before.get(name), place.get(name)
                if new is not old and (isinstance(old, Tensor) or isinstance(new, Tensor)):
                    changes.append((place, name, before.get(name, place), new))

    hooks_of_all_modules[mine] = watch
    try:
        with warnings.catch_warnings():  # of a compiled module that is the outer one
            warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there")
            yield
    finally:
        hooks_of_all_modules.pop(mine, None)
        for module in called:
            module._forward_hooks.pop(mine, None)
            module._forward_hooks_always_called.pop(mine, None)
        for place, name, old, new in reversed(changes):
            if place.get(name) is new:  # else functional_call took it back
                if old is place:  # there was none
                    del place[name]
                else:
                    place[name] = old


class _Changes(TorchDispatchMode):
    """Undo what is changed in place: keeps a copy of a tensor from outside before it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()  # memory

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, before in self.kept.values():
                if not torch.equal(tensor, before):
                    tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        norm = "batch_norm" in func.__name__  # its schema does not admit the change
        for i, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or (norm and argument.name.startswith("running_")):
                for x in tensors_of(args[i] if i < len(args) else kwargs.get(argument.name)):
                    known = memory(x) in self.made or id(x) in self.kept
                    if not known and x.layout is torch.strided:
                        self.kept[id(x)] = (x, x.clone())
        out = func(*args, **kwargs)
        self.made |= set(map(memory, tensors_of(out))) - {*map(memory, tensors_of((args, kwargs)))}
        return out


CHECKPOINTING = (
    "losses_fn uses activation checkpointing (or other hooks on saved tensors, under a transform): "
    "it runs again in the backward pass, when the module has its own parameters back. Call the "
    "module without it, as chunk_size bounds memory; or hand its losses to mtlfunc.Balancer."
)
_CURES = {
    ("in-place operation", "will be updated in place"): (
        "losses_fn changes a tensor in place that it did not make itself: most often a batch-norm "
        "layer in train mode updating its running statistics. Either call module.eval(), or pass "
        "the buffers in the batch: clone them inside losses_fn, give them to functional_call "
        "beside the parameters, return them as aux, (losses, buffers), with has_aux=True, and put "
        "info.aux into the next batch."
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
