"""Tables with intervals, and the fronts as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from common.intervals import Estimate, against, bracket, estimate, pm, verdicts
from common.tables import markdown

from . import exact
from .adding import REWARDS
from .methods import METHODS
from .train import STEEPER, Settings

Runs = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
COLOURS = {name: f"C{i}" for i, name in enumerate(METHODS)} | {"align": "black"}


class Results(NamedTuple):
    sampled: Runs  # by problem and method, one entry a seed
    closed: Runs
    seeds: tuple[int, ...]
    settings: Settings
    rate: float


def lists(value: Any) -> list[float]:
    """Numbers as they come from a run, or from the disk."""
    return value.tolist() if isinstance(value, torch.Tensor) else list(value)


def changes(run: dict[str, Any]) -> list[float]:
    """By how much each reward rose."""
    return [b - a for a, b in zip(lists(run["first"]), lists(run["last"]), strict=True)]


def worst(runs: Sequence[dict[str, Any]]) -> Estimate:
    """The rise of the reward that rose least."""
    return estimate([min(changes(run)) for run in runs])


def gains(methods: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Estimate]:
    """The rewards' sum less that of the method `sum`, paired by seed, all together at 95 %."""
    return against({name: [run["score"] for run in runs] for name, runs in methods.items()}, "sum")


def words(results: Results) -> list[str]:
    """What does not help, before what does."""
    said = []
    for problem, methods in {**results.sampled, **results.closed}.items():
        groups = verdicts(gains(methods), lower_is_better=False)
        listed = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items())
        if listed:
            said.append(f"**{problem}**, the rewards' sum against the method `sum`: {listed}.")
    for problem, methods in {**results.sampled, **results.closed}.items():
        kept = {name: worst(runs) for name, runs in methods.items()}
        lower = [name for name, value in kept.items() if value.high < 0]
        higher = [name for name, value in kept.items() if value.low > 0]
        parts = [f"some reward ends lower than it began with {', '.join(lower)}"] if lower else []
        parts += [f"every reward ends higher with {', '.join(higher)}"] if higher else []
        if parts:
            said.append(f"**{problem}**: {'; '.join(parts)}.")
    return said


def sampled_table(results: Results) -> str:
    lines = []
    for problem, methods in results.sampled.items():
        gained = gains(methods)
        for name, runs in methods.items():
            ends = zip(*(lists(run["last"]) for run in runs), strict=True)
            line = [problem, name, *(pm(estimate(list(each))) for each in ends)]
            apart = f"{estimate([run['apart'] for run in runs]).mean:.0%}"
            lines.append([*line, bracket(gained.get(name)), bracket(worst(runs)), apart])
    columns = ("sum, less that of sum", "least rise", "steps apart")
    return markdown(("problem", "method", *REWARDS, *columns), lines)


def closed_table(results: Results) -> str:
    lines = []
    for problem, methods in results.closed.items():
        gained = gains(methods)
        for name, runs in methods.items():
            each = {key: estimate([run[key] for run in runs]) for key in ("room", "fell", "apart")}
            line = [problem, name, bracket(gained.get(name)), bracket(worst(runs))]
            shares = [f"{each[key].mean:.0%}" for key in ("fell", "apart")]
            lines.append([*line, bracket(each["room"], 3), *shares])
    columns = ["problem", "method", "sum, less that of sum", "least rise", "room to the front"]
    return markdown([*columns, "steps with a fall", "steps apart"], lines)


def table(results: Results) -> str:
    """Markdown: findings, numbers, how they were taken."""
    settings = results.settings
    notes = [
        f"Seeds {results.seeds[0]} to {results.seeds[-1]}; ± is a standard error, brackets "
        "are 95 % intervals of Student's t, paired by seed; those of the sums hold together, by "
        "problem. *Least rise*: of the reward that rose least since the start. *Steps apart*: with "
        "a negative entry in the Gramian of the method's own advantages.",
        f"Adding: {settings.lessons} steps of imitation, then {settings.steps} steps on "
        f"{settings.questions} questions with {settings.answers} answers each; Adam's rate "
        f"{results.rate:g} for all, SGD's {STEEPER * results.rate:g}, none chosen by a search.",
        "Exact policies: all answers enumerated, gradient descent; *room*: by how much another "
        "policy beats all rewards at once, by a linear program (0 on the front).",
    ]
    parts = [
        *words(results), sampled_table(results), closed_table(results),
        "\n".join(f"- {note}" for note in notes),
    ]  # fmt: skip
    return "\n\n".join(parts)


def numbers_of(results: Results, settings: dict[str, Any]) -> dict[str, Any]:
    """All runs."""
    return {"settings": settings, "adding": results.sampled, "exact": results.closed}


def figure(results: Results) -> Figure:
    """The front of two opposed rewards, and the paths to it."""
    name, count = "two opposed", min(4, len(results.seeds))
    drawn = Figure(figsize=(3.2 * count, 3.4), layout="constrained")
    axes = drawn.subplots(1, count, squeeze=False)[0]
    for i, ax in enumerate(axes):
        edge = exact.front(exact.drawn(exact.PROBLEMS[name], results.seeds[i]))
        ax.plot(edge[:, 0], edge[:, 1], "k-", lw=2, alpha=0.4, label="front")
        for method, runs in results.closed[name].items():
            path = torch.tensor([lists(point) for point in runs[i]["path"]])
            style = ":" if method == "align" else "-"  # align lies on the sum
            ax.plot(*path.T, style, color=COLOURS[method], lw=1.2, label=method)
            ax.plot(*lists(runs[i]["last"]), "o", color=COLOURS[method], ms=3, alpha=0.5)
            ax.plot(*lists(runs[i]["first"]), "ks", ms=5)
        ax.set(xlabel="first reward", ylabel="second reward", title=f"seed {results.seeds[i]}")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    return drawn
