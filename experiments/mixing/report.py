"""Tables and a figure: errors on the target, and weights of the domains over the steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.intervals import Estimate, against, bracket, estimate, paired, pm, verdicts
from common.tables import markdown

from .data import PROBLEMS
from .study import EVERY, Choice, Outcome

Found = Mapping[tuple[str, str, str], Outcome]  # by problem, seeds ("0-15") and method
COLOURS = ("tab:blue", "tab:red", "tab:orange", "tab:grey")
LINES = {
    "uniform": "tab:grey", "oracle": "black", "target alone": "tab:purple", "align": "tab:green",
    "PiKE": "tab:brown",
}  # fmt: skip


def compared(outcomes: Mapping[str, Outcome], rival: str) -> dict[str, Estimate]:
    """Errors less the rival's, seed by seed, with intervals that hold together."""
    return against({name: x.error for name, x in outcomes.items()}, rival)


def of(found: Found, problem: str, seeds: str) -> dict[str, Outcome]:
    return {name: x for (p, s, name), x in found.items() if (p, s) == (problem, seeds)}


def words(found: Found) -> str:
    """What `align` did against each rival, in sentences."""
    lines = []
    for problem, seeds in dict.fromkeys((p, s) for p, s, _ in found):
        outcomes = of(found, problem, seeds)
        if "align" not in outcomes:
            continue
        others = [name for name in outcomes if name != "align"]
        less = {
            name: paired(outcomes["align"].error, outcomes[name].error, len(others))
            for name in others
        }
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in verdicts(less).items())
        lines.append(
            f"{problem}, seeds {seeds}, errors of align on the target's test images against those "
            f"of the others: {said}."
        )
    return "\n\n".join(lines)


def table(found: Found, choices: Mapping[tuple[str, str], Choice]) -> str:
    """One row per problem, method and set of seeds."""
    lines = []
    for problem, domains in PROBLEMS.items():
        for name in dict.fromkeys(name for p, _, name in found if p == problem):
            for seeds in dict.fromkeys(s for p, s, n in found if (p, n) == (problem, name)):
                outcomes = of(found, problem, seeds)
                outcome, choice = outcomes[name], choices[problem, name]
                last = np.array(outcome.weights)[:, -1].mean(0)
                shares = ", ".join(
                    f"{domain} {w:.2f}" for domain, w in zip(domains, last, strict=True)
                )
                line = [problem, name, seeds, pm(estimate(outcome.error), 1)]
                for rival in ("uniform", "oracle"):
                    line.append(bracket(compared(outcomes, rival).get(name), 1))
                setting = f"; {', '.join(f'{x:g}' for x in choice.setting)}"
                setting = f"{choice.rate:g}{setting if name in ('align', 'PiKE') else ''}"
                lines.append([*line, "–" if name == "target alone" else shares, setting])
    names = (
        "domains", "method", "seeds", "wrong, % ± standard error", "less uniform", "less oracle",
        "weights at the end", "rate; setting",
    )  # fmt: skip
    return words(found) + "\n\n" + markdown(names, lines)


def figure(found: Found, steps: int) -> Figure:
    """Target error of the methods, and the weights of `align` and PiKE, on the first seeds."""
    problems = [p for p in PROBLEMS if any(p == key[0] for key in found)]
    drawn = Figure(figsize=(11, 3.2 * len(problems)), layout="constrained")
    learnt = [x for x in ("align", "PiKE") if any(x == key[2] for key in found)]
    axes = drawn.subplots(len(problems), 1 + len(learnt), squeeze=False, sharex=True)
    for row, problem in zip(axes, problems, strict=True):
        seeds = next(s for p, s, _ in found if p == problem)
        outcomes = of(found, problem, seeds)
        for name, outcome in outcomes.items():
            at = moments(len(outcome.test[0]), steps)
            _band(row[0], at, 100 * np.array(outcome.test), LINES[name], name)
        row[0].set(title=f"{problem}: wrong on the target, %", ylim=(0, 100))
        for ax, name in zip(row[1:], learnt, strict=True):
            weights = np.array(outcomes[name].weights)
            for k, domain in enumerate(PROBLEMS[problem]):
                at = moments(weights.shape[1], steps)
                _band(ax, at, weights[:, :, k], COLOURS[k], domain)
            ax.legend(fontsize=7)
            ax.set(title=f"{problem}: weights of {name}", ylim=(0, 1))
        row[0].legend(fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return drawn


def moments(count: int, steps: int) -> list[int]:
    """The steps after which was measured."""
    return [min((k + 1) * EVERY, steps) for k in range(count)]


def _band(ax: Axes, at: Sequence[int], values: np.ndarray, colour: str, label: str) -> None:
    """The mean over seeds of `[seed, measurement]`, and its 95 % interval."""
    known = [estimate(column.tolist()) for column in values.T]
    ax.plot(at, [x.mean for x in known], color=colour, label=label)
    ax.fill_between(at, [x.low for x in known], [x.high for x in known], color=colour, alpha=0.2)
