"""One forward pass that can be differentiated: of a `losses_fn`, or one that the user has made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..core.checks import check_autocast
from ..core.expect import expect_losses_fn
from ..core.hooks import Handles, has_checkpoint
from ..core.internals import DisableTorchFunctionSubclass, tree_map
from ..core.transforms import depth, has_innermost_derivative, innermost_tensor, is_differentiated
from ..core.tree import like, real_of
from ..types import Batch, LossesFn, Params
from .layerwise.graph import Graph, Place, Reading, read_graph, read_uses
from .layerwise.uses import PLAIN, Node
from .levels import CHECKPOINTING, explained_vjp, refuse_kept_weights, without_trace
from .losses import Losses, parse_losses
from .safe_ops import ALWAYS, FREQUENCIES, WRITTEN, SafeOps


@dataclass(frozen=True, eq=False)
class Forward:
    """Losses with their graph, and the places in it where they are differentiated.

    It holds places rather than the leaves themselves, so that it can be used after a transform's
    level is closed. It is known as a whole when it is made.
    """

    losses: Losses  # with their graph
    value: Tensor  # `losses.vector` outside of the level
    aux: Any  # `losses.aux` there
    params: Params  # what is differentiated, there: all but plain leaves that no loss reads
    places: dict[str, Place]  # of the leaves
    root: GradientEdge | None
    edges: tuple[GradientEdge | None, ...] | None  # of losses that may be differentiated one by one
    graph: Graph  # from the losses, each alone if they are separate
    # whether a hook may sit on some derivative. Then only ordinary differentiation, from the losses
    # as they were returned, does what it does.
    hooked: bool = False
    recorded: bool = False  # whether something outside may differentiate the losses' derivatives
    frees: bool = False  # whether the graph is freed: by the last pass on its way, or after it
    reached: bool | None = None  # whether the losses depend on a leaf; None: the graph says it
    in_turn: Any = None  # the rows of losses whose graphs are gone

    @cached_property
    def reading(self) -> Reading:
        """Who reads the leaves, as the graph says."""
        return read_uses(self.graph, self.params)

    @property
    def samples(self) -> torch.Size:
        """The shape of losses of samples: [sample], or [sample, part]."""
        return self.losses.shape or self.value.shape


class TracedForward(NamedTuple):
    """What a `Forward` is for the compiler, which traces vjp's own pullback."""

    losses: Losses
    value: Tensor
    aux: Any
    params: Params
    pull: Callable[[Tensor], tuple[Params]]


def forward_of(
    losses: Losses,
    leaves: Params,
    params: Params,
    recorded: Callable[[Graph], bool] | None = None,
    *,
    separable: bool = True,
    **facts: Any,
) -> Forward:
    """The forward pass at the level of its leaves, which are `params` outside of it.

    `recorded` says by the graph whether something outside may differentiate the losses, `separable`
    whether losses that were stacked may be differentiated one by one; `facts` are other fields.
    """
    vector, aux, inside = losses.vector, losses.aux, depth() > 0
    root = gradient_edge(vector) if vector.requires_grad else None
    edges, stack = None, vector.grad_fn
    if separable and losses.shape is None:  # not the samples of weightings
        if losses.scalars is not None:
            edges = tuple([gradient_edge(x) if x.requires_grad else None for x in losses.scalars])
        elif stack is not None and stack.name() == "StackBackward0":  # else computed as a whole
            parts = stack.next_functions
            edges = tuple([child and GradientEdge(child, index) for child, index in parts])
    places = places_of(leaves, inside)
    graph = read_graph((root,) if edges is None else edges, places)
    outside = recorded is not None and recorded(graph)
    if not (outside or inside):
        vector, aux = vector.detach(), detached(aux)
        vector = vector if losses.scalars or losses.shape else vector.clone()  # may be written to
    if not (inside or len(graph.leaf_nodes) == len(leaves)):
        read = [x for x in leaves if x in graph.leaf_nodes or type(leaves[x]) not in PLAIN]
        params = {name: params[name] for name in read} or params
    return Forward(
        losses, vector, aux, params, places, root, edges, graph, recorded=outside, **facts
    )


def gradient_edge(x: Tensor) -> GradientEdge:
    """The place of `x` in the graph. Asked in a subclass's own way torch gives that of a view."""
    if type(x) is Tensor and x.grad_fn is not None:
        return GradientEdge(x.grad_fn, x.output_nr)
    with DisableTorchFunctionSubclass():
        return get_gradient_edge(x)


def places_of(leaves: Params, inside: bool) -> dict[str, Place]:
    """Where autograd finds the leaves: not `inside` a transform a plain one is a place itself."""
    plain = () if inside else PLAIN
    return {
        name: leaf if type(leaf) in plain and leaf.is_leaf else gradient_edge(leaf)
        for name, leaf in leaves.items()
    }


def run(
    losses_fn: LossesFn, params: Params, batch: Batch, *,
    parse: Callable[[Any], Losses] = parse_losses, separable: bool = True,
) -> Forward:  # fmt: skip
    """Call `losses_fn` once. `parse` makes losses of what it returned; stacked ones that are
    `separable` may be differentiated one by one. Raises an error under autocast, or for a
    `losses_fn` that torch.func does not take.
    """
    check_autocast(params)
    if isinstance(losses_fn, nn.Module) or not callable(losses_fn):
        expect_losses_fn(losses_fn)
    given, params = params, real_of(params)

    def call(leaves: Params) -> Any:
        out = losses_fn(like(given, leaves), batch)
        refuse_kept_weights()
        return out

    if torch.compiler.is_compiling():
        return _traced(call, params, parse)
    outside, found = torch.is_grad_enabled(), []

    def forward(leaves: Params) -> tuple[Tensor, Any]:
        seen = observe(
            lambda: call(leaves), leaves, parse, params=params, outside=outside,
            separable=separable,
        )  # fmt: skip
        found.append(seen)
        return seen.value, seen.aux

    value, _, aux = explained_vjp(forward, params)
    (seen,) = found
    return seen if value is seen.value else replace(seen, value=value, aux=aux)


def live(losses: Losses, leaves: Params, *, hooked: bool = False) -> Forward:
    """The forward pass behind losses that exist; nothing is recorded, and no graph is freed."""
    return forward_of(losses, leaves, real_of(leaves), hooked=hooked)


def _traced(call: Callable[[Params], Any], params: Params, parse: Callable[[Any], Losses]) -> Any:
    """`run` for the compiler, which traces vjp's own pullback and drops what is unused."""

    def forward(leaves: Params) -> tuple[Tensor, Any]:
        with SafeOps():
            losses = parse(call(leaves))
        return losses.vector, losses.aux

    value, pull, aux = explained_vjp(forward, params)
    return TracedForward(Losses(value), value, aux, params, pull)


def check_connected(forward: Forward, *, samples: bool = False) -> None:
    """Raise where no loss depends on any of the leaves, which are being differentiated; for rows of
    samples, where a gradient is divided by counts of the batch.
    """
    if isinstance(forward, TracedForward):
        return
    nodes = forward.graph.following
    if samples and any(getattr(x, "_saved_scale_grad_by_freq", False) for x in nodes):
        raise NotImplementedError(FREQUENCIES)
    reached = forward.reached
    if not (bool(forward.graph.leaf_nodes) if reached is None else reached):
        raise ValueError(
            "losses_fn: no loss depends on params, so every gradient would be zero; call the "
            "module as torch.func.functional_call(module, params, (x,)), with the params that "
            "losses_fn is given, and neither detach them nor work under torch.no_grad"
        )


NO_GRAPH = (
    "losses: they depend on no parameter of the module: compute them from its output, with "
    "gradients enabled, and neither detach them nor call .item()"
)


def detached(values: Any) -> Any:
    """Values, or a nest of them, without a graph."""
    if isinstance(values, Tensor):
        return values.detach()
    if type(values) is tuple:
        return tuple(map(detached, values))
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, values)


def observe(
    call: Callable[[], Any], leaves: Params, parse: Callable[[Any], Losses], *,
    params: Params, outside: bool, separable: bool = True,
) -> Forward:  # fmt: skip
    """`call()` of a `losses_fn`, or a part of it, on these leaves, plain ones or at a level, with
    every operation written out that torch gets wrong there.

    That is so under a transform, outside or inside `call`, and for an operation that something
    enters which requires grad and is not a leaf. What needs no second derivative of an operation
    but meets one after it (a flash attention, and then a scale that requires grad) shows in the
    finished graph alone: then `call` is called a second time, with the random numbers of the first,
    and what it changes is restored. `outside`: whether gradients were enabled before the leaves
    were made; other arguments as in `run` and `forward_of`.
    """
    plain = depth() == 0
    carried = plain and any(not leaf.is_leaf for leaf in leaves.values())

    def once(always: bool) -> Forward:
        guard = _Guard(leaves, always)
        try:
            with guard:
                out = call()
        finally:
            guard.restore()
        losses, hooked = parse(out), guard.hooked

        def recorded(graph: Graph) -> bool:
            if not plain:
                return is_differentiated(losses.roots, own_levels=1)
            return outside and (carried or guard.foreign(graph.variables.values()))

        reached = None if plain else any(map(has_innermost_derivative, losses.roots))
        found = forward_of(
            losses, leaves, params, recorded, separable=separable, reached=reached,
            hooked=hooked,
        )  # fmt: skip
        if plain and has_checkpoint(found.graph.following):
            raise RuntimeError(CHECKPOINTING)
        return found

    drawn = _drawn(leaves) if plain and outside and not carried else []
    found = once(always=carried or depth() > 1)
    again = found.recorded and not carried and depth() <= 1
    if again and found.graph.has_final_backward:
        for generator, state in drawn:
            generator.set_state(state)
        with without_trace(leaves):
            return once(always=True)
    return found


def _drawn(leaves: Params) -> list[tuple[torch.Generator, Tensor]]:
    """The generators of random numbers, as they are."""
    device, found = next(iter(leaves.values())).device, [torch.default_generator]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        found.append(torch.cuda.default_generators[device.index])
    return [(generator, generator.get_state()) for generator in found]


class Strangers:
    """Tensors that require grad and enter what a pass on plain `leaves` computed."""

    def __init__(self, leaves: Params) -> None:
        self.seen: set[Node] = {leaf.grad_fn for leaf in leaves.values() if leaf.grad_fn}
        self.own: set[int] = set(map(id, leaves.values()))
        self.found: list[Tensor] = []

    def enter(self, values: Iterable[Tensor]) -> bool:
        """Whether any has been found, in the graph of these values or of those before."""
        todo = [gradient_edge(x).node for x in values if x.requires_grad]
        while todo:
            node = todo.pop()
            if node not in self.seen:
                self.seen.add(node)
                variable = getattr(node, "variable", None)
                if variable is None:
                    todo.extend(child for child, _ in node.next_functions if child is not None)
                elif id(variable) not in self.own:
                    self.found.append(variable)
        return bool(self.found)


class _Guard(SafeOps, Handles):
    """`SafeOps` where it is needed, or `always`; and whether hooks can be on their derivatives."""

    def __init__(self, leaves: Params, always: bool) -> None:
        super().__init__()
        Handles.__init__(self)
        self.always = always
        self.depth = depth()
        self.strangers = None if self.depth else Strangers(leaves)
        self.made: list[Tensor] = []  # by the run itself, to differentiate inside

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _MAKING and not args[0].requires_grad:
            self.made.append(args[0])
        if self._written(func, args, kwargs or {}):
            return super().__torch_function__(func, types, args, kwargs)
        out = func(*args, **kwargs) if kwargs else func(*args)
        if kwargs and kwargs.get("requires_grad") and isinstance(out, Tensor):
            self.made.append(out)
        return out

    def _written(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Under a transform inside the call, or if something enters that requires grad and is not a
        leaf: on plain leaves by the graph, at a level inside all wrappers.
        """
        if self.always or func not in WRITTEN or func in ALWAYS:
            return self.always or func in ALWAYS
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if depth() > self.depth:
            return True
        if self.strangers is not None:
            return self.strangers.enter(given)
        return any(innermost_tensor(x).requires_grad for x in given)

    def foreign(self, variables: Iterable[Tensor]) -> bool:
        """Whether a tensor from outside of the call requires grad and enters the losses."""
        if self.strangers is None:
            return False
        own = self.strangers.own | set(map(id, self.made))
        return any(id(x) not in own for x in (*self.strangers.found, *variables))

    def restore(self) -> None:
        """Tensors from outside as they were: a batch differentiated by is a plain one again."""
        for x in self.made:
            if x.is_leaf and not depth():
                x.requires_grad_(False)


_MAKING = {Tensor.requires_grad_, Tensor.requires_grad.__set__}  # pyright: ignore
