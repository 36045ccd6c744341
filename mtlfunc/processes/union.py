"""The union of the processes' batches: one step of several processes is one step on it.

The union's loss of task t is Σ_r s_t^r L_t^r with the shares s_t^r that each rank has in it, so
every derivative is a sum over the ranks of that of the scaled local losses. A `Ranks` of one
process has the same methods and exchanges nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.transforms import all_present, inside_transform, is_readable
from ..core.tree import gramians
from ..core.wrappers import refuse_shards
from ..types import Metric, Params, Rows
from .group import Group, check_group, comparable, compare


class Ranks(NamedTuple):
    """The processes whose batches are one batch, as one of them sees it; by default it alone."""

    group: Any = None  # of torch.distributed; None where none was named
    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError on every rank if their facts differ."""
        if self.size > 1:
            every: list[Any] = [None] * self.size
            mine = {name: comparable(fact) for name, fact in facts.items()}
            dist.all_gather_object(every, mine, group=self.group)
            compare(every)

    def add(self, *values: Tensor) -> list[Tensor]:
        """Sums over the ranks, in one all-reduce, with the same bits on every rank.

        The broadcast makes it so: no backend promises it of an all-reduce.
        """
        if not values or self.size == 1:
            return list(values)
        return self._sum(values, same_bits=True)

    def gradient(self, grads: Params) -> Params:
        """Gradients of the union from gradients of every process's scaled losses, in an order that
        no graph decides; the bits may differ.
        """
        if not grads or self.size == 1:
            return grads
        order = sorted(grads)
        found = dict(zip(order, self._sum([grads[x] for x in order]), strict=True))
        return {name: found[name] for name in grads}

    def _sum(self, values: Sequence[Tensor], *, same_bits: bool = False) -> list[Tensor]:
        flat = torch.cat([x.detach().to(self.device).flatten() for x in values])
        dist.all_reduce(flat, group=self.group)
        if same_bits:
            dist.broadcast(flat, group=self.group, group_src=0)
        parts = flat.split([x.numel() for x in values])
        return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, values, strict=True)]

    def names(self, mine: set[str], every: Sequence[str]) -> set[str]:
        """The names that some rank has."""
        if self.size == 1:
            return mine
        (found,) = self.add(torch.tensor([float(name in mine) for name in every]))
        return {name for name, count in zip(every, found.tolist(), strict=True) if count}

    def shares(self, counts: Tensor | None) -> "Shares":
        """This process's part of the union's losses: by its labels or counts `[task]`, or equal."""
        if counts is None:
            return Shares(self, 1 / self.size, None, None)
        if self.size == 1:
            return Shares(self, 1.0, here := mask_of(counts), here)
        mine = counts.to(device=self.device, dtype=torch.float64)
        (total,) = self.add(mine.where(mine >= 0, float("nan")))
        if bool(total.isnan().any()):  # on every rank, or the others would wait
            raise ValueError("present: a rank's counts are negative or NaN; expected numbers >= 0")
        return Shares(self, mine / total.where(total > 0, 1.0), mine > 0, total > 0)

    def total(self, losses: Tensor, share: Tensor | float) -> Tensor:
        """The union's losses `[task]`, from this process's and its share in each."""
        if self.size == 1:
            return losses
        share = _as(share, losses)
        return self.add(losses.where(share > 0, 0.0) * share)[0]

    def sums(self, weightings: Tensor) -> "Shares":
        """All of every process's losses, which the union's are sums of; a task is present where
        some process has `weightings` [task, *losses] other than 0 of it.
        """
        present = weightings.detach().flatten(1).any(1)
        if self.size > 1:
            present = self.add(present.to(torch.float32))[0] > 0
        return Shares(self, 1.0, None, present)


class Shares(NamedTuple):
    """This process's part in the losses of the union of the batches."""

    union: Ranks
    share: Tensor | float  # [task] of a task's samples
    here: Tensor | None  # Bool[task], the tasks that have labels on this rank; None is all
    present: Tensor | None  # Bool[task], those that have labels on any

    def scale(self, losses: Tensor) -> Tensor | None:
        """What multiplies this process's losses `[task]`: its share, 0 without labels; None is 1.
        Raises an error for labels of another number of tasks.
        """
        here = mask_of(self.here, len(losses))
        if self.union.size > 1:
            summed = here is None and self.share == 1.0
            return None if summed else _as(self.share, losses)
        return None if here is None or all_present(here) else here.to(losses)

    def left_out(self, passes: Tensor | None = None) -> frozenset[int]:
        """Tasks, but `passes` [task], whose separate losses are seen to need no pass for labels."""
        here = self.here
        if here is None or not is_readable(here):
            return frozenset()
        here = here if passes is None else here | passes
        return frozenset(t for t, needed in enumerate(here.tolist()) if not needed)

    def summed(
        self, found: Any, *, whole: bool, metric: Metric | None, dtype: torch.dtype | None
    ) -> Any:
        """The union's losses, Gramian and gradients, from each process's.

        Args:
            found: what `TaskJacobian.measure` found of this process's scaled losses, with its rows.
            whole: every process needs the rows as a whole, and makes the Gramian itself; else it
                gets its own columns of their sum, for half the traffic.
            metric, dtype: of the leaves that have rows; of the Gramian's accumulation.
        """
        union, rows, gramian, carried = self.union, found.rows, None, []
        if whole or not rows:
            found, _ = self.totals(found)
            rows = dict(zip(rows, union.add(*rows.values()), strict=True))
            back = found.restore
        else:
            rows, back, cut = _pieces(rows, union)
            if metric is not None:
                metric = Metric(cut(metric.scale), cut(metric.carried))
            products = [x for x in gramians(rows, rows, metric, dtype) if x is not None]
            found, (gramian, *carried) = self.totals(found, *products)
            gramian = 0.5 * (gramian + gramian.mT)
        inner = found.pullback
        return found._replace(
            rows=rows, gramian=gramian, carried=carried[0] if carried else None, restore=back,
            heads=union.gradient(found.heads),
            pullback=lambda weights, *names: union.gradient(inner(weights, *names)),
        )  # fmt: skip

    def totals(self, found: Any, *more: Tensor) -> tuple[Any, list[Tensor]]:
        """The union's losses instead of this process's, and sums of `more`, in one exchange."""
        if self.union.size == 1:
            return found, list(more)
        losses, share = found.losses, _as(self.share, found.losses)
        part = share.clone()
        if self.here is not None and self.present is not None:
            # of a task that has labels nowhere the mean over the processes is reported
            losses = losses.where(self.here | ~self.present, 0.0)
            share = share.where(self.present, 1 / self.union.size)
        losses, mixed, *sums = self.union.add(losses * share, found.mixed, *more)
        return found._replace(losses=losses, mixed=mixed, part=part), sums

    def over_present(self, preference: Tensor) -> Tensor:
        """How rows mix into the mean gradient, over those of tasks that have labels."""
        if self.present is None or all_present(self.present):
            return preference
        return self.present.to(preference) / self.present.sum().clamp_min(1).to(preference)

    def plain(self, heads: Params) -> Params:
        """Gradients of the mean over the tasks that have labels, from those over all."""
        if self.present is None or all_present(self.present):
            return heads
        count = self.present.sum().clamp_min(1)
        return {name: grad * (len(self.present) / count.to(grad)) for name, grad in heads.items()}


def union_of(group: Group, params: Mapping[str, Any]) -> Ranks:
    """The union over the processes of a group; of this one alone for None. Raises an error for
    sharded parameters or others than the group's backends take, and where processes cannot talk.
    """
    refuse_shards(params)
    if group is None:
        return ALONE
    if torch.compiler.is_compiling() or inside_transform():
        raise RuntimeError(
            "group: processes cannot talk to each other inside a transform of torch.func or a "
            "compiled function; call this outside, and compile losses_fn or the module"
        )
    group = check_group(group)
    leaves = params.values() if isinstance(params, Mapping) else ()
    device = next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))
    backends = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    if device.type not in {entry.partition(":")[0] for entry in backends.split(",")}:
        raise ValueError(
            f"group: its backends are {backends}, and none takes the parameters, which are on "
            f"{device}; make it with backend='nccl' for CUDA, 'gloo' for the CPU"
        )
    return Ranks(group, dist.get_rank(group), dist.get_world_size(group), device)


def mask_of(counts: Tensor | None, tasks: int | None = None) -> Tensor | None:
    """Bool[task] from labels, or from numbers of them; None is all. Raises an error for labels of
    another number of `tasks`, where that is known.
    """
    if counts is not None and tasks not in (None, len(counts)):
        raise ValueError(f"present: expected one entry per task, {tasks}, got {len(counts)}")
    return counts if counts is None or counts.dtype == torch.bool else counts > 0


ALONE = Ranks()
WHOLE = ALONE.shares(None)
"""Of one process, whose tasks all have labels."""


def _pieces(
    rows: Rows, union: Ranks
) -> tuple[Rows, Callable[[Params], Params], Callable[[Params], Params]]:
    """Of the sum over the ranks this process's columns of every leaf, the last rank's ending in
    zeros; the way back from combinations of them to whole leaves; and the same of other leaves.
    """
    size, shapes = union.size, {name: row.shape[1:] for name, row in rows.items()}
    widths = [-(-shape.numel() // size) for shape in shapes.values()]

    def cut(leaf: Tensor, shape: torch.Size) -> Tensor:
        """`[rank, *, width]` of leaves `[*, *shape]`."""
        lead = leaf.shape[: max(leaf.ndim - len(shape), 0)]
        flat = leaf.expand((*lead, *shape)).reshape(*lead, -1)
        padded = nn.functional.pad(flat, (0, -flat.shape[-1] % size))
        return padded.unflatten(-1, (size, -1)).movedim(-2, 0)

    def back(grads: Params) -> Params:
        mine = torch.cat([grads[name] for name in shapes])
        every = mine.new_empty(size, len(mine))
        dist.all_gather(list(every.unbind()), mine, group=union.group)
        parts = zip(shapes.items(), every.split(widths, 1), strict=True)
        return {n: x.flatten()[: shape.numel()].view(shape) for (n, shape), x in parts}

    first = next(iter(rows.values()))
    parts = first.new_empty(size, len(first), sum(widths))  # as they are sent: one copy of all rows
    for part, (name, row) in zip(parts.split(widths, 2), rows.items(), strict=True):
        part.copy_(cut(row.detach(), shapes[name]))
    mine = torch.empty_like(parts[0])
    dist.reduce_scatter(mine, list(parts.unbind()), group=union.group)
    own = dict(zip(rows, mine.split(widths, 1), strict=True))
    return own, back, lambda xs: {n: cut(xs[n], shapes[n])[union.rank] for n in shapes if n in xs}


def _as(share: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(share, dtype=like.dtype, device=like.device).expand(like.shape)
