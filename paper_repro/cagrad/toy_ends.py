"""The toy: who rests on the Pareto set, and who reaches the least mean loss?"""

import numpy as np
import torch

from common.problems import cagrad_toy as problem

from ..report.bounds import ALONG, AT_REST, CLOSE, SETTLED, STATIONARY, WIDE
from ..report.decisions import Claims, Exact, Measured, Row, decided, exact, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from .toy_runs import (
    CONTACT,
    DECIDED,
    WHOLE,
    Toy,
    largest_finite,
    moved_after_contact,
    of,
    toy,
    with_steps,
)

KICK = 1e-3 * (1 - 0.9) / (0.999**0.5 - 0.9) * (0.999 / (1 - 0.999)) ** 0.5
"""How far Adam goes for one gradient of any size, of rounding too, once its second moment has
decayed: lr (1 - β₁)/√(1 - β₂) · Σ_k (β₁/√β₂)^k = .032.
"""
STOPPED = CONTACT + KICK
"""The longest way along the set of what has stopped there: to the set itself, whose distance at
contact is up to `CONTACT`, and one kick. MGDA's is .0313 and PCGrad's .361, so that any limit
between these gives the same verdict.
"""


@decided("MGDA and PCGrad both move on along the set, by more than one of Adam's kicks from rest")
def judge_stops(measured: Measured) -> Verdict:
    """Open where a start never meets the set: then the number is NaN. Within a kick it hangs on
    rounding: MGDA's from (10, -8) is between 4e-4 and 1.5e-2 in fifty digits, from starts that
    differ by 1e-9, and .0313 in float64.
    """
    rests = [
        measured[f"{name}: largest movement after contact"] <= STOPPED
        for name in ("MGDA", "PCGrad")
    ]
    if all(rests):
        return "holds"
    return "holds only when" if any(rests) else "does not hold"


@decided("g₀ is away from 0 on the Pareto set but at the minimum of the mean", trained=False)
def level(measured: Measured) -> Verdict:
    away = measured["smallest where |x₁| > 0.5"] > STATIONARY.now
    stationary = measured["largest distance of 0 from the gradients' hull, same unit"] < AT_REST.now
    if away and stationary:
        return "does not hold"
    flat = measured["largest ‖g₀‖ over the longest gradient"] < STATIONARY.now
    return "holds" if flat else "inconclusive"


@decided("some c below 1 does not end at the minimum of the mean from every start")
def judge_goes_on(measured: Measured) -> Verdict:
    below = [measured[f"exact, c = {c:g}: largest excess at the end"] for c in (0.2, 0.5, 0.8, 0.9)]
    if max(below) >= CLOSE.now:
        return "does not hold"
    names = named_so(measured, "exact, c = *: smallest excess at the end, (0, 0) aside")
    halts = all(measured[name] > SETTLED.now for name in names)
    return "holds only when" if halts else "holds"


@decided(
    "MGDA or PCGrad ends at one point from all starts or at one that is not stationary, or CAGrad "
    "is at the minimum of the mean for no c and sign; in part unless it is for all of them"
)
def different_ends(measured: Measured) -> Verdict:
    apart = [measured[name] for name in named_so(measured, "*: spread of x₁ at the end")]
    rest = "*: largest distance of 0 from the gradients' hull at the end, *"
    still = [measured[name] for name in named_so(measured, rest)]
    if min(apart) <= WIDE.now or max(still) >= STATIONARY.now:
        return "does not hold"
    excess = [measured[name] for name in named_so(measured, "c = *: largest excess at the end")]
    there = [x < CLOSE.now for x in excess]
    return verdict_of(there, [not one for one in there])


CLAIMS = {
    "CA-04": Row(
        "MGDA and PCGrad stop learning once they meet the Pareto set.",
        judge_stops.open_unless(WHOLE),
        when="of MGDA solved exactly; with the script's 1e-8 it moves on by {MGDA, 1e-8: largest "
        "movement after contact}, and PCGrad creeps on under Adam",
    ),
    "CA-06": Row(
        "Which Pareto point is reached depends strongly on the start; such runs may end "
        "unbalanced, some tasks good and others poor.",
        exact(("*: spread of x₁ at the end over the set's length", ">", ALONG)).open_unless(WHOLE),
    ),
    "CA-08": Exact(
        "At a Pareto-stationary point the mean loss is about the same whichever way one moves.",
        level,
    ),
    "CA-14": Row(
        "MGDA moves only where all agree and halts at disagreement; CAGrad puts the "
        "common good first and does not halt.",
        judge_goes_on.open_unless(WHOLE),
        when="c is below 1, or the problem is solved with the official epsilons",
    ),
    "CA-26": Row(
        "MGDA and PCGrad end at different Pareto-stationary points by start; CAGrad "
        "reaches the minimum of the mean from all.",
        different_ends.open_unless(WHOLE),
        when="of CAGrad with c = 0.5 and 0.8, and with c = 0.2 and the sign of the code",
        finding=(
            "after 70,000 steps from the paper's starts, the worst of CAGrad's ends is {c = "
            "0.5: largest excess at 70000 steps} above the least mean loss with c = 0.5, {c = "
            "0.2: largest excess at 70000 steps} with c = 0.2. On a Pareto set 14 long MGDA's "
            "ends lie {MGDA: spread of x₁ at the end} apart, PCGrad's {PCGrad: spread of x₁ "
            "at the end}"
        ),
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    yield not_flat()
    found = toy(settings)
    for judge in (arriving, stops, depends_on_start, goes_on):
        yield judge(found)


def not_flat() -> Claim:
    """What is read off the Pareto set without a run."""
    front = torch.tensor(problem.pareto_set())
    values, g = problem.at(front), problem.gramians(front)
    mean = values.mean(-1).numpy()
    length = g.diagonal(dim1=-2, dim2=-1).sqrt()
    flatness = (g.sum((1, 2)).sqrt() / 2 / length.amax(-1)).numpy()
    off_minimum = np.abs(front[:, 0].numpy()) > 0.5
    stationary = float(problem.distance_to_stationarity(front).max())
    return claim(
        "CA-08",
        {
            "least mean loss on the Pareto set": float(mean.min()),
            "largest": float(mean.max()),
            "largest ‖g₀‖ over the longest gradient": float(flatness.max()),
            "smallest where |x₁| > 0.5": float(flatness[off_minimum].min()),
            "largest distance of 0 from the gradients' hull, same unit": stationary,
        },
        f"the toy's Pareto set, {len(front)} minimisers of weighted means; does not hold if g₀ "
        "is nowhere near 0 but at the minimum of the mean",
    )


def arriving(toy: Toy) -> Claim:
    runs, value = toy.runs, problem.minimum_of_mean()[1]
    run = runs["CAGrad"]
    at_70k = int(np.searchsorted(run.times, DECIDED))
    at_70k = min(at_70k, len(run.times) - 1)
    numbers: dict[str, float] = {"minimum of the mean": value}
    for c in (0.2, 0.5, 0.8):
        for sign in (problem.CODE, problem.PAPER_SIGN):
            excess = run.mean_loss(problem.STARTS, c, sign) - value
            name = f"c = {c:g}{', printed sign' if sign < 0 else ''}"
            late = np.array(
                [run.times[np.argmax(e < CLOSE)] if (e < CLOSE).any() else np.inf for e in excess.T]
            )
            numbers[f"{name}: largest excess at {run.times[at_70k]} steps"] = float(
                excess[at_70k].max()
            )
            numbers[f"{name}: largest excess at the end"] = float(excess[-1].max())
            if np.isfinite(late).all():
                numbers[f"{name}: steps until all are within {CLOSE:g}"] = float(late.max())
    for name in ("MGDA", "PCGrad"):
        end = runs[name].of(problem.STARTS, problem.USUAL[name])[-1]
        numbers[f"{name}: spread of x₁ at the end"] = float(np.ptp(end[:, 0].cpu().numpy()))
        far = f"{name}: largest distance of 0 from the gradients' hull at the end, over the longest"
        numbers[far] = float(problem.distance_to_stationarity(end).max())
    return claim(
        "CA-26",
        with_steps(numbers, toy),
        f"{toy.budget}, six starts; CAGrad arrives: mean loss within {CLOSE:g} of its minimum by "
        f"{DECIDED} steps for c = .5 and .8, + in f₂",
    )


def stops(toy: Toy) -> Claim:
    moved = {name: moved_after_contact(toy.runs[name], 0.0) for name in ("MGDA", "PCGrad")} | {
        "MGDA, 1e-8": moved_after_contact(toy.runs["MGDA, epsilon"], 1e-8)
    }
    return claim(
        "CA-04",
        with_steps(
            {
                f"{name}: largest movement after contact": float(path.max())
                for name, path in moved.items()
            }
            | of("PCGrad's movement after contact", moved["PCGrad"])
            | of("MGDA's", moved["MGDA"]),
            toy,
        ),
        f"{toy.budget}; way along the set from first contact (within {CONTACT:g} of it) to the "
        f"end, stopped if up to {STOPPED:.2g}, that and one of Adam's kicks; 1e-8: in the "
        "denominator, as in the official script",
    )


def depends_on_start(toy: Toy) -> Claim:
    arms = ("MGDA", "PCGrad")
    points = {name: toy.runs[name].of(problem.STARTS, 0.0)[-1] for name in arms}
    far = {name: float(np.ptp(x[:, 0].cpu().numpy())) / 14 for name, x in points.items()}
    apart = {name: float(problem.at(x).diff(dim=-1).abs().max()) for name, x in points.items()}
    worst = {
        name: float(toy.runs[name].mean_loss(problem.STARTS, problem.USUAL[name])[-1].max())
        for name in arms
    }
    return claim(
        "CA-06",
        with_steps(
            {f"{name}: spread of x₁ at the end over the set's length": x for name, x in far.items()}
            | {f"{name}: largest |L₁ - L₂| at the end": x for name, x in apart.items()}
            | {f"{name}: worst mean loss at the end": x for name, x in worst.items()}
            | {"minimum of the mean": problem.minimum_of_mean()[1]},
            toy,
        ),
        f"{toy.budget}, six starts",
    )


def goes_on(toy: Toy) -> Claim:
    value = problem.minimum_of_mean()[1]
    exact, eps = (
        {c: toy.runs[name].mean_loss(problem.STARTS, c)[-1] - value for c in problem.RULES[name][1]}
        for name in ("CAGrad", "CAGrad, epsilons")
    )
    # (0, 0) runs down the middle and meets the set at the minimum of the mean whatever the rule.
    side = [i for i, start in enumerate(problem.STARTS) if start[0] != 0]
    halts = {
        c: largest_finite(moved_after_contact(toy.runs["CAGrad"], c)) for c in problem.CS if c >= 1
    }
    return claim(
        "CA-14",
        with_steps(
            {
                f"exact, c = {c:g}: largest excess at the end": float(x.max())
                for c, x in exact.items()
            }
            | {
                f"exact, c = {c:g}: smallest excess at the end, (0, 0) aside": float(
                    exact[c][side].min()
                )
                for c in problem.CS
                if c >= 1
            }
            | {
                f"exact, c = {c:g}: largest movement of x₁ after contact": x
                for c, x in halts.items()
            }
            | {
                f"with the script's epsilons, c = {c:g}: largest excess at the end": float(x.max())
                for c, x in eps.items()
            },
            toy,
        ),
        f"{toy.budget}; excess: mean loss above its minimum",
    )
