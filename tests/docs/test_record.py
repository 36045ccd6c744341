"""The verdict of record: the weakest of what several runs say of a claim."""

import json

import pytest

from docs import record, verdicts
from paper_repro.report import of_record

HOLDS, PARTLY, FAILS, OPEN = "holds", "holds only when", "does not hold", "inconclusive"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"default": HOLDS}, HOLDS),
        ({"default": HOLDS, "draw 1": HOLDS, "full": HOLDS}, HOLDS),
        ({"default": HOLDS, "another processor": OPEN, "full": PARTLY}, PARTLY),
        ({"default": HOLDS, "another processor": PARTLY, "full": HOLDS}, PARTLY),
        ({"default": OPEN, "full": PARTLY}, PARTLY),
        ({"default": OPEN, "draw 1": FAILS, "full": FAILS}, FAILS),
        ({"default": FAILS, "full": OPEN}, OPEN),
        ({"default": HOLDS, "draw 1": OPEN}, OPEN),
        ({"default": FAILS, "draw 1": FAILS, "full": PARTLY}, FAILS),
        ({"default": FAILS, "draw 1": OPEN, "full": PARTLY}, FAILS),
        ({"default": HOLDS, "full": OPEN}, OPEN),
        ({"default": PARTLY, "draw 1": FAILS}, FAILS),
        ({}, record.NOT_RUN),
    ],
)
def test_the_record_is_the_weakest(said, verdict):
    assert record.of(said) == verdict
    assert bool(record.hangs(said)) == (len(set(said.values())) > 1)


def claim(x: float, machine: str = "") -> dict:
    return {"configuration": {"sizes": "reduced"}, "where": machine, "measured": {"x": x}}


def test_a_run_of_another_processor_stays(tmp_path, monkeypatch):
    class Below:
        @staticmethod
        def verdict(measured):
            return HOLDS if measured["x"] < 1 else FAILS

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


def test_a_run_of_other_arithmetic_is_kept_unless_it_is_not(tmp_path, monkeypatch):
    class Below:
        @staticmethod
        def verdict(measured):
            return HOLDS if measured["x"] < 1 else FAILS

    runs = {
        verdicts.REPRODUCTIONS: {"GN-21": claim(0.5)},
        tmp_path: {"GN-21": claim(0.5)},
    }
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(verdicts, "check_code", lambda folder, settings: None)
    monkeypatch.setattr(verdicts, "judged", lambda folder=verdicts.REPRODUCTIONS: runs[folder])
    monkeypatch.setitem(record.DECISIONS, "GN-21", Below)
    with pytest.raises(SystemExit, match="GN-21 has the default run's numbers"):
        verdicts.keep_arithmetic(tmp_path)
    runs[tmp_path]["GN-21"]["measured"] = {"x": 0.501, "steps": 10.0}
    with pytest.raises(SystemExit, match="GN-21 took other numbers of steps"):
        verdicts.keep_arithmetic(tmp_path)
    runs[tmp_path]["GN-21"]["measured"] = {"x": 0.501}
    verdicts.keep_arithmetic(tmp_path)
    kept = record.read("other arithmetic")
    assert kept
    assert kept.numbers == {"GN-21": {"x": 0.501}}
    assert kept.machine.endswith("MKL_CBWR=COMPATIBLE")


def test_runs_are_compared_with_the_verdicts_of_record():
    """record.json is what docs/claims.md was made of: else `python docs/results.py ledger`."""
    assert json.loads(of_record.PATH.read_text()) == record.claims()


def test_a_run_on_a_device_is_kept_with_its_name(tmp_path, monkeypatch):
    class Below:
        @staticmethod
        def verdict(measured):
            return HOLDS if measured["x"] < 1 else FAILS

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
    assert "device: does not hold" in record.hangs({"default": HOLDS, "device": FAILS})
    runs[tmp_path]["GN-21"]["measured"]["steps"] = 10.0
    with pytest.raises(SystemExit, match="GN-21 took other numbers of steps"):
        verdicts.keep_device(tmp_path)
    runs[tmp_path]["GN-21"] = there(2.0, "cpu")
    with pytest.raises(SystemExit, match="expected a run on one device"):
        verdicts.keep_device(tmp_path)
