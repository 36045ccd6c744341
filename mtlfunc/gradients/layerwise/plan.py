"""Which form every layer's Gramian takes: the cost model.

Costs are floating-point operations, weighted by how fast a device runs them. Leaves with a reader
that is not understood, and those for which rows are cheapest, are differentiated row by row in the
same backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...types import Metric, Params
from .broadcast import over_samples
from .formulas import HALF, Cost, Form, Group, Layout, costs, in_metric, layouts, positions
from .graph import Graph, Node
from .owners import entry_layouts
from .passes import MEMORY, fits, prefers_one_pass
from .uses import Use

T = TypeVar("T")
Engine = Literal["auto", "layerwise", "rows"]

FEW_PARAMETERS = 20_000
"""Below so many shared parameters "auto" is "rows" where convolutions are, or on a device: a look
at who reads them would cost more than it saves.
"""
LOOK = 2_500.0
"""Elsewhere a look costs so many operations of a large product, times `FEW_PARAMETERS`."""

UNFOLDED = 2.5
"""How many times slower a floating-point operation of a convolution is where its windows are copied
out for a product, on a CPU.
"""

LOOPED_CONVOLUTION = 0.55
"""A loop of single backward passes against one batched pass through the same convolutions, on a
CPU.
"""


def is_worth_recording(params: Params, names: Sequence[str], rows: int) -> bool:
    """Whether so many rows of these leaves repay a look at who reads them.

    On a CPU products save most where a layer's inputs, of a numbers, have a/2 positions.
    """
    leaves = [params[name] for name in names]
    if not leaves[0].is_cpu or any(leaf.ndim > 2 for leaf in leaves):
        return sum([leaf.numel() for leaf in leaves]) >= FEW_PARAMETERS
    wide = [(leaf.numel(), max(leaf.shape)) for leaf in leaves if leaf.ndim == 2]
    most = [rows * numel * (0.5 * a + 2.0 * rows + NUMBER) for numel, a in wide]
    return sum(saved for saved in most if saved > GROUP) > LOOK * FEW_PARAMETERS


def is_worth_weighing(params: Params, weightings: int) -> bool:
    """Whether these rows of these parameters repay a look at the graph."""
    return weightings * sum(map(Tensor.numel, params.values())) >= FEW_PARAMETERS


Uses = Mapping[str, Sequence[Use]]
"""The nodes that read each leaf."""

WORTH = 1.25
"""How many times its price the pass that combines the tasks without rows has to save."""


class Plan(NamedTuple):
    tapped: tuple[tuple[Group, Form], ...]
    rows: tuple[str, ...]  # leaves differentiated row by row

    @property
    def uses(self) -> list[Use]:
        return [use for group, _ in self.tapped for use in group.uses]

    def split(self, found: Sequence[T]) -> Iterator[Sequence[T]]:
        """What was found for every use, group by group."""
        rest = iter(found)
        return ([next(rest) for _ in group.uses] for group, _ in self.tapped)


def groups_of(
    uses: Uses, params: Params, names: Sequence[str], graph: Graph, *, separate: bool = False
) -> dict[str, list[Group]]:
    """The leaves that known nodes alone read, each with its parts.

    Args:
        uses: by leaf, as the graph says.
        params: the leaves of that pass.
        names: those to look at; what is not among the answers is differentiated row by row.
        graph: of that pass, from separate losses if `separate`.
        separate: each loss is differentiated alone.
    """
    found: dict[str, list[Group]] = {}
    for name in names:
        leaf = params[name]
        whole = (0, len(leaf) if leaf.ndim else 1)
        parts: dict[tuple[int, int] | None, list[Use]] = {}
        for use in uses.get(name, ()):
            parts.setdefault(use.part.span, []).append(use)
        spans = sorted(span or whole for span in parts)
        if not spans or any(before[1] > after[0] for before, after in pairwise(spans)):
            continue
        found[name] = [
            Group(
                name if span is None else f"{name}[{span[0]}:{span[1]}]",
                tuple(part),
                leaf.numel() if span is None else leaf[0].numel() * (span[1] - span[0]),
                tuple(graph.serves(use.edge).bit_count() for use in part) if separate else None,
            )
            for span, part in parts.items()
        ]
    return found


def weighted_cost(cost: Cost, group: Group, form: Form, device: str) -> float:
    """Floating-point operations as a large matrix product's, of a group in a form."""
    unfolded = "conv" in group.op and form in ("gemm", "mixed") and device == "cpu"
    return cost.flops * (UNFOLDED if unfolded else 1.0)


def cheapest_form(
    group: Group, rows: int, device: str, samples: int | None, allowed: Sequence[Form]
) -> Form:
    found: dict[Form, Cost] = {
        form: cost for form, cost in costs(group, rows, samples).items() if form in allowed
    }

    def price(form: Form) -> tuple[float, bool]:
        return weighted_cost(found[form], group, form, device), form != "rows"

    return min(found, key=price)


def task_plan(
    groups: dict[str, list[Group]],
    names: Sequence[str],
    rows: int,
    engine: Engine,
    device: str,
    *,
    keep: bool,
) -> Plan:
    """Forms of the leaves in `names` for `rows` tasks.

    Args:
        groups: the leaves that known nodes alone read.
        names: the leaves.
        rows: how many tasks, or mixtures of them.
        engine: "auto" or "layerwise".
        device: "cpu", "cuda", …
        keep: the rows are needed afterwards, to be combined. A plan without rows then pays one more
            backward pass, for the combination.
    """
    tapped: list[tuple[Group, Form]] = []
    left: list[str] = []
    saved, combining = 0.0, 0.0
    for name in names:
        outer = [
            group
            for group in groups.get(name, ())
            if all(use.kind != "local" for use in group.uses)
        ]
        # a bias, a norm: its rows cost no more than its deltas
        if not outer or len(outer) < len(groups[name]):
            left.append(name)
            continue
        allowed: list[Form] = (
            ["kernel", "gemm"]
            if engine == "layerwise" or len(outer) > 1
            else ["kernel", "gemm", "rows"]
        )
        forms: list[Form] = [cheapest_form(group, rows, device, None, allowed) for group in outer]
        if forms == ["rows"]:
            left.append(name)
            continue
        for group, form in zip(outer, forms, strict=True):
            tapped.append((group, form))
            found = costs(group, rows)
            saved += weighted_cost(found["rows"], group, "rows", device)
            saved -= weighted_cost(found[form], group, form, device)
            saved += 2.0 * rows * group.numel if keep else 0.0  # the combination of its rows
            saved += NUMBER * rows * group.numel - GROUP if device == "cpu" else 0.0
    if keep and engine == "auto":
        combining = sum(
            4.0 * positions(use) * group.numel
            for parts in groups.values()
            for group in parts
            for use in group.uses
            if use.kind == "outer"
        )
        if saved <= WORTH * combining:
            return Plan((), tuple(names))
    if engine == "auto" and saved <= 0:
        return Plan((), tuple(names))
    return Plan(tuple(tapped), tuple(left))


def sample_plan(
    uses: Uses, params: Params, names: Sequence[str], graph: Graph, losses: Tensor
) -> tuple[Plan, tuple[Layout, ...] | None]:
    """Forms of the leaves in `names` for every sample and task, and where the samples are in every
    use of the plan, if the graph proves it.

    Row by row are those that other nodes read, or whose nodes have no axis for the samples.

    Args:
        uses: by leaf, as the graph says.
        params: the leaves of that pass.
        names: those to look at.
        graph: of that pass.
        losses: [sample] or [sample, task].
    """
    samples, rows = len(losses), losses.numel()
    every = spread_groups(groups_of(uses, params, names, graph), graph, samples)
    groups, proved = sampled_groups(every, graph, samples), None
    if len(groups) < len(every):  # terms may have samples of their own
        proved = entry_layouts(graph, losses, None, _uses(every), terms=True)
        groups = groups if proved is None else every
    if proved is None:
        proved = entry_layouts(graph, losses, None, _uses(groups))
    forms: list[tuple[Group, Form]] = [
        (group, cheapest_form(group, rows, losses.device.type, samples, ("kernel", "gemm")))
        for parts in groups.values()
        for group in parts
    ]
    return Plan(tuple(forms), tuple(name for name in names if name not in groups)), proved


def _uses(groups: Mapping[str, Sequence[Group]]) -> list[Use]:
    return [use for parts in groups.values() for group in parts for use in group.uses]


def spread_groups(
    groups: Mapping[str, list[Group]], graph: Graph, samples: int
) -> dict[str, list[Group]]:
    """The groups, with what every sample adds read where it is broadcast over samples."""
    return {name: over_samples(parts, graph, samples) for name, parts in groups.items()}


def sampled_groups(
    groups: Mapping[str, list[Group]], graph: Graph, samples: int
) -> dict[str, list[Group]]:
    """Those of the leaves whose nodes may all have an axis for the samples."""
    constant = _made_of_leaves(graph)

    def may_have(use: Use) -> bool:
        return use.edge.node not in constant and bool(layouts(use, samples))

    return {
        name: parts
        for name, parts in groups.items()
        if all(may_have(use) for group in parts for use in group.uses)
    }


def _made_of_leaves(graph: Graph) -> set[Node]:
    """The nodes that parameters alone make, as a merged LoRA's: however long their axes are, they
    do not count samples.
    """
    found = set(graph.leaf_nodes.values())
    todo = [*found]
    for node in todo:  # it grows while it is read
        for parent, _, _ in graph.parents[node]:
            alone = all(child in found for child, _ in parent.next_functions)
            if alone and parent not in found and parent.name() in _ARITHMETIC:
                found.add(parent)
                todo.append(parent)
    return found


_ARITHMETIC = {
    *("MmBackward0", "AddmmBackward0", "BmmBackward0", "MulBackward0", "DivBackward0"),
    *("AddBackward0", "SubBackward0", "NormBackward1", "LinalgVectorNormBackward0"),
    *("PowBackward0", "SqrtBackward0", "ExpBackward0", "SumBackward0", "SumBackward1"),
    *("TBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0"),
}
"""Nodes that read nothing but their inputs, and give none of them a new axis."""


def widest(device: str) -> torch.dtype:
    """Of the products of samples that weightings may cancel."""
    return torch.float32 if device == "mps" else torch.float64


class Weighted(NamedTuple):
    """How tasks that are weightings of samples are measured from one backward pass by sample."""

    plan: Plan  # of all leaves; forms matter where they are measured
    kept: tuple[str, ...]  # the leaves whose rows are kept, to be combined
    worth: bool  # whether that is cheaper than one backward pass a task


def weighted_plan(
    groups: dict[str, list[Group]],
    params: Params,
    measured: Sequence[str],
    entries: tuple[int, int],
    weightings: int,
    device: str,
    *,
    passes: int,
    rows: bool,
    keep: bool,
    plain: bool = True,
) -> Weighted:
    """Forms of the leaves in `params`.

    Args:
        groups: the leaves that known nodes alone read.
        params: the leaves.
        measured: those that the Gramian sums over, or whose rows are wanted.
        entries: how many samples, and losses of each.
        weightings: tasks.
        device: "cpu", "cuda", …
        passes: how many make the deltas, and find the samples in them.
        rows: the rows of all tasks are wanted.
        keep: they may be kept to be combined, where they are no larger than inputs and deltas.
        plain: the Gramian is accumulated in its default dtype, so that halves stay halves.
    """
    samples, parts = entries
    tapped: list[tuple[Group, Form]] = []
    kept: list[str] = []
    work = products = 0.0
    for name, every in groups.items():
        forms: list[Form] = []
        combining = reading = 0.0
        for group in every:
            found = costs(group, samples * parts, samples, weightings=weightings)
            half = group.dtype in HALF and plain
            # what is left of products that cancel has fewer digits than they had
            apart = half or torch.finfo(group.dtype).eps > torch.finfo(widest(device)).eps
            allowed: list[Form] = list(found) if apart and not rows else ["mixed"]
            if half and not rows:
                allowed.remove("mixed")
            price: dict[Form, float] = {
                form: weighted_cost(found[form], group, form, device) for form in allowed
            }
            if apart and not (half or rows):  # products in float64
                price["gemm"] += 2.0 * (samples * parts) ** 2 * group.numel
                if "kernel" in price:
                    price["kernel"] *= 2
            forms.append(min(price, key=price.__getitem__))
            work += price[forms[-1]] if name in measured else 0.0
            looped = LOOPED_CONVOLUTION if "conv" in group.op and device == "cpu" else 1.0
            for use in group.uses:
                _, number, a, o = use.sizes
                reading += positions(use) * number * (a + parts * o)
                if use.kind == "outer":
                    product = Cost(2.0 * positions(use) * group.numel, 0.0)
                    products += looped * product.flops
                    combining += weighted_cost(product, group, "gemm", device)
        small = weightings * params[name].numel() <= reading
        if keep and small and name in measured and {*forms} == {"mixed"}:
            kept.append(name)
            combining = 2.0 * weightings * params[name].numel()
        tapped += zip(every, forms, strict=True)
        work += combining
    left = tuple(name for name in params if name not in groups)
    dots = sum(2.0 * weightings * (weightings + 1) * params[name].numel() for name in measured)
    work += (passes + (weightings if left else 0)) * products
    halves = plain and all(group.dtype in HALF for group, _ in tapped)
    work = (1.0 if halves else BY_SAMPLE) * work + GROUP * len(tapped)
    return Weighted(Plan(tuple(tapped), left), tuple(kept), work < 2 * weightings * products + dots)


BY_SAMPLE = 1.8
"""Products by sample, mixed and summed in float64, against those of as many operations in a
backward pass: networks of width 64 to 1,024, 128 samples, 2 to 16 weightings, one thread.
"""
GROUP = 1.6e7
"""What all the small operations of one leaf cost, in those of a product on a CPU."""
NUMBER = 90.0
"""What a number of rows costs that are made, stacked and read: widths 32 to 512, 3 to 64 tasks, 8
to 128 samples, one thread.
"""


class Slices(NamedTuple):
    """Every loss reads entries of its own of all activations: one pass has the deltas of all."""

    plan: Plan
    layouts: tuple[Layout, ...]  # of every use where the tasks are
    rows: bool  # whether the rows, which its forms make, are kept to be combined


def slices_of(
    groups: dict[str, list[Group]],
    where: dict[GradientEdge, Layout],
    unused: tuple[str, ...],
    tasks: int,
    device: str,
    *,
    keep: bool,
) -> Slices:
    """Forms of the leaves in `groups`.

    Args:
        groups: the leaves that known nodes alone read.
        where: of every call's output where the tasks are.
        unused: the other leaves, whose rows are zero.
        tasks: how many.
        device: "cpu", "cuda", …
        keep: the rows are needed afterwards, to be combined: kept, or by one more backward pass.
    """
    every = [group for parts in groups.values() for group in parts]
    forms: list[Form] = [
        cheapest_form(group, tasks, device, tasks, ("kernel", "gemm")) for group in every
    ]
    by_rows = best = 0.0
    for group, form in zip(every, forms, strict=True):
        found = costs(group, tasks, tasks)
        by_rows += weighted_cost(found["gemm"], group, "gemm", device) + 2.0 * tasks * group.numel
        best += weighted_cost(found[form], group, form, device)
        best += sum(4.0 * positions(use) * group.numel for use in group.uses if use.kind == "outer")
    rows = keep and by_rows <= best
    plan = Plan(
        tuple((group, "gemm" if rows else form) for group, form in zip(every, forms, strict=True)),
        unused,
    )
    return Slices(plan, tuple(where[use.edge] for use in plan.uses), rows)


class Sketch(NamedTuple):
    """What the plan of another pass over the same leaves, or process, has to fit."""

    groups: Mapping[
        str, tuple[str, Form, tuple[Any, ...] | None]
    ]  # by name: leaf, form, `Group.fits`
    rows: tuple[str, ...]


def sketch(plan: Plan) -> Sketch:
    return Sketch(
        {g.name: (g.uses[0].part.leaf, form, g.fits) for g, form in plan.tapped}, plan.rows
    )


def common_plan(plan: Plan, every: Sequence[Sketch]) -> Plan:
    """A plan that fits those of all passes, of which `every` has the sketches: the same parts of
    the same leaves in the same order and form; what one of them has row by row, all have.
    """
    rows = {name for one in every for name in one.rows}
    parts = {name: leaf for one in every for name, (leaf, _, _) in one.groups.items()}
    rows |= {leaf for name, leaf in parts.items() if any(name not in one.groups for one in every)}

    def form_of(name: str) -> Form:
        _, forms, fits = zip(*(one.groups[name] for one in every), strict=True)
        kernel = set(forms) == {"kernel"} and fits[0] is not None and len(set(fits)) == 1
        return "kernel" if kernel else "gemm"

    ordered = sorted(plan.tapped, key=lambda pair: pair[0].name)
    kept = [group for group, _ in ordered if group.uses[0].part.leaf not in rows]
    return Plan(tuple((group, form_of(group.name)) for group in kept), tuple(sorted(rows)))


class Decision(NamedTuple):
    """How one Gramian is made."""

    plan: Plan
    # the separate losses, where each is differentiated alone
    loss_edges: tuple[GradientEdge | None, ...] | None
    one_at_a_time: bool  # a loop of single backward passes rather than one batched pass
    groups: dict[str, list[Group]]  # every leaf that known nodes alone read
    slices: Slices | None = None  # where the tasks were found to be


def _may_be_slices(uses: Uses, names: Sequence[str], count: int, separate: bool) -> bool:
    """Whether all nodes that read these leaves have room for the tasks along an axis; scalars for
    which every leaf is read by a node each come from forward passes of their own.
    """
    used = [uses[name] for name in names if name in uses]
    if count == 1 or (separate and all(len(each) >= count for each in used)):
        return False
    return all(layouts(use, count) for each in used for use in each)


def decide(
    forward: Any,
    names: Sequence[str],
    rows: int,
    engine: Engine,
    *,
    keep: bool,
    mixed: bool,
    whole: bool = False,
    shared: Sequence[str] | None = None,
    metric: Metric | None = None,
    memory: float = MEMORY,
) -> Decision:
    """Choose how the Gramian of a recorded forward pass is made.

    Args:
        forward: a `run.Forward`; separate scalars are always differentiated one by one, unless
            `mixed`.
        names: the leaves that are measured.
        rows: the Gramian's.
        engine: "auto" or "layerwise".
        keep: the rows are needed afterwards, to be combined.
        mixed: the rows are mixtures of the tasks.
        whole: one pass may have the deltas of all tasks, which are then looked for in it.
        shared: the leaves whose rows are combined, if they are others than `names`.
        metric: in which the rows are multiplied.
        memory: as in `prefers_one_pass`.
    """
    losses, params, graph = forward.losses.vector, forward.params, forward.graph
    loss_edges, separated = forward.edges, forward.losses.scalars is not None
    every: Uses = forward.uses
    device = losses.device.type
    if whole and _may_be_slices(every, names, len(losses), separated):
        uses = [use for name in names for use in every.get(name, ())]
        where = entry_layouts(graph, losses, loss_edges, uses)
        groups = {} if where is None else groups_of(every, params, names, graph)
        unused = tuple(name for name in names if name not in groups)
        if where and not any(map(graph.serves_leaf, unused)):
            kept = keep and (shared is None or set(shared) == set(names))
            known = {use.edge: layout for use, layout in zip(uses, where, strict=True)}
            slices = slices_of(groups, known, unused, len(losses), device, keep=kept)
            return Decision(slices.plan, None, False, groups, slices)
    one_at_a_time, numel = False, sum([params[name].numel() for name in shared or names])
    if mixed or not separated:
        one_at_a_time = not prefers_one_pass(
            graph, rows, numel, device, separate=loss_edges is not None, memory=memory
        )
        loss_edges = loss_edges if one_at_a_time and not mixed else None
    groups = groups_of(every, params, names, graph, separate=loss_edges is not None)
    if metric is not None:
        groups = {name: in_metric(parts, metric) for name, parts in groups.items()}
    plan = task_plan(groups, names, rows, engine, device, keep=keep)
    if engine == "auto" and plan.tapped:
        deltas = {use.edge: math.prod(use.shape) for use in plan.uses}
        extra = sum(deltas.values()) - sum([group.numel for group, _ in plan.tapped])
        if not fits(rows * extra, graph, rows, numel, device, memory):
            plan = Plan((), tuple(names))
    return Decision(plan, loss_edges, one_at_a_time, groups)
