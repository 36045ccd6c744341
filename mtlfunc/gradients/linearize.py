"""From one forward pass to the rows of its Jacobian, or to their Gramian without the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ..core.checks import check_autocast, depth, differentiated, recording
from ..core.tree import dot
from ..types import Batch, LossesFn, Params, Rows
from .forward import Forward, detached, forward_pass, losses_graph, split_output
from .layerwise import (
    Engine,
    Graph,
    Plan,
    Repeated,
    Slices,
    Tapped,
    batching,
    better_apart,
    common,
    decide,
    read_graph,
    separate,
    shapes_of,
    sketch,
    worth_watching,
)
from .leaves import explained_vjp
from .passes import Backward, Passes, cross_in_chunks
from .safe_ops import SafeOps
from .slices import sliced

Mix = Callable[[int], tuple[Tensor, Tensor]]
"""From the number of tasks to (C [row, task], preference [row])."""

Keep = Literal["rows", "combination", "nothing"]
"""What is needed after the Gramian: the rows themselves, some way to combine them, or nothing."""


class Linear(NamedTuple):
    """Losses and their first derivative at one point."""

    losses: Float[Tensor, " task"]
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


class _Request(NamedTuple):
    """The arguments of `linearize` that do not change what the losses are."""

    params: Params
    shared: tuple[str, ...]
    measured: tuple[str, ...]
    keep: Keep
    engine: Engine
    mix: Mix | None
    heads: Callable[[int], float | None] | None
    chunk_size: int | None
    gramian_dtype: torch.dtype | None
    # one pass may serve all tasks: no other forward's rows are multiplied with these, and hooks
    # on derivatives, which may mix them, would have been seen
    together: bool = True

    @property
    def others(self) -> tuple[str, ...]:
        shared = set(self.shared)
        return tuple([name for name in self.params if name not in shared])

    def share(self, count: int) -> float | None:
        """The weight of every task in the other leaves' gradient, if that is made here."""
        some = len(self.shared) < len(self.params)
        return self.heads(count) if some and self.heads else None

    def cotangents(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """(C [row, task], preference [row])"""
        count = losses.shape[0]
        if self.mix is None:
            eye = torch.eye(count, dtype=losses.dtype, device=losses.device)
            return eye, losses.new_full((count,), 1 / count)
        matrix, preference = self.mix(count)
        return matrix.to(losses), preference.to(losses)

    def watches(self) -> bool:
        if not self.measured or self.engine == "rows":
            return False
        return self.engine == "layerwise" or worth_watching(self.params, self.measured)


def check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected None or a number of rows >= 1, got {chunk_size}")


def linearize(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: tuple[str, ...],
    measured: tuple[str, ...] = (),
    keep: Keep = "rows",
    engine: Engine = "rows",
    mix: Mix | None = None,
    heads: Callable[[int], float | None] | None = None,
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Linear:
    """One forward, and backward passes that stop at the shared leaves.

    The losses of a vector are pulled back in one batched pass; separate scalars one at a time, so
    that no task's zeros are pushed through the others' heads.

    Args:
        losses_fn: `(params, batch) -> losses`, or `(losses, aux)`.
        params: where to differentiate.
        batch: handed to `losses_fn`.
        shared: names of the leaves whose rows, or whose Gramian, is wanted.
        measured: those of them that the Gramian sums over; none, and there is no Gramian.
        keep: what is needed after the Gramian.
        engine: how the Gramian is made (see `mtlfunc.gradients.layerwise`).
        mix: combines the tasks before they are differentiated.
        heads: from T, the weight of every task in the gradient of the other leaves; None leaves
            those to `pullback`.
        chunk_size: rows in one batched pass; None is all, 1 a plain loop.
        gramian_dtype: dtype of the Gramian's accumulation; None is the rows' own, at least float32.

    Returns:
        losses, and what is wanted of their derivative.

    Raises:
        RuntimeError: under autocast, or for a `losses_fn` that torch.func does not take.
    """
    check_chunk_size(chunk_size)
    check_autocast(params)
    request = _Request(
        params, shared, measured, keep, engine, mix, heads, chunk_size, gramian_dtype
    )
    if torch.compiler.is_compiling():
        return _traced(losses_fn, batch, request)
    backward = Backward(params)
    outside = torch.is_grad_enabled()

    # torch.autograd.grad prunes what is not needed; vjp's own pullback always returns every leaf.
    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        watch = request.watches()
        repeated = losses_fn if watch and isinstance(losses_fn, Repeated) and not depth() else None
        shapes = repeated and shapes_of(params, batch)
        watch = watch and not (repeated and repeated.unwatched(shapes))
        forward, output, aux = _forward(losses_fn, batch, level, outside, watch)
        found = _passes(request, backward, output, Watched.of(forward), level)
        if repeated and not forward.hooked:
            repeated.learn(
                shapes,
                lambda: forward.graph or losses_graph(forward.out, level),
                forward.taps,
                apart=output[1] is not None,
            )
        losses, aux = forward.released((output[0], aux))
        return losses, (found, aux)

    losses, _, (found, aux) = explained_vjp(forward_and_backward, params)
    return _linear(request, backward, losses, found, aux)


def linearize_losses(
    out: Any,
    leaves: Params,
    watched: Watched,
    *,
    shared: tuple[str, ...],
    measured: tuple[str, ...] = (),
    keep: Keep = "rows",
    engine: Engine = "rows",
    heads: Callable[[int], float | None] | None = None,
    chunk_size: int | None = None,
    gramian_dtype: torch.dtype | None = None,
) -> Linear:
    """As `linearize`, of losses that exist already; nothing is recorded, and no graph is freed.

    Args:
        out: losses in any form that `losses_fn` may return, with their graph.
        leaves: the places in that graph where to differentiate.
        watched: what was seen of the forward.
        shared: as in `linearize`, like the other arguments.
        measured: see there.
        keep: see there.
        engine: see there.
        heads: see there.
        chunk_size: see there.
        gramian_dtype: see there.

    Returns:
        the losses without their graph, and what is wanted of their derivative.
    """
    request = _Request(
        leaves, shared, measured, keep, engine, None, heads, chunk_size, gramian_dtype, False
    )
    backward = Backward(leaves)
    losses, scalars, aux = split_output(out)
    with torch.enable_grad():
        found = _passes(request, backward, (losses, scalars), watched, leaves)
    return _linear(request, backward, losses.detach(), found, detached(aux))


class Watched(NamedTuple):
    """What was seen of a forward."""

    taps: Tapped | None
    hooked: bool  # as in `forward.Forward`
    recorded: bool = False
    graph: Graph | None = None

    @staticmethod
    def of(forward: Forward) -> Watched:
        return Watched(forward.taps, forward.hooked, forward.recorded, forward.graph)


class _Found(NamedTuple):
    """What the passes of one forward brought back; all tensors, as a level demands."""

    matrix: Tensor
    preference: Tensor
    rows: Rows
    gramian: Any  # () where nothing is measured
    heads: Params


def _passes(
    request: _Request,
    backward: Backward,
    output: tuple[Tensor, tuple[Tensor, ...] | None],
    watched: Watched,
    level: Params,
) -> _Found:
    """Choose a route through the graph, and take it."""
    passes, route, preference = _open(request, backward, output, watched, level)
    rows, gramian, heads = _measure(request, passes, route, level)
    return _Found(passes.matrix, preference, rows, () if gramian is None else gramian, heads)


def _open(
    request: _Request,
    backward: Backward,
    output: tuple[Tensor, tuple[Tensor, ...] | None],
    watched: Watched,
    level: Params,
) -> tuple[Passes, _Route, Tensor]:
    """The passes of one forward, how they go, and the rows' preference."""
    losses = output[0]
    matrix, preference = request.cotangents(losses)
    record = watched.recorded or differentiated(matrix, own_levels=1)
    backward.open(level, losses, record)
    route = _route(request, output, watched, level, len(matrix), record)
    mixed = request.mix is not None
    passes = Passes(backward, losses, matrix, route.loss_edges, route.chunk_size, mixed)
    return passes, route, preference


def _linear(
    request: _Request, backward: Backward, losses: Tensor, found: _Found, aux: Any
) -> Linear:
    matrix, preference, rows, gramian, heads = found

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(request.params)) -> Params:
        backward.record = differentiated((losses, weights, matrix))
        with torch.inference_mode(False):
            return backward.leaves(names, weights.to(losses.dtype) @ matrix)

    mixed = losses if request.mix is None else matrix @ losses
    measured = gramian if request.measured else None
    return Linear(losses, mixed, preference, rows, measured, heads, pullback, aux)


def cross_gramian(
    losses_fn: LossesFn,
    params: Params,
    batches: tuple[Batch, Batch],
    *,
    measured: tuple[str, ...],
    engine: Engine,
    chunk_size: int | None,
    gramian_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Losses on the first batch, and inner products of its rows with the second's.

    Arguments as in `linearize`.
    """
    check_chunk_size(chunk_size)
    check_autocast(params)
    request = _Request(
        params, measured, measured, "nothing", engine, None, None, chunk_size, gramian_dtype, False
    )
    if torch.compiler.is_compiling():
        one, other = (_traced(losses_fn, batch, request) for batch in batches)
        return one.losses, dot(one.rows, other.rows, measured, gramian_dtype)

    outside = torch.is_grad_enabled()

    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        def opened(batch: Batch) -> tuple[Passes, _Route, Forward]:
            forward, output, _ = _forward(losses_fn, batch, level, outside, request.watches())
            watched = Watched.of(forward)
            return *_open(request, Backward(params), output, watched, level)[:2], forward

        (left, left_route, forward), (right, right_route, _) = map(opened, batches)
        plans = left_route.plan, right_route.plan
        one, other = (common(plan, [sketch(each) for each in plans]) for plan in plans)
        gramian = cross_in_chunks(
            ((left, one), (right, other)), measured, chunk_size, gramian_dtype
        )
        return forward.released(left.losses), gramian

    losses, _, gramian = explained_vjp(forward_and_backward, params)
    return losses, gramian


def _forward(
    losses_fn: LossesFn, batch: Batch, level: Params, outside: bool, watch: bool
) -> tuple[Forward, tuple[Tensor, tuple[Tensor, ...] | None], Any]:
    """One forward: (forward, (losses, scalars), aux)."""
    forward = forward_pass(
        lambda: losses_fn(level, batch),
        level,
        outside=outside,
        taps=lambda: Tapped(level) if watch else None,
    )
    losses, scalars, aux = split_output(forward.out)
    return forward, (losses, scalars), aux


class _Route(NamedTuple):
    """How the backward passes go."""

    plan: Plan
    loss_edges: tuple[GradientEdge | None, ...] | None  # of losses to be differentiated each alone
    chunk_size: int | None
    graph: Graph | None  # where it had to be read
    slices: Slices | None = None  # every loss reads its own, and one pass is enough


def _route(
    request: _Request,
    output: tuple[Tensor, tuple[Tensor, ...] | None],
    watched: Watched,
    level: Params,
    rows: int,
    record: bool,
) -> _Route:
    """Leaf by leaf the form of its Gramian; batched, in chunks, in a loop, or each loss alone."""
    losses, scalars = output
    taps, hooked, _, graph = watched
    apart = request.mix is None or _mixed_afterwards(request, output, level, rows)
    plan, chunk = Plan((), request.shared), request.chunk_size
    edges = separate(losses, scalars) if apart and scalars else None
    if taps is not None:
        decision = decide(
            taps,
            level,
            losses,
            scalars,
            request.measured,
            rows,
            request.engine,
            keep=request.keep == "combination",
            mixed=not apart,
            whole=chunk is None and request.together,
            shared=request.shared,
        )
        if decision.slices is not None:
            return _Route(plan, None, 1, decision.graph, decision.slices)
        plan, edges = decision.plan, decision.loss_edges
        separated = scalars is not None and edges is not None
        taps.idle = request.engine == "auto" and separated and not plan.tapped
        graph = decision.graph or graph
        chunk = 1 if chunk is None and decision.one_at_a_time else chunk
    elif (
        request.measured
        and request.engine == "auto"
        and apart
        and scalars is None
        and not hooked
        and worth_watching(request.params, tuple(request.params))
    ):
        every = separate(losses, None)
        if every is not None:
            graph = graph or read_graph(losses, level, every)
            edges = every if better_apart(graph, len(losses), rows) else None
    if edges is None and chunk != 1 and rows > 1:
        batched, twice = (graph.batched, graph.twice) if graph else batching(losses, level)
        chunk = chunk if batched and (twice or not record) else 1
    elif graph is None and not depth():
        batching(losses, level)  # for what it refuses
    if hooked and not depth():  # hooks outside of transforms are written for plain gradients
        chunk = 1
    return _Route(plan, edges, chunk, graph)


def _mixed_afterwards(
    request: _Request,
    output: tuple[Tensor, tuple[Tensor, ...] | None],
    level: Params,
    rows: int,
) -> bool:
    """Whether T separate losses are better differentiated each alone, and their rows mixed."""
    if not worth_watching(request.params, tuple(request.params)):
        return False
    edges = separate(*output)
    graph = None if edges is None else read_graph(output[0], level, edges)
    return graph is not None and better_apart(graph, len(output[0]), rows)


def _measure(
    request: _Request, passes: Passes, route: _Route, level: Params
) -> tuple[Rows, Tensor | None, Params]:
    """(rows, Gramian, the other leaves' gradient), as far as they are wanted."""
    losses, plan, dtype = passes.losses, route.plan, request.gramian_dtype
    share = request.share(losses.shape[0])
    if route.slices is not None:
        mix = None if request.mix is None else passes.matrix
        others, share = ((), 0.0) if share is None else (request.others, share)
        rows, gramian, heads = sliced(route.slices, passes.backward, losses, mix, others, dtype)
        return rows, gramian, {name: share * grad for name, grad in heads.items()}
    private = {}
    if share is not None and request.shared and route.loss_edges:
        graph = route.graph or read_graph(losses, level, route.loss_edges)
        private = passes.private(request.others, level, graph)
    rows, gramian, head_grads = {}, None, {}
    if request.keep == "nothing" and request.chunk_size is not None:
        gramian = passes.gramian_in_chunks(plan, request.measured, request.chunk_size, dtype)
    elif request.shared:
        found = passes(plan, plan.rows if plan.tapped else request.shared, private)
        rows = found.rows  # the others are combined by a pass that stops where those are
        if request.measured:
            gramian = passes.gramian(plan, found, found, request.measured, dtype)
        if share is not None:
            head_grads = found.own
            if share != 1.0:
                head_grads = {name: share * grad for name, grad in head_grads.items()}
    if share is not None:
        together = tuple(name for name in request.others if name not in head_grads)
        head_grads |= passes.backward.leaves(together, torch.full_like(losses, share))
    return rows, gramian, head_grads


def _traced(losses_fn: LossesFn, batch: Batch, request: _Request) -> Linear:
    """`linearize` for the compiler, which traces vjp's own pullback and drops what is unused."""
    shared, measured = request.shared, request.measured

    def forward(params: Params) -> tuple[Tensor, Any]:
        with SafeOps():
            losses, _, aux = split_output(losses_fn(params, batch))
        return losses, aux

    losses, pull, aux = explained_vjp(forward, request.params)
    matrix, preference = request.cotangents(losses)

    def row(cotangent: Tensor) -> Params:
        grads = pull(cotangent)[0]
        return {name: grads[name] for name in shared}

    rows = vmap(row, chunk_size=request.chunk_size)(matrix) if shared else {}
    gramian = dot(rows, rows, measured, request.gramian_dtype) if measured else None
    share = request.share(losses.shape[0])
    head_grads = {}
    if share is not None:
        every = pull(torch.full_like(losses, share))[0]
        head_grads = {name: every[name] for name in request.others}

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(request.params)) -> Params:
        with recording((losses, weights, matrix)):
            grads = pull(weights.to(losses.dtype) @ matrix)[0]
        return {name: grads[name] for name in names}

    return Linear(losses, matrix @ losses, preference, rows, gramian, head_grads, pullback, aux)
