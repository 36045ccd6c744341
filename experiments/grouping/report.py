"""A table and a figure: how well each forecaster knows the gains, and what its choice costs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from common.grouping.forecasts import NAMES, costs
from common.grouping.judge import BUDGETS, EVEN, Gains, Score, folds, scored, shown, unmeasured
from common.intervals import Estimate, bracket, estimate, paired, verdicts
from common.tables import bar, markdown


class Family(NamedTuple):
    """All draws of a family, judged."""

    gains: Sequence[Gains]
    scores: dict[str, dict[str, Score]]  # by kind of `folds` and forecaster
    unmeasured: dict[int, dict[str, np.ndarray]]  # regrets, by budget, judged as from one seed


Found = Mapping[str, Family]
ONE, HALF = folds(2)


def family(gains: Sequence[Gains], forecasts: Mapping[str, Sequence[np.ndarray]]) -> Family:
    """Judge all forecasters on all draws: one `[seed, group, task]` each."""
    kinds = folds(len(gains[0]))
    scores = {
        kind: {name: scored(each, gains, parts) for name, each in forecasts.items()}
        for kind, parts in kinds.items()
    }
    return Family(gains, scores, {most: unmeasured(gains, kinds[ONE], most) for most in BUDGETS})


def over_draws(values: np.ndarray, scale: float = 1) -> Estimate:
    """The interval over draws, of means over seeds."""
    return estimate((scale * values.mean(1)).tolist())


def over_seeds(values: np.ndarray) -> Estimate:
    """The interval over seeds, of means over draws: of these tasks alone."""
    return estimate(values.mean(0).tolist())


def less_even(family: Family, most: int) -> dict[str, Estimate]:
    """Regrets in per cent less that of equally large groups at random, of forecasts from one seed,
    with intervals over draws that hold for all forecasters together.
    """
    even = (100 * family.unmeasured[most][EVEN].mean(1)).tolist()
    return {
        name: paired((100 * score.regret[most].mean(1)).tolist(), even, len(NAMES))
        for name, score in family.scores[ONE].items()
    }


def words(found: Found) -> str:
    """Whether a forecaster helps: its grouping has a smaller regret than equal groups at random."""
    lines = []
    for name, family in found.items():
        kept = shown()
        gains = np.array([one.mean(0)[kept] for one in family.gains])
        lines.append(
            f"{name}: the gain of a task from its group is {100 * gains.mean():+.0f} % in the "
            f"mean, with a standard deviation of {100 * gains.std(1).mean():.0f} % within a draw; "
            f"{(gains > 0).mean():.0%} of the {gains.size} gains are positive."
        )
        for most in BUDGETS:
            said = verdicts(less_even(family, most))
            text = "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items())
            lines.append(
                f"{name}, at most {most} groups, regret of the grouping chosen from one seed "
                f"against equally large groups at random: {text}."
            )
    return "\n\n".join(lines)


def table(found: Found, steps: int) -> str:
    """One row a family and forecaster."""
    lines = []
    for where, family in found.items():
        one, half = family.scores[ONE], family.scores[HALF]
        less = {most: less_even(family, most) for most in BUDGETS}
        for name in NAMES:
            regrets = [
                text
                for most in BUDGETS
                for text in (
                    bracket(over_draws(one[name].regret[most], 100), 1),
                    bracket(less[most][name], 1),
                )
            ]
            line = [where, name, f"{costs(steps)[name]:.1f}", bracket(over_draws(one[name].r2))]
            line += [bracket(over_draws(one[name].rank)), bracket(over_seeds(one[name].rank))]
            lines.append([*line, bracket(over_draws(half[name].rank)), *regrets])
        for name in family.unmeasured[BUDGETS[0]]:
            regret = [over_draws(family.unmeasured[most][name], 100) for most in BUDGETS]
            shown_as = [cell for x in regret for cell in (bracket(x, 1), "–")]
            lines.append([where, name, "–", "–", "–", "–", "–", *shown_as])
    names = ["tasks", "forecaster", "trainings", "R²", "rank correlation", "over seeds",
             "from half of the seeds"]  # fmt: skip
    for most in BUDGETS:
        names += [f"regret, {most} groups, %", "less evenly at random"]
    notes = (
        "Gain: log of a task's test loss alone over that in a group. A forecast from one seed is "
        "judged by the mean gain of all others (from half of them by the other half), over all "
        "groups of two or more. R²: around the draw's mean, with the slope of the other draws. "
        "Regret: mean log loss of the chosen division of the tasks above that of the best one. "
        "Trainings: the cost, in trainings of one network. In brackets 95 % intervals over draws "
        "of tasks, where the column does not say over seeds; those less equally large groups at "
        "random hold for all forecasters together. At random: over all divisions into at most as "
        "many groups."
    )
    return "\n\n".join([words(found), markdown(names, lines), notes])


def figure(found: Found) -> Figure:
    """Rank correlations, and regrets at the largest budget."""
    drawn = Figure(figsize=(10, 3.1 * len(found)), layout="constrained")
    axes = drawn.subplots(len(found), 2, squeeze=False, sharex="col", sharey="row")
    most = BUDGETS[-1]
    for (left, right), (where, family) in zip(axes, found.items(), strict=True):
        kinds = {ONE: "tab:blue", HALF: "tab:green"}
        for shift, (kind, colour) in zip((0.14, -0.14), kinds.items(), strict=True):
            for place, score in enumerate(family.scores[kind].values()):
                bar(left, shift - place, over_draws(score.rank), colour)
                bar(right, shift - place, over_draws(score.regret[most], 100), colour)
            left.plot([], [], "o", color=colour, label=f"from {kind}")
        styles = {"all together": ":", "at random": "--", EVEN: "-"}
        for name, regret in family.unmeasured[most].items():
            level = 100 * regret.mean()
            right.axvline(level, color="black", ls=styles[name], lw=1, label=name)
        left.axvline(0, color="black", lw=0.5)
        left.set_yticks([-k for k in range(len(NAMES))], NAMES)
        left.set_title(where, fontsize=10)
        for ax in (left, right):
            ax.grid(axis="x", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    axes[0][1].legend(fontsize=8)
    axes[-1][0].set_xlabel("rank correlation of forecast and real gains")
    axes[-1][1].set_xlabel(f"regret of the division into at most {most} groups, % (log loss)")
    return drawn
