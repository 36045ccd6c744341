"""The toy from random starts: is CAGrad the steadiest rule?"""

import numpy as np

from common.problems import cagrad_toy as problem

from ..report.decisions import Measured, Row, decided
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .toy_runs import WHOLE, toy


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


def run(settings: Settings) -> Findings:
    found = toy(settings)
    numbers: dict[str, float] = {}
    for name in ("GD", "MGDA", "PCGrad", "CAGrad"):
        run = found.runs[name]
        loss = problem.at(run.points[:, run.random]).mean(-1).cpu().numpy()
        arrived = (loss < problem.minimum_of_mean()[1] + 0.1).any(0).sum()
        spread = float(np.std(loss[-1], ddof=1))
        numbers[f"{name}: standard deviation of the mean loss at the end"] = spread
        share = share_interval(int(arrived), len(run.random))
        numbers |= named(f"{name}: share arriving", share)
    yield Claim(
        "CA-28",
        numbers | {"steps": found.steps},
        f"{found.budget}, {len(found.runs['GD'].random)} starts drawn uniformly from [-10, 10]², "
        "CAGrad with c = .5; arriving: within .1 of the minimum of the mean. Wilson's intervals",
    )
