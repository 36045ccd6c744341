"""Tables and a figure of what the steps did."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.figure import Figure

from common.intervals import Estimate, estimate, paired, pm
from common.tables import bar, markdown

from .run import WAYS, Cell, Met, Outcome

Outcomes = Mapping[Cell, Sequence[Outcome]]
COLOURS = {"G": "tab:grey", "metric": "tab:blue", "safe": "tab:green", "norm": "tab:orange"}
NAMES = {"G": "J Jᵀ", "metric": "J P Jᵀ", "safe": "J P Jᵀ, safe", "norm": "nuclear norm"}


def column(found: Sequence[Outcome], field: str) -> Estimate | None:
    """The mean over seeds of one field; None where it is not a number."""
    values = [getattr(x, field) for x in found]
    return estimate(values) if all(map(math.isfinite, values)) else None


def final_losses(outcomes: Outcomes) -> dict[str, list[float]]:
    """Relative differences of the final mean loss to that of the same rule on J Jᵀ, by way: one a
    setting, the mean over its seeds.
    """
    found: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    for cell, runs in outcomes.items():
        plain = outcomes.get(cell._replace(way="G"))
        if cell.way != "G" and plain is not None:
            off = [a.loss / b.loss - 1 for a, b in zip(runs, plain, strict=True)]
            found[cell.way].append(estimate(off).mean)
    return {way: values for way, values in found.items() if values}


def first_words(outcomes: Outcomes) -> str:
    """What does not improve, before what does."""
    said = []
    own = {
        rule: final_losses({c: runs for c, runs in outcomes.items() if c.rule == rule}).get("safe")
        for rule in dict.fromkeys(cell.rule for cell in outcomes)
    }
    by_rule = ", ".join(f"{rule} {median(x):+.1%}" for rule, x in own.items() if x)
    by_rule = by_rule and f" With {NAMES['safe']} by rule: {by_rule}."
    for way, values in final_losses(outcomes).items():
        said.append(
            f"with {NAMES[way]} {median(values):+.1%} in the median over {len(values)} settings "
            f"({min(values):+.1%} to {max(values):+.1%}), higher in {sum(x > 0 for x in values)}"
        )
    return (
        "The final loss is not what this improves. Against the same rule on J Jᵀ, the mean loss at "
        f"the end is {'; '.join(said)}.{by_rule}"
    )


def at_odds(met: Mapping[str, Met]) -> str:
    """Whether the tasks of each network conflict: without that a rule has nothing to keep."""
    names = ("network", "steps with a conflict", "least cosine", "longest / shortest", "loss gone")
    lines = [
        [name, f"{x.conflict:.0%}", f"{x.cosine:+.2f}", f"{x.lengths:.1f}", f"{x.fall:.0%}"]
        for name, x in met.items()
    ]
    return (
        "How far the tasks are at odds, with MGDA on J Jᵀ under Adam (β₁ = .9), medians over "
        "steps:\n\n" + markdown(names, lines)
    )


def shares(outcomes: Outcomes) -> str:
    """How often a step raises a loss, a line per network, optimizer and rule, on the largest
    minibatch at the largest rate.
    """
    ways = [way for way in WAYS if any(c.way == way for c in outcomes)]
    batches = {n: max(c.batch for c in outcomes if c.network == n) for n, *_ in outcomes}
    some = {
        c: runs
        for c, runs in outcomes.items()
        if (c.rate, c.batch) == (max(x.rate for x in outcomes), batches[c.network])
    }
    lines = []
    for start in dict.fromkeys((c.network, c.optimizer, c.rule) for c in some):
        found = {c.way: x for c, x in some.items() if (c.network, c.optimizer, c.rule) == start}
        risen = [pm(column(found[way], "risen")) if way in found else "–" for way in ways]
        told = [pm(column(x, "correlation")) for way, x in found.items() if way != "G"]
        lines.append([*start, *risen, told[0] if told else "–"])
    names = ["network", "optimizer", "rule", *(NAMES[way] for way in ways), "predicted ~ real"]
    return (
        "Share of steps after which some loss of the batch is larger, to first order, by what the "
        "rule is on; and the correlation of the promised falls of the first that has a metric with "
        "the real ones; ± is a standard error:\n\n" + markdown(names, lines)
    )


def table(outcomes: Outcomes, met: Mapping[str, Met]) -> str:
    """What does not improve, whether tasks conflict, and one row a setting."""
    lines = []
    for cell, runs in outcomes.items():
        plain = outcomes.get(cell._replace(way="G"))
        worse = None
        if plain is not None and cell.way != "G":
            worse = paired(
                [100 * a.loss / b.loss for a, b in zip(runs, plain, strict=True)],
                [100.0] * len(runs),
            )
        told = [pm(column(runs, "correlation")), pm(column(runs, "error"), 3)]
        line = [cell.network, cell.optimizer, f"{cell.rate:g}", str(cell.batch or "all"), cell.rule]
        line += [NAMES[cell.way], pm(column(runs, "risen")), pm(column(runs, "rise"), 3)]
        lines.append([*line, *(told if cell.way != "G" else ["–", "–"]), pm(worse, 1)])
    names = (
        "network", "optimizer", "rate", "batch", "rule", "on", "steps with a rise",
        "largest rise / change", "predicted ~ real", "metric error", "final loss, %",
    )  # fmt: skip
    return "\n\n".join(
        [first_words(outcomes), at_odds(met), shares(outcomes), markdown(names, lines)]
    )


def figure(outcomes: Outcomes) -> Figure:
    """The largest rise over the largest change: a panel a network and optimizer."""
    panels = list(dict.fromkeys((c.network, c.optimizer) for c in outcomes))
    networks = list(dict.fromkeys(network for network, _ in panels))
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in panels))
    drawn = Figure(figsize=(3 * len(optimizers) + 1, 2.4 * len(networks)), layout="constrained")
    axes = drawn.subplots(len(networks), len(optimizers), squeeze=False, sharex=True)
    for i, network in enumerate(networks):
        batch = max(c.batch for c in outcomes if c.network == network)
        rate = max(c.rate for c in outcomes if c.network == network)
        for j, optimizer in enumerate(optimizers):
            ax = axes[i][j]
            some = {
                c: runs
                for c, runs in outcomes.items()
                if c[:4] == (network, optimizer, rate, batch)
            }
            rules = list(dict.fromkeys(c.rule for c in some))
            for c, runs in some.items():
                place = -rules.index(c.rule) - 0.22 * (WAYS.index(c.way) - 1)
                bar(ax, place, column(runs, "rise"), COLOURS[c.way])
            ax.set_ylim(0.4 - len(rules), 0.6)
            ax.set_yticks([-k for k in range(len(rules))], rules)
            ax.axvline(0, color="black", lw=0.5)
            ax.set_title(f"{network}, {optimizer}", fontsize=9)
            ax.grid(axis="x", alpha=0.3)
    drawn.supxlabel("largest rise of a loss of the step's batch / largest change, to first order")
    handles = [
        axes[0][0].plot([], [], "o", color=COLOURS[way], label=NAMES[way])[0]
        for way in WAYS
        if any(c.way == way for c in outcomes)
    ]
    drawn.legend(handles=handles, loc="outside right upper", title="the rule on", fontsize=9)
    return drawn
