"""What several probes share: the run of a step, their options, the first pass, absent tasks."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor, nn

from ..core import random
from ..core.checks import (
    check_count,
    check_finite,
    check_losses,
    check_option,
    check_params,
    user_level,
)
from ..core.expect import expect_function
from ..core.transforms import all_present, inside_transform, is_readable, values_readable
from ..core.tree import few_names, gramians, memory_dtype, real_of, select
from ..gradients.levels import without_trace
from ..gradients.losses import Losses, Tasks, expect_weightings, flat_weightings, parse_losses
from ..gradients.operator import Engine, Measurement, TaskJacobian
from ..gradients.run import Forward, TracedForward, check_connected, run
from ..processes import ALONE, Group, Ranks, Shares, check_group, mask_of
from ..types import Batch, Geometry, Heads, LossesFn, Metric, Params, Rows, Select, TaskGradients

Present = Callable[[Batch], Tensor]
"""From a batch to Bool[task], which tasks have labels in it; with `group=` also how many."""

Weightings = Callable[[Batch], Tensor]
"""From a batch to A [task, sample], or [task, sample, part]: the tasks' losses are A ℓ."""

Mix = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From a key and the number of tasks to (C [row, task], preference [row])."""

Labels = Tensor | Sequence[Any] | Mapping[Any, Any]
"""Which tasks have labels: a tensor, a list, or a dict by name."""


def no_model(params: Params, batch: Batch) -> Losses:
    raise RuntimeError(
        "run.losses: a Balancer has losses that exist already; use mtlfunc.balance, and say "
        "calls_model=True in the Probe, which a Balancer then refuses"
    )


class Labelling(NamedTuple):
    """What came with the losses of a step, so that its probe decides neither."""

    present: Tensor | None
    weightings: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One step at one point: `run(batch)` is J there. `Run.of` makes that of a pure function."""

    forward: Callable[[Batch], Forward]
    params: Params  # where to differentiate
    losses: Callable[[Params, Batch], Losses]  # alone, at other params too
    union: Ranks = ALONE  # of the processes that step together
    # what the processes must have in common at the first step, by name
    facts: Callable[[], dict[str, Any]] = field(default_factory=lambda: dict)
    given: Labelling | None = None  # of losses that exist
    combines: bool = True  # whether the answer's `combine` will be called
    # from names of measured leaves to P and c over them, for a Gramian J P Jᵀ and extra["carried"]
    # = J c; None is the identity
    metric: Callable[[tuple[str, ...]], Metric] | None = None
    heads: Heads = "plain"  # what the rule gives to parameters that are not shared

    @classmethod
    def of(
        cls, losses_fn: LossesFn, params: Params, parse: Callable[[Any], Losses] = parse_losses,
        **fields: Any,
    ) -> "Run":  # fmt: skip
        """The forward passes of a pure function.

        Args:
            losses_fn: `(params, batch) -> losses`.
            params: where to differentiate.
            parse: from what `losses_fn` returned to losses.
            fields: others of a `Run`.

        Examples:
            >>> import mtlfunc as mf
            >>> run = mf.Run.of(lambda params, batch: batch * params["x"], {"x": torch.ones(())})
            >>> run(torch.tensor([2.0, 3.0])).losses.tolist()
            [2.0, 3.0]
        """

        def losses(params: Params, batch: Batch) -> Losses:
            return parse(losses_fn(params, batch))

        def forward(batch: Batch) -> Forward:
            return run(losses_fn, params, batch, parse=parse)

        return cls(forward, params, losses, **fields)

    def __call__(
        self, batch: Batch, counts: Tensor | None = None, weightings: Tensor | None = None
    ) -> TaskJacobian:
        """J over all parameters, summed over the processes.

        Args:
            batch: as `losses_fn` takes it.
            counts: this process's labels `[task]`, as `labels` has them; None is all, and as many
                on every process. A Balancer's own come before these.
            weightings: of this process's samples, as `weightings` has them, instead of counts.

        Raises:
            ValueError: for another number of tasks, and where a task with labels has no graph.
        """
        forward, params = self.forward(batch), self.params
        present, own = self.given or (None, None)
        counts = counts if present is None else present
        weightings = weightings if own is None else own
        if weightings is not None:
            jacobian = TaskJacobian(forward, tuple(params), params).weighted(weightings)
            return replace(jacobian, shares=self.union.sums(weightings))
        counts = None if counts is None else expect_labels(counts, counts=True)
        shares = self.union.shares(counts)
        jacobian = TaskJacobian(forward, tuple(params), params, shares=shares)
        if counts is not None or self.union.size > 1:
            scale = shares.scale(forward.value)
            passes = joint_passes(forward, shares) if self.union.size > 1 else None
            jacobian = replace(jacobian, scale=scale, left_out=shares.left_out(passes))
        refuse_constant(forward, shares.here)
        return jacobian

    def started(self, losses: Tensor, counts: Tensor | None = None, **facts: Any) -> Tensor:
        """The union's losses before the first step, of processes that agree on what they will do.

        Args:
            losses: this process's, `[task]`.
            counts: its labels, or numbers of them; a Balancer's own come before these.
            facts: what the probe must have in common with those of other processes.

        Raises:
            ValueError: on every process, which says what differs where.
        """
        present, _ = self.given or (None, None)
        counts = counts if present is None else present
        if self.union.size > 1:
            given = {
                "the number of tasks": len(losses),
                "whether present= is given": counts is not None,
                "entries of present=": None if counts is None else len(counts),
            }
            self.union.check(given | self.facts() | facts)
        here = mask_of(counts, len(losses))
        losses = losses if here is None else losses.where(here, 0.0)
        losses = self.union.total(losses, self.union.shares(counts).share)
        check_losses(losses, ())  # of the union, so that no rank steps on alone
        return losses

    def first(self, batch: Batch) -> Forward:
        """One forward pass that is not a step: what it changes in place is restored."""
        with without_trace(self.params):
            return self.forward(batch)

    def labels(self, present: Present | None, batch: Batch) -> Tensor | None:
        """Which tasks have labels in this batch, or in a group how many; None is all of them."""
        if self.given is not None:
            return self.given.present if present is None else _refuse("present")
        if present is None:
            return None
        counts, source = self.union.group is not None, "a function from the batch to "
        return expect_labels(present(batch), counts=counts, source=source)

    def weightings(self, weightings: Weightings | None, batch: Batch) -> Tensor | None:
        """A, where the tasks are weightings of samples; None where they are the losses."""
        if self.given is not None:
            return self.given.weightings if weightings is None else _refuse("weightings")
        return None if weightings is None else expect_weightings(weightings(batch))


def _refuse(name: str) -> NoReturn:
    raise ValueError(
        f"{name}: a Balancer is given each step's by backward(losses, {name}=); leave it out of "
        "the probe"
    )


def of_labelled(weightings: Tensor, labels: Tensor | None) -> Tensor:
    """Weightings whose rows are 0 for tasks without `labels` [task]; None is all."""
    here = mask_of(labels, len(weightings))
    if here is None:
        return weightings
    return weightings.where(here.reshape(-1, *[1] * (weightings.ndim - 1)), 0.0)


def expect_labels(mask: Any, *, counts: bool, source: str = "") -> Tensor:
    """Labels by task, if they are a boolean tensor, or with `counts` numbers."""
    tensor = isinstance(mask, Tensor)
    if not tensor or mask.ndim != 1 or not (mask.dtype == torch.bool or counts):
        found = f"{mask.dtype} of shape {list(mask.shape)}" if tensor else type(mask).__name__
        raise TypeError(
            f"present: expected {source}a boolean tensor [task], got {found}"
            + ("; numbers of labels are for group=" if tensor and not counts else "")
        )
    return mask


def labels_of(present: Labels, tasks: Tasks, device: torch.device, counts: bool) -> Tensor:
    """Labels `[task]` in the order of the tasks, from a tensor, a list, or a dict by name."""
    if isinstance(present, Mapping):
        names = list(tasks) if isinstance(tasks, dict) else []
        if set(present) != set(names):
            raise ValueError(
                f"present: expected an entry for each of {names}, the tasks' names, got "
                f"{list(present)}; losses without names take a list, in their order"
            )
        present = [present[name] for name in names]
    if isinstance(present, list | tuple):
        try:
            present = torch.tensor(present, device=device)
        except (TypeError, ValueError, RuntimeError):
            cure = "give one bool a task, or with group= the number of its labels"
            raise TypeError(f"present: got {present!r}; {cure}") from None
    return expect_labels(present, counts=counts)


EXPECTED = (
    "losses: expected one batch's, a vector [task], or a tuple, list or dict of scalars, those of "
    "samples reduced to one number each, for instance with .mean(); with mtlfunc.double_sampling a "
    "tuple of two or three of these"
)


class Options(NamedTuple):
    """What most probes are given, and the parts of a step that follow from it alone."""

    shared: Select = "*"
    heads: Heads | None = None
    present: Present | None = None
    weightings: Weightings | None = None
    mix: Mix | None = None
    engine: Engine = "auto"
    chunk_size: int | None = None

    def start(
        self, run: Run, batch: Batch, *, key: Tensor | None = None, several: bool = True,
        **facts: Any,
    ) -> Tensor:  # fmt: skip
        """The union's losses `[row]` before the first step. An error where these options do not fit
        it, or where processes differ in them or in other `facts`. `several`: as in `first_losses`;
        `key`: as in `measure`.
        """
        check_params(run.params, mixed=run.union.group is None)
        names, (counts, weights) = select(run.params, self.shared), self._labels(run, batch)
        if weights is None:
            losses = first_losses(run, batch, names, several=several, counts=counts)
        else:
            forward = run.first(batch)
            check_connected(forward)
            matrix = flat_weightings(weights, forward.losses, forward.value)
            check_finite(forward.value, "losses")
            # of this process's samples: 1/R of each rank's, as many as there are, is their sum
            losses = run.union.size * (matrix @ forward.value)
        losses = run.started(
            losses, counts, shared=names, heads=self.heads, present=self.present,
            weightings=self.weightings, mix=self.mix, **facts,
        )  # fmt: skip
        if self.mix is None or key is None:
            return losses
        return mixture(self.mix, random.fold_in(key, 0), len(losses))[0].to(losses) @ losses

    def measure(
        self, run: Run, batch: Batch, *, gramian: bool = False, rows: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Measurement, Metric | None]:  # fmt: skip
        """What is wanted of J over the shared parameters, and the optimizer's metric. The gradient
        of the heads comes along where `combine` will be called. A `key` draws the mixtures.
        """
        names, labels = select(run.params, self.shared), self._labels(run, batch)
        metric = None if run.metric is None else run.metric(names)
        if metric is not None:
            expect_rows(self.engine, "a metric weighs their coordinates")
            if not run.combines:
                # DistributedDataParallel takes the mean of what waits in .grad under no_sync, too
                carried = run.union.gradient(dict(metric.carried)).items()
                metric = Metric(metric.scale, {name: c / run.union.size for name, c in carried})
        jacobian = replace(
            run(batch, *labels), columns=names, metric=metric, engine=self.engine,
            chunk_size=self.chunk_size,
        )  # fmt: skip
        if self.mix is not None and key is not None:
            refuse_absent(labels[0])
            jacobian = jacobian.mixed(*mixture(self.mix, key, len(jacobian)))
        heads = (self.heads or run.heads) if run.combines else None
        found = jacobian.measure(gramian=gramian, rows=rows, combine=run.combines, heads=heads)
        return found, metric

    def zeros(self, run: Run, tasks: int) -> Rows:
        """Rows of zeros, for a memory of rows."""
        real = real_of({name: run.params[name] for name in select(run.params, self.shared)})
        return {k: x.new_zeros(tasks, *x.shape, dtype=memory_dtype(x)) for k, x in real.items()}

    def _labels(self, run: Run, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Labels by task; or weightings, whose rows say which tasks have any."""
        counts = run.labels(self.present, batch)
        weights = run.weightings(self.weightings, batch)
        return (counts, None) if weights is None else (None, of_labelled(weights, counts))


def check_options(shared: Select = "*", *, group: Group = None, **others: Any) -> Options:
    """Options of a probe. `shared` is for every step: an iterator is used up by the first, and a
    probe does not call a module.
    """
    if isinstance(shared, nn.Module):
        shared = (shared,)
    elif isinstance(shared, Iterable) and not isinstance(shared, str | Tensor | tuple):
        shared = tuple(shared)
    options = Options(shared, **others)
    check_option(options.heads, "heads", (None, *get_args(Heads)))
    check_option(options.engine, "engine", get_args(Engine))
    check_count(options.chunk_size, "chunk_size", none=True)
    takes = {"present": "batch", "weightings": "batch", "mix": "key, count"}
    for name, arguments in takes.items():
        if (function := getattr(options, name)) is not None:
            expect_function(function, name, arguments)
    if options.mix is not None:
        refuse_absent(options.present)
        if options.weightings is not None:
            raise ValueError(
                "mix: weightings= say what the rows are; multiply the mixture into them, C @ A"
            )
    if check_group(group) is not None:
        expect_rows(options.engine, "products of two processes' gradients (group=) need them")
    return options


def expect_rows(engine: Engine, use: str) -> None:
    """Raise where an engine makes no rows, naming the `use` that something has for them."""
    if engine == "layerwise":
        raise ValueError(
            f'engine="layerwise" makes no rows, and {use}; use engine="rows" or "auto"'
        )


def refuse_absent(present: object) -> None:
    """Raise if tasks may be absent, where rows are mixtures of them."""
    if present is not None:
        raise ValueError(
            "present: a row of mix= is a mixture that may hold absent tasks; use one of the two"
        )


def mixture(mix: Mix, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What `mix` answers, if it is a matrix `[row, task]` and a preference `[row]`."""
    matrix, preference = mix(key, count)
    if matrix.ndim != 2 or matrix.shape[1] != count or preference.shape != matrix.shape[:1]:
        raise ValueError(
            f"mix: expected C [row, {count}] and a preference [row], got {list(matrix.shape)} and "
            f"{list(preference.shape)}"
        )
    return matrix, preference


def check_memory(fits: bool) -> None:
    """Raise unless a probe's state fits that probe."""
    if not fits:
        raise ValueError(
            "state: its probe's part is not what this step's probe started with; it comes from a "
            "step with another probe, number of tasks or other parameters (as after a layer was "
            "frozen or unfrozen): use init of this step, or a new Balancer"
        )


def answer(
    found: Measurement, metric: Metric | None = None, extra: dict[str, Tensor] | None = None
) -> TaskGradients:
    """What a rule sees of a measurement, and the way back from its weights to a gradient. Where no
    Gramian was measured, it is that of the rows in a `metric`; `extra` is what else is known.
    """
    gramian, carried = found.gramian, found.carried
    if gramian is None:
        gramian, carried = gramians(found.rows, found.rows, metric)
    check_leak(found, gramian, *found.heads.values())
    extra = (extra or {}) | ({} if carried is None else {"carried": carried})
    geometry = Geometry(found.mixed, gramian, found.preference, found.present, extra)
    return TaskGradients(found.losses, geometry, found.combine, found.aux, found.part)


def check_leak(found: Measurement, *gradients: Tensor) -> None:
    """Raise where an absent task's loss is not finite and spoils these gradients, if that shows."""
    present, losses = found.labels, found.losses
    if present is None or all_present(present) or present.shape != losses.shape:
        return
    if not (is_readable(present) and values_readable(losses, gradients)):
        return
    absent = (~present & ~losses.isfinite()).nonzero().flatten().tolist()
    if absent and not all(bool(x.isfinite().all()) for x in gradients):
        raise ValueError(
            f"present: tasks {absent} are absent and their losses are not finite, like a mean over "
            "nothing, and 0 times their derivative is NaN in the gradients of the others; pick the "
            "labels with torch.where before the sum, or divide by count.clamp_min(1), or return "
            "separate losses (a tuple or dict), of which the absent ones are left out"
        )


def joint_passes(forward: Forward, shares: Shares) -> Tensor | None:
    """Bool[task], passes that this rank runs for others' labels, as a backward in them may talk to
    those (`Graph.talks`); None for none. Raises an error where it does and this rank cannot.
    """
    talks, edges = forward.graph.talks, forward.edges
    if talks is False or shares.here is None or shares.present is None:
        return None
    able = forward.value.isfinite().to(shares.here.device)
    able &= able.new_tensor([edges is None or edges[t] is not None for t in range(len(able))])
    asked = shares.present & ~shares.here
    if talks and bool((asked & ~able).any()):
        raise ValueError(
            "present: another rank has labels of a task, whose backward pass talks to this one (as "
            "of SyncBatchNorm), and its loss here is not finite or has no graph; compute it from "
            "the network and divide by count.clamp_min(1)"
        )
    return asked & able


def refuse_constant(forward: Forward | TracedForward, here: Tensor | None) -> None:
    """Raise where the loss of a task that is `here` [task] has no graph, as far as that shows: its
    row of zeros would be that of a solved task.
    """
    edges = () if isinstance(forward, TracedForward) else forward.edges or ()
    if None not in edges or (here is not None and inside_transform() and not is_readable(here)):
        return
    found = [t for t, x in enumerate(edges) if x is None and (here is None or bool(here[t]))]
    if found:
        names = forward.losses.names or range(len(edges))
        raise ValueError(
            f"losses: no graph for task {', '.join(repr(names[t]) for t in found)}, as after "
            ".detach() or torch.tensor(0.), which would count as solved; compute its loss from the "
            "parameters, and say with present= which tasks have no labels in this batch"
        )


def first_losses(
    run: Run, batch: Batch, shared: tuple[str, ...], *, several: bool = False,
    counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Losses `[task]` of one forward pass that leaves no trace, 0 for absent tasks.

    Where values can be read, also an error about a task that does not depend on `shared`, and, if
    `several` tasks should, a warning about a leaf there that one task alone depends on.
    """
    forward = run.first(batch)
    if not (run.union.size > 1 and counts is not None and not bool(counts.any())):
        check_connected(forward)  # a rank without labels takes part
    here = mask_of(counts, len(forward.value))
    losses = forward.value if here is None else forward.value.where(here, 0.0)
    refuse_constant(forward, here)
    if run.union.size == 1:
        check_losses(losses, forward.losses.names)
    if not values_readable(batch, run.params, losses):
        return losses
    reached = _leaves_of_each(forward)
    if reached is None:
        silent = _unreached(run, batch, shared)
    else:
        silent = [task for task, names in enumerate(reached) if not names & set(shared)]
    if here is not None:
        silent = [task for task in silent if bool(here[task])]
    if silent:
        raise ValueError(
            f"shared: the losses of tasks {silent} (counted from 0) depend on none of the shared "
            f"parameters {few_names(shared)}; leave these tasks out, or widen the glob to the "
            "parameters that they use"
        )
    # an absent task's loss may read nothing, whatever it reads in other batches
    if several and reached is not None and len(reached) > 1 and (here is None or bool(here.all())):
        private = [name for name in shared if sum(name in names for names in reached) == 1]
        # a bias alone is not a head's, as the last of a network in a loss of its derivatives
        if any(run.params[name].ndim > 1 for name in private):
            warnings.warn(
                f"shared: only one task depends on {few_names(private)}, which then counts in that "
                "task's gradient length alone; if these are heads, pass a glob for the trunk, such "
                "as shared='trunk.*'",
                stacklevel=user_level(),
            )
    return losses


def _unreached(run: Run, batch: Batch, shared: tuple[str, ...]) -> list[int]:
    """Tasks whose loss stays finite when the shared parameters are NaN, and has no gradient."""
    if run.given is not None or run.union.size > 1:  # they cannot be called, or talk to each other
        return []
    broken = {
        name: torch.full_like(leaf, float("nan")) if name in shared else leaf
        for name, leaf in run.params.items()
    }
    try:
        with torch.no_grad(), without_trace(broken):
            losses = run.losses(broken, batch).vector
    except Exception:  # a model may refuse NaN: then there is nothing to be learnt this way
        return []
    suspects = losses.isfinite().nonzero().flatten().tolist()
    if not suspects:
        return []
    rows = TaskJacobian(run.first(batch), shared, run.params).rows()
    return [t for t in suspects if not any(bool(leaf[t].any()) for leaf in rows.values())]


def _leaves_of_each(forward: Forward) -> list[set[str]] | None:
    """Names of the leaves behind each loss, by the autograd graph; None for an opaque vector."""
    if forward.edges is None:
        return [set() for _ in forward.value] if forward.root is None else None
    served = {name: forward.graph.serves_leaf(name) for name in forward.params}
    count = len(forward.edges)
    return [{name for name, bits in served.items() if bits >> t & 1} for t in range(count)]
