"""Several processes that train on one batch together: which, and what they compare at the start."""

import re
import warnings
from collections.abc import Mapping, Sequence
from math import isclose, isnan
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..calls import written
from ..core.checks import user_level
from ..core.tree import real_of
from ..core.wrappers import DDP, refuse_wrapped, wrapper_of

Group = Any
"""A process group of torch.distributed, or a one-dimensional DeviceMesh; None is no other process.

Not spelt out, because a build of torch may lack both.
"""


OWN = r", (device='.*?'|index=\d+)"
"""What the code of a tensor or a device says of its own rank alone."""


def compare(every: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the ranks' facts, as `comparable` has them, differ: which, and where."""
    for name in dict.fromkeys(name for found in every for name in found):
        first, *others = [found.get(name, "nothing") for found in every]
        for rank, other in enumerate(others, 1):
            if not _same(first, other):
                raise ValueError(
                    f"group: the ranks differ in {name}: {first!s:.200} on rank 0, "
                    f"{other!s:.200} on rank {rank}; give every rank the same arguments, code, "
                    "seed and checkpoint (torch.distributed.broadcast for the values of parameters)"
                )


def comparable(fact: Any) -> Any:
    """What ranks compare of a fact: numbers of a tensor, up to rounding; of anything else the code
    that makes it. Of functions that is the name alone: what they hold may well be a rank's own.
    """
    if not isinstance(fact, Tensor):
        return fact if isinstance(fact, str) else re.sub(OWN, "", written(fact))
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


def describe_params(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ranks must share of their parameters: names, shapes, dtypes and values."""
    shapes = {f"params[{n!r}]": f"{x.dtype} {list(x.shape)}" for n, x in params.items()}
    values = {f"the values of params[{n!r}]": x for n, x in real_of(dict(params)).items()}
    return {"the names of params": list(params)} | shapes | values


def check_group(group: Group) -> Any:
    """The process group that is meant, None for None; raises an error for something else, a mesh of
    several dimensions, or a group without this process.
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
