"""From one forward pass to the rows of its Jacobian, or to their Gramian without the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ..core.checks import enable_grad, is_differentiated, recording_context
from ..core.tree import dot
from ..types import Params, Rows
from .backward import Backward
from .by_samples import BySamples, split
from .by_tasks import ByTasks
from .layerwise.plan import (
    Engine,
    is_worth_recording,
    is_worth_weighing,
    plan_tasks,
    plan_weightings,
)
from .losses import flat_weightings
from .run import Forward, Traced

Mix = Callable[[int], tuple[Tensor, Tensor]]
"""From the number of tasks to (C [row, task], preference [row])."""


class Linearization(NamedTuple):
    """Losses and their first derivative at one point."""

    losses: Float[Tensor, " task"]  # as they came
    mixed: Float[Tensor, " row"]  # what the rows are gradients of
    preference: Float[Tensor, " row"]
    rows: Rows  # {name: [row, *shape]} of the shared leaves; empty where none were kept
    gramian: Float[Tensor, "row row"] | None  # over the shared leaves, if it is wanted
    heads: Params  # the other leaves' gradient, where `heads` gave them a weight
    # cotangents of the rows [row] -> a gradient for every leaf, or for those named
    pullback: Callable[..., Params]
    aux: Any
    # combinations of the rows -> a gradient in the leaves' shapes: the rows may be pieces of them
    restore: Callable[[Params], Params] = dict
    carried: Tensor | None = None  # J c of a metric, over the shared leaves


class Request(NamedTuple):
    """What is wanted of one forward pass: G = A · J P Jᵀ · Aᵀ with A = C · diag(scale)."""

    shared: tuple[str, ...]  # the leaves whose rows, or whose Gramian, are wanted
    gramian: bool = False  # theirs is wanted; else the rows are handed out
    combined: bool = False  # what is wanted of the rows is their combination
    engine: Engine = "rows"
    mix: Mix | None = None  # C; None is the tasks themselves
    # [task]: a process's part of each task's loss, 0 for a task without labels; None is 1
    scale: Tensor | None = None
    left_out: frozenset[int] = frozenset()  # tasks without labels: no pass enters a separate loss
    # from T, the weight of every task in the gradient of the other leaves; None leaves those to
    # `pullback`
    heads: Callable[[int], float | None] | None = None
    chunk_size: int | None = None  # rows in one batched pass; None is all, 1 a plain loop
    gramian_dtype: torch.dtype | None = None  # None is the rows' own, at least float32
    # how many tasks are weightings of samples, which `mix` then has, flattened; 0 is none
    weightings: int = 0

    def cotangents(self, value: Tensor) -> tuple[Tensor | None, Tensor]:
        """(C [row, task], or None for the tasks themselves; preference [row])"""
        count = value.shape[0]
        if self.mix is None:
            return None, value.new_full((count,), 1 / count)
        matrix, preference = self.mix(count)
        return matrix.to(value), preference.to(value)

    def with_weightings(self, weightings: Tensor, forward: Forward | Traced) -> Request:
        """The request of rows that are weightings [task, *losses] of this forward's losses."""
        matrix = flat_weightings(weightings, forward.losses, forward.value)
        preference = matrix.new_full((len(matrix),), 1 / len(matrix))
        return self._replace(mix=lambda count: (matrix, preference), weightings=len(matrix))

    def share(self, value: Tensor) -> float | None:
        """Every task's weight in the gradient of the other leaves."""
        return None if self.heads is None else self.heads(self.weightings or len(value))

    def total(self, value: Tensor, matrix: Tensor | None) -> Tensor:
        """The cotangents of the sum of the tasks' losses."""
        if self.weightings and matrix is not None:
            return matrix.sum(0)
        return value.new_ones(len(value)) if self.scale is None else self.scale

    def of(self, params: Params) -> Request:
        """The same of these leaves alone."""
        return self._replace(shared=tuple([name for name in self.shared if name in params]))

    def scaled(self, value: Tensor) -> Tensor:
        """The losses times `scale`; 0 where that is 0, whatever the loss."""
        return value if self.scale is None else value.where(self.scale != 0, 0.0) * self.scale

    def watches(self, params: Params, rows: int | None = None) -> bool:
        """Whether asking the graph who reads the leaves is worth its price; with `rows` unknown,
        whether it may be.
        """
        if self.weightings:
            worth = self.engine == "layerwise" or is_worth_weighing(params, self.weightings)
            return worth and self.engine != "rows"
        if not (self.gramian and self.shared) or self.engine == "rows":
            return False
        if rows is None or self.engine == "layerwise":
            return True
        return is_worth_recording(params, self.shared, rows)


def linearize(forward: Forward | Traced, request: Request) -> Linearization:
    """Backward passes that stop at the shared leaves.

    The losses of a vector are pulled back in one batched pass; separate scalars one at a time, so
    that no task's zeros are pushed through the others' heads.

    Args:
        forward: of `run`, or of losses that exist already.
        request: what is wanted of it.

    Returns:
        losses, and what is wanted of their derivative.
    """
    if isinstance(forward, Traced):
        return _traced(forward, request)
    read = forward.of_read(request.shared) if forward.unread else forward
    if read is not forward:
        found = linearize(read, request.of(read.params))
        return _with_unread(found, forward.params, read.params, request)
    value, (matrix, preference) = forward.value, request.cotangents(forward.value)
    with enable_grad():
        way = _opened(forward, request, matrix)
        rows, gramian, heads = _measured(way, forward, request, matrix)

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(forward.params)) -> Params:
        record = is_differentiated((value, weights, matrix, request.scale))
        with torch.inference_mode(False):
            cotangent = weights.to(value.dtype, copy=True)  # it may be a leaf's gradient
            cotangent = cotangent if matrix is None else cotangent @ matrix
            cotangent = cotangent if request.scale is None else cotangent * request.scale
            return way.pull(cotangent, names, record=record)

    losses = request.scaled(value)
    mixed = losses if matrix is None else matrix @ losses
    reported = mixed if request.weightings else value
    return Linearization(reported, mixed, preference, rows, gramian, heads, pullback, forward.aux)


def _with_unread(
    found: Linearization, params: Params, read: Params, request: Request
) -> Linearization:
    """What was found of the leaves that are read, and zeros for the others of `params`."""

    def filled(grads: Params, names: Iterable[str], *rows: int) -> Params:
        zeros = {x: params[x].new_zeros((*rows, *params[x].shape)) for x in names if x not in read}
        return {name: zeros[name] if name in zeros else grads[name] for name in names}

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
        left = tuple([name for name in names if name in read])
        return filled(found.pullback(weights, left) if left else {}, names)

    rows, heads = found.rows, found.heads
    if not request.gramian:  # a Gramian is made of them later
        rows = filled(rows, request.shared, len(found.mixed))
    if request.heads and request.heads(len(found.losses)) is not None:
        heads = filled(heads, [name for name in params if name not in request.shared])
    return found._replace(rows=rows, heads=heads, pullback=pullback)


def _opened(forward: Forward, request: Request, matrix: Tensor | None) -> ByTasks | BySamples:
    """The cheapest way to differentiate one forward.

    `matrix`: C [row, task] of the rows; None is the tasks themselves.
    """
    value, record = forward.value, forward.recorded or is_differentiated((matrix, request.scale))
    left_out = request.left_out if forward.losses.scalars else frozenset[int]()
    backward = Backward(
        forward.params, forward.places, forward.root, forward.edges, forward.graph, record, left_out
    )
    if request.weightings and (plan := plan_weightings(forward, request)) is not None:
        # of its deltas and the plan's inputs all is made: no pass follows
        backward.keep = bool(not forward.frees or plan.rows or record or forward.samples[1:])
        return split(backward, value, forward.samples[0], plan, request.gramian_dtype)
    rows = len(value if matrix is None else matrix)
    plan = plan_tasks(forward, request, rows, mixed=matrix is not None, record=record)
    return ByTasks(backward, value, matrix, request.scale, plan)


def _measured(
    way: ByTasks | BySamples, forward: Forward, request: Request, matrix: Tensor | None
) -> tuple[Rows, Tensor | None, Params]:
    """Rows, Gramian and the other leaves' gradient, as far as they are wanted."""
    value, shared = forward.value, request.shared
    others = tuple([name for name in forward.params if name not in set(shared)])
    share = request.share(value) if others else None
    rows, gramian, heads = {}, None, {}
    if isinstance(way, BySamples):
        assert matrix is not None
        rows, gramian = way.measure(shared, request.gramian, matrix, request.chunk_size)
    elif shared:
        found = way(() if share is None else others, views=request.combined)
        rows = found.rows  # the others are combined by a pass that stops where those are
        gramian = way.gramian(found, request.gramian_dtype) if request.gramian else None
        heads = found.heads
        if share is not None and share != 1.0:
            heads = {name: share * grad for name, grad in heads.items()}
    left = tuple(name for name in others if name not in heads)
    if share is not None and left:
        cotangent = share * request.total(value, matrix)
        heads |= way.pull(cotangent, left, record=way.backward.record)
    return rows, gramian, heads


def _traced(forward: Traced, request: Request) -> Linearization:
    """`linearize` for the compiler, which traces vjp's own pullback and drops what is unused."""
    shared, pull, value = request.shared, forward.pull, forward.value
    matrix, preference = request.cotangents(value)
    if matrix is None:
        matrix = torch.eye(value.shape[0], dtype=value.dtype, device=value.device)
    scale = value.new_ones(len(value)) if request.scale is None else request.scale

    def row(cotangent: Tensor) -> Params:
        grads = pull(cotangent * scale)[0]
        return {name: grads[name] for name in shared}

    rows = vmap(row, chunk_size=request.chunk_size)(matrix) if shared else {}
    gramian = dot(rows, rows, shared, request.gramian_dtype) if request.gramian else None
    others = tuple(name for name in forward.params if name not in shared)
    share, heads = request.share(value) if others else None, {}
    if share is not None:
        every = pull(share * request.total(value, matrix))[0]
        heads = {name: every[name] for name in others}

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(forward.params)) -> Params:
        with recording_context((value, weights, matrix)):
            grads = pull((weights.to(value.dtype) @ matrix) * scale)[0]
        return {name: grads[name] for name in names}

    mixed = matrix @ request.scaled(value)
    reported = mixed if request.weightings else value
    return Linearization(reported, mixed, preference, rows, gramian, heads, pullback, forward.aux)
