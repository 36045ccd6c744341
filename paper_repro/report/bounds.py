"""Every threshold of the decisions that no mathematics gives, each with its reason.

Bounds of 0 and 1, and shares of more than one half where a sentence says "most", are what the
sentences say. A tolerance of 1e-5 or less is what float64 may round. Everything else is a choice,
and stands here. `perturbed` says which verdicts another choice would change.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ROUNDING = 1e-5
"""The largest tolerance that is one of rounding."""
FACTORS = (0.5, 2.0)
_factors: dict[object, float] = {}
_asked: set["Bound"] = set()


class Bound(float):
    """A threshold with its name and its reason; as a float it is the value that is used.

    Args:
        value: the threshold.
        name: what it bounds.
        reason: why it is there and not elsewhere.
        origin: where half and twice of it are counted from: 1 of a ratio, 1 of a share near 1.
    """

    name: str
    reason: str
    origin: float

    def __new__(cls, value: float, name: str, reason: str, origin: float = 0.0) -> "Bound":
        self = super().__new__(cls, value)
        self.name, self.reason, self.origin = name, reason, origin
        return self

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other if isinstance(other, Bound) else float(self) == other

    @property
    def now(self) -> float:
        """The threshold, or what `scaled` makes of it."""
        _asked.add(self)
        return self.times(_factors.get(self, 1.0))

    def times(self, factor: float) -> float:
        """The threshold as far again from its origin."""
        return self.origin + (float(self) - self.origin) * factor


def at(bound: float) -> float:
    """A bound as it is asked for: one of the table may be scaled, and so may a tolerance."""
    if isinstance(bound, Bound):
        return bound.now
    if 0 < abs(bound) <= ROUNDING:
        return bound * _factors.get("rounding", 1.0)
    return bound


@contextmanager
def scaled(bound: object, factor: float) -> Iterator[None]:
    """One bound, or all tolerances ("rounding"), by a factor."""
    _factors[bound] = factor
    try:
        yield
    finally:
        del _factors[bound]


@contextmanager
def watched() -> Iterator[set[Bound]]:
    """The bounds that are asked for meanwhile."""
    _asked.clear()
    yield _asked


def perturbed(
    judge: Callable[[Mapping[str, float]], str], measured: Mapping[str, float]
) -> dict[str, dict[float, str]]:
    """Which other verdicts half and twice of each bound would give: `[bound][factor]`."""
    with watched() as asked:
        usual = judge(measured)
        bounds: list[Any] = [*sorted(asked, key=lambda bound: bound.name), "rounding"]
    found: dict[str, dict[float, str]] = {}
    for bound in bounds:
        for factor in FACTORS:
            with scaled(bound, factor):
                other = judge(measured)
            if other != usual:
                found.setdefault(getattr(bound, "name", bound), {})[factor] = other
    return found


# ---- ratios ----
MATCH = Bound(
    1.02, "a loss that matches another", "2 %: what a paper's table would round away", 1.0
)
STATIC = Bound(1.05, "GradNorm's loss over the best static weights'", "as good: 5 % at most", 1.0)
NEARLY = Bound(1.1, "a loss that nearly matches another", "the text says nearly: 10 %", 1.0)
COMPARABLE = Bound(1.1, "ratio of L_i(0)/σ_i² of tasks that are alike", "10 % either way", 1.0)
BALANCED = Bound(
    1.5, "larger over smaller G_i", "of 100 to 1 before; well below a factor of 2", 1.0
)
FAR_APART = Bound(5.0, "w_1 over w_2", "the text says far above", 1.0)
SMOOTH = Bound(2.0, "path of w_1 over its range", "1 is monotone; 2 is one way back", 1.0)
EXPONENTIAL = Bound(10.0, "runs at more tasks over those at fewer", "3 or more further tasks", 1.0)
PUBLISHED = Bound(0.3, "distance of a ratio from its published one", "times were published: 30 %")
A_PASS_LOW = Bound(0.7, "operations of a row over a backward pass", "layers differ: 30 %", 1.0)
A_PASS_HIGH = Bound(1.3, "row over a backward pass, from above", "layers differ: 30 %", 1.0)
FLAT = Bound(1.5, "operations at 32 tasks over 1 that do not grow with T", "half more", 1.0)
GROWS = Bound(2.0, "operations that grow with T", "twice as many", 1.0)
ILL = Bound(100.0, "condition number of gradients without conflict", "0.01 of the longest", 1.0)

MAGNITUDE = Bound(10.0, "an order of magnitude", "the text says orders of magnitude", 1.0)
GAP = Bound(
    1.0,
    "loss beside a best rate's, in half widths of the interval",
    "half of its width, as the search asks",
)

# ---- shares ----
EXCEPTION = Bound(0.05, "share of draws that is an exception", "one in twenty")
NEARLY_ALL = Bound(0.95, "share of draws that is nearly all", "all but one in twenty", 1.0)
MOST_RUNS = Bound(0.9, "share of runs that is most", "nine in ten: steps are finitely many", 1.0)
FEW = Bound(0.1, "share of runs that is few", "one in ten; runs stop after finitely many steps")
CLEARLY = Bound(0.8, "share of the larger fall, and R² of a straight line", "four fifths", 1.0)
A_FIFTH = Bound(0.2, "solver's operations over the step's", "a fifth of a step is noticed")
VANISHED = Bound(0.02, "share that has gone to 0", "a fiftieth of the draws")
RAISES = Bound(0.001, "share of steps that raise a task", "more than single steps of rounding")
QUARTER = Bound(0.25, "memory over that of T gradients", "rows need all of it, a Gramian's 1/T")

# ---- correlations, cosines, accuracies ----
PREDICTS = Bound(0.3, "rank correlation that predicts", "a tenth of the variance of ranks")
ALIKE = Bound(
    -0.05, "difference of two cosines or correlations that are alike", "a fortieth of their range"
)
FAR = Bound(0.05, "accuracy that is lost", "five points of a hundred")
NEAR = Bound(0.01, "accuracy that is not lost", "one point of a hundred")
CLOSER = Bound(0.5, "1 - cosine of updates over that of directions", "far closer: half")

# ---- ends of runs ----
CLOSE = Bound(1e-3, "excess of a mean loss that has arrived", "of a fall of 15 or more")
STATIONARY = Bound(1e-2, "distance of 0 from the hull at a stationary point", "of gradients of 1")
AT_REST = Bound(1e-3, "distance or length at rest", "of 1 at the start")
MOVED = Bound(1e-2, "a change that is seen", "of losses and places of 1 to 15")
SETTLED = Bound(0.1, "spread of ends that have settled, or an excess that is seen", "of 1 to 15")
NEAR_MINIMUM = Bound(0.05, "distance of the mean end point from the minimum", "of ends 1 apart")
ALONG = Bound(0.5, "spread of ends over the set's length", "half of it")
ENDS_ALIKE = Bound(0.05, "difference of normalised end losses", "a twentieth of the start")
STUCK = Bound(15.0, "L_2 that is not learnt", "half of what it starts at; learnt it is below 0")
SEARCHED = Bound(1e-3, "gap of a line search that has come to its end", "of the start's gap")
WIDE = Bound(1.0, "spread of ends, or rise of a loss, that no rounding makes", "of a set 14 long")
FIRST_LOW = Bound(50.0, "ratio of errors at steps 1 to 100", "first order is 100", 100.0)
FIRST_HIGH = Bound(200.0, "errors at steps 1 to 100, from above", "first order is 100", 100.0)
EQUALLY_LOW = Bound(8.0, "ratio of angles at radii 1 to 10", "the limit is 10", 10.0)
EQUALLY_HIGH = Bound(12.0, "angles at radii 1 to 10, from above", "the limit is 10", 10.0)
EXPONENT = Bound(-0.8, "exponent of n in a gap", "the bound's is -1, fitted over two decades", -1.0)
ORDER = Bound(1.9, "order of an error in the step", "the order is 2, fitted", 2.0)
MOST_ORDER = Bound(2.1, "order of an error, from above", "the order is 2, fitted", 2.0)
CHANGES = Bound(0.1, "relative change that is one", "a tenth, of invariance to rounding")
EPSILON = Bound(0.01, "relative change by Adam's ε", "a hundredth, of invariance to rounding")
SIGNS = Bound(1e-2, "share of signs that differ at a small step", "one in a hundred")
LENGTH = Bound(5.0, "growth of ‖d‖ for ten times the radius", "half of the proportional 10", 1.0)
LAST_STEPS = Bound(10.0, "distance from a rest point in last step sizes", "steps overshoot by one")
SEEN = Bound(1e-3, "a change that rounding does not make", "of directions of length 1")
FLOAT32 = Bound(1e-3, "difference of tanh in float32", "its argument, 168, is off by 1e-5")
SMALL = Bound(1e-3, "relative difference in float32", "of 1e-7 to 1e-4 by its order of sums")

TABLE: tuple[Bound, ...] = tuple(x for x in list(globals().values()) if isinstance(x, Bound))
