"""Several processes that train on one batch together: their collectives, and what they compare when
they start.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import isclose, isnan
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
        """Sums over the ranks, in one all-reduce, with the same bits on every rank.

        The broadcast makes it so: no backend promises it of an all-reduce.
        """
        if not values:
            return []
        flat = torch.cat([x.detach().to(self.device).flatten() for x in values])
        dist.all_reduce(flat, group=self.group)
        dist.broadcast(flat, group=self.group, group_src=0)
        parts = flat.split([x.numel() for x in values])
        return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, values, strict=True)]

    def sum_leaves(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of leaves by name, in an order that no graph decides; the bits may differ."""
        if not leaves:
            return {}
        order = sorted(leaves)
        flat = torch.cat([leaves[name].detach().flatten() for name in order])
        dist.all_reduce(flat, group=self.group)
        parts = zip(order, flat.split([leaves[name].numel() for name in order]), strict=True)
        found = {name: part.view(leaves[name].shape) for name, part in parts}
        return {name: found[name] for name in leaves}

    def gather(self, mine: Tensor) -> Tensor:
        """Every rank's `[width]`: `[rank, width]`."""
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous(), group=self.group)
        return torch.stack(parts)

    def objects(self, mine: T) -> list[T]:
        """Every rank's, pickled: for what is small."""
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, mine, group=self.group)
        return every

    def each(self, mine: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Every rank's tensors in turn, held one rank at a time; their lengths may differ, their
        numbers of axes not.
        """
        for rank, shapes in enumerate(self.objects([x.shape for x in mine])):
            theirs = [
                x.detach().contiguous() if rank == self.rank else x.new_empty(shape)
                for x, shape in zip(mine, shapes, strict=True)
            ]
            for x in theirs:
                dist.broadcast(x, group=self.group, group_src=rank)
            yield theirs

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError on every rank if their facts differ, which says what differs where.

        Tensors may differ by rounding.
        """
        every = self.objects({name: _told(fact) for name, fact in facts.items()})
        for name in dict.fromkeys(name for found in every for name in found):
            first, *others = [found.get(name, "nothing") for found in every]
            for rank, other in enumerate(others, 1):
                if not _same(first, other):
                    raise ValueError(
                        f"group: the ranks differ in {name}: {first!s:.200} on rank 0, "
                        f"{other!s:.200} on rank {rank}; give every rank the same arguments, code, "
                        "seed and checkpoint (torch.distributed.broadcast for the values of "
                        "parameters)"
                    )


def _told(fact: Any) -> Any:
    """What ranks compare of a fact: numbers of a tensor, of anything else its text."""
    if not isinstance(fact, Tensor):
        return fact if isinstance(fact, str) else describe(fact)
    wide = fact.detach().to(torch.float64).flatten()
    if fact.numel() > 64:
        wide = torch.stack([wide.norm(), wide.sum() / fact.numel() ** 0.5])
    return wide.tolist()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str) or len(one) != len(other):
        return one == other
    scale = 1e-4 * max(map(abs, (*one, *other)), default=0.0)
    pairs = zip(one, other, strict=True)
    return all(isclose(x, y, abs_tol=scale) or (isnan(x) and isnan(y)) for x, y in pairs)


def describe(value: Any) -> str:
    """A rule, or another part of a method: its constructor and the arguments of that.

    Of functions the name alone: what they hold may well be a rank's own.
    """
    if (call := call_of(value)) is not None:
        return f"{call.make.__name__}{describe(call.arguments)}"
    if isinstance(value, Tensor):
        return f"{_told(value)}"
    if isinstance(value, tuple | list | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return f"({', '.join(map(describe, items))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{k}={describe(x)}' for k, x in value.items())})"
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__name__).partition(".<locals>")[0]


def describe_params(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ranks must share of their parameters: names, shapes, dtypes and values."""
    shapes = {f"params[{n!r}]": f"{x.dtype} {list(x.shape)}" for n, x in params.items()}
    values = {f"the values of params[{n!r}]": x for n, x in params.items()}
    return {"the names of params": list(params)} | shapes | values


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


def peers_of(group: Group, params: Any) -> Collectives | None:
    """The processes of a group that is named; None where this one is alone.

    Raises:
        ValueError: for a group whose backend does not take tensors where the parameters are.
    """
    group = check_group(group)
    leaves = params.values() if isinstance(params, Mapping) else ()
    device = next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))
    backends = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    if device.type not in {entry.partition(":")[0] for entry in backends.split(",")}:
        raise ValueError(
            f"group: its backends are {backends}, and none takes the parameters, which are on "
            f"{device}; make it with backend='nccl' for CUDA, 'gloo' for the CPU"
        )
    size = dist.get_world_size(group)
    return None if size == 1 else Collectives(group, dist.get_rank(group), size, device)


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
        ranks, own = map(dist.get_process_group_ranks, (check_group(group), inner.process_group))
        if sorted(ranks) != sorted(own):
            raise ValueError(
                f"group: its ranks are {ranks}, and DistributedDataParallel averages over {own}; "
                "pass the same process_group to both"
            )
        inner = _inside(inner.module)
    refuse_wrapped(inner)
    return inner


def _inside(module: Any) -> Any:
    for wrapped in ("_orig_mod", "_forward_module", "_orig_mod"):
        module = getattr(module, wrapped, module)
    return module


def refuse_join(module: nn.Module) -> None:
    """Raise inside `DistributedDataParallel.join`."""
    join = getattr(module, "_join_config", None)
    if wrapper_of(module) == DDP and join is not None and join.enable:
        raise NotImplementedError(
            "module: DistributedDataParallel.join answers the other ranks' own collectives, not "
            "those of a step with group=; let every rank take every step, one without data with "
            "present= of zeros"
        )
