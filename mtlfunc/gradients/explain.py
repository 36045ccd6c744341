"""What `engine="auto"` does with every layer, and what each form of its part of G costs."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_params
from ..core.tree import select
from ..types import Batch, LossesFn, Params, Select
from .layerwise.formulas import Form, Group, costs
from .layerwise.plan import groups_of, plan_samples, plan_tasks, plan_weightings
from .levels import without_trace
from .linearize import Request
from .losses import expect_weightings, parse_losses, parse_samples, parse_weightings
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
        lines = [("leaf", "calls", "form", "GFLOP", "alternatives, GFLOP", "")]
        for name, op, form, gflop, note in self.layers:
            each = {x: f"{value:.3g}" for x, value in gflop.items()}
            chosen, others = each.pop(form, "?"), [f"{x} {cost}" for x, cost in each.items()]
            lines.append((name, op, form, chosen, ", ".join(others), note))
        width = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, width)).rstrip() for line in lines]
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
        floating-point operations are those of a layer's part of G from inputs and deltas, or rows.

    Raises:
        TypeError: as in `task_gramian`.
        ValueError: as there; for `samples` with `weightings`, or where samples mix.

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
    parse = parse_samples if samples else parse_losses if weightings is None else parse_weightings
    if weightings is not None:
        expect_weightings(weightings)
    with without_trace(params), torch.no_grad():
        forward = run(losses_fn, params, batch, parse=parse, separable=parse is parse_losses)
    request = Request(names, True, combined, "auto")
    request = request if weightings is None else request.with_weightings(weightings, forward)
    return explanation(forward, request, samples=samples)


def explanation(forward: Forward, request: Request, *, samples: bool) -> Explanation:
    """Of what this request does with a forward pass."""
    names = request.shared
    rows, passes, formed, split = _planned(forward.of_read(names), request, samples=samples)
    priced = (forward.samples.numel(), forward.samples[0], request.weightings) if split else (rows,)
    layers: list[Layer] = []
    for name in names:
        for group, form in (own := [pair for pair in formed if pair[0].leaf == name]):
            gflop = {x: flops / 1e9 for x, flops in costs(group, *priced).items()}
            layers.append(Layer(group.name, group.op, form, gflop, ""))
        if not own:
            note = _reason(forward, name)
            if split and name not in forward.unread:
                note += "; one row a task" if request.weightings else "; one row a sample and task"
            layers.append(Layer(name, "?", "rows", {}, note))
    return Explanation(tuple(layers), rows, passes)


def _planned(
    forward: Forward, request: Request, *, samples: bool
) -> tuple[int, str, list[tuple[Group, Form]], bool]:
    """How many rows, the passes in words, the forms of the leaves that known nodes read, and
    whether the deltas of one pass are split by sample.
    """
    request, tasks = request.of(forward.params), request.weightings
    if samples:
        rows, count = forward.value.numel(), len(forward.value)
        if forward.hooked:
            return rows, "one backward pass a sample and task", [], True
        plan = plan_samples(forward, request.shared)
        return rows, f"{rows // count} backward pass(es) for all samples", [*plan.tapped], True
    rows = tasks or len(forward.value)
    if tasks and (plan := plan_weightings(forward, request)) is not None:
        left = f", and {tasks} for leaves by rows" if set(plan.rows) & set(request.shared) else ""
        passes = f"{forward.samples[1:].numel()} backward pass(es) for all tasks{left}"
        return rows, passes, [*plan.tapped], True
    plan = plan_tasks(forward, request, rows, mixed=tasks > 0, record=False)
    how = "a loop of single passes" if plan.chunk == 1 else "one batched pass"
    passes = f"backward: {'each separate loss by itself' if plan.apart else how}"
    if tasks:
        passes = "one backward pass a task"
    elif forward.hooked or not request.watches(forward.params, rows):
        few = "" if forward.hooked else ": too little for layer products to save"
        passes = f'engine "rows" throughout{few}'
    if forward.hooked:
        return rows, passes, [], False
    chosen = dict[str, Form]((group.name, form) for group, form in plan.tapped)
    given = forward.uses, forward.params, request.shared, forward.graph
    known = groups_of(*given, separate=plan.apart).values()
    return rows, passes, [(x, chosen.get(x.name, "rows")) for of in known for x in of], False


def _reason(forward: Forward, name: str) -> str:
    """Why a leaf is differentiated row by row."""
    if forward.hooked:
        return "hooks in losses_fn: their work is known to ordinary differentiation alone"
    found = forward.reading
    if name in found.uses:
        return "no axis of its readers counts samples, or they read overlapping pieces"
    return found.others.get(name, "no loss reads it")
