"""paper_repro/report/images.py: how claims about real images are decided, and what keeps them."""

import json
import math
from collections.abc import Mapping

import pytest

from common.cells import plain
from experiments.multimnist import __main__ as command
from experiments.multimnist import power, train
from paper_repro.claims import LEDGER
from paper_repro.report import images, standins

SPREAD = (-0.002, -0.001, 0.0, 0.001, 0.002)
EVERY = (*train.METHODS, *power.RIVALS, *train.ALONE.values())
SETTINGS = (*images.ARCHITECTURES, images.TENTH)


def results(levels: Mapping[str, float], settings=SETTINGS, **given) -> dict:
    """What a study leaves, each method at a level, .9 by default, on five seeds."""
    found = {"data": ["folder", "0"], "set": "mnist", "most": None, "images": "published files"}

    def runs(name):
        tasks = [task for task in train.TASKS if train.ALONE.get(task) == name] or train.TASKS
        return [{"test": {task: levels.get(name, 0.9) + x for task in tasks}} for x in SPREAD]

    problems = {setting: {name: {"runs": runs(name)} for name in EVERY} for setting in settings}
    plan = {"seeds": [1, 2, 3, 4, 5], "tuning": [0], "rates": [0.03, 0.1, 0.3]}
    return {"settings": found | given, "plan": plan, "problems": problems}


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "RECORDS", tmp_path)
    images.kept.cache_clear()
    yield tmp_path / "images.json"
    images.kept.cache_clear()


def second(record, **given):
    """The same accuracies as the second study's."""
    found = {which: each | given for which, each in json.loads(record.read_text()).items()}
    record.with_name("images-power.json").write_text(json.dumps(found))
    images.kept.cache_clear()


def decided(record, levels: Mapping[str, float]) -> dict[str, str]:
    record.unlink(missing_ok=True)
    images.kept.cache_clear()
    images.keep(results(levels))
    second(record)
    return {claim: images.verdict(claim) for claim in images.CRITERIA}


NEAR, UP, DOWN = "inconclusive", 0.95, 0.85


def test_verdicts_follow_the_numbers(record):
    alone = dict.fromkeys(train.ALONE.values(), 0.95)
    assert set(decided(record, {}).values()) == {NEAR}
    # every rule below two networks
    found = decided(record, alone)
    assert [found[x] for x in ("PC-01", "CA-01", "GN-01", "SU-37", "GN-26")] == [
        *("holds", "holds", "does not hold", "does not hold", "does not hold")
    ]
    # the bound as good as two networks and above the mean; above all; below the mean
    assert decided(record, {"mean": DOWN})["SU-37"] == "holds"
    assert decided(record, {"mgda-ub": UP})["SU-37"] == "holds"
    assert decided(record, {"mgda-ub": DOWN})["SU-37"] == "does not hold"
    assert decided(record, {"mean": UP})["CA-01"] == "does not hold"
    assert decided(record, {"mean": UP})["PC-01"] == "does not hold"
    for claim, rule in (("PC-07", "pcgrad"), ("PC-08", "pcgrad"), ("CA-38", "cagrad")):
        assert decided(record, {rule: UP})[claim] == "holds"
        assert decided(record, {rule: DOWN})[claim] == "does not hold"
    assert decided(record, {"gradnorm": UP})["GN-26"] == "holds"
    assert decided(record, {"gradnorm": UP, "random": 0.97})["GN-26"] == "does not hold"
    assert decided(record, {power.NASH: UP})["GN-01"] == "holds"


def test_what_is_missing_is_not_run(record):
    assert {images.verdict(claim) for claim in images.CRITERIA} == {images.NOT_RUN}
    images.keep(results({"mean": 0.8}, settings=[images.BASE]))
    base = {"PC-01", "CA-01", "CA-38", "GN-01"}
    assert {x for x in images.CRITERIA if images.verdict(x) != images.NOT_RUN} == {"SU-37"}
    second(record)
    assert {x for x in images.CRITERIA if images.verdict(x) != images.NOT_RUN} == {"SU-37", *base}
    # settings that ran later are put next to those
    images.keep(results({"mean": 0.8}, settings=SETTINGS[1:]))
    assert images.NOT_RUN not in {images.verdict(claim) for claim in images.CRITERIA}
    # another set stands next to it and decides nothing
    images.keep(results({"mean": 0.99}, set="fashion"))
    second(record, planned=20)
    assert images.verdict("PC-01") == "holds"
    ran = "seeds 1 to 5, 5 of 20, provisional"
    assert f"holds on MultiMNIST, {ran}; does not hold on MultiFashion" in images.said("PC-01")


@pytest.mark.parametrize(
    "given",
    [{"images": "MNIST, not the published files"}, {"data": None}, {"most": 3_000}, {"epochs": 3}],
)
def test_other_runs_are_not_kept(record, given):
    images.keep(results({}, epochs=10))
    held = record.read_text()
    with pytest.raises(SystemExit):
        images.keep(results({}, **({"epochs": 10} | given)))
    for change in ({"rates": [0.1]}, {"tuning": [1]}, {"seeds": [1, 2]}):
        other = results({}, epochs=10)
        with pytest.raises(SystemExit, match="rates chosen"):
            images.keep(other | {"plan": other["plan"] | change})
    assert record.read_text() == held


def test_a_run_that_failed_is_kept_and_shows_nothing(record):
    images.keep(plain(results({"mgda-ub": math.nan, "uw": math.nan})))
    second(record)
    assert "NaN" not in record.read_text()
    assert {images.verdict(x) for x in ("SU-37", "GN-01", "GN-26")} == {NEAR}
    assert math.isnan(images.kept()["mnist"]["accuracies"][images.BASE]["uw"]["left"][0])


def test_a_setting_keeps_its_methods(record):
    images.keep(results({}))
    held, fewer = record.read_text(), results({}, settings=[images.BASE])
    del fewer["problems"][images.BASE]["famo"]
    with pytest.raises(SystemExit, match=r"has famo \(hard sharing\), which these results lack"):
        images.keep(fewer)
    assert record.read_text() == held


def test_criteria_ask_for_what_the_study_runs(tmp_path):
    settings = command.settings_of("default", None, "cpu")._replace(data=("folder", "0"))
    every = (*train.SETTINGS, images.TENTH)
    plan = command.plan_of("default", settings, None, tuple(range(6)), every)
    assert set(images.SETS) == set(command.mnist.MIXTURES)
    assert set(images.RULES) == {"mean", *power.RIVALS}
    for row in images.CRITERIA.values():
        for setting, methods in row.needed.items() if row.study == images.FIRST else ():
            assert setting in plan.problems
            assert not {(setting, name) for name in methods} & set(plan.left_out)
            assert set(methods) <= set(plan.methods)


def test_the_ledger_has_the_criteria(record):
    for claim, row in images.CRITERIA.items():
        assert LEDGER[claim].kind == "data/RL"
        assert images.COMMANDS["images"] in LEDGER[claim].needs or claim in ("PC-08", "CA-38")
        said = f"real images: not run (`{images.COMMANDS[row.study]}`)", row.holds, "–"
        assert next(standins._shown(LEDGER[claim])) == said
        assert standins.verdict(LEDGER[claim]) == "stand-in"
    images.keep(results({"mean": 0.8}, settings=[images.BASE]))
    assert standins.verdict(LEDGER["SU-37"]) == "holds"
    assert standins.verdict(LEDGER["PC-07"]) == "stand-in"
    assert standins.sentence(LEDGER["SU-37"]).startswith("Real images: holds on MultiMNIST")
