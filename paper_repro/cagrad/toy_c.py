"""The toy: does CAGrad go from gradient descent's behaviour to MGDA's as c grows?"""

import numpy as np

from common.problems.cagrad_toy import CS, STARTS

from ..report.decisions import Measured, Row, decided
from ..report.findings import Claim, Findings, Settings, Verdict
from .toy_runs import CONTACT, WHOLE, contact, toy

SOME_STARTS = 5  # that tell: two or three have one order by chance


@decided(
    "CAGrad's first contacts with the Pareto set come nearer to MGDA's as c grows from no start "
    f"that can tell; in part unless from all, and {SOME_STARTS} or more can tell"
)
def judge_between(measured: Measured) -> Verdict:
    """Starts from which GD does not meet the set, or meets it where MGDA does, cannot tell."""
    telling = measured["starts that can tell"]
    if telling == 0:
        return "inconclusive"
    ordered = measured["of these, with a distance that never grows with c"]
    ends = measured["of these, with the largest c's contact within a tenth of the way"]
    if min(ordered, ends) == telling >= SOME_STARTS:
        return "holds"
    return "holds only when" if min(ordered, ends) > 0 else "does not hold"


CLAIMS = {
    "CA-27": Row(
        "Depending on c, CAGrad's behaviour lies between gradient descent and MGDA.",
        judge_between.open_unless(WHOLE),
        when="from {of these, with a distance that never grows with c} of {starts that can tell} "
        "starts that can tell; elsewhere the distance grows at first",
    )
}


def run(settings: Settings) -> Findings:
    """From how far along the set each rule meets it; x₁ there, NaN for one that does not."""
    found = toy(settings)

    def met_at(name: str, hyper: float) -> np.ndarray:
        path = found.runs[name].of(STARTS, hyper)
        x = path[..., 0].cpu().numpy()
        return np.array([x[k, i] if k >= 0 else np.nan for i, k in enumerate(contact(path))])

    points = np.stack([met_at("GD", 0.0), *(met_at("CAGrad", c) for c in CS)])
    away = np.abs(points - met_at("MGDA", 0.0))  # [c, start], GD as c = 0
    telling = np.isfinite(away[0]) & (away[0] > 10 * CONTACT)
    ordered = (np.diff(away, axis=0) <= CONTACT).all(0)  # never with a NaN
    arrives = telling & (away[-1] <= 0.1 * away[0])
    yield Claim(
        "CA-27",
        {
            "starts that can tell": telling.sum(),
            "of these, with a distance that never grows with c": (ordered & telling).sum(),
            "of these, with the largest c's contact within a tenth of the way": arrives.sum(),
            "steps": found.steps,
        },
        f"{found.budget}; distance in x₁ of the first contact with the Pareto set from MGDA's, "
        f"for c from {CS[0]:g} to {CS[-1]:g}. A start can tell if GD meets the set, and more than "
        f"{10 * CONTACT:g} from MGDA; never growing: by at most {CONTACT:g} from one c to the "
        "next, GD before the first",
    )
