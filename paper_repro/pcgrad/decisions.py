"""How the claims of PCGrad (Yu et al. 2020) are decided."""

from ..report.bounds import (
    AT_REST,
    CLEARLY,
    EXCEPTION,
    NEAR_MINIMUM,
    SETTLED,
    STUCK,
)
from ..report.decisions import (
    Condition,
    Decision,
    Judge,
    Measured,
    Side,
    conditional,
    decided,
    exact,
    named_so,
    sided,
    verdict_of,
    when,
)
from ..report.findings import Verdict

LONG = 200_000  # steps on the landscape; PCGrad needs about 150,000 to get across
EXACT = 1e-12  # what float64 identities may differ by, relative to their terms
ALL_THREE = "conflict, gap, curvature"


@decided(
    "with neither optimizer the small-gradient task's progress falls with every step of ρ, and "
    "with one it grows from ρ = 1 to 1000"
)
def dominance(measured: Measured) -> Verdict:
    falls, grows = [], []
    for name in ("SGD", "Adam"):
        steps = named_so(measured, f"{name}, ρ = * to *: change of task 1's fall, high")
        falls.append(all(measured[step] < 0 for step in steps))
        grows.append(measured[f"{name}: change of task 1's fall from ρ = 1 to 1000, low"] > 0)
    return verdict_of(falls, grows)


@decided(
    "against both rivals PCGrad's step does not end lower in most draws of the cell with all "
    "three, or does so in another cell"
)
def factorial(measured: Measured) -> Verdict:
    alone, contradicted = [], []
    for rival in ("the plain step", "a plain step of the same length"):
        end = f"; against {rival}: share of wins"
        cells = [name.removesuffix(end) for name in named_so(measured, f"*{end}")]
        wins = {cell for cell in cells if measured[f"{cell}{end}, low"] > 0.5}
        loses = {cell for cell in cells if measured[f"{cell}{end}, high"] < 0.5}
        alone.append(wins == {ALL_THREE})
        contradicted.append(ALL_THREE in loses or bool(wins - {ALL_THREE}))
    return verdict_of(alone, contradicted)


@decided(
    f"after {LONG} steps or more descent on the sum has learnt task 2 (L_2 at most 30), or PCGrad "
    "is not on the side where θ_1 < 0 and L_2 < 0"
)
def gets_out(measured: Measured) -> Verdict:
    stuck = measured["sum: L_2 at the end"] > STUCK.now
    passed = measured["PCGrad: θ_1 at the end"] < 0 and measured["PCGrad: L_2 at the end"] < 0
    if stuck and passed:
        return "holds"
    return "does not hold" if measured["steps"] >= LONG else "inconclusive"


@decided("Definition 3's H is positive on no recorded step of either path", trained=False)
def sharp(measured: Measured) -> Verdict:
    shares = [measured[f"{arm}: share of steps with H > 0"] for arm in ("sum", "PCGrad")]
    if max(shares) == 0:
        return "does not hold"
    return "holds" if min(shares) > 0.5 else "holds only when"


@decided("a draw that meets the hypotheses falls by less than promised", trained=False)
def first_theorem(measured: Measured) -> Verdict:
    if measured["violations of the promised fall"] > 0:
        return "does not hold"
    neither = measured["long runs that end with neither cos < -.999 nor excess < 1e-6"]
    return "holds" if neither == 0 and measured["of these, conflicting"] > 0 else "inconclusive"


@decided(
    "the corrected hypotheses (ℓ > ξℒ, weight 2(1 - s)) do not suffice, either; in part if a draw "
    "meets the printed ones and not the conclusion",
    trained=False,
)
def second_theorem(measured: Measured) -> Verdict:
    right = (
        measured["violations of the corrected theorem"] == 0
        and measured["violations with weight 2(1 - s)"] == 0
        and measured["draws that meet the corrected hypotheses"] > 0
    )
    plain, pcgrad, step, shortest = (
        measured[f"counterexample: {what}"]
        for what in ("L(θ^MT)", "L(θ^PCGrad)", "step", "shortest step, uniform weight")
    )
    by_example = plain < pcgrad and step >= shortest
    if measured["violations of the printed theorem"] > 0 or by_example:
        return "holds only when" if right else "does not hold"
    return "holds" if right else "inconclusive"


@decided(
    "in neither problem H rises (slope of log H) as an exponential does (R² above .8), and in one "
    "it falls or does otherwise (intervals)"
)
def exponential(measured: Measured) -> Verdict:
    rises, falls = [], []
    for end in named_so(measured, "*: slope of log H, per 100 steps, low"):
        name = end.split(": ")[0]
        slope, straight = f"{name}: slope of log H, per 100 steps", f"{name}: R²"
        rises.append(measured[f"{slope}, low"] > 0 and measured[f"{straight}, low"] > CLEARLY.now)
        falls.append(measured[f"{slope}, high"] < 0 or measured[f"{straight}, high"] < CLEARLY.now)
    return verdict_of(rises, falls)


@decided(
    "in neither problem a quantity marks the onset in most seeds and more often than by chance, "
    "and in one none does (intervals)"
)
def marked(measured: Measured) -> Verdict:
    shown, lost = [], []
    for end in named_so(measured, "*: closest quantity, share of seeds, low"):
        name = end.removesuffix(", low")
        most = max(0.5, measured[f"{end.split(':')[0]}: share by chance, about"])
        shown.append(measured[end] > most)
        lost.append(measured[f"{name}, high"] < most)
    return verdict_of(shown, lost)


@decided(
    "PCGrad moves on from the stationary point, and steps of 1/k do not settle for some curvatures"
)
def rests(measured: Measured) -> Verdict:
    around = named_so(measured, "*: distance of the last iterate from the run's mean")
    still = all(measured[name] < AT_REST.now for name in around)
    if still and measured["120°: orders of 8 with d = 0"] > 0:
        return "holds"
    spread = named_so(measured, "*, random order, 1/k: spread of the end points")
    settled = all(measured[name] < SETTLED.now for name in spread)
    return "holds only when" if settled else "does not hold"


@decided("under random orders no mean end point lies within .05 of the minimum of the sum")
def unbiased(measured: Measured) -> Verdict:
    names = named_so(measured, "*, random order: distance of the mean end point")
    near = [measured[name] < NEAR_MINIMUM.now for name in names]
    return verdict_of(near, [not one for one in near])


WORSE = when(
    Condition("steps on the landscape", ">=", LONG),
    decision=sided(Side("* over PCGrad's", ">", 1)),
)

DECISIONS: dict[str, Decision] = {
    "PC-02": dominance,
    "PC-03": factorial,
    "PC-04": gets_out,
    "PC-05": sharp,
    "PC-06": exact(Condition("*largest relative difference of *", "<", 1e-9)),
    "PC-09": exact(
        Condition("reduction=*", "<", EXACT), Condition("one-hot code against *", "<", EXACT)
    ),
    "PC-10": exact(
        Condition("pairs in which library and fractions differ", "==", 0),
        Condition("draws in which conflict and sign of the cosine differ", "==", 0),
    ),
    "PC-11": exact(
        Condition("largest difference from the definition", "<", EXACT),
        Condition("largest |1 - Φ| for equal lengths", "<", EXACT),
        Condition("largest change under a common scale", "<", EXACT),
        Condition("smallest Φ", ">=", 0),
        Condition("largest Φ", "<=", 1),
        Condition("unequal lengths with Φ = 1", "==", 0),
        Condition("two zero gradients: undefined (1: yes)", "==", 1),
    ),
    "PC-12": conditional(
        Condition("largest relative difference from gᵀA g, steps 0 to 10", "<", 1e-10),
        only_when=Condition(
            "share of quadratics with H ≠ 0, where curvature never changes", ">", 0.5
        ),
    ),
    "PC-13": exact(Condition("*, largest relative difference", "<", 1e-11)),
    "PC-14": exact(
        Condition("‖PCGrad's sum‖² against *, largest relative difference", "<", 1e-9),
        Condition("largest change under a common scale", "<", 1e-9),
        Condition("difference from an exact fraction", "<", EXACT),
        Condition("largest ξ - (1 + |cos φ|)²", "<=", EXACT),
        Condition("conflicting draws with ξ <= 1 but cos φ > -Φ", "==", 0),
    ),
    "PC-15": exact(Condition("largest *", "<", EXACT)),
    "PC-16": conditional(
        Condition("T = 2: largest relative difference of g_i·d from *", "<", 1e-10),
        Condition("no conflict: largest difference of the coefficients from 1", "<", EXACT),
        Condition("120°: task 1 right after its projection on task *", "==", 0),
        only_when=Condition("120°: the same after the next projection, *", "<", 0),
    ),
    "PC-17": first_theorem,
    # not the angle: it is 180° also at the minimum of the sum, wherever the tasks disagree
    "PC-18": sided(
        Side("dim *: share with an excess above 1 % of the initial gap", "<", EXCEPTION)
    ),
    "PC-19": second_theorem,
    "PC-20": sided(
        Side("near, dim *: steps of PCGrad over plain", "<", 1),
        Side("built, dim *: steps of PCGrad over plain", "<", 1),
        Side("*, large steps: share of pairs in which PCGrad is lower after *", ">", 0.5),
    ),
    "PC-23": WORSE,
    "PC-24": WORSE,
    "PC-25": WORSE,
    "PC-26": exponential,
    "PC-27": sided(Side("*: difference", ">", 0)),
    "PC-28": sided(Side("*: share of the larger fall, first tenth", ">", CLEARLY)),
    "PC-29": marked,
    "PC-30": exact(
        Condition("worst task's rate, largest over orders", "<", 0),
        Condition("library against fractions, largest difference", "<", 1e-12),
    ),
    "PC-31": rests,
    "PC-32": unbiased,
}
claim = Judge(DECISIONS)
