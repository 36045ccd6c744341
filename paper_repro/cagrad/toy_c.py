"""The toy: does CAGrad go from gradient descent's behaviour to MGDA's as c grows?"""

import numpy as np
from torch import Tensor

from common.problems.cagrad_toy import CS, STARTS, minimum_of_mean

from ..report.findings import Claim, Findings, Settings, yes
from .decisions import claim
from .toy_runs import CLOSE, CONTACT, Toy, contact, toy, with_steps


def run(settings: Settings) -> Findings:
    found = toy(settings)
    yield between(found)


def between(toy: Toy) -> Claim:
    """From how far along the set each rule meets it; x₁ there, NaN for one that does not."""
    runs, value = toy.runs, minimum_of_mean()[1]

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
    split = all(
        (runs["CAGrad"].mean_loss(STARTS, c)[-1].max() < value + CLOSE) == (c < 1) for c in CS
    )
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
        "before the first. c < 1 ends at the minimum of the mean from all starts and c >= 1 does "
        f"not: {yes(split)}",
    )
