"""The toy: does CAGrad go from gradient descent's behaviour to MGDA's as c grows?"""

import numpy as np
from torch import Tensor

from common.problems.cagrad_toy import CS, STARTS

from ..report.decisions import Claims, Measured, Row, decided
from ..report.findings import Claim, Findings, Settings, Verdict
from .toy_runs import CONTACT, WHOLE, Toy, contact, toy, with_steps

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
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    yield between(toy(settings))


def between(toy: Toy) -> Claim:
    """From how far along the set each rule meets it; x₁ there, NaN for one that does not."""
    runs = toy.runs

    def met_at(path: Tensor) -> np.ndarray:
        first = contact(path)
        at = path[..., 0].cpu().numpy()
        return np.array([at[k, i] if k >= 0 else np.nan for i, k in enumerate(first)])

    mgda, descent = (met_at(runs[name].of(STARTS, 0.0)) for name in ("MGDA", "GD"))
    points = np.array([met_at(runs["CAGrad"].of(STARTS, c)) for c in CS])
    # [c, start], GD first as c = 0
    table = np.abs(np.concatenate([descent[None], points]) - mgda)
    telling = np.isfinite(table[0]) & (table[0] > 10 * CONTACT)
    ordered = (np.diff(table, axis=0) <= CONTACT).all(0)  # never with a NaN
    arrives = table[-1] <= 0.1 * table[0]
    rows = dict(zip(("GD", *(f"c = {c:g}" for c in CS)), table, strict=True))
    numbers = {
        f"{name}: distance of contact from MGDA's, from ({start[0]:g}, {start[1]:g})": float(x)
        for name, row in rows.items()
        for start, x in zip(STARTS, row, strict=True)
    }
    numbers |= {
        "starts that can tell": float(telling.sum()),
        "of these, with a distance that never grows with c": float((ordered & telling).sum()),
        "of these, with the largest c's contact within a tenth of the way": float(
            (arrives & telling).sum()
        ),
    }
    return claim(
        "CA-27",
        with_steps(numbers, toy),
        f"{toy.budget}; distance in x₁ between the first contacts with the Pareto set. A start "
        "can tell if GD meets the set, and elsewhere than MGDA (by more than "
        f"{10 * CONTACT:g}); never growing: by at most {CONTACT:g} from one c to the next, GD "
        "before the first",
    )
