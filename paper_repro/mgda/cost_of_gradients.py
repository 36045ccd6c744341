"""What do many tasks' gradients cost, and what does the bound save?"""

import functools
from collections.abc import Callable
from typing import Any

import mtlfunc as mf

from ..report.bounds import FLAT, GROWS, QUARTER, SMALL
from ..report.counting import operations
from ..report.decisions import Measured, Row, decided, exact, named_so
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings, Verdict
from .network import (
    LARGE,
    SAMPLES,
    decode,
    encode,
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
    yield cheaper()


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


BOUND_WIDTH = 256
HEADS = {"small heads": 0, LARGE: 512}


def cheaper() -> Claim:
    """Operations of a step of MGDA-UB as the tasks become many, and of MGDA's."""
    exact, bound = mf.jacobian("trunk.*"), mf.representation(encode, decode, shared="trunk.*")

    def counted(probe: mf.Probe, heads: str, tasks: int) -> float:
        return operations(step_of(tasks, BOUND_WIDTH, probe, head=HEADS[heads]))

    many = {heads: counted(bound, heads, MOST) for heads in HEADS}
    small = "small heads"
    return Claim(
        "SU-29",
        {
            f"MGDA-UB, {heads}: operations at T = {MOST} over T = 1": most
            / counted(bound, heads, 1)
            for heads, most in many.items()
        }
        | {
            f"{small}: operations of MGDA over MGDA-UB at T = {MOST}": counted(exact, small, MOST)
            / many[small]
        },
        "with small heads the operations of a step hardly grow with T; with large heads the T "
        "passes through them are what a step costs",
    )
