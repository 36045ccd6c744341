"""Numbers of the studies' reports, from made-up runs, by NumPy's means and SciPy's intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.grouping.judge import EVEN, Score
from common.intervals import Estimate
from common.study import Found
from experiments.auxiliary import report as auxiliary
from experiments.auxiliary import tasks
from experiments.grouping import report as grouping
from experiments.multimnist import report as multimnist
from experiments.physics import report as physics
from experiments.published import report as published
from experiments.published.qm9 import QM9
from experiments.rewards import report as rewards
from experiments.scenes import metrics
from experiments.scenes import report as scenes
from experiments.scenes.data import NYUV2

SEEDS, RNG = 4, np.random.default_rng(0)
RULES = ("mean", "mgda", "uw")
TIMES = {"step_ms": 2.0, "parameters": 7, "epoch": 3, "weights": {}}


def made(numbers: dict[str, Sequence[str]], *parts: str) -> Any:
    """Runs of all rules, and of a network alone for each task, whose numbers are named."""
    learnt = {f"{task} alone": own for task, own in numbers.items()}
    learnt |= dict.fromkeys(RULES, tuple(name for own in numbers.values() for name in own))
    return {
        method: [
            {part: {k: RNG.uniform(0.3, 0.7) for k in names} for part in parts} | TIMES
            for _ in range(SEEDS)
        ]
        for method, names in learnt.items()
    }


def of(runs: Any, method: str, part: str, *names: str) -> np.ndarray:
    """`[name, seed]`; "alone" is each name's own network."""
    own = [f"{name} alone" if method == "alone" else method for name in names]
    return np.array([[r[part][n] for r in runs[m]] for n, m in zip(names, own, strict=True)])


def check(found: Estimate | None, values: Any, comparisons: int = 1) -> None:
    """Its mean, and the interval of Student's t for so many comparisons."""
    ends = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), *ends))


def test_published_benchmarks():
    """Δm against networks alone of the same seed, and against the published base."""
    runs, base = made({"a": "a", "b": "b"}, "test"), np.array([[0.4], [0.6]])
    units = QM9._replace(tasks=("a", "b"), base=tuple(base[:, 0]))
    found = published.rows(Found({}, {"": runs}), units)
    plain = published.rows(Found({}, {"": runs}), units._replace(base=(), higher_is_better=True))
    alone, mean, mgda = (of(runs, name, "test", *"ab") for name in ("alone", "mean", "mgda"))
    check(found["mgda"].delta_m, 100 * (mgda / alone - 1).mean(0), 3)
    check(found["mgda"].published, 100 * (mgda / base - 1).mean(0), 3)
    check(found["mgda"].against_mean, 100 * ((mgda - mean) / base).mean(0), 2)
    check(plain["mgda"].delta_m, 100 * (1 - mgda / alone).mean(0), 3)
    check(plain["mgda"].worst, mgda.min(0))
    check(plain["mgda"].against_mean, (mgda - mean).mean(0), 2)


def test_multimnist():
    runs, sides = made({"left": ["left"], "right": ["right"]}, "test", "train"), ("left", "right")
    row = multimnist.rows(Found({}, {"a setting": runs}))["a setting"]["mgda"]
    mgda, mean, alone = (100 * of(runs, x, "test", *sides) for x in ("mgda", "mean", "alone"))
    gap, own = (100 * of(runs, x, "train", *sides) for x in ("mgda", "alone"))
    check(row.delta_m, 100 * (1 - mgda / alone).mean(0), 3)
    check(row.against_mean, (mgda - mean).mean(0), 2)
    check(row.against_alone["right"], (mgda - alone)[1], 2)
    check(row.gap_above, (gap - mgda).mean(0) - (own - alone).mean(0))


def test_scenes():
    """Δm flat of metrics by batches, by task of pooled ones; against the mean loss, by task."""
    runs = made({t: [*metrics.metrics_of([t])] for t in NYUV2.tasks}, "test", "pooled")

    def mean(method: str, part: str, *of_tasks: str) -> np.ndarray:
        """How much worse than the networks alone, over the metrics of some tasks."""
        off = []
        for name, (task, higher) in metrics.metrics_of(of_tasks).items():
            ratio = of(runs, method, part, name) / of(runs, f"{task} alone", part, name)
            off.append(100 * (1 - ratio[0] if higher else ratio[0] - 1))
        return np.mean(off, 0)

    row = scenes.rows(Found({}, {"": runs}), NYUV2)["mgda"]
    check(row.flat, mean("mgda", "test", *NYUV2.tasks), 3)
    check(row.by_task, -np.mean([mean("mgda", "pooled", t) for t in NYUV2.tasks], 0), 3)
    for task in NYUV2.tasks:
        check(row.tasks[task], mean("mgda", "test", task) - mean("mean", "test", task), 2 * 3)


@pytest.mark.parametrize(
    ("mgda", "weight", "verdict"),
    [(-0.2, 0.3, "holds"), (-0.2, 0.6, "does not hold"), (0.2, 0.3, "does not hold"),
     (0.0, 0.3, "inconclusive")],
)  # fmt: skip
def test_mgda_neglects_the_main_task(mgda, weight, verdict):
    test = {name: 50 + RNG.uniform(size=SEEDS) for name in (auxiliary.ALONE, *auxiliary.RULES)}
    test["mgda"] += 100 * mgda
    weights = [{tasks.MAIN: weight + 1e-3 * i, "x": 1 - weight - 1e-3 * i} for i in range(SEEDS)]
    runs = {
        name: [TIMES | {"test": x / 100, "weights": w, "descends": w}
               for x, w in zip(each, weights, strict=True)]
        for name, each in test.items()
    }  # fmt: skip
    every = auxiliary.rows(Found({}, {"50 labels": runs}))
    check(every["50 labels"]["mgda"].cagrad_above, test["cagrad"] - test["mgda"], len(test) - 1)
    assert auxiliary.neglected(every) == verdict


def test_physics_says_whose_error_is_lower():
    """Scores are -log10 of the error; a run that failed has the higher error."""
    runs = {x: [{"score": x + 0.01 * i * (-1) ** i} for i in range(SEEDS)] for x in (2, 3, 4, 5)}
    failed = [*runs[5][1:], {"score": -np.inf}]
    row = {physics.OURS: runs[3], "a": runs[2], "b": runs[4], "c": failed, "d": runs[3]}
    assert physics.against(row) == {"higher": ["b"], "open": ["d"], "lower": ["a", "c"]}


def test_rewards_and_grouping_are_paired():
    ends = {n: RNG.uniform(size=(SEEDS, 2, 3)) for n in ("sum", "MGDA", "align")}
    runs = {
        n: [{"first": a, "last": b, "score": float(b.sum())} for a, b in x] for n, x in ends.items()
    }
    check(rewards.worst(runs["MGDA"]), (ends["MGDA"][:, 1] - ends["MGDA"][:, 0]).min(1))
    check(rewards.gains(runs)["MGDA"], (ends["MGDA"] - ends["sum"])[:, 1].sum(1), 2)
    regret, even = RNG.uniform(size=(2, 5, 3))
    family = grouping.Family(
        [], {grouping.ONE: {"a": Score(regret, regret, {2: regret})}}, {2: {EVEN: even}}
    )
    less = 100 * (regret - even).mean(1)
    check(grouping.less_even(family, 2)["a"], less, len(grouping.NAMES))
