"""What surrounds a call: transforms of `torch.func`, gradients that are recorded, the compiler.

Reading a tensor's value is a host synchronisation on a GPU, is impossible under a transform and
breaks a compiled graph. So values are examined only where `values_readable` allows it.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from .internals import forward_level, functorch, is_traced, tree_leaves

F = TypeVar("F", bound=Callable[..., Any])
# asked by `map` of many tensors, in C
_IS_CPU, REQUIRES_GRAD = attrgetter("is_cpu"), attrgetter("requires_grad")


def inside_transform() -> bool:
    """Whether a `torch.func` transform is active around the caller."""
    return bool(functorch.get_interpreter_stack())


def depth() -> int:
    """How many `torch.func` transforms are active."""
    return len(functorch.get_interpreter_stack() or ())


def lanes() -> int:
    """How many entries the active `vmap`s have together."""
    mapped = functorch.TransformType.Vmap
    stack = [x for x in functorch.get_interpreter_stack() or () if x.key() == mapped]
    return math.prod([functorch.CVmapInterpreterPtr(x).batchSize() for x in stack])


def values_readable(*values: object) -> bool:
    """Whether the values of these tensors can be read: on CPU, no transform, no compiler."""
    if torch.compiler.is_compiling() or functorch.get_interpreter_stack():
        return False
    plain = {*map(type, values)} == {Tensor}  # nearly always
    return all(map(_IS_CPU, values if plain else tensors_of(values)))


def is_differentiated(values: object, *, own_levels: int = 0) -> bool:
    """Whether something outside can differentiate through `values`, any nest of tensors.

    True under `grad`, `vjp`, `jvp` or forward-mode AD (the `own_levels` innermost transforms, the
    caller's own, aside), when a tensor requires grad on its own (also through a closure), and while
    compiling, where it cannot be known. Only where this is False can a backward pass run without
    being recorded: elsewhere the outer derivative would be wrong without a word.
    """
    if torch.compiler.is_compiling() or forward_level() >= 0:
        return True
    kinds = (functorch.TransformType.Grad, functorch.TransformType.Jvp)
    levels = functorch.get_interpreter_stack()
    if levels and any(level.key() in kinds for level in levels[: len(levels) - own_levels]):
        return True
    found = tensors_of(values)
    return any(map(REQUIRES_GRAD, map(innermost_tensor, found) if levels else found))


def derivative_levels() -> tuple[int, int]:
    """How many derivatives in reverse and in forward mode are being taken around the caller.

    While compiling, where it cannot be known, two and none.
    """
    if torch.compiler.is_compiling():
        return 2, 0
    kinds = [level.key() for level in functorch.get_interpreter_stack() or []]
    # Nested jvp enter one level of forward-mode AD between them.
    forward = max(kinds.count(functorch.TransformType.Jvp), forward_level() + 1)
    return kinds.count(functorch.TransformType.Grad), forward


def enable_grad(on: bool = True) -> AbstractContextManager[Any]:
    """A context in which graphs can be made and read; none where that is so already, or while
    compiling. Not `on`: one that only leaves inference mode.
    """
    compiles = torch.compiler.is_compiling()
    if compiles or (torch.is_grad_enabled() is on and not torch.is_inference_mode_enabled()):
        return nullcontext()
    found = ExitStack()
    found.enter_context(torch.inference_mode(False))
    found.enter_context(torch.set_grad_enabled(on))
    return found


def constant_when_compiled(f: F) -> F:
    """`torch.compiler.assume_constant_result` without its import of the compiler (two seconds)."""
    f._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return f


def same_storage(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors can be seen to be the same memory in the same shape."""
    if torch.compiler.is_compiling() or x.shape != y.shape or not x.numel():
        return False
    if any(functorch.is_functorch_wrapped_tensor(z) or z.is_meta for z in (x, y)):
        return False
    return x.device == y.device and x.data_ptr() == y.data_ptr()


def tensors_of(values: object) -> list[Tensor]:
    """The tensors of any nest."""
    found: list[Tensor] = []
    for value in values if isinstance(values, tuple) else (values,):  # nearly always this will do
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) is dict:
            found.extend(tensors_of(tuple(value.values())))
        elif value is not None:
            break
    else:
        return found
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def innermost_tensor(x: Tensor) -> Tensor:
    """The tensor inside all wrappers of transforms."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def has_innermost_derivative(x: Tensor) -> bool:
    """Whether the innermost transform, a `vjp` or `grad`, has a derivative of `x`."""
    return x.requires_grad and functorch.maybe_get_level(x) == functorch.maybe_current_level()


def all_rows_mask(like: Tensor) -> Tensor:
    """All rows of `like` [row] present; never batched, so that `all_present` can see it."""
    return torch.ones(like.shape[0], dtype=torch.bool, device=like.device)


def has_finite_sum(*values: Tensor) -> bool:
    """Whether the entries have a finite sum, and so are finite; False says nothing."""
    total = 0.0
    for x in values:
        if x.ndim == 1 and x.shape[0] <= 32:  # Python adds so few faster than torch would
            total += sum(x.tolist())
        elif x.ndim == 2 and x.numel() <= 16:
            total += sum(map(sum, x.tolist()))
        else:
            total += x.sum().item()
    return math.isfinite(total)


def is_readable(mask: Tensor) -> bool:
    """Whether the entries of a mask or key can be read: on CPU, not batched, compiled or traced."""
    if torch.compiler.is_compiling() or is_traced() or not mask.is_cpu:
        return False
    while functorch.is_functorch_wrapped_tensor(mask) and not functorch.is_batchedtensor(mask):
        mask = functorch.get_unwrapped(mask)
    return not functorch.is_functorch_wrapped_tensor(mask)


def all_present(present: Tensor) -> bool:
    """Whether it can be seen that no row is absent. False says nothing, and only costs time."""
    if not is_readable(present):
        return False
    if inside_transform():  # where torch 2.6 to 2.9 have no tolist()
        return bool(present.all())
    return False not in present.tolist()


def select_where(x: Tensor, mask: Tensor, other: Tensor | float) -> Tensor:
    """`x.where(mask, other)`, without the work where the mask can be seen to hold everywhere."""
    return x if all_present(mask) else x.where(mask, other)
