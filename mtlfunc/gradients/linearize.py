"""From one forward pass to the rows of its Jacobian, or to their Gramian without the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ..core.checks import depth, enable_grad, is_differentiated, recording_context
from ..core.tree import dot
from ..types import Params, Rows
from .backward import Backward, Passes
from .layerwise import (
    Asked,
    Engine,
    Plan,
    decide,
    dtypes_of,
    has_rows,
    is_worth_recording,
    is_worth_weighing,
    prefers_one_pass,
    remember_rows,
)
from .losses import flat_weightings
from .run import Forward, Traced

Mix = Callable[[int], tuple[Tensor, Tensor]]
"""From the number of tasks to (C [row, task], preference [row])."""

Keep = Literal["rows", "combination", "nothing"]
"""What is needed after the Gramian: the rows themselves, some way to combine them, or nothing."""


class Linearization(NamedTuple):
    """Losses and their first derivative at one point."""

    losses: Float[Tensor, " task"]  # as they came
    mixed: Float[Tensor, " row"]  # what the rows are gradients of
    preference: Float[Tensor, " row"]
    rows: Rows  # {name: [row, *shape]} of the shared leaves; empty where none were kept
    gramian: Float[Tensor, "row row"] | None  # over the measured leaves, if there are any
    heads: Params  # the other leaves' gradient, where `heads` gave them a weight
    # cotangents of the rows [row] -> a gradient for every leaf, or for those named
    pullback: Callable[..., Params]
    aux: Any
    # combinations of the rows -> a gradient in the leaves' shapes: the rows may be pieces of them
    restore: Callable[[Params], Params] = dict
    carried: Tensor | None = None  # J c of a metric, over the measured leaves


class Request(NamedTuple):
    """What is wanted of one forward pass: G = A · J P Jᵀ · Aᵀ with A = C · diag(scale)."""

    shared: tuple[str, ...]  # the leaves whose rows, or whose Gramian, are wanted
    measured: tuple[str, ...] = ()  # those that the Gramian sums over; none, and there is none
    keep: Keep = "rows"
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

    def of(self, params: Params) -> Request:
        """The same of these leaves alone."""
        shared, measured = (
            tuple([name for name in names if name in params])
            for names in (self.shared, self.measured)
        )
        return self._replace(shared=shared, measured=measured)

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
        if not self.measured or self.engine == "rows":
            return False
        if rows is None or self.engine == "layerwise":
            return True
        return is_worth_recording(params, self.measured, rows)


def weighed(request: Request, weightings: Tensor, forward: Forward) -> Request:
    """The request of rows that are weightings [task, *losses] of this forward's losses."""
    matrix = flat_weightings(weightings, forward.losses, forward.value)
    preference = matrix.new_full((len(matrix),), 1 / len(matrix))
    return request._replace(mix=lambda count: (matrix, preference), weightings=len(matrix))


def linearize(forward: Forward, request: Request) -> Linearization:
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
    read = forward.of_read(request.shared, request.measured) if forward.unread else forward
    if read is not forward:
        found = linearize(read, request.of(read.params))
        return _with_unread(found, forward.params, read.params, request)
    if request.weightings:
        from .weightings import linearize_weightings

        found = linearize_weightings(forward, request)
        if found is not None:
            return found
    value, (matrix, preference) = forward.value, request.cotangents(forward.value)
    with enable_grad():
        passes, plan = _open(forward, request, matrix)
        rows, gramian, heads = _measure(forward, request, passes, plan)
    backward = passes.backward

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(forward.params)) -> Params:
        backward.record = is_differentiated((value, weights, matrix, request.scale))
        with torch.inference_mode(False):
            cotangent = weights.to(value.dtype, copy=True)  # it may be a leaf's gradient
            cotangent = cotangent if matrix is None else cotangent @ matrix
            cotangent = cotangent if request.scale is None else cotangent * request.scale
            return backward.leaves(names, cotangent)

    losses = request.scaled(value)
    mixed = losses if matrix is None else matrix @ losses
    told = mixed if request.weightings else value
    return Linearization(told, mixed, preference, rows, gramian, heads, pullback, forward.aux)


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
    if request.keep == "rows" or not request.measured:  # a Gramian is made of them later
        rows = filled(rows, request.shared, len(found.mixed))
    if request.heads and request.heads(len(found.losses)) is not None:
        heads = filled(heads, [name for name in params if name not in request.shared])
    return found._replace(rows=rows, heads=heads, pullback=pullback)


def _open(forward: Forward, request: Request, matrix: Tensor | None) -> tuple[Passes, Plan]:
    """The passes of one forward: batched, in chunks, in a loop, or each loss alone; and leaf by
    leaf the form of its Gramian.

    `matrix`: C [row, task] of the rows; None is the tasks themselves.
    """
    losses, params, graph = forward.losses, forward.params, forward.graph
    record = forward.recorded or is_differentiated((matrix, request.scale))
    rows = len(forward.value if matrix is None else matrix)
    plan, edges, chunk = Plan((), request.shared), None, request.chunk_size
    one_pass = partial(_prefers_one_pass, forward, request, rows)
    if not request.shared:  # one pass of the weighted loss
        chunk = 1
    elif not _together(forward, request, rows):
        apart = matrix is None or (forward.edges is not None and not one_pass())
        edges = forward.edges if apart and losses.scalars else None
        asked = forward.watched and not request.weightings and request.watches(params, rows)
        key = None
        if asked and request.engine == "auto":
            key = Asked(
                graph.kind, rows, request.measured, dtypes_of(forward.value, params),
                forward.value.device.type, request.shared, request.keep, not apart,
            )  # fmt: skip
        if asked and (key is None or not has_rows(key)):
            plan, edges, alone = decide(
                forward, request.measured, rows, request.engine, shared=request.shared,
                keep=request.keep == "combination", mixed=not apart,
            )  # fmt: skip
            if key and not plan.tapped:
                remember_rows(key)
            chunk = 1 if chunk is None and alone else chunk
        elif edges is None and chunk is None and not one_pass():
            edges = forward.edges if apart and not forward.hooked else None
            chunk = 1
        if edges is None and chunk != 1 and rows > 1 and not graph.batches(record):
            chunk = 1
        if forward.hooked and not depth():  # hooks outside of transforms are for plain gradients
            chunk = 1
    left_out = request.left_out if losses.scalars else frozenset()
    backward = Backward(forward, record, left_out)
    edges = None if edges is None else backward.edges
    return Passes(backward, forward.value, matrix, request.scale, edges, chunk), plan


def _together(forward: Forward, request: Request, rows: int) -> bool:
    """Whether separate losses are better differentiated by one batched pass, as on a device that
    waits for launches: its rows then cost fewest of these.
    """
    device = forward.value.device.type
    if device == "cpu" or request.engine != "auto" or forward.hooked:  # no look at the graph
        return False
    if forward.losses.scalars is None or request.chunk_size or request.left_out:
        return False
    return forward.graph.can_batch_twice and _prefers_one_pass(forward, request, rows)


def _prefers_one_pass(forward: Forward, request: Request, rows: int) -> bool:
    numel = sum([forward.params[name].numel() for name in request.shared])
    graph, device, separate = forward.graph, forward.value.device.type, forward.edges is not None
    return prefers_one_pass(graph, rows, numel, device, separate=separate)


def _measure(
    forward: Forward, request: Request, passes: Passes, plan: Plan
) -> tuple[Rows, Tensor | None, Params]:
    """Rows, Gramian and the other leaves' gradient, as far as they are wanted."""
    value, dtype = forward.value, request.gramian_dtype
    shared = set(request.shared)
    others = tuple([name for name in forward.params if name not in shared])
    count = request.weightings or len(value)
    share = request.heads(count) if others and request.heads else None

    def on_heads() -> Tensor:
        if request.weightings and passes.matrix is not None:
            return passes.matrix.sum(0)
        return value.new_ones(len(value)) if request.scale is None else request.scale

    rows, gramian, head_grads = {}, None, {}
    if request.shared:
        found = passes(
            plan,
            plan.rows if plan.tapped else request.shared,
            () if share is None else others,
            views=request.keep == "combination",
        )
        rows = found.rows  # the others are combined by a pass that stops where those are
        if request.measured:
            gramian = passes.gramian(plan, found, request.measured, dtype)
        head_grads = found.heads
        if share is not None and share != 1.0:
            head_grads = {name: share * grad for name, grad in head_grads.items()}
    if share is not None:
        together = tuple(name for name in others if name not in head_grads)
        head_grads |= passes.backward.leaves(together, share * on_heads()) if together else {}
    return rows, gramian, head_grads


def _traced(forward: Traced, request: Request) -> Linearization:
    """`linearize` for the compiler, which traces vjp's own pullback and drops what is unused."""
    shared, measured, pull, value = request.shared, request.measured, forward.pull, forward.value
    matrix, preference = request.cotangents(value)
    if matrix is None:
        matrix = torch.eye(value.shape[0], dtype=value.dtype, device=value.device)
    scale = value.new_ones(len(value)) if request.scale is None else request.scale

    def row(cotangent: Tensor) -> Params:
        grads = pull(cotangent * scale)[0]
        return {name: grads[name] for name in shared}

    rows = vmap(row, chunk_size=request.chunk_size)(matrix) if shared else {}
    gramian = dot(rows, rows, measured, request.gramian_dtype) if measured else None
    others = tuple(name for name in forward.params if name not in shared)
    count = request.weightings or len(value)
    share = request.heads(count) if others and request.heads else None
    head_grads = {}
    if share is not None:
        every = pull(share * (matrix.sum(0) if request.weightings else scale))[0]
        head_grads = {name: every[name] for name in others}

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(forward.params)) -> Params:
        with recording_context((value, weights, matrix)):
            grads = pull((weights.to(value.dtype) @ matrix) * scale)[0]
        return {name: grads[name] for name in names}

    mixed = matrix @ request.scaled(value)
    told = mixed if request.weightings else value
    return Linearization(told, mixed, preference, rows, gramian, head_grads, pullback, forward.aux)
