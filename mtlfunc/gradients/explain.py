"""What `engine="auto"` would do with every layer, and what each form would cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_params
from ..core.tree import select
from ..types import Batch, LossesFn, Params, Select
from .layerwise import (
    Form,
    Group,
    Plan,
    costs,
    decide,
    groups_of,
    is_worth_recording,
    is_worth_weighing,
    sample_plan,
)
from .levels import without_trace
from .linearize import Request, weighed
from .losses import expect_weightings, parse_losses, parse_samples, parse_weighed
from .run import Forward, run
from .weightings import plan_weightings


class Layer(NamedTuple):
    """One leaf, or one part of a leaf that was split."""

    name: str
    op: str  # the nodes that read it
    form: Form  # "kernel", "gemm", "mixed" or "rows" (see `mtlfunc.gradients.layerwise.formulas`)
    # of each form that it has, for its part of G alone; empty where it has rows alone
    gflop: dict[str, float]
    mib: dict[str, float]  # what each holds besides the deltas
    note: str


class Explanation(NamedTuple):
    """A table when printed."""

    layers: tuple[Layer, ...]
    rows: int
    passes: str

    def __str__(self) -> str:
        head = ("leaf", "calls", "form", "GFLOP", "MiB", "alternatives, GFLOP", "")
        lines: list[tuple[str, ...]] = [head]
        for layer in self.layers:
            chosen = (
                f"{layer.gflop[layer.form]:.3g}" if layer.gflop else "?",
                f"{layer.mib[layer.form]:.3g}" if layer.gflop else "?",
            )
            others = ", ".join(
                f"{form} {value:.3g}" for form, value in layer.gflop.items() if form != layer.form
            )
            lines.append((layer.name, layer.op, layer.form, *chosen, others, layer.note))
        width = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = [
            "  ".join(cell.ljust(width[i]) for i, cell in enumerate(line)).rstrip()
            for line in lines
        ]
        return "\n".join([f"{self.rows} rows; {self.passes}", *table])


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

    Returns:
        an object with `.layers`, `.rows` and `.passes`, and a table as its `str`. Floating-point
        operations and bytes are those of each layer's part of G from its inputs and deltas; the
        backward passes that make the deltas are the same for all forms.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape.

    Examples:
        >>> import torch
        >>> losses = lambda p, x: torch.nn.functional.linear(x, p["w"]).square().mean(0)
        >>> print(explain_gramian(losses, {"w": torch.ones(4, 300)}, torch.ones(2, 300)))
        4 rows; engine "rows" throughout: fewer than 20,000 shared parameters
        leaf  calls   form  GFLOP     MiB     alternatives, GFLOP
        w     linear  rows  5.76e-05  0.0183  gemm 5.76e-05, kernel 2.78e-06
    """
    check_params(params)
    names = select(params, shared)
    parse = parse_samples if samples else parse_losses if weightings is None else parse_weighed
    if weightings is not None:
        expect_weightings(weightings)
    with without_trace(params), torch.no_grad():
        forward = run(
            losses_fn,
            params,
            batch,
            watch=True,
            parse=parse,
            separable=not samples and weightings is None,
        )
    if weightings is not None:
        keep = "combination" if combined else "nothing"
        return _explain_weightings(
            forward, weighed(Request(names, names, keep), weightings, forward)
        )
    return _explain_samples(forward, names) if samples else _explain_tasks(forward, names, combined)


HOOKED = "hooks in losses_fn: their work is known to ordinary differentiation alone"


def _explain_samples(forward: Forward, names: tuple[str, ...]) -> Explanation:
    losses, graph = forward.losses.vector, forward.graph
    rows, count = losses.numel(), len(losses)
    if not forward.watched:
        layers = _describe_layers(Plan((), names), [], names, forward, rows, count)
        return Explanation(layers, rows, "one backward pass a sample and task")
    plan, proved = sample_plan(forward.uses, forward.params, names, graph, losses)
    check = (
        "; the graph proves that they do not mix"
        if proved is not None
        else ", and as many to check that they do not mix"
    )
    groups = [group for group, _ in plan.tapped]
    layers = _describe_layers(plan, groups, names, forward, rows, count)
    return Explanation(layers, rows, f"{rows // count} backward pass(es) for all samples{check}")


def _explain_weightings(forward: Forward, request: Request) -> Explanation:
    names, tasks = request.shared, request.weightings
    shape = forward.losses.shape or forward.value.shape
    found = plan_weightings(forward, request)
    each = "one backward pass a task"
    if found is None:
        layers = _describe_layers(Plan((), names), [], names, forward, tasks, None)
        return Explanation(layers, tasks, each)
    (plan, _, worth), proved = found
    tapped: list[tuple[Group, Form]] = [
        (group, form) for group, form in plan.tapped if group.uses[0].part.leaf in names
    ]
    groups = [group for group, _ in tapped]
    if not (worth and is_worth_weighing(forward.params, tasks)):
        layers = _describe_layers(Plan((), names), groups, names, forward, tasks, None)
        return Explanation(layers, tasks, f"{each}, which is cheaper here")
    parts = shape[1:].numel()
    left = f", and {tasks} for leaves by rows" if set(plan.rows) & set(names) else ""
    check = (
        ", and as many to check that samples do not mix"
        if proved is None
        else "; the graph proves that samples do not mix"
    )
    layers = _describe_layers(
        Plan(tuple(tapped), ()), groups, names, forward, parts * shape[0], shape[0], tasks
    )
    return Explanation(layers, tasks, f"{parts} backward pass(es) for all tasks{left}{check}")


def _explain_tasks(forward: Forward, names: tuple[str, ...], combined: bool) -> Explanation:
    params, rows = forward.params, len(forward.value)
    if not forward.watched:
        layers = _describe_layers(Plan((), names), [], names, forward, rows, None)
        return Explanation(layers, rows, 'engine "rows" throughout')
    decision = decide(forward, names, rows, "auto", keep=combined, mixed=False, whole=True)
    edges = decision.loss_edges
    known = groups_of(forward.uses, params, names, forward.graph, separate=edges is not None)
    groups = [group for parts in known.values() for group in parts]
    how = "a loop of single passes" if decision.one_at_a_time else "one batched pass"
    plan, passes = decision.plan, f"backward: {'each separate loss by itself' if edges else how}"
    if decision.slices is not None:
        passes = "backward: one pass for all tasks, each of which reads a slice of its own"
    if not is_worth_recording(params, names):
        plan = Plan((), names)
        passes = 'engine "rows" throughout: fewer than 20,000 shared parameters'
    count = rows if decision.slices is not None and plan.tapped else None
    layers = _describe_layers(plan, groups, names, forward, rows, count)
    return Explanation(layers, rows, passes)


def _describe_layers(
    plan: Plan,
    groups: list[Group],
    names: tuple[str, ...],
    forward: Forward,
    rows: int,
    samples: int | None,
    weightings: int = 0,
) -> tuple[Layer, ...]:
    """One line for each of the groups, and one for each leaf that has none."""
    forms: dict[str, Form] = {group.name: form for group, form in plan.tapped}
    by_leaf: dict[str, list[Group]] = {}
    for group in groups:
        by_leaf.setdefault(group.uses[0].part.leaf, []).append(group)
    layers: list[Layer] = []
    for name in names:
        for group in by_leaf.get(name, ()):
            found = costs(group, rows, samples, weightings=weightings)
            gflop = {form: cost.flops / 1e9 for form, cost in found.items()}
            mib = {form: cost.bytes / 2**20 for form, cost in found.items()}
            form = forms.get(group.name, "rows")
            layers.append(Layer(group.name, group.op, form, gflop, mib, ""))
        if name not in by_leaf:
            note = HOOKED if forward.hooked else _reason(forward, name)
            if samples is not None:
                note += "; one row a task" if weightings else "; one row a sample and task"
            layers.append(Layer(name, "?", "rows", {}, {}, note))
    return tuple(layers)


def _reason(forward: Forward, name: str) -> str:
    """Why a leaf is differentiated row by row."""
    found = forward.reading
    if name in found.uses:
        return "no axis of its readers counts samples, or they read overlapping pieces"
    return found.others.get(name, "no loss reads it")
