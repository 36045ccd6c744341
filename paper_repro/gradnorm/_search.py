"""Does tuning α alone match a search over static weights?"""

from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..report.bounds import EXPONENTIAL, STATIC
from ..report.decisions import Exact, Measured, Row, decided, named_so, sided
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import half_width, mean_interval, named, ratio_interval
from ..report.options import Option, Seeds, Steps, drawn
from . import lanes
from .common import TEN
from .toy_figures import Rates, Scales, Size
from .train_lanes import TRIED, random_lanes, ten_tasks, train, two_tasks


@decided("by count a full grid is not exponential in T, or α's grid grows with it", trained=False)
def search_costs(measured: Measured) -> Verdict:
    """By count alone, as the sentence."""
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


def run(settings: Settings) -> Findings:
    size, numbers = lanes.size_of(settings), {}
    for count, (static, learnt), name in (
        (2, two_tasks(settings), "static"),
        (10, ten_tasks(settings), TRIED),
    ):
        edge = learnt.settles_nothing("GradNorm") or static.settles_nothing(name)
        smallest = {static.lanes[i].weights[1] for i in static.picked(name)}
        numbers |= named(
            f"T = {count}, GradNorm over the best static weights",
            ratio_interval(learnt.judged("GradNorm"), static.judged(name)),
            unsettled=edge or (count == 2 and lanes.SECOND[-1] in smallest),
        )
    yield Claim(
        "GN-06",
        numbers,
        "final loss, learning rates searched along by both; T = 2: grid of w_2/w_1 from 1 to "
        f"{lanes.SECOND[-1]:g}; T = 10: {size.draws} log-uniform random weights and 1/L_i(0); "
        f"{size}; {lanes.PAIRED}",
    )

    ratios, alphas = len(lanes.SECOND) + 1, {2: lanes.EVERY_ALPHA, 10: lanes.TEN_ALPHAS}
    grids = {
        f"runs of a full grid of {ratios} ratios, T = {n}": ratios ** (n - 1) for n in (2, 5, 10)
    }
    yield Claim(
        "GN-25",
        grids | {f"values of α run, T = {n}": len(values) for n, values in alphas.items()},
        "by count, which is arithmetic; learning rates multiply both",
    )


@drawn
def search(
    scales: Scales = TEN,
    draws: Annotated[
        int, Option("random static weights, each with one of the rates", 1, 10_000)
    ] = 20,
    alphas: Annotated[
        tuple[float, ...], Option("strengths α of GradNorm", 0.0, 10.0)
    ] = lanes.TEN_ALPHAS,
    rates: Rates = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    steps: Steps = 400,
    seeds: Seeds = 4,
    width: Size = 32,
    batch: Size = 32,
) -> Figure:
    """GradNorm next to a random search over static weights."""
    size = lanes.Size(width, batch, steps, seeds, rates, rates, rates)
    reciprocal = tuple(x**-2 for x in scales)
    static = [
        *(lanes.Lane(lanes.EQUAL, lr, scales=scales) for lr in rates),
        *(lanes.Lane(lanes.FIXED, lr, scales=scales, weights=reciprocal) for lr in rates),
        *random_lanes(lanes.SEARCH, scales, draws, rates),
    ]
    learnt = [lanes.Lane(f"GradNorm, {a:g}", lr, a, scales=scales) for a in alphas for lr in rates]
    fixed, dynamic = train(f"T = {len(scales)}", static, learnt, size, Settings(seeds=seeds))
    traces = dict.fromkeys((lanes.SEARCH, lanes.EQUAL, lanes.FIXED), fixed) | {"GradNorm": dynamic}
    canvas, (panel,) = axes(1, 1, (7.5, 4.6))
    final = fixed.final(lanes.SEARCH)
    final = final[final.mean(1).argsort()]
    look: dict[str, Any] = {"color": lanes.COLOUR[lanes.SEARCH], "label": lanes.SEARCH}
    panel.errorbar(np.arange(1, draws + 1), final.mean(1), half_width(final), fmt="o", **look)
    for name, what in (("GradNorm", "runs"), (lanes.EQUAL, "rates"), (lanes.FIXED, "rates")):
        trace, colour = traces[name], lanes.COLOUR[name]
        mean, low, high = mean_interval(trace.judged(name))
        label = f"{name}, best of {len(trace.named(name))} {what}"
        panel.axhline(mean, color=colour, linestyle="--", label=label)
        panel.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
    panel.set(
        xlabel="random draw, best first",
        ylabel="mean of $L_i/L_i(0)$ on test data at the end",
        title=f"T = {len(scales)}",
    )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylim(bottom=0)
    panel.legend()
    found = [
        {
            "method": name,
            "rate": trace.lanes[i].lr,
            "alpha": trace.lanes[i].alpha if name == "GradNorm" else None,
            "weights": trace.lanes[i].weights,
            "final": float(values.mean()),
        }
        for name, trace in traces.items()
        for i, values in zip(trace.named(name), trace.final(name), strict=True)
    ]
    return Figure(
        "search",
        f"GradNorm beside {draws} random static weights, log-uniform over three decades; σ of "
        f"{', '.join(f'{x:g}' for x in scales)}. {size}. {lanes.PAIRED}.",
        canvas,
        found,
    )
