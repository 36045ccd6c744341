"""Do ten tasks gain from GradNorm, and does the gain grow with their number?"""

import numpy as np
from matplotlib.axes import Axes

from ..report.decisions import OPEN
from ..report.figures import axes, band, name_lines, plain_ticks
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import half_width, mean_interval, named, ratio_interval
from .common import ALPHA
from .decisions import claim
from .lanes import COLOUR, EQUAL, FIXED, PAIRED, TEN, TWO, Size, Trace, size_of
from .rivals import five_tasks, ten_tasks, two_tasks
from .toy_figures import lines

LEARNT = f"GradNorm, {ALPHA:g}"
Pair = tuple[Trace, str, Trace, str]
"""Equal weights and GradNorm: a trace and the name of its lanes, twice."""


def run(settings: Settings) -> Findings:
    size, two, ten = size_of(settings), two_tasks(settings), ten_tasks(settings)
    five = five_tasks(settings)
    nested: dict[int, Pair] = {
        2: (two[0], "of ten", two[1], "of ten"),
        5: (five[0], "of ten", five[1], "of ten"),
        10: (ten[0], EQUAL, ten[1], LEARNT),
    }
    paper: dict[int, Pair] = {2: (two[0], "static, 1", two[1], LEARNT), 10: nested[10]}
    yield figure_3(ten[0], ten[1], size)
    yield by_number(paper, nested, size)
    yield ten_gain(nested[10], size)
    yield gain_grows(paper, nested, size)


def ratios(pair: Pair) -> np.ndarray:
    """Final loss of GradNorm over equal weights, `[seed]`, each at its best rate."""
    return pair[2].judged(pair[3]) / pair[0].judged(pair[1])


def settles_nothing(pair: Pair) -> bool:
    return pair[0].settles_nothing(pair[1]) or pair[2].settles_nothing(pair[3])


def ten_gain(pair: Pair, size: Size) -> Claim:
    name = "GradNorm over equal, T = 10"
    equal, learnt, fixed = pair[0].judged(pair[1]), pair[2].judged(pair[3]), pair[0].judged(FIXED)
    return claim(
        "GN-23",
        {
            **named(name, ratio_interval(learnt, equal)),
            name + OPEN: float(settles_nothing(pair)),
            **named("1/L_i(0) over equal, T = 10", ratio_interval(fixed, equal)),
            **named("GradNorm over 1/L_i(0), T = 10", ratio_interval(learnt, fixed)),
            "best rate over all seeds, equal": pair[0].best(pair[1]).lr,
            "best rate over all seeds, GradNorm": pair[2].best(pair[3]).lr,
        },
        f"ten scales from 3 to 81, α = {ALPHA}, each method at its best learning rate. Static "
        f"weights 1/L_i(0), which need no search, end at {ratio_interval(fixed, equal)} of equal "
        f"weights' loss, and GradNorm at {ratio_interval(learnt, fixed)} of theirs; {size}; "
        f"{PAIRED}",
    )


def gain_grows(paper: dict[int, Pair], nested: dict[int, Pair], size: Size) -> Claim:
    """Ratios at more tasks over those at fewer, paired by seed."""
    numbers: dict[str, float] = {}
    for label, pairs in (("", paper), (" of ten", nested)):
        for count, pair in pairs.items():
            ratio = ratio_interval(ratios(pair), np.ones_like(ratios(pair)))
            numbers |= named(f"GradNorm over equal, T = {count}{label}", ratio)
        few, many = min(pairs), max(pairs)
        name = f"ratio at T = {many} over that at T = {few}{label}"
        numbers |= named(name, ratio_interval(ratios(pairs[many]), ratios(pairs[few])))
        numbers[name + OPEN] = float(any(map(settles_nothing, pairs.values())))
    return claim(
        "GN-24",
        numbers,
        f"as in the paper, σ = {TWO} at T = 2 and ten other scales at T = 10, and the first two, "
        "five and ten of those, where the number alone changes; holds if GradNorm's loss over "
        f"equal weights' is smaller at T = 10 in both; α = {ALPHA}, each method at its best "
        f"learning rate; {size}; {PAIRED}",
    )


def figure_3(static: Trace, learnt: Trace, size: Size) -> Figure:
    canvas, panels = axes(1, 3, (15, 4.6))
    for trace, name, label in (
        (static, EQUAL, "equal"),
        (learnt, LEARNT, "GradNorm"),
        (static, FIXED, "$1/L_i(0)$"),
    ):
        text = f"{label}, Adam {trace.rates(name)}"
        colour = COLOUR[name if name in COLOUR else "GradNorm"]
        band(panels[0], trace.times, trace.curve(name), colour, text, geometric=True)
    panels[0].set(ylabel="mean of $L_i/L_i(0)$ on test data", yscale="log")
    plain_ticks(panels[0].yaxis)
    panels[0].legend()
    weights, ratios = learnt.of(learnt.weights, LEARNT), learnt.of(learnt.test, LEARNT)
    drawn = (
        # at the start weights are 1 by definition, at later moments as used
        (panels[1], weights, "GradNorm's weight $w_i$ (they sum to 10)"),
        (panels[2], ratios, "GradNorm: $L_i/L_i(0)$ on test data"),
    )
    for panel, values, label in drawn:
        ends = lines(panel, learnt.times, values, TEN, geometric=panel is panels[2], alpha=0.12)
        panel.set(ylabel=label)
        if panel is panels[1]:
            panel.set_ylim(bottom=0)
        else:
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
        name_lines(panel, ends)
    for panel in panels:
        panel.set(xlabel="step")
    return Figure(
        "ten-tasks",
        "Ten tasks: losses and weights (lower half of the toy's figure in Chen et al. 2018; there, "
        "250 inputs, 100 outputs, width 100). Left: each method at its best learning rate. Middle "
        f"and right: each task. α = {ALPHA}; {size}. {PAIRED}; bands of losses are of "
        "logarithms.",
        canvas,
    )


def by_number(paper: dict[int, Pair], nested: dict[int, Pair], size: Size) -> Figure:
    canvas, panels = axes(1, 2, (11, 4.4))
    looks = (("the paper's scales", paper, "C0", "o--"), ("of one set", nested, "C1", "s-"))
    for label, pairs, colour, style in looks:
        _line(panels[0], pairs, colour, style, label)
    panels[0].axhline(1, color="#999999", linewidth=1)
    panels[0].set(
        xlabel="tasks T",
        ylabel="final test loss, GradNorm / equal weights",
        xticks=[2, 5, 10],
        ylim=(0, None),
    )
    panels[0].legend()
    static, _, learnt, _ = nested[10]
    for trace, label in ((static, EQUAL), (learnt, "GradNorm")):
        gap = trace.of(trace.test, "finite").mean(-1) - trace.of(trace.train, "finite").mean(-1)
        band(panels[1], trace.times, gap, COLOUR[label], label)
    panels[1].axhline(0, color="#999999", linewidth=1)
    panels[1].set(xlabel="step", ylabel="test minus train loss, means of $L_i/L_i(0)$")
    panels[1].legend()
    return Figure(
        "number",
        "Left: GradNorm's gain by the number of tasks, for σ = (1, 100) and the ten scales as in "
        "the paper, and for the first two, five and ten of those. Right: the train–test gap of ten "
        f"tasks on a finite training set, each method at its best rate. {size}. {PAIRED}.",
        canvas,
    )


def _line(panel: Axes, pairs: dict[int, Pair], colour: str, style: str, label: str) -> None:
    found = [np.log(ratios(pair)) for pair in pairs.values()]
    middle = np.array([mean_interval(x).mean for x in found])
    half = np.array([half_width(x) for x in found])
    bars = [np.exp(middle) - np.exp(middle - half), np.exp(middle + half) - np.exp(middle)]
    panel.errorbar(
        list(pairs), np.exp(middle), bars, fmt=style, color=colour, label=label, capsize=3
    )
