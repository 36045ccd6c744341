"""Does tuning α alone match a search over static weights?"""

from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import mtlfunc as mf

from ..report.bounds import EXPONENTIAL, STATIC
from ..report.decisions import Claims, Exact, Measured, Row, decided, named_so, sided
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import half_width, mean_interval, named, ratio_interval, share_interval
from ..report.options import Option, Seeds, Steps, drawn
from . import lanes
from .common import TEN
from .lanes import Size as Sizes
from .rivals import ten_tasks, two_tasks
from .toy_figures import Scales, Size
from .train_lanes import train


@decided("by count a full grid is not exponential in T, or α's grid grows with it", trained=False)
def search_costs(measured: Measured) -> Verdict:
    """By count alone, as the sentence; what random draws find stands next to it."""
    grid = [measured[name] for name in named_so(measured, "runs of a full grid of *")]
    exponential = all(later > EXPONENTIAL.now * sooner for sooner, later in pairwise(grid))
    few, many = (measured[f"values of α run, T = {tasks}"] for tasks in (2, 10))
    return "holds" if exponential and many <= few else "does not hold"


CLAIMS = {
    "GN-06": Row(
        "Tuning α alone matches or beats an exhaustive search over the weights.",
        sided(("T = *, GradNorm over the best static weights", "<", STATIC)),
        instead="NYUv2",
    ),
    "GN-25": Exact(
        "A grid search costs exponentially many runs in T, GradNorm a few whatever T.", search_costs
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    size, (two, learnt) = lanes.size_of(settings), two_tasks(settings)
    static, dynamic, _ = ten_tasks(settings)
    yield matches(two, learnt, static, dynamic, size)
    yield few_runs(static, dynamic, size)


def matches(
    two: lanes.Trace, learnt: lanes.Trace, static: lanes.Trace, dynamic: lanes.Trace, size: Sizes
) -> Claim:
    simple = {2: two.judged(f"static, {lanes.RECIPROCAL:g}"), 10: static.judged(lanes.FIXED)}
    sides = {
        2: (learnt.judged("GradNorm"), two.judged("static")),
        10: (dynamic.judged("GradNorm"), static.judged(lanes.TRIED)),
    }
    edges = {
        2: learnt.settles_nothing("GradNorm")
        or two.settles_nothing("static")
        or any(two.lanes[i].weights[1] == lanes.SECOND[-1] for i in two.picked("static")),
        10: dynamic.settles_nothing("GradNorm") or static.settles_nothing(lanes.TRIED),
    }
    ratios = {count: ratio_interval(*side) for count, side in sides.items()}
    runs = {
        2: (len(learnt.named("GradNorm")), len(two.named("static"))),
        10: (len(dynamic.named("GradNorm")), len(static.named(lanes.TRIED))),
    }
    numbers: dict[str, float] = {}
    for count, ratio in ratios.items():
        name = f"T = {count}, GradNorm over the best static weights"
        numbers |= named(name, ratio, unsettled=edges[count])
        numbers |= named(
            f"T = {count}, GradNorm over static weights 1/L_i(0)",
            ratio_interval(sides[count][0], simple[count]),
        )
        numbers |= {
            f"T = {count}, runs of GradNorm": runs[count][0],
            f"T = {count}, runs of the search": runs[count][1],
        }
    numbers["T = 2, best w_2/w_1 of the grid"] = two.best("static").weights[1]
    numbers |= {
        "T = 2, best α": learnt.best("GradNorm").alpha,
        "T = 10, best α": dynamic.best("GradNorm").alpha,
    }
    return claim(
        "GN-06",
        numbers,
        "final loss, learning rates searched along by both; T = 2: grid of w_2/w_1 from 1 to "
        f"{lanes.SECOND[-1]:g}; T = 10: {size.draws} log-uniform random weights and 1/L_i(0), "
        "which needs no search; open where the best rate or α is at the edge of its grid; "
        f"{size}; {lanes.PAIRED}",
    )


def few_runs(static: lanes.Trace, dynamic: lanes.Trace, size: Sizes) -> Claim:
    # a draw is as good if it is in the mean over seeds: draws are independent of each other
    target = float(dynamic.judged("GradNorm").mean())
    good = int((static.final(lanes.SEARCH).mean(1) <= target).sum())
    share = share_interval(good, size.draws)
    against = ratio_interval(dynamic.judged("GradNorm"), static.judged(lanes.SEARCH))
    name = "T = 10: GradNorm over the best of as many random draws"
    edge = dynamic.settles_nothing("GradNorm") or static.settles_nothing(lanes.SEARCH)
    per_axis = len(lanes.SECOND) + 1
    grid = {count: per_axis ** (count - 1) for count in (2, 5, 10)}
    learnt_runs = {
        count: len(alphas) for count, alphas in ((2, lanes.EVERY_ALPHA), (10, lanes.TEN_ALPHAS))
    }
    return claim(
        "GN-25",
        {
            **{
                f"runs of a full grid of {per_axis} ratios, T = {count}": runs
                for count, runs in grid.items()
            },
            **{f"values of α run, T = {count}": runs for count, runs in learnt_runs.items()},
            **named(
                "T = 10: share of random draws (weights and rate) at least as good as GradNorm",
                share,
            ),
            "T = 10: runs of GradNorm (α and rate)": len(dynamic.named("GradNorm")),
            **named(name, against, unsettled=edge),
        },
        "full grids and values of α by their counts, which is arithmetic; a learning rate "
        "multiplies both. They alone decide. Beside them stands what random draws find: "
        f"{size.draws} of weights and rate, as many as GradNorm has runs, log-uniform over three "
        "decades; the share is of draws that are as good in the mean over seeds, Wilson's "
        f"interval; {size}; {lanes.PAIRED}",
    )


def random_draws(panel: Axes, static: lanes.Trace, learnt: lanes.Trace) -> list[dict[str, Any]]:
    """Random static weights from the best on, and lines of what competes; returns the records."""
    drawn = static.final(lanes.SEARCH)
    order = drawn.mean(1).argsort()
    panel.errorbar(
        np.arange(1, len(drawn) + 1),
        drawn[order].mean(1),
        half_width(drawn[order]),
        color=lanes.COLOUR[lanes.SEARCH],
        marker="o",
        linestyle="",
        label=lanes.SEARCH,
    )
    _line(
        panel,
        learnt.judged("GradNorm"),
        "GradNorm",
        f"GradNorm, best of {len(learnt.named('GradNorm'))} runs",
    )
    for name in (lanes.EQUAL, lanes.FIXED):
        _line(panel, static.judged(name), name, f"{name}, best of {len(static.named(name))} rates")
    panel.set(
        xlabel="random draw, best first",
        ylabel="mean of $L_i/L_i(0)$ on test data at the end",
        title=f"T = {static.test.shape[-1]}",
    )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return [
        {
            "method": name,
            "rate": trace.lanes[i].lr,
            "alpha": trace.lanes[i].alpha if name == "GradNorm" else None,
            "weights": trace.lanes[i].weights,
            "final": float(values.mean()),
        }
        for name, trace in (
            (lanes.SEARCH, static),
            (lanes.EQUAL, static),
            (lanes.FIXED, static),
            ("GradNorm", learnt),
        )
        for i, values in zip(trace.named(name), trace.final(name), strict=True)
    ]


@drawn
def search(
    scales: Scales = TEN,
    draws: Annotated[
        int, Option("random static weights, each with one of the rates", 1, 10_000)
    ] = 20,
    alphas: Annotated[
        tuple[float, ...], Option("strengths α of GradNorm", 0.0, 10.0)
    ] = lanes.TEN_ALPHAS,
    rates: Annotated[tuple[float, ...], Option("learning rates of Adam", 1e-12, 1e3)] = (
        1e-3,
        3e-3,
        1e-2,
        3e-2,
        1e-1,
    ),
    steps: Steps = 400,
    seeds: Seeds = 4,
    width: Size = 32,
    batch: Size = 32,
) -> Figure:
    """GradNorm next to a random search over static weights."""
    size = Sizes(width, batch, steps, seeds, rates, rates, rates)
    key = mf.random.key(10)
    weights = 10 ** (-3 * mf.random.uniform(mf.random.fold_in(key, 0), (draws, len(scales))))
    which = (mf.random.uniform(mf.random.fold_in(key, 1), (draws,)) * len(rates)).long()
    static = [lanes.Lane(lanes.EQUAL, lr, scales=scales) for lr in rates]
    static += [
        lanes.Lane(lanes.FIXED, lr, scales=scales, weights=tuple(x**-2 for x in scales))
        for lr in rates
    ]
    static += [
        lanes.Lane(lanes.SEARCH, rates[int(i)], scales=scales, weights=tuple(w.tolist()))
        for w, i in zip(weights, which, strict=True)
    ]
    learnt = [lanes.Lane(f"GradNorm, {a:g}", lr, a, scales=scales) for a in alphas for lr in rates]
    settings = Settings(seeds=seeds)
    label = f"T = {len(scales)}"
    fixed, dynamic = train(
        {
            f"{label}, static weights": ("weighted", static),
            f"{label}, GradNorm": ("gradnorm", learnt),
        },
        size,
        settings,
    )
    canvas, panels = axes(1, 1, (7.5, 4.6))
    found = random_draws(panels[0], fixed, dynamic)
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    return Figure(
        "search",
        f"GradNorm beside {draws} random static weights, log-uniform over three decades; σ of "
        f"{', '.join(f'{x:g}' for x in scales)}. {size}. {lanes.PAIRED}.",
        canvas,
        found,
    )


def _line(axis: Axes, values: np.ndarray, name: str, label: str) -> None:
    interval = mean_interval(values)
    axis.axhline(interval.mean, color=lanes.COLOUR[name], linestyle="--", label=label)
    axis.axhspan(interval.low, interval.high, color=lanes.COLOUR[name], alpha=0.15, linewidth=0)
