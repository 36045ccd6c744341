"""experiments/standins.py: criteria, agreement of two runs, and what the ledger makes of them."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind_from_stats

from common.intervals import estimate
from docs import results
from experiments import standins
from experiments.scenes.published import PUBLISHED
from paper_repro.claims import LEDGER, PAPERS, ROWS
from paper_repro.report import standins as ledger

VERDICTS = {"holds", "does not hold", "inconclusive"}
RNG = np.random.default_rng(0)


def runs(mean: float, seeds: int = 8) -> list[float]:
    return (mean + 0.1 * RNG.standard_normal(seeds)).tolist()


@pytest.mark.parametrize(
    ("means", "every", "some"),
    [
        ((1.0, 2.0), "holds", "holds"),
        ((1.0, -1.0), "does not hold", "holds"),
        ((-1.0, -2.0), "does not hold", "does not hold"),
        ((0.0, 1.0), "inconclusive", "holds"),
        ((0.0, -1.0), "does not hold", "inconclusive"),
    ],
)
def test_claims_of_several_gains(means, every, some):
    spread = [-0.1, 0.1, -0.2, 0.2, -0.3, 0.3]
    gains = {f"{i}": estimate([mean + x for x in spread]) for i, mean in enumerate(means)}
    assert standins.every_one(gains).verdict == every
    assert standins.some_one(gains).verdict == some


def test_gains_are_paired_and_corrected_for_the_rivals_that_ran():
    found = {"m": {"a": runs(1), "b": runs(0), "c": runs(0)}}
    got = standins.above(found, "m", "a", ("b", "c", "absent", "a"))
    assert list(got) == ["m: a − b", "m: a − c"]
    a, b = np.array(found["m"]["a"]), np.array(found["m"]["b"])
    assert got["m: a − b"] == estimate((a - b).tolist(), 2)


def summary(**values: list[float]) -> dict[str, Any]:
    return {"methods": {k: {"summary": {"gap": estimate(v)._asdict()}} for k, v in values.items()}}


def test_two_runs_agree_as_welch_says():
    one = {"near": runs(1, 6), "far": runs(1, 6), "other side": runs(0.5, 6)}
    two = {"near": runs(1, 9), "far": runs(1.15, 9), "other side": runs(-0.5, 9)}
    found = standins.agreement(summary(**one), summary(**two))

    def p(name: str) -> float:
        (a, b), (c, d) = ((np.mean(x[name]), np.std(x[name], ddof=1)) for x in (one, two))
        return ttest_ind_from_stats(a, b, 6, c, d, 9, equal_var=False).pvalue

    assert found["compared"] == 3
    assert found["apart"] == [f"{name}, gap" for name in one if p(name) < 0.05]
    assert found["apart, corrected"] == [f"{name}, gap" for name in one if p(name) < 0.05 / 3]
    assert found["opposite"] == ["other side, gap"]


def test_every_claim_that_needs_data_has_a_stand_in_or_a_reason():
    needing = [row for row in ROWS if row.kind == "data/RL"]
    bare = [row for row in needing if not ledger.of(row)]
    assert len(bare) <= 3
    assert {x.claim for x in standins.STANDINS} == {r.id for r in needing if ledger.of(r)}
    for row in needing:
        assert row.needs
        for found in ledger.of(row):
            assert "python -m experiments." in row.needs or "CA-" in row.needs
            assert len(found["runs"]) == 2
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


def test_pages_have_what_is_kept():
    claims = (results.ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for paper in PAPERS:
        assert ledger.table(row for row in ROWS if row.paper == paper) in claims, (
            "run python docs/results.py ledger"
        )
    studies = (results.ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert ledger.agreement() in studies
