"""From one forward pass to the rows of its Jacobian, or to their Gramian without the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ..core.checks import check_autocast, differentiated, recording
from ..core.tree import dot
from ..types import Batch, LossesFn, Params, Rows
from .forward import explained_vjp, forward_pass, split_output
from .layerwise import (
    Engine,
    Graph,
    Plan,
    Tapped,
    batching,
    better_apart,
    decide,
    read_graph,
    separate,
    worth_watching,
)
from .passes import Backward, Passes
from .safe_ops import SafeOps

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

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(name for name in self.params if name not in self.shared)

    def share(self, count: int) -> float | None:
        """The weight of every task in the other leaves' gradient, if that is made here."""
        return self.heads(count) if self.others and self.heads else None

    def cotangents(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """(C [row, task], preference [row])"""
        count = losses.shape[0]
        if self.mix is None:
            eye = torch.eye(count, dtype=losses.dtype, device=losses.device)
            return eye, losses.new_full((count,), 1 / count)
        matrix, preference = self.mix(count)
        return matrix.to(losses), preference.to(losses)

    def watch(self, level: Params) -> Tapped | None:
        if not self.measured or self.engine == "rows":
            return None
        if self.engine == "auto" and not worth_watching(self.params, self.measured):
            return None
        return Tapped(level, local=False)  # a bias' rows cost no more than its deltas


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
        losses, and what was asked for of their derivative.

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

    # torch.autograd.grad inside the level that vjp opens prunes what is not needed; vjp's own
    # pullback always returns every leaf.
    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        out, taps, hooked = forward_pass(
            lambda: losses_fn(level, batch), lambda: request.watch(level)
        )
        losses, scalars, aux = split_output(out)
        matrix, preference = request.cotangents(losses)
        backward.open(level, losses, differentiated((losses, matrix), own_levels=1))
        route = _route(
            request, (losses, scalars), taps, hooked, level, len(matrix), backward.record
        )
        passes = Passes(backward, losses, matrix, route.loss_edges, route.chunk_size)
        rows, gramian, head_grads = _measure(request, passes, route)
        # None is no pytree of tensors
        kept = () if gramian is None else gramian
        return losses, (aux, matrix, preference, rows, kept, head_grads)

    losses, _, (aux, matrix, preference, rows, gramian, head_grads) = explained_vjp(
        forward_and_backward, params
    )

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
        backward.record = differentiated((losses, weights, matrix))
        with torch.inference_mode(False):
            return backward.leaves(names, weights.to(losses.dtype) @ matrix)

    mixed = losses if mix is None else matrix @ losses
    found = gramian if measured else None
    return Linear(losses, mixed, preference, rows, found, head_grads, pullback, aux)


class _Route(NamedTuple):
    """How the backward passes go."""

    plan: Plan
    loss_edges: tuple[GradientEdge | None, ...] | None  # of losses to be differentiated each alone
    chunk_size: int | None
    graph: Graph | None  # where it had to be read


def _route(
    request: _Request,
    output: tuple[Tensor, tuple[Tensor, ...] | None],
    taps: Tapped | None,
    hooked: bool,
    level: Params,
    rows: int,
    record: bool,
) -> _Route:
    """Leaf by leaf the form of its Gramian; batched, in chunks, in a loop, or each loss alone."""
    losses, scalars = output
    apart = request.mix is None
    plan, graph, chunk = Plan((), request.shared), None, request.chunk_size
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
        )
        plan, edges, graph = decision.plan, decision.loss_edges, decision.graph
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
        graph = None if every is None else read_graph(losses, every)
        edges = every if graph and better_apart(graph, len(losses)) else None
    if edges is None and chunk != 1 and rows > 1:
        batched, twice = (graph.batched, graph.twice) if graph else batching(losses)
        chunk = chunk if batched and (twice or not record) else 1
    return _Route(plan, edges, chunk, graph)


def _measure(
    request: _Request, passes: Passes, route: _Route
) -> tuple[Rows, Tensor | None, Params]:
    """(rows, Gramian, the other leaves' gradient), as far as they are wanted."""
    losses, plan, dtype = passes.losses, route.plan, request.gramian_dtype
    share = request.share(losses.shape[0])
    private = {}
    if share is not None and request.shared:
        private = passes.private(request.others, route.graph)
    rows, gramian, head_grads = {}, None, {}
    if request.keep == "nothing" and request.chunk_size is not None:
        gramian = passes.gramian_in_chunks(plan, request.measured, request.chunk_size, dtype)
    elif request.shared:
        found = passes(plan, plan.rows if plan.tapped else request.shared, private)
        rows = {} if plan.tapped else found.rows
        if request.measured:
            gramian = passes.gramian(plan, found, found, request.measured, dtype)
        if share is not None:
            head_grads = {name: share * grad for name, grad in found.own.items()}
    if share is not None:
        together = tuple(name for name in request.others if name not in head_grads)
        head_grads |= passes.backward.leaves(together, torch.full_like(losses, share))
    return rows, gramian, head_grads


def _traced(losses_fn: LossesFn, batch: Batch, request: _Request) -> Linear:
    """`linearize` for the compiler, which traces vjp's own pullback and drops what is unread."""
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
