"""What a `Balancer` does with the user's own forward passes, and with `.grad`."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import check_params
from ..core.hooks import Handles
from ..core.transforms import REQUIRES_GRAD, values_readable
from ..core.tree import select, trained
from ..gradients.losses import Losses, Tasks, parse_existing, parse_weightings
from ..gradients.run import NO_GRAPH, Forward, live
from ..probes.common import EXPECTED, Labelling, Labels, Run, labels_of, no_model, of_labelled
from ..processes import Ranks
from ..types import Batch, Heads, Params, Probe
from ._given import IN_TURN, check_outside, check_weightings, foreign_parameters, functions_of
from ._in_turn import differentiated_in_turn
from ._metric import metric_of

STEP = "the first step"
"""When tasks were first seen, in errors."""


class ModuleLeaves:
    """What a Balancer keeps of its module: the leaves, where it keeps them, so that a change is
    seen without a walk, and when hooks may have come to a graph.
    """

    def __init__(self, module: nn.Module, probe: Probe) -> None:
        self.module, self.probe = module, probe
        self.handles = Handles()  # hooks that came since the last losses
        self._read()

    def _read(self) -> None:
        self.params: Params = trained(self.module)
        if self.params:
            check_params(self.params, mixed=True)
        self.parts = [
            held
            for x in self.module.modules()
            if not isinstance(x, torch.jit.ScriptModule)  # which keeps its names
            for held in (x._parameters, x._modules)
        ]
        self.sizes = list(map(len, self.parts))
        self.places = [(held, name) for held in self.parts for name in held]
        self.entries = [held[name] for held, name in self.places]
        self.tensors = [x for x in self.entries if isinstance(x, Tensor)]
        self.trained = [*map(REQUIRES_GRAD, self.tensors)]

    def _holds(self) -> bool:
        if [*map(REQUIRES_GRAD, self.tensors)] != self.trained:
            return False
        now = [held.get(name) for held, name in self.places]
        return list(map(len, self.parts)) == self.sizes and all(map(is_, now, self.entries))

    def leaves(self, *, again: bool = False) -> Params:
        """The parameters that are differentiated; read `again` if a graph holds an unknown leaf."""
        if again or not self._holds():
            self._read()
        return self.params

    def forwards(self, parsed: list[Losses], *, keeps: bool) -> tuple[Params, tuple[Forward, ...]]:
        """The leaves, and the forward passes behind losses, whose graphs this step `keeps`."""
        leaves = self.leaves()
        found = [live(each, leaves) for each in parsed]
        if foreign_parameters(found, leaves):
            leaves = self.leaves(again=True)
            found = [live(each, leaves) for each in parsed]
            check_outside(found, leaves)
        return leaves, tuple([self._looked_at(x, keeps) for x in found])

    def _looked_at(self, forward: Forward, keeps: bool) -> Forward:
        """With whether hooks may sit on derivatives, and whether the graph is freed."""
        graph, handles = forward.graph, self.handles
        on_leaves = [x._backward_hooks for x in graph.variables.values()]
        hooked = handles.hooked or any(on_leaves) or graph.has_node_before(handles.since)
        return replace(forward, hooked=hooked, frees=not (keeps or hooked))


class Live(NamedTuple):
    """One step on losses that exist."""

    run: Run
    batch: Forward | tuple[Forward, ...]  # what the probe is given: one forward pass, or several
    forwards: tuple[Forward, ...]
    tasks: Tasks
    present: Tensor | None  # labels by task; None is all
    reached: set[str]  # leaves on which a loss of a task with labels depends
    custom: bool  # whether somebody's own backward is in a graph of these losses
    fresh: bool  # whether gradients have no other holder

    def no_writes(self) -> AbstractContextManager[Any]:
        """Raise if a backward of one's own writes `.grad`, as a reentrant checkpoint's does."""
        return _no_writes(self.run.params) if self.custom else nullcontext()


def live_step(
    held: ModuleLeaves, losses: Any, present: Labels | None, weightings: Tensor | None,
    known: Tasks, union: Ranks, *, combines: bool, keeps: bool, optimizer: Optimizer | None,
    heads: Heads,
) -> Live:  # fmt: skip
    """The forward passes behind losses, whose tasks are `known` after the first step."""
    if (functions := functions_of(losses)) and weightings is not None:
        raise ValueError(f"weightings: {IN_TURN}")
    leaves, in_turn = held.leaves() if functions else {}, None
    if functions:  # numbers, for the checks of names and of how many there are
        device = next((x.device for x in leaves.values()), None)
        zeros = {name: torch.zeros((), device=device) for name in functions}
        losses = zeros if isinstance(losses, Mapping) else [*zeros.values()]
    batches: list[Losses] = []
    several = weightings is None and isinstance(losses, tuple | list) and len(losses) > 0
    # whether each is all losses of one batch, rather than one of them
    several = several and not [
        x for x in losses if not isinstance(x, dict | tuple | list) and getattr(x, "ndim", 0) != 1
    ]
    if weightings is not None:
        check_weightings(held.probe, weightings, known)
        batches.append(parse_weightings(losses, "losses"))
        tasks = known or ((),) * len(weightings)
    else:
        for batch in losses if several else (losses,):  # in the order of the first batch's tasks
            tasks = known or (batches[0].tasks if batches else ())
            batches.append(parse_existing(batch, tasks, STEP if known else "the first batch"))
        tasks = known or batches[0].tasks
    if present is not None:
        present = labels_of(present, tasks, batches[0].vector.device, held.probe.group is not None)
    if weightings is not None:
        weightings = of_labelled(weightings.detach(), present)  # no graph of theirs is kept
        if values_readable(weightings):
            present = weightings.flatten(1).any(1)
    if functions:
        shared = select(leaves, held.probe.shared)
        in_turn = differentiated_in_turn(functions, leaves, shared, tasks, present)
        batches = [parse_existing(in_turn.losses, tasks, STEP)]
    leaves, forwards = held.forwards(batches, keeps=keeps)
    forwards = tuple([replace(x, in_turn=in_turn) for x in forwards]) if in_turn else forwards
    reached, custom, hooked = set[str](), False, False
    for each in forwards:
        reached |= reached_by(each, present)
        custom, hooked = custom or each.graph.has_custom_backward, hooked or each.hooked
    # a rank without labels takes part, and functions none of which was called have no graph
    idle = present is not None and not bool(present.any())
    if idle:
        forwards = tuple([replace(x, reached=True) for x in forwards])
    elif not (reached or any(x.graph.leaf_nodes for x in forwards)):
        raise ValueError(NO_GRAPH)
    run = Run(
        _existing, leaves, no_model, union, dict,
        Labelling(present if weightings is None else None, weightings), combines=combines,
        metric=None if optimizer is None else partial(metric_of, optimizer, leaves), heads=heads,
    )  # fmt: skip
    # what somebody's own backward or hook returns may be kept by them
    fresh, batch = bool(in_turn or not (custom or hooked)), forwards if several else forwards[0]
    return Live(run, batch, forwards, tasks, present, reached, custom, fresh)


def _existing(batch: Batch) -> Forward:
    """A batch of a probe is a forward pass that the user has made."""
    if not isinstance(batch, Forward):
        raise ValueError(EXPECTED)
    return batch


@contextmanager
def _no_writes(leaves: Params) -> Iterator[None]:
    before = {name: (x.grad, _writes(x.grad)) for name, x in leaves.items()}
    yield
    changed = [
        name
        for name, x in leaves.items()
        if x.grad is not before[name][0] or _writes(x.grad) != before[name][1]
    ]
    for name in changed:
        leaves[name].grad = before[name][0]
    if changed:
        raise RuntimeError(
            "module: a torch.autograd.Function of its own calls backward() inside its "
            f"backward, which adds to .grad of {', '.join(changed[:3])} in every pass and "
            "hides these parameters from the tasks' gradients (a reentrant checkpoint); return "
            "their gradients from it, or use torch.utils.checkpoint with use_reentrant=False. "
            "Call zero_grad() before the next step"
        )


def _writes(grad: Tensor | None) -> int:
    return -1 if grad is None or grad.is_inference() else grad._version


def reached_by(forward: Forward, present: Tensor | None) -> set[str]:
    """The leaves on which a present task's loss depends, as far as the graph tells losses apart."""
    graph = forward.graph
    if present is None or forward.edges is None or len(present) != len(forward.edges):
        return set(graph.leaf_nodes if present is None or bool(present.any()) else ())
    here = sum(1 << task for task, count in enumerate(present.tolist()) if count)
    return {name for name in graph.leaf_nodes if graph.serves_leaf(name) & here}


def accumulate(leaves: Params, grads: Params, *, fresh: bool) -> None:
    """Add to `.grad` as autograd does: each in the parameter's own layout, shared with nothing.

    `fresh`: whether the gradients surely have no other holder.
    """
    taken: set[int] = set()
    waits = [x.grad is not None or x._post_accumulate_grad_hooks for x in leaves.values()]
    with torch.no_grad() if any(waits) else nullcontext():
        for name, leaf in leaves.items():
            grad = grads[name].detach()
            grad = torch.complex(*grad.unbind(-1)) if leaf.is_complex() else grad
            if leaf.grad is not None:
                leaf.grad += grad
            else:
                own = fresh and grad.stride() == leaf.stride() and grad.dtype == leaf.dtype
                if own:
                    memory = grad.untyped_storage()
                    own = memory.nbytes() == grad.nbytes and memory.data_ptr() not in taken
                    taken.add(memory.data_ptr())
                leaf.grad = grad if own else torch.empty_like(leaf).copy_(grad)
            for hook in tuple((leaf._post_accumulate_grad_hooks or {}).values()):
                hook(leaf)
