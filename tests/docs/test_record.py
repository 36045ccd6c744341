"""The verdict of record: what the largest run that decides says of a claim, and what marks it."""

import json
import re

import pytest

from docs import record, verdicts
from paper_repro.__main__ import configuration_of, reproductions
from paper_repro.claims import LEDGER
from paper_repro.report import of_record, standins
from paper_repro.report.findings import Claim, Settings
from paper_repro.report.results import Results
from tests.support import ROOT

HOLDS, PARTLY, FAILS, OPEN = "holds", "holds only when", "does not hold", "inconclusive"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"default": HOLDS}, HOLDS),
        ({"default": HOLDS, "draw 1": HOLDS, "full": HOLDS}, HOLDS),
        ({"default": HOLDS, "another processor": OPEN, "full": PARTLY}, PARTLY),
        # four starts do not outvote the papers' size, nor another processor the default run
        ({"default": FAILS, "draw 1": FAILS, "full": PARTLY}, PARTLY),
        ({"default": HOLDS, "another processor": PARTLY, "full": HOLDS}, HOLDS),
        ({"default": HOLDS, "another processor": FAILS}, HOLDS),
        ({"default": HOLDS, "draw 1": OPEN}, HOLDS),
        # the largest run that decides
        ({"default": OPEN, "full": PARTLY}, PARTLY),
        ({"default": HOLDS, "full": OPEN}, HOLDS),
        ({"default": OPEN, "draw 1": FAILS}, OPEN),
        ({"default": OPEN, "draw 1": FAILS, "full": FAILS}, FAILS),
        ({"draw 1": FAILS}, OPEN),
        ({}, record.NOT_RUN),
    ],
)
def test_the_record_is_the_largest_run_that_decides(said, verdict):
    assert record.of(said) == verdict
    assert bool(record.hangs(said)) == any(x != verdict for x in said.values())


class Below:
    """A decision: x < 1."""

    @staticmethod
    def verdict(measured):
        return HOLDS if measured["x"] < 1 else FAILS


def test_a_number_that_leaves_its_interval_elsewhere_is_marked():
    here = {"x": 2.0, "x, low": 1.5, "x, high": 2.5, "y": 1.0, "y, low": 0.0, "y, high": 2.0}
    there = {"x": 1.4, "x, low": 1.0, "x, high": 1.8, "y": 1.5, "y, low": 1.0, "y, high": 2.0}
    runs = {
        name: record.Run(name, "today", {"GN-02": numbers}, {})
        for name, numbers in (("default", here), ("another processor", there), ("draw 1", there))
    }
    assert record.left("GN-02", runs) == "x: 2 [1.5, 2.5], another processor 1.4"
    assert record.left("GN-03", runs) == ""
    assert record.compared("another processor", runs) == (6, 1, 2, 1)
    assert record.left("GN-02", {"default": runs["default"]}) == ""


def test_single_questions_take_their_place_and_older_forms_go(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(record.full, "KEPT", tmp_path / "full.json")
    monkeypatch.setattr(record.full, "here", lambda: "one")
    names = ("SU-01", "SU-02", "SU-03")
    for name in names:
        monkeypatch.setitem(record.DECISIONS, name, Below)
    with pytest.raises(SystemExit, match="no default run of this machine"):
        record.keep_questions({"SU-01": claim(0.5)})
    record.keep("default", {name: claim(0.5) for name in names})
    record.keep("draw 1", {name: claim(0.7) for name in names})
    answer = record.full.Answer(1.0, "then", "one", {name: {"x": 0.6} for name in names})
    record.full.keep({"mgda.unit_gradients": answer})
    other = claim(0.5)
    other["measured"] = {"x": 0.5, "a new one": 1.0}
    skipped = claim(9.0) | {"configuration": {}}
    record.keep_questions({"SU-01": claim(2.0), "SU-02": other, "SU-03": skipped})
    default, drawn = record.read("default"), record.read("draw 1")
    assert default
    assert drawn
    assert default.numbers == {
        "SU-01": {"x": 2.0},
        "SU-02": {"x": 0.5, "a new one": 1.0},
        "SU-03": {"x": 0.5},
    }
    assert default.where == dict.fromkeys(names, "here")  # the decision is today's
    assert list(drawn.numbers) == ["SU-03"]
    assert list(record.full.read()["mgda.unit_gradients"].numbers) == ["SU-03"]
    record.keep_questions({"SU-03": claim(0.5)})  # the same again: nothing is left out
    assert record.read("draw 1") == drawn


@pytest.mark.parametrize("changes", [{}, {"seeds": 2}, {"full": False}, {"shrink": 0.5}])
def test_full_takes_over_a_run_of_its_settings_alone(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(record.full, "RUN", tmp_path / "runs.json")
    monkeypatch.setattr(record.full, "KEPT", tmp_path / "kept.json")
    other = record.full.Answer(1.0, "2026-01-01", "a machine", {})
    record.full.keep({"cagrad.convergence": other})
    settings = Settings(full=True)._replace(**changes)
    results = Results(tmp_path, configuration_of(settings), reproductions())
    found = Claim("X-03", {"x": 1.0}, "here", "holds")
    results.add("cross_paper.rest_points", found)
    results.finish("cross_paper.rest_points", "", [found], (6.0, {}))
    record.full.take_over()
    kept = record.full.read()
    assert kept.pop("cagrad.convergence") == other
    taken = {name: (each.seconds, each.numbers) for name, each in kept.items()}
    assert taken == ({} if changes else {"cross_paper.rest_points": (6.0, {"X-03": {"x": 1.0}})})


def test_every_kept_row_answers_the_question_as_it_is():
    """A row of another run has the default run's numbers, by name; today's decision reads them."""
    kept = record.runs()
    assert len(kept) >= 3
    for name, run in kept.items():
        assert run.numbers.keys() == run.where.keys() == run.verdicts().keys(), name
        for claim, numbers in run.numbers.items():
            assert numbers.keys() == kept["default"].numbers[claim].keys(), f"{name}, {claim}"


def test_a_row_says_when_it_holds_only_when():
    """Each such row of record has its clause, and no clause is left over."""
    found = record.claims()
    partly = {name for name in found if found[name]["verdict"] == PARTLY}
    assert partly == {name for name in found if found[name]["when"]}
    assert partly >= {row.id for row in LEDGER.values() if row.when}


def test_counts_tell_stand_ins_apart():
    count, found = verdicts.judged_counts(verdicts.standing()), verdicts.standing()
    own = [x for x in found if not LEDGER[x].instead]
    assert count["all"] == len(found)
    for verdict in (HOLDS, PARTLY, FAILS, OPEN):
        assert count[verdict] == sum(found[x]["verdict"] == verdict for x in own)
    assert count["judged"] + count["judged, stand-in"] + count["not judged"] == count["all"]
    (row,) = (x for x in verdicts.verdict_counts(found).splitlines() if x.startswith("| all | "))
    for verdict in (HOLDS, PARTLY, FAILS, OPEN):
        instead = sum(found[x]["verdict"] == verdict and x not in own for x in found)
        assert f" {count[verdict]} + {instead} |" in row, verdict


def test_the_page_has_every_claim():
    page = verdicts.claims_page(verdicts.standing())
    assert {*re.findall(r"^\| (?:\*\*)?([A-Z]+-\d+)", page, re.MULTILINE)} == LEDGER.keys()


def claim(x: float) -> dict:
    where = "here. Said beforehand: fails if x is 1 or more"
    return {"configuration": {"sizes": "reduced"}, "where": where, "measured": {"x": x}}


def test_a_run_of_another_processor_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setitem(record.DECISIONS, "SU-01", Below)
    for machine, x in (("one", 2.0), ("two", 0.99999999), ("two", 0.5)):
        monkeypatch.setattr(record.full, "here", lambda machine=machine: machine)
        record.keep("default", {"SU-01": claim(x)})
        if x == 0.99999999:  # six digits would turn the verdict
            kept = record.read("default")
            assert kept
            assert kept.numbers == {"SU-01": {"x": x}}
    said = record.verdicts()["SU-01"]
    assert said == {"default": HOLDS, "another processor": FAILS} | (
        {"full": said["full"]} if "full" in said else {}
    )
    other = record.read("another processor")
    assert other
    assert other.machine == "one"


def test_pages_and_the_verdicts_of_record_are_of_what_is_kept():
    """Else `python docs/results.py ledger`."""
    assert json.loads(of_record.PATH.read_text()) == record.claims()
    found, studies = verdicts.standing(), (ROOT / "docs" / "benchmarks.md").read_text()
    assert (ROOT / "docs" / "claims.md").read_text() == verdicts.claims_page(found)
    assert verdicts.claims_block(found) in studies
    assert standins.agreement() in studies


def test_a_run_on_a_device_is_kept_with_its_name(tmp_path, monkeypatch):
    def there(x: float, device: str) -> dict:
        found = claim(x)
        found["configuration"] |= {"device": device, "torch": "9.0"}
        return found

    skipped = {"configuration": {}, "where": "", "measured": {}}
    runs = {
        verdicts.REPRODUCTIONS: {"GN-21": there(0.5, "cpu"), "GN-22": there(0.5, "cpu")},
        tmp_path: {"GN-21": there(2.0, "cuda, Some X"), "GN-22": skipped},
    }
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(verdicts, "judged", lambda folder=verdicts.REPRODUCTIONS: runs[folder])
    monkeypatch.setitem(record.DECISIONS, "GN-21", Below)
    verdicts.keep_device(tmp_path)
    kept = record.read("device")
    assert kept
    assert kept.machine == "cuda, Some X, torch 9.0"
    assert kept.verdicts() == {"GN-21": FAILS}
    assert record.verdicts()["GN-21"]["device"] == FAILS
    assert "device says does not hold" in record.hangs({"default": HOLDS, "device": FAILS})
    runs[tmp_path]["GN-21"]["measured"]["steps"] = 10.0
    with pytest.raises(SystemExit, match="GN-21 took other numbers of steps"):
        verdicts.keep_device(tmp_path)
    runs[tmp_path]["GN-21"] = there(2.0, "cpu")
    with pytest.raises(SystemExit, match="expected a run on one device"):
        verdicts.keep_device(tmp_path)
