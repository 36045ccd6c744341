"""How the claims of CAGrad (Liu et al. 2021) are decided, and those of links that its toy shows."""

from ..report.bounds import (
    A_PASS_HIGH,
    A_PASS_LOW,
    ALONG,
    AT_REST,
    CLOSE,
    EQUALLY_HIGH,
    EQUALLY_LOW,
    FIRST_HIGH,
    FIRST_LOW,
    LENGTH,
    MOST_RUNS,
    MOVED,
    NEARLY_ALL,
    PUBLISHED,
    RAISES,
    SETTLED,
    SIGNS,
    STATIONARY,
    TELLS,
    WIDE,
)
from ..report.decisions import (
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
    when,
)
from ..report.findings import Verdict

SOME_STARTS = 5  # that tell: two or three have one order by chance
STEPS, DECIDED = 100_000, 70_000  # of the toy: the paper's, and those by which CAGrad has arrived
CONTACT = 0.01  # the Pareto set is met at this distance
KICK = 1e-3 * (1 - 0.9) / (0.999**0.5 - 0.9) * (0.999 / (1 - 0.999)) ** 0.5
"""How far Adam goes for one gradient of any size, of rounding too, once its second moment has
decayed: lr (1 - β₁)/√(1 - β₂) · Σ_k (β₁/√β₂)^k = .032.
"""
STOPPED = CONTACT + KICK
"""The longest way along the set of what has stopped there: to the set itself, whose distance at
contact is up to `CONTACT`, and one kick. MGDA's is .0313 and PCGrad's .361, so that any limit
between these gives the same verdict.
"""
TEN = "T = 10, n = 4: operations, full over fast"
FIFTY = "T = 50, n = 8: operations, full over fast"
WHOLE = Condition("steps", ">=", STEPS)


@decided(
    "no common descent and 0 in the hull agree, and such a point is improved on", trained=False
)
def wording(measured: Measured) -> Verdict:
    if measured["draws in which 'no common descent' and '0 in the hull' disagree"] > 0:
        return "inconclusive"
    beaten = measured["at 1/2"] < measured["L_1 = L_2 = -x² at its stationary point 0"]
    return "does not hold" if beaten else "holds"


@decided("PCGrad does not rest at two opposed gradients, or MGDA does not", trained=False)
def stopping(measured: Measured) -> Verdict:
    rest = {
        tasks: all(
            measured[f"T = {tasks}: largest ‖d‖ of {name}"] < 1e-7 for name in ("MGDA", "PCGrad")
        )
        for tasks in (2, 3)
    }
    if not rest[2]:
        return "does not hold"
    return "holds" if rest[3] else "holds only when"


@decided("g₀ is away from 0 on the Pareto set but at the minimum of the mean", trained=False)
def level(measured: Measured) -> Verdict:
    away = measured["smallest where |x₁| > 0.5"] > STATIONARY.now
    stationary = measured["largest distance of 0 from the gradients' hull, same unit"] < AT_REST.now
    if away and stationary:
        return "does not hold"
    flat = measured["largest ‖g₀‖ over the longest gradient"] < STATIONARY.now
    return "holds" if flat else "inconclusive"


@decided(
    "no c gives DualProj's direction, nor 95 % of PCGrad's by the interval of the share",
    trained=False,
)
def special_cases(measured: Measured) -> Verdict:
    name = "T = {}: share of PCGrad's directions met by some c"
    threshold = measured["c*: draws with the wrong sign at .95 c* and 1.05 c*"] == 0
    dualproj = threshold and measured["c*: largest relative distance of d to DualProj's"] < 1e-6
    pcgrad = [ends(measured, name.format(t)) for t in (2, 3)]
    if all(low > NEARLY_ALL.now for low, _ in pcgrad):
        return "holds" if dualproj else "holds only when"
    if any(high < NEARLY_ALL.now for _, high in pcgrad):
        return "holds only when" if dualproj else "does not hold"
    return "inconclusive"


@decided("no solver misses less than 1e-5 in every family at its defaults", trained=False)
def solvers(measured: Measured) -> Verdict:
    most: dict[str, float] = {}
    for name in named_so(measured, "*, T = *: most"):
        solver = name.split(", T = ")[0]
        most[solver] = max(most.get(solver, 0.0), abs(measured[name]))
    good = [solver for solver, missed in most.items() if missed < 1e-5]
    if not good:
        return "does not hold"
    return "holds" if len(good) == len(most) else "holds only when"


@decided(
    "under 90 % of the exact runs of some c, by the interval, bring ‖g₀‖ below 1e-3 of its start"
)
def approaches(measured: Measured) -> Verdict:
    if measured["steps"] < 800:
        return "inconclusive"
    names = [name for name in named_so(measured, "*: share below 1e-3") if "fast" not in name]
    shares = [ends(measured, name) for name in names]
    if all(low > MOST_RUNS.now for low, _ in shares):
        return "holds"
    return "does not hold" if any(high < MOST_RUNS.now for _, high in shares) else "inconclusive"


@decided("all ends are stationary, and none is the lowest minimum", trained=False)
def lowest(measured: Measured) -> Verdict:
    if measured["largest ‖g₀‖ at the end"] > AT_REST.now:
        return "inconclusive"
    other = measured["share ending at the other minimum"]
    if other == 0:
        return "holds"
    return "holds only when" if other < 1 else "does not hold"


@decided("neither ratio of operations is within 30 % of its published one", trained=False)
def faster(measured: Measured) -> Verdict:
    near = [
        abs(measured[name] / claimed - 1) <= PUBLISHED.now
        for name, claimed in ((TEN, 2.0), (FIFTY, 5.0))
    ]
    if all(near):
        return "holds"
    return "holds only when" if any(near) else "does not hold"


@decided("MGDA and PCGrad both move on along the set, by more than one of Adam's kicks from rest")
def stops(measured: Measured) -> Verdict:
    """Open where a start never meets the set: then the number is NaN.

    Within a kick it hangs on rounding: MGDA's from (10, -8) is between 4e-4 and 1.5e-2 in fifty
    digits, from starts that differ by 1e-9, and .0313 in float64.
    """
    rests = [
        measured[f"{name}: largest movement after contact"] <= STOPPED
        for name in ("MGDA", "PCGrad")
    ]
    if all(rests):
        return "holds"
    return "holds only when" if any(rests) else "does not hold"


@decided("some c below 1 does not end at the minimum of the mean from every start")
def goes_on(measured: Measured) -> Verdict:
    below = [measured[f"exact, c = {c:g}: largest excess at the end"] for c in (0.2, 0.5, 0.8, 0.9)]
    if max(below) >= CLOSE.now:
        return "does not hold"
    names = named_so(measured, "exact, c = *: smallest excess at the end, (0, 0) aside")
    halts = all(measured[name] > SETTLED.now for name in names)
    return "holds only when" if halts else "holds"


@decided(
    "GD is stuck from two starts neither printed nor with (-8.5, -5), nor later; in part unless it "
    "is from two printed starts after the paper's steps, and still after ten times as many"
)
def halts(measured: Measured) -> Verdict:
    late = [
        measured[f"stuck, printed starts, after {steps} steps (a literal loop)"]
        for steps in (300_000, 1_000_000)
    ]
    now, changed = measured["stuck, printed starts"], measured["stuck, (-8.5, -5) for (-8.5, 5)"]
    if now == late[-1] == 2:
        return "holds"
    return "holds only when" if 2 in (now, changed, *late) else "does not hold"


@decided("with each of the four methods a nudge of 1e-9 at the start changes where a run ends")
def reproducible(measured: Measured) -> Verdict:
    names = named_so(measured, "*: largest change of the mean loss at the end under a nudge")
    same = [measured[name] < MOVED.now for name in names]
    if all(same):
        return "holds"
    return "holds only when" if any(same) else "does not hold"


@decided(
    "CAGrad's first contacts with the Pareto set come nearer to MGDA's as c grows from no start "
    f"that can tell; in part unless from all, and {SOME_STARTS} or more can tell"
)
def between(measured: Measured) -> Verdict:
    """Starts from which GD does not meet the set, or meets it where MGDA does, cannot tell."""
    telling = measured["starts that can tell"]
    if telling == 0:
        return "inconclusive"
    ordered = measured["of these, with a distance that never grows with c"]
    ends = measured["of these, with the largest c's contact within a tenth of the way"]
    if min(ordered, ends) == telling >= SOME_STARTS:
        return "holds"
    return "holds only when" if min(ordered, ends) > 0 else "does not hold"


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


@decided("CAGrad neither spreads least nor arrives more often than each of the others")
def steadiest(measured: Measured) -> Verdict:
    others = ("GD", "MGDA", "PCGrad")
    spread = "{}: standard deviation of the mean loss at the end"
    least = all(measured[spread.format("CAGrad")] < measured[spread.format(x)] for x in others)
    low = measured["CAGrad: share arriving, low"]
    clear = all(low > measured[f"{name}: share arriving, high"] for name in others)
    if least and clear:
        return "holds"
    if least or clear:
        return "holds only when"
    beaten = any(measured[spread.format(x)] < measured[spread.format("CAGrad")] for x in others)
    return "does not hold" if beaten else "inconclusive"


@decided(
    "PCGrad ends short of the optimum on convex pairs (within 1 % in under 90 % of them, by the "
    "interval) and on the toy (an excess above .1); open if the pairs are not at rest"
)
def which(measured: Measured) -> Verdict:
    if measured["convex pairs: share ending Pareto stationary, low"] <= NEARLY_ALL.now:
        return "inconclusive"
    small = "convex pairs: share with an excess below 1 %"
    toy = [measured[name] for name in named_so(measured, "toy: PCGrad's excess of the mean *")]
    shown = [measured[f"{small}, low"] > MOST_RUNS.now, max(toy) <= SETTLED.now]
    return verdict_of(
        shown, [measured[f"{small}, high"] < MOST_RUNS.now and max(toy) > SETTLED.now]
    )


@decided("CAGrad raises no loss by more than 1 from an outer start, or MGDA raises one by .1")
def two_aims(measured: Measured) -> Verdict:
    outer = [
        measured[f"CAGrad: rise of the losing task after contact from {start}"]
        for start in ("(10, -8)", "(-8.5, -5)")
    ]
    rest = [measured[name] for name in named_so(measured, "MGDA: the same from *")]
    return "holds" if min(outer) > WIDE.now and max(rest) < SETTLED.now else "does not hold"


@decided("a plain step along d raises a task, or Adam's steps raise none")
def guarantee_lost(measured: Measured) -> Verdict:
    safe = all(
        measured[f"{name}: share of steps whose d raises a task"] == 0
        for name in ("MGDA", "PCGrad")
    )
    lost = any(
        measured[f"{name}: share of Adam's steps that raise a task, d raising none"] > RAISES.now
        for name in ("MGDA", "PCGrad")
    )
    return "holds" if safe and lost else "does not hold"


BALL = (
    Condition("largest duality gap over longest gradient times ‖d‖", "<", 1e-10),
    Condition("largest |‖d - g₀‖/(c‖g₀‖) - 1|", "<", 1e-9),
)
DECISIONS: dict[str, Decision] = {
    "CA-02": conditional(
        Condition("pairs in which 'g₀ raises a task' and * differ", "==", 0),
        only_when=Condition(
            "rank correlation of the worst task's end with the cosine at the start", ">=", TELLS
        ),
    ),
    "CA-03": stopping,
    "CA-04": when(WHOLE, decision=stops),
    "CA-05": wording,
    "CA-06": when(
        WHOLE,
        decision=exact(Condition("*: spread of x₁ at the end over the set's length", ">", ALONG)),
    ),
    "CA-08": level,
    "CA-09": exact(
        Condition("error at η = 1e-4 over that at 1e-6", ">", FIRST_LOW),
        Condition("error at η = 1e-4 over that at 1e-6", "<", FIRST_HIGH),
        Condition("share with the other sign at η = 1e-06", "<", SIGNS),
    ),
    "CA-10": exact(*BALL, Condition("best of 100 random points of the sphere above it", "<=", 0)),
    "CA-11": exact(
        Condition("largest fall of the worst rate from one c to the next", "<", 1e-9),
        Condition("least g₀·d/‖g₀‖² - (1 - c)", ">", -1e-9),
    ),
    "CA-12": conditional(
        Condition("c = 0: largest angle to g₀", "<", 1e-7),
        Condition("angle to MGDA at c = 10 over that at 100, *", ">", EQUALLY_LOW),
        Condition("angle to MGDA at c = 10 over that at 100, *", "<", EQUALLY_HIGH),
        only_when=Condition("‖d‖/‖d_MGDA‖ at c = 100 over that at 10, median", ">", LENGTH),
    ),
    "CA-13": special_cases,
    "CA-14": when(WHOLE, decision=goes_on),
    "CA-15": exact(
        Condition("unknowns of the dual, T = 10, less T", "==", 0),
        Condition("operations of the dual at P = 100000 over those at P = 1000", "<=", 2),
        Condition("unknowns of the primal at P = 100000 over those at P = 1000", "==", 100),
    ),
    "CA-16": exact(*BALL, Condition("largest difference to the conic solver's value", "<", 1e-5)),
    "CA-17": solvers,
    "CA-18": exact(
        Condition("largest distance of 0 from the hull where d = 0", "<", 1e-6),
        Condition("c < 1: least ‖d‖/‖g₀‖ - (1 - c)", ">", -1e-7),
        Condition("largest c*", "<", 1 + 1e-9),
        Condition("c = 1*: draws with d = 0", ">", 0),
    ),
    "CA-19": approaches,
    "CA-20": exact(Condition("*: largest ratio of both sides", "<=", 1)),
    "CA-21": lowest,
    "CA-22": exact(
        Condition("largest error of g₀, relative", "<", 1e-12),
        Condition("largest ‖d - g₀‖/(c‖g₀‖) - 1", "<", 1e-9),
    ),
    "CA-23": exact(
        Condition("T = *: operations a further row costs over one backward pass", ">", A_PASS_LOW),
        Condition("T = *: operations a further row costs over one backward pass", "<", A_PASS_HIGH),
    ),
    "CA-24": when(WHOLE, decision=reproducible),
    "CA-25": when(WHOLE, decision=halts),
    "CA-26": when(
        WHOLE,
        decision=different_ends,
    ),
    "CA-27": when(WHOLE, decision=between),
    "CA-28": when(WHOLE, decision=steadiest),
    "CA-39": sided(
        Side("lengths apart by *: least cosine of d with a task, CAGrad less mean", ">", 0),
        Side("lengths apart by *: share of draws in which CAGrad raises no task", ">", NEARLY_ALL),
        trained=False,
    ),
    "CA-40": exact(
        Condition(
            "T = *: operations of a step over those of its T backward passes", ">", A_PASS_LOW
        ),
        Condition(
            "T = *: operations of a step over those of its T backward passes", "<", A_PASS_HIGH
        ),
    ),
    "CA-29": exact(Condition("library less the fractions", "<", 1e-12)),
    "CA-34": faster,
    "X-01": when(WHOLE, decision=which),
    "X-02": when(WHOLE, decision=two_aims),
    "X-04": exact(Condition("largest difference of weights", "<", 1e-12)),
    "X-05": when(WHOLE, decision=guarantee_lost),
}
claim = Judge(DECISIONS)
