"""What decides each claim of later papers (since 2020)."""

from collections.abc import Mapping
from typing import SupportsFloat

from ..report.bounds import (
    ALIKE,
    CHANGES,
    CLOSER,
    EPSILON,
    EXCEPTION,
    FEW,
    ILL,
    MAGNITUDE,
    MATCH,
    PREDICTS,
)
from ..report.decisions import (
    OPEN,
    Condition,
    Decision,
    Judge,
    Measured,
    Side,
    conditional,
    decided,
    ends,
    exact,
    named_so,
    sided,
    verdict_of,
)
from ..report.findings import Claim, Verdict


@decided(
    "conflict has a negative rank correlation with the excess training loss, or one beyond "
    f"±{PREDICTS} with the excess loss on held-out samples",
)
def conflict_and_gap(measured: Measured) -> Verdict:
    training = ends(measured, "rank correlation of conflict with the excess training loss")
    # not the gap: it is a difference with the training loss, which stands on the other side
    other, most = ends(measured, "rank correlation of conflict with the excess test loss"), PREDICTS
    shown = training[0] > 0 and other[0] > -most.now and other[1] < most.now
    lost = training[1] < 0 or other[0] > most.now or other[1] < -most.now
    return verdict_of([shown], [lost])


@decided(
    f"at an overlap below 30 % the cosines have a rank correlation above {PREDICTS} with how the "
    f"tasks are related, or above 40 % one below {PREDICTS}, in one setting, and in none both are "
    "as said"
)
def overlap(measured: Measured) -> Verdict:
    """The verdict on cosines, over all kinds of inputs and numbers of samples."""
    shown, lost = [], []
    for name in named_so(measured, "*: rank correlation at overlap 0, low"):
        case = name.split(": rank")[0]

        def at(percent: int, case: str = case) -> tuple[float, float]:
            return ends(measured, f"{case}: rank correlation at overlap {percent}")

        below, above = [at(0), at(10), at(20)], [at(50), at(75), at(100)]
        shown.append(
            all(low < 0 < high for low, high in below) and all(x > PREDICTS.now for x, _ in above)
        )
        lost.append(
            any(x > PREDICTS.now for x, _ in below) or any(x < PREDICTS.now for _, x in above)
        )
    return verdict_of(shown, lost)


@decided(
    f"for some weights and rank tolerance more than {FEW:.0%} of the runs rest at another Pareto "
    f"point, by the interval, and for none more than {1 - FEW:.0%} end at their optimum"
)
def preferred(measured: Measured) -> Verdict:
    """At every rank tolerance and weights; runs that have not converged decide nothing."""
    shown, lost = [], []
    for name in named_so(measured, "Aligned-MTL, *, weights *: share that ends at their optimum"):
        other = name.replace("ends at their optimum", "rests at another Pareto point")
        shown.append(ends(measured, name)[0] > 1 - FEW.now)
        lost.append(ends(measured, other)[0] > FEW.now)
    return verdict_of(shown, lost)


@decided(
    f"at no width MGDA ends at such points in more than {EXCEPTION:.0%} of the draws and with a "
    "smaller worst loss than any static weights, and at one it does not (intervals)",
    trained=False,
)
def balanced(measured: Measured) -> Verdict:
    """Both halves of the sentence at one width."""
    shown, lost = [], []
    for end in named_so(measured, "width *: share of draws in which MGDA ends at one, low"):
        width = end.split(":")[0]
        share = ends(measured, f"{width}: share of draws in which MGDA ends at one")
        name = f"{width}: MGDA's worst loss less that of the best static weights there"
        few = bool(measured[name + OPEN])  # too few ends for an interval
        less = (-1.0, 1.0) if few else ends(measured, name)
        shown.append(share[0] > EXCEPTION.now and less[1] < 0)
        lost.append(share[1] < EXCEPTION.now or less[0] > 0)
    return verdict_of(shown, lost)


def instead_of_training(forecast: str) -> Decision:
    """Of a forecast that orders gains, and no worse than the groups do if each is trained once."""

    def judge(measured: Measured) -> Verdict:
        shown, lost = [], []
        for end in named_so(measured, f"*: rank correlation of {forecast}, low"):
            name = end.removesuffix(", low")
            own, less = ends(measured, name), ends(measured, f"{name} less that of trained groups")
            shown.append(own[0] > 0 and less[0] > ALIKE.now)
            lost.append(own[1] < 0 or less[1] < ALIKE.now)
        return verdict_of(shown, lost)

    return decided(
        f"of no family of tasks {forecast} is shown to order the gains, and as well as training "
        "every group once does, and of one it is shown not to"
    )(judge)


DECISIONS: dict[str, Decision] = {
    "SI-01": sided(Side("*: nearest static weights' loss over the rule's", "<", MATCH)),
    "SI-02": sided(Side("*: the mean's loss over the rule's", "<", MATCH)),
    "SI-03": sided(
        Side("width *: share of draws with a Pareto optimum out of reach", ">", EXCEPTION),
        trained=False,
    ),
    "SI-04": balanced,
    "SI-05": conditional(
        Condition("head, ε = 0: largest relative change of its path over all scales", "<", 1e-9),
        Condition(
            "trunk, ε = 0: relative change of its first update by a scale of 1000", ">", CHANGES
        ),
        Condition("head, SGD: relative change of its path by a scale of 1000", ">", 1),
        only_when=Condition(
            "head, ε = 1e-8: largest relative change of its path over all scales", ">", EPSILON
        ),
    ),
    # not the end: where the mean of both rests its two gradients are opposed
    "SI-06": sided(
        Side("cosine of two tasks less that of two *, start", ">", ALIKE),
        Side("cosine of two tasks less that of two *, middle", ">", ALIKE),
        trained=False,
    ),
    "SI-07": conflict_and_gap,
    "SI-08": sided(Side("UPGrad on samples over SGD on their mean: *", "<", 1)),
    "SI-09": conditional(
        Condition("T = *: largest ratio of two lengths over the condition number", "<=", 1 + 1e-9),
        Condition("T = *: largest |cosine| less (κ² - 1)/(κ² + 1)", "<=", 1e-9),
        only_when=Condition("(1, 0), (1, .01): condition number", ">", ILL),
    ),
    "SI-10": preferred,
    "SI-11": sided(
        Side("mean and *: 1 - cosine of the updates, over that of the directions", "<", CLOSER),
        trained=False,
    ),
    "SI-12": overlap,
    "SI-13": conditional(
        Condition(
            "natural gradient: largest difference of the rate from the covariance", "<", 1e-9
        ),
        only_when=Condition(
            "plain gradient: share of rewards that fall though their covariance is positive",
            ">",
            0.0,
        ),
    ),
    "SI-15": sided(
        Side("T = *: the population's loss over the grid's best", "<", MATCH),
        Side("T = *: the population's loss over as many draws'", "<", 1),
    ),
    "SI-14": exact(
        Condition("*: advantages that more than one reward shares, sum first", ">", 0),
        Condition("*: advantages, each first less sum first", ">", 0),
    ),
    "SI-16": conditional(
        Condition("largest difference of the two steps, over their length", "<", 1e-6),
        Condition("5 parameters a residual: work in *", ">", MAGNITUDE),
        only_when=Condition("0.5 parameters a residual: work in *", "<", 1),
    ),
    "SI-17": sided(Side("*: error with SPRING's momentum over that without", "<", 1)),
    "SI-18": sided(Side("*'s error over Gauss-Newton's", ">", MAGNITUDE)),
    "SI-19": conditional(
        Condition("*: smallest cosine with the update", ">", 0),
        Condition("*: largest difference of two cosines", "<", 1e-6),
        only_when=Condition("*: share of updates against one of them", ">", 0),
    ),
    "SI-20": sided(Side("*: error of ConFIG over that of *", "<", 1)),
    "SI-21": sided(
        Side("*: difference of the falls' logarithms, NTK weights over equal ones", "<", 1)
    ),
    "SI-22": sided(Side("*: error of NTK weights over that of *", "<", 1)),
    "SI-23": sided(Side("*: alignment of *, SOAP less Adam", ">", 0)),
    "SI-24": sided(Side("*, exact Gauss-Newton over Adam", ">", 1)),
    # not the correlation: it may be positive, and no choice be better for it
    "SI-25": sided(
        Side("*: loss of TAG's grouping less that of as large groups at random", "<", 0)
    ),
    "SI-26": instead_of_training("Grad-TAG"),
    "SI-27": sided(
        Side("*, pairs: rank correlation of ETAP's linear part", ">", 0),
        Side("*, larger groups: rank correlation of ETAP's linear part", ">", 0),
    ),
    "SI-28": instead_of_training("averaged pairs"),
}
_judge = Judge(DECISIONS)


def claim(identifier: str, measured: Mapping[str, SupportsFloat], where: str) -> Claim:
    """A judged claim; if it holds only when, with the settings in which it is shown."""
    found = _judge(identifier, measured, where)
    if found.verdict != "holds only when":
        return found
    shown = [
        end.removesuffix(", low")
        for side in DECISIONS[identifier].sides
        for end in named_so(found.measured, f"{side.name}, low")
        if all(case[0] for case in side._replace(name=end[:-5]).cases(found.measured))
    ]
    return found._replace(where=f"{where}. Only of: {'; '.join(shown)}" if shown else where)
