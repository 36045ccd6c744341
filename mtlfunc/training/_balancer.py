"""The same rules, probes and engine on losses that exist already, in a stock training loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import random
from ..core.checks import (
    check_option,
    check_params,
    enable_grad,
    inside_transform,
)
from ..core.expect import expect_probe, expect_rule
from ..core.gone import gone
from ..core.hooks import Handles
from ..core.wrappers import refuse_inner_steps
from ..gradients.losses import Losses, parse_losses, parse_weighed
from ..gradients.run import Forward, live
from ..probes._jacobian import jacobian
from ..probes.common import checked_labels
from ..processes import (
    Group,
    Ranks,
    check_group,
    describe_params,
    refuse_join,
    union_of,
    unwrap,
    warn_without_group,
)
from ..types import Info, Params, Probe, Rule, Select, State, TaskGradients
from ._balance import Reduction, gradients_of, init_rule, reduce_carried, reduced, weigh
from ._given import (
    VERSION,
    Explained,
    Kept,
    check_weightings,
    chosen_probe,
    expect_read,
    filled_state,
    flat_state,
    is_all,
    is_whole,
    mixes,
    parse_state,
    tasks_in_words,
)
from ._live import Layout, LiveRun, accumulate, check_outside, foreign_parameters, reached_by
from ._metric import check_metric, metric_of

RECIPES = "docs/how-to/recipes.md"
WENT = {
    "features": f"see {RECIPES}#a-gramian-at-features",
    "scale": f"see {RECIPES}#losses-times-a-scalers-factor",
    "target": f"see {RECIPES}#a-target-loss",
}


class Balancer:
    """A rule for the losses of a stock loop: it adds to `.grad` instead of `loss.backward()`.

    The forward is the module's own, in train mode, under autocast, with hooks or checkpointing.
    The Gramian is made from what the losses' graph holds; what a checkpoint has taken out of it is
    differentiated row by row. So are all leaves, one task at a time, if a hook was registered, by
    anyone on any tensor, graph node or module, since the last `backward`, or if part of the graph
    was made before that. A tensor that retains its gradient may be left with that of all tasks in
    its `.grad`, a batched tensor.

    Over micro-batches gradients add up; each is balanced by its own Gramian, so that k small
    batches are one large one only for rules that do not read it. A compiled module's backward runs
    once per task, which needs `donated_buffer = False` in `torch._functorch.config`.

    Args:
        module: holds the parameters; frozen ones are left alone. Every trained parameter that the
            losses depend on must be in it.
        rule: turns geometry into weights, for instance `mtlfunc.cagrad(0.4)`.
        probe: any probe that does not call the model itself, for instance
            `mtlfunc.moving_average("trunk.*")`; or which parameters the tasks share, which is short
            for `mtlfunc.jacobian(shared)`, and None for `mtlfunc.losses_only()`.
        shared: as `probe`, by name. Options go with the probe: `mtlfunc.jacobian("trunk.*",
            heads="own")` gives each head its own loss instead of the mean one.
        reduction: `"mean"` or `"sum"` over the tasks, as in `mtlfunc.balance`.
        key: an integer or a 0-d integer tensor, for rules and probes that draw.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`; every rank gets
            the union's gradient. The module may be wrapped in DistributedDataParallel, whose own
            averaging then has nothing to do. None is this process alone, or what the probe says.
        metric: the optimizer that steps on the parameters: SGD, Adam, AdamW, NAdam, RMSprop or
            Adagrad of `torch.optim`, whose step is -(c + P·g) with a diagonal P. The Gramian is
            then J P Jᵀ, of rows, and `Info.rates` are J(c + P·g), by how much each loss falls in
            the next step to first order; momentum, weight decay and what waits in `.grad` are in
            c. P is that of the optimizer's state now: the learning rates alone before the first
            step, 0 in coordinates that have had no gradient. What happens to `.grad` after
            `backward`, such as clipping, is not seen. See `mtlfunc.safe`, and
            docs/how-to/metric.md for how far the real step is from it.

    Raises:
        TypeError: for a module or rule that is something else.
        ValueError: for options as in `mtlfunc.jacobian`, and for a rule that reads what a balancer
            does not measure; for a metric whose step is not known to be linear in the gradient
            (Muon, LBFGS, subclasses), or that lacks a parameter at a step.
        NotImplementedError: for a module of several processes (DDP) without `group`; FSDP
            and DataParallel.

    Examples:
        >>> import mtlfunc as mf
        >>> net = nn.Linear(2, 2, bias=False)
        >>> balancer = mf.Balancer(net, mf.mgda())
        >>> losses = (net(torch.eye(2)) - torch.eye(2)).square().sum(0)
        >>> info = balancer.backward(losses)
        >>> net.weight.grad.shape, info.gramian.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    @gone(
        **dict.fromkeys(
            ("measure", "heads", "param_groups", "engine", "chunk_size", "gramian_dtype"),
            f"give it to the probe: {RECIPES}#options-of-the-probe",
        )
    )
    def __init__(
        self,
        module: nn.Module,
        rule: Rule,
        probe: Probe | Select | None = "*",
        *,
        shared: Select | None = "*",
        reduction: Reduction = "mean",
        key: int | Tensor = 0,
        group: Group = None,
        metric: Optimizer | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module: expected a torch.nn.Module, got {type(module).__name__}; several go into "
                "one torch.nn.ModuleDict"
            )
        expect_rule(rule)
        check_option(reduction, "reduction", get_args(Reduction))
        if getattr(probe, "__module__", "").startswith(jacobian.__module__.rpartition(".")[0]):
            expect_probe(probe)  # a function that makes probes, and is none
        if not isinstance(probe, Probe) and not is_all(probe):
            if not is_all(shared):
                raise ValueError("probe: it says what is shared, and so does shared=; pass one")
            shared = probe
        self._probe = chosen_probe(probe, shared, check_group(group))
        self._one_pass = self._probe.measures == frozenset()  # as `loss.backward()` makes it
        self._given, self._module = module, unwrap(module, self._probe.group)
        if self._probe.group is None:
            warn_without_group()
        expect_read(rule, self._probe, shared, metric is not None)
        if metric is not None:
            check_metric(metric)
        self._metric = metric
        self._rule, self._key = rule, key
        self._reduction: Reduction = reduction
        self._kept = Kept()
        self._handles = Handles()  # hooks that came since the last losses
        self._layout = Layout(self._module)
        self._watched: bool | None = None  # whether its graph is of use to these; None is unknown
        leaves = self._leaves(again=True)
        refuse_inner_steps(leaves)
        union_of(self._probe.group, leaves)  # its backend takes them
        if self._probe.watches is not None:
            self._probe.watches(leaves, 1)  # its globs match

    def __repr__(self) -> str:
        kept = self._kept
        measured = "no step yet" if kept.states is None else f"{len(kept.tasks)} tasks"
        name = type(self._module).__name__
        return f"Balancer of {name}: {self._rule!r}, {self._probe!r}; {measured}"

    def __enter__(self) -> Any:
        raise TypeError(
            "leave out `with balancer:`, which went in 1.0: compute the losses as in any other "
            "loop, and call balancer.backward(losses)"
        )

    def __exit__(self, *_: Any) -> None: ...

    @gone(**WENT)
    def backward(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        weightings: Tensor | None = None,
        retain_graph: bool = False,
    ) -> Info:
        """Add to `.grad` of every parameter what `mtlfunc.balance` would return.

        Args:
            losses: a vector `[task]`, or a list, tuple or dict of scalars: means over samples.
            present: Bool[task], in the order of the first step's losses: the tasks that have labels
                in this batch; with `group=` how many labels, `[task]`. None is all, and equal
                batches.
            weightings: A `[task, sample]`, or `[task, sample, part]`: task k has the loss Σ A_kn
                ℓ_n of the `losses` ℓ `[sample]`, or `[sample, part]`. All tasks cost one backward
                pass (one a part).
                The samples may be others, and more or fewer, at every step. With `group=` the
                ranks' losses are summed, each with weights of its own samples. For
                `mtlfunc.jacobian` alone, and not with `present`.
            retain_graph: keep the graph for another pass. Else it is freed, as by
                `loss.backward()`; one with a checkpoint, with custom functions (compiled modules
                too) or where hooks may be stays until the losses are dropped.

        Returns:
            what was measured and the weights; `.tasks` has the losses by name, from a dict.

        Raises:
            ValueError: for losses without a graph, of other tasks than at the first step, or that
                are not finite; at the first step also for a task that depends on no shared
                parameter. After these, and after an error of the rule or about gradients that are
                not finite, `.grad`, the rule's state and the graph are as they were.
            RuntimeError: for a graph that is freed or older than the parameters, and where a
                backward of one's own calls `backward()`, which has added to `.grad`.
        """
        refuse_inner_steps(self._leaves())
        with enable_grad(), Explained():
            given = present, weightings
            run, measured, info, kept = self._answer("backward", losses, given, retain_graph)
            leaves = run.params
            with self._no_autocast(leaves), run.no_writes():
                grads = gradients_of(measured, info.weights, self._reduction)
            reached = run.union.names(run.reached, list(leaves))
            if run.present is not None and not bool(run.present.all()):
                # of a vector the graph does not say which entry reads a leaf: its gradient does
                reached = {name for name in reached if bool(grads[name].any())}
            # before `.grad` is written: a hook on it may move the parameters
            run.release()
            accumulate({k: x for k, x in leaves.items() if k in reached}, grads, fresh=run.fresh)
            self._kept = kept
        if not retain_graph:
            self._handles = Handles()
        return reduced(info, measured, self._reduction)

    @gone(**WENT)
    def weigh(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        weightings: Tensor | None = None,
    ) -> tuple[Tensor, Info]:
        """The weights of the losses, and the rule's next state; `.grad` is left alone.

        For what wants one loss: `scaler.scale((weights * torch.stack(losses)).sum()).backward()`.
        All parameters then get the weighted loss, the heads too.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            weightings: see there.

        Returns:
            weights `[task]`, in the order of these losses, or of the first batch's, and what was
            measured, in that of the first step's. With `present` or `weightings` in several
            processes weights have a factor for DistributedDataParallel's mean.
        """
        if mixes(self._probe):
            raise ValueError("weigh: mix= has weights for mixtures of the losses; use backward")
        given = present, weightings
        with enable_grad(), Explained():
            run, measured, info, kept = self._answer("weigh", losses, given)
        self._kept = kept
        info = reduced(info, measured, self._reduction)
        weights = info.weights.detach()
        if measured.part is not None and present is not None:
            # DDP's mean over the ranks of these is the union's weighted loss
            weights = weights * measured.part * run.union.size
        if weightings is not None:  # likewise, of a sum over the ranks
            weights = weights * run.union.size
        named = losses[0] if isinstance(losses, tuple | list) else losses
        if isinstance(named, Mapping) and list(named) != (names := list(info.tasks)):
            weights = weights[[names.index(name) for name in named]]
        return weights, info

    def measure(
        self,
        losses: Any,
        *,
        present: Tensor | None = None,
        weightings: Tensor | None = None,
    ) -> Info:
        """What `weigh` would measure and answer; nothing changes, the rule's state neither.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            weightings: see there.

        Returns:
            what `backward` would return.
        """
        given = present, weightings
        with enable_grad(), Explained():
            _, measured, info, _ = self._answer("measure", losses, given)
        return reduced(info, measured, self._reduction)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from.

        Returns:
            the rule's state, as pairs of a name and a tensor, and the names of the tasks, for
            `torch.save` and `torch.distributed.checkpoint`, which also takes the balancer itself.
        """
        tasks, states, loaded = self._kept
        flat = dict(loaded or {}) if states is None else flat_state(states)
        names = list(tasks) if isinstance(tasks, dict) else []
        started = states is not None or loaded is not None
        return {
            "version": VERSION,
            "started": started,
            "tasks": {"count": len(tasks), "names": names},
            # pairs, which a distributed checkpoint loads though a new balancer has none
            "state": tuple(flat.items()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, bit by bit.

        Args:
            state_dict: what `state_dict` of a balancer of the same rule, probe and tasks returned.

        Raises:
            ValueError: for anything else, with its key, and the balancer is as it was; for a state
                of another rule or of other tasks, here or at the next step.
        """
        started, tasks, flat = parse_state(state_dict)
        kept = self._kept
        if started and kept.states is not None:
            if tasks != kept.tasks:
                raise ValueError(
                    f"state_dict: it is of {tasks_in_words(tasks)}, and this balancer of "
                    f"{tasks_in_words(kept.tasks)}"
                )
            filled_state(kept.states, flat)
        # copies: an optimizer of the state's own tensors would change those in the dict
        loaded = {name: leaf.clone() for name, leaf in flat.items()}
        self._kept = Kept(tasks, None, loaded) if started else Kept()

    def __deepcopy__(self, memo: dict[int, Any]) -> Balancer:
        other = memo[id(self)] = object.__new__(type(self))
        other.__dict__.update(deepcopy(self.__dict__, memo))
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Balancer holds its rule's functions, which cannot be pickled: save its "
            "state_dict(), and load it into one that is made as this one was"
        )

    def _leaves(self, *, again: bool = False) -> Params:
        """The parameters that are differentiated; read `again` if a graph holds an unknown leaf."""
        if again or not self._layout.holds():
            self._layout, self._watched = Layout(self._module), None
            if self._layout.leaves:
                check_params(self._layout.leaves)
        return self._layout.leaves

    def _answer(
        self, call: str, losses: Any, given: tuple[Any, ...], keeps: bool = True
    ) -> tuple[LiveRun, TaskGradients, Info, Kept]:
        """The forward passes behind these losses, and what `_measured` says of them."""
        if inside_transform() or torch.compiler.is_compiling():
            raise RuntimeError(
                "a Balancer changes .grad, which transforms and compiled functions do not allow; "
                "there use mtlfunc.balance, which is pure"
            )
        union, kept = union_of(self._probe.group, self._layout.leaves), self._kept
        if union.several:
            refuse_join(self._given)
        found = self._run(losses, given, union, combines=call == "backward", keeps=keeps)
        with found.no_writes():
            measured, info, after = self._measured(found)
        if kept.states is None:  # whatever decides them: a rule may hold what no rank can compare
            union.check({"weights (the rule's answer)": info.weights})
        return found, measured, info, after

    def _facts(self, run: LiveRun) -> dict[str, Any]:
        """What processes must have in common before their first step, or the first after a load."""
        kept = self._kept
        tasks = kept.tasks or run.forwards[0].losses.tasks
        return {
            "the state of load_state_dict": kept.loaded,
            "whether metric= is given": self._metric is not None,
            "rule": self._rule,
            "reduction": self._reduction,
            "key": int(self._key),
            # the samples of weightings are a rank's own
            "the tasks": list(tasks) if run.weighted is None else len(run.weighted),
        } | describe_params(run.params)

    def _run(
        self, losses: Any, given: tuple[Any, ...], union: Ranks, *, combines: bool, keeps: bool
    ) -> LiveRun:
        """The forward passes behind these losses."""
        present, weightings = given
        known = self._kept.tasks
        if present is not None:
            present = checked_labels(present, counts=self._probe.group is not None)
        several = isinstance(losses, tuple | list) and bool(losses)
        several = several and weightings is None and all(map(is_whole, losses))
        parsed: list[Losses] = []
        if weightings is not None:
            check_weightings(self._probe, weightings, present, known)
            parsed.append(parse_weighed(losses, "losses"))
        # every batch's tasks are in the order of the first's
        for each in (losses if several else (losses,)) if weightings is None else ():
            tasks = known or (parsed[0].tasks if parsed else ())
            first = "the first step" if known else "the first batch"
            # a list, so that two losses are never read as losses and aux
            listed = list(each) if isinstance(each, tuple) else each
            parsed.append(parse_losses(listed, "losses", tasks=tasks, first=first))
        leaves = self._leaves()
        forwards = [live(each, leaves) for each in parsed]
        if any(foreign_parameters(x.graph, leaves) for x in forwards):
            leaves = self._leaves(again=True)
            forwards = [live(each, leaves) for each in parsed]
            check_outside(forwards, leaves)
        forwards = tuple([self._looked_at(x, leaves, weightings) for x in forwards])
        reached = set[str]().union(*(reached_by(x, present) for x in forwards))
        # a rank without labels takes part
        idle = union.several and present is not None and not bool(present.any())
        if not (reached or idle or any(x.graph.leaf_nodes for x in forwards)):
            raise ValueError(
                "losses: they depend on no parameter of the module: compute them from its output, "
                "with gradients enabled, and neither detach them nor call .item()"
            )
        hooked = any(x.hooked for x in forwards)
        batch = forwards if several else forwards[0]
        # what somebody's own backward or hook returns may be kept by them
        custom = any(x.graph.has_custom_backward for x in forwards)
        metric = None
        if self._metric is not None:
            metric = partial(metric_of, self._metric, leaves)
        return LiveRun(
            params=leaves, union=union, batch=batch, forwards=forwards, present=present,
            weighted=weightings, metric=metric, reached=reached, combines=combines,
            custom=custom, fresh=not (custom or hooked),
            releases=not (keeps or hooked),
        )  # fmt: skip

    def _looked_at(self, forward: Forward, leaves: Params, weightings: Tensor | None) -> Forward:
        """With whether hooks may sit on derivatives, and whether the graph is asked."""
        graph, handles = forward.graph, self._handles
        hooked = handles.hooked or graph.has_node_before(handles.since)
        hooked = hooked or any(x._backward_hooks for x in graph.variables.values())
        if hooked or (watches := self._probe.watches) is None:
            watched = False
        elif weightings is not None:
            watched = watches(leaves, len(weightings), weighted=True)
        else:
            watched = self._asks(leaves, len(forward.value))
        return replace(forward, hooked=hooked, watched=watched)

    def _asks(self, leaves: Params, tasks: int) -> bool:
        """Whether the graph is of use."""
        if self._watched is None:
            self._watched = self._probe.watches is not None and self._probe.watches(leaves, tasks)
        return self._watched

    def _measured(self, run: LiveRun) -> tuple[TaskGradients, Info, Kept]:
        """What the rule sees, its answer, and what is kept after it."""
        first = run.forwards[0]
        named = first.losses.tasks if run.weighted is None else ((),) * len(run.weighted)
        kept = self._kept
        tasks = kept.tasks or named
        with self._no_autocast(run.params):
            probe_state, rule_state = kept.states or self._started(run)
            measured, probe_after = self._probe.update(run, run.batch, probe_state)
            measured = reduce_carried(measured, self._reduction)
            info, rule_after = weigh(self._rule, measured, rule_state, tasks)
        return measured, info, Kept(tasks, (probe_after, rule_after))

    def _started(self, run: LiveRun) -> tuple[State, State]:
        """The states before the first losses, or those that were loaded."""
        run = replace(run, facts=partial(self._facts, run))
        root = random.key(self._key, run.forwards[0].value.device)
        first, probe_state = self._probe.init(run, run.batch, random.fold_in(root, 0))
        if (loaded := self._kept.loaded) is not None:
            # they start nothing: absent tasks' losses of 0 do not matter
            first = torch.ones_like(first)
        fresh = probe_state, init_rule(self._rule, first, random.fold_in(root, 1))
        return fresh if loaded is None else filled_state(fresh, loaded)

    def _no_autocast(self, leaves: Params) -> Any:
        """Products of gradients are not for half precision."""
        device = next(iter(leaves.values())).device.type
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
        return nullcontext()
