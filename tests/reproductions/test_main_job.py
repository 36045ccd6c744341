"""`python -m paper_repro`: what a run finds, writes, keeps and refuses, and what ends it."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtlfunc as mf
from common.remaining import Remaining
from common.sources import Edited, imported
from paper_repro.__main__ import complete, main, reproduce, reproductions, selected
from paper_repro.claims import LEDGER, PAPERS, ROWS
from paper_repro.report import standins
from paper_repro.report.cache import key
from paper_repro.report.draws import redrawn
from paper_repro.report.findings import QUICK, Settings
from paper_repro.report.remaining import QUICKLY, expected, in_order
from paper_repro.report.results import NOT_RUN, Refused, Results, reserved
from paper_repro.report.said import filled
from tests.support import ROOT
from tests.support.reproductions import IDS, TINY, Made, claims_in, found_in, left_in, made, until

__all__ = ["made"]
MODULES = sorted({row.module for row in ROWS if row.module})
SHORT = ("cagrad.definitions", "gradnorm.algorithm", "mgda.counterexample", "pcgrad.orders")
STOP = "if not (HERE / 'on').exists(): raise KeyboardInterrupt"


def test_ledger_has_every_claim_once() -> None:
    assert [row.id for row in ROWS] == list(LEDGER) == IDS
    assert {row.module for row in ROWS if row.module} == reproductions().keys()
    kept = json.loads((ROOT / "docs/record/default.json").read_text())["numbers"]
    for row in ROWS:
        assert "|" not in row.statement  # it stands in a table
        assert bool(row.module) == (row.kind in ("exact", "synthetic"))
        assert row.kind != "data/RL" or row.needs
        assert "{" not in filled(row.finding, kept.get(row.id, {}))


def test_a_quick_run_finds_what_is_on_record_and_keeps_it(tmp_path, capsys):
    words = [word for name in SHORT for word in ("--only", name)]
    command = ["--quick", *words, "--out", str(tmp_path)]
    assert main(command) == 0
    record = json.loads(QUICKLY.read_text())["verdicts"]
    claims = claims_in(tmp_path)
    assert [c["id"] for c in claims] == IDS
    found = {c["id"]: c["verdict"] for c in claims if c["configuration"]}
    assert found == {row.id: record[row.id]["verdict"] for row in ROWS if row.module in SHORT}
    for c in claims:
        row = LEDGER[c["id"]]
        assert (c["kind"], c["paper"], c["claim"]) == (row.kind, PAPERS[row.paper], row.statement)
        if not c["configuration"]:
            needs = row.kind in ("data/RL", "not here")
            assert c["verdict"] == (standins.verdict(row) if needs else NOT_RUN)
    page = (tmp_path / "report.html").read_text()
    assert sorted(re.findall(r'<article id="([^"]+)"', page)) == sorted(IDS)
    for link in re.findall(r'(?:href|src)="([^"]*)"', page):
        there = f'id="{link[1:]}"' in page if link[0] == "#" else (tmp_path / link).is_file()
        assert there, link
    assert str(ROOT) not in page
    assert "[mgda.counterexample] SU-34 holds" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(command) == 0
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert capsys.readouterr().out.count("results kept") == len(SHORT)


def test_only_takes_names_beginnings_and_ids() -> None:
    pcgrad = [name for name in MODULES if name.startswith("pcgrad.")]
    assert selected(["PCGrad", "GradNorm.Reach"], MODULES) == [*pcgrad, "gradnorm.reach"]
    costs = ["mgda.cost_of_gradients", "mgda.cost_of_weights"]
    found = selected(["GN-21", "su-34", "mgda.c", "gradnorm.reach"], MODULES)
    assert found == ["gradnorm.reach", "mgda.counterexample", *costs]
    for word in ("", "nothing", "PC-01"):
        with pytest.raises(ValueError, match="--only"):
            selected([word], MODULES)


def test_another_draw_is_of_other_numbers(tmp_path: Path) -> None:
    name, drawn = "pcgrad.dominance", TINY._replace(draw=1)
    modules = {name: reproductions()[name]}
    for settings in (TINY, drawn):
        assert reproduce(modules, [name], settings, tmp_path / str(settings.draw)) == 0
    first, other = (found_in(tmp_path / draw) for draw in "01")
    assert all(a["measured"] != b["measured"] for a, b in zip(first, other, strict=True))
    assert all(claim["configuration"]["draw"] == "1" for claim in other)
    step = mf.balance(lambda params, batch: params["x"] ** 2, mf.rlw(), mf.losses_only())

    def numbers() -> tuple[list[float], list[float]]:
        root, params = mf.random.key(3), {"x": torch.ones(3)}
        drawn = (mf.random.uniform(root, (2,)), mf.random.normal(root, (2,)))
        weights = step.update(params, (), step.init(params, (), key=root))[2].weights
        order = mf.random.permutation(root, 9)
        return [*torch.cat(drawn).tolist(), *order.tolist()], weights.tolist()

    found = [numbers()]
    for draw in (1, 2):
        with redrawn(draw):
            found.append(numbers())
    assert len({tuple(ours) for ours, _ in found}) == 3
    assert [weights for _, weights in found] == [found[0][1]] * 3
    assert numbers() == found[0]


def test_key_follows_imports_and_libraries(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {str(x.relative_to(ROOT)) for x in imported([ROOT / "paper_repro/pcgrad/ablation.py"])}
    own = {f"paper_repro/pcgrad/{name}.py" for name in ("ablation", "common", "landscape")}
    assert own | {"paper_repro/report/figures.py", "common/intervals.py"} <= found
    assert not found & {"paper_repro/claims.py", "paper_repro/pcgrad/theorem1.py"}
    module = made.question("question_key", "PC-01")
    first = key(module, TINY)
    assert key(module, TINY._replace(seeds=3)) != first
    monkeypatch.setattr("paper_repro.report.cache.versions", lambda: "torch 1.0")
    assert key(module, TINY) != first


def test_workers_find_what_one_process_finds(made, tmp_path, capsys):
    """And say so in whole lines; what a worker dies of is named, and the others come to an end."""
    bar = "for _ in tqdm(range(3), desc='steps', leave=False): tqdm.write('in between')"
    modules = {
        "a": made.question("question_a", "PC-01", bar, "yield figure('one')", "print('a word')"),
        "b": made.question("question_b", "GN-01", "yield claim('GN-02', torch.get_num_threads())"),
        "c": made.question("question_c", "SU-01", "print('careful', file=sys.stderr)"),
    }
    assert reproduce(modules, list(modules), TINY, tmp_path / "one") == 0
    assert made.calls() == ["5"] * 3  # each has a source of its own
    capsys.readouterr()
    assert reproduce(modules, list(modules), TINY, tmp_path / "two", workers=2) == 0
    one, two = left_in(tmp_path / "one"), left_in(tmp_path / "two")
    assert one == two
    assert two["figures"].keys() == {"a-one.png"}
    assert [c["measured"]["value"] for c in two["claims"] if c["id"] == "GN-02"] == [1.0]
    shown = capsys.readouterr()
    assert "\r" not in shown.out + shown.err
    said = {"[a] PC-01 holds", "[a] figure one", "[a] a word", "[b] GN-02 holds", "[c] careful"}
    assert said | {"[a] in between"} <= set(shown.out.splitlines())
    assert "%" not in shown.out  # a bar is no line
    assert not (tmp_path / "two" / ".parts").exists()

    dying = made.question("question_dying", "PC-02", "os.kill(os.getpid(), signal.SIGKILL)")
    raising = made.question("question_raising", "PC-03", "raise ZeroDivisionError('for a reason')")
    modules |= {"dying": dying, "raising": raising}
    order = ["dying", "raising", "a", "b"]
    assert reproduce(modules, order, TINY, tmp_path / "two", workers=2, fresh=True) == 1
    shown = capsys.readouterr()
    assert "dying failed: its process ended by signal 9" in shown.err
    assert "raising failed: ZeroDivisionError: for a reason" in shown.err
    left = left_in(tmp_path / "two")
    assert set(left["runs"]) == {"a", "b", "c"}
    assert {"PC-02", "PC-03"} < {c["id"] for c in left["claims"]}


@pytest.mark.parametrize(("number", "status"), [("KILL", -9), ("TERM", 143), ("INT", 130)])
def test_a_run_that_is_ended_takes_its_workers_along_and_resumes(number, status, made, tmp_path):
    """By a kill, or by signals to workers, too, as Ctrl-C: then with the page and a single line."""
    wait = "if not (HERE / 'on').exists(): (HERE / str(os.getpid())).touch(); time.sleep(1000)"
    modules = {
        "x": made.question("question_x", "PC-01", "yield figure('one')"),
        "y": made.question("question_y", "GN-01", wait, "yield claim('GN-02', 3)"),
        "z": made.question("question_z", "SU-01", wait, "yield figure('two')"),
    }
    out = tmp_path / "out"
    page = out / "report.html"
    with made.started(out, stderr=subprocess.PIPE, start_new_session=True) as process:
        until(lambda: len(made.workers()) == 2)
        if number == "KILL":
            process.kill()
        while not page.exists() and process.poll() is None:
            os.killpg(process.pid, signal.Signals[f"SIG{number}"])
            time.sleep(0.05)
        assert process.stderr
        said = process.stderr.read()
    for worker in made.workers():
        until(lambda worker=worker: not Path(f"/proc/{worker}").exists())
    assert process.returncode == status, said
    if number != "KILL":
        (line,) = (line for line in said.splitlines() if line and "; at work: " not in line)
        assert re.match("interrupted in [yz].*the same command goes on from there", line)
        assert page.exists()
    assert len(made.calls()) == 3
    (made.folder / "on").touch()
    assert reproduce(modules, list(modules), TINY, out) == 0
    assert len(made.calls()) == 3
    assert reproduce(modules, list(modules), TINY, tmp_path / "whole") == 0
    assert left_in(out) == left_in(tmp_path / "whole")


def test_ctrl_c_before_anything_runs_is_no_traceback(made: Made, tmp_path: Path) -> None:
    (made.folder / "matplotlib.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"
    )
    command = f"env --default-signal=INT {sys.executable} -m paper_repro --out {tmp_path}"
    paths = os.environ | {"PYTHONPATH": str(made.folder)}
    ended = subprocess.run(
        command.split(), cwd=ROOT, env=paths, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (130, 1)  # what it says at first
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("place", "workers"), [("", 1), ("report.results", 2), ("__main__", 2)])
def test_a_full_disk_is_a_sentence(workers, place, made, tmp_path, monkeypatch, capsys):
    """And no traceback, wherever it is noticed, as in a question; what is whole stays."""
    full = "" if place else "raise OSError(28, 'No space left on device', 'a file')"
    modules = {
        "first": made.question(f"question_first_{place[-4:]}", "PC-01"),
        "second": made.question(f"question_second_{place[-4:]}", "GN-01", full),
    }
    assert reproduce(modules, ["first"], TINY, tmp_path) == 0
    there = found_in(tmp_path)

    def write(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    if place:
        monkeypatch.setattr(f"paper_repro.{place}.write_whole", write)
    capsys.readouterr()
    assert reproduce(modules, list(modules), TINY, tmp_path, workers=workers, fresh=True) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    said = rf"stopped: .*No space left on device.* stays in {tmp_path}, and the same command"
    assert re.search(said, shown.err)
    assert {c["id"] for c in there} <= {c["id"] for c in found_in(tmp_path)}


def test_a_reader_that_is_gone_ends_nothing(made, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        modules = {"deaf": made.question("question_deaf", "PC-01", "print('a word')")}
        assert reproduce(modules, ["deaf"], TINY, tmp_path) == 0
    assert (tmp_path / "report.html").exists()


def test_what_has_not_changed_is_not_run_again(made: Made, tmp_path: Path) -> None:
    """And what has changed, was interrupted or is gone runs; what it no longer finds goes."""
    ran = "with (HERE / 'ran').open('a') as file: file.write('x')"
    module = made.question("question_again", "PC-01", ran, "yield figure('one')")
    other = made.question("question_other", "GN-01", "yield figure('two')")
    modules = {"a": module, "b": other}

    def again(**options: Any) -> int:
        status = reproduce(modules, ["a"], options.pop("settings", TINY), tmp_path, **options)
        return len((made.folder / "ran").read_text()) if status == 0 else -status

    assert reproduce(modules, ["b"], TINY, tmp_path) == 0
    assert [again(), again(), again(fresh=True)] == [1, 1, 2]
    assert [again(settings=TINY._replace(seeds=3)), again()] == [3, 4]
    for end in ("png", "svg"):
        (tmp_path / f"a-one.{end}").unlink()
        again()
    assert again() == 6
    modules["a"] = made.question("question_again", "PC-02", ran, STOP)
    assert again() == -130
    assert not Results(tmp_path, {}, modules).kept("a", key(modules["a"], TINY))
    (made.folder / "on").touch()
    assert again() == 8
    assert [c["id"] for c in found_in(tmp_path)] == ["PC-02", "GN-01"]
    page = (tmp_path / "report.html").read_text()
    assert "caption of two" in page
    assert "caption of one" not in page
    assert [path.name for path in tmp_path.glob("*.png")] == ["b-two.png"]


def test_results_of_an_edited_source_are_not_kept(made, tmp_path, monkeypatch):
    """Edited after the key is made and before a worker imports it, and then put back."""
    modules = {x: made.question(f"question_edit_{x}", f"{x}-01", "pass") for x in ("PC", "GN")}
    path = made.folder / "question_edit_PC.py"
    text = path.read_text()

    def edited(*given: Any, **options: Any) -> None:
        path.write_text(text.replace("pass", "yield claim('PC-02', 7)"))
        complete(*given, **options)

    for change in (edited, complete):
        monkeypatch.setattr("paper_repro.__main__.complete", change)
        refused = pytest.raises(Edited, match=r"question_edit_PC\.py was edited after this command")
        with refused if change is edited else nullcontext():
            reproduce(modules, ["PC", "GN"], TINY, tmp_path, workers=2)
        path.write_text(text)
    assert {c["id"] for c in found_in(tmp_path)} == {"PC-01", "GN-01"}


def row_with(**change: Any) -> Callable[[bytes], bytes]:
    """The first row of claims.json, as another version may have written it."""
    return lambda whole: json.dumps([json.loads(whole)[0] | change]).encode()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("claims.json", lambda whole: whole[:-40]),
        ("claims.json", lambda _: b"[3]"),
        ("claims.json", row_with(module="pcgrad_theory")),
        ("claims.json", row_with(id="PC-99")),
        ("claims.json", row_with(verdict="true")),
        ("claims.json", row_with(measured={"value": "0.5"})),
        ("claims.json", row_with(configuration={"seeds": "3", "device": "cpu"})),
        ("runs.json", lambda _: b"[" * 100_000),
        ("a-one.png", lambda _: b"\x89PNG"),
    ],
)
def test_damaged_files_are_set_aside_and_computed_again(name, damage, made, tmp_path, capsys):
    modules = {"a": made.question("question_damaged", "PC-01", "yield figure('one')")}
    assert reproduce(modules, ["a"], TINY, tmp_path) == 0
    before, damaged = left_in(tmp_path), damage((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(damaged)
    capsys.readouterr()
    assert reproduce(modules, ["a"], TINY, tmp_path) == 0
    assert f"{name}.unreadable" in capsys.readouterr().out
    assert (tmp_path / f"{name}.unreadable").read_bytes() == damaged
    assert left_in(tmp_path) == before


def test_files_of_others_stay_and_their_folders_are_refused(made, tmp_path, capsys):
    modules = {"a": made.question("question_mine", "PC-01")}
    for name in ("report.html", "claims.json", "notes.txt"):
        theirs = tmp_path / name / name
        theirs.parent.mkdir()
        theirs.write_text('["not ours"]')
        with pytest.raises(Refused, match="none of an earlier run"):
            reproduce(modules, ["a"], TINY, theirs.parent)
        assert theirs.read_text() == '["not ours"]'
        assert list(theirs.parent.iterdir()) == [theirs]
    others = [tmp_path / "own" / folder / "notes-1" for folder in ("parts", ".parts")]
    for path in others:
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "stopped").mkdir()  # before anything was found
    (tmp_path / "stopped" / "report.html").write_text("<title>The papers re-run</title>")
    for folder, fresh in (("own", False), ("own", True), ("stopped", False)):
        assert reproduce(modules, ["a"], TINY, tmp_path / folder, fresh=fresh) == 0
    assert all(path.exists() for path in others)
    for place in (theirs, "/proc/nothing"):
        with pytest.raises(SystemExit) as stopped:
            main(["--only", "pcgrad.orders", "--out", str(place)])
        assert stopped.value.code == 2
        assert "no folder that can be written" in capsys.readouterr().err


def test_a_second_run_on_one_folder_is_refused(tmp_path: Path) -> None:
    with reserved(tmp_path), pytest.raises(Refused, match="in use"), reserved(tmp_path):
        pass
    with reserved(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_the_time_left_is_right_from_a_tenth_on(tmp_path, monkeypatch):
    """At other speeds, which a benchmark tells by a quarter. What two share counts once."""
    names = list(reproductions())
    recorded, order = expected(names, Settings()), in_order(names)
    assert json.loads(QUICKLY.read_text())["seconds"].keys() == {*names} == {*order}
    # README: five to twelve minutes on two cores
    assert 5 * 60 < (Remaining(recorded, 2).now({}) or 0) < 12 * 60
    assert sum(recorded[name] for name in order[1:7]) < 0.01 * sum(recorded.values())
    jobs = [order, *([x] for x in order if recorded[x])]
    for job, speed, off, workers in itertools.product(jobs, (1 / 3, 3.0), (0.8, 1, 1.25), (1, 2)):
        remaining = Remaining({x: recorded[x] for x in job}, workers, speed * off)
        begun, free = dict[str, float](), [0.0] * workers
        for name in job:
            free[free.index(begun.setdefault(name, min(free)))] += speed * recorded[name]
        for now in np.linspace(0.1, 0.9 if off == 1 else 0.4, 40) * max(free):
            for name in [x for x in remaining.left if begun[x] + speed * recorded[x] <= now]:
                remaining.end(name, speed * recorded[name])
            work = {x: now - begun[x] for x in remaining.left if begun[x] <= now}
            assert 0.6 < (remaining.now(work) or 0) / (max(free) - now) < 1.6
    parts = {"a": {"": 1, "long": 8}, "b": {"": 2, "long": 8}}
    (tmp_path / "record").write_text(json.dumps({"seconds": {"a": 9, "b": 2}, "parts": parts}))
    monkeypatch.setattr("paper_repro.report.remaining.QUICKLY", tmp_path / "record")
    assert [expected(x, QUICK) for x in ("ab", "b")] == [{"a": 9, "b": 2}, {"b": 10}]


def test_a_run_says_what_it_is_at(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper_repro.report.display.EVERY", {True: 0.0, False: 0.0})
    bar = "for _ in tqdm(range(3), desc='steps', mininterval=0): time.sleep(0.1)"
    modules = {
        name: made.question(f"question_{name[:4]}_{i}", claim, bar)
        for i, (name, claim) in enumerate({"pcgrad.race": "PC-32", "mgda.duality": "SU-11"}.items())
    }
    assert reproduce(modules, list(modules), TINY, tmp_path) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 questions: about ")
    assert re.match(r"0 of 2 done, about \d+ s left; at work: pcgrad\.race \d+ s", err)
    assert re.search(r"at work: mgda\.duality \d+ s \(steps: (0|33|67|100)%\)", err)


def test_verdicts_that_moved_are_named_with_their_numbers(made, tmp_path, capsys):
    """Numbers may differ, and open rows; `--keep` puts a run in the record's place."""
    record, out = tmp_path / "record.json", tmp_path / "out"
    modules = {"a": made.question("question_kept", "CA-04", "yield claim('CA-24', 1)")}
    assert reproduce(modules, ["a"], TINY, out) == 0
    assert main(["compare", "--keep", str(record), str(out)]) == 0
    claims = claims_in(out)
    row = next(c for c in claims if c["id"] == "CA-24")
    row["measured"] = {"value": 2.0, "rate": float("nan")}

    def compared(verdict: str = "") -> tuple[int, str]:
        row["verdict"] = verdict
        kept = claims if verdict else [c for c in claims if c is not row]
        (out / "claims.json").write_text(json.dumps(kept))
        return main(["compare", str(record), str(out)]), capsys.readouterr().out

    assert compared("holds")[0] == 0
    status, said = compared("does not hold")
    assert status == 1
    assert "CA-24: holds on record, does not hold now (value 1 → 2)" in said
    assert re.search(r"of commits \w+\.\.\w+:", said)
    assert "CA-04" not in said
    kept = record.read_text()
    record.write_text(json.dumps(json.loads(kept) | {"open": {"CA-24": "a nudge of 1e-9 decides"}}))
    assert [compared(x)[0] for x in ("inconclusive", "")] == [0, 0]
    record.write_text(kept)
    assert "CA-24: holds on record, not run now" in compared()[1]
    assert main(["compare", "--keep", str(record), str(out)]) == 0
    assert compared()[0] == 0
