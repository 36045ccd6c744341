"""The Jacobian of the tasks' losses as a linear map: G = A·J P Jᵀ·Aᵀ, one method a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.checks import (
    check_autocast,
    check_count,
    check_dtype,
    check_option,
    check_params,
    check_tensor,
)
from ..core.transforms import all_rows_mask, depth, enable_grad, is_differentiated, is_readable
from ..core.tree import combine, dot, gramians, like, real_of, same_shapes, select, trained
from ..processes import WHOLE, Shares, union_of
from ..types import Batch, Heads, Metric, Params, Rows, Select
from .backward import Backward, ByPullback, ByTasks, wide_of
from .by_samples import BySamples, split
from .explain import Explanation, explanation
from .layerwise.plan import Engine, Wanted, plan_tasks, plan_weightings
from .losses import (
    expect_weightings,
    flat_weightings,
    parse_alone,
    parse_existing,
    parse_weightings,
)
from .run import NO_GRAPH, Forward, TracedForward, check_connected, live, run


class Measurement(NamedTuple):
    """What was measured in the same passes; complex leaves are two real numbers, in a last axis."""

    losses: Float[Tensor, " task"]  # as they came
    mixed: Float[Tensor, " row"]  # what the rows are gradients of
    preference: Float[Tensor, " row"]  # how the rows mix into the mean gradient
    labels: Bool[Tensor, " row"] | None  # rows of tasks that have labels; None is all
    rows: Rows  # {name: [row, *shape]}: all, if they were asked for; else those that were made
    gramian: Float[Tensor, "row row"] | None  # if it was asked for
    heads: Params  # the gradient of the other leaves, where `heads` weighs them
    names: tuple[str, ...]  # the leaves that `combine` answers for
    # weights [row] and names -> the gradient of their weighted sum in these leaves, in one pass
    pullback: Callable[[Tensor, tuple[str, ...]], Params]
    aux: Any = ()
    # from combinations of the rows to the leaves' shapes: the rows may be pieces of them
    restore: Callable[[Params], Params] = dict
    carried: Tensor | None = None  # J c of a metric, over the columns
    part: Tensor | None = None  # [task], this process's of each loss; None is all of it

    @property
    def present(self) -> Bool[Tensor, " row"]:
        return all_rows_mask(self.mixed) if self.labels is None else self.labels

    def combine(self, weights: Float[Tensor, " row"]) -> Params:
        """Jᵀ w from the rows, and from one more pass for leaves without rows. What `heads` gave is
        the same tensors in every answer.
        """
        grads = self.restore(combine(weights, self.rows)) | self.heads
        left = tuple([name for name in self.names if name not in grads])
        grads |= self.pullback(weights, left) if left else {}
        return {name: grads[name] for name in self.names}


@dataclass(frozen=True, eq=False, repr=False)
class TaskJacobian:
    """J [row, parameter] at one point; made by `mtlfunc.task_jacobian`.

    Nothing is differentiated before a method asks. What is asked for in one call of `measure` comes
    of the same backward passes, which stop at the columns.
    """

    forward: Forward | TracedForward
    columns: tuple[str, ...]  # names of the leaves that J is taken over
    leaves: Params  # these and all others, complex where they are
    engine: Engine = "rows"
    chunk_size: int | None = None  # rows in one batched pass; None is all, 1 a plain loop
    mix: Float[Tensor, "row task"] | None = None  # A; None is the tasks themselves
    preference: Float[Tensor, " row"] | None = None  # how rows mix; None is 1/rows each
    # a process's part of each task's loss, 0 for a task without labels; None is 1
    scale: Float[Tensor, " task"] | None = None
    left_out: frozenset[int] = frozenset()  # tasks without labels: no pass enters a separate loss
    # how many tasks are weightings of samples, which `mix` then has, flattened; 0 is none
    weightings: int = 0
    chosen: tuple[Any, ...] | None = None  # the names of chosen rows, but of mixtures
    metric: Metric | None = None  # P and c over the columns; None is the identity and 0
    shares: Shares = WHOLE  # the processes that J is summed over, and who has which labels

    __array_ufunc__ = None  # an array @ J is refused here rather than by numpy

    @property
    def losses(self) -> Float[Tensor, " row"]:
        """The losses whose gradients are this process's rows: L times `scale`, or mixtures C L."""
        value, scale = self.forward.value, self.scale
        value = value if scale is None else value.where(scale != 0, 0.0) * scale
        return value if self.mix is None else self.mix @ value

    @property
    def names(self) -> tuple[Any, ...]:
        """The tasks' names, from a dict of losses; else their numbers."""
        given = self.forward.losses.names if self.mix is None else self.chosen
        return given or tuple(range(len(self)))

    def __len__(self) -> int:
        return len(self.forward.value if self.mix is None else self.mix)

    def __repr__(self) -> str:
        columns = sum(self.leaves[name].numel() for name in self.columns)
        return f"TaskJacobian [{len(self)} rows, {columns} parameters]"

    def measure(
        self, *, gramian: bool = False, rows: bool = False, combine: bool = True,
        heads: Heads | None = None, dtype: torch.dtype | None = None,
    ) -> Measurement:  # fmt: skip
        """Gramian, rows and combination from the same passes; sums over the processes of `summed`.

        Args:
            gramian: J P Jᵀ is wanted.
            rows: all rows are wanted; else they are made where that is cheapest.
            combine: `combine` of the answer will be called.
            heads: what the other leaves get, as in `mtlfunc.jacobian`; None leaves them out.
            dtype: of the Gramian's accumulation; None is the rows' own, at least float32.

        Returns:
            losses, what was asked for, and `combine(weights)`, which is Jᵀ w.

        Raises:
            RuntimeError: under autocast, which would round the products.
        """
        check_autocast(self.leaves, "methods of a TaskJacobian")
        check_dtype(dtype, "gramian_dtype", none=True)
        absent = 0 if self.shares.present is not None else len(self.left_out)  # see `shares.plain`
        mean = 1 / (self.weightings or max(len(self.forward.value) - absent, 1))
        # every task's in the gradient of heads; None where the rule's weight counts
        weights = {None: None, "plain": mean, "own": 1.0, "weighted": None}
        check_option(heads, "heads", [*weights])
        weight, names = weights[heads], self.columns if heads is None else tuple(self.leaves)
        asked, several = self.columns if gramian or rows else (), self.shares.union.size > 1
        # a Gramian of sums, and one under a metric, are of finished rows
        made = rows or self.metric is not None or several
        # of these the combination is, so that no pass follows
        combine = combine and not (made if self.weightings else rows or several)
        found = self._found(Wanted(asked, gramian and not made, combine, dtype), weight, names)
        if several:
            found = self.shares.summed(found, whole=rows, metric=self.metric, dtype=dtype)
        if gramian and found.gramian is None:
            product, carried = gramians(found.rows, found.rows, self.metric, dtype)
            found = found._replace(gramian=0.5 * (product + product.mT), carried=carried)
        if heads == "plain" and self.shares.present is not None:
            found = found._replace(heads=self.shares.plain(found.heads))
        return found

    def gramian(
        self, *, metric: Metric | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "row row"]:
        """G = J Jᵀ by the cheapest way, or J P Jᵀ.

        Args:
            metric: `mtlfunc.types.Metric(P, {})` with the diagonal P `{name: [*shape]}`, `[*shape,
                2]` for complex leaves; rows are made then.
            dtype: as in `measure`.
        """
        whole = isinstance(metric, Metric) and same_shapes(metric.scale, real_of(self._leaves()))
        if not (whole or metric is None):
            raise TypeError(
                "metric: expected mtlfunc.types.Metric(P, {}), P in the shapes of J's columns, "
                "with a last axis of 2 for complex ones"
            )
        jacobian = self if metric is None else replace(self, metric=metric)
        return cast(Tensor, jacobian.measure(gramian=True, combine=False, dtype=dtype).gramian)

    def _leaves(self) -> Params:
        return {name: self.leaves[name] for name in self.columns}

    def rows(self) -> Rows:
        """`{name: [row, *shape]}`: every row as it would be in `.grad`."""
        return like(self.leaves, self.measure(rows=True, combine=False).rows)

    def pull(self, weights: Float[Tensor, " row"]) -> Params:
        """Jᵀ w, the gradient of Σ w L, `{name: [*shape]}`; also written `w @ J`. One pass."""
        self._check(weights, "weights")
        return like(self.leaves, self.measure().combine(weights))

    def push(self, step: Params) -> Float[Tensor, " row"]:
        """J s `[row]`: how fast each loss changes along a step `{name: [*shape]}`; also
        written `J @ step`. It makes the rows.
        """
        columns = self._leaves()
        if not (
            same_shapes(step, columns)
            and all(step[name].device == x.device for name, x in columns.items())
            and all(step[name].is_complex() == x.is_complex() for name, x in columns.items())
        ):
            given = list(step) if isinstance(step, Mapping) else type(step).__name__
            raise ValueError(
                f"step: expected {{name: tensor}} like J's {len(columns)} columns (J.columns), in "
                f"shape, device and realness, got {given}; J.over(...) has other columns"
            )
        along = {name: leaf[None] for name, leaf in real_of(dict(step)).items()}
        rows = self.measure(rows=True, combine=False).rows
        return dot(rows, along, self.columns)[:, 0]

    def over(self, shared: Select) -> TaskJacobian:
        """The same losses over other parameters: a glob, a predicate, a module, or several."""
        return replace(self, columns=select(self.leaves, shared))

    def weighted(self, weightings: Tensor) -> TaskJacobian:
        """A J of losses of samples: all rows from one backward pass, where that is cheaper.

        Args:
            weightings: as in `mtlfunc.task_jacobian`.
        """
        forward, union = self.forward, self.shares.union
        if self.mix is not None or forward.losses.scalars is not None:
            raise ValueError(
                "weightings: they make tasks of one tensor of losses, [sample] or [sample, part], "
                "which is not mixed yet; of tasks use C @ J"
            )
        if isinstance(forward, Forward) and forward.edges is not None:
            forward = replace(forward, edges=None)
        matrix = flat_weightings(expect_weightings(weightings), forward.losses, forward.value)
        return replace(
            self, forward=forward, mix=matrix, weightings=len(matrix), scale=None,
            left_out=frozenset(), shares=union.sums(weightings) if union.size > 1 else self.shares,
        )  # fmt: skip

    def summed(self, group: Any) -> TaskJacobian:
        """The sum over the processes of a group, whose batches are equal parts of one; each has
        weightings of its own samples.

        All of them call every method alike; `measure` and what is made of it are the sum's.

        Args:
            group: as in `mtlfunc.jacobian`.
        """
        if self.scale is not None:
            raise ValueError("summed: sum J first, and choose rows then: J.summed(group)[[0]]")
        union, given = union_of(group, self.leaves), self.mix if self.weightings else None
        shares = union.shares(None) if given is None else union.sums(given)
        return replace(self, shares=shares, scale=shares.scale(self.forward.value), engine="rows")

    def mixed(
        self, matrix: Float[Tensor, "mixture row"], preference: Tensor | None = None
    ) -> TaskJacobian:
        """C J, of rows that may be mixtures already; also written `C @ J`.

        Args:
            matrix: C.
            preference: how its rows mix into the mean gradient; None is 1/rows each.
        """
        self._check(matrix, "C", "mixture, ")
        whole = matrix.to(self.forward.value)
        whole = whole if self.mix is None else whole @ self.mix
        return replace(
            self, mix=whole, preference=preference, weightings=self.weightings and len(whole),
            chosen=None, shares=self.shares._replace(present=None),
        )  # fmt: skip

    def explain(self) -> Explanation:
        """How `gramian()` is made, layer by layer: a table when printed."""
        if isinstance(self.forward, TracedForward):
            raise RuntimeError("explain: a compiled function is not explained; call it outside")
        return explanation(self)

    def __getitem__(self, which: Any) -> TaskJacobian:
        """Some of the rows: a number, a slice, a list of numbers or a mask. Where rows are tasks,
        heads get the gradients of the chosen tasks alone; while compiling, of all tasks.
        """
        rows = torch.eye(len(self), device=self.forward.value.device)
        some = list(range(len(self))[which]) if isinstance(which, slice) else which
        try:
            rows = torch.atleast_2d(rows[[some] if isinstance(some, bool) else some])
        except (IndexError, TypeError, RuntimeError, ValueError):
            rows = rows[:0]
        if not len(rows) or rows.shape[1:] != (len(self),) or isinstance(which, tuple):
            raise IndexError(
                f"J[...]: expected a slice, or a list of numbers below {len(self)}, got {which!r}"
            )
        mixtures = self.mix is not None and self.chosen is None and not self.weightings
        if mixtures or torch.compiler.is_compiling() or not is_readable(rows.cpu()):
            return self.mixed(rows)
        names = tuple(map(self.names.__getitem__, rows.argmax(1).tolist()))
        if self.weightings:
            return replace(self.mixed(rows), chosen=names)
        # a loss of its own that is not kept is not differentiated
        kept = (rows if self.mix is None else rows @ self.mix.to(rows)).any(0)
        scale = kept.to(self.forward.value) * (1.0 if self.scale is None else self.scale)
        out = self.left_out | frozenset(torch.where(~kept)[0].tolist())
        return replace(replace(self, scale=scale, left_out=out).mixed(rows), chosen=names)

    def __matmul__(self, step: Params) -> Float[Tensor, " row"]:
        """`J.push(step)`; a function compiled with `fullgraph=True` calls the methods instead."""
        return self.push(step)

    def __rmatmul__(self, left: Tensor) -> Any:
        """`w @ J`, a gradient, for w `[row]`; `C @ J`, a TaskJacobian, for C `[mixture, row]`."""
        mixes = isinstance(left, Tensor) and left.ndim == 2
        return self.mixed(left) if mixes else self.pull(left)

    def _check(self, x: Any, name: str, first: str = "") -> None:
        """Raise unless this is `[first, row]` of real numbers on the losses' device."""
        check_tensor(x, name, form := f"[{first}{len(self)}]")
        device, axes = self.forward.value.device, 1 + bool(first)
        if x.ndim != axes or x.shape[-1] != len(self) or x.is_complex() or x.device != device:
            raise ValueError(
                f"{name}: expected {form}, real numbers on {device} for J's {len(self)} rows, got "
                f"{list(x.shape)}, {x.dtype} on {x.device}"
            )

    def _found(self, wanted: Wanted, weight: float | None, names: tuple[str, ...]) -> Measurement:
        """What this process has of it; `weight`: of every task in the gradient of the others'
        leaves, where that is made with the rows; `names`: those that `combine` answers for.

        The losses of a vector are pulled back in one batched pass; separate scalars one at a time,
        so that no task's zeros are pushed through the others' heads.
        """
        forward, value, matrix, scale = self.forward, self.forward.value, self.mix, self.scale
        leaves, params = self.leaves, forward.params  # a pullback holds no losses
        left = forward.in_turn if matrix is None and isinstance(forward, Forward) else None
        if isinstance(forward, Forward) and left and wanted.columns == tuple(left.rows):
            inner = replace(self, forward=replace(forward, in_turn=None))
            return left.filled(inner._found(Wanted(()), None, names), self, wanted, weight)
        read = tuple([name for name in wanted.columns if name in params])
        some = wanted._replace(columns=read, gramian=wanted.gramian and bool(read))
        with enable_grad():
            way = self._opened(forward, some)
            rows, gramian, heads = self._made(way, some, weight)
        if weight is not None:
            heads = with_zeros(leaves, heads, leaves.keys() - {*self.columns})
        if not wanted.gramian:  # a Gramian is made of them later
            rows = with_zeros(leaves, rows, wanted.columns, len(self))
        elif gramian is None:
            wide = wide_of(params, wanted.dtype)
            gramian = value.new_zeros(len(self), len(self), dtype=wide)

        def pullback(weights: Tensor, names: tuple[str, ...]) -> Params:
            record = is_differentiated((value, weights, matrix, scale))
            known = tuple([name for name in names if name in params])
            with enable_grad(torch.is_grad_enabled()):
                cotangent = weights.to(value.dtype, copy=True)  # it may be a leaf's gradient
                cotangent = cotangent if matrix is None else cotangent @ matrix
                cotangent = cotangent if scale is None else cotangent * scale
                grads = way.pull(cotangent, known, record) if known else {}
            return with_zeros(leaves, grads, names)

        mixed, labels = self.losses, self.shares.present
        equal = value.new_full((len(mixed),), 1 / len(mixed))
        preference = equal if self.preference is None else self.preference.to(value)
        if labels is not None:
            preference = self.shares.over_present(preference)
        reported = mixed if self.weightings else value
        every = (rows, gramian, heads, names, pullback, forward.aux)
        return Measurement(reported, mixed, preference, labels, *every)

    def _opened(
        self, forward: Forward | TracedForward, wanted: Wanted
    ) -> ByTasks | BySamples | ByPullback:
        """The cheapest way to differentiate it."""
        if isinstance(forward, TracedForward):
            return ByPullback(forward, wanted.columns, self.mix, self.scale, self.chunk_size)
        record = forward.recorded or is_differentiated((self.mix, self.scale))
        left_out = self.left_out if forward.losses.scalars else frozenset[int]()
        backward = Backward(forward, record, depth() > 0, left_out)
        if self.weightings and (plan := plan_weightings(self, wanted)) is not None:
            # of its deltas and the plan's inputs all is made: no pass follows
            backward.keep = bool(not forward.frees or plan.rows or record or forward.samples[1:])
            return split(backward, forward.value, forward.samples[0], plan, wanted.dtype)
        plan = plan_tasks(self, wanted, len(self), record=record)
        return ByTasks(backward, forward.value, self.mix, self.scale, plan)

    def _made(
        self, way: ByTasks | BySamples | ByPullback, wanted: Wanted, weight: float | None
    ) -> tuple[Rows, Tensor | None, Params]:
        """Rows, Gramian and the other leaves' gradient, as far as they are wanted."""
        columns, rows, gramian, heads = wanted.columns, {}, None, {}
        own, value, total, others = {*self.columns}, self.forward.value, self.scale, ()
        if weight is not None:
            others = tuple([name for name in self.forward.params if name not in own])
        if isinstance(way, BySamples):
            assert self.mix is not None
            rows, gramian = way.measure(columns, wanted.gramian, self.mix, self.chunk_size)
        elif columns:
            found = way(others, views=wanted.combined)
            rows = found.rows  # the others are combined by a pass that stops where those are
            gramian = way.gramian(found, wanted.dtype) if wanted.gramian else None
            heads = found.heads
            if weight is not None and weight != 1.0:
                heads = {name: weight * grad for name, grad in heads.items()}
        if weight is not None and (left := tuple([x for x in others if x not in heads])):
            if self.weightings and self.mix is not None:
                total = self.mix.sum(0)
            total = value.new_ones(len(value)) if total is None else total
            heads |= way.pull(weight * total, left)  # of the tasks' sum
        return rows, gramian, heads


def with_zeros(leaves: Params, grads: Params, names: Iterable[str], *rows: int) -> Params:
    """Those of these names, zero for leaves on which no loss depends."""
    left = [name for name in names if name not in grads]
    if not left:
        return grads
    real = real_of({name: leaves[name].detach() for name in left})
    grads = grads | {name: x.new_zeros((*rows, *x.shape)) for name, x in real.items()}
    return {name: grads[name] for name in names}


def task_jacobian(
    losses: Any, at: Params | nn.Module, batch: Batch = (), *, shared: Select = "*",
    weightings: Tensor | None = None, engine: Engine = "auto", chunk_size: int | None = None,
) -> TaskJacobian:  # fmt: skip
    """The Jacobian of the tasks' losses at one point, as an object.

    Args:
        losses: `(params, batch) -> losses`, a vector `[task]` or a tuple or dict of T scalars; or
            losses that exist, with their graph.
        at: `{name: tensor}`, where to differentiate; or the module that made the losses.
        batch: handed to `losses`.
        shared: which parameters are columns: a glob on their names, a list of globs, a predicate
            on names, a module (`net.trunk`) or parameters of one.
        weightings: A `[task, sample]`, or `[task, sample, part]`: task k has the loss Σ A_kn ℓ_n of
            the losses ℓ `[sample]`, or `[sample, part]`, that there then are, and all tasks cost
            one backward pass (one a part).
        engine: how Gramians are made, all with the same numbers. `"layerwise"` takes the inputs and
            deltas of every layer it knows (linear, convolutions, embedding, attention, matmul and
            einsum with a parameter) and forms no row of it where that is cheaper; other leaves are
            differentiated row by row in the same passes. `"rows"` does that for all. `"auto"`
            chooses leaf by leaf, and is `"rows"` for small layers and few tasks. While compiling,
            and where `losses` puts hooks on derivatives, all are `"rows"`.
        chunk_size: how many rows one backward pass carries, which bounds what it holds; 1 is a
            plain loop, None the faster of all and 1, by a model of the device. What all passes
            bring back is kept until the end: T deltas of every layer, or rows of every leaf.

    Returns:
        J with `J.losses`, `J.gramian()`, `J.rows()`, `w @ J` (Jᵀ w), `J @ step`, `C @ J`,
        `J[[0, 2]]`, `J.over("heads.*")`, `J.measure(...)` and `J.explain()`. It
        holds the graph of the losses until it is dropped. Of losses that exist hooks cannot be
        seen, so every pass is an ordinary one, and nothing is recorded to be differentiated again.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape, or of no parameter.
        RuntimeError: under autocast (open it inside `losses`), and what torch.func does not take.

    Examples:
        >>> import mtlfunc as mf
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> J = mf.task_jacobian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)
        >>> J.gramian().tolist(), (torch.tensor([0.5, 0.5]) @ J)["w"].tolist()
        ([[1.0, 1.0], [1.0, 2.0]], [1.0, 0.5])
        >>> (J @ {"w": torch.tensor([0.0, 3.0])}).tolist()
        [0.0, 3.0]
    """
    check_option(engine, "engine", get_args(Engine))
    check_count(chunk_size, "chunk_size", none=True)
    exist, point = isinstance(at, nn.Module) and not callable(losses), cast("Any", at)
    leaves: Params = trained(point) if exist else point
    check_params(leaves, mixed=exist)
    names = select(leaves, shared)
    if exist:
        if not (isinstance(batch, tuple) and not batch):
            raise ValueError("batch: losses that exist are of one already; leave it out")
        own = weightings is None
        found = parse_existing(losses) if own else parse_weightings(losses, "losses")
        forward = live(found, leaves, hooked=True)
        if not forward.graph.leaf_nodes:
            raise ValueError(NO_GRAPH)
    else:
        parse = parse_alone if weightings is None else parse_weightings
        forward = run(losses, leaves, batch, parse=parse)
        check_connected(forward)
    jacobian = TaskJacobian(forward, names, leaves, engine, chunk_size)
    return jacobian if weightings is None else jacobian.weighted(weightings)
