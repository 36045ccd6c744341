"""The toy: does CAGrad go from gradient descent's behaviour to MGDA's as c grows?"""

import numpy as np

from ..report.findings import Claim, Findings, Settings, yes
from .toy import CS, PAPER, STARTS, minimum_of_mean
from .toy_runs import CLOSE, CONTACT, Toy, contact, decided, finite, largest, toy


def run(settings: Settings) -> Findings:
    found = toy(settings)
    yield finite(between(found), found)


def between(toy: Toy) -> Claim:
    runs, value = toy.runs, minimum_of_mean()[1]
    points = {c: runs["CAGrad"].of(STARTS, c) for c in CS}
    mgda = runs["MGDA"].of(STARTS, 0.0)
    goal = contact(mgda)
    distance = {}
    for c, path in points.items():
        first = contact(path)
        distance[c] = np.array(
            [
                abs(float(path[k, i, 0] - mgda[goal[i], i, 0])) if min(k, goal[i]) >= 0 else np.nan
                for i, k in enumerate(first)
            ]
        )
    table = np.array([distance[c] for c in CS])
    ordered = [bool((np.diff(column) <= CONTACT).all()) for column in table.T]
    split = all(
        (runs["CAGrad"].mean_loss(STARTS, c)[-1].max() < value + CLOSE) == (c < 1) for c in CS
    )
    return Claim(
        "CA-27",
        PAPER,
        "Depending on c, CAGrad's behaviour lies between gradient descent and MGDA.",
        decided(
            toy.whole,
            "holds"
            if all(ordered)
            else "holds only when"
            if any(ordered) or split
            else "does not hold",
        ),
        {
            f"c = {c:g}: largest distance of contact from MGDA's": largest(row)
            for c, row in distance.items()
            if np.isfinite(row).any()
        }
        | {
            f"c = {c:g}: mean distance of contact from MGDA's": float(np.nanmean(row))
            for c, row in distance.items()
            if np.isfinite(row).any()
        }
        | {
            "starts in which the distance never grows with c": float(sum(ordered)),
            "starts": float(len(STARTS)),
        },
        f"{toy.budget}; distance in x₁ between the first contacts with the Pareto set, never "
        f"growing with c up to {CONTACT:g}. "
        f"c < 1 ends at the minimum of the mean from all starts and c >= 1 does not: {yes(split)}",
    )
