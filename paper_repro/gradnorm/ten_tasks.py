"""Do ten tasks gain from GradNorm, and does the gain grow with their number?"""

import numpy as np

from ..report.decisions import APART, Claims, Row, sided
from ..report.figures import axes, band, name_lines
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import ALPHA, COLOURS, INTERVAL, RATE, TEN, TWO, Runs
from .lanes import EQUAL, Size, Trace, size_of
from .paper_size import AT_BEST, AT_ONE, Pair, default_runs, pairs_of, problem_of, setting
from .reach import beside_equal, by_rate, numbers_of
from .refine import half_of
from .rivals import five_tasks, ten_tasks, two_tasks
from .toy_figures import lines

CLAIMS = {
    "GN-23": Row("Ten tasks also gain from GradNorm.", sided(("GradNorm over equal, *", "<", 1))),
    "GN-24": Row(
        "The benefit grows with the number of tasks.",
        sided(("ratio at T = * over that at T = *", "<", 1)),
    ),
}
claim = Claims(CLAIMS)

LEARNT = f"GradNorm, {ALPHA:g}"
OF_TEN = f"of ten, {AT_BEST}"
TEN_LANES = "of ten"
Pairs = dict[str, dict[int, Pair]]
"""By how the learning rate is chosen, or of one set of scales; then by the number of tasks."""


def run(settings: Settings) -> Findings:
    """At the paper's size; of one set of scales, and on a finite training set, at a reduced one."""
    ten, small, size = default_runs(settings, TEN), ten_tasks(settings)[:2], size_of(settings)
    last = int(ten["equal"].steps[-1])
    two = {name: runs.until(last) for name, runs in default_runs(settings).items()}
    by_number = {2: pairs_of(two), 10: pairs_of(ten)}
    pairs: Pairs = {
        how: {tasks: both[how] for tasks, both in by_number.items()} for how in (AT_ONE, AT_BEST)
    }
    pairs[OF_TEN] = nested(small, settings)
    text = setting(problem_of(settings, TEN), ten["equal"])
    yield figure_3(ten, text)
    yield ten_gain(ten, pairs, text)
    yield gain_grows(pairs, text, size)


def nested(ten: tuple[Trace, Trace], settings: Settings) -> dict[int, Pair]:
    """The first two, with --full five, and all of the ten scales."""
    found = {2: lanes_pair(two_tasks(settings), TEN_LANES, TEN_LANES)}
    if settings.full:
        found[5] = lanes_pair(five_tasks(settings), TEN_LANES, TEN_LANES)
    return {**found, 10: lanes_pair(ten, EQUAL, LEARNT)}


def lanes_pair(traces: tuple[Trace, Trace], *names: str) -> Pair:
    """Equal weights and GradNorm, by the names of their lanes."""
    both = list(zip(traces, names, strict=True))
    equal, learnt = (trace.judged(name) for trace, name in both)
    rates = [[trace.lanes[i].lr for i in trace.picked(name)] for trace, name in both]
    nothing = any(trace.settles_nothing(name) for trace, name in both)
    half = half_of(ratio_interval(learnt, equal))
    apart = max(trace.apart(name) for trace, name in both) / half
    return Pair(equal, learnt, rates[0], rates[1], nothing, apart)


def ten_gain(runs: dict[str, Runs], pairs: Pairs, text: str) -> Claim:
    fixed, learnt = runs["static"].at(RATE).judged(), pairs[AT_ONE][10].learnt
    simple, one, best = ratio_interval(learnt, fixed), pairs[AT_ONE][10], pairs[AT_BEST][10]
    rates = by_rate(runs)
    better = "better than" if simple.low > 1 else "worse than" if simple.high < 1 else "as good as"
    return claim(
        "GN-23",
        {
            **numbers_of({how: pairs[how][10] for how in (AT_ONE, AT_BEST)}, rates),
            **named("1/L_i(0) over equal", ratio_interval(fixed, one.equal)),
            **named("GradNorm over 1/L_i(0)", simple),
        },
        f"ten scales from 3 to 81. {beside_equal(one, best, rates)}. Static weights "
        f"1/L_i(0), without a search, are {better} GradNorm, which ends at {simple} times their "
        f"loss {AT_ONE}. {text}. {INTERVAL}",
    )


def gain_grows(pairs: Pairs, text: str, size: Size) -> Claim:
    """Ratios at more tasks over those at fewer, paired by seed."""
    numbers: dict[str, float] = {}
    for how, found in pairs.items():
        for tasks, pair in found.items():
            numbers |= named(f"GradNorm over equal, T = {tasks}, {how}", pair.ratio)
        few, many = found[min(found)], found[max(found)]
        seeds = min(len(few.equal), len(many.equal))
        ratios = [(pair.learnt / pair.equal)[:seeds] for pair in (many, few)]
        name = f"ratio at T = {max(found)} over that at T = {min(found)}, {how}"
        numbers |= named(name, ratio_interval(*ratios), unsettled=few.open or many.open)
        if few.apart is not None and many.apart is not None:
            numbers[name + APART] = max(few.apart, many.apart)
    return claim(
        "GN-24",
        numbers,
        f"as in the paper, σ = {TWO} at T = 2 and ten other scales at T = 10 after as many steps, "
        f"{AT_ONE} and {AT_BEST}, and the first two of those and all of them, where the number "
        f"alone changes, {AT_BEST}. {text}; of one set: {size}. {INTERVAL}",
    )


def figure_3(runs: dict[str, Runs], text: str) -> Figure:
    canvas, panels = axes(1, 3, (15, 4.6))
    runs = {name: one.at(RATE) for name, one in runs.items()}
    for method, label in (("equal", "equal"), ("GradNorm", "GradNorm"), ("static", "$1/L_i(0)$")):
        mean = runs[method].test[:, 0].mean(-1)
        band(panels[0], runs[method].steps, mean, COLOURS[method], label, geometric=True)
    panels[0].set(ylabel="mean of $L_i/L_i(0)$ on test data")
    panels[0].legend()
    learnt = runs["GradNorm"]
    steps = np.arange(1, len(learnt.weights) + 1)
    drawn = (
        (panels[1], steps, learnt.weights, "GradNorm's weight $w_i$ (they sum to 10)"),
        (panels[2], learnt.steps, learnt.test, "GradNorm: $L_i/L_i(0)$ on test data"),
    )
    for panel, times, values, label in drawn:
        ratios = panel is panels[2]
        ends = lines(panel, times, values[:, 0], TEN, geometric=ratios, alpha=0.12)
        panel.set(ylabel=label)
        if not ratios:
            panel.set_ylim(bottom=0)
        name_lines(panel, ends)
    for panel in panels:
        panel.set(xlabel="step")
    return Figure(
        "ten-tasks",
        "Ten tasks: losses and weights (lower half of the toy's figure in Chen et al. 2018, at its "
        f"size). Left: three weightings. Middle and right: each task. α = {ALPHA}; {text}; bands "
        "are 95 % t intervals over seeds, of losses of their logarithms.",
        canvas,
    )
