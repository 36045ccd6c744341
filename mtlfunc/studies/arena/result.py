"""The table of a study: scores at chosen learning rates, average ranks, and what is not chance.

Two kinds of intervals. What other *seeds* of these problems might give: a bootstrap of tuning and
reporting seeds in which every draw chooses its learning rates again, widened as Student's t widens
(`resample_study`). What other *problems* like these might give: a problem is one draw, its seeds
and choices included, and subsets of the problems give the exact interval (`mean_interval`); fewer
than `ENOUGH` problems can say nothing at 95 %, and nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ...core import random
from .problems import BenchmarkProblem
from .study import STATIC, Cell, Settings

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MEASURES = {"mean": "mean score", "worst": "worst task's score", "front": "distance to the front"}
"""What a final point is scored by, lower is better: the mean over tasks of (loss - ideal)/(nadir -
ideal), the largest of them, or the distance to the front in these units, counting only coordinates
that are worse (0 at the sampled front's points, up to .01 between them; none without a front).
"""

BASELINE = "mean"
TIE = 1e-4  # scores are rounded to this before they are ranked: what nobody would notice is a tie
DRAWS = 1000
ENOUGH = 6  # problems: of five, the most extreme of 2⁵ sign patterns have a probability > .05
SUBSETS = 1 << 14  # of problems, at most; beyond 14 problems they are drawn
WORST = 1e30  # a score that is not finite, where it must be averaged


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN ends where there is none."""

    mean: float
    low: float
    high: float


class Rank(NamedTuple):
    """A rule's average rank over problems, 1 is best."""

    rule: str
    rank: float
    seeds: Interval  # what other seeds of these problems might give
    problems: Interval  # what other problems like these might give
    # rank less that of the mean and of the static search, over problems; negative is better
    against: dict[str, Interval]


@dataclass(frozen=True, repr=False)
class Result:
    """Every rule on every problem; printed, and in a notebook, it is the table of ranks."""

    problems: dict[str, BenchmarkProblem]
    cells: dict[str, dict[str, Cell]]  # by problem, by rule, the same rules for every problem
    settings: Settings

    @cached_property
    def scores(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """By problem, rule and measure: `[config, seed]`."""
        return {
            name: {rule: scores_of(self.problems[name], x.losses) for rule, x in cells.items()}
            for name, cells in self.cells.items()
        }

    @cached_property
    def drawn(self) -> dict[tuple[str, str], Resample]:
        """By problem and measure, as they are asked for."""
        return {}

    @property
    def rules(self) -> list[str]:
        """All rules, in their order."""
        return list(next(iter(self.cells.values())))

    def chosen(self, problem: str, rule: str, by: str = "mean") -> int:
        """The configuration whose mean score over the tuning seeds is least. One that is not finite
        on all of them loses to any that is.
        """
        tuning = self.scores[problem][rule][by][:, : self.settings.tuning]
        return int(_or_worst(tuning).mean(-1).argmin())

    def reported(
        self, problem: str, rule: str, by: str = "mean", measure: str | None = None
    ) -> Float[Tensor, " seed"]:
        """Scores on the reporting seeds at the configuration chosen `by`; NaN is infinite."""
        score = self.scores[problem][rule][measure or by][self.chosen(problem, rule, by)]
        return _or_worst(score[self.settings.tuning :])

    def status(self, problem: str, rule: str, by: str = "mean") -> str:
        """Empty if all went well, else what the rule raised, lost or made worse."""
        cell = self.cells[problem][rule]
        if cell.error:
            return f"raised {cell.error}"
        best = self.chosen(problem, rule, by)
        final = cell.losses[best, self.settings.tuning :]
        lost = int((~final.isfinite().all(-1)).sum())
        if lost:
            return f"not finite on {lost} of {len(final)} seeds"
        before = scores_of(self.problems[problem], cell.start[None, self.settings.tuning :])[by]
        above = self.reported(problem, rule, by).mean() > before.mean()
        return "ends above its start" if above else ""

    def ranks(self, by: str = "mean") -> list[Rank]:
        """Average ranks, best first, over the problems that have this measure.

        In each problem and seed the rules are ranked by their score, ties sharing their ranks and a
        score that is not finite sharing the last ones.
        """
        rules, names = self.rules, self._ranked(by)
        if not names:
            return []
        places, found = self._places(by), list[Rank]()
        drawn = torch.stack([self._resampled(name, by).places for name in names]).mean(0)
        average = places.mean(0)
        for i, rule in enumerate(rules):
            against = {
                other: mean_interval(places[:, i] - places[:, rules.index(other)])
                for other in (BASELINE, STATIC)
                if other in rules and other != rule
            }
            ends = [_interval(float(average[i]), drawn[:, i], self.settings.seeds)]
            ends.append(mean_interval(places[:, i]))
            both = [Interval(m, max(low, 1.0), min(high, len(rules))) for m, low, high in ends]
            found.append(Rank(rule, float(average[i]), both[0], both[1], against))
        return sorted(found, key=lambda rank: rank.rank)

    def critical_difference(self, by: str = "mean") -> float:
        """What two average ranks must differ by, and more, to differ at 95 %, all pairs at once.

        Exact if no rule is better than another (`spread`). NaN for fewer than `ENOUGH` problems.
        """
        return spread(self._places(by)) if len(self._ranked(by)) >= ENOUGH else math.nan

    def _places(self, by: str) -> Float[Tensor, "problem rule"]:
        """Mean ranks over the reporting seeds."""
        scores = [[self.reported(name, x, by) for x in self.rules] for name in self._ranked(by)]
        return torch.stack([_ranks(torch.stack(each)).mean(-1) for each in scores])

    def records(self, by: str = "mean") -> list[dict[str, Any]]:
        """One flat dict for each problem and rule, at the configuration chosen `by`.

        NaN where something is not known or not measured.
        """
        found = []
        for name, cells in self.cells.items():
            measure = self._measure(name, by)
            scores = torch.stack([self.reported(name, rule, measure) for rule in cells])
            for rule, place in zip(cells, _ranks(scores).mean(-1).tolist(), strict=True):
                found.append(self._record(name, rule, measure, place))
        return found

    def plot(self, ax: Axes | None = None, by: str = "mean") -> Axes:
        """Average ranks, best on top: thick the interval over seeds, thin that over problems.

        Args:
            ax: where to draw; None makes a figure.
            by: the measure, one of `MEASURES`.

        Returns:
            the Axes.
        """
        if ax is None:
            from matplotlib import pyplot as plt  # whose figures notebooks show

            ax = plt.subplots(figsize=(7, 1.2 + 0.28 * len(self.rules)), layout="constrained")[1]
        ranks = self.ranks(by)
        for i, rank in enumerate(ranks):
            colour = "C1" if rank.rule in (BASELINE, STATIC) else "C0"
            if math.isfinite(rank.problems.low):
                ax.plot(rank.problems[1:], (i, i), color=colour, linewidth=1)
            thick = {"linewidth": 4, "alpha": 0.5, "solid_capstyle": "butt"}
            ax.plot(rank.seeds[1:], (i, i), color=colour, **thick)
            ax.plot(rank.rank, i, "o", color=colour, markersize=5)
        ax.set_yticks(range(len(ranks)), [rank.rule for rank in ranks])
        ax.set_ylim(len(ranks) - 0.4, -0.6)
        what = f"average rank of {len(ranks)}, 1 is best, {_problems(len(self._ranked(by)))}"
        ax.set_xlabel(f"{what}\nby {MEASURES[by]}; thick: over seeds, thin: over problems")
        ax.grid(axis="x", alpha=0.25)
        return ax

    def table(self, by: str = "mean") -> pandas.DataFrame:
        """The table that is shown: a row per rule, best first, in words."""
        import pandas  # with xarray; only a finished study needs it

        few = len(self._ranked(by)) < ENOUGH
        rows: dict[str, dict[str, str]] = {}
        for rank in self.ranks(by):
            over = rank.seeds if few else rank.problems
            rows[rank.rule] = {
                "rule": rank.rule,
                "rank": f"{rank.rank:.2f}",
                "95 %, seeds" if few else "95 %": f"{over.low:.1f} to {over.high:.1f}",
            }
        for record in self.records(by):
            row = rows.setdefault(record["rule"], {"rule": record["rule"]})
            row[record["problem"]] = _cell(record, by)
        return pandas.DataFrame(list(rows.values())).fillna("")

    def __str__(self) -> str:
        return "\n".join([self.table().to_string(index=False), "", *self.notes()])

    __repr__ = __str__

    def notes(self, by: str = "mean") -> list[str]:
        """What the table shows, how it was taken, and what was lost on the way."""
        settings = self.settings
        marks = (BASELINE in self.rules) * (
            " + better, - worse than the rule mean on this problem (the 95 % interval of the "
            "seed-paired difference, the choice of both learning rates drawn anew, lies beyond "
            f"{TIE:g}, one cell at a time)."
        )
        notes = [
            f"Scores: {MEASURES[by]}, mean over {settings.seeds} seeds, from (loss - ideal)/(nadir "
            f"- ideal) of every task: 0 is what each task reaches alone.{marks}",
            "The learning rate of every rule, and the weights of the static search, are those "
            f"that are best on {settings.tuning} other seeds, from one grid "
            "a problem, so that no rule profits from its scale and no score chose its own "
            f"configuration.{self._budget()}",
            *self._comparison(by),
        ]
        failures: dict[tuple[str, str], list[str]] = {}
        for name, cells in self.cells.items():
            for rule in cells:
                if status := self.status(name, rule, self._measure(name, by)):
                    failures.setdefault((rule, status), []).append(name)
        lost = (f"! {x} on {', '.join(at)}: {status}" for (x, status), at in failures.items())
        return [*notes, *lost]

    def _budget(self) -> str:
        """How many weight vectors the static search has seen, where it takes part."""
        cells = [rules[STATIC] for rules in self.cells.values() if STATIC in rules]
        tried = sorted({len(cell.lr) // len(cell.lr.unique()) for cell in cells})
        if not tried:
            return ""
        count = "–".join(str(x) for x in dict.fromkeys((tried[0], tried[-1])))
        said = f" The static search has tried {count} weight vectors at each learning rate, every"
        return f"{said} other rule one setting of its own: it has had the larger budget."

    def _comparison(self, by: str) -> list[str]:
        """What the average ranks can tell."""
        ranks, count = self.ranks(by), len(self._ranked(by))
        if not ranks:
            return []
        if count < ENOUGH:
            return [
                f"Average ranks, {_problems(count)}: with fewer than {ENOUGH} nothing can be said "
                "at 95 % about other problems; the intervals are of other seeds of these."
            ]
        notes = [
            f"Average ranks, {_problems(count)}, with 95 % intervals over problems. All pairs "
            "taken together, two rules differ if their ranks are more than "
            f"{self.critical_difference(by):.2f} apart."
        ]
        for other in (BASELINE, STATIC):
            against = {rank.rule: rank.against[other] for rank in ranks if other in rank.against}
            better = [rule for rule, interval in against.items() if interval.high < 0]
            worse = [rule for rule, interval in against.items() if interval.low > 0]
            if against:
                notes.append(
                    f"Against {other}, one rule at a time: better {', '.join(better) or 'none'}; "
                    f"worse {', '.join(worse) or 'none'}; others open."
                )
        return notes

    def _ranked(self, by: str) -> list[str]:
        """Problems that have this measure."""
        if by not in MEASURES:
            raise ValueError(f"by={by!r}: expected one of {', '.join(map(repr, MEASURES))}")
        return [x for x in self.cells if by != "front" or self.problems[x].front is not None]

    def _measure(self, problem: str, by: str) -> str:
        """`by`, or the mean score where the front is not known."""
        return by if problem in self._ranked(by) else "mean"

    def _resampled(self, name: str, by: str) -> Resample:
        """The study of one problem again, on drawn seeds; the same draws for every rule."""
        if (name, by) not in self.drawn:
            scores = [scores[by] for scores in self.scores[name].values()]
            stream = list(self.cells).index(name)
            self.drawn[name, by] = resample_study(scores, self.settings.tuning, stream)
        return self.drawn[name, by]

    def _record(self, name: str, rule: str, by: str, place: float) -> dict[str, Any]:
        cell = self.cells[name][rule]
        best = self.chosen(name, rule, by)
        final = cell.losses[best, self.settings.tuning :]
        draws = bootstrap_weights(self.settings.seeds, list(self.cells).index(name))
        record: dict[str, Any] = {
            "problem": name,
            "rule": rule,
            "status": self.status(name, rule, by),
            "rank": place,
            "lr": float(cell.lr[best]),
            "lr at edge": float(cell.lr[best]) in (float(cell.lr.min()), float(cell.lr.max())),
            "weights": None if cell.weights is None else cell.weights[best].tolist(),
            "losses": final.mean(0).tolist(),
        }
        for measure in self.scores[name][rule]:
            values = self.reported(name, rule, by, measure)
            record |= _fields(measure, values, draws @ values)
        means = dict(zip(self.rules, self._resampled(name, by).means.unbind(-1), strict=True))
        for other in (BASELINE, STATIC):
            if other in self.cells[name] and other != rule:
                gap = self.reported(name, rule, by) - self.reported(name, other, by)
                record |= _fields(f"{by} less {other}'s", gap, means[rule] - means[other])
        return record | {"step, ms": cell.step_ms}


def normalize_losses(problem: BenchmarkProblem, losses: Tensor) -> Tensor:
    """(loss - ideal)/(nadir - ideal), of any leading shape."""
    return (losses - problem.ideal) / (problem.nadir - problem.ideal)


def scores_of(
    problem: BenchmarkProblem, losses: Float[Tensor, "config seed task"]
) -> dict[str, Float[Tensor, "config seed"]]:
    """Every measure that the problem has."""
    z = normalize_losses(problem, losses)
    scores = {"mean": z.mean(-1), "worst": z.amax(-1)}
    if problem.front is not None:
        front = normalize_losses(problem, problem.front)
        worse = ((points[:, None] - front).clamp_min(0) for points in z)
        scores["front"] = torch.stack([each.norm(dim=-1).amin(-1) for each in worse])
    return scores


class Resample(NamedTuple):
    """A study of one problem on drawn seeds."""

    places: Float[Tensor, "draw rule"]  # mean ranks
    means: Float[Tensor, "draw rule"]  # mean scores


def resample_study(scores: Sequence[Tensor], tuning: int, stream: int) -> Resample:
    """A bootstrap over seeds: each draw chooses every rule's configuration again, then reports.
    Scores are [config, seed] of every rule, the `tuning` seeds first.
    """
    for_tuning = bootstrap_weights(tuning, 2 * stream)
    weights = bootstrap_weights(scores[0].shape[1] - tuning, 2 * stream + 1)
    reports = []
    for score in scores:
        best = (for_tuning @ _or_worst(score[:, :tuning], WORST).mT).argmin(-1)
        reports.append(_or_worst(score)[best, tuning:])
    report = torch.stack(reports, 1)  # [draw, rule, seed]
    places = (vmap(_ranks)(report) * weights[:, None]).sum(-1)
    means = torch.where(weights[:, None] > 0, report * weights[:, None], 0.0).sum(-1)
    return Resample(places, means)


def _or_worst(scores: Tensor, worst: float = math.inf) -> Tensor:
    return torch.where(scores.isfinite(), scores, worst)


def bootstrap_weights(count: int, stream: int) -> Float[Tensor, "draw item"]:
    """How often each of `count` items was drawn with replacement, over `count`."""
    key = random.fold_in(random.key(17), stream)
    drawn = (random.uniform(key, (DRAWS, count), torch.float64) * count).long()
    ones = torch.ones_like(drawn, dtype=torch.float64)
    return torch.zeros(DRAWS, count, dtype=torch.float64).scatter_add_(1, drawn, ones) / count


def mean_interval(values: Float[Tensor, " problem"]) -> Interval:
    """The mean over problems with its 95 % interval, exact for symmetric differences.

    The means of all subsets of n independent values that are symmetric about θ cut the line into 2ⁿ
    intervals that hold θ with equal probability (Hartigan 1969, theorem 1). For a difference of two
    rules, of which neither is the better, symmetry is given: the rules could change places.
    """
    count = len(values)
    if count < ENOUGH or not bool(values.isfinite().all()):
        return Interval(float(values.mean()), math.nan, math.nan)
    if 1 << count <= SUBSETS:
        codes = torch.arange(1, 1 << count)
        chosen = (codes[:, None] >> torch.arange(count)) & 1
    else:
        chosen = random.uniform(random.key(count), (SUBSETS, count), torch.float64) < 0.5
        chosen = chosen[chosen.any(-1)]
    chosen = chosen.to(values)
    means = (chosen @ values / chosen.sum(-1)).sort().values
    tail = int(0.025 * (len(means) + 1))
    return Interval(float(values.mean()), float(means[tail - 1]), float(means[-tail]))


def spread(places: Float[Tensor, "problem rule"]) -> float:
    """The 95 % quantile of the range of mean ranks, when rules change places on each problem."""
    rules = places.shape[1]
    keys = [random.fold_in(random.key(18), i) for i in range(len(places))]
    orders = [random.permutation(key, rules, rows=2 * DRAWS) for key in keys]
    moved = [values[order] for values, order in zip(places, orders, strict=True)]
    ranges = torch.cat([torch.stack(moved).mean(0), places.mean(0)[None]])
    ranges = (ranges.amax(-1) - ranges.amin(-1)).sort().values
    return float(ranges[math.ceil(0.95 * len(ranges)) - 1])


def _ranks(scores: Float[Tensor, "rule seed"]) -> Float[Tensor, "rule seed"]:
    """Ranks from 1 within each seed; rules that are as good share the mean of theirs."""
    rounded = _or_worst((scores / TIE).round())
    less = (rounded[:, None] > rounded).sum(1)
    same = (rounded[:, None] == rounded).sum(1)
    return (less + 0.5 * (same + 1)).double()


def _interval(mean: float, draws: Tensor, count: int) -> Interval:
    """A bootstrap interval over seeds, wider as Student's t is; NaN if a draw is not finite."""
    if not bool(draws.isfinite().all()):
        return Interval(mean, math.nan, math.nan)
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    more = _widening_factor(count)
    return Interval(mean, mean + more * (low - mean), mean + more * (high - mean))


@cache
def _widening_factor(count: int) -> float:
    """A bootstrap's variance lacks the factor n/(n - 1), and its quantiles are a normal's."""
    from scipy.special import ndtri, stdtrit

    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975) / ndtri(0.975)) * (count / (count - 1)) ** 0.5


def _fields(key: str, values: Float[Tensor, " seed"], draws: Tensor) -> dict[str, float]:
    """A mean over seeds and its interval by `draws` of it, NaN if it is not finite."""
    found = _interval(float(values.mean()), draws, len(values))
    return {key: found.mean, f"{key}, low": found.low, f"{key}, high": found.high}


def _cell(record: Mapping[str, Any], by: str) -> str:
    if not math.isfinite(record.get(by, math.inf)):
        return "failed !" if by in record and record["status"] else ""
    gap = f"{by} less {BASELINE}'s"
    low, high = (record.get(f"{gap}, {side}", math.nan) for side in ("low", "high"))
    mark = " +" if high < -TIE else " -" if low > TIE else ""
    return f"{record[by]:.3f}{mark}{' !' if record['status'] else ''}"


def _problems(count: int) -> str:
    return f"{count} problem{'s' * (count != 1)}"
