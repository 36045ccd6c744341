"""The second study of images: what it tries, what it can see, what it says of made-up runs."""

import math
import re
import signal
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import nct, t, ttest_1samp

import mtlfunc as mf
from common import pooled, tuned
from common.cells import Cell
from docs import power as page
from experiments.multimnist import power
from experiments.multimnist.train import Settings, rate_at

RAISES = {power.NASH: 1.0, power.MGDA: -1.0, power.LENGTHS: 1.0}
PEAKS = {power.NASH: -1, "uw": 6, power.MGDA: 12}


def test_a_made_up_study(tmp_path, monkeypatch, capsys, interruptible):
    """It tries rates up to the best one, and finds the effects that there are and no others."""
    draw, record = np.random.default_rng(3), tuned.Record(tmp_path / "power.json", power.DESIGN)
    record.made.append("here")
    of_seed = {seed: draw.normal() for seed in power.SEEDS}
    for _, jobs in tuned.to_do(record):
        for job in jobs:
            n = round(math.log2(job.rate / power.rate(0)))
            failed = (job.method, n) == ("pcgrad", 4)
            score = None if failed else 0.9 - 0.01 * abs(n - PEAKS.get(job.method, 3))
            level = 80 + RAISES.get(job.method, 0) + of_seed.get(job.seed, 0) + draw.normal(0, 0.5)
            record.runs[str(job)] = [0, score, level / 100, level / 100]
    assert [record.chosen("mnist", x) for x in PEAKS] == [*map(power.rate, (-1, 6, 9))]
    assert [record.edge("mnist", x) for x in PEAKS] == [False, False, True]
    assert [*record.tried("mnist", "uw")] == [2, 3, 4, 5, 6, 7]
    assert sum("seed 101" in run for run in record.runs) == 3 * len(power.STAGES[-1][0])
    assert not any("seed 201" in run and power.LENGTHS in run for run in record.runs)
    text, figure = power.shown(record)
    assert len(figure.axes) == 4
    rows = [line for line in reversed(text.split("\n")) if "|" in line]
    said = {row.split("|")[1].strip(): row for row in rows}
    for name in power.RIVALS:
        verdict = {1.0: "above", 0.0: "not shown", -1.0: "below"}[RAISES.get(name, 0.0)]
        assert f"| **{verdict}**" in said[name]
    rows = [row for row in rows if "keeps" in row or "loses" in row or "open" in row]
    found = {row.split("|")[1].strip(): row.split("**")[1] for row in rows}
    assert found == dict(zip(power.ARMS, ("loses", "loses", "keeps", "loses"), strict=True))
    cell = Cell("mnist", "mean", "", record.chosen("mnist", "mean"), 101)
    record.add(cell, record.runs[str(cell)][1:], "here")
    monkeypatch.setattr(power, "RECORD", record.path)
    monkeypatch.setattr(page, "CPU", tmp_path / "none.json")
    told = " ".join(page.sentence().split())
    said = "2 of 6 methods are shown to differ from the mean loss in accuracy (points, 20 seeds): "
    assert f"{said}Nash-MTL by +" in told
    assert "MGDA by -" in told
    assert told.partition("Nash-MTL's weights by their sum costs ")[2][:1].isdigit()
    seeds, levels, single, deltas, _ = power.found(record)
    assert seeds == [*power.SEEDS]
    at = Cell("mixed", "uw", "", record.chosen("mixed", "uw"), 104)
    joint = record.runs[str(at)]
    own = {task: single[name][2].mean() / 100 for task, name in power.ALONE.items()}
    both = {"left": joint[2], "right": joint[3]}
    there = mf.diagnostics.delta_m(both, own, dict.fromkeys(own, True))
    record.runs[str(at)] = [0, 0.9, *own.values()]  # which is as good as they are
    assert power.found(record).deltas["uw"][3] - deltas["uw"][3] == pytest.approx(-there / 3)
    assert levels["uw"][2, 3] == pytest.approx(50 * (joint[2] + joint[3]))
    rate = record.chosen("mnist", power.NASH)
    record.runs[str(Cell("mnist", power.NASH, "", rate, 101))] = [0, *[None] * 3]
    assert power.found(record).levels[power.NASH][0, 0] == 10  # it broke down
    at = Cell("mnist", "left alone", "", record.chosen("mnist", "left alone"), 101)
    record.runs[str(at)] = [0, 0.1, 0.1, None]  # so did a network alone
    rows = power.shown(record)[0]
    assert rows.count("**no gain shown**") == len(power.ARMS)
    assert re.search(r"\| left alone +\|.* \| 1 +\| – +\|", rows)
    every = [x for each in power.found(record).alone.values() for x in each]
    off = [t.isf(0.025, 19) * np.std(x, ddof=1) / 20**0.5 / np.mean(x) for x in every]
    assert f"error ({100 * np.linalg.norm(off) / 6:.1f} at" in " ".join(rows.split())
    failed = record.runs.pop(str(at))
    assert len(power.found(record).deltas["uw"]) == 20  # while a network alone waits
    record.runs[str(at)] = failed
    assert power.found(record).deltas["mean"][0] == pytest.approx(deltas["mean"][0], abs=2)
    job = Cell("mnist", "left alone", "", 0.1, 101)
    record.add(job, power.kept(job, {"score": math.nan, "test": {"left": 0.5}}), "here")
    assert tuned.Record(record.path, power.DESIGN).runs == record.runs
    assert record.runs[str(job)] == [0, None, 0.5, None]
    others, more = tuned.Record(record.path, power.DESIGN), job._replace(seed=999)
    others.add(more, [0.1], "there")
    record.add(job._replace(seed=998), [0.2], "here")  # of a command that began before
    assert tuned.Record(record.path, power.DESIGN).runs[str(more)] == [1, 0.1]
    monkeypatch.setattr(power, "performer", lambda *of: None)  # nothing is left to perform
    call = [f"--record={record.path}", "run", f"--data={tmp_path}", f"--out={tmp_path}"]
    assert power.main(call) == 0
    assert f"{len(record.runs)} runs of power.json are of other code" in capsys.readouterr().out
    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(power, "performer", lambda *of, n=number: signal.raise_signal(n))
        assert power.main(call) == 128 + number


def test_analyses():
    """Next to the noncentral t, to Holm by hand, and to a t test of the means of the seeds."""
    for seeds, level in ((20, 0.05), (20, 0.05 / 6), (8, 0.05 / 6)):
        apart = pooled.seen(2.0, seeds, level) / 2.0 * seeds**0.5
        assert nct.sf(t.isf(level / 2, seeds - 1), seeds - 1, apart) == pytest.approx(0.9, rel=1e-3)
    draw = np.random.default_rng(1)
    values = draw.normal(0.3, 0.5, (3, 20)) + draw.normal(0, 1, 20)
    found = pooled.pooled(values)
    there: Any = ttest_1samp(values.mean(0), 0)
    assert found.p == pytest.approx(there.pvalue, rel=1e-3)
    ends = there.confidence_interval()
    assert found.mixed[2:4] == pytest.approx((ends.low, ends.high), rel=1e-3)
    assert found.drawn[2:4] == pytest.approx((ends.low, ends.high), abs=0.15)
    for seeds in range(2, 21):  # of a balanced design the error is known
        values = draw.normal(0, [[0.2], [1.0], [2.0]], (3, seeds))
        square = max(3 * values.mean(0).var(ddof=1), values.var(1, ddof=1).mean())
        error = math.sqrt(square / values.size)
        assert pooled.mixed_model(values)[0].error == pytest.approx(error, rel=1e-3)
    p = [0.01, 0.04, 0.03, 0.2, 0.9, 0.012]
    assert pooled.holm(p) == pytest.approx([0.06, 0.12, 0.12, 0.4, 0.9, 0.06])  # 6, 4, 4, 2, 1, 5


def test_a_cosine_of_the_same_mean():
    settings, sums = Settings(None, 10, 256, True, "cpu"), torch.linspace(9, 2, 100)
    usual = torch.tensor([rate_at(settings, n / 100) for n in range(100)])
    rates = usual * power.factors_of(settings, sums, True)
    assert rates.mean() == pytest.approx(float((usual * sums).mean()), rel=1e-5)
    assert rates[[25, 50, 75]] / rates[0] == pytest.approx([0.853553, 0.5, 0.146447], rel=1e-4)
