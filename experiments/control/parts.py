"""The parts of the study: what each compares, at which size, and how it is shown."""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from common.study import Found, Plan

from . import grids, points, report, robots, sac
from .methods import BLIND, HEADS, INDEPENDENT, SCALES_UNDONE

SIZES = ("quick", "default", "full")

TUNED_ON = 1_000_000  # first of the seeds that choose rates; those of the results are below


class Part(NamedTuple):
    """One study: the plan and settings of a size, how cells are performed, how it is shown."""

    name: str
    module: ModuleType
    settings: Any
    plan: Plan
    shown: report.Shown
    perform: Any  # `study.Together` where cells go side by side, else `study.Perform`
    together: bool
    unfinished: Path | None = None  # where runs keep their state as they go

    def sources(self) -> list[Path]:
        """Files that the numbers depend on."""
        used = {self.module, *([] if self.together else [robots, sac])}
        return [Path(str(module.__file__)) for module in used]

    def table(self, found: Found) -> str:
        """Markdown."""
        return report.table(found, self.plan, self.shown)


def _plan(
    name: str,
    compared: Sequence[str],
    rates: tuple[float, ...],
    tuning: int,
    seeds: tuple[int, ...],
) -> Plan:
    chosen = tuple(range(TUNED_ON, TUNED_ON + tuning))
    return Plan(dict.fromkeys(compared, ("",)), rates, chosen, seeds, (name,))


LEFT = (
    "As CAGrad's command (README.md), but for the environments, today's with rewards of version 1 "
    "(the published runs had the environments of early 2021); CAGrad's problem, which is solved "
    "exactly (there by 21 steps of descent); and, outside `--full`, the sizes."
)
"""What of CAGrad's command is not repeated."""


PUBLISHED = {
    "MT10": "Published success on MT10, with an earlier release of Meta-World: CAGrad 0.83, its "
    "fast variant 0.82, others 0.49 to 0.73, CARE, with descriptions of the tasks, 0.84.",
    "MT50": "Published success on MT50, with an earlier release of Meta-World: CAGrad 0.52, its "
    "fast variant 0.50, others 0.36 to 0.50, CARE, with descriptions of the tasks, 0.54.",
}
"""As reported by CAGrad's authors."""


GRIDS = report.Shown(
    metrics=(
        report.Metric("area", "area under the gap", True),
        report.Metric("final", "gap at the end", True),
    ),
    worst="gap of the worst task",
    notes=(
        f"Mazes: {grids.TASKS} tasks of {grids.SIDE} x {grids.SIDE} fields, actions permuted, slip "
        f"{grids.SLIP:g}, discount {grids.DISCOUNT:g}; {grids.WIDTH} shared tanh units; exact "
        "values and gradients. The gap is the share of the best value that the policy misses; "
        f"losses are gaps times {', '.join(f'{s:g}' for s in grids.SCALES)}. `{SCALES_UNDONE}` is "
        "the mean of the gaps themselves: what one gains who knows the scales.",
    ),
)

SUCCESS = (
    report.Metric("area", "success, mean over training", False),
    report.Metric("final", "success at the end", False),
)

POINTS = report.Shown(
    metrics=SUCCESS,
    worst="success on the worst goal",
    notes=(
        f"Point mass: {points.TASKS} goals, actuators turned by an angle of the task's own, "
        f"{points.EPISODES} episodes of {points.HORIZON} steps a task and iteration, "
        f"{points.PASSES} steps of Adam on each, policy and value balanced by themselves. "
        f"The task is seen as a one-hot code, but by `{BLIND}`; `{HEADS}` has last layers a task, "
        f"`{INDEPENDENT}` a whole network a task, with as many times the parameters.",
    ),
)


def _robots(what: str, benchmark: str, reward: str) -> str:
    tasks = ", ".join(robots.BENCHMARKS[benchmark]) or benchmark
    return f"Meta-World ({tasks}), rewards {reward}: {what}."


def _together(
    module: ModuleType, settings: Any, compared: Sequence[str], rates: tuple[float, ...],
    tuning: int, seeds: tuple[int, ...], shown: report.Shown,
) -> Part:  # fmt: skip
    name = module.__name__.rpartition(".")[2]
    plan = _plan(name, compared, rates, tuning, seeds)
    perform = functools.partial(module.perform, settings)
    return Part(name, module, settings, plan, shown, perform, True)


def grids_part(size: str, rules: Sequence[str], seeds: tuple[int, ...], device: str) -> Part:
    """Exact policy gradients."""
    level, rates = SIZES.index(size), (3e-2, 1e-1, 3e-1, 1.0)
    settings, tuning = grids.Settings((30, 150, 600)[level], device), (2, 8, 16)[level]
    return _together(grids, settings, (*rules, SCALES_UNDONE), rates, tuning, seeds, GRIDS)


def points_part(size: str, rules: Sequence[str], seeds: tuple[int, ...], device: str) -> Part:
    """Proximal policy optimisation of a point mass."""
    level, rates = SIZES.index(size), (5e-3, 1e-2, 2e-2, 4e-2)
    settings, tuning = points.Settings((8, 24, 96)[level], device), (1, 3, 16)[level]
    compared = (*rules, HEADS, BLIND, INDEPENDENT)
    return _together(points, settings, compared, rates, tuning, seeds, POINTS)


def _said(settings: sac.Settings) -> str:
    """The settings in words."""
    return (
        f"soft actor–critic, {settings.steps} steps of every environment in episodes of "
        f"{settings.horizon}, rewards over their running deviation times {settings.scale:g}, "
        f"discount {settings.discount:g}, observations "
        f"{'scaled' if settings.scaled else 'as they are'}, one update per step after "
        f"{settings.random} random ones, whose updates come at once, batches of {settings.batch} "
        f"for all tasks, layers {settings.hidden}, CAGrad with c = {settings.c:g}; success at any "
        f"step of an episode, actions without noise, {settings.episodes} per task"
    )


def sac_part(
    name: str,
    size: str,
    rules: Sequence[str],
    seeds: tuple[int, ...],
    device: str,
    unfinished: Path,
) -> Part:
    """Soft actor–critic: on two tasks (`sac`), or on `mt10` and `mt50` with the papers' budget."""
    level = SIZES.index(size)
    benchmark, tasks = {"sac": ("two", 2), "mt10": ("MT10", 10), "mt50": ("MT50", 50)}[name]
    papers = name != "sac" and size == "full"
    settings = sac.Settings(
        benchmark, "v1", scale=1.0 if papers else 0.1, discount=0.99 if papers else 0.95,
        scaled=not papers, horizon=150 if papers else 200,
        steps=2_000_000 if papers else (1_000, 5_000, 20_000)[level],
        random=1_500 if papers else 500, batch=min(128 * tasks, 1_280),
        hidden=(400, 400, 400) if papers else (256, 256), capacity=1_000_000 // tasks,
        every=10_000 if papers else 1_000 if size == "full" else 500, episodes=1 if papers else 2,
        device=device, c=0.9 if tasks < 50 else 0.5,
    )  # fmt: skip
    rates = (3e-4,) if papers else (1e-3,) if size == "quick" else (3e-4, 1e-3)
    plan = _plan(name, (*rules, HEADS, INDEPENDENT), rates, (1, 1, 2)[level], seeds)
    return Part(
        name,
        sac,
        settings,
        plan._replace(tuning=seeds[:1]) if papers else plan,  # one rate: no run but to choose it
        report.Shown(
            metrics=(*SUCCESS, report.Metric("return", "return at the end", False)),
            worst="success on the worst task",
            notes=(
                _robots(_said(settings), benchmark, "v1"),
                LEFT,
                "step: of one update of critics, actor and temperature, the environments apart.",
                *([PUBLISHED[benchmark]] if benchmark in PUBLISHED else []),
            ),
        ),
        functools.partial(
            sac.perform,
            robots.Environments(benchmark, settings.horizon, settings.reward),
            unfinished,
            settings,
        ),
        False,
        unfinished=unfinished,
    )
