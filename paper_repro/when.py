"""When a claim holds that holds only when: a clause a claim, and what its intervals show."""

from collections.abc import Mapping

from .claims import DECISIONS
from .report.said import filled

NUDGED = ": largest change of the mean loss at the end under a nudge"
ITERATED = "Frank–Wolfe on vectors, 100 iterations, T = 32, P = 303104, batch of {}: " + (
    "operations of the solver over the step's"
)
RAISED = "UPGrad, β₁ = 0.9, on J P Jᵀ, safe: share of steps that raise a loss"
WORK = "parameters a residual: work in parameters' space over residuals'"
WHEN = {
    "PC-03": "against a plain step of PCGrad's length; against the plain step PCGrad also wins in "
    "conflict without the two others",
    "PC-05": "where a step crosses a cusp; elsewhere H is not positive",
    "PC-12": "H is read as the mean curvature along g, not as a change of curvature",
    "PC-16": "one projection, or two tasks; with three a later projection restores a conflict",
    "PC-19": "(b) reads ℓ > ξℒ and the curvature has the weight 2(1 - s) over the step",
    "PC-31": "the steps fall as 1/k: they settle, at the minimum of the sum only with equal "
    "curvatures; under random orders PCGrad moves on from the stationary point",
    "PC-32": "the curvatures are equal",
    "SU-03": "the step is below 2‖g‖²/gᵀAg",
    "SU-05": "changes that alter no loss are excepted",
    "SU-15": "g_τ is computed at the running average, which is Frank–Wolfe; not at the iterates",
    "SU-18": "u is first confined to a ball, which loses nothing; the reason given is not enough",
    "SU-23": "the optimum lies inside the simplex; on a face it is not reached",
    "SU-24": "the optimum lies inside the simplex; on a face no step is fast enough",
    "SU-25": "the iteration works on vectors rather than the Gramian: at 32 tasks and 303,104 "
    f"parameters it takes {{{ITERATED.format(32)}}} times a step's operations with batches of 32, "
    f"{{{ITERATED.format(512)}}} times with 512",
    "SU-27": "rows are stored; the layerwise Gramian takes the memory of about one gradient",
    "SU-29": "the heads are small against the trunk",
    "SU-30": "the encoding is wide enough; in the narrow ones directions raise a task",
    "SU-32": "common descent is left out: stationary points are found, directions may raise a task",
    "SU-36": "the share is asked to fall with the parameters; in no setting it vanishes",
    "CA-02": "only the first order is asked for; the cosine does not predict the end",
    "CA-03": "of MGDA, and of PCGrad with two tasks; with three it does not even rest",
    "CA-04": "of MGDA solved exactly; with the script's 1e-8 it moves on by {MGDA, 1e-8: largest "
    "movement after contact}, and PCGrad creeps on under Adam",
    "CA-12": "directions are compared; the length grows with c",
    "CA-13": "of DualProj, and of PCGrad with two tasks, with another c at every step",
    "CA-14": "c is below 1, or the problem is solved with the official epsilons",
    "CA-17": "of the conic solver and the active set; not of SLSQP and the official softmax",
    "CA-21": "the start is on the side of the lowest minimum, or the losses are convex",
    "CA-24": "of MGDA and CAGrad: a nudge of 1e-9 at the start decides, with the sign of the code, "
    f"and moves the mean loss at the end by {{GD{NUDGED}}} (descent) and {{PCGrad{NUDGED}}} "
    "(PCGrad); with the printed sign MGDA's end also moves in other arithmetic",
    "CA-25": "a start of the code replaces a printed one, or after more steps; later none halts",
    "CA-26": "of CAGrad with c = 0.5 and 0.8, and with c = 0.2 and the sign of the code",
    "CA-27": "from {of these, with a distance that never grows with c} of {starts that can tell} "
    "starts that can tell; elsewhere the distance grows at first",
    "CA-37": "the reconstruction error is the mean per pixel",
    "GN-11": "its weight is meant, and ten tasks: that of a slow one rises more at α = 1 than at "
    "α = 0; whether its loss then falls faster decides nothing",
    "GN-12": "the pull is asked for alone: that the best α is larger for unequal tasks stays open",
    "GN-18": "it is chosen whether 10 and 3.5 are deviations or variances, and how x is drawn",
    "GN-20": "smoothness is left out: the weights part early, and chatter",
    "GN-28": "one way of being harder is meant: with noisy labels GradNorm's final loss is {noisy} "
    "of equal weights', with a sharper target {sharper}",
    "X-01": "the pairs are convex; on the toy PCGrad stops short of the optimum",
    "X-06": "without momentum; with it, after the least change of the step, a share of "
    f"{{{RAISED}}} of UPGrad's steps raise a loss",
    "X-07": "the polar factors are exact: Muon's own are five steps of an iteration, in bfloat16",
    "SI-05": "the gradients are large against Adam's ε, and of a task's own parameters",
    "SI-09": "it is small, which excludes conflict and dominance; a large one says nothing",
    "SI-10": "the rank tolerance is that of float32, or both weights are equal",
    "SI-16": "there are several times more parameters than residuals (5: "
    f"{{5 {WORK}}} times fewer multiplications; 2: {{2 {WORK}}})",
    "SI-19": "there are fewer gradients than dimensions; else some updates point against one",
    "SI-13": "the step is along the natural gradient",
}
"""By claim, with `{name}` for a number. Those whose decision is made of intervals have theirs from
the numbers.
"""
SHOWN = 4


def when(identifier: str, measured: Mapping[str, float]) -> str:
    """Of a claim that holds only when: when it does, without a full stop.

    Args:
        identifier: the claim's.
        measured: the numbers of the run whose verdict it is.

    Returns:
        its clause, or the intervals on the claimed side; "" for one that has neither.
    """
    if identifier in WHEN:
        return filled(WHEN[identifier], measured)
    shown = [
        name
        for side in DECISIONS[identifier].sides
        for name, (on_side, _) in side.named_cases(measured)
        if on_side
    ]
    more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return f"only of: {'; '.join(shown[:SHOWN])}{more}" if shown else ""
