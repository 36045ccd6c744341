"""How the claims of the essay on gradients (Su 2022) and of MGDA-UB are decided."""

import re

from ..report.bounds import (
    A_FIFTH,
    ENDS_ALIKE,
    EXCEPTION,
    EXPONENT,
    FEW,
    FLAT,
    GROWS,
    MOST_ORDER,
    MOST_RUNS,
    NEARLY_ALL,
    ORDER,
    QUARTER,
    SEARCHED,
    SEEN,
    SMALL,
    VANISHED,
)
from ..report.decisions import (
    Condition,
    Decision,
    Judge,
    Measured,
    conditional,
    decided,
    ends,
    exact,
    named_so,
    verdict_of,
    when,
)
from ..report.findings import Verdict

ROUNDING = 1e-9
ENOUGH = 5000  # steps of the softmax form
MOST = 32  # tasks of the costs
LARGE = "heads with 512 units"


@decided(
    "the share of runs in a cycle has an interval below 95 %, or a softmax is farther from one "
    "task than its margin allows"
)
def oscillates(measured: Measured) -> Verdict:
    name = "share of runs in a cycle longer than 1, optimum no vertex"
    if measured[f"{name}, high"] < NEARLY_ALL.now:
        return "does not hold"
    if measured[f"{name}, low"] <= NEARLY_ALL.now:
        return "inconclusive"
    excess = measured["largest excess of 1 - max softmax over (T - 1) exp(-λ·margin)"]
    return "holds" if excess <= 0 else "does not hold"


@decided(
    f"in both families fewer than 95 % of the Gramians get there, at {ENOUGH} steps or more, by "
    "Wilson's interval"
)
def softmax_form(measured: Measured) -> Verdict:
    name = "{}: share that reaches a relative gap of 1e-6 at the best step"
    there, short = [], []
    for family in ("interior", "face"):
        edge = measured[f"{family}: best step at the grid's edge (1: yes)"]
        settled = measured["steps"] >= ENOUGH and not edge
        low, high = ends(measured, name.format(family))
        there.append(low > NEARLY_ALL.now)
        short.append(settled and high < NEARLY_ALL.now)
    return verdict_of(there, [all(short)])


@decided("one step length serves all scales in 95 % of the draws of both families, by the interval")
def learning_rate(measured: Measured) -> Verdict:
    single, tuned = (
        [
            ends(measured, f"{family}: share that reaches 1e-6, {name}")
            for family in ("interior", "face")
        ]
        for name in ("best single step for scales 1e-4 to 1e4", "step tuned to the scale")
    )
    if all(low > NEARLY_ALL.now for low, _ in single):
        return "does not hold"
    # as long as one step may serve all, or tuning does not help either, the step is not the reason
    if all(high >= NEARLY_ALL.now for _, high in single) or tuned[0][0] <= NEARLY_ALL.now:
        return "inconclusive"
    if tuned[1][0] > NEARLY_ALL.now:
        return "holds"
    return "holds only when" if tuned[1][1] < NEARLY_ALL.now else "inconclusive"


@decided("no way to solve takes a fifth of a step's operations in any cell", trained=False)
def inner_iteration(measured: Measured) -> Verdict:
    names = named_so(measured, "*: operations of the solver over the step's")
    shares = [measured[name] for name in names]
    if max(shares) <= A_FIFTH.now:
        return "does not hold"
    return "holds" if min(shares) > A_FIFTH.now else "holds only when"


@decided("the peak memory of T rows stays below a quarter of T gradients'", trained=False)
def infeasible(measured: Measured) -> Verdict:
    def peak(way: str) -> float:
        name = named_so(measured, f"{way}, T = {MOST}: peak memory over one gradient's")[0]
        return measured[name]

    if peak("T rows") <= MOST * QUARTER.now:
        return "does not hold"
    error = measured["relative difference of the two Gramians, largest"]
    without_rows = peak("layerwise Gramian*") < MOST * QUARTER.now and error < SMALL.now
    return "holds only when" if without_rows else "holds"


@decided(
    "in no case end losses are within .05 of each other and under 5 % of directions raise a task, "
    "and in one they are further apart or more raise one (intervals)"
)
def like_exact(measured: Measured) -> Verdict:
    shown, lost = [], []
    for end in named_so(measured, "*: mean normalised end loss, MGDA-UB less MGDA, low"):
        case = end.split(": ")[0]
        gap = f"{case}: mean normalised end loss, MGDA-UB less MGDA"
        low, high = ends(measured, gap)
        raising = f"{case}: share raising a task at initialisation"
        shown.append(
            low > -ENDS_ALIKE.now
            and high < ENDS_ALIKE.now
            and measured[f"{raising}, high"] < EXCEPTION.now
        )
        lost.append(
            low > ENDS_ALIKE.now
            or high < -ENDS_ALIKE.now
            or measured[f"{raising}, low"] > EXCEPTION.now
        )
    return verdict_of(shown, lost)


@decided(
    "in no setting the share that raises a task falls from the smallest P to the largest; in part "
    "unless it ends below .02 in each"
)
def room_to_move(measured: Measured) -> Verdict:
    groups: dict[str, list[tuple[int, str]]] = {}
    for end in named_so(measured, "T = *, q = *, P = *, low"):
        group, size = re.fullmatch(r"(.*), P = (\d+), low", end).groups()  # pyright: ignore
        groups.setdefault(group, []).append((int(size), end.removesuffix(", low")))
    to_zero, some, stays = [], [], []
    for cases in groups.values():
        first, last = min(cases)[1], max(cases)[1]
        falls = measured[f"{last}, high"] < measured[f"{first}, low"]
        to_zero.append(measured[f"{last}, high"] < VANISHED.now)
        some.append(falls or to_zero[-1])
        stays.append(measured[f"{last}, low"] > VANISHED.now and not falls)
    if all(to_zero):
        return "holds"
    if any(some):
        return "holds only when"
    return "does not hold" if all(stays) else "inconclusive"


FULL = "full row rank, {}: share of ends that are not stationary"
DEFICIENT = "row rank 2 of 4, {}: share of ends that are not stationary"


@decided(
    "the distance of 0 from the gradients' hull is nowhere above ‖d‖ of MGDA-UB, so that a point "
    "where it rests is stationary, and it comes to rest wherever MGDA does; in part if only in "
    "some case it does not come to rest",
)
def rests_elsewhere(measured: Measured) -> Verdict:
    """One point that is not stationary, and where it rests, is enough: the sentence says "may"."""
    less = "distance of 0 from the gradients' hull less ‖d‖ of MGDA-UB, over the longest gradient"
    if measured[less] > 1e-6:
        return "holds"
    found = []
    for case in (FULL, DEFICIENT):
        exact, bound = (ends(measured, case.format(name)) for name in ("MGDA", "MGDA-UB"))
        if bound[0] > exact[1]:
            found.append(True)
        elif exact[1] < FEW.now and bound[1] < FEW.now:
            found.append(False)
    if any(found):
        return "holds only when"
    return "does not hold" if len(found) == 2 else "inconclusive"


@decided("an optimum is 0 and the other is not, at full row rank", trained=False)
def same_zeros(measured: Measured) -> Verdict:
    name = "draws in which one optimum is 0 and the other is not, full row rank"
    if measured[name] > 0:
        return "does not hold"
    raised = measured["share whose bound direction raises a task, full row rank, low"]
    return "holds only when" if raised > 0 else "holds"


DECISIONS: dict[str, Decision] = {
    "SU-01": exact(
        Condition("largest change of the unit direction, weights 1/‖g‖", "<", ROUNDING),
        Condition("the same, equal weights", ">", SEEN),
    ),
    "SU-02": exact(
        Condition(
            "weights 1/‖g‖ against the sum of unit gradients, largest relative difference",
            "<",
            ROUNDING,
        ),
        Condition("gradient of Σ L_t/‖g_t‖, lengths constant, against it", "<", ROUNDING),
    ),
    "SU-03": conditional(
        Condition("order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖", ">", ORDER),
        Condition("order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖", "<", MOST_ORDER),
        Condition("share of points where no random direction of the same length *", "==", 1),
        Condition("share of quadratics that fall at .99 · 2‖g‖²/gᵀAg", "==", 1),
        only_when=Condition("share of quadratics that rise at 1.01 · 2‖g‖²/gᵀAg", "==", 1),
    ),
    "SU-05": conditional(
        Condition("of these, in which the sampled point dominates", "==", 0),
        Condition("share of sampled points off the set that their projection dominates", "==", 1),
        only_when=Condition(
            "change of the losses along a coordinate that none depends on", "<=", 0
        ),
    ),
    "SU-06": exact(Condition("linear programs without a solution", "==", 0)),
    "SU-07": when(
        Condition("draws with no solution but Δ = 0", ">", 0),
        decision=exact(Condition("of these, with 0 outside the hull", "==", 0)),
    ),
    "SU-08": exact(
        Condition("Pareto optima of convex quadratics: largest distance *", "<", 1e-6),
        Condition("x² - y², x² - 2y² at 0: distance of 0 from the hull", "<=", 0),
        Condition("largest change of a loss from 0 to (0, ½)", "<", 0),
    ),
    "SU-09": when(
        Condition("T = 2: share of runs that end within 5 % of *, low", ">", MOST_RUNS),
        decision=exact(
            Condition("T = 2: largest |⟨g_t, u⟩ - ‖g_t‖(1 + cos)|/‖g_t‖", "<", ROUNDING),
            Condition("T = 2: share of draws with a negative rate", "==", 0),
            Condition("T = 2: share of steps that raise a task", "==", 0),
            Condition("(1, 0), (-.8, .6), (-.8, .6): ⟨g_1, u⟩", "<", 0),
        ),
    ),
    "SU-10": exact(
        Condition("draws where the value over the unit box is positive and *", "==", 0),
        Condition("deviation from linear growth of *", "<", ROUNDING),
    ),
    "SU-11": exact(
        Condition("largest |min ⟨g_t, u*⟩/‖u*‖² - 1|", "<", ROUNDING),
        Condition("largest relative difference of the value from ½‖u*‖²", "<", ROUNDING),
        Condition("active set against projected gradient: largest relative *", "<", 1e-5),
    ),
    "SU-12": exact(
        Condition("lowest (smooth minimum - minimum)·λ/log T", ">=", -1),
        Condition("highest", "<=", 0),
    ),
    "SU-13": exact(
        Condition("largest |w - softmax(-λGw)|", "<", 1e-8),
        Condition("largest difference of dual and primal value, in units of 1/λ", "<", 1e-6),
        Condition("largest (½‖d*‖² - smoothed optimum)·λ/log T", "<=", 1 + ROUNDING),
    ),
    "SU-14": oscillates,
    "SU-15": conditional(
        Condition("largest suboptimality over its bound *", "<=", 1 + ROUNDING),
        Condition("exponent of n in the median gap, optimum *", "<", EXPONENT),
        only_when=Condition("(2, 0), (0, 1): own iterates, distance from it", ">", 0),
    ),
    "SU-16": exact(
        Condition("averaged iteration: largest excess over its bound", "<=", ROUNDING),
        Condition("the same: largest relative difference of their directions", "<", 1e-6),
    ),
    "SU-17": exact(
        Condition("linear program over the simplex against the minimum, *", "<", ROUNDING),
        Condition("smallest Σ w_t x_t - min x over random weights", ">=", -1e-15),
    ),
    "SU-18": conditional(
        Condition("largest |primal - dual value| / min ‖g‖²", "<", 1e-6),
        Condition("largest ‖u*‖/max ‖g_t‖", "<=", 1),
        only_when=Condition("u + w, both domains convex and growing: max min less min max", "<", 0),
    ),
    "SU-19": exact(
        Condition("largest gain of a move away from u = Jᵀw", "<", 0),
        Condition("inner maximum less ½‖Jᵀw‖²", "<", ROUNDING),
        Condition("largest relative gap wᵀGw - min (Gw)_t at the answer", "<", 1e-12),
        Condition("smallest ‖Jᵀw‖² - ‖Jᵀw*‖² over random weights", ">=", 0),
    ),
    "SU-20": when(
        Condition("draws with the answer *", ">", 0),
        decision=exact(
            Condition("closed form against *: largest difference of directions, *", "<", ROUNDING),
            Condition("draws in which the angles say another case", "==", 0),
        ),
    ),
    "SU-21": when(
        Condition("optimum *, line search: median relative gap at the end", "<=", SEARCHED),
        decision=exact(
            Condition("one searched step against the closed form for T = 2, *", "<", ROUNDING),
            Condition("all steps, largest negative weight or |Σw - 1|", "<", ROUNDING),
        ),
    ),
    "SU-22": exact(Condition("largest relative difference of the iterates *", "<", ROUNDING)),
    "SU-23": softmax_form,
    "SU-24": learning_rate,
    "SU-25": inner_iteration,
    "SU-26": exact(
        Condition("largest difference of weights, vectors against Gramian", "<", ROUNDING),
        Condition("operations of the Gramian over 2T²P", "<", 1 + ROUNDING),
        Condition("operations of all iterations on the Gramian, *", "<", 1),
    ),
    "SU-27": infeasible,
    "SU-28": exact(
        Condition("largest relative difference of pullback and direct gradient", "<", ROUNDING),
        Condition("left over right side, largest", "<=", 1 + ROUNDING),
    ),
    "SU-29": conditional(
        Condition("MGDA-UB, small heads: operations at T = 32 over T = 1", "<", FLAT),
        Condition("small heads: operations of MGDA over MGDA-UB at T = 32", ">", GROWS),
        only_when=Condition(f"MGDA-UB, {LARGE}: operations at T = 32 over T = 1", ">", GROWS),
    ),
    "SU-30": when(
        Condition("draws in which MGDA itself raises a task", "==", 0), decision=like_exact
    ),
    "SU-31": exact(
        Condition("largest |v_s·v_t| over largest ‖v_t‖²", "==", 0),
        Condition("largest difference of weights from 1/‖v_t‖² weighting", "<", ROUNDING),
    ),
    "SU-32": same_zeros,
    "SU-33": exact(
        Condition("smallest leading minor of M", ">", 0),
        Condition("xᵀy", ">=", 0),
        Condition("xᵀMy", "<", 0),
    ),
    "SU-34": exact(
        Condition("A = [[1, 0], [1, 1]], MGDA-UB: rate of task 2", "<", 0),
        Condition("linear encoder, MGDA-UB: rate of task 2", "<", 0),
        Condition("L_2 along the step, coefficient of η", ">", 0),
        Condition("coefficient of η²", ">=", 0),
        Condition("library against fractions, largest difference", "<", 1e-12),
    ),
    "SU-35": rests_elsewhere,
    "SU-36": room_to_move,
}
claim = Judge(DECISIONS)
