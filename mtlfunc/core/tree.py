"""Parameter dicts: pick leaves by name, take inner products of rows, combine rows, stack modules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Params, Rows, Select
from .distributed import refuse_wrapped


def parameters(module: nn.Module) -> Params:
    """The trainable parameters of a module, detached, sharing its storage.

    Frozen parameters (`requires_grad=False`) are left to the module, which is where
    `functional_call` finds them. Passing `dict(module.named_parameters())` instead would keep the
    graph of every step alive; so would leaving out a parameter that still requires grad in the
    module: freeze it there.

    Examples:
        >>> sorted(parameters(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    refuse_wrapped(module)
    return {name: leaf.detach() for name, leaf in module.named_parameters() if leaf.requires_grad}


def assign_gradients(module: nn.Module, grads: Params) -> None:
    """Set `.grad` of a module's parameters, detached, for an optimizer of `torch.optim`; parameters
    without a gradient get None.

    Raises:
        KeyError: if `grads` has a name that the module lacks.
        ValueError: if a shape, dtype or device differs.
    """
    leaves = dict(module.named_parameters())
    for name, grad in grads.items():
        if name not in leaves:
            raise KeyError(
                f"grads[{name!r}]: the module has no such parameter; it has {', '.join(leaves)}"
            )
        leaf = leaves[name]
        if (grad.shape, grad.dtype, grad.device) != (leaf.shape, leaf.dtype, leaf.device):
            raise ValueError(
                f"grads[{name!r}]: {list(grad.shape)} {grad.dtype} on {grad.device}, but the "
                f"parameter is {list(leaf.shape)} {leaf.dtype} on {leaf.device}"
            )
    for name, leaf in leaves.items():
        leaf.grad = grads[name].detach() if name in grads else None


def stack(modules: Sequence[nn.Module]) -> Params:
    """Parameters of several modules of one architecture, stacked along a new first axis, for
    `vmap`.

    Frozen parameters and buffers are not among them: they stay those of the one module that
    `losses_fn` calls.

    Raises:
        ValueError: if there are none, or if names or shapes differ.
    """
    if not modules:
        raise ValueError("modules: expected at least one module")
    all_params = [parameters(module) for module in modules]
    for params in all_params[1:]:
        if {n: p.shape for n, p in params.items()} != {
            n: p.shape for n, p in all_params[0].items()
        }:
            raise ValueError(
                "modules: names or shapes of parameters differ; only modules of one architecture "
                "can be stacked"
            )
    return {name: torch.stack([params[name] for params in all_params]) for name in all_params[0]}


def select(
    params: Mapping[str, Tensor], which: Select, argument: str = "shared"
) -> tuple[str, ...]:
    """Names that a glob matches or a predicate accepts, in the order of `params`.

    Raises:
        ValueError: naming `argument`, if there are none.
        TypeError: for anything but a string or a callable.
    """
    if not isinstance(which, str) and not callable(which):
        raise TypeError(
            f"{argument}: expected a glob such as 'trunk.*' or a predicate on names, got "
            f"{type(which).__name__}"
        )
    names = (
        _matches(tuple(params), which)
        if isinstance(which, str)
        else tuple(name for name in params if which(name))
    )
    if not names:
        raise ValueError(
            f"{argument}={which!r} matches no parameter; there are: {', '.join(params)}"
        )
    return names


def layer_of(name: str) -> str:
    """The module that owns a parameter; a parameter without one is a layer of its own."""
    return name.rpartition(".")[0] or name


@torch.compiler.assume_constant_result
def _matches(names: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    return tuple(name for name in names if fnmatchcase(name, pattern))


def inner(
    left: Float[Tensor, "row width"], right: Float[Tensor, "other width"]
) -> Float[Tensor, "row other"]:
    """left @ rightᵀ, summed in blocks: one long sum in float32 loses digits in proportion to its
    length (1e-3 for 2 million equal signs).
    """
    width = left.shape[1]
    whole = width - width % BLOCK
    if whole < 2 * BLOCK:
        return left @ right.mT
    a, b = (x[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1) for x in (left, right))
    return (a @ b.mT).sum(0) + left[:, whole:] @ right[:, whole:].mT


BLOCK = 4096


def dot(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    names: Iterable[str],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "row other"]:
    """Inner products of two sets of rows over the named leaves, accumulated in `dtype` or at least
    float32; nothing is concatenated.
    """
    total = None
    for name in names:
        wide = dtype or torch.promote_types(left[name].dtype, torch.float32)
        part = inner(
            *(rows[name].reshape(rows[name].shape[0], -1).to(wide) for rows in (left, right))
        )
        total = part if total is None else total + part
    assert total is not None, "names is never empty: select() raises"
    return total


def combine(weights: Float[Tensor, " row"], rows: Rows) -> Params:
    """Weighted sums of rows, leaf by leaf."""
    return {
        name: torch.tensordot(weights.to(leaf.dtype), leaf, dims=1) for name, leaf in rows.items()
    }


def map_params(f: Callable[..., Tensor], first: Params, *rest: Params) -> Params:
    """Apply `f` leaf by leaf to dicts of the same names."""
    return {name: f(leaf, *(other[name] for other in rest)) for name, leaf in first.items()}
