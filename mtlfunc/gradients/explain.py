"""What `engine="auto"` would do with every layer, and what each form and route would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..core.checks import check_params
from ..core.tree import select
from ..types import Batch, LossesFn, Params, Select
from .gramian import check_memory_limit
from .layerwise import (
    MEMORY,
    Cost,
    Form,
    Group,
    Plan,
    costs,
    decide,
    groups_of,
    is_worth_recording,
    is_worth_weighing,
    positions,
    sample_plan,
    weighted_plan,
)
from .levels import without_trace
from .linearize import Request, weighed
from .losses import expect_weightings, parse_losses, parse_samples, parse_weighed
from .run import Forward, run


class Layer(NamedTuple):
    """One leaf, or one part of a leaf that was split."""

    name: str
    op: str  # the nodes that read it
    form: Form  # "kernel", "gemm", "mixed" or "rows" (see `mtlfunc.gradients.layerwise.formulas`)
    # of each form that it has, for its part of G alone; empty where it has rows alone
    gflop: dict[str, float]
    mib: dict[str, float]  # what each holds besides the deltas
    note: str


class Route(NamedTuple):
    """One way to the whole Gramian, its backward passes included, without leaves of unknown calls.

    Its operations are counted, not weighed. `engine="auto"` weighs them with measured speeds.
    """

    name: str
    gflop: float
    mib: float  # rows, deltas and the largest product; not the graph
    chosen: bool


class Explanation(NamedTuple):
    """Tables when printed."""

    layers: tuple[Layer, ...]
    rows: int
    passes: str
    routes: tuple[Route, ...]

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            ("leaf", "calls", "form", "GFLOP", "MiB", "alternatives, GFLOP", "")
        ]
        for layer in self.layers:
            chosen = [f"{x[layer.form]:.3g}" if x else "?" for x in (layer.gflop, layer.mib)]
            others = ", ".join(
                f"{form} {value:.3g}" for form, value in layer.gflop.items() if form != layer.form
            )
            lines.append((layer.name, layer.op, layer.form, *chosen, others, layer.note))
        ways = [("route", "GFLOP", "MiB", "")]
        ways += [
            (x.name, f"{x.gflop:.3g}", f"{x.mib:.3g}", "chosen" * x.chosen) for x in self.routes
        ]
        said = [f"{self.rows} rows; {self.passes}", *_aligned(lines)]
        return "\n".join([*said, *_aligned(ways)] if self.routes else said)


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(n) for cell, n in zip(line, width, strict=True)).rstrip()
        for line in lines
    ]


def explain_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    samples: bool = False,
    combined: bool = False,
    weightings: Tensor | None = None,
    memory: float = MEMORY,
) -> Explanation:
    """How `engine="auto"` makes the Gramian, layer by layer, from one forward pass alone.

    That of one batch with another (`other=`) is planned so for each: what either has row by row
    both have, one pass never serves several tasks, and where calls differ the form is "gemm".

    Args:
        losses_fn: as in `task_gramian`; with `samples` as in `sample_gramian`.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters the Gramian sums over, as in `task_gramian`.
        samples: explain the per-sample Gramian.
        combined: the rows are combined afterwards, as in the probe `jacobian`: a plan without rows
            then pays one more backward pass.
        weightings: explain the Gramian of these, as in `task_gramian`.
        memory: as in `task_gramian`.

    Returns:
        an object with `.layers`, `.rows`, `.passes` and `.routes`, and tables as its `str`. The
        floating-point operations and bytes of a layer are those of its part of G from its inputs
        and deltas. Those of a route count the backward passes that make the deltas.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape; for `samples` with
            `weightings`.

    Examples:
        >>> import torch
        >>> losses = lambda p, x: torch.nn.functional.linear(x, p["w"]).square().mean(0)
        >>> print(explain_gramian(losses, {"w": torch.ones(4, 300)}, torch.ones(2, 300)))
        4 rows; engine "rows" throughout: too little for layer products to save
        leaf  calls   form  GFLOP     MiB     alternatives, GFLOP
        w     linear  rows  5.76e-05  0.0183  gemm 5.76e-05, kernel 2.78e-06
        route           GFLOP     MiB
        rows            7.68e-05  0.0183    chosen
        layer products  2.2e-05   0.000137
    """
    check_params(params)
    check_memory_limit(memory)
    names = select(params, shared)
    if samples and weightings is not None:
        raise ValueError("samples: not with weightings=, another Gramian; leave one of them out")
    parse = parse_samples if samples else parse_losses if weightings is None else parse_weighed
    if weightings is not None:
        expect_weightings(weightings)
    apart = not samples and weightings is None
    with without_trace(params), torch.no_grad():
        forward = run(losses_fn, params, batch, watch=True, parse=parse, separable=apart)
    if weightings is not None:
        keep = "combination" if combined else "nothing"
        return _explain_weightings(
            forward, weighed(Request(names, names, keep), weightings, forward)
        )
    if samples:
        return _explain_samples(forward, names)
    return _explain_tasks(forward, names, combined, memory)


HOOKED = "hooks in losses_fn: their work is known to ordinary differentiation alone"


class Way(NamedTuple):
    """A route before it is priced."""

    name: str
    forms: dict[str, Form]  # by the groups' names; of others it is "rows"
    passes: int
    rows: int  # of each layer's part of G
    samples: int | None = None  # where every row is of one of them
    weightings: int = 0

    def costs(self, group: Group) -> dict[Form, Cost]:
        return costs(group, self.rows, self.samples, group.dtype.itemsize, self.weightings)

    def route(self, groups: list[Group], *, chosen: bool, combined: bool) -> Route:
        """What the passes and the groups' forms cost together."""
        flops = held = largest = 0.0
        deltas: dict[GradientEdge, int] = {}
        for group in groups:
            form = self.forms.get(group.name, "rows")
            cost, again = self.costs(group)[form], 0
            flops += cost.flops
            if form == "rows":
                held += cost.bytes
                flops += 2.0 * self.rows * group.numel if combined else 0.0
            else:
                largest = max(largest, cost.bytes)
                for use in group.uses:
                    deltas[use.edge] = self.passes * math.prod(use.shape) * use.dtype.itemsize
                if combined:  # of the samples' inputs and deltas, or by one more backward pass
                    again = 1 if self.weightings else 2
            for use, count in zip(group.uses, group.served or repeat(self.passes), strict=False):
                if use.kind == "outer":
                    flops += 2.0 * positions(use) * group.numel * (count + again)
        held += largest + sum(deltas.values())
        return Route(self.name, flops / 1e9, held / 2**20, chosen)


def _explanation(
    forward: Forward,
    names: tuple[str, ...],
    groups: list[Group],
    ways: list[Way],
    way: Way,  # the chosen one
    passes: str,
    *,
    combined: bool = False,
) -> Explanation:
    layers = _describe_layers(way, groups, names, forward)
    routes = [x.route(groups, chosen=x is way, combined=combined) for x in ways if groups]
    return Explanation(layers, way.weightings or ways[0].rows, passes, tuple(routes))


def _explain_samples(forward: Forward, names: tuple[str, ...]) -> Explanation:
    losses = forward.losses.vector
    rows, count = losses.numel(), len(losses)
    alone = Way("one backward pass a sample and task", {}, rows, rows)
    if not forward.watched:
        way = alone._replace(samples=count)
        return _explanation(forward, names, [], [way], way, way.name)
    plan = sample_plan(forward, names).plan
    passes, groups = rows // count, [group for group, _ in plan.tapped]
    way = Way("one pass for all samples", _forms_of(plan), passes, rows, count)
    said = f"{passes} backward pass(es) for all samples"
    return _explanation(forward, names, groups, [alone, way], way, said)


def _explain_weightings(forward: Forward, request: Request) -> Explanation:
    names, tasks = request.shared, request.weightings
    shape = forward.losses.shape or forward.value.shape
    read = forward.of_read(names)
    found = weighted_plan(read, request.of(read.params))
    alone = Way("one backward pass a task", {}, tasks, tasks)
    if found is None:
        return _explanation(forward, names, [], [alone], alone, alone.name)
    plan, worth = found.plan, found.worth
    groups = [group for group, _ in plan.tapped if group.leaf in names]
    parts = shape[1:].numel()
    once = Way("one pass for all tasks", _forms_of(plan), parts, shape.numel(), shape[0], tasks)
    way, said = alone, f"{alone.name}, which is cheaper here"
    if worth and is_worth_weighing(forward.params, tasks):
        left = f", and {tasks} for leaves by rows" if set(plan.rows) & set(names) else ""
        way, said = once, f"{parts} backward pass(es) for all tasks{left}"
    combined = request.keep == "combination"
    return _explanation(forward, names, groups, [alone, once], way, said, combined=combined)


def _explain_tasks(
    forward: Forward, names: tuple[str, ...], combined: bool, memory: float
) -> Explanation:
    read = forward.of_read(names)
    params, rows = read.params, len(forward.value)
    own = tuple([name for name in names if name in params])
    alone, throughout = Way("rows", {}, rows, rows), 'engine "rows" throughout'
    if not forward.watched:
        return _explanation(forward, names, [], [alone], alone, throughout)
    decision, layered = (
        decide(read, own, rows, engine, keep=combined, mixed=False, memory=memory)
        for engine in ("auto", "layerwise")
    )
    edges = decision.loss_edges
    known = groups_of(read.uses, params, own, forward.graph, separate=edges is not None)
    groups = [group for parts in known.values() for group in parts]
    how = "a loop of single passes" if decision.one_at_a_time else "one batched pass"
    passes = f"backward: {'each separate loss by itself' if edges else how}"
    ways = [alone]
    for name, plan in (("layer products", layered.plan), ("rows and products", decision.plan)):
        if (forms := _forms_of(plan)) not in [way.forms for way in ways]:
            ways.append(alone._replace(name=name, forms=forms))
    way = next(way for way in ways if way.forms == _forms_of(decision.plan))
    if not is_worth_recording(params, own, rows):
        way, passes = alone, f"{throughout}: too little for layer products to save"
    return _explanation(forward, names, groups, ways, way, passes, combined=combined)


def _forms_of(plan: Plan) -> dict[str, Form]:
    return {group.name: form for group, form in plan.tapped}


def _describe_layers(
    way: Way, groups: list[Group], names: tuple[str, ...], forward: Forward
) -> tuple[Layer, ...]:
    """One line for each of the groups, and one for each leaf that has none."""
    by_leaf: dict[str, list[Group]] = {}
    for group in groups:
        by_leaf.setdefault(group.leaf, []).append(group)
    layers: list[Layer] = []
    for name in names:
        for group in by_leaf.get(name, ()):
            found = way.costs(group)
            gflop = {form: cost.flops / 1e9 for form, cost in found.items()}
            mib = {form: cost.bytes / 2**20 for form, cost in found.items()}
            form = way.forms.get(group.name, "rows")
            layers.append(Layer(group.name, group.op, form, gflop, mib, ""))
        if name not in by_leaf:
            note = HOOKED if forward.hooked else _reason(forward, name)
            if way.samples is not None and name not in forward.unread:
                note += "; one row a task" if way.weightings else "; one row a sample and task"
            layers.append(Layer(name, "?", "rows", {}, {}, note))
    return tuple(layers)


def _reason(forward: Forward, name: str) -> str:
    """Why a leaf is differentiated row by row."""
    found = forward.reading
    if name in found.uses:
        return "no axis of its readers counts samples, or they read overlapping pieces"
    return found.others.get(name, "no loss reads it")
