"""The same rules, probes and engine on losses that exist already, in a stock training loop."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..calls import call_of
from ..core import random
from ..core.checks import (
    check_gradients,
    check_losses,
    check_option,
    expect_measurement,
    init_probe,
    init_rule,
)
from ..core.expect import expect_measured, expect_rule, heads_of, reads_of
from ..core.hooks import Handles, refuse_inner_steps
from ..core.transforms import enable_grad, inside_transform
from ..core.tree import select
from ..gradients.backward import release
from ..gradients.losses import parse_existing
from ..probes.last_losses import observed
from ..processes import (
    ALONE,
    Group,
    check_group,
    describe_params,
    refuse_join,
    union_of,
    unwrap,
    warn_without_group,
)
from ..types import LAST_LOSSES, Heads, Info, Params, Probe, Rule, Select, State
from ._balance import Reduction, weigh
from ._given import (
    IN_TURN,
    VERSION,
    Explained,
    Memory,
    chosen_probe,
    cure_for,
    filled_state,
    flat_state,
    functions_of,
    no_autocast,
    parse_state,
    tasks_in_words,
)
from ._live import STEP, Labels, Live, ModuleLeaves, accumulate, live_step, reached_by
from ._metric import check_metric


class Answer(NamedTuple):
    """What a step found, of which nothing is kept yet."""

    live: Live  # the forward passes behind the losses
    info: Info
    part: Tensor | None  # as in `TaskGradients`
    gradient: Params  # if it is wanted
    kept: Memory


class Balancer:
    """A rule for the losses of a stock loop: it adds to `.grad` instead of `loss.backward()`.

    The forward is the module's own, in train mode, under autocast, with hooks or checkpointing.
    Over micro-batches gradients add up; each is balanced by its own Gramian, so that k small
    batches are one large one only for rules that do not read it.

    Args:
        module: holds every trained parameter that the losses depend on; frozen ones are left alone.
        rule: turns geometry into weights, for instance `mtlfunc.cagrad(0.4)`.
        probe: any probe that does not call the model itself, for instance
            `mtlfunc.moving_average("trunk.*")`; or which parameters the tasks share, which is short
            for `mtlfunc.jacobian(shared)`, and None for `mtlfunc.losses_only()`.
        shared: as `probe`, by name. Options go with the probe: `mtlfunc.jacobian("trunk.*",
            heads="own")`. `heads=` says what the parameters that are not shared get: the gradient
            of the mean loss (`"plain"`), of the sum, so that a head sees its own loss undiminished
            (`"own"`), or of the weighted loss (`"weighted"`); without it what the rule says
            (docs/methods/heads.md).
        reduction: `"mean"` or `"sum"` over the tasks, as in `mtlfunc.balance`.
        key: an integer or a 0-d integer tensor, for rules and probes that draw.
        group: the processes whose batches are one batch, as in `mtlfunc.jacobian`; every rank gets
            the union's gradient. The module may be wrapped in DistributedDataParallel, whose own
            averaging then has nothing to do. None is this process alone, or what the probe says.
        metric: the optimizer that steps on the parameters: SGD, Adam, AdamW or RMSprop of
            `torch.optim`, whose step is -(c + P·g) with a diagonal P. The Gramian is then J P Jᵀ,
            and `Info.rates` are J(c + P·g), by how much each loss falls in the next step to first
            order. See `mtlfunc.safe` and docs/how-to/metric.md.

    Raises:
        TypeError: for a module or rule that is something else.
        ValueError: for options as in `mtlfunc.jacobian`, and for a rule that reads what a balancer
            does not measure; for a metric whose step is not known to be linear in the gradient
            (Muon, LBFGS, subclasses), or that lacks a parameter at a step.
        NotImplementedError: for FSDP, DataParallel, and DistributedDataParallel without `group`.

    Examples:
        >>> import mtlfunc as mf
        >>> net = nn.Linear(2, 2, bias=False)
        >>> balancer = mf.Balancer(net, mf.mgda())
        >>> losses = (net(torch.eye(2)) - torch.eye(2)).square().sum(0)
        >>> info = balancer.backward(losses)
        >>> net.weight.grad.shape, info.gramian.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

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
        self._probe = chosen_probe(probe, shared, check_group(group))
        self._given, self._module = module, unwrap(module, self._probe.group)
        if self._probe.group is None:
            warn_without_group()
        self._stepped = self._probe
        if not (reads_of(rule) or frozenset()).isdisjoint(LAST_LOSSES):
            self._stepped = observed(self._probe)
        cure = cure_for(rule, self._stepped)
        expect_measured(rule, self._stepped, metric=metric is not None, cure=cure)
        if metric is not None:
            check_metric(metric)
        self._metric = metric
        self._rule, self._key = rule, key
        self._heads: Heads = heads_of(rule)
        self._reduction: Reduction = reduction
        self._kept = Memory()
        self._leaves = ModuleLeaves(self._module, self._probe)
        leaves = self._leaves.params
        refuse_inner_steps(leaves)
        union_of(self._probe.group, leaves)  # its backend takes them
        select(leaves, self._probe.shared)  # its globs match

    def __repr__(self) -> str:
        tasks, states, _ = self._kept
        measured = "no step yet" if states is None else f"{len(tasks)} tasks"
        probe = repr(self._probe) if call_of(self._probe) else "a probe of one's own"
        return f"Balancer of {type(self._module).__name__}: {self._rule!r}, {probe}; {measured}"

    def backward(
        self,
        losses: Any,
        *,
        present: Labels | None = None,
        weightings: Tensor | None = None,
        retain_graph: bool = False,
    ) -> Info:
        """Add to `.grad` of every parameter what `mtlfunc.balance` would return.

        Args:
            losses: a vector `[task]`, or a list, tuple or dict of scalars: means over samples; or
                of functions without arguments that return them. Each is called, differentiated and
                freed before the next, in the order of the first step's: one graph is alive at a
                time. An absent task's is not called.
            present: Bool[task], a tensor or a list in the order of the first step's losses, or a
                dict by name: the tasks that have labels in this batch; with `group=` how many
                labels. None is all, and equal batches.
            weightings: A `[task, sample]`, or `[task, sample, part]`: task k has the loss Σ A_kn
                ℓ_n of the `losses` ℓ `[sample]`, or `[sample, part]`. A is read as numbers. All
                tasks cost one backward pass (one a part).
                The samples may be others, and more or fewer, at every step. A row of zeros (with
                `group=` on every rank) is an absent task, as one that `present` says is absent.
                With `group=` the ranks' losses are summed, each with weights of its own samples.
                For `mtlfunc.jacobian` alone.
            retain_graph: keep the graph for another pass. Else it is freed, as by
                `loss.backward()`; without `weightings` one with a checkpoint, custom functions
                (compiled modules too) or where hooks may be stays until the losses are dropped.

        Returns:
            what was measured and the weights; `.tasks` has the losses by name, from a dict.

        Raises:
            ValueError: for losses without a graph (of a task that is present), of other tasks than
                at the first step, or that are not finite; at the first step also for a task that
                depends on no shared parameter, where the losses have graphs of their own. After
                these, and after an error of the rule or about gradients that are not finite,
                `.grad`, the rule's state and the graph are as they were (but with `weightings` the
                graph may be freed).
            RuntimeError: for a graph that is freed or older than the parameters, and where a
                backward of one's own calls `backward()`, which has added to `.grad`.
        """
        if retain_graph and functions_of(losses):
            raise ValueError(f"retain_graph: {IN_TURN}")
        with enable_grad(), Explained():
            found = self._answer(losses, present, weightings, combines=True, keeps=retain_graph)
            live, grads, run = found.live, found.gradient, found.live.run
            leaves, union, present = run.params, run.union, live.present
            reached = union.names(live.reached, list(leaves))
            if present is not None:
                # of a vector the graph does not say which entry reads a leaf: its gradient does
                theirs = (reached_by(x, present == 0) for x in live.forwards)
                unsure = union.names(set[str]().union(*theirs), list(leaves))
                reached = {x for x in reached if x not in unsure or bool(grads[x].any())}
            # before `.grad` is written: a hook on it may move the parameters
            release(live.forwards)
            accumulate({k: x for k, x in leaves.items() if k in reached}, grads, fresh=live.fresh)
            self._kept = found.kept
        if not retain_graph:
            self._leaves.handles = Handles()
        return found.info

    def weigh(
        self, losses: Any, *, present: Labels | None = None, weightings: Tensor | None = None
    ) -> tuple[Tensor, Info]:
        """The weights of the losses, and the rule's next state, for what wants one loss.

        `(weights * torch.stack(losses)).sum().backward()`: heads too get the weighted loss. Leave
        out absent tasks whose loss is NaN.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            weightings: see there.

        Returns:
            weights `[task]`, in the order of these losses, and what was measured, in that of the
            first step's. In several processes they have a factor for DDP's mean.
        """
        if self._probe.mixes:
            raise ValueError("weigh: mix= has weights for mixtures of the losses; use backward")
        if functions_of(losses):
            raise ValueError(f"weigh: {IN_TURN}, or use backward")
        with enable_grad(), Explained():
            found = self._answer(losses, present, weightings)
        self._kept, info, ranks = found.kept, found.info, found.live.run.union.size
        weights = info.weights.detach().clone()
        if present is not None and weightings is None and found.part is not None:
            weights = weights * found.part * ranks  # DDP's mean is the union's weighted loss
        elif weightings is not None:
            weights = weights * ranks  # DDP's mean is a sum
        named = losses[0] if isinstance(losses, tuple | list) else losses
        if isinstance(named, Mapping) and list(named) != (names := list(info.tasks)):
            weights = weights[[names.index(name) for name in named]]
        return weights, info

    def measure(
        self, losses: Any, *, present: Labels | None = None, weightings: Tensor | None = None
    ) -> Info:
        """What `weigh` would measure and answer; nothing changes, the rule's state neither.

        Args:
            losses: as in `backward`, which says what is raised.
            present: see there.
            weightings: see there.

        Returns:
            what `backward` would return.
        """
        with enable_grad(), Explained():
            return self._answer(losses, present, weightings).info

    def observe(self, losses: Any) -> None:
        """Take the last batch's losses after its step, for a rule that reads them (`mtlfunc.famo`).

        Args:
            losses: as in `backward`, of the same batch, evaluated again after `optimizer.step()`;
                no graph is needed (of weightings A @ losses). With `group=` every rank calls it.
                Other rules do without.

        Raises:
            ValueError: before the first step, again after the same one, and for losses of other
                tasks, or NaN of one present.
        """
        tasks, states, loaded = self._kept
        if states is None and loaded is None:
            raise ValueError("observe: there was no step yet; call it after optimizer.step()")
        now = parse_existing(losses, tasks, STEP).vector.detach().clone()
        due = torch.zeros((), dtype=torch.bool)
        if self._stepped is self._probe:
            return
        known = loaded or {} if states is None else flat_state(states)
        if not bool(known.get("[0].due", True)):
            raise ValueError("observe: there was no step since the last call; call it once a step")
        now = now.to(known.get("[0].now", now).dtype)
        whole = torch.ones_like(now)  # of their sum over the processes, every one keeps the same
        union = union_of(self._probe.group, self._leaves.params)
        now = union.total(now, known.get("[0].share", whole))
        check_losses(now.where(known.get("[0].present", due).to(now.device), 0.0), tasks)
        seen = {"now": now, "due": due, "share": whole}
        loaded = loaded and loaded | {f"[0].{name}": x for name, x in seen.items()}
        self._kept = Memory(tasks, states and (states[0]._replace(**seen), states[1]), loaded)

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
        self._kept = Memory(tasks, None, loaded) if started else Memory()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Balancer":
        other = memo[id(self)] = object.__new__(type(self))
        memo[id(self._probe.group)] = self._probe.group  # which cannot be copied
        other.__dict__.update(deepcopy(self.__dict__, memo))
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Balancer holds its rule's functions, which cannot be pickled: save its "
            "state_dict(), and load it into one that is made as this one was"
        )

    def _answer(
        self,
        losses: Any,
        present: Labels | None,
        weightings: Tensor | None,
        *,
        combines: bool = False,
        keeps: bool = True,
    ) -> Answer:
        if inside_transform() or torch.compiler.is_compiling():
            raise RuntimeError(
                "a Balancer changes .grad, which transforms and compiled functions do not allow; "
                "there use mtlfunc.balance, which is pure"
            )
        kept, group = self._kept, self._probe.group
        union = ALONE if group is None else union_of(group, self._leaves.params)
        if union.size > 1:
            refuse_join(self._given)
        live = live_step(
            self._leaves, losses, present, weightings, kept.tasks, union, combines=combines,
            keeps=keeps, optimizer=self._metric, heads=self._heads,
        )  # fmt: skip
        leaves = live.run.params
        if combines:
            refuse_inner_steps(leaves)
        with live.no_writes(), no_autocast(leaves):
            probe_state, rule_state = kept.states or self._started(live)
            answer = self._stepped.update(live.run, live.batch, probe_state)
            measured, probe_after = expect_measurement(answer)
            info, rule_after, gradient = weigh(
                self._rule, measured, rule_state, live.tasks, self._reduction
            )
            if kept.states is None:
                # whatever decides them: a rule may hold what no rank can compare
                union.check({"weights (the rule's answer)": info.weights})
            grads = check_gradients(gradient(), leaves) if combines else {}
        kept = Memory(live.tasks, (probe_after, rule_after))
        return Answer(live, info, measured.part, grads, kept)

    def _started(self, live: Live) -> tuple[State, State]:
        """The states before the first losses, or those that were loaded."""
        loaded = self._kept.loaded

        def facts() -> dict[str, Any]:
            return {
                "the state of load_state_dict": loaded,
                "whether metric= is given": self._metric is not None,
                "rule": self._rule,
                "reduction": self._reduction,
                "key": int(self._key),
                # the samples of weightings are a rank's own
                "the tasks": list(tasks) if alike else len(tasks),
            } | describe_params(leaves)

        # no name of a graph in `facts`, which would hold it
        run, tasks, leaves = live.run, live.tasks, live.run.params
        alike = run.weightings(None, live.batch) is None
        asked = replace(run, facts=facts)
        root = random.key(self._key, live.forwards[0].value.device)
        first, probe_state = init_probe(self._stepped, asked, live.batch, random.fold_in(root, 0))
        if loaded is not None:
            # they start nothing: absent tasks' losses of 0 do not matter
            first = torch.ones_like(first)
        fresh = probe_state, init_rule(self._rule, first, random.fold_in(root, 1))
        return fresh if loaded is None else filled_state(fresh, loaded)
