"""What do many tasks' gradients cost, and what does the bound save?"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mtlfunc as mf

from ..report.bounds import FLAT, GROWS, QUARTER, SMALL
from ..report.counting import operations
from ..report.decisions import Claims, Measured, Row, decided, exact, named_so
from ..report.extremes import largest
from ..report.figures import METHOD_COLOURS, axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from .network import (
    LARGE,
    SAMPLES,
    decode,
    encode,
    in_turns,
    losses,
    network,
    peak_bytes,
    step_of,
    trunk_size,
)

MOST = 32  # tasks of the costs


@decided("the peak memory of T rows stays below a quarter of T gradients'", trained=False)
def judge_infeasible(measured: Measured) -> Verdict:
    def peak(way: str) -> float:
        name = named_so(measured, f"{way}, T = {MOST}: peak memory over one gradient's")[0]
        return measured[name]

    if peak("T rows") <= MOST * QUARTER.now:
        return "does not hold"
    error = measured["relative difference of the two Gramians, largest"]
    without_rows = peak("layerwise Gramian*") < MOST * QUARTER.now and error < SMALL.now
    return "holds only when" if without_rows else "holds"


TIMED = True  # a processor's time or memory, which another device has not
CLAIMS = {
    "SU-27": Row(
        "For very large models even T separate gradients are infeasible.",
        judge_infeasible,
        when="rows are stored; the layerwise Gramian of 32 tasks takes the memory of {layerwise "
        "Gramian, chunks of 4, T = 32: peak memory over one gradient's} gradients",
    ),
    "SU-29": Row(
        "Minimise the bound's right-hand side: only gradients with respect to encodings "
        "are needed, which is much cheaper.",
        exact(
            ("MGDA-UB, small heads: operations at T = 32 over T = 1", "<", FLAT),
            ("small heads: operations of MGDA over MGDA-UB at T = 32", ">", GROWS),
            only_when=(f"MGDA-UB, {LARGE}: operations at T = 32 over T = 1", ">", GROWS),
        ),
        when="the heads are small against the trunk",
    ),
}
claim = Claims(CLAIMS)

TASKS, WIDTH = (2, 8, 32), 512
ONE, ROWS, LAYERS = WAYS = ("one gradient", "T rows", "layerwise Gramian, chunks of 4")


class Costs(NamedTuple):
    """Of every way and number of tasks."""

    memory: dict[tuple[str, int], int]  # bytes at the peak
    best: dict[tuple[str, int], float]  # seconds
    error: float  # largest relative difference of the two Gramians
    size: int  # shared parameters


def many_gradients(turns: int) -> Costs:
    memory: dict[tuple[str, int], int] = {}
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    error = 0.0
    for count in TASKS:
        params, batch = network(count, WIDTH)
        equal = mf.balance(losses, mf.mean(), mf.losses_only())
        state = equal.init(params, batch)
        calls[ONE, count] = lambda p=params, b=batch, s=state, step=equal: step.update(p, b, s)
        calls[ROWS, count] = lambda p=params, b=batch: mf.task_gramian(
            losses, p, b, shared="trunk.*", engine="rows"
        )
        calls[LAYERS, count] = lambda p=params, b=batch: mf.task_gramian(
            losses, p, b, shared="trunk.*", engine="layerwise", chunk_size=4
        )
        memory |= {(way, count): peak_bytes(calls[way, count]) for way in WAYS}
        exact, other = calls[ROWS, count]()[1], calls[LAYERS, count]()[1]
        error = largest(error, float((exact - other).norm() / exact.norm()))
    best = in_turns(calls, turns, "T gradients")
    return Costs(memory, best, error, trunk_size(network(2, WIDTH)[0]))


def run(settings: Settings) -> Findings:
    costs = many_gradients(settings.count(4))
    yield infeasible(costs)
    yield from bound(settings.count(4))


def infeasible(costs: Costs) -> Claim:
    memory, best, error, size = costs
    most = TASKS[-1]
    last = {way: memory[way, most] / memory[ONE, most] for way in WAYS}
    return claim(
        "SU-27",
        {
            f"{way}, T = {count}: peak memory, MiB": memory[way, count] / 2**20
            for way, count in memory
        }
        | {f"{way}, T = {most}: peak memory over one gradient's": last[way] for way in WAYS[1:]}
        | {
            f"{way}, T = {most}: time over one gradient's": best[way, most] / best[ONE, most]
            for way in WAYS[1:]
        }
        | {"relative difference of the two Gramians, largest": error},
        f"{size} shared parameters, {SAMPLES} samples. Their memory grows as T·P, while the "
        "Gramian layer by layer and the weighted gradient need no row; the T backward passes "
        "remain",
    )


COUNTS, BOUND_WIDTH = (1, 4, 16, 32), 256
HEADS = {"small heads": 0, LARGE: 512}
PROBES = {
    "MGDA": lambda: mf.jacobian("trunk.*"),
    "MGDA-UB": lambda: mf.representation(encode, decode, shared="trunk.*"),
}
Steps = Mapping[tuple[str, str, int], float]
"""A number a step, by (method, heads, tasks)."""


def bound(turns: int) -> Findings:
    """A step of MGDA and of MGDA-UB."""
    calls = {
        (name, place, count): step_of(count, BOUND_WIDTH, make(), head=head)
        for name, make in PROBES.items()
        for place, head in HEADS.items()
        for count in COUNTS
    }
    counted = {key: operations(call) for key, call in calls.items()}
    best = in_turns(calls, turns, "MGDA and its bound")
    yield bound_figure(counted, best)
    yield cheaper(counted, best)


def bound_figure(counted: Steps, best: Steps) -> Figure:
    canvas, panels = axes(1, 2, (13, 4.8))
    for name, place in itertools.product(PROBES, HEADS):
        style = "-" if place == "small heads" else "--"
        times = [1e3 * best[name, place, count] for count in COUNTS]
        growth = [counted[name, place, count] / counted[name, place, 1] for count in COUNTS]
        for panel, values in zip(panels, (times, growth), strict=True):
            panel.plot(
                COUNTS,
                values,
                color=METHOD_COLOURS[name],
                linestyle=style,
                marker="o",
                label=f"{name}, {place}",
            )
    panels[0].set(xlabel="tasks T", ylabel="time a step, ms", xscale="log", yscale="log")
    panels[1].set(
        xlabel="tasks T",
        ylabel="operations of a step, relative to T = 1",
        xscale="log",
        yscale="log",
    )
    for panel in panels:
        panel.set_xticks(COUNTS, [str(count) for count in COUNTS])
        panel.minorticks_off()
    panels[0].legend()
    return Figure(
        "bound",
        "A step of MGDA and of MGDA-UB against the number of tasks: trunk of two layers with "
        f"{BOUND_WIDTH} units, code of 16 numbers, batch of {SAMPLES}; heads of "
        "one linear unit, or with a hidden layer. Left: best time of several turns. Right: "
        "counted operations.",
        canvas,
    )


def cheaper(counted: Steps, best: Steps) -> Claim:
    most, series = COUNTS[-1], list(itertools.product(PROBES, HEADS))
    growth = {key: best[*key, most] / best[*key, 1] for key in series}
    flops = {key: counted[*key, most] / counted[*key, 1] for key in series}
    return claim(
        "SU-29",
        {
            f"{name}, {place}: operations at T = {most} over T = 1": value
            for (name, place), value in flops.items()
        }
        | {
            f"{name}, {place}: time at T = {most} over T = 1": value
            for (name, place), value in growth.items()
        }
        | {
            f"{place}: operations of MGDA over MGDA-UB at T = {most}": counted["MGDA", place, most]
            / counted["MGDA-UB", place, most]
            for place in HEADS
        }
        | {
            f"{place}: time of MGDA over MGDA-UB at T = {most}": best["MGDA", place, most]
            / best["MGDA-UB", place, most]
            for place in HEADS
        },
        "small heads: the operations of a step hardly grow with T (below 1.5 times at T = 32, and "
        "half of MGDA's); with large heads the T passes through them are what a step costs",
    )
