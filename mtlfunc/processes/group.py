"""Several processes that train on one batch together: their collectives, and what they must agree
on. Modules and parameters that belong to several processes are refused where no group is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import isnan
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..calls import call_of
from ..core.checks import user_level
from ..core.wrappers import DDP, refuse_wrapped, wrapper_of

T = TypeVar("T")

Group = Any
"""A process group of torch.distributed, or a one-dimensional DeviceMesh; None is no other process.

Not spelt out, because a build of torch may lack both.
"""


class Collectives(NamedTuple):
    """The processes whose batches are one batch, as one of them sees it."""

    group: Any  # of torch.distributed
    rank: int
    size: int
    device: torch.device

    def sums(self, *values: Tensor) -> list[Tensor]:
        """Sums over the ranks of a few small tensors, with the same bits on every rank.

        The broadcast makes it so: no backend promises it of an all-reduce.
        """
        flat = torch.cat([x.detach().to(self.device).flatten() for x in values])
        dist.all_reduce(flat, group=self.group)
        dist.broadcast(flat, group=self.group, group_src=0)
        parts = flat.split([x.numel() for x in values])
        return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, values, strict=True)]

    def sum_leaves(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the ranks leaf by leaf, in one all-reduce."""
        if not leaves:
            return {}
        order = sorted(leaves)  # theirs may depend on a graph, and graphs on labels
        flat = torch.cat([leaves[name].detach().flatten() for name in order])
        dist.all_reduce(flat, group=self.group)
        return unflatten(flat, {name: leaves[name].shape for name in order})

    def gather(self, mine: Tensor) -> Tensor:
        """Every rank's `[width]`, one after the other."""
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous(), group=self.group)
        return torch.cat(parts)

    def objects(self, mine: T) -> list[T]:
        """Every rank's, pickled: for what is small."""
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, mine, group=self.group)
        return every

    def each(self, mine: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Every rank's tensors in turn, held one rank at a time; their lengths may differ, their
        numbers of axes not.
        """
        shapes = self.gather(torch.tensor([n for x in mine for n in x.shape], device=self.device))
        for rank, row in enumerate(shapes.view(self.size, -1).tolist()):
            lengths = iter(row)
            theirs = [
                x.detach().contiguous()
                if rank == self.rank
                else x.new_empty([next(lengths) for _ in x.shape])
                for x in mine
            ]
            for x in theirs:
                dist.broadcast(x, group=self.group, group_src=rank)
            yield theirs


def unflatten(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """`[width]` cut into leaves of these shapes; what is left at the end is padding."""
    sizes = [shape.numel() for shape in shapes.values()]
    parts = zip(shapes.items(), flat[: sum(sizes)].split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}


def check_group(group: Group) -> Any:
    """The process group that is meant, None for None.

    Raises:
        TypeError: for something else.
        ValueError: for a mesh of several dimensions, or a group without this process.
    """
    if group is None:
        return None
    if type(group).__name__ == "DeviceMesh":
        if group.ndim != 1:
            raise ValueError(
                f"group: expected a one-dimensional DeviceMesh, got {group.ndim} dimensions "
                f"{group.mesh_dim_names or ''}; pass the data-parallel one, such as mesh['data']"
            )
        group = group.get_group()
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup | int):
        raise TypeError(
            "group: expected a process group, such as torch.distributed.group.WORLD after "
            "init_process_group, or a one-dimensional DeviceMesh, got " + type(group).__name__
        )
    if isinstance(group, int) or dist.get_rank(group) < 0:
        raise ValueError("group: this process is not in it; call this in its members alone")
    return group


def peers_of(group: Group, params: Mapping[str, Any]) -> Collectives | None:
    """The processes of a group that is named; None where this one is alone.

    Raises:
        ValueError: for a group whose backend does not take tensors where the parameters are.
    """
    group = check_group(group)
    leaves = list(params.values()) if isinstance(params, Mapping) else []
    leaf = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    device = torch.device("cpu") if leaf is None else leaf.device
    backends = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    if device.type not in {entry.partition(":")[0] for entry in backends.split(",")}:
        raise ValueError(
            f"group: its backends are {backends}, and none takes the parameters, which are on "
            f"{device}; make it with backend='nccl' for CUDA, 'gloo' for the CPU"
        )
    size = dist.get_world_size(group)
    if size == 1:
        return None
    return Collectives(group, dist.get_rank(group), size, device)


def agree(peers: Collectives, work: Callable[[], tuple[T, dict[str, Any]]]) -> T:
    """What `work` answers; an error on every rank if it fails on one, or if their facts differ.

    One all-reduce of five integers compares them. Only where they differ are the facts exchanged
    themselves. Every call sends the same five, so that ranks whose steps differ also meet here.

    Args:
        peers: who must agree.
        work: gives this rank's answer, and by name the facts that all ranks must share: text,
            tensors (up to rounding), or either of these by name.

    Raises:
        RuntimeError: if `work` fails on another rank; its own error on the rank itself.
        ValueError: naming what differs, and on which rank.
    """
    answer, facts, error = None, {}, None
    try:
        answer, facts = work()
        mine = _digest(facts)
    except Exception as found:
        if getattr(found, "known_to_all", False):  # the others left by it, too
            raise
        error, mine = _known(found), b"failed"
    digest = blake2b(mine, digest_size=5).digest()
    try:
        if not _alike(peers, int.from_bytes(digest), failed=error is not None):
            _find_difference(peers, facts, error)
    except Exception as broken:  # a rank is gone: what has failed before says more
        raise _known(error or broken) from None
    return answer  # pyright: ignore[reportReturnType]


def _alike(peers: Collectives, digest: int, *, failed: bool) -> bool:
    """Whether no rank failed, and all have the same 40 bits: R Σ n² = (Σ n)² holds for equal n
    alone.
    """
    low, high = digest % 2**20, digest // 2**20
    mine = torch.tensor([failed, low, low**2, high, high**2], device=peers.device)
    dist.all_reduce(mine, group=peers.group)
    failures, *sums = mine.tolist()
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return not failures and all(peers.size * squares == total**2 for total, squares in pairs)


def _digest(facts: Mapping[str, Any]) -> bytes:
    told = [name if isinstance(fact, Tensor) else (name, fact) for name, fact in _flat(facts)]
    return repr((told, bits([x for _, x in _flat(facts) if isinstance(x, Tensor)]))).encode()


def _find_difference(peers: Collectives, facts: dict[str, Any], error: Exception | None) -> None:
    """Raise naming what differs, on which rank, if it is more than rounding."""
    mine = {name: _numbers(x) if isinstance(x, Tensor) else x for name, x in _flat(facts)}
    failure = None if error is None else f"{type(error).__name__}: {error}"
    every = peers.objects((mine, failure))
    if error is not None:
        raise error
    for rank, (_, failed) in enumerate(every):
        if failed:
            raise _known(RuntimeError(f"group: rank {rank} failed with {failed}"))
    for name in dict.fromkeys(name for found, _ in every for name in found):
        told = [found.get(name, "nothing") for found, _ in every]
        for rank, other in enumerate(told):
            if not _same(told[0], other):
                words = (
                    f"group: the ranks differ in {name}: {told[0]!s:.200} on rank 0, "
                    f"{other!s:.200} on rank {rank}; give every rank the same arguments, code, "
                    "seed and checkpoint (torch.distributed.broadcast for the values of parameters)"
                )
                raise _known(ValueError(words))


def _known(error: Exception) -> Exception:
    """An error that every rank raises at this place: to exchange it again would wait forever."""
    error.known_to_all = True  # pyright: ignore[reportAttributeAccessIssue]
    return error


class _Numbers(NamedTuple):
    """What a tensor holds, for a reader: all of a small one, norm and scaled sum of another."""

    values: list[float]
    rounding: float

    def __str__(self) -> str:
        return f"{self.values}"


def _numbers(x: Tensor) -> _Numbers:
    wide = x.detach().to(torch.float64).flatten()
    few = wide if x.numel() <= 64 else torch.stack([wide.norm(), wide.sum() / x.numel() ** 0.5])
    eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    return _Numbers(few.tolist(), eps**0.5)


def _same(one: Any, other: Any) -> bool:
    """Whether two facts are equal; numbers up to what other processors make of them."""
    if not (isinstance(one, _Numbers) and isinstance(other, _Numbers)):
        return one == other
    scale = max(map(abs, (*one.values, *other.values)), default=0.0)
    return len(one.values) == len(other.values) and all(
        abs(x - y) <= one.rounding * scale or x == y or (isnan(x) and isnan(y))
        for x, y in zip(one.values, other.values, strict=True)
    )


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Facts in one list; those that are named themselves as `fact['name']`."""
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            yield from ((f"{name}[{key!r}]", value) for key, value in fact.items())
        else:
            yield name, fact


def describe_params(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ranks must share of their parameters: names, shapes, dtypes and values."""
    return {
        "the names of params": list(params),
        "params": {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in params.items()},
        "the values of params": dict(params),
    }


def describe(value: Any) -> str:
    """A rule, or another part of a method: its constructor and the arguments of that.

    Of functions the name alone: what they hold may well be a rank's own.
    """
    call = call_of(value)
    if call is not None:
        return f"{call.make.__name__}{describe(call.arguments)}"
    if isinstance(value, Tensor):
        told = value.tolist() if value.numel() <= 64 else [list(value.shape), *bits([value])]
        return f"{told}"
    if isinstance(value, tuple | list | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return f"({', '.join(map(describe, items))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{k}={describe(x)}' for k, x in value.items())})"
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__name__).partition(".<locals>")[0]


def bits(leaves: Sequence[Tensor]) -> list[int]:
    """Of every tensor a sum of its bits, which has no rounding, whatever the order."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    words = (leaf.detach().contiguous().view(whole[leaf.element_size()]) for leaf in leaves)
    return torch.stack([x.sum(dtype=torch.int64) for x in words]).tolist() if leaves else []


def warn_without_group() -> None:
    """Warn where several processes run, and a step does not know of them."""
    if torch.compiler.is_compiling() or not dist.is_available() or not dist.is_initialized():
        return
    if dist.get_world_size() > 1:
        warnings.warn(
            f"{dist.get_world_size()} processes run here, and this step sees the batch of its own "
            "alone: each will weigh its tasks differently. For one step on all batches pass "
            "group=torch.distributed.group.WORLD (to the probe, or to Balancer); if the processes "
            "are meant to be apart, pass a group of this one, "
            "torch.distributed.new_group([rank], use_local_synchronization=True)",
            UserWarning,
            stacklevel=user_level(),
        )


def _inside(module: Any) -> Any:
    for wrapped in ("_orig_mod", "_forward_module", "_orig_mod"):
        module = getattr(module, wrapped, module)
    return module


def unwrap(module: nn.Module, group: Group) -> nn.Module:
    """The module whose parameters have plain names: without the wrappers of torch.compile and of
    Lightning Fabric, and of DistributedDataParallel where a group is named.
    """
    inner = _inside(module)
    if group is not None and wrapper_of(inner) == DDP:
        if getattr(inner, "static_graph", False):
            raise NotImplementedError(
                "module: DistributedDataParallel(static_graph=True) reduces gradients inside its "
                "first backward pass, whoever runs it; make it without"
            )
        ranks = dist.get_process_group_ranks(check_group(group))
        own = dist.get_process_group_ranks(inner.process_group)
        if sorted(ranks) != sorted(own):
            raise ValueError(
                f"group: its ranks are {ranks}, and DistributedDataParallel averages over {own}; "
                "pass the same process_group to both"
            )
        inner = _inside(inner.module)
    refuse_wrapped(inner)
    return inner


def refuse_join(module: nn.Module) -> None:
    """Raise inside `DistributedDataParallel.join`."""
    join = getattr(module, "_join_config", None)
    if wrapper_of(module) == DDP and join is not None and join.enable:
        raise NotImplementedError(
            "module: DistributedDataParallel.join answers the other ranks' own collectives, not "
            "those of a step with group=; let every rank take every step, one without data with "
            "present= of zeros"
        )
