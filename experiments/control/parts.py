"""The parts of the study: what each compares, at which size, and how it is shown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.common.study import Found, Numbers, Plan

from . import grids, methods, points, report
from .methods import BLIND, HEADS, INDEPENDENT, SCALES_UNDONE

TUNED_ON = 1_000_000
"""First of the seeds that choose rates; those of the results are below."""


class Part(NamedTuple):
    """One study: the plan and settings of a size, how cells are performed, how it is shown."""

    name: str
    module: ModuleType  # with `perform(settings, cells)`
    settings: Any
    plan: Plan
    shown: report.Shown
    looks: dict[str, str]  # further series that the figure shows, by key
    looked: int  # steps between two of their entries

    def perform(self) -> Callable[..., list[Numbers]]:
        return self.module.perform

    def sources(self) -> list[Path]:
        """Files that the numbers depend on."""
        return [Path(str(module.__file__)) for module in (self.module, methods)]

    def table(self, found: Found) -> str:
        notes = report.landscape(found, self.looked) if self.looks else []
        shown = self.shown._replace(notes=(*notes, *self.shown.notes))
        return report.table(found, self.plan, shown)

    def figure(self, found: Found) -> Figure:
        return report.figure(found, self.shown, self.looks, self.looked)


def _plan(
    name: str,
    compared: Sequence[str],
    rates: tuple[float, ...],
    tuning: int,
    seeds: tuple[int, ...],
) -> Plan:
    chosen = tuple(range(TUNED_ON, TUNED_ON + tuning))
    return Plan(dict.fromkeys(compared, ("",)), rates, chosen, seeds, (name,))


GRIDS = report.Shown(
    metrics=(
        report.Metric("area", "area under the gap", True),
        report.Metric("final", "gap at the end", True),
    ),
    worst="gap of the worst task",
    curve="Gap to the best policies, mean over tasks",
    first=0,
    every=1,
    unit="steps of Adam",
    notes=(
        f"Mazes: {grids.TASKS} tasks of {grids.SIDE} x {grids.SIDE} fields, actions permuted, slip "
        f"{grids.SLIP:g}, discount {grids.DISCOUNT:g}; {grids.WIDTH} shared tanh units; exact "
        "values and gradients. The gap is the share of the best value that the policy misses; "
        f"losses are gaps times {', '.join(f'{s:g}' for s in grids.SCALES)}. `{SCALES_UNDONE}` is "
        "the mean of the gaps themselves: what one gains who knows the scales.",
    ),
)

POINTS = report.Shown(
    metrics=(
        report.Metric("area", "success, mean over training", False),
        report.Metric("final", "success at the end", False),
    ),
    worst="success on the worst goal",
    curve="Goals reached, mean over tasks",
    first=points.SEEN,
    every=points.SEEN,
    unit="iterations",
    notes=(
        f"Point mass: {points.TASKS} goals, actuators turned by an angle of the task's own, "
        f"{points.EPISODES} episodes of {points.HORIZON} steps a task and iteration, "
        f"{points.PASSES} steps of Adam on each, policy and value balanced by themselves. The task "
        f"is seen as a one-hot code, but by `{BLIND}`; `{HEADS}` has last layers a task, "
        f"`{INDEPENDENT}` whole networks, {points.TASKS} times as many parameters.",
    ),
)


def part(name: str, size: str, rules: Sequence[str], seeds: tuple[int, ...], device: str) -> Part:
    """A part at a size: `"quick"`, `"default"` or `"full"`.

    Args:
        name: of the part.
        size: how long.
        rules: of `methods.RULES`; the baselines always run.
        seeds: of the results.
        device: of torch.
    """
    level = ("quick", "default", "full").index(size)
    if name == "grids":
        rates = (3e-2, 1e-1, 3e-1, 1.0)
        return Part(
            name,
            grids,
            grids.Settings((30, 150, 600)[level], device),
            _plan(name, (*rules, SCALES_UNDONE), rates, (2, 8, 16)[level], seeds),
            GRIDS,
            {
                "curvature": "Curvature gᵀ∇²L g / ‖g‖²",
                "conflict": "Share of pairs in conflict",
            },
            grids.SEEN,
        )
    rates = (5e-3, 1e-2, 2e-2, 4e-2)
    return Part(
        name,
        points,
        points.Settings((8, 24, 96)[level], device),
        _plan(name, (*rules, HEADS, BLIND, INDEPENDENT), rates, (1, 3, 16)[level], seeds),
        POINTS,
        {},
        1,
    )
