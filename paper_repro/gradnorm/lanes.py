"""GradNorm's rivals as lanes of one program: other weights, scales, difficulties, data.

The regressions are those of `common`, by default with a tenth of the inputs and outputs and a third
of the width. Settings of the problem and of the method are lanes like the seeds. A method's best
setting is chosen on one half of the seeds and judged on the other, so that many settings do not win
by chance."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from ..report.findings import Settings
from ..report.grids import at_best, chosen, judged
from ..report.intervals import Interval, ratio_interval
from .common import ALPHA, COLOURS, TWO, UNTRAINED, Problem, Runs

MILD = (1.0, 10.0)  # σ
EVERY_ALPHA = (0.0, ALPHA, 0.5, 1.0, 2.0)
TEN_ALPHAS = EVERY_ALPHA[:-1]
SECOND = (1e-2, 1e-3, 1e-4, 1e-5)  # the static grid's w_2/w_1 next to 1
RATIOS = (1.0, 10.0, 100.0)  # σ_2/σ_1
# the hard task's factor inside tanh; its label noise in units of its targets' deviation
SHARPER, NOISE = 6.0, 2.0
CHUNKS = 4  # batches in the finite training set
WINDOWS = 16  # of a run, after each of which it is measured
PAIRED = (
    "95 % t intervals over seeds, ratios paired by seed; settings chosen on the other half "
    "of the seeds"
)
EQUAL, FIXED, SEARCH = "equal", "1/L_i(0)", "random weights"
COLOUR = {
    EQUAL: COLOURS["equal"],
    "GradNorm": COLOURS["GradNorm"],
    FIXED: COLOURS["static"],
    SEARCH: "C3",
}


class Size(NamedTuple):
    """Of networks, batches, runs and grids of learning rates."""

    width: int
    batch: int
    steps: int
    seeds: int
    # Adam's learning rates at T = 2, one grid for every method, where the best differ by decades;
    # where those tasks are less unequal; and at T = 10
    two: tuple[float, ...]
    mild: tuple[float, ...]
    ten: tuple[float, ...]
    inputs: int = 25
    outputs: int = 10

    @property
    def draws(self) -> int:
        """Of the random search at T = 10: as many as GradNorm has runs there."""
        return len(TEN_ALPHAS) * len(self.ten)

    def problem(self, scales: tuple[float, ...]) -> Problem:
        """Regressions of this size; learning rates and steps are the lanes' own."""
        return Problem(scales, self.inputs, self.outputs, self.width, batch=self.batch)

    def __str__(self) -> str:
        return f"{self.problem(TWO)}, {self.steps} Adam steps, {self.seeds} seeds"


class Lane(NamedTuple):
    """One setting, run on every seed; the names say what it is for."""

    name: str
    lr: float
    alpha: float = ALPHA
    weights: tuple[float, ...] = ()  # of "weighted", any positive scale; () is equal
    scales: tuple[float, ...] = TWO
    sharpness: tuple[float, ...] = ()  # factors inside tanh; () is all 1
    noise: tuple[float, ...] = ()  # deviations of label noise in training; () is none
    finite: bool = False  # train on CHUNKS batches in turn, else on fresh ones


class Trace(NamedTuple):
    """One program's runs; lanes in the order given."""

    lanes: Sequence[Lane]
    times: np.ndarray  # [time] steps at which the others were taken
    test: np.ndarray  # [time, lane, seed, task], L_i(t)/L_i(0) on noise-free test data
    train: np.ndarray  # [time, lane, seed, task], the same on the finite training set; else NaN
    lengths: np.ndarray  # [time, lane, seed, task], ‖∇_W L_i‖ on test data, W the last shared layer
    weights: np.ndarray  # [time, lane, seed, task], summing to T

    def named(self, name: str) -> list[int]:
        """Lanes of that name or, of a longer one, of its part before a comma."""
        return [
            i
            for i, lane in enumerate(self.lanes)
            if lane.name == name or lane.name.startswith(f"{name}, ")
        ]

    def final(self, name: str) -> np.ndarray:
        """Mean over tasks of L_i/L_i(0) at the end, `[lane, seed]`; infinite for diverged runs."""
        return np.nan_to_num(self.test[-1, self.named(name)].mean(-1), nan=np.inf, posinf=np.inf)

    def picked(self, name: str) -> np.ndarray:
        """The lane of that name, `[seed]`, that is best on the other half of the seeds."""
        return np.array(self.named(name))[chosen(self.final(name))]

    def settles_nothing(self, name: str) -> bool:
        """Whether its best rate or α is at the edge of its grid, or it learns nothing. Of α the
        upper edge: none is below 0.
        """
        lanes = [self.lanes[i] for i in self.named(name)]
        best, alphas = at_best(self.final(name), [x.lr for x in lanes]), [x.alpha for x in lanes]
        largest = len({*alphas}) > 1 and max(alphas) in {alphas[i] for i in best.choice}
        return best.edge or largest or bool(best.scores.mean() > UNTRAINED)

    def tied(self, name: str) -> list["Trace"]:
        """Lanes of that name, each alone, that the seeds do not tell from the best one. By the
        losses at the end, paired by seed. Which of them is picked hangs on the last bits.
        """
        final = self.final(name)
        best = final[final.mean(1).argmin()]
        parts = (self.test, self.train, self.lengths, self.weights)
        return [
            Trace([self.lanes[i]], self.times, *(part[:, [i]] for part in parts))
            for i, ends in zip(self.named(name), final, strict=True)
            if ratio_interval(ends, best).low <= 1
        ]

    def runs(self, name: str) -> Runs:
        """The lanes of that name by their learning rates, as test losses of one method."""
        own = sorted(self.named(name), key=lambda i: self.lanes[i].lr)
        test, weights, lengths = (x[:, own] for x in (self.test, self.weights, self.lengths))
        rates, first = [self.lanes[i].lr for i in own], np.ones_like(test[0, 0])
        return Runs(self.times, test, first, weights, lengths, torch.empty(0), rates)

    def judged_alpha(self, name: str) -> np.ndarray:
        """The best α of every seed, `[seed]`, each at its best rate on the other half of them."""
        alphas = sorted({self.lanes[i].alpha for i in self.named(name)})
        ends = np.stack([self.judged(f"{name}, {alpha:g}") for alpha in alphas])
        return np.array(alphas)[ends.argmin(0)]

    def of(self, values: np.ndarray, name: str) -> np.ndarray:
        """`values[time, lane, seed, ...]` of the picked lanes, `[time, seed, ...]`."""
        return values[:, self.picked(name), np.arange(values.shape[2])]

    def judged(self, name: str) -> np.ndarray:
        """Mean over tasks of L_i/L_i(0) at the end in the picked lanes, `[seed]`."""
        return judged(self.final(name))


Arm = tuple[Trace, str]
"""A method: its trace, and the name of its lanes."""


def unsettled(compare: Callable[..., Interval], bound: float, *arms: Arm) -> bool:
    """Whether a comparison of arms, each at its best setting, decides neither way.

    So where one settles nothing, and where settings that the seeds do not tell from the best ones
    put the interval on another side of the bound. It is for what is compared besides the loss by
    which settings are chosen: that the losses are alike does not make it alike.
    """
    if any(trace.settles_nothing(name) for trace, name in arms):
        return True
    every = product(*([(one, name) for one in trace.tied(name)] for trace, name in arms))
    found = [compare(*arms), *(compare(*some) for some in every)]
    return len({(interval.high < bound, interval.low > bound) for interval in found}) > 1


def size_of(settings: Settings) -> Size:
    """The paper's with --full, on fewer seeds; else a tenth of its inputs and outputs."""
    count, rates = settings.seeds, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    if settings.full:
        few = max(min(count, 4), count // 2)
        size = Size(100, 100, settings.count(1000), few, rates[:-1], rates[:-1], rates[:-2])
        return size._replace(inputs=250, outputs=100)
    few = max(min(count, 4), 3 * count // 4)
    return Size(32, 32, settings.count(400), few, rates, rates[1:-1], rates[1:])
