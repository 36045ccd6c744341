"""Numbers of the studies' reports, from made-up runs, by NumPy's means and SciPy's intervals."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.grouping.judge import EVEN, Score
from common.intervals import Estimate
from common.study import Found
from experiments.auxiliary import report as auxiliary
from experiments.auxiliary import tasks
from experiments.control import report as control
from experiments.grouping import report as grouping
from experiments.metric import report as metric
from experiments.metric.run import Cell, Outcome
from experiments.mixing import report as mixing
from experiments.mixing.study import Outcome as Mixed
from experiments.multimnist import report as multimnist
from experiments.physics import report as physics
from experiments.published import report as published
from experiments.published.qm9 import QM9
from experiments.rewards import report as rewards
from experiments.scenes import metrics
from experiments.scenes import report as scenes
from experiments.scenes.data import NYUV2
from experiments.scenes.published import PUBLISHED

SEEDS = 4
RNG = np.random.default_rng(0)
TIMES = {"step_ms": 2.0, "parameters": 7, "epoch": 3}


def drawn(names: Any) -> dict[str, float]:
    return {name: float(RNG.uniform(0.3, 0.7)) for name in names}


def check(found: Estimate | None, values: Any, comparisons: int = 1) -> None:
    """Its mean, and the interval of Student's t for so many comparisons."""
    ends = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), *ends))


def of(runs: list[dict], part: str, task: str) -> np.ndarray:
    return np.array([run[part][task] for run in runs])


def test_published_benchmarks():
    """Δm against networks alone of the same seed, and against the published base."""
    base = (0.4, 0.6)
    units = QM9._replace(tasks=("a", "b"), base=base)
    learnt: dict[str, Any] = {"a alone": ("a",), "b alone": ("b",)}
    learnt |= dict.fromkeys(("mean", "mgda", "cagrad"), ("a", "b"))
    runs = {n: [{"test": drawn(t), **TIMES} for _ in range(SEEDS)] for n, t in learnt.items()}
    alone = np.array([of(runs[f"{t} alone"], "test", t) for t in "ab"])
    each = {n: np.array([of(runs[n], "test", t) for t in "ab"]) for n in ("mean", "mgda", "cagrad")}
    found = published.rows(Found({}, {"": runs}), units)
    plain = published.rows(Found({}, {"": runs}), units._replace(base=(), higher_is_better=True))
    theirs = {n: 100 * (x / np.array(base)[:, None] - 1).mean(0) for n, x in each.items()}
    for name, x in each.items():
        check(found[name].delta_m, 100 * (x / alone - 1).mean(0), 3)
        check(found[name].published, theirs[name], 3)
        check(plain[name].delta_m, 100 * (1 - x / alone).mean(0), 3)
        check(plain[name].metric, x.mean(0))
        check(plain[name].worst, x.min(0))
    check(found["mgda"].against_mean, theirs["mgda"] - theirs["mean"], 2)
    check(plain["mgda"].against_mean, (each["mgda"] - each["mean"]).mean(0), 2)
    assert found["mean"].against_mean is found["a alone"].delta_m is None


def test_multimnist():
    learnt: dict[str, Any] = {"left alone": ("left",), "right alone": ("right",)}
    learnt |= dict.fromkeys(("mean", "mgda", "uw"), ("left", "right"))
    runs = {
        n: [{"test": drawn(t), "train": drawn(t), **TIMES} for _ in range(SEEDS)]
        for n, t in learnt.items()
    }
    row = multimnist.rows(Found({}, {"a setting": runs}))["a setting"]["mgda"]
    sides = ("left", "right")
    test, train, mean = (
        100 * np.array([of(runs[n], part, t) for t in sides])
        for n, part in (("mgda", "test"), ("mgda", "train"), ("mean", "test"))
    )
    one, learnt_one = (
        100 * np.array([of(runs[f"{t} alone"], part, t) for t in sides])
        for part in ("test", "train")
    )
    check(row.delta_m, 100 * (1 - test / one).mean(0), 3)
    check(row.against_mean, (test - mean).mean(0), 2)
    check(row.against_alone["right"], test[1] - one[1], 2)
    check(row.gap, (train - test).mean(0))
    check(row.gap_above, (train - test).mean(0) - (learnt_one - one).mean(0))


def test_scenes():
    """Δm flat of metrics by batches, by task of pooled ones; against the mean loss, by task."""
    every, rules = metrics.metrics_of(NYUV2.tasks), ("mean", "mgda", "uw")
    learnt: dict[str, Any] = {f"{t} alone": metrics.metrics_of([t]) for t in NYUV2.tasks}
    learnt |= dict.fromkeys(rules, every)
    runs = {
        n: [{"test": drawn(t), "pooled": drawn(t), "weights": {}, **TIMES} for _ in range(SEEDS)]
        for n, t in learnt.items()
    }

    def off(name: str, part: str, metric: str) -> np.ndarray:
        """How much worse than the network alone."""
        task, higher = every[metric]
        ratio = of(runs[name], part, metric) / of(runs[f"{task} alone"], part, metric)
        return 100 * (1 - ratio if higher else ratio - 1)

    def mean(name: str, part: str, task: str = "") -> np.ndarray:
        return np.mean([off(name, part, m) for m in every if task in ("", every[m].task)], 0)

    found = scenes.rows(Found({}, {"": runs}), NYUV2)
    row = found["mgda"]
    check(row.flat, mean("mgda", "test"), 3)
    check(row.by_task, -np.mean([mean("mgda", "pooled", t) for t in NYUV2.tasks], 0), 3)
    check(row.against_mean, mean("mgda", "test") - mean("mean", "test"), 2)
    for task in NYUV2.tasks:
        check(row.tasks[task], mean("mgda", "test", task) - mean("mean", "test", task), 2 * 3)
    levels = {m: of(runs["mgda"], "test", m).mean() for m in every}
    assert row.published_base == pytest.approx(metrics.flat(levels, PUBLISHED["NYUv2"].base))


def test_auxiliary_tasks():
    """MGDA neglects the main task where weight and accuracy are below; CAGrad less each rival."""
    names = (auxiliary.ALONE, *auxiliary.RULES)

    def row(mgda: float, weight: float) -> dict:
        runs = {
            name: [
                {
                    "test": 0.5 + 0.01 * RNG.uniform() + (mgda if name == "mgda" else 0),
                    "weights": {tasks.MAIN: weight + 1e-3 * i, "x": 1 - weight - 1e-3 * i},
                    "descends": {tasks.MAIN: 0.9 + 0.01 * i, "x": 0.5},
                    **TIMES,
                }
                for i in range(SEEDS)
            ]
            for name in names
        }
        every = auxiliary.rows(Found({}, {"50 labels": runs}))
        test = {n: 100 * np.array([run["test"] for run in each]) for n, each in runs.items()}
        found, rivals = every["50 labels"]["mgda"], len(names) - 1
        check(found.cagrad_above, test["cagrad"] - test["mgda"], rivals)
        check(found.against_mean, test["mgda"] - test["mean"], rivals)
        return every

    assert auxiliary.neglected(row(-0.2, 0.3)) == "holds"
    assert auxiliary.neglected(row(-0.2, 0.6)) == "does not hold"
    assert auxiliary.neglected(row(0.2, 0.3)) == "does not hold"
    assert auxiliary.neglected(row(0.0, 0.3)) == "inconclusive"


def test_physics_says_whose_error_is_lower():
    """Scores are -log10 of the error; a run that failed has the higher error."""

    def runs(level: float) -> list[dict]:
        return [{"score": level + 0.01 * i * (-1) ** i} for i in range(SEEDS)]

    failed = [*runs(5.0)[1:], {"score": -np.inf}]
    row = {physics.OURS: runs(3.0), "a": runs(2.0), "b": runs(4.0), "c": failed, "d": runs(3.0)}
    assert physics.against(row) == {"higher": ["b"], "open": ["d"], "lower": ["a", "c"]}
    check(physics.errors(row["a"]), [-run["score"] for run in row["a"]])


def test_rewards_rise_and_are_compared_with_their_sum():
    ends = {n: RNG.uniform(size=(SEEDS, 2, 3)) for n in ("sum", "MGDA", "align")}
    runs = {
        n: [{"first": a, "last": b, "score": float(b.sum())} for a, b in x] for n, x in ends.items()
    }
    rise = ends["MGDA"][:, 1] - ends["MGDA"][:, 0]
    check(rewards.worst(runs["MGDA"]), rise.min(1))
    less = (ends["MGDA"][:, 1] - ends["sum"][:, 1]).sum(1)
    check(rewards.gains(runs)["MGDA"], less, 2)


def test_mixing_control_and_metrics_are_paired_by_seed():
    """Lower errors are better; of a part of control each metric says which way is."""
    level = {"align": 0.1, "uniform": 0.2, "oracle": 0.05}
    curves = {n: [[0.9, x + 0.001 * RNG.uniform()] for _ in range(SEEDS)] for n, x in level.items()}
    found = {("p", "0-3", n): Mixed(x, []) for n, x in curves.items()}
    assert "better: uniform; worse: oracle." in mixing.words(found)
    error = {n: 100 * np.array(x)[:, 1] for n, x in curves.items()}
    outcomes = mixing.of(found, "p", "0-3")
    check(mixing.compared(outcomes, "oracle")["align"], error["align"] - error["oracle"], 2)

    keys = ("final", "worst", "step_ms")
    runs = {n: [drawn(keys) for _ in range(SEEDS)] for n in ("mean", "mgda", "uw")}
    row = control.rows(Found({}, {"": runs}), [control.Metric("final", "", True)])["mgda"]
    less = [a["final"] - b["final"] for a, b in zip(runs["mgda"], runs["mean"], strict=True)]
    check(row.against_mean["final"], less, 2)
    check(row.worst, [run["worst"] for run in runs["mgda"]])

    cell, losses = Cell("n", "adam", 0.1, 0, "mgda", "G"), RNG.uniform(1, 2, (2, SEEDS))
    ways = {
        cell._replace(way=w): [Outcome(0, 0, 0, 0, x) for x in each]
        for w, each in zip(("G", "safe"), losses, strict=True)
    }
    assert metric.final_losses(ways)["safe"] == [pytest.approx((losses[1] / losses[0] - 1).mean())]


def test_regret_of_a_forecast_is_less_that_of_equal_groups():
    regret, even = RNG.uniform(size=(2, 5, 3))
    score = Score(regret, regret, {2: regret})
    family = grouping.Family([], {grouping.ONE: {"a": score}}, {2: {EVEN: even}})
    less = 100 * (regret - even).mean(1)
    check(grouping.less_even(family, 2)["a"], less, len(grouping.NAMES))
    check(grouping.over_draws(regret), regret.mean(1))
    check(grouping.over_seeds(regret), regret.mean(0))
