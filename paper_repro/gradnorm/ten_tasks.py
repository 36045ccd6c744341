"""Do ten tasks gain from GradNorm, and does the gain grow with their number?"""

from ..report.decisions import APART, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import ALPHA, INTERVAL, RATE, TEN, TWO, Runs
from .lanes import EQUAL, Trace, size_of
from .paper_size import AT_BEST, AT_ONE, Pair, default_runs, pairs_of, problem_of, setting
from .refine import half_of
from .rivals import OF_TEN, ten_tasks, two_tasks

CLAIMS = {
    "GN-23": Row("Ten tasks also gain from GradNorm.", sided(("GradNorm over equal, *", "<", 1))),
    "GN-24": Row(
        "The benefit grows with the number of tasks.",
        sided(("ratio at T = * over that at T = *", "<", 1)),
    ),
}


def run(settings: Settings) -> Findings:
    """At the paper's size; of one set of scales at a reduced one."""
    ten, two = default_runs(settings, TEN), default_runs(settings)
    pairs, problem = pairs_of(ten), problem_of(settings, TEN)
    text = setting(problem, ten["equal"])
    at_one = {name: runs.at(RATE) for name, runs in ten.items()}

    one, best = pairs[AT_ONE], pairs[AT_BEST]
    fixed = ratio_interval(one.learnt, at_one["static"].judged())
    yield Claim(
        "GN-23",
        {
            **one.named(f"GradNorm over equal, {AT_ONE}"),
            **best.named(f"GradNorm over equal, {AT_BEST}"),
            **named("GradNorm over 1/L_i(0)", fixed),
        },
        f"ten scales from 3 to 81; best rates: {best.rates}; static weights 1/L_i(0) {AT_ONE}; "
        f"{text}. {INTERVAL}",
    )

    few = pairs_of({name: until(runs, ten["equal"].steps[-1]) for name, runs in two.items()})
    of_ten = (
        lanes_pair(two_tasks(settings), OF_TEN, OF_TEN),
        lanes_pair(ten_tasks(settings), EQUAL, f"GradNorm, {ALPHA:g}"),
    )
    numbers = grown(AT_ONE, few[AT_ONE], one) | grown(AT_BEST, few[AT_BEST], best)
    yield Claim(
        "GN-24",
        numbers | grown(f"of ten, {AT_BEST}", *of_ten),
        f"σ = {TWO} at T = 2 and ten other scales at T = 10, after as many steps; of ten: the "
        f"first two of those and all of them, {size_of(settings)}; else {text}. {INTERVAL}",
    )


def until(runs: Runs, step: int) -> Runs:
    """Test losses up to a step."""
    sooner = runs.steps <= step
    return runs._replace(steps=runs.steps[sooner], test=runs.test[sooner])


def lanes_pair(traces: tuple[Trace, Trace], *names: str) -> Pair:
    """Equal weights and GradNorm, by the names of their lanes."""
    both = list(zip(traces, names, strict=True))
    equal, learnt = (trace.judged(name) for trace, name in both)
    half = half_of(ratio_interval(learnt, equal))
    apart = max(trace.apart(name) for trace, name in both) / half
    return Pair(equal, learnt, any(trace.settles_nothing(name) for trace, name in both), apart)


def grown(how: str, few: Pair, many: Pair) -> dict[str, float]:
    """The ratio at ten tasks over that at two, paired by seed."""
    seeds = min(len(few.equal), len(many.equal))
    ratios = [(pair.learnt / pair.equal)[:seeds] for pair in (many, few)]
    name = f"ratio at T = 10 over that at T = 2, {how}"
    numbers = named(name, ratio_interval(*ratios), unsettled=few.open or many.open)
    if few.apart is not None and many.apart is not None:
        numbers[name + APART] = max(few.apart, many.apart)
    return numbers
