"""Which solver finds the shortest convex combination, and how fast?"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import NEARLY_ALL, SEARCHED
from ..report.decisions import Claims, Measured, Row, decided, ends, exact, verdict_of
from ..report.extremes import largest
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.grids import at_edge
from ..report.intervals import named
from .common import COLOURS, DASHES, TASKS, families, relative_gap, scaled, shortest, solved
from .naive import counts_of
from .softmax import SMALL, Grid, best_rate, softmax_descent, softmax_grid

ENOUGH = 5000  # steps of the softmax form


@decided(
    f"in both families fewer than 95 % of the Gramians get there, at {ENOUGH} steps or more, by "
    "Wilson's interval"
)
def judge_softmax_form(measured: Measured) -> Verdict:
    name = "{}: share that reaches a relative gap of 1e-6 at the best step"
    there, short = [], []
    for family in ("interior", "face"):
        edge = measured[f"{family}: best step at the grid's edge (1: yes)"]
        settled = measured["steps"] >= ENOUGH and not edge
        low, high = ends(measured, name.format(family))
        there.append(low > NEARLY_ALL.now)
        short.append(settled and high < NEARLY_ALL.now)
    return verdict_of(there, [all(short)])


@decided("one step length serves all scales in 95 % of the draws of both families, by the interval")
def judge_learning_rate(measured: Measured) -> Verdict:
    single, tuned = (
        [
            ends(measured, f"{family}: share that reaches 1e-6, {name}")
            for family in ("interior", "face")
        ]
        for name in ("best single step for scales 1e-4 to 1e4", "step tuned to the scale")
    )
    if all(low > NEARLY_ALL.now for low, _ in single):
        return "does not hold"
    # as long as one step may serve all, or tuning does not help either, the step is not the reason
    if all(high >= NEARLY_ALL.now for _, high in single) or tuned[0][0] <= NEARLY_ALL.now:
        return "inconclusive"
    if tuned[1][0] > NEARLY_ALL.now:
        return "holds"
    return "holds only when" if tuned[1][1] < NEARLY_ALL.now else "inconclusive"


TIMED = True  # a processor's time or memory, which another device has not
CLAIMS = {
    "SU-21": Row(
        "T > 2: Frank–Wolfe, towards τ = argmin ⟨g_t, Σ w g⟩, with a search on the "
        "segment from w to e_τ, which is the T = 2 problem; it suits convex sets.",
        exact(
            ("one searched step against the closed form for T = 2, *", "<", 1e-9),
            ("all steps, largest negative weight or |Σw - 1|", "<", 1e-9),
        ).open_unless(("optimum *, line search: median relative gap at the end", "<=", SEARCHED)),
    ),
    "SU-23": Row(
        "Gradient descent on w = softmax(a) solves the min-norm problem without constraints.",
        judge_softmax_form,
        when="the optimum lies inside the simplex; on a face it is not reached",
    ),
    "SU-24": Row(
        "A guess: nobody uses the unconstrained form because its learning rate needs tuning.",
        judge_learning_rate,
        when="the optimum lies inside the simplex; on a face no step is fast enough",
    ),
}
claim = Claims(CLAIMS)


def contenders(rate: float) -> dict[str, Callable[[int], mf.types.Solver]]:
    frank_wolfe = mf.solvers.frank_wolfe
    return {
        "step 1/(n+1)": lambda n: frank_wolfe(n, "1/(n+1)"),
        "step 2/(n+2)": lambda n: frank_wolfe(n, "2/(n+2)"),
        "line search": lambda n: frank_wolfe(n, "line-search"),
        "away": lambda n: frank_wolfe(n, "away"),
        "pairwise": lambda n: frank_wolfe(n, "pairwise"),
        "projected gradient": mf.solvers.projected_gradient,
        "softmax": lambda n: softmax_descent(n, rate),
    }


class Trace(NamedTuple):
    """A solver at several counts of iterations."""

    counts: list[int]  # iterations
    gaps: Tensor  # [count, draw], relative
    seconds: list[float]  # a Gramian, by count
    infeasible: float


def trace(
    make: Callable[[int], mf.types.Solver], gramians: Tensor, counts: tuple[int, ...], label: str
) -> Trace:
    gaps, seconds, infeasible = [], [], 0.0
    solved(make(1), gramians)  # first calls pay for more than themselves
    for count in tqdm(counts, desc=label, leave=False):
        start = time.perf_counter()
        weights = solved(make(count), gramians).weights
        once = [time.perf_counter() - start]
        for _ in range(2 if count < 100 else 0):
            start = time.perf_counter()
            solved(make(count), gramians)
            once.append(time.perf_counter() - start)
        seconds.append(min(once) / len(gramians))
        gaps.append(relative_gap(gramians, weights))
        infeasible = largest(
            infeasible, float(-weights.min()), float((weights.sum(-1) - 1).abs().max())
        )
    return Trace(list(counts), torch.stack(gaps), seconds, infeasible)


def run(settings: Settings) -> Findings:
    draws = settings.count(32)
    counts = counts_of(settings)
    each = {name: scaled(g) for name, g in families(draws).items()}
    both = torch.cat(list(each.values()))
    budget = settings.count(30000 if settings.full else ENOUGH)
    # enough for an interval of a share within 5 % of 1
    wide = families(settings.count(80))
    grids = {name: softmax_grid(g, budget) for name, g in wide.items()}
    rate = best_rate(list(grids.values()))
    traces = {name: trace(make, both, counts, name) for name, make in contenders(rate).items()}
    exact = trace(lambda n: mf.solvers.active_set(), both, (1,), "active set")
    mean_faces = float(solved(mf.solvers.active_set(), both).steps.double().mean())
    yield solvers_figure(traces, exact, mean_faces, draws, rate)
    yield line_search(traces, both, draws)
    yield softmax_form(grids)
    slower = traces["softmax"].seconds[-1] / exact.seconds[0]
    yield learning_rate(grids, slower)


def solvers_figure(
    traces: dict[str, Trace], exact: Trace, faces: float, draws: int, rate: float
) -> Figure:
    canvas, axis = axes(2, 2, (14, 10))
    for row, (family, part) in enumerate(
        (("optimum inside the simplex", slice(0, draws)), ("optimum on a face", slice(draws, None)))
    ):
        by_count, by_time = axis[2 * row], axis[2 * row + 1]
        for (name, found), colour, style in zip(traces.items(), COLOURS, DASHES, strict=False):
            gap = found.gaps[:, part].clamp_min(1e-17)
            middle = gap.median(1).values
            for one, x in ((by_count, found.counts), (by_time, [1e6 * s for s in found.seconds])):
                one.plot(
                    x, middle, color=colour, linestyle=style, marker="o", markersize=3, label=name
                )
            by_count.fill_between(
                found.counts,
                gap.quantile(0.1, 1),
                gap.quantile(0.9, 1),
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        gap = exact.gaps[0, part].clamp_min(1e-17).median()
        by_count.plot(faces, gap, "k*", markersize=14, label="active set (faces solved)")
        by_time.plot(1e6 * exact.seconds[0], gap, "k*", markersize=14, label="active set")
        _gap_axis(by_count, f"{family}", "iterations")
        _gap_axis(by_time, f"{family}", "time a Gramian, µs")
    canvas.legend(*axis[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Figure(
        "solvers",
        f"Relative duality gap of every solver on the same {2 * draws} Gramians of {TASKS} "
        "tasks, against iterations (median, band from the 10 % to the 90 % "
        "quantile) and against wall-clock time, all Gramians of a call in one batch. Softmax: "
        f"gradient descent on logits, step {rate:g}/max ‖g‖², the best "
        "of a grid. Gaps below 1e-17 are drawn there.",
        canvas,
    )


def _gap_axis(axis: Axes, title: str, x: str) -> None:
    axis.set(
        title=title,
        xlabel=x,
        ylabel="relative duality gap",
        xscale="log",
        yscale="log",
        ylim=(3e-18, 3),
    )


def reached(found: Trace, part: slice, level: float) -> float:
    """The first count whose median gap over some draws is at most `level`. Infinite if there is
    none.
    """
    middle = found.gaps[:, part].median(1).values
    return next(
        (float(n) for n, gap in zip(found.counts, middle, strict=True) if gap <= level),
        float("inf"),
    )


def line_search(traces: dict[str, Trace], gramians: Tensor, draws: int) -> Claim:
    # One step of the search from equal weights is the T = 2 problem of the mean and the task it
    # serves worst.
    mean = torch.full_like(gramians[:, 0], 1 / TASKS)
    toward = torch.nn.functional.one_hot(
        (gramians @ mean[:, :, None])[..., 0].argmin(-1), TASKS
    ).to(mean)
    pair = torch.stack([mean, toward], 1)
    two = shortest(pair @ gramians @ pair.mT)
    by_hand = torch.einsum("dk,dkt->dt", two, pair)
    difference = float((by_hand - solved(mf.solvers.frank_wolfe(1), gramians).weights).abs().max())
    rules = [
        name
        for name in traces
        if name in ("step 1/(n+1)", "step 2/(n+2)", "line search", "away", "pairwise")
    ]
    infeasible = largest(traces[name].infeasible for name in rules)
    numbers: dict[str, float] = {
        "one searched step against the closed form for T = 2, largest difference of "
        "weights": difference,
        "all steps, largest negative weight or |Σw - 1|": infeasible,
    }
    for place, part in (("inside", slice(0, draws)), ("face", slice(draws, None))):
        ends = {name: float(traces[name].gaps[-1, part].median()) for name in rules}
        first = {name: reached(traces[name], part, 1e-3) for name in rules}
        numbers |= {
            f"optimum {place}, {name}: iterations to a median relative gap of 1e-3": first[name]
            for name in rules
            if first[name] < float("inf")
        }
        numbers |= {
            f"optimum {place}, {name}: median relative gap at the end": ends[name] for name in rules
        }
    return claim(
        "SU-21",
        numbers,
        f"{len(gramians)} Gramians of {TASKS} tasks, {traces['line search'].counts[-1]} "
        "iterations, seen at the figure's counts. On a face the search zig-zags, no faster than "
        "the fixed steps; away and pairwise steps reach rounding",
    )


def near_vertex(draws: int) -> dict[str, float]:
    """A vertex is stationary however bad: at softmax weights near the wrong one."""
    g = scaled(families(draws)["interior"])
    first = torch.nn.functional.one_hot(torch.zeros(len(g), dtype=torch.int64), TASKS)
    weights = torch.softmax(first * 20.0, -1).to(g)
    speed = torch.einsum("dts,ds->dt", g, weights)
    slope = (weights * (speed - (weights * speed).sum(-1, keepdim=True))).abs().amax(-1)
    where = "at softmax weights within 1e-8 of one task"
    return {
        f"{where}: largest slope in the logits, units of max ‖g‖²": float(slope.max()),
        f"{where}: median relative gap": float(relative_gap(g, weights).median()),
    }


def softmax_form(grids: dict[str, Grid]) -> Claim:
    steps, draws = grids["interior"].steps, grids["interior"].gaps.shape[-1]
    numbers: dict[str, float] = {}
    for name, grid in grids.items():
        middle = grid.gaps[len(grid.scales) // 2].median(-1).values
        best = int(middle.argmin())
        numbers |= {
            **named(
                f"{name}: share that reaches a relative gap of 1e-6 at the best step", grid.tuned()
            ),
            f"{name}: best step times max ‖g‖²": float(grid.rates[best]),
            f"{name}: median relative gap there": float(middle[best]),
            f"{name}: best step at the grid's edge (1: yes)": at_edge([best], len(middle)),
        }
    numbers["steps"] = steps
    numbers |= near_vertex(draws)
    return claim(
        "SU-23",
        numbers,
        f"reaches a relative gap of 1e-6 in {steps} steps at the best of 25 step lengths, "
        f"{draws} Gramians a family; needs an optimum inside the simplex, "
        "since boundary optima lie at infinity (median gap "
        f"{numbers['face: median relative gap there']:.0e} there) and vertices are stationary",
    )


def across_scales(draws: int) -> dict[str, float]:
    """The other solvers on G times 1e-4 and 1e4."""
    found = {}
    for name, make in {
        "Frank–Wolfe, pairwise, 1000 steps": lambda: mf.solvers.frank_wolfe(1000, "pairwise"),
        "active set": mf.solvers.active_set,
    }.items():
        shares = []
        for scale in (1e-4, 1e4):
            both = scale * torch.cat([scaled(part) for part in families(draws).values()])
            gaps = relative_gap(both, solved(make(), both).weights)
            shares.append(float((gaps < SMALL).double().mean()))
        found[f"{name}: least share over scales 1e-4 and 1e4 of G"] = min(shares)
    return found


def learning_rate(grids: dict[str, Grid], slower: float) -> Claim:
    steps, draws = grids["interior"].steps, grids["interior"].gaps.shape[-1]
    tuned = {name: grid.tuned() for name, grid in grids.items()}
    single = {name: grid.single() for name, grid in grids.items()}
    spans = {name: grid.span() for name, grid in grids.items()}
    return claim(
        "SU-24",
        {
            key: value
            for what, shares in (
                ("best single step for scales 1e-4 to 1e4", single),
                ("step tuned to the scale", tuned),
            )
            for name, share in shares.items()
            for key, value in named(f"{name}: share that reaches 1e-6, {what}", share).items()
        }
        | {
            f"{name}: ratio of the largest to the smallest step within 90 % of the best "
            "share": value
            for name, value in spans.items()
        }
        | across_scales(max(4, draws // 4))
        | {"time of the softmax form over the active set's, at the last count": slower},
        "motives cannot be measured; judged is whether the step is what stands in the way. No "
        "step serves all scales of G (1e-4 to 1e4), and the step is the "
        "only obstacle when the optimum lies inside the simplex; on a face the tuned form is "
        f"too slow as well ({steps} steps). Frank–Wolfe has no step to "
        "tune and none of them sees the scale",
    )
