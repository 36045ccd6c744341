"""One run of `losses_fn`: what it returned, what was watched in it, and errors that name a cure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functions
from torch.utils._pytree import tree_map

from ..core.checks import at_level, depth, differentiated, innermost, is_pair
from ..types import Batch, LossesFn, Params
from .layerwise import RETAIN, Graph, Handles, Tapped, read_graph, separate
from .leaves import Strangers, reaches
from .passes import run_backward
from .safe_ops import ALWAYS, WRITTEN, SafeOps, final


def split_output(
    out: Any, what: str = "losses_fn"
) -> tuple[Tensor, tuple[Tensor, ...] | None, Any]:
    """What `losses_fn` returned, as (losses [task], the scalars if they came separately, aux).

    Args:
        out: a tuple whose first entry is not a 0-d tensor is read as `(losses, aux)`.
        what: gave it, in errors.

    Raises:
        ValueError: unless the losses are a vector, or a tuple or dict of scalars.
        TypeError: unless they are floating.
    """
    out, aux = out if is_pair(out) else (out, ())
    if isinstance(out, Tensor):
        losses, scalars = out, None
        if out.ndim != 1 or out.shape[0] == 0:
            cure = (
                "return losses[None] if there is one task, else one loss a task"
                if out.ndim == 0
                else "reduce over samples, for instance with .mean(0)"
            )
            raise ValueError(
                f"{what}: expected losses of shape [task], got {list(out.shape)}; {cure}"
            )
    else:
        several = out.values() if isinstance(out, dict) else out
        scalars = tuple(several) if isinstance(out, dict | tuple | list) else ()
        if not scalars or not all(isinstance(x, Tensor) and x.ndim == 0 for x in scalars):
            kinds = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in scalars]
            raise ValueError(
                f"{what}: expected a vector [task], or a tuple or dict of scalar tensors, got "
                f"{kinds or type(out).__name__}; reduce each loss to one number"
            )
        losses = torch.stack(scalars)
    if not losses.is_floating_point():
        raise TypeError(f"{what}: expected floating losses, got {losses.dtype}")
    return losses, scalars, aux


def losses_alone(losses_fn: LossesFn) -> LossesFn:
    """`losses_fn`, refusing what could be (losses, aux), and losses that ignore the parameters."""

    def alone(params: Params, batch: Batch) -> Any:
        out = losses_fn(params, batch)
        if is_pair(out):
            raise ValueError(
                "losses_fn: got a pair of which the first is not a scalar; reduce each loss to "
                "one number, or leave aux out"
            )
        check_connected(out, params)
        return out

    return alone


def check_connected(out: Any, leaves: Params) -> None:
    """Raise where no loss depends on any of the leaves, which are being differentiated."""
    if torch.compiler.is_compiling():
        return
    losses = _losses(out)
    connected = any(map(at_level, losses)) if depth() else reaches(losses, leaves)
    if losses and not connected:
        raise ValueError(
            "losses_fn: no loss depends on params, so every gradient would be zero; call the "
            "module as torch.func.functional_call(module, params, (x,)), with the params that "
            "losses_fn is given, and neither detach them nor work under torch.no_grad"
        )


def _losses(out: Any) -> tuple[Tensor, ...]:
    """The tensors in what `losses_fn` returned; none where that is not what it should be."""
    out = out[0] if is_pair(out) else out
    several = out.values() if isinstance(out, dict) else out
    losses = tuple(several) if isinstance(out, dict | tuple | list) else (out,)
    return losses if all(isinstance(x, Tensor) for x in losses) else ()


def losses_graph(out: Any, leaves: Params) -> Graph:
    """The graph from what `losses_fn` returned, which is losses, to the leaves."""
    losses = _losses(out)
    whole = isinstance(out[0] if is_pair(out) else out, Tensor)
    return read_graph(losses[0], leaves, separate(losses[0], None if whole else losses))


def release(out: Any, graph: Graph) -> None:
    """Free the graph of losses, as their last pass without `retain_graph` would.

    The nodes are visited with undefined gradients, for which they compute nothing. A backward of
    somebody's own would be run on zeros: such a graph stays until the losses are dropped.
    """
    losses = [x for x in _losses(out) if x.requires_grad]
    if losses and not graph.custom:
        nothing = _UNDEFINED()(torch.stack(losses))
        places = tuple(graph.variables())
        run_backward(nothing, nothing.detach(), places, keep=False)


# hands no gradient on
_UNDEFINED: Any = _functions.UndefinedGrad  # pyright: ignore[reportAttributeAccessIssue]


class Forward(NamedTuple):
    """One run, and what was seen of it."""

    out: Any
    taps: Tapped | None
    # Whether a hook may sit on some derivative: then only ordinary differentiation, from the losses
    # as they were returned, does what it does.
    hooked: bool
    # Whether something outside may differentiate the losses, and so their derivatives.
    recorded: bool
    graph: Graph | None = None  # from the losses, each by itself if they are separate

    def released(self, values: Any) -> Any:
        """Values that came from the run, without its graph unless something outside needs that."""
        return values if self.recorded or depth() else detached(values)  # a level's ends with it


def detached(values: Any) -> Any:
    """Values, or a nest of them, without a graph."""
    if isinstance(values, Tensor):
        return values.detach()
    if type(values) is tuple:
        return tuple(map(detached, values))
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, values)


def forward_pass(
    run: Callable[[], Any],
    leaves: Params,
    *,
    outside: bool,
    taps: Callable[[], Tapped | None] = lambda: None,
) -> Forward:
    """`run()`, watched, with every operation written out that torch gets wrong there.

    That is so under a transform, outside or inside `run`, and for an operation that something
    enters which requires grad and is no leaf. What needs no second derivative of an operation but
    meets one after it (a flash attention, and then a scale that requires grad) shows only in the
    finished graph: there alone `run` is called a second time.

    Args:
        run: gives what `losses_fn` returned.
        leaves: what it is given, plain or at a level.
        outside: whether gradients were enabled around the call, before the leaves were made.
        taps: makes the taps of one run, or None.

    Returns:
        what `run` returned; the taps, unless there are hooks, for which taps cannot answer.
    """
    if torch.compiler.is_compiling():
        with SafeOps():
            return Forward(run(), None, False, True)
    plain = depth() == 0
    carried = plain and any(not leaf.is_leaf for leaf in leaves.values())

    def once(always: bool) -> Forward:
        watching = taps()
        guard = _Guard(leaves, always)
        try:
            with watching or nullcontext(), guard:
                out = run()
        finally:
            guard.restore()
        hooked = guard.retained or guard.handles.hooked
        seen = None if hooked else watching
        losses = _losses(out)
        if guard.strangers is None:
            return Forward(out, seen, hooked, differentiated(losses, own_levels=1))
        graph = losses_graph(out, leaves) if outside and losses else None
        recorded = outside and (carried or guard.foreign(graph.variables() if graph else []))
        return Forward(out, seen, hooked, recorded, graph)

    found = once(always=carried or depth() > 1)
    if found.recorded and not carried and depth() <= 1 and any(map(final, _losses(found.out))):
        return once(always=True)
    return found


class _Guard(SafeOps):
    """`SafeOps` where it is needed; and whether hooks can have been put on derivatives.

    Args:
        leaves: of the pass.
        always: it is needed for every operation.
    """

    def __init__(self, leaves: Params, always: bool) -> None:
        super().__init__()
        self.always, self.retained, self.handles = always, False, Handles()
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
        if func is RETAIN:
            self.retained = True
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
        """Under a transform inside `run`, or where something enters that requires grad and is no
        leaf: on plain leaves by the graph, at a level inside all wrappers.
        """
        if self.always or func not in WRITTEN or func in ALWAYS:
            return self.always or func in ALWAYS
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if depth() > self.depth:
            return True
        if self.strangers is not None:
            return self.strangers.enter(given)
        return any(innermost(x).requires_grad for x in given)

    def foreign(self, variables: list[Tensor]) -> bool:
        """Whether a tensor from outside of the run requires grad and enters it.

        Args:
            variables: on which the losses depend.
        """
        if self.strangers is None:
            return False
        own = self.strangers.own | set(map(id, self.made))
        return any(id(x) not in own for x in (*self.strangers.found, *variables))

    def restore(self) -> None:
        """Tensors from outside as they were: a batch that `run` differentiates by is one again."""
        for x in self.made:
            if x.is_leaf and not depth():
                x.requires_grad_(False)


_MAKING = {Tensor.requires_grad_, Tensor.requires_grad.__set__}  # pyright: ignore
