"""experiments/standins.py: criteria, the command, and what the ledger makes of them."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from common.intervals import estimate
from experiments import standins
from experiments.scenes.published import PUBLISHED
from paper_repro.claims import LEDGER, ROWS
from paper_repro.report import standins as ledger

VERDICTS = {"holds", "does not hold", "inconclusive"}
RNG = np.random.default_rng(0)


def runs(mean: float, seeds: int = 8) -> list[float]:
    return (mean + 0.1 * RNG.standard_normal(seeds)).tolist()


@pytest.mark.parametrize(
    ("means", "every", "some"),
    [
        ((1.0, 2.0), "holds", "holds"), ((1.0, -1.0), "does not hold", "holds"),
        ((-1.0, -2.0), "does not hold", "does not hold"), ((0.0, 1.0), "inconclusive", "holds"),
        ((0.0, -1.0), "does not hold", "inconclusive"),
    ],
)  # fmt: skip
def test_claims_of_several_gains(means, every, some):
    spread = [-0.1, 0.1, -0.2, 0.2, -0.3, 0.3]
    gains = {f"{i}": estimate([mean + x for x in spread]) for i, mean in enumerate(means)}
    assert standins.every_one(gains).verdict == every
    assert standins.some_one(gains).verdict == some


def test_what_leaves_a_claim_open_is_named():
    gains = {"sure": estimate([-1.1, -1.0, -0.9]), "open": estimate([-9.0, 1.0, 2.0])}
    assert standins.some_one(gains)[::2] == ("inconclusive", "open")


def test_the_gain_that_decides_against_a_claim_is_shown_to_be_below_0():
    gains = {"wide": [-9.0, -6.0, -3.0, -3.0], "sure": [-0.6, -0.5, -0.4, -0.5]}
    found = standins.every_one({name: estimate(each) for name, each in gains.items()})
    tests: Any = {name: ttest_1samp(each, 0) for name, each in gains.items()}
    p = {name: test.pvalue for name, test in tests.items()}
    assert found.verdict == "does not hold"
    assert p[found.decisive] < 0.05 / 2 < p["wide"]


def test_gains_are_paired_and_corrected_for_the_rivals_that_ran():
    found = {"m": {"a": runs(1), "b": runs(0), "c": runs(0)}}
    got = standins.above(found, "m", "a", ("b", "c", "absent", "a"))
    assert list(got) == ["m: a − b", "m: a − c"]
    a, b = np.array(found["m"]["a"]), np.array(found["m"]["b"])
    assert got["m: a − b"] == estimate((a - b).tolist(), 2)


def test_every_claim_that_needs_data_has_a_stand_in_or_a_reason():
    needing = [row for row in ROWS if row.kind == "data/RL"]
    assert len([row for row in needing if not ledger.of(row)]) <= 3
    assert {x.claim for x in standins.STANDINS} == {r.id for r in needing if ledger.of(r)}
    for row in needing:
        assert row.needs
        for found in ledger.of(row):
            assert "python -m experiments." in row.needs or "CA-" in row.needs
            assert len(found["runs"]) == 2 - (found["study"] == "molecules")
            for run in found["runs"].values():
                assert run["verdict"] in VERDICTS
                assert run["gains"]
                assert all(map(math.isfinite, next(iter(run["gains"].values())).values()))
            assert ledger.kept()["studies"][found["study"]]["command"] in ledger.sentence(row)


def test_kept_stand_ins_are_those_that_are_judged_now():
    kept = ledger.kept()
    assert [(x["claim"], x["study"], x["holds"]) for x in kept["stand-ins"]] == [
        (x.claim, x.study, x.holds) for x in standins.STANDINS
    ]
    assert list(kept["studies"]) == list(standins.STUDIES)


def test_published_numbers_are_those_of_the_studies():
    for claim, benchmark in (("CA-30", "NYUv2"), ("CA-31", "CityScapes")):
        found = PUBLISHED[benchmark]
        wanted = f"CAGrad {found.cagrad:.2f}, others {found.others[0]} to {found.others[1]}"
        assert wanted in LEDGER[claim].published


def test_two_folders_of_results_are_judged(tmp_path, monkeypatch):
    """Of one study, from what it writes to the file that the ledger reads."""
    monkeypatch.setattr(standins, "HERE", tmp_path)
    monkeypatch.setattr(standins, "STUDIES", {"mazes": standins.STUDIES["mazes"]})
    mazes = [row for row in standins.STANDINS if row.study == "mazes"]
    monkeypatch.setattr(standins, "STANDINS", mazes)
    gaps = {"mean": 0.9, "mgda": 0.5, "pcgrad": 0.3, "cagrad": 0.1, "nash_mtl": 0, "upgrad": 0}
    call = ["--out", str(tmp_path / "found.json")]
    for second in (100, 3):  # on seeds of its own, and on shared ones
        for folder, first in zip(standins.STUDIES["mazes"].folders, (0, second), strict=True):
            methods = {
                name: {
                    "runs": [{"area": gap + 0.01 * i, "final": gap - 0.01 * i} for i in range(4)]
                }
                for name, gap in gaps.items()
            }
            found = {"plan": {"seeds": list(range(first, first + 4))}, "methods": methods}
            found |= {"settings": {}, "higher is better": {"area": False, "final": False}}
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "results.json").write_text(json.dumps(found))
        if second == 100:
            assert standins.main(call) == 0
    kept = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    runs = [row["runs"] for row in kept["stand-ins"]]
    assert [list(x) for x in runs] == [["0 to 3", "100 to 103"]] * len(mazes)
    assert {run["verdict"] for x in runs for run in x.values()} == {"holds"}
    with pytest.raises(SystemExit, match="share seeds"):
        standins.main(call)
