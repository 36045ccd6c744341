"""What `engine="auto"` does with every layer, and what each form of its part of G costs."""

from typing import Any, NamedTuple

from .layerwise.formulas import Form, Group, costs
from .layerwise.plan import Wanted, groups_of, looks, plan_samples, plan_tasks, plan_weightings
from .run import Forward


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


def explanation(jacobian: Any, *, samples: bool = False, combined: bool = False) -> Explanation:
    """Of what a `TaskJacobian` of a `Forward` does for its Gramian; `samples`: for that of the
    losses of samples; `combined`: with a combination of the rows afterwards.
    """
    forward, names, tasks = jacobian.forward, jacobian.columns, jacobian.weightings
    wanted = Wanted(tuple([name for name in names if name in forward.params]), True, combined)
    rows, passes, formed, split = _planned(jacobian, wanted, samples=samples)
    priced = (forward.samples.numel(), forward.samples[0], tasks) if split else (rows,)
    layers: list[Layer] = []
    for name in names:
        for group, form in (own := [pair for pair in formed if pair[0].leaf == name]):
            gflop = {x: flops / 1e9 for x, flops in costs(group, *priced).items()}
            layers.append(Layer(group.name, group.op, form, gflop, ""))
        if not own:
            note = _reason(forward, name)
            if split and name in forward.params:
                note += "; one row a task" if tasks else "; one row a sample and task"
            layers.append(Layer(name, "?", "rows", {}, note))
    return Explanation(tuple(layers), rows, passes)


def _planned(
    jacobian: Any, wanted: Wanted, *, samples: bool
) -> tuple[int, str, list[tuple[Group, Form]], bool]:
    """How many rows, the passes in words, the forms of the leaves that known nodes read, and
    whether the deltas of one pass are split by sample.
    """
    forward, tasks, columns = jacobian.forward, jacobian.weightings, wanted.columns
    if samples:
        rows, count = forward.value.numel(), len(forward.value)
        if forward.hooked:
            return rows, "one backward pass a sample and task", [], True
        plan = plan_samples(forward, columns)
        return rows, f"{rows // count} backward pass(es) for all samples", [*plan.tapped], True
    rows = len(jacobian)
    if tasks and (plan := plan_weightings(jacobian, wanted)) is not None:
        left = f", and {tasks} for leaves by rows" if set(plan.rows) & set(columns) else ""
        passes = f"{forward.samples[1:].numel()} backward pass(es) for all tasks{left}"
        return rows, passes, [*plan.tapped], True
    plan = plan_tasks(jacobian, wanted, rows, record=False)
    how = "a loop of single passes" if plan.chunk == 1 else "one batched pass"
    passes = f"backward: {'each separate loss by itself' if plan.apart else how}"
    if tasks:
        passes = "one backward pass a task"
    elif forward.hooked or not looks(jacobian, wanted, rows):
        asked = forward.hooked or jacobian.engine == "rows" or not columns
        few = "" if asked else ": too little for layer products to save"
        passes = f'engine "rows" throughout{few}'
    if forward.hooked:
        return rows, passes, [], False
    chosen = dict[str, Form]((group.name, form) for group, form in plan.tapped)
    known = groups_of(forward, columns, separate=plan.apart).values()
    return rows, passes, [(x, chosen.get(x.name, "rows")) for of in known for x in of], False


def _reason(forward: Forward, name: str) -> str:
    """Why a leaf is differentiated row by row."""
    if forward.hooked:
        return "hooks, or losses that exist: ordinary differentiation alone knows hooks"
    found = forward.reading
    if name in found.uses:
        return "no axis of its readers counts samples, or they read overlapping pieces"
    return found.others.get(name, "no loss reads it")
