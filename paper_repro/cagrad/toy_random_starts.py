"""The toy from random starts: is CAGrad the steadiest rule?"""

import numpy as np

from common.problems.cagrad_toy import USUAL

from ..report.decisions import Claims, Measured, Row, decided
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import share_interval
from .toy_runs import (
    COLOURS,
    DASHES,
    WHOLE,
    Run,
    Toy,
    arrivals,
    random_ends,
    title_of,
    toy,
    with_steps,
)


@decided("CAGrad neither spreads least nor arrives more often than each of the others")
def steadiest(measured: Measured) -> Verdict:
    others = ("GD", "MGDA", "PCGrad")
    spread = "{}: standard deviation of the mean loss at the end"
    least = all(measured[spread.format("CAGrad")] < measured[spread.format(x)] for x in others)
    low = measured["CAGrad: share arriving, low"]
    clear = all(low > measured[f"{name}: share arriving, high"] for name in others)
    if least and clear:
        return "holds"
    if least or clear:
        return "holds only when"
    beaten = any(measured[spread.format(x)] < measured[spread.format("CAGrad")] for x in others)
    return "does not hold" if beaten else "inconclusive"


claim = Claims(
    Row(
        "CA-28",
        "CAGrad is the most stable and predictable of the four.",
        steadiest.open_unless(WHOLE),
    ),
)


def from_anywhere(runs: dict[str, Run]) -> Figure:
    """End points and arrival times from random starts."""
    canvas, (left, right) = axes(1, 2, (12, 4.4))
    for name in USUAL:
        ends, arrival = random_ends(runs[name]), arrivals(runs[name])
        count = len(ends)
        style = {
            "color": COLOURS[name],
            "linestyle": DASHES[name],
            "label": title_of(name),
            "linewidth": 1.8,
        }
        left.step(np.sort(ends), np.arange(1, count + 1) / count, where="post", **style)
        got = np.sort(arrival[np.isfinite(arrival)])
        right.step(
            np.append(got, runs[name].times[-1]) / 1000,
            np.append(np.arange(1, len(got) + 1), len(got)) / count,
            where="post",
            **style,
        )
    left.set(xlabel="mean loss at the end", ylabel="share of starts at or below", ylim=(0, 1.02))
    right.set(
        xlabel="thousand steps to within 0.1 of the minimum of the mean",
        ylabel="share of starts that got there",
        ylim=(0, 1.02),
        xlim=(0, None),
    )
    left.legend()
    count = len(runs["GD"].random)
    return Figure(
        "random-starts",
        f"The toy's methods from {count} starts drawn uniformly from [-10, 10]², + in f₂: "
        "where they end, and when.",
        canvas,
    )


def run(settings: Settings) -> Findings:
    found = toy(settings)
    yield from_anywhere(found.runs)
    yield stability(found)


def stability(toy: Toy) -> Claim:
    runs = toy.runs
    arms = ("GD", "MGDA", "PCGrad", "CAGrad")
    ends = {name: random_ends(runs[name]) for name in arms}
    arrival = {name: arrivals(runs[name]) for name in arms}
    count = len(ends["GD"])
    spread = {name: float(np.std(ends[name], ddof=1)) for name in arms}
    share = {name: share_interval(int(np.isfinite(arrival[name]).sum()), count) for name in arms}
    numbers: dict[str, float] = {"random starts": float(count)}
    for name in arms:
        numbers |= {f"{name}: standard deviation of the mean loss at the end": spread[name]}
        numbers |= {
            f"{name}: share arriving": share[name].mean,
            f"{name}: share arriving, low": share[name].low,
            f"{name}: share arriving, high": share[name].high,
        }
        got = arrival[name][np.isfinite(arrival[name])]
        if len(got):
            numbers |= {
                f"{name}: median of the steps to arrive": float(np.median(got)),
                f"{name}: latest arrival": float(got.max()),
            }
    fast = np.isfinite(arrival["GD"]) & np.isfinite(arrival["CAGrad"])
    if fast.any():
        numbers["CAGrad's steps over GD's, median where both arrive"] = float(
            np.median(arrival["CAGrad"][fast] / arrival["GD"][fast].clip(1))
        )
    return claim(
        "CA-28",
        with_steps(numbers, toy),
        f"{toy.budget}, {count} starts drawn uniformly from [-10, 10]², CAGrad with c = .5; "
        "arriving: within .1 of the minimum of the mean. "
        "Holds if the mean loss at the "
        "end spreads least and the share arriving has its Wilson interval above the others'",
    )
