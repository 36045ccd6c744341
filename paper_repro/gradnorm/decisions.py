"""How the claims of GradNorm (Chen et al. 2018) are decided."""

from itertools import pairwise

from ..report.decisions import (
    OPEN,
    Condition,
    Decision,
    Judge,
    Measured,
    Side,
    decided,
    ends,
    exact,
    named_so,
    sided,
    verdict_of,
)
from ..report.findings import Verdict

ALPHA = 0.12
LITERAL = (
    Condition("largest difference of weights", "<", 1e-9),
    Condition("largest difference of parameters", "<", 1e-9),
)
STEPPED = Condition(
    "largest difference of parameters from an SGD step on Σ w_i L_i, w fixed", "<", 1e-9
)


@decided(
    "the lengths stay apart by more than 1.5 and the large task's weight rises in a step of α; in "
    "part unless it falls from α = 0 to 2 and rises in no step, by the intervals"
)
def controlled(measured: Measured) -> Verdict:
    ratio = f"larger over smaller G_i, α = {ALPHA:g}"
    steps = [name.removesuffix(", low") for name in named_so(measured, "w_2 at α = * over *, low")]
    shown = [
        measured[f"{ratio}, high"] < 1.5,
        measured["w_2, α = 2 over α = 0, high"] < 1
        and all(measured[f"{step}, low"] <= 1 for step in steps),
    ]
    lost = [
        measured[f"{ratio}, low"] > 1.5,
        any(measured[f"{step}, low"] > 1 for step in steps),
    ]
    if any(shown):
        return "holds" if all(shown) else "holds only when"
    return "does not hold" if all(lost) else "inconclusive"


@decided("the interval of the ratio lies outside .9 to 1.1", trained=False)
def comparable(measured: Measured) -> Verdict:
    low, high = ends(measured, "their ratio")
    if low > 0.9 and high < 1.1:
        return "holds"
    return "does not hold" if low > 1.1 or high < 0.9 else "inconclusive"


@decided("in some seed the average weights are not 5 times apart")
def separates(measured: Measured) -> Verdict:
    """Early: by a quarter of the run; smooth: a path shorter than twice its range."""
    if measured["smallest w_1/w_2 of a seed"] <= 5:
        return "does not hold"
    early = measured["smallest w_1/w_2 of a seed after a quarter of the run"] > 5
    smooth = measured["path length of w_1 over its range, high"] < 2
    return "holds" if early and smooth else "holds only when"


@decided(
    "by count a full grid is not exponential in T or α's grid grows with it; in part if as many "
    "random draws as GradNorm has runs end lower (interval of the ratio)"
)
def search_costs(measured: Measured) -> Verdict:
    """Against full grids by count alone; against random search by what it finds."""
    grid = [measured[name] for name in named_so(measured, "runs of a full grid of *")]
    exponential = all(later > 10 * sooner for sooner, later in pairwise(grid))
    few, many = (measured[f"values of α run, T = {tasks}"] for tasks in (2, 10))
    if not exponential or many > few:
        return "does not hold"
    ratio = "T = 10: GradNorm over the best of as many random draws"
    if measured[ratio + OPEN]:
        return "inconclusive"
    if measured[f"{ratio}, low"] > 1:
        return "holds only when"
    return "holds" if measured[f"{ratio}, high"] < 1 else "inconclusive"


@decided(
    "neither the spread of L̃ falls with α nor the best α grows with the ratio of scales, which is "
    "open where a rate, or α in half of the seeds, is at the edge of its grid"
)
def strength(measured: Measured) -> Verdict:
    spread, best = "spread at α = 2 over α = 0", "best α, √ scale, at the largest ratio less at 1"
    settles = not measured[best + OPEN]
    shown = [measured[f"{spread}, high"] < 1, settles and measured[f"{best}, low"] > 0]
    lost = [measured[f"{spread}, low"] > 1, settles and measured[f"{best}, high"] < 0]
    return verdict_of(shown, lost)


@decided(
    "under every reading of N(0, ·) and every law of x more than half of the targets are saturated "
    "(|tanh| > .99), so that the toy regresses on signs; in part under some",
    trained=False,
)
def determined(measured: Measured) -> Verdict:
    """What is printed does not say whether 10 is a variance, nor how x is drawn."""
    smooth = [measured[name] < 0.5 for name in named_so(measured, "share of |tanh| above .99, *")]
    return verdict_of(smooth, [not one for one in smooth])


DECISIONS: dict[str, Decision] = {
    "GN-02": sided(
        Side("steps at * over steps at *", ">", 1),
        Side("ratio of gradient lengths at * over that at *", ">", 1),
    ),
    "GN-03": exact(STEPPED, Condition("smallest change of the weights in a step", ">", 0)),
    "GN-04": sided(Side("their ratio", "<", 1)),
    "GN-05": controlled,
    "GN-06": sided(Side("T = *, GradNorm over the best static weights", "<", 1.05)),
    "GN-07": sided(Side(f"T = *, spread of *, α = {ALPHA:g} over equal", "<", 1)),
    "GN-08": exact(
        Condition("largest relative difference from autograd", "<", 1e-9),
        Condition("smallest relative difference between two choices of W", ">", 1e-9),
    ),
    "GN-09": exact(
        Condition("largest difference of w_i‖∇_W L_i‖ from G_i", "<", 1e-9),
        Condition("largest change of L_i(0)", "==", 0),
        Condition("largest deviation of mean r_i from 1", "<", 1e-9),
        Condition("L_i(0) = 0 is refused (1: yes)", "==", 1),
        Condition("reference in place of L_i(0), less log 10", "<", 1e-6),
    ),
    "GN-10": exact(
        Condition("largest difference of the next weights from the formula's", "<", 1e-9),
        Condition("the same, normalised targets", "<", 1e-9),
    ),
    "GN-11": sided(Side("T = *, α = * minus *", ">", 0)),
    "GN-12": strength,
    "GN-13": exact(*LITERAL),
    "GN-14": exact(
        STEPPED,
        Condition("length of the gradient of L_grad in the network, *, smallest", ">", 0),
    ),
    "GN-15": exact(Condition("largest deviation from T", "<", 1e-4)),
    "GN-16": exact(
        *LITERAL, Condition("largest deviation of the sum of weights from T", "<", 1e-9)
    ),
    "GN-17": sided(Side("L̃_1/L̃_2 at the end", ">", 1)),
    "GN-18": determined,
    "GN-19": comparable,
    "GN-20": separates,
    "GN-21": sided(Side("GradNorm over equal, *", "<", 1)),
    "GN-22": sided(Side("static average over the grid's best", "<", 1.1)),
    "GN-23": sided(Side("GradNorm over equal, *", "<", 1)),
    "GN-24": sided(Side("ratio at T = * over that at T = *", "<", 1)),
    "GN-25": search_costs,
    "GN-27": sided(Side("*GradNorm's gap less equal weights'", "<", 0)),
    "GN-29": sided(
        Side("regression: GradNorm over equal", "<", 1),
        Side("classification: GradNorm over equal", "<", 1),
    ),
    "GN-28": sided(Side("sharper", "<", 1), Side("noisy", "<", 1)),
}
claim = Judge(DECISIONS)
