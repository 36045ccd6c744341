"""The methods that are compared: rules, the same in every part, and baselines of the mean."""

from typing import Any

import torch
from torch import Tensor
from torch.func import grad

import mtlfunc as mf
from mtlfunc import Geometry, Probe, Rule
from mtlfunc.types import Batch, Params, State, TaskGradients

RULES = ("mean", "mgda", "pcgrad", "cagrad", "nash_mtl", "upgrad")
"""Rules that take losses of either sign: returns and advantages have both."""

SCALES_UNDONE = "mean, scales undone"
HEADS = "mean, a head a task"
BLIND = "mean, task not seen"
INDEPENDENT = "independent"


def probe_and_rule(name: str, probe: Probe | None = None, c: float = 0.5) -> tuple[Probe, Rule]:
    """A rule with what it measures: the gradients of all parameters (`probe`), or nothing. `c` is
    the radius of CAGrad.
    """
    rules = {
        "mgda": mf.mgda, "pcgrad": mf.pcgrad, "cagrad": lambda: mf.cagrad(c),
        "nash_mtl": lambda: mf.nash_mtl(rescale="sum"), "upgrad": mf.upgrad,
    }  # fmt: skip
    if name in rules:
        return probe or mf.jacobian(), rules[name]()
    return mf.losses_only(), mf.mean()


def measured(curve: Tensor, step_ms: float, *, lower: bool = False) -> dict[str, Any]:
    """The numbers of a run whose tasks were measured some times, `curve` `[measurement, task]`.
    Returns `area` (mean over measurements and tasks) and `score` (the same, or minus it where
    `lower` is better), `final` (mean at the end), `worst` (of the worst task), `curve` (mean over
    tasks), `tasks` (at the end), `step_ms`.
    """
    area, last = float(curve.mean()), curve[-1]
    return {
        "score": -area if lower else area, "area": area, "final": float(last.mean()),
        "worst": float(last.max() if lower else last.min()), "curve": curve.mean(-1).tolist(),
        "tasks": last.tolist(), "step_ms": step_ms,
    }  # fmt: skip


def copies(tasks: int) -> Probe:
    """`mf.jacobian()` for small networks and losses each of which reads episodes of its own. One
    backward pass to a copy of the parameters a task gives all rows: `losses_fn` has to take also
    parameters with an axis of tasks in front, and then to use each task's own.
    """

    def init(run: mf.Run, batch: Batch, key: Tensor) -> tuple[Tensor, State]:
        return run.losses(run.params, batch).vector, ()

    def update(run: mf.Run, batch: Batch, state: State) -> tuple[TaskGradients, State]:
        def total(each: Params) -> tuple[Tensor, Any]:
            losses = run.losses(each, batch).vector
            return losses.sum(), losses

        each = {name: leaf.expand(tasks, *leaf.shape) for name, leaf in run.params.items()}
        rows, losses = grad(total, has_aux=True)(each)
        flat = torch.cat([row.flatten(1) for row in rows.values()], 1)
        geometry = Geometry(
            losses, flat @ flat.mT, torch.full_like(losses, 1 / tasks),
            torch.ones_like(losses, dtype=torch.bool), {},
        )  # fmt: skip

        def combine(weights: Tensor) -> Params:
            return {name: torch.tensordot(weights, row, 1) for name, row in rows.items()}

        return TaskGradients(losses, geometry, combine, None), state

    return Probe(init, update, measures=frozenset({"gramian"}), calls_model=True)
