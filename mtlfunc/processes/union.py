"""One step of several processes: sums over a group of what each linearised on its own batch.

The union's loss of task t is Σ_r s_t^r L_t^r with the shares s_t^r that each rank has in it, so
every derivative is a sum over the ranks of that of the scaled local losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.distributed import Peers, held, shard_like, sharded, unflattened
from ..gradients.forward import split_output
from ..gradients.linearize import Linear
from ..types import Batch, LossesFn, Params, Rows
from .groups import Blocks, gramians


class Part(NamedTuple):
    """This process's part in the losses of the union of the batches."""

    peers: Peers
    share: Tensor | float  # [task] of a task's samples
    told: Tensor | float  # the same, and 1/R for tasks that have labels nowhere
    here: Tensor | None  # Bool[task], the tasks that have labels on this rank; None is all
    present: Tensor | None  # Bool[task], those that have labels on any

    def total(self, losses: Tensor) -> Tensor:
        """The union's losses, from this process's as they are, 0 where it has no labels."""
        return self.peers.sums(losses * _as(self.share, losses))[0]


def shares(part: Part | None, losses: Tensor) -> dict[str, Tensor]:
    """For `Geometry.extra`: what makes other losses of this batch the union's, by `of_union`."""
    return {} if part is None else {"share": _as(part.share, losses).clone()}


def of_union(losses: Tensor, share: Tensor, peers: Peers | None) -> Tensor:
    """The union's losses `[task]` from every process's and its shares `[task]`."""
    if peers is None:
        return losses
    return peers.sums(losses.where(share > 0, 0.0) * share.to(losses))[0]


def part_of(peers: Peers | None, counts: Tensor | None) -> Part | None:
    """Shares of the ranks, equal ones without counts.

    Args:
        peers: the group's processes, or None.
        counts: `[task]`, this rank's labels; booleans count as 1 and 0.
    """
    if peers is None:
        return None
    if counts is None:
        return Part(peers, 1 / peers.size, 1 / peers.size, None, None)
    mine = counts.to(device=peers.device, dtype=torch.float64)
    (total,) = peers.sums(mine.where(mine >= 0, float("nan")))
    if bool(total.isnan().any()):  # on every rank, or the others would wait
        raise ValueError("present: a rank's counts are negative or NaN; expected numbers >= 0")
    share = mine / total.where(total > 0, 1.0)
    return Part(peers, share, share.where(total > 0, 1 / peers.size), mine > 0, total > 0)


def scaled(losses_fn: LossesFn, part: Part, params: Params) -> LossesFn:
    """`losses_fn` times this process's shares, and 0 where it has no labels.

    As by `with_labels`, aux is (the losses as they were, aux) where there are counts.
    """
    # the passes of a sharded leaf are collectives, and every rank must join in each
    collective = any(map(sharded, params.values()))

    def local(params: Params, batch: Batch) -> Any:
        losses, scalars, aux = split_output(losses_fn(params, batch))
        share, here = _as(part.share, losses), part.here
        if here is not None and here.shape != losses.shape:
            raise ValueError(
                f"present: one entry a task is needed, {len(losses)}, got {here.shape[0]}"
            )
        told = aux if here is None else (losses, aux)
        if scalars is None:
            kept = losses if here is None else torch.where(here, losses, 0.0)
            return kept * share, told
        if here is None:
            return tuple(x * one for one, x in zip(share, scalars, strict=True)), told
        kept = [
            x if mask else (torch.where(here[t], x, 0.0) if collective else x.new_zeros(()))
            for t, (mask, x) in enumerate(zip(here.tolist(), scalars, strict=True))
        ]
        return tuple(x * one for one, x in zip(share, kept, strict=True)), told

    return local


def united(
    linear: Linear,
    part: Part | None,
    params: Params,
    measured: tuple[str, ...],
    blocks: Blocks,
    *,
    whole: bool,
    dtype: torch.dtype | None,
) -> Linear:
    """The union's losses, Gramian and gradients, from each process's; without a group, as it is.

    Args:
        linear: of the scaled losses of this process, with its rows.
        part: which says how they were scaled.
        params: the leaves.
        measured: names of those that the Gramian sums over.
        blocks: the names in each group of parameters.
        whole: every process needs the rows as a whole; else it gets its own columns of their sum,
            for half the traffic.
        dtype: of the Gramian's accumulation.
    """
    if part is None:
        return linear
    peers = part.peers
    if whole:
        linear, _ = totals(linear, part)
        rows, gramian, back = _whole(linear.rows, peers), None, linear.restore
    else:
        rows, back = _pieces(linear.rows, params, peers)
        own = {name: x if _counts(params[name], peers) else x[:, :0] for name, x in rows.items()}
        linear, (gramian,) = totals(linear, part, gramians(own, own, measured, blocks, dtype))
        gramian = 0.5 * (gramian + gramian.mT)

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
        return summed(linear.pullback(weights, names), peers)

    return linear._replace(
        rows=rows,
        gramian=gramian,
        heads=summed(linear.heads, peers),
        pullback=pullback,
        restore=back,
    )


def totals(linear: Linear, part: Part, *more: Tensor) -> tuple[Linear, list[Tensor]]:
    """The union's losses in place of this process's, and sums of `more`, in one exchange."""
    told, aux = linear.losses, linear.aux
    if part.here is not None:
        raw, aux = linear.aux
        asked = part.here | ~part.present  # pyright: ignore[reportOptionalOperand]
        told = raw.where(asked, 0.0) * _as(part.told, raw)
    losses, mixed, told, *found = part.peers.sums(linear.losses, linear.mixed, told, *more)
    aux = aux if part.here is None else (told, aux)
    return linear._replace(losses=losses, mixed=mixed, aux=aux), found


def summed(grads: Params, peers: Peers | None) -> Params:
    """Gradients of the union from gradients of every process's scaled losses.

    A sharded leaf's is the mean over the ranks already: autograd has reduced it.
    """
    if peers is None:
        return grads
    plain = {name: leaf for name, leaf in grads.items() if not sharded(leaf)}
    found = peers.sum_leaves(plain)
    return {name: found[name] if name in found else peers.size * grads[name] for name in grads}


def _whole(rows: Rows, peers: Peers) -> Rows:
    if any(map(sharded, rows.values())):
        raise NotImplementedError(
            "group: mask= and probes with a memory need whole rows, and a sharded parameter has "
            "none; use them with replicated parameters"
        )
    return peers.sum_leaves(rows)


def _pieces(rows: Rows, params: Params, peers: Peers) -> tuple[Rows, Callable[[Params], Params]]:
    """This process's columns of the sum over the ranks, and the way back from combinations of them
    to whole leaves.
    """
    plain = {name: row for name, row in rows.items() if not sharded(row)}
    pieces = {name: peers.size * held(row) for name, row in rows.items() if name not in plain}
    width = 0
    if plain:
        mine = peers.scatter_sum(torch.cat([row.flatten(1) for row in plain.values()], 1))
        width, at = mine.shape[1], -peers.rank * mine.shape[1]
        for name, row in plain.items():
            end = at + row[0].numel()
            pieces[name] = mine[:, min(max(at, 0), width) : min(max(end, 0), width)]
            at = end
    shapes = {name: params[name].shape for name in plain}

    def back(grads: Params) -> Params:
        found = {name: shard_like(grads[name], params[name]) for name in grads if name not in plain}
        if plain:
            mine = torch.cat([grads[name] for name in plain])
            mine = torch.cat([mine, mine.new_zeros(width - len(mine))])
            found |= unflattened(peers.gather(mine), shapes)
        return {name: found[name] for name in grads}

    return {name: pieces[name] for name in rows}, back


def _counts(leaf: Any, peers: Peers) -> bool:
    """Whether this process's columns of a leaf enter the sum: a copy on every rank enters once."""
    return not sharded(leaf) or not leaf.placements[0].is_replicate() or peers.rank == 0


def _as(share: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(share, dtype=like.dtype, device=like.device).expand(like.shape)
