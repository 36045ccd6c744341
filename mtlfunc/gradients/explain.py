"""What `engine="auto"` would do with every layer, and what each form would cost."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..core.checks import check_params
from ..core.tree import select
from ..types import Batch, LossesFn, Params, Select
from .layerwise import (
    Form,
    Group,
    Plan,
    Tapped,
    costs,
    decide,
    groups_of,
    proved_apart,
    read_graph,
    sample_plan,
    worth_watching,
)
from .rows import explained_vjp, split_output


class Layer(NamedTuple):
    """One leaf, or one part of a leaf that was split."""

    name: str
    op: str  # the calls that consumed it
    form: Form  # "kernel", "gemm" or "rows" (see `mtlfunc.layerwise`)
    # of each form that it has, for its part of G alone; empty where no tap serves it
    gflop: dict[str, float]
    mib: dict[str, float]  # what each holds beside the deltas
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
) -> Explanation:
    """How `engine="auto"` makes the Gramian, layer by layer, from one forward pass and no backward
    pass.

    Args:
        losses_fn, params, batch, shared: as in `task_gramian`; with `samples` as in
            `sample_gramian`.
        samples: explain the per-sample Gramian.
        combined: the rows are combined afterwards, as in the probe `jacobian`: a plan without rows
            then pays one more backward pass.

    Returns:
        an object with `.layers`, `.rows` and `.passes`, and a table as its `str`. Floating-point
        operations and bytes are those of each layer's part of G from its inputs and deltas; the
        backward passes that make the deltas are the same for all forms.

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
    layers: list[Layer] = []
    passes, rows = "", 0

    def forward(level: Params) -> tuple[Tensor, Any]:
        nonlocal passes, rows
        taps = Tapped(level)
        with taps:
            out = losses_fn(level, batch)
        if samples:
            if not isinstance(out, Tensor) or out.ndim not in (1, 2):
                raise ValueError("losses_fn: expected [sample] or [sample, task]")
            rows = out.numel()
            count = len(out)
            plan = sample_plan(
                taps, level, names, read_graph(out), count, rows // count, out.device.type
            )
            groups = [group for group, _ in plan.tapped]
            check = (
                "; the graph proves that they do not mix"
                if proved_apart(taps, plan.uses, out)
                else ", and as many to check that they do not mix"
            )
            passes = f"{rows // count} backward pass(es) for all samples{check}"
        else:
            losses, scalars, _ = split_output(out)
            rows = len(losses)
            decision = decide(
                taps, level, losses, scalars, names, rows, "auto", keep=combined, mixed=False
            )
            plan, count = decision.plan, None
            known = decision.groups or groups_of(
                taps,
                level,
                names,
                read_graph(losses, decision.ways),
                separate=decision.ways is not None,
            )
            groups = [group for parts in known.values() for group in parts]
            how = (
                "each separate loss by itself"
                if decision.ways
                else "a loop of single passes"
                if decision.one_at_a_time
                else "one batched pass"
            )
            passes = f"backward: {how}"
            if not worth_watching(level, names):
                plan, passes = (
                    Plan((), names),
                    'engine "rows" throughout: fewer than 20,000 shared parameters',
                )
        forms: dict[str, Form] = {group.name: form for group, form in plan.tapped}
        by_leaf: dict[str, list[Group]] = {}
        for group in groups:
            by_leaf.setdefault(group.uses[0].part.leaf, []).append(group)
        used = taps.by_leaf()
        for name in names:
            for part in by_leaf.get(name, ()):
                found = costs(part, rows, count)
                layers.append(
                    Layer(
                        part.name,
                        part.op,
                        forms.get(part.name, "rows"),
                        {form: cost.flops / 1e9 for form, cost in found.items()},
                        {form: cost.bytes / 2**20 for form, cost in found.items()},
                        "",
                    )
                )
            if name not in by_leaf:
                note = (
                    "used outside the calls that are understood, too"
                    if name in used
                    else "used in no call that is understood"
                )
                layers.append(
                    Layer(
                        name,
                        "?",
                        "rows",
                        {},
                        {},
                        note + ("; one row a sample and task" if samples else ""),
                    )
                )
        return (out if isinstance(out, Tensor) else split_output(out)[0]), ()

    explained_vjp(forward, params)
    return Explanation(tuple(layers), rows, passes)
