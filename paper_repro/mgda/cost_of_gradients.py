"""What do many tasks' gradients cost, and what does the bound save?"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import mtlfunc as mf

from ..report.bounds import FLAT, GROWS, QUARTER, SMALL
from ..report.counting import operations
from ..report.decisions import Measured, Row, decided, exact, named_so
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

TASKS, WIDTH = (2, 8, 32), 512


def run(settings: Settings) -> Findings:
    yield infeasible()
    calls = {
        (name, place, count): step_of(count, BOUND_WIDTH, make(), head=head)
        for name, make in PROBES.items()
        for place, head in HEADS.items()
        for count in COUNTS
    }
    counted = {key: operations(call) for key, call in calls.items()}
    yield bound_figure(counted, in_turns(calls, settings.count(4), "MGDA and its bound"))
    yield cheaper(counted)


def infeasible() -> Claim:
    """Memory of the most tasks' gradients, and whether both ways give one Gramian."""

    def ways(count: int) -> dict[str, Callable[[], Any]]:
        params, batch = network(count, WIDTH)
        gramian = functools.partial(mf.task_gramian, losses, params, batch, shared="trunk.*")
        return {
            "T rows": functools.partial(gramian, engine="rows"),
            "layerwise Gramian, chunks of 4": functools.partial(
                gramian, engine="layerwise", chunk_size=4
            ),
        }

    error = 0.0
    for count in TASKS:
        exact, other = (call()[1] for call in ways(count).values())
        error = largest(error, float((exact - other).norm() / exact.norm()))
    params, batch = network(MOST, WIDTH)
    equal = mf.balance(losses, mf.mean(), mf.losses_only())
    state = equal.init(params, batch)
    one = peak_bytes(lambda: equal.update(params, batch, state))
    return Claim(
        "SU-27",
        {
            f"{way}, T = {MOST}: peak memory over one gradient's": peak_bytes(call) / one
            for way, call in ways(MOST).items()
        }
        | {"relative difference of the two Gramians, largest": error},
        f"{trunk_size(params)} shared parameters, {SAMPLES} samples. T rows are T·P numbers; the "
        "Gramian layer by layer and the weighted gradient need no row, but T backward passes",
    )


COUNTS, BOUND_WIDTH = (1, 4, 16, 32), 256
HEADS = {"small heads": 0, LARGE: 512}
PROBES = {
    "MGDA": lambda: mf.jacobian("trunk.*"),
    "MGDA-UB": lambda: mf.representation(encode, decode, shared="trunk.*"),
}
Steps = Mapping[tuple[str, str, int], float]
"""A number a step, by (method, heads, tasks)."""


def bound_figure(counted: Steps, best: Steps) -> Figure:
    canvas, panels = axes(1, 2, (13, 4.8))
    for name, place in itertools.product(PROBES, HEADS):
        times = [1e3 * best[name, place, count] for count in COUNTS]
        growth = [counted[name, place, count] / counted[name, place, 1] for count in COUNTS]
        for panel, values in zip(panels, (times, growth), strict=True):
            panel.plot(
                COUNTS,
                values,
                color=METHOD_COLOURS[name],
                linestyle="-" if place == "small heads" else "--",
                marker="o",
                label=f"{name}, {place}",
            )
    labels = "time a step, ms", "operations of a step, relative to T = 1"
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xlabel="tasks T", ylabel=label, xscale="log", yscale="log")
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


def cheaper(counted: Steps) -> Claim:
    most, small = COUNTS[-1], "small heads"
    return Claim(
        "SU-29",
        {
            f"MGDA-UB, {place}: operations at T = {most} over T = 1": counted[
                "MGDA-UB", place, most
            ]
            / counted["MGDA-UB", place, 1]
            for place in HEADS
        }
        | {
            f"{small}: operations of MGDA over MGDA-UB at T = {most}": counted["MGDA", small, most]
            / counted["MGDA-UB", small, most]
        },
        "with small heads the operations of a step hardly grow with T; with large heads the T "
        "passes through them are what a step costs",
    )
