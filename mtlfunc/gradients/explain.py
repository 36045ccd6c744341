"""What `engine="auto"` does with every layer, and what each form of its part of G costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_params
from ..core.gone import gone
from ..core.tree import select
from ..types import Batch, LossesFn, Params, Select
from .layerwise import (
    Form,
    Group,
    costs,
    decide,
    groups_of,
    is_worth_recording,
    is_worth_weighing,
    sample_plan,
    weighted_plan,
)  # fmt: skip
from .levels import without_trace
from .linearize import Keep, Request, weighed
from .losses import expect_weightings, parse_losses, parse_samples, parse_weighed
from .run import Forward, run


class Layer(NamedTuple):
    """One leaf, or one part of a leaf that was split."""

    name: str
    op: str  # the nodes that read it
    form: Form  # "kernel", "gemm", "mixed" or "rows" (see `mtlfunc.gradients.layerwise.formulas`)
    # of each form that it has, for its part of G alone; empty where it has rows alone
    gflop: dict[str, float]
    note: str


class Explanation(NamedTuple):
    """A table when printed."""

    layers: tuple[Layer, ...]
    rows: int
    passes: str

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            ("leaf", "calls", "form", "GFLOP", "alternatives, GFLOP", "")
        ]
        for name, op, form, gflop, note in self.layers:
            others = [f"{x} {value:.3g}" for x, value in gflop.items() if x != form]
            chosen = f"{gflop[form]:.3g}" if gflop else "?"
            lines.append((name, op, form, chosen, ", ".join(others), note))
        width = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(n) for cell, n in zip(line, width, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([f"{self.rows} rows; {self.passes}", *table])


@gone(memory="what a step holds is chosen inside; chunk_size bounds it: docs/how-to/recipes.md")
def explain_gramian(
    losses_fn: LossesFn,
    params: Params,
    batch: Batch,
    *,
    shared: Select = "*",
    samples: bool = False,
    combined: bool = False,
    weightings: Tensor | None = None,
) -> Explanation:
    """How `engine="auto"` makes the Gramian, layer by layer, from one forward pass alone.

    Args:
        losses_fn: as in `task_gramian`; with `samples` as in `sample_gramian`.
        params: `{name: tensor}`, where to differentiate.
        batch: handed to `losses_fn`.
        shared: which parameters the Gramian sums over, as in `task_gramian`.
        samples: explain the per-sample Gramian.
        combined: the rows are combined afterwards, as in the probe `jacobian`: a plan without rows
            then pays one more backward pass.
        weightings: explain the Gramian of these, as in `task_gramian`.

    Returns:
        an object with `.layers`, `.rows` and `.passes`, and a table as its `str`. The
        floating-point operations of a layer are those of its part of G from its inputs and deltas,
        or of its rows.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape; for `samples` with
            `weightings`, or where samples mix.

    Examples:
        >>> import torch
        >>> losses = lambda p, x: torch.nn.functional.linear(x, p["w"]).square().mean(0)
        >>> print(explain_gramian(losses, {"w": torch.ones(4, 300)}, torch.ones(2, 300)))
        4 rows; engine "rows" throughout: too little for layer products to save
        leaf  calls   form  GFLOP     alternatives, GFLOP
        w     linear  rows  5.76e-05  gemm 5.76e-05, kernel 2.78e-06
    """
    check_params(params)
    names = select(params, shared)
    if samples and weightings is not None:
        raise ValueError("samples: not with weightings=, another Gramian; leave one of them out")
    parse = parse_samples if samples else parse_losses if weightings is None else parse_weighed
    if weightings is not None:
        expect_weightings(weightings)
    apart = not samples and weightings is None
    with without_trace(params), torch.no_grad():
        forward = run(losses_fn, params, batch, watch=True, parse=parse, separable=apart)
    keep: Keep = "combination" if combined else "nothing"
    request = Request(names, names, keep)
    if weightings is not None:
        return _explain_weightings(forward, weighed(request, weightings, forward))
    return _explain_samples(forward, names) if samples else _explain_tasks(forward, request)


def _explain_samples(forward: Forward, names: tuple[str, ...]) -> Explanation:
    rows, count, tapped = forward.value.numel(), len(forward.value), ()
    passes = "one backward pass a sample and task"
    if forward.watched:
        tapped = sample_plan(forward, names).plan.tapped
        passes = f"{rows // count} backward pass(es) for all samples"
    return Explanation(_layers(forward, names, tapped, rows, count), rows, passes)


def _explain_weightings(forward: Forward, request: Request) -> Explanation:
    names, tasks = request.shared, request.weightings
    shape = forward.losses.shape or forward.value.shape
    read = forward.of_read(names)
    found = weighted_plan(read, request.of(read.params))
    passes = "one backward pass a task"
    tapped = () if found is None else [x for x in found.plan.tapped if x[0].leaf in names]
    if found is None or not (found.worth and is_worth_weighing(forward.params, tasks)):
        passes += "" if found is None else ", which is cheaper here"
        by_rows: list[tuple[Group, Form]] = [(group, "rows") for group, _ in tapped]
        return Explanation(_layers(forward, names, by_rows, tasks), tasks, passes)
    left = f", and {tasks} for leaves by rows" if set(found.plan.rows) & set(names) else ""
    passes = f"{shape[1:].numel()} backward pass(es) for all tasks{left}"
    layers = _layers(forward, names, tapped, shape.numel(), shape[0], tasks)
    return Explanation(layers, tasks, passes)


def _explain_tasks(forward: Forward, request: Request) -> Explanation:
    names, read, rows = request.shared, forward.of_read(request.shared), len(forward.value)
    own = tuple([name for name in names if name in read.params])
    passes = 'engine "rows" throughout'
    tapped: list[tuple[Group, Form]] = []
    if forward.watched:
        keep = request.keep == "combination"
        plan, edges, loop = decide(read, own, rows, "auto", keep=keep, mixed=False)
        worth = is_worth_recording(read.params, own, rows)
        known = groups_of(read.uses, read.params, own, forward.graph, separate=edges is not None)
        chosen: dict[str, Form] = {group.name: form for group, form in plan.tapped if worth}
        groups = [group for parts in known.values() for group in parts]
        tapped = [(group, chosen.get(group.name, "rows")) for group in groups]
        how = "each separate loss by itself" if edges else "one batched pass"
        how = "a loop of single passes" if loop and not edges else how
        passes = f"backward: {how}"
        if not worth:
            passes = 'engine "rows" throughout: too little for layer products to save'
    return Explanation(_layers(forward, names, tapped, rows), rows, passes)


def _layers(
    forward: Forward,
    names: tuple[str, ...],
    tapped: Sequence[tuple[Group, Form]],
    rows: int,
    entries: int | None = None,
    weightings: int = 0,
) -> tuple[Layer, ...]:
    """One line for each of the groups, and one for each leaf that has none."""
    layers: list[Layer] = []
    for name in names:
        own = [pair for pair in tapped if pair[0].leaf == name]
        for group, form in own:
            found = costs(group, rows, entries, group.dtype.itemsize, weightings)
            gflop = dict[str, float]((x, cost.flops / 1e9) for x, cost in found.items())
            layers.append(Layer(group.name, group.op, form, gflop, ""))
        if not own:
            note = _reason(forward, name)
            if entries is not None and name not in forward.unread:
                note += "; one row a task" if weightings else "; one row a sample and task"
            layers.append(Layer(name, "?", "rows", {}, note))
    return tuple(layers)


def _reason(forward: Forward, name: str) -> str:
    """Why a leaf is differentiated row by row."""
    if forward.hooked:
        return "hooks in losses_fn: their work is known to ordinary differentiation alone"
    found = forward.reading
    if name in found.uses:
        return "no axis of its readers counts samples, or they read overlapping pieces"
    return found.others.get(name, "no loss reads it")
