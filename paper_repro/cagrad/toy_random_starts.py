"""The toy from random starts: is CAGrad the steadiest rule?"""

import numpy as np

from ..report.decisions import Claims, Measured, Row, decided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import share_interval
from .toy_runs import WHOLE, Toy, arrivals, random_ends, toy, with_steps


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


CLAIMS = {
    "CA-28": Row(
        "CAGrad is the most stable and predictable of the four.", steadiest.open_unless(WHOLE)
    )
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    yield stability(toy(settings))


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
