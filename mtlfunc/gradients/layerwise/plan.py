"""Which form every layer's Gramian takes: the cost model.

Costs are floating-point operations, weighted by how fast a device runs them. Leaves with a reader
that is not understood, and those for which rows are cheapest, get rows in the same backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core.transforms import depth
from ...core.tree import HALF
from .broadcast import over_samples
from .formulas import Deltas, Form, Group, Layout, costs, layouts, positions
from .graph import Graph
from .nodes import facts_of
from .owners import SamplesMix, entry_layouts, refusal
from .passes import fits, prefers_one_pass
from .uses import Node, Use, lacking

Engine = Literal["auto", "layerwise", "rows"]

FEW_PARAMETERS = 20_000
"""Below so many shared parameters "auto" is "rows" on a device: a look at who reads them would cost
more than it saves.
"""
LOOK = 2_500.0
"""Elsewhere a look costs so many operations of a large product, times `FEW_PARAMETERS`."""

UNFOLDED = 2.5
"""How many times slower a floating-point operation of a convolution is where its windows are copied
out for a product, on a CPU.
"""

NO_LAUNCHES = {"cpu"}
"""Devices on which nothing waits for a launch; on others one pass may take separate losses."""
ROWS_AT_ONCE = 64
"""Rows in one batched pass where a leaf has to be differentiated sample by sample."""
WORTH = 1.25
"""How many times its price the pass that combines the tasks without rows has to save."""


class Wanted(NamedTuple):
    """What is made of the rows of a `TaskJacobian`."""

    columns: tuple[str, ...]  # the leaves whose rows, or whose Gramian, are wanted
    gramian: bool = False  # theirs is wanted; else the rows are handed out
    combined: bool = False  # a combination of the rows is wanted afterwards
    dtype: torch.dtype | None = None  # of the Gramian; None is the rows' own, at least float32


class Plan(NamedTuple):
    """How the passes of one forward are taken, and what is made of each leaf."""

    tapped: tuple[tuple[Group, Form], ...] = ()
    rows: tuple[str, ...] = ()  # leaves differentiated row by row
    apart: bool = False  # of tasks: one pass per separate loss
    chunk: int | None = None  # rows in one batched pass; None is all, 1 a plain loop
    where: tuple[Layout, ...] = ()  # of samples: in the output of every use
    kept: tuple[str, ...] = ()  # of weightings: leaves whose rows are kept, to be combined

    @property
    def uses(self) -> list[Use]:
        return [use for group, _ in self.tapped for use in group.uses]

    def groups(self, deltas: Sequence[Tensor], samples: int = 1) -> tuple[Deltas, ...]:
        """The groups with what some passes brought back, of all uses."""
        found, at = list[Deltas](), 0
        for group, _ in self.tapped:
            own = slice(at, at := at + len(group.uses))
            found.append(Deltas(group, deltas[own], samples, self.where[own] or None))
        return tuple(found)


def groups_of(
    forward: Any, names: Sequence[str], *, separate: bool = False
) -> dict[str, list[Group]]:
    """Of the leaves in `names` those that known nodes alone read, each with its parts; the others
    are differentiated row by row. `separate`: each loss of the `Forward` is differentiated alone.
    """
    found: dict[str, list[Group]] = {}
    uses, graph = forward.reading.uses, forward.graph
    for name in names:
        leaf = forward.params[name]
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


def prices_of(
    group: Group,
    rows: int,
    device: str,
    samples: int | None = None,
    weightings: int = 0,
    *,
    plain: bool = True,
    by_rows: bool = False,
) -> dict[Form, float]:
    """Floating-point operations, as a large matrix product's, of every form that a group may take;
    arguments as of `costs`. Of weightings: `plain` if their Gramian is accumulated in its default
    dtype, so that halves stay halves; `by_rows` if the mixed rows are wanted.
    """
    slow = UNFOLDED if _convolves(group, device) else 1.0
    prices: dict[Form, float] = {
        form: flops * (slow if form in ("gemm", "mixed") else 1.0)
        for form, flops in costs(group, rows, samples, weightings).items()
    }
    if not weightings:
        return prices
    half = group.dtype in HALF and plain
    if by_rows or not (half or is_widened(group, device, plain)):
        return {"mixed": prices["mixed"]}
    if half:
        del prices["mixed"]
    else:  # products in float64
        prices["gemm"] += 2.0 * rows**2 * group.numel
        if "kernel" in prices:
            prices["kernel"] *= 2
    return prices


def _convolves(group: Group, device: str) -> bool:
    """Whether it has convolutions on a CPU, which runs these, and their windows, otherwise."""
    return "conv" in group.op and device == "cpu"


def cheapest(prices: dict[Form, float]) -> Form:
    return min(prices, key=prices.__getitem__)


def looks(jacobian: Any, wanted: Wanted, rows: int) -> bool:
    """Whether these rows repay a look at who reads the leaves.

    On a CPU products save most where a layer's inputs, of a numbers, have a/2 positions.
    """
    engine, params, weighted = jacobian.engine, jacobian.forward.params, jacobian.weightings > 0
    asked = weighted or (wanted.gramian and bool(wanted.columns))
    if engine != "auto" or not asked:
        return asked and engine == "layerwise"
    if weighted:
        return rows * sum(map(Tensor.numel, params.values())) >= FEW_PARAMETERS
    saved, numel, on_cpu = 0.0, 0, params[wanted.columns[0]].is_cpu
    for name in wanted.columns:
        leaf = params[name]
        numel += (count := leaf.numel())
        if on_cpu and leaf.ndim > 1:
            a = max(len(leaf), count // (len(leaf) or 1))
            most = rows * count * (0.5 * a + 2.0 * rows + NUMBER)
            saved += most if most > GROUP else 0.0
    return saved > LOOK * FEW_PARAMETERS if on_cpu else numel >= FEW_PARAMETERS


def plan_tasks(jacobian: Any, wanted: Wanted, rows: int, *, record: bool) -> Plan:
    """The passes of a `TaskJacobian` of a `Forward` for what is `wanted` of its rows: batched, in
    chunks, in a loop, or each loss alone; and leaf by leaf the form of its Gramian. `record`: the
    passes will be differentiated.
    """
    forward, chunk, mixed = jacobian.forward, jacobian.chunk_size, jacobian.mix is not None
    graph, edges = forward.graph, forward.edges
    device, separate = forward.value.device.type, forward.losses.scalars is not None
    if not wanted.columns:  # one pass of the weighted loss
        return Plan(chunk=1)

    def one_pass() -> bool:
        numel = sum([forward.params[name].numel() for name in wanted.columns])
        return prefers_one_pass(graph, rows, numel, device, separate=edges is not None)

    plan, apart = Plan(rows=wanted.columns), False
    free = separate and jacobian.engine == "auto" and not (chunk or jacobian.left_out)
    free = free and device not in NO_LAUNCHES and not forward.hooked
    if not (free and graph.can_batch_twice and one_pass()):
        single = not mixed or (edges is not None and not one_pass())  # may each be taken alone
        apart = single and separate
        if not apart and chunk is None and not one_pass():
            apart, chunk = single and edges is not None and not forward.hooked, 1
        if wanted.gramian and not (forward.hooked or jacobian.weightings):
            plan = plan_layers(jacobian, wanted, rows, separate=apart)
        if not apart and chunk != 1 and rows > 1 and not graph.batches(record):
            chunk = 1
        if forward.hooked and not depth():  # hooks outside of transforms are for plain gradients
            chunk = 1
    return plan._replace(apart=apart, chunk=chunk)


def plan_layers(jacobian: Any, wanted: Wanted, rows: int, *, separate: bool) -> Plan:
    """Forms of the shared leaves for this number of rows, of losses that are differentiated
    one by one if they are `separate`.

    Where the rows are combined afterwards, a plan without rows pays one more backward pass.
    """
    forward, by_rows, auto = jacobian.forward, Plan(rows=wanted.columns), jacobian.engine == "auto"
    graph, params, device = forward.graph, forward.params, forward.value.device.type
    if not looks(jacobian, wanted, rows):
        return by_rows
    groups = groups_of(forward, wanted.columns, separate=separate)
    tapped: list[tuple[Group, Form]] = []
    left: list[str] = []
    saved = 0.0
    for name in wanted.columns:
        parts = groups.get(name, ())
        # a bias, a norm: its rows cost no more than its deltas
        if not parts or any(use.kind == "local" for group in parts for use in group.uses):
            left.append(name)
            continue
        found = [prices_of(group, rows, device) for group in parts]
        dearest = [prices.pop("rows") for prices in found]
        if len(parts) == 1 and auto and dearest[0] <= min(found[0].values()):
            left.append(name)
            continue
        for group, prices, price in zip(parts, found, dearest, strict=True):
            tapped.append((group, cheapest(prices)))
            saved += price - min(prices.values())
            saved += 2.0 * rows * group.numel if wanted.combined else 0.0  # of its rows
            saved += NUMBER * rows * group.numel - GROUP if device == "cpu" else 0.0
    combining = 2.0 * sum(x.multiplied for x in _all(groups)) if wanted.combined else 0.0
    plan = Plan(tuple(tapped), tuple(left))
    if auto and tapped:
        deltas = {use.edge: math.prod(use.shape) for use in plan.uses}
        extra = sum(deltas.values()) - sum([group.numel for group, _ in tapped])
        numel = sum([params[name].numel() for name in wanted.columns])
        if saved <= WORTH * combining or not fits(rows * extra, graph, rows, numel, device):
            return by_rows
    return plan if tapped else by_rows


def plan_samples(forward: Any, names: Sequence[str]) -> Plan:
    """Forms of the leaves in `names` for every sample and task of a `Forward`, by one pass whose
    deltas are split; raises an error where the graph does not prove that samples stay separate.

    Row by row are those that other nodes read, or whose nodes have no axis for the samples.
    """
    losses, graph = forward.losses.vector, forward.graph
    samples, rows, device = len(losses), losses.numel(), losses.device.type
    groups = groups_of(forward, names)
    try:
        every = over_samples(groups, graph, samples)
        groups, where = sampled_groups(every, graph, samples), None
        if len(groups) < len(every):  # terms may have samples of their own
            with suppress(SamplesMix):
                where = entry_layouts(graph, losses, _uses(every), terms=True)
                groups = every
        if where is None:
            where = entry_layouts(graph, losses, _uses(groups))
    except SamplesMix as mix:
        raise refusal(graph, losses, mix.use) from None
    except AttributeError as error:
        lacking(error)
        return Plan(rows=tuple(names), chunk=ROWS_AT_ONCE)
    tapped: list[tuple[Group, Form]] = [
        (group, cheapest(prices_of(group, rows, device, samples))) for group in _all(groups)
    ]
    left = tuple(name for name in names if name not in groups)
    return Plan(tuple(tapped), left, chunk=ROWS_AT_ONCE, where=where)


def _all(groups: Mapping[str, Sequence[Group]]) -> list[Group]:
    return [group for parts in groups.values() for group in parts]


def _uses(groups: Mapping[str, Sequence[Group]]) -> list[Use]:
    return [use for group in _all(groups) for use in group.uses]


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
    """The nodes that parameters alone make, as a merged LoRA's: their axes do not count samples."""
    found = set(graph.leaf_nodes.values())
    todo = [*found]
    for node in todo:  # it grows while it is read
        for parent, _, _ in graph.parents[node]:
            alone = all(child in found for child, _ in parent.next_functions)
            if alone and parent not in found and "arithmetic" in facts_of(parent).traits:
                found.add(parent)
                todo.append(parent)
    return found


def widest(device: str) -> torch.dtype:
    """Of the products of samples that weightings may cancel."""
    return torch.float32 if device == "mps" else torch.float64


def is_widened(group: Group, device: str, plain: bool) -> bool:
    """Whether products of samples need another dtype: what cancels leaves fewer digits."""
    kept = group.dtype in HALF and plain
    return not kept and torch.finfo(group.dtype).eps > torch.finfo(widest(device)).eps


def plan_weightings(jacobian: Any, wanted: Wanted) -> Plan | None:
    """Forms of all leaves for tasks that are weightings of samples; None where one pass a task is
    cheaper, or the graph does not prove that samples are separate, or is not asked.
    """
    forward, tasks = jacobian.forward, jacobian.weightings
    samples, graph = forward.samples[0], forward.graph
    asked = tasks > 1 and samples > 1 and not forward.hooked and looks(jacobian, wanted, tasks)
    if forward.root is None or not asked:
        return None
    groups = groups_of(forward, tuple(forward.params))
    if tasks <= FEW_TASKS and _price_weightings(groups, jacobian, wanted) is None:
        return None
    try:  # one pass a task is right whatever the losses depend on
        groups = sampled_groups(over_samples(groups, graph, samples), graph, samples)
        plan = _price_weightings(groups, jacobian, wanted)
        if plan is not None:
            where = entry_layouts(graph, forward.losses.vector, plan.uses, samples)
            return plan._replace(where=where)
    except SamplesMix:
        pass
    except AttributeError as error:
        lacking(error)
    return None


def _price_weightings(
    groups: Mapping[str, list[Group]], jacobian: Any, wanted: Wanted
) -> Plan | None:
    """The plan, if it is cheaper than one pass a task, or the engine asks for it."""
    forward, tasks = jacobian.forward, jacobian.weightings
    value, params = forward.value, forward.params
    shape, device = forward.samples, value.device.type
    rows, samples, passes = shape.numel(), shape[0], shape[1:].numel()  # that make the deltas
    by_rows, shared = not wanted.gramian, frozenset(wanted.columns)
    plain = wanted.dtype in (None, torch.promote_types(value.dtype, torch.float32))
    tapped: list[tuple[Group, Form]] = []
    kept: list[str] = []
    work = products = 0.0
    for name, every in groups.items():
        found = [
            prices_of(group, rows, device, samples, tasks, plain=plain, by_rows=by_rows)
            for group in every
        ]
        forms: list[Form] = [cheapest(prices) for prices in found]
        own = sum(min(prices.values()) for prices in found) if name in shared else 0.0
        combining = reading = 0.0
        for group in every:
            products += group.multiplied
            combining += (UNFOLDED if _convolves(group, device) else 1.0) * group.multiplied
            for use in group.uses:
                _, number, a, o = use.sizes
                reading += positions(use) * number * (a + rows // samples * o)
        # they may be kept where they are no larger than inputs and deltas
        small = plain and tasks * params[name].numel() <= reading
        mixed = {*forms} == {"mixed"} and name in shared
        if wanted.combined and small and mixed:
            kept.append(name)
            combining = 2.0 * tasks * params[name].numel()
        tapped += zip(every, forms, strict=True)
        own += combining if wanted.combined or by_rows else 0.0
        work += (BY_SAMPLE if is_widened(every[0], device, plain) else 1.0) * own
    left = tuple(name for name in params if name not in groups)
    dots = sum(2.0 * tasks * (tasks + 1) * params[name].numel() for name in shared)
    passes += tasks if left else 0
    work += passes * products + GROUP * len(tapped)
    numbers = sum([size for _, size in forward.graph.outputs]) if device == "cpu" else 0
    worth = work + passes * PASSED * numbers < tasks * (2 * products + PASSED * numbers) + dots
    if groups and (worth or jacobian.engine == "layerwise"):
        return Plan(tuple(tapped), left, kept=tuple(kept))
    return None


FEW_TASKS = 4
"""Up to so many weightings one pass for all may cost more than one a task."""
BY_SAMPLE = 1.8
"""Products by sample that are made in float64 for losses of float32, against those of as many
operations in a backward pass: perceptrons, convolutions and transformers, one thread.
"""
PASSED = 50.0
"""What a number of the graph costs a backward pass besides products with the leaves, on a CPU: a
transformer of width 128, and the same whose adapters alone train.
"""
GROUP = 1.6e7
"""What all the small operations of one leaf cost, in those of a product on a CPU."""
NUMBER = 90.0
"""What a number of rows costs that are made, stacked and read: widths 32 to 512, 3 to 64 tasks, 8
to 128 samples, one thread.
"""
