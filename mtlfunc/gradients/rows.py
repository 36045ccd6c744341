"""Per-task and per-sample gradients of stateless losses: one forward, one batched backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from ..core.checks import check_params, depth, differentiated, is_pair, recording
from ..core.tree import dot
from ..types import Batch, LossesFn, Params, Rows
from .layerwise import (
    Engine,
    Plan,
    Tapped,
    better_apart,
    decide,
    read_graph,
    separate,
    worth_watching,
)
from .passes import Backward, Passes
from .safe_ops import SafeOps, mistaken, unbatched

Mix = Callable[[int], tuple[Tensor, Tensor]]
"""From the number of tasks to (C [row, task], preference [row])."""


Keep = Literal["rows", "combination", "nothing"]
"""What is needed after the Gramian: the rows themselves, some way to combine them, or nothing."""


class Linear(NamedTuple):
    """Losses and their first derivative at one point."""

    losses: Float[Tensor, " task"]
    mixed: Float[Tensor, " row"]  # what the rows are gradients of
    preference: Float[Tensor, " row"]
    rows: Rows  # {name: [row, *shape]} for the shared leaves; empty where nothing asked for them
    gramian: Float[Tensor, "row row"] | None  # over the measured leaves, if there are any
    heads: Params  # the other leaves' gradient, where it was asked for
    # cotangents of the rows [row] -> a gradient for every leaf, or for those named
    pullback: Callable[..., Params]
    aux: Any


def split_output(out: Any) -> tuple[Tensor, tuple[Tensor, ...] | None, Any]:
    """What `losses_fn` returned, as (losses [task], the separate scalars if they came so, aux).

    A tuple whose first entry is not a 0-d tensor is read as `(losses, aux)`.

    Raises:
        TypeError, ValueError: unless the losses are a floating vector, or a tuple or dict of
            scalars.
    """
    aux: Any = ()
    if is_pair(out):
        out, aux = out
    if isinstance(out, Tensor):
        if out.ndim != 1 or out.shape[0] == 0:
            raise ValueError(
                f"losses_fn: expected losses of shape [task], got {list(out.shape)}; reduce over "
                "samples, for instance with .mean(0)"
            )
        losses, scalars = out, None
    else:
        scalars = (
            tuple(out.values())
            if isinstance(out, dict)
            else tuple(out)
            if isinstance(out, tuple | list)
            else ()
        )
        if not scalars or not all(isinstance(x, Tensor) and x.ndim == 0 for x in scalars):
            shapes = [
                list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in scalars
            ] or type(out).__name__
            raise ValueError(
                "losses_fn: expected a vector [task], or a tuple or dict of scalar tensors, got "
                f"{shapes}; reduce each loss to one number"
            )
        losses = torch.stack(scalars)
    if not losses.is_floating_point():
        raise TypeError(f"losses_fn: expected floating losses, got {losses.dtype}")
    return losses, scalars, aux


def losses_alone(losses_fn: LossesFn) -> LossesFn:
    """`losses_fn`, refusing a pair that could be read as (losses, aux)."""

    def alone(params: Params, batch: Batch) -> Any:
        out = losses_fn(params, batch)
        if is_pair(out):
            raise ValueError(
                "losses_fn: got a pair of which the first is not a scalar; reduce each loss to "
                "one number, or leave aux out"
            )
        return out

    return alone


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
    """One forward, and by backward passes that stop at the shared leaves their rows, or the Gramian
    without them.

    The losses of a vector are pulled back in one batched pass (`chunk_size` rows at a time; 1 is a
    plain loop); separate scalars one at a time, so that no task's zeros are pushed through the
    others' heads. `mix` combines the tasks before they are differentiated. `heads` gives, from T,
    the weight of every task in the gradient of the other leaves; None leaves those to `pullback`.
    The Gramian sums over the `measured` leaves; `engine` and `keep` say how it is made (see
    `mtlfunc.layerwise`).
    """
    check_chunk_size(chunk_size)
    others = tuple(name for name in params if name not in shared)

    def cotangents(losses: Tensor) -> tuple[Tensor, Tensor]:
        if mix is None:
            count = losses.shape[0]
            return torch.eye(count, dtype=losses.dtype, device=losses.device), losses.new_full(
                (count,), 1 / count
            )
        matrix, preference = mix(losses.shape[0])
        return matrix.to(losses), preference.to(losses)

    if torch.compiler.is_compiling():
        return _traced(
            losses_fn, params, batch, shared, measured, cotangents, heads, chunk_size, gramian_dtype
        )
    backward = Backward(params)

    # torch.autograd.grad inside the level that vjp opens prunes what is not asked for; vjp's own
    # pullback always returns every leaf.
    def forward_and_backward(level: Params) -> tuple[Tensor, Any]:
        watched = (
            bool(measured)
            and engine != "rows"
            and (engine == "layerwise" or worth_watching(params, measured))
        )

        def watch() -> Tapped | None:
            # a bias' rows cost no more than its deltas
            return Tapped(level, local=False) if watched else None

        taps, (losses, scalars, aux) = forward_pass(
            lambda: split_output(losses_fn(level, batch)), watch
        )
        matrix, preference = cotangents(losses)
        record = differentiated((losses, matrix), own_levels=1)
        backward.open(level, losses, record)
        ways, plan, chunk = (
            None if mix or not scalars else separate(losses, scalars),
            Plan((), shared),
            chunk_size,
        )
        graph = None
        if taps is not None:
            decision = decide(
                taps,
                level,
                losses,
                scalars,
                measured,
                len(matrix),
                engine,
                keep=keep == "combination",
                mixed=mix is not None,
            )
            plan, ways, graph = decision.plan, decision.ways, decision.graph
            chunk = 1 if chunk is None and decision.one_at_a_time else chunk
        elif (
            measured
            and engine == "auto"
            and mix is None
            and scalars is None
            and worth_watching(params, tuple(params))
        ):
            every = separate(losses, None)
            graph = None if every is None else read_graph(losses, every)
            ways = every if graph and better_apart(graph, len(losses)) else None
        if ways is None and chunk != 1 and len(matrix) > 1:
            graph = graph or read_graph(losses)
            chunk = chunk if graph.batched and (graph.twice or not record) else 1
        share = heads(losses.shape[0]) if others and heads else None
        passes = Passes(backward, losses, matrix, ways, chunk)
        private = passes.private(others, graph) if share is not None and shared else {}
        rows, gramian, head_grads = {}, None, {}
        if keep == "nothing" and chunk_size is not None:
            gramian = passes.gramian_in_chunks(plan, measured, chunk_size, gramian_dtype)
        elif shared:
            found = passes(plan, plan.rows if plan.tapped else shared, private)
            rows = {} if plan.tapped else found.rows
            gramian = (
                passes.gramian(plan, found, found, measured, gramian_dtype) if measured else None
            )
            head_grads = (
                {name: share * grad for name, grad in found.own.items()}
                if share is not None
                else {}
            )
        if share is not None:
            together = tuple(name for name in others if name not in head_grads)
            head_grads |= backward.leaves(together, torch.full_like(losses, share))
        # None is no pytree of tensors
        return losses, (
            aux,
            matrix,
            preference,
            rows,
            () if gramian is None else gramian,
            head_grads,
        )

    losses, _, (aux, matrix, preference, rows, gramian, head_grads) = explained_vjp(
        forward_and_backward, params
    )

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
        backward.record = differentiated((losses, weights, matrix))
        return backward.leaves(names, weights.to(losses.dtype) @ matrix)

    mixed = losses if mix is None else matrix @ losses
    return Linear(
        losses, mixed, preference, rows, gramian if measured else None, head_grads, pullback, aux
    )


def _traced(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    shared: tuple[str, ...],
    measured: tuple[str, ...],
    cotangents: Callable[[Tensor], tuple[Tensor, Tensor]],
    heads: Callable[[int], float | None] | None,
    chunk_size: int | None,
    gramian_dtype: torch.dtype | None,
) -> Linear:
    """`linearize` for the compiler, which can trace vjp's own pullback alone, and drops unread
    outputs by itself.
    """

    def forward(params: Params) -> tuple[Tensor, Any]:
        with SafeOps():
            losses, _, aux = split_output(losses_fn(params, batch))
        return losses, aux

    losses, pull, aux = explained_vjp(forward, params)
    matrix, preference = cotangents(losses)
    rows = (
        vmap(lambda v: {name: pull(v)[0][name] for name in shared}, chunk_size=chunk_size)(matrix)
        if shared
        else {}
    )
    gramian = dot(rows, rows, measured, gramian_dtype) if measured else None
    others = [name for name in params if name not in shared]
    share = heads(losses.shape[0]) if others and heads else None
    head_grads = (
        {}
        if share is None
        else {name: pull(torch.full_like(losses, share))[0][name] for name in others}
    )

    def pullback(weights: Tensor, names: tuple[str, ...] = tuple(params)) -> Params:
        with recording((losses, weights, matrix)):
            grads = pull(weights.to(losses.dtype) @ matrix)[0]
        return {name: grads[name] for name in names}

    return Linear(losses, matrix @ losses, preference, rows, gramian, head_grads, pullback, aux)


Run = TypeVar("Run", bound=tuple[Any, ...])
Watch = TypeVar("Watch", bound=Tapped | None)


def forward_pass(run: Callable[[], Run], watch: Callable[[], Watch]) -> tuple[Watch, Run]:
    """`run() -> (losses, …)`, watched, with every operation written out that torch gets wrong there.

    That is so under a transform outside; under one inside `run` and where a closure requires grad
    it shows only afterwards, in the graph or in a refusal, and `run` is called a second time.
    """

    def once(safe: bool) -> tuple[Watch, Run]:
        taps = watch()
        with taps or nullcontext(), SafeOps() if safe else nullcontext():
            return taps, run()

    try:
        taps, out = once(safe=depth() > 1)
    except RuntimeError as error:
        if depth() == 1 and unbatched(error):
            return once(safe=True)
        raise
    losses = out[0]
    # only now is it known whether a closure requires grad
    if depth() == 1 and mistaken(losses, again=differentiated(losses, own_levels=1)):
        return once(safe=True)
    return taps, out


def explained_vjp(
    f: Callable[[Params], tuple[Any, Any]], params: Params
) -> tuple[Any, Callable[..., Any], Any]:
    """`vjp` with aux, and errors that name the cure where `f` mutates a captured tensor or mixes
    dtypes or devices.
    """
    try:
        return vjp(f, params, has_aux=True)  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        message = str(error)
        if "in-place operation" in message:
            cure = (
                "losses_fn changes a tensor in place that it did not make itself: most often a "
                "batch-norm layer in train mode updating its running statistics. "
                "Either call module.eval(), or pass the buffers in the batch: clone them inside "
                "losses_fn, give them to functional_call beside the parameters, "
                "return them as aux, (losses, buffers), with has_aux=True, and put info.aux into "
                "the next batch."
            )
        elif "saved tensor hooks" in message:
            cure = (
                "losses_fn uses activation checkpointing (or other hooks on saved tensors), "
                "which torch.func does not take: call the module without it; "
                "chunk_size bounds the memory of the backward passes instead."
            )
        elif any(words in message for words in ("same dtype", "same device", "expected device")):
            leaf = next(iter(params.values()))
            cure = (
                f"losses_fn mixes dtypes or devices: params are {leaf.dtype} on {leaf.device}; "
                "convert the batch (and the module's buffers) to that. "
                f"torch said: {message}"
            )
        else:
            raise
        raise RuntimeError(cure) from error


def task_gradients(
    losses_fn: LossesFn, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> tuple[Tensor, Rows]:
    """Gradients of every task with respect to every parameter: one forward, one batched backward.

    Args:
        losses_fn: `(params, batch) -> losses`, a vector `[task]` or a tuple or dict of T scalars.
            Separate scalars are differentiated one at a time, which is cheaper where tasks have
            heads or inputs of their own.
        params: `{name: tensor}`, for instance `mtlfunc.parameters(module)`.
        batch: handed to `losses_fn`.
        chunk_size: how many rows one batched backward carries; None is all of them, 1 a plain loop.

    Returns:
        losses `[task]` and rows `{name: [task, *shape]}`.

    Raises:
        TypeError: ValueError: for losses or parameters of the wrong kind. RuntimeError: where
        `losses_fn` mutates a captured tensor.

    Examples:
        >>> losses, rows = task_gradients(lambda p, x: (p["w"] * x) ** 2, {"w": torch.tensor([1.0, 2.0])}, torch.tensor([3.0, 1.0]))
        >>> rows["w"].tolist()
        [[18.0, 0.0], [0.0, 4.0]]
    """
    check_params(params)
    linear = linearize(
        losses_alone(losses_fn), params, batch, shared=tuple(params), chunk_size=chunk_size
    )
    return linear.losses, linear.rows


def sample_gradients(
    losses_fn: LossesFn, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> tuple[Tensor, Rows]:
    """Gradients of every task on every sample, in one `vmap` over samples of `task_gradients`.

    `losses_fn` sees one sample at a time, as a batch of size one: means over samples are then the
    sample's own loss.

    Args:
        losses_fn: as in `task_gradients`; must not mix samples (as train-mode batch norm does) or
            draw random numbers (as train-mode dropout does).
        params: `{name: tensor}`.
        batch: a tensor, or a nested tuple or dict of tensors, whose first axis is the sample.
        chunk_size: how many samples are differentiated at once; None is all of them.

    Returns:
        losses `[sample, task]` and rows `{name: [sample, task, *shape]}`.

    Examples:
        >>> losses, rows = sample_gradients(lambda p, x: (x @ p["w"]).mean(0), {"w": torch.ones(2, 1)}, torch.eye(2))
        >>> rows["w"].shape
        torch.Size([2, 1, 2, 1])
    """
    check_params(params)
    sizes = {
        leaf.shape[0] if leaf.ndim else None
        for leaf in tree_leaves(batch)
        if isinstance(leaf, Tensor)
    }
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "batch: expected tensors with one common first axis, the sample; found lengths "
            f"{sorted(map(str, sizes))}"
        )

    def one(sample: Batch) -> tuple[Tensor, Rows]:
        return task_gradients(losses_fn, params, tree_map(lambda leaf: leaf[None], sample))

    return vmap(one, chunk_size=chunk_size)(batch)
