"""Parameter dicts: pick leaves by name, inner products of rows, combine rows, stack modules."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..types import Metric, Params, Rows, Select
from .hooks import refuse_inner_steps
from .internals import forward_level
from .transforms import constant_when_compiled, depth, same_storage
from .wrappers import refuse_shards, refuse_twice, refuse_wrapped

_NAMES: MutableMapping[Tensor, dict[frozenset[str], str]] = WeakIdKeyDictionary()
"""A parameter's name in every dict that `parameters` handed out, by the names of all in there."""


def parameters(module: nn.Module) -> Params:
    """The trainable parameters of a module, detached, sharing its storage.

    Frozen parameters (`requires_grad=False`) are left to the module, which is where
    `functional_call` finds them. Passing `dict(module.named_parameters())` instead would keep the
    graph of every step alive; so would leaving out one that requires grad in the module: freeze it.

    Args:
        module: any; tied parameters count once.

    Returns:
        `{name: tensor}` by the names of `module.named_parameters()`.

    Raises:
        ValueError: for a module of two names, if functional_call would leave tensors in it.

    Examples:
        >>> sorted(parameters(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    refuse_wrapped(module)
    refuse_twice(module)
    found = trained(module)
    for name, leaf in found.items():
        _NAMES.setdefault(leaf, {})[frozenset(found)] = name
    return {name: leaf.detach() for name, leaf in found.items()}


def trained(module: nn.Module) -> Params:
    """The parameters that train, by their first names."""
    return {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}


def assign_gradients(module: nn.Module, grads: Params) -> None:
    """Set `.grad` of a module's parameters, detached, for an optimizer of `torch.optim`.

    Args:
        module: parameters of it without a gradient get None.
        grads: `{name: tensor}` in the parameters' shapes, dtypes and devices; memory is shared, but
            between no two parameters.

    Raises:
        KeyError: if `grads` has a name that the module lacks.
        ValueError: if a shape, dtype or device differs.
        NotImplementedError: for sharded parameters, and an optimizer in the backward pass.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> assign_gradients(net, {"weight": torch.ones(1, 2)})
        >>> net.weight.grad.tolist(), net.bias.grad
        ([[1.0, 1.0]], None)
    """
    leaves = dict(module.named_parameters())
    refuse_shards(leaves, "module")
    refuse_inner_steps(leaves)
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
    taken: set[int] = set()
    for name, leaf in leaves.items():
        leaf.grad = None
        if (grad := grads.get(name)) is not None:  # fused optimizers take it for laid out alike
            own = grad.stride() == leaf.stride() and grad.data_ptr() not in taken
            taken |= {grad.data_ptr()} - {0}  # which stands for no memory
            leaf.grad = grad.detach() if own else torch.empty_like(leaf).copy_(grad.detach())


def stack(modules: Sequence[nn.Module]) -> Params:
    """Parameters of several modules of one architecture, stacked for `vmap`.

    Frozen parameters and buffers are not among them: they stay those of the module called.

    Args:
        modules: at least one; all with the same names and shapes of parameters.

    Returns:
        `{name: tensor [module, *shape]}`.

    Raises:
        ValueError: if there are none, or if names or shapes differ.

    Examples:
        >>> nets = [nn.Linear(2, 1) for _ in range(3)]
        >>> {name: tuple(leaf.shape) for name, leaf in stack(nets).items()}
        {'weight': (3, 1, 2), 'bias': (3, 1)}
    """
    if not modules:
        raise ValueError("modules: expected at least one module")
    first, *rest = [parameters(module) for module in modules]
    if not all(same_shapes(params, first) for params in rest):
        raise ValueError(
            "modules: names or shapes of parameters differ; only modules of one architecture can "
            "be stacked"
        )
    return {name: torch.stack([params[name] for params in (first, *rest)]) for name in first}


def select(params: Params, which: Select, argument: str = "shared") -> tuple[str, ...]:
    """The names that are meant, at least one, in the order of `params`.

    A tied parameter has its first name alone, as in `module.named_parameters()`. Raises an error,
    with `which` called by the name of the `argument`, if there are none, one glob of several
    matches nothing, or a trainable parameter of a module is not in `params`.
    """
    if not params:
        raise ValueError(
            f"{argument}: there is no parameter to choose: the module has none, or all are frozen "
            "(requires_grad=False)"
        )
    if isinstance(which, nn.Module | Tensor):
        return _names_of(params, which, argument)
    if isinstance(which, str) or callable(which):
        return _match(params, which, argument)
    if not isinstance(which, Iterable) or hasattr(which, "_fields"):  # a probe, a rule
        raise TypeError(
            f"{argument}: expected a glob such as 'trunk.*', a predicate on names, a module, or a "
            f"list of globs, modules or parameters, got {type(which).__name__}"
        )
    union = {name for one in which for name in select(params, one, argument)}
    if not union:
        raise ValueError(
            f"{argument}: expected at least one glob or parameter, got none (a generator such as "
            "module.parameters() is empty after its first use; pass the module, or a list)"
        )
    return tuple([name for name in params if name in union])


def _match(params: Params, which: str | Callable[[str], bool], argument: str) -> tuple[str, ...]:
    """The names that a glob or a predicate accepts, at least one."""
    names, what, cure = tuple(params), f"{argument}: the predicate accepts", ""
    glob = isinstance(which, str)
    if not glob and hasattr(made := which(names[0]), "_fields"):
        raise TypeError(f"{argument}: expected a predicate, got a maker of {type(made).__name__}s")
    if found := _match_names(names, which) if glob else tuple(filter(which, names)):
        return found
    if glob:
        what, tries = f"{argument}={which!r} matches", (f"{which}.*", which.replace("[", "[[]"))
        if near := next((x for x in tries if _match_names(names, x)), ""):
            cure = f" (use '{near}'{', as [ begins a set' * (near == tries[1])})"
    raise ValueError(
        f"{what} no parameter{cure}; there are: {few_names(params)}; frozen ones are not among "
        "them (requires_grad_(True) makes them train), and a tied one is by its first name alone"
    )


def _names_of(params: Params, which: nn.Module | Tensor, argument: str) -> tuple[str, ...]:
    """The names of a module's trainable parameters, or of one parameter.

    By their storage where it can be seen, else by the names that `parameters` gave them: a step
    makes new tensors of the old names.
    """
    what, known = type(which).__name__, _known_names(which, tuple(params))
    if not torch.compiler.is_compiling():
        known = [
            (next((n for n, x in params.items() if same_storage(x, leaf)), name), trainable)
            for (name, trainable), leaf in zip(known, _leaves(which), strict=True)
        ]
    if any(name is None and trainable for name, trainable in known):
        whose = "" if isinstance(which, Tensor) else f" of this {what}"
        raise ValueError(
            f"{argument}: a parameter{whose} is not in params, whose names are "
            f"{few_names(params)}; it is another network's, or a copy: pass a part of the module "
            "that is trained (its params by mtlfunc.parameters), or a glob on names"
        )
    held = [name for name, _ in known]
    if found := tuple(name for name in params if name in held):
        return found
    raise ValueError(
        f"{argument}: all parameters of this {what} are frozen, and frozen ones "
        "(requires_grad=False) are not in params; unfreeze them, or choose others"
        if known
        else f"{argument}: this {what} has no parameters"
    )


def _leaves(which: nn.Module | Tensor) -> list[Tensor]:
    return [which] if isinstance(which, Tensor) else list(which.parameters())


@constant_when_compiled
def _known_names(
    which: nn.Module | Tensor, names: tuple[str, ...]
) -> list[tuple[str | None, bool]]:
    """Of every leaf the name that `parameters` gave it, and whether it is trainable.

    A module and a part of it name a parameter differently: of the dict with most of these names.
    """
    found = []
    for leaf in _leaves(which):
        known = [(len(every.intersection(names)), n) for every, n in _NAMES.get(leaf, {}).items()]
        name = max((pair for pair in known if pair[1] in names), default=(0, None))[1]
        found.append((name, leaf.requires_grad))
    return found


def few_names(names: Iterable[str]) -> str:
    """Names for an error, not all of a large network's."""
    names = list(names)
    return ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")


@constant_when_compiled
def _match_names(names: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    return _match_names_cached(names, pattern)


@lru_cache(maxsize=64)
def _match_names_cached(names: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    return tuple(name for name in names if fnmatchcase(name, pattern))


BLOCK = 4096
"""Entries that one product sums at once."""


HALF = (torch.bfloat16, torch.float16)


def inner_products(
    left: Float[Tensor, "row width"], right: Float[Tensor, "other width"]
) -> Float[Tensor, "row other"]:
    """left @ rightᵀ, summed in blocks; that of half precision is float32.

    One long sum in float32 loses digits in proportion to its length: 1e-3 of 2 million terms.
    """
    if left.dtype in HALF and not accumulates_wide(left, right):
        same, left = right is left, left.float()
        right = left if same else right.float()
    width = left.shape[1]
    whole = width - width % BLOCK
    if whole < 2 * BLOCK:
        if left.dtype in HALF:
            return batched_product(left[None], right.mT[None])[0]
        return left @ right.mT

    def blocks(x: Tensor) -> Tensor:
        return x[:, :whole].reshape(len(x), -1, BLOCK).transpose(0, 1)

    a = blocks(left)
    total = batched_product(a, (a if right is left else blocks(right)).mT).sum(0)
    if whole == width:
        return total
    return total + inner_products(left[:, whole:], right[:, whole:])


def batched_product(
    left: Float[Tensor, "batch row width"], right: Float[Tensor, "batch width other"]
) -> Float[Tensor, "batch row other"]:
    """left @ right, a long one in blocks; of half precision in one sum, which is float32."""
    if left.dtype in HALF and accumulates_wide(left, right):
        return torch.bmm(left, right, out_dtype=torch.float32)
    if left.dtype in HALF:
        return left.float() @ right.float()
    if left.shape[2] < 2 * BLOCK:
        return torch.bmm(left, right)
    return torch.stack([inner_products(x, y) for x, y in zip(left, right.mT, strict=True)])


def accumulates_wide(*factors: Tensor) -> bool:
    """Whether torch has a product of these halves to float32 here: on CUDA, but not on ROCm or with
    sums in float16 allowed, where none is derived, and nothing compiles.
    """
    if torch.compiler.is_compiling() or depth() or forward_level() >= 0:
        return False
    if torch.version.hip or not all(x.is_cuda and x.dtype == factors[0].dtype for x in factors):
        return False
    if factors[0].dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation:
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in factors))


def root(x: Tensor) -> Tensor:
    """Square root of max(x, 0) with derivative 0, not NaN, at 0; NaN stays NaN."""
    return torch.where(x <= 0, 0.0, x.where(~(x <= 0), 1.0).sqrt())


def dot(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    names: Iterable[str],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "row other"]:
    """Inner products of two sets of rows, summed over these leaves, at least one; of small leaves
    several at once. `dtype`: of the accumulation; None is the rows' own, at least float32.
    """
    total = None
    for some in _split_blocks(left, names):
        wide = dtype or torch.promote_types(left[some[0]].dtype, torch.float32)
        # not the dicts themselves: the compiler before torch 2.12 cannot compare them
        same = all(right[name] is left[name] for name in some)
        each = (left,) if same else (left, right)
        flat = [[rows[x].reshape(rows[x].shape[0], -1) for x in some] for rows in each]
        pair = [x[0] if len(x) == 1 else torch.cat(x, 1) for x in flat]
        if wide != torch.float32 or any(x.dtype not in HALF for x in pair):
            pair = [x.to(wide) for x in pair]
        part = inner_products(pair[0], pair[-1]).to(wide)
        total = part if total is None else total + part
    assert total is not None, "names is never empty: select() raises"
    return total


CHUNK = 2**16
"""Coordinates in a metric at a time."""


def gramians(
    left: Rows, right: Rows, metric: Metric | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """J P J₂ᵀ `[row, other]` and J₂ c `[other]` of two sets of rows in a diagonal metric, which is
    0-d where it is one number; J J₂ᵀ and None without one. `dtype`: as in `dot`.

    Some coordinates at a time, which stay in the cache: the rows are read once.
    """
    if metric is None:
        return dot(left, right, left, dtype), None
    parts = []
    for name, one in left.items():
        other = right[name]
        wide = dtype or torch.promote_types(one.dtype, torch.float32)
        c = metric.carried.get(name, one.new_zeros(()))
        flat = [
            one.reshape(one.shape[0], -1),
            *(x.expand(one.shape[1:]).flatten() for x in (metric.scale[name], c)),
            other.reshape(other.shape[0], -1),
        ]
        for a, p, c, b in zip(*(x.split(CHUNK, -1) for x in flat), strict=True):
            other = b.to(wide)
            products = (a.to(wide) * p.to(wide)) @ other.mT, other @ c.to(wide)
            parts.append(torch.cat([products[0], products[1][None]]))
    found = torch.stack(parts).sum(0)
    gramian, carried = found[:-1], found[-1]
    return 0.5 * (gramian + gramian.mT) if right is left else gramian, carried


def _split_blocks(rows: Mapping[str, Tensor], names: Iterable[str]) -> list[list[str]]:
    """The names, small leaves of one dtype together, as many as fill one block."""
    found: list[list[str]] = []
    dtype, room = None, 0
    for name in names:
        leaf = rows[name]
        width = leaf.numel() // max(leaf.shape[0], 1)
        if leaf.dtype == dtype and width <= room:
            found[-1].append(name)
        else:
            found.append([name])
            dtype, room = leaf.dtype, 2 * BLOCK
        room -= width
    return found


def combine(weights: Float[Tensor, " row"], rows: Rows) -> Params:
    """Weighted sums of rows, leaf by leaf."""
    cast = {dtype: weights.to(dtype) for dtype in {leaf.dtype for leaf in rows.values()}}
    if torch.float16 in cast:  # whose range is short of weights such as 1/length
        wide = {n: x.float() if x.dtype == torch.float16 else x for n, x in rows.items()}
        return {n: x.to(rows[n].dtype) for n, x in combine(weights, wide).items()}
    return {
        name: cast[leaf.dtype] @ leaf
        if leaf.ndim == 2  # nearly half of all leaves
        else (cast[leaf.dtype] @ leaf.reshape(leaf.shape[0], -1)).reshape(leaf.shape[1:])
        for name, leaf in rows.items()
    }


def memory_dtype(x: Tensor) -> torch.dtype:
    """Of what sums such tensors over steps, which in half precision would come to a halt."""
    return torch.promote_types(x.dtype, torch.float32)


def as_real(x: Any) -> Any:
    """A complex tensor as two real ones, along a last axis."""
    whole = isinstance(x, Tensor) and x.is_complex()
    return torch.view_as_real(x.resolve_conj()) if whole else x


def real_of(params: Params) -> Params:
    """The same of leaves; `params` itself if none is complex."""
    if True not in map(Tensor.is_complex, params.values()):
        return params
    return {name: as_real(x) for name, x in params.items()}


def like(params: Params, real: Params) -> Params:
    """What has the leaves of `real_of(params)`, or rows of them, as complex where `params` are."""
    if not any(x.is_complex() for x in params.values()):
        return real
    return {
        name: torch.view_as_complex(x.contiguous().clone()) if params[name].is_complex() else x
        for name, x in real.items()
    }


def same_shapes(value: Any, leaves: Params) -> bool:
    """Whether this holds a tensor for each of the leaves, in its shape."""
    names = isinstance(value, Mapping) and value.keys() == leaves.keys()
    return names and all(value[name].shape == leaf.shape for name, leaf in leaves.items())


def map_params(f: Callable[..., Tensor], first: Params, *rest: Params) -> Params:
    """Apply `f` leaf by leaf to dicts of the same names."""
    return {name: f(leaf, *(other[name] for other in rest)) for name, leaf in first.items()}
