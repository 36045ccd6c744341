"""The same rules and engine on losses that exist already, in a stock training loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from types import TracebackType
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map, tree_unflatten

from ..core import random
from ..core.checks import check_option, check_params, peers_here, transformed
from ..core.distributed import (
    Group,
    Peers,
    agree,
    check_group,
    described,
    described_params,
    held,
    sharded,
    unwrapped,
    warn_alone,
)
from ..core.expect import expect_rule, not_measured, probe_for, rule_name
from ..core.tasks import Tasks, aligned, tasks_of
from ..core.tree import select
from ..gradients.forward import losses_graph, release, split_output
from ..gradients.hooked import linearize_hooked
from ..gradients.layerwise import Engine, Graph, Handles, Hooks, Idle, Tapped
from ..gradients.linearize import Keep, Linear, Watched, linearize_losses
from ..probes._jacobian import (
    Heads,
    RowOptions,
    agreed,
    checked_options,
    first_of_losses,
    measured_losses,
    watching,
)
from ..probes._losses_only import weighted_losses
from ..probes._representation import measured_features
from ..probes.common import labels, mask_of, with_labels
from ..probes.groups import Groups
from ..probes.together import Part, part_of, scaled
from ..types import Info, Params, Rule, Select, State, TaskGradients
from ._balance import Reduction, combined, count_of, init_rule, weigh


class Balancer:
    """A rule for the losses of a stock loop: it adds to `.grad` in place of `loss.backward()`.

    The forward is the module's own, in train mode, under autocast, with hooks or checkpointing.
    `with balancer:` around it watches which calls consume which parameters, so that the Gramian
    needs no rows; without it every leaf is differentiated row by row, one task at a time. Calls
    inside activation checkpointing are not watched: their leaves are differentiated row by row; so
    are all where a hook is registered, by anyone on any tensor, graph node or module, between the
    block's start and `backward`, and where part of the graph was made before the block. Where that
    was cheapest for all leaves eight times in a row (separate losses alone), the block watches no
    more, until the graph is of another kind.
    Several forwards between two `backward` are one; each thread has its own.

    Over micro-batches gradients add up; each is balanced by its own Gramian, so that k small
    batches are one large one only for rules that do not read it. A compiled module's backward runs
    once a task, which needs `torch._functorch.config.donated_buffer = False`.

    Args:
        module: holds the parameters; frozen ones are left alone.
        rule: turns geometry into weights, for instance `mtlfunc.cagrad(0.4)`.
        shared: which parameters the tasks share, as in `mtlfunc.jacobian`; None for rules that read
            losses alone: nothing is measured, and all parameters get the weighted loss.
        measure: as in `mtlfunc.jacobian`, like the next five.
        heads: see there.
        groups: see there.
        engine: see there.
        chunk_size: see there.
        gramian_dtype: see there.
        reduction: `"mean"` or `"sum"` over the tasks, as in `mtlfunc.balance`.
        key: an integer or a 0-d integer tensor, for rules that draw.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`; every rank gets
            the union's gradient. The module may be wrapped in DistributedDataParallel, whose own
            averaging then has nothing to do, or have been through `fully_shard` (FSDP2). None is
            this process alone.

    Raises:
        TypeError: for a module or rule that is something else.
        ValueError: for options as in `mtlfunc.jacobian`, and for a rule that reads what a balancer
            does not measure.
        NotImplementedError: for a module of several processes (DDP, FSDP2) without `group`; FSDP1
            and DataParallel.

    Examples:
        >>> import mtlfunc as mf
        >>> net = nn.Linear(2, 2, bias=False)
        >>> balancer = mf.Balancer(net, mf.mgda())
        >>> with balancer:
        ...     losses = (net(torch.eye(2)) - torch.eye(2)).square().sum(0)
        >>> info = balancer.backward(losses)
        >>> net.weight.grad.shape, info.gramian.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        module: nn.Module,
        rule: Rule,
        shared: Select | None = "*",
        *,
        measure: Select | None = None,
        heads: Heads = "plain",
        groups: Groups | None = None,
        engine: Engine = "auto",
        chunk_size: int | None = None,
        gramian_dtype: torch.dtype | None = None,
        reduction: Reduction = "mean",
        key: int | Tensor = 0,
        group: Group = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module: expected a torch.nn.Module, got {type(module).__name__}; several go into "
                "one torch.nn.ModuleDict"
            )
        expect_rule(rule)
        check_option(reduction, "reduction", get_args(Reduction))
        self._group = check_group(group)
        self._module = unwrapped(module, group)
        if group is None:
            warn_alone()
        self._rule, self._key = rule, key
        self._reduction: Reduction = reduction
        options = RowOptions(
            "*" if shared is None else shared,
            measure=measure,
            groups=groups,
            heads=heads,
            engine=engine,
            chunk_size=chunk_size,
            gramian_dtype=gramian_dtype,
            group=group,
        )
        if shared is None and options != RowOptions("*", group=group):
            raise ValueError(
                "shared=None measures nothing, so that measure, heads, groups, engine, chunk_size "
                "and gramian_dtype have no meaning; leave them out"
            )
        self._options = None if shared is None else checked_options(options)
        _expect_measured(rule, shared)
        self._tasks: Tasks = ()
        self._state: State = None  # the rule's, after the first losses
        self._loaded: dict[str, Tensor] | None = None
        self._seen = _Seen()
        self._idle = Idle()
        self._known: Params = {}
        leaves = self._leaves()  # before a forward, which under fully_shard hides some
        if self._options is not None:
            _ = watching(self._options, leaves)  # its globs match

    def __enter__(self) -> Balancer:
        if self._seen.open:  # the outer block sees all
            mode = Handles()
        else:
            self._seen.begin()
            leaves = self._leaves(anew=True)
            mode = Handles() if self._options is None else watching(self._options, leaves)
        # whose only use is for batched passes; or all was in vain lately
        if self._idle.unwatched if type(mode) is Tapped else self._seen.apart:
            mode = Handles()
        mode.__enter__()
        self._seen.open.append(mode)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        mode = self._seen.open.pop()
        mode.__exit__(kind, error, trace)
        if kind is None and not self._seen.open:
            self._seen.add(mode)

    def backward(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        features: Any = None,
        scale: float | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Info:
        """Add to `.grad` of every parameter what `mtlfunc.balance` would return.

        Args:
            losses: a vector `[task]`, or a tuple, list or dict of scalars, with their graph.
            present: Bool[task], the tasks that have labels in this batch; with `group=` how many
                labels, `[task]`. None is all, and equal batches.
            features: what the heads read, a tensor or a dict of tensors from this forward: the
                Gramian is measured there, as by `mtlfunc.representation` (MGDA-UB).
            scale: for float16, what the losses have been multiplied by: `scaler.get_scale()` after
                `scaler.scale(losses)`. Rule and answer are those of the losses themselves, `.grad`
                gets scaled gradients, and an overflow weighs nan and leaves the rule's state alone,
                so that the scaler skips the step.
            retain_graph: keep the graph for another pass. Else it is freed, as by
                `loss.backward()`; only where the forward was not watched, or hooks, checkpoints or
                custom functions (compiled modules too) are in it, it stays until the losses are
                dropped.

        Returns:
            what was measured and the weights; `.tasks` has the losses by name, from a dict.

        Raises:
            ValueError: for losses without a graph, of other tasks than at the first step, or that
                are not finite; for a task that depends on no shared parameter. Then `.grad`, the
                rule's state and the graph are as they were.
            RuntimeError: for a graph that is freed or older than the parameters.
        """
        with self._explained():
            leaves, reached, graph = self._connected(losses)
            measured, info, after = self._measured(
                losses, leaves, graph, present, features, scale, "combination"
            )
            with self._no_autocast(leaves):
                grads = combined(measured, info.weights, self._reduction, check=scale is None)
            reached = self._anywhere(leaves, reached)
            self._tasks, self._state, self._loaded, self._idle = after
            # what somebody's own backward or hook returns may be kept by them
            fresh = not (graph.custom or self._seen.hooked)
            _accumulate({name: leaves[name] for name in leaves if name in reached}, grads, fresh)
            stays = self._seen.hooked or self._seen.checkpointed
            if not (retain_graph or stays or any(map(sharded, leaves.values()))):
                release(losses, graph)
        if not retain_graph:
            self._seen.forget()
        return info

    def weigh(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        features: Any = None,
        scale: float | Tensor | None = None,
    ) -> tuple[Tensor, Info]:
        """The weights of the losses, and the rule's next state; `.grad` is left alone.

        For what wants one loss: `scaler.scale((weights * torch.stack(losses)).sum()).backward()`.
        All parameters then get the weighted loss, the heads too.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            features: see there.
            scale: see there.

        Returns:
            weights `[task]`, times T for `reduction="sum"`, and what was measured.
        """
        if self._options is not None and self._options.groups is not None:
            raise ValueError("weigh: groups= has weights for each group; use backward")
        with self._explained():
            leaves, _, graph = self._connected(losses)
            measured, info, after = self._measured(
                losses, leaves, graph, present, features, scale, "nothing"
            )
        self._tasks, self._state, self._loaded, self._idle = after
        weights = info.weights.detach()
        if "share" in measured.geometry.extra and present is not None:
            # DDP's mean over the ranks of these is the union's weighted loss
            weights = weights * measured.geometry.extra["share"] * self._size(leaves)
        return weights * count_of(measured) if self._reduction == "sum" else weights, info

    def measure(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        features: Any = None,
        scale: float | Tensor | None = None,
    ) -> Info:
        """What `weigh` would measure and answer; nothing changes, the rule's state neither.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            features: see there.
            scale: see there.

        Returns:
            what `backward` would return.
        """
        with self._explained():
            leaves, _, graph = self._connected(losses)
            return self._measured(losses, leaves, graph, present, features, scale, "nothing")[1]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from.

        Returns:
            the rule's state and the names of the tasks, in plain dicts.
        """
        rule = dict(self._loaded) if self._state is None and self._loaded else {}
        if self._state is not None:
            rule = _flat(self._state)
        names = list(self._tasks) if isinstance(self._tasks, dict) else []
        started = self._state is not None or self._loaded is not None
        return {
            "started": started,
            "tasks": {"count": len(self._tasks), "names": names},
            "rule": rule,
            "idle": {"kinds": list(self._idle.kinds), "streak": self._idle.streak},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, bit by bit.

        Args:
            state_dict: what `state_dict` of a balancer of the same rule and tasks returned.

        Raises:
            ValueError: for a state of another rule or of other tasks, here or at the next step.
        """
        try:
            started, count = bool(state_dict["started"]), int(state_dict["tasks"]["count"])
            names, rule = list(state_dict["tasks"]["names"]), dict(state_dict["rule"])
            shown = state_dict.get("idle", {"kinds": (), "streak": 0})  # new in version 0.2
            idle = Idle(tuple(map(int, shown["kinds"])), int(shown["streak"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                "state_dict: expected what Balancer.state_dict returned, a dict with 'started', "
                "'tasks' and 'rule'"
            ) from error
        tasks: Tasks = dict.fromkeys(names, ()) if names else ((),) * count
        if started and self._state is not None:
            if tasks != self._tasks:
                raise ValueError(
                    f"state_dict: it is of {_described(tasks)}, and this balancer of "
                    f"{_described(self._tasks)}"
                )
            _filled(self._state, rule)
        # copies: an optimizer of the state's own tensors would change those in the dict
        self._loaded = {name: leaf.clone() for name, leaf in rule.items()} if started else None
        self._tasks, self._state = tasks if started else (), None
        self._idle = idle

    def __deepcopy__(self, memo: dict[int, Any]) -> Balancer:
        other = memo[id(self)] = object.__new__(type(self))
        other.__dict__.update(deepcopy(self.__dict__, memo))
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Balancer holds its rule's functions, which cannot be pickled: save its "
            "state_dict(), and load it into one that is made as this one was"
        )

    def _leaves(self, *, anew: bool = False) -> Params:
        """The parameters that are differentiated; read `anew` before a forward, or after one that
        was not watched, or where a graph holds an unknown leaf: the module may have changed.
        """
        known = self._known.values()
        anew = anew and not any(map(sharded, known))  # a forward hides those
        if anew or not (known and all(x.requires_grad for x in known)):
            named = self._module.named_parameters()
            self._known = {name: leaf for name, leaf in named if leaf.requires_grad}
        return self._known

    def _connected(self, losses: Any) -> tuple[Params, set[str], Graph]:
        """The leaves, the names of those in the graph of the losses, and this graph."""
        if transformed() or torch.compiler.is_compiling():
            raise RuntimeError(
                "a Balancer changes .grad, which transforms and compiled functions do not allow; "
                "there use mtlfunc.balance, which is pure"
            )
        split_output(losses, "losses")
        losses = aligned(losses, self._tasks, "losses", "the first step")
        leaves = self._leaves(anew=self._seen.unwatched)
        graph = losses_graph(losses, leaves)
        places = {id(x) for x in graph.variables()}
        if any(map(sharded, leaves.values())):  # their graph ends in gathered weights
            places |= {id(leaf) for leaf in leaves.values()}
        elif not places <= {id(leaf) for leaf in leaves.values()}:
            leaves = self._leaves(anew=True)
        check_params(leaves, self._group)
        reached = {name for name, leaf in leaves.items() if id(leaf) in places}
        if not reached:
            raise ValueError(
                "losses: they depend on no parameter of the module: compute them from its output, "
                "with gradients enabled, and neither detach them nor call .item()"
            )
        return leaves, reached, graph

    def _measured(
        self,
        out: Any,
        leaves: Params,
        graph: Graph,
        present: Tensor | None,
        features: Any,
        scale: float | Tensor | None,
        keep: Keep,
    ) -> tuple[TaskGradients, Info, tuple[Tasks, State, None, Idle]]:
        """What the rule sees, its answer, and (tasks, rule's state, nothing loaded, what
        the forwards have shown) after it.
        """
        tasks = self._tasks or tasks_of(out)
        out = aligned(out, tasks, "losses", "the first step")
        several = self._group is not None
        counts = labels(None if present is None else lambda _: present, (), counts=several)
        here, peers = mask_of(counts), peers_here(self._group, leaves)
        watched = self._seen.taken(graph, apart=not isinstance(out, Tensor))
        with self._no_autocast(leaves):
            state, first = self._state, None
            if state is None:
                first = agree(peers, lambda: self._first(out, leaves, here, tasks, peers))
            part = part_of(peers, counts)
            if first is not None:
                first = first if part is None else part.total(first)
                state = self._started(first if scale is None else first / scale)
            if self._options is None:
                measured = weighted_losses(_weighable(out, leaves, watched, here, part), here, part)
            elif features is not None:
                if self._options._replace(shared="*") != RowOptions("*"):
                    raise ValueError("features: of the options shared= alone goes with them")
                names = select(leaves, self._options.shared)
                measured = measured_features(out, features, leaves, names, here, part)
            else:
                if here is None and part is None:  # else what is measured is another graph
                    watched = watched._replace(graph=graph)
                measured = measured_losses(self._options, leaves, out, watched, here, keep, part)
            if scale is None:
                info, state = weigh(self._rule, measured, state, tasks)
            else:
                info, state = _weigh_unscaled(self._rule, measured, state, tasks, scale)
        idle = self._idle
        if features is None and not self._seen.checkpointed:
            idle = idle.after(lambda: graph, watched.taps, apart=not isinstance(out, Tensor))
        return measured, info, (tasks, state, None, idle)

    def _first(
        self, out: Any, leaves: Params, here: Tensor | None, tasks: Tasks, peers: Peers | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The first losses of this process, and what the others must have in common with it."""
        losses = split_output(out, "losses")[0]
        if self._options is None:
            first = losses.detach() if here is None else losses.detach().where(here, 0.0)
        else:
            first = first_of_losses(self._options, leaves, out, here)
        if peers is None:
            return first, {}
        facts = {"the tasks": list(tasks), "rule": described(self._rule), "key": int(self._key)}
        if self._options is not None:
            facts |= agreed(self._options, leaves)
        facts["whether present= is given"] = here is not None
        return first, facts | described_params(leaves)

    def _started(self, first: Tensor) -> State:
        """The rule's state before its first losses, or the one that was loaded."""
        root = random.key(self._key, first.device)
        fresh = init_rule(self._rule, first, random.fold_in(root, 1))
        return fresh if self._loaded is None else _filled(fresh, self._loaded)

    def _anywhere(self, leaves: Params, reached: set[str]) -> set[str]:
        """The leaves that some process's losses depend on."""
        peers = peers_here(self._group, leaves)
        if peers is None:
            return reached
        (found,) = peers.sums(torch.tensor([float(name in reached) for name in leaves]))
        return {name for name, count in zip(leaves, found.tolist(), strict=True) if count}

    def _size(self, leaves: Params) -> int:
        peers = peers_here(self._group, leaves)
        return 1 if peers is None else peers.size

    def _no_autocast(self, leaves: Params) -> Any:
        """Products of gradients are not for half precision."""
        device = next(iter(leaves.values())).device.type
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
        return nullcontext()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Gradients enabled as `loss.backward()` has them, wherever it is called; and errors that
        name a cure.
        """
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        except RuntimeError as error:
            for words, cure in _CURES.items():
                if words in str(error):
                    raise RuntimeError(f"{cure} torch said: {error}") from error
            raise


_CURES = {
    "backward through the graph a second time": (
        "losses: an earlier backward() has freed their graph: call the balancer first, or pass "
        "retain_graph=True there."
    ),
    "modified by an inplace operation": (
        "losses: a tensor of their graph has been changed since, most often a parameter by "
        "optimizer.step(): compute the losses anew after every step."
    ),
    "donated": (
        "module: a compiled module frees its graph in the first backward pass, and there is one a "
        "task: set torch._functorch.config.donated_buffer = False before it is compiled."
    ),
}


def _weighable(
    out: Any, leaves: Params, watched: Watched, here: Tensor | None, part: Part | None
) -> Linear:
    """Losses that are weighed and not measured."""
    local = scaled(lambda *_: out, part, leaves) if part else with_labels(lambda *_: out, here)
    if any(map(sharded, leaves.values())):
        return linearize_hooked(local(leaves, ()), leaves, shared=(), rows=False)
    return linearize_losses(local(leaves, ()), leaves, watched, shared=())


def _expect_measured(rule: Rule, shared: Select | None) -> None:
    """Raise ValueError unless a balancer with this `shared` measures what the rule reads."""
    missing = not_measured(rule, frozenset({"gramian"}))
    if missing:
        raise ValueError(
            f"rule: {rule_name(rule)} reads {missing}, which a Balancer does not measure; use "
            f"mtlfunc.balance(losses_fn, rule, {probe_for(rule)})"
        )
    if shared is None and not_measured(rule, frozenset()):
        raise ValueError(
            f"shared=None measures the losses alone, but {rule_name(rule)} reads 'gramian'; say "
            "which parameters the tasks share, for instance shared='*' for all"
        )


_KEPT = 16
"""Blocks that wait for their losses: those before hold memory, and are better made of rows."""


class _Seen(threading.local):
    """What the blocks of one thread have seen since the last losses."""

    def __init__(self) -> None:
        self.open: list[Hooks | Handles] = []
        self.done: list[Hooks | Handles] = []
        self.used, self.hooked, self.checkpointed = False, True, False
        self.apart = False  # the last losses were scalars, each with a pass of its own

    def __reduce__(self) -> tuple[type[_Seen], tuple[()]]:
        return _Seen, ()  # a copy of a balancer has seen nothing

    @property
    def unwatched(self) -> bool:
        return self.used or bool(self.open) or not self.done

    def begin(self) -> None:
        """Before a forward: what was held for the losses before is not needed beside it."""
        if self.used:
            self.done = []

    def add(self, mode: Hooks | Handles) -> None:
        if self.done:
            mode.first = min(mode.first, self.done[0].first)
            mode.since = min(mode.since, self.done[0].since)
        self.done, self.used = [*self.done[1 - _KEPT :], mode], False

    def taken(self, graph: Graph, *, apart: bool) -> Watched:
        self.used = True
        hooked = any(x._backward_hooks for x in graph.variables())  # pyright: ignore
        hooked = hooked or any(graph.older(mode.since) for mode in self.done[:1])
        # to free a checkpointed graph would run the checkpoints once more
        self.checkpointed = any(isinstance(x, Hooks) and x.checkpointed for x in self.done)
        self.apart = apart and not self.checkpointed
        blind = any(isinstance(mode, Handles) for mode in self.done)
        seen = any(mode.hooked for mode in self.done)
        whole = bool(self.done) and not self.open
        self.hooked = not whole or hooked or seen or (blind and not apart)
        if self.hooked:
            return Watched(None, True)
        taps = [mode for mode in self.done if isinstance(mode, Tapped)]
        if not taps:
            return Watched(None, False)
        for other in taps[1:]:
            taps[0].uses += other.uses
        taps[0].checkpointed = self.checkpointed
        self.done = [taps[0]]
        return Watched(taps[0], False)

    def forget(self) -> None:
        """Drop what the calls that were seen read: their graph is gone."""
        for mode in self.done:
            if isinstance(mode, Tapped):
                mode.uses = []


def _weigh_unscaled(
    rule: Rule, measured: TaskGradients, state: State, tasks: Tasks, scale: float | Tensor
) -> tuple[Info, State]:
    """`weigh` without a gradient scaler's factor; after an overflow nan, and the state as it was.

    No value is read: the rule answers to an identity in place of what is not finite.
    """
    geometry, losses = measured.geometry, measured.losses / scale
    rows, gramian = geometry.losses / scale, geometry.gramian
    fine = rows.isfinite().all()
    if gramian is not None:
        gramian = gramian / scale / scale
        fine = fine & gramian.isfinite().all()
        one = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device)
        geometry = geometry._replace(gramian=gramian.where(fine, one))
    finite = geometry._replace(losses=rows.where(fine, 1.0))
    info, after = weigh(
        rule, measured._replace(losses=losses.where(fine, 1.0), geometry=finite), state, tasks
    )
    names = dict(zip(info.tasks, losses.unbind(), strict=True)) if info.tasks else {}
    weights, rates = (x.where(fine, torch.nan) for x in (info.weights, info.rates))
    gramian = info.gramian if gramian is None else gramian
    info = info._replace(losses=losses, gramian=gramian, weights=weights, rates=rates, tasks=names)
    return info, tree_map(lambda new, old: new.where(fine, old), after, state)


def _accumulate(leaves: Params, grads: Params, fresh: bool) -> None:
    """Add to `.grad` as autograd does: each in the parameter's own layout, shared with nothing.

    `fresh`: whether the gradients are surely nobody else's.
    """
    taken: set[int] = set()
    with torch.no_grad():
        for name, leaf in leaves.items():
            grad = grads[name]
            grad = grad.detach() if grad.requires_grad else grad
            if leaf.grad is not None:
                leaf.grad += grad
            else:
                place = held(grad).untyped_storage().data_ptr()
                own = grad.stride() == leaf.stride() and grad.dtype == leaf.dtype
                if not (own and fresh) or place in taken or grad._base is not None:
                    grad = torch.empty_like(leaf).copy_(grad)
                taken.add(place)
                leaf.grad = grad
            hooks: Any = leaf._post_accumulate_grad_hooks
            for hook in (hooks or {}).values():
                hook(leaf)


def _flat(state: State) -> dict[str, Tensor]:
    return {keystr(path): leaf.detach().clone() for path, leaf in tree_flatten_with_path(state)[0]}


def _filled(fresh: State, kept: dict[str, Tensor]) -> State:
    """A state of the structure of `fresh` with the tensors that were kept."""
    leaves, structure = tree_flatten_with_path(fresh)
    shapes = {keystr(path): list(leaf.shape) for path, leaf in leaves}
    found = {name: list(leaf.shape) for name, leaf in kept.items()}
    if shapes != found:
        raise ValueError(
            f"state_dict: it is of another rule or number of tasks: this rule's state is {shapes}, "
            f"and the dict has {found}"
        )
    return tree_unflatten([kept[keystr(path)].to(leaf.device) for path, leaf in leaves], structure)


def _described(tasks: Tasks) -> str:
    return ", ".join(map(repr, tasks)) if isinstance(tasks, dict) else f"{len(tasks)} tasks"
