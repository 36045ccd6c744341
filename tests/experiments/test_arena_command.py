"""The arena from a notebook and from the command line: broken rules, refusals, what is kept."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import mtlfunc as mf
from experiments.arena import __main__ as command
from experiments.arena import cells, store
from experiments.arena.cells import source_of
from experiments.arena.contestants import CONTESTANTS
from mtlfunc.studies.arena import (
    STATIC,
    Contestant,
    Settings,
    arena,
    compete,
    contest,
    contestants,
    normalize_losses,
    standard,
)
from tests.support import ROOT
from tests.support.arena import TINY

# ---- from a notebook ----


def soft(gramian):
    return torch.softmax(-gramian.diagonal() / gramian.diagonal().amax(), -1)


def raises(gramian):
    raise RuntimeError("out of ideas\nsecond line")


def branches(gramian):
    return gramian[0] if gramian[0, 1] < 0 else gramian[1]


def test_broken_rules_are_reported_and_rank_last():
    rules = {
        "good": soft,
        "raises": raises,
        "branches": branches,
        "nan": lambda gramian: gramian.diagonal() * math.nan,
        "scalar": lambda gramian: gramian.sum(),
        "up": lambda gramian: -torch.ones_like(gramian[0]),
        "losses": (soft, mf.losses_only()),
    }
    mean = {"mean": contest.REFERENCES["mean"]}
    found = arena(
        rules, against=mean, problems=["conflict", "vlmop2"], settings=TINY, progress=False
    )
    for name in found.problems:
        status = {rule: found.status(name, rule) for rule in found.rules}
        assert status["good"] == status["mean"] == status[STATIC] == ""
        assert status["raises"] == "raised RuntimeError: out of ideas"
        assert "torch.where" in status["branches"]
        assert status["nan"] == "not finite on 3 of 3 seeds"
        assert status["scalar"].startswith("raised")
        assert status["up"] == "ends above its start"
        assert "reads 'gramian', but the probe measures the losses alone" in status["losses"]
    places = {rank.rule: rank.rank for rank in found.ranks()}
    lost = {"raises", "branches", "nan", "scalar", "losses"}
    assert {places[rule] for rule in lost} == {7.0}  # 5 to 9 of 9, shared
    assert max(place for rule, place in places.items() if rule not in lost) <= 4
    text = str(found)
    assert "! raises on conflict, vlmop2: raised RuntimeError: out of ideas" in text
    assert text.count("failed !") == 2 * len(lost)
    assert "out of ideas" in found._repr_html_()


def test_arena_of_a_rule_shows_it():
    found = arena(
        mf.stateless(soft), problems=["conflict", "regression"], settings=TINY, progress=False
    )
    assert found.rules == ["soft", *contest.REFERENCES, STATIC]
    records = found.records()
    assert len(records) == 2 * 7
    assert {record["problem"] for record in records} == {"conflict", "regression"}
    for record in records:
        assert math.isfinite(record["mean"])
        assert record["mean, low"] <= record["mean"] <= record["mean, high"]
        assert record["step, ms"] > 0
        assert ("front" in record) == (record["problem"] == "conflict")
    assert [rank.rule for rank in found.ranks("front")]
    ax = found.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        rank.rule for rank in found.ranks()
    ]
    assert plt.subplots()[1] is not ax
    plt.close("all")
    own = plt.figure().add_subplot()
    assert found.plot(own, "worst") is own
    plt.close("all")
    with pytest.raises(ValueError, match="by='best': expected one of 'mean', 'worst', 'front'"):
        found.ranks("best")


def test_built_in_rules_are_remembered():
    arena(soft, problems=["vlmop2"], settings=TINY, progress=False)
    before = contest._run_cached.cache_info()
    again = arena({"other": soft}, problems=["vlmop2"], settings=TINY, progress=False)
    after = contest._run_cached.cache_info()
    assert after.misses == before.misses
    assert after.hits == before.hits + 6
    mine = arena(
        soft,
        against={"mean": Contestant(mf.mgda, mf.jacobian)},
        problems=["vlmop2"],
        settings=TINY,
        progress=False,
    )
    # a name is not a rule
    assert not torch.equal(
        mine.cells["vlmop2"]["mean"].losses, again.cells["vlmop2"]["mean"].losses
    )


def test_what_counts_as_a_rule():
    def weighted(shared):
        return mf.jacobian(shared, heads="weighted")

    found = contestants(
        {
            "a": mf.pcgrad(),
            "b": mf.mgda,
            "c": soft,
            "d": (mf.gradnorm(0.1), weighted),
            "e": (mf.mean, mf.losses_only()),
        }
        | {"f": CONTESTANTS["mean"]}
    )
    assert list(found) == list("abcdef")
    for contestant in found.values():
        assert isinstance(contestant.rule(), mf.Rule)
        assert isinstance(contestant.probe("*"), mf.Probe)
    assert list(contestants(mf.pcgrad(), taken=["pcgrad"])) == ["pcgrad (yours)"]
    assert list(contestants(soft)) == list(contestants(mf.stateless(soft))) == ["soft"]
    assert (
        list(contestants(mf.stateless(lambda gramian: gramian[0])))
        == list(contestants(lambda gramian: gramian[0]))
        == ["your rule"]
    )
    with pytest.raises(TypeError, match=r"rule: expected a mtlfunc\.Rule.*got int"):
        contestants(3)
    with pytest.raises(TypeError, match="probe: expected"):
        contestants((soft, 3))
    with pytest.raises(ValueError, match="there is no 'nosuch'; there are conflict"):
        arena(soft, problems=["nosuch"])
    with pytest.raises(ValueError, match="there is no 'nosuch'; there are conflict"):
        arena(soft, problems="nosuch")
    for none in ([], {}, iter(())):
        with pytest.raises(ValueError, match="problems: expected at least one of conflict"):
            arena(soft, problems=none)
    with pytest.raises(TypeError, match=r"cagrad makes rules.*pass the rule, cagrad\(...\)"):
        arena(mf.cagrad)


def test_problems_may_come_from_a_generator():
    mean = {"mean": contest.REFERENCES["mean"]}
    names = (name for name in standard() if name == "vlmop2")
    found = arena(soft, against=mean, problems=names, settings=TINY, progress=False)
    assert list(found.problems) == ["vlmop2"]
    assert len(found.records()) == 3


def test_result_says_what_the_static_search_has_tried():
    mean = {"mean": contest.REFERENCES["mean"]}
    found = arena(soft, against=mean, problems=["vlmop2"], settings=TINY, progress=False)
    text = str(found)
    assert "tried 9 weight vectors at each learning rate, every other rule one setting" in text
    assert len(found.cells["vlmop2"][STATIC].lr) == 9 * len(standard()["vlmop2"].rates)


# ---- the command line ----

SMALL = [
    "--only",
    "conflict,vlmop2",
    "--against",
    "mean,mgda,static search",
    "--seeds",
    "2",
    "--tuning",
    "1",
    "--budget",
    "0.02",
]


def test_command_writes_its_report(tmp_path):
    (tmp_path / "my_rules.py").write_text(
        "def soft(gramian):\n    return (-gramian.diagonal() / "
        "gramian.diagonal().amax()).softmax(-1)\n"
    )
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "OMP_NUM_THREADS": "1",
    }
    call = [
        sys.executable,
        "-m",
        "experiments.arena",
        *SMALL,
        "--rule",
        "my_rules:soft",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    run = subprocess.run(
        call,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "2 problems, 4 contestants, 8 of 8 cells new" in run.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells",
        "fronts.png",
        "ranks.png",
        "results.json",
        "scores.png",
        "table.md",
    ]
    found = json.loads(
        (tmp_path / "out" / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert {record["rule"] for record in found["records"]["mean"]} == {
        "mean",
        "mgda",
        STATIC,
        "soft",
    }
    assert {rank["rule"] for rank in found["ranks"]["front"]} == {"mean", "mgda", STATIC, "soft"}
    for name in ("ranks", "scores", "fronts"):
        assert plt.imread(tmp_path / "out" / f"{name}.png").std() > 0
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert page.count(".png)") == 3
    assert page.count("\n| soft ") == 3  # the ranks, and every problem
    problem = standard()["conflict"]
    kept = json.loads(
        (tmp_path / "out" / "cells" / "conflict" / "soft.json").read_text(encoding="utf-8")
    )
    alone = compete(problem, contestants(soft)["soft"], Settings(seeds=2, tuning=1, budget=0.02))
    torch.testing.assert_close(torch.tensor(kept["numbers"]["losses"]).double(), alone.losses)


def test_another_process_finds_the_same():
    task = cells.Task("conflict", cells.Entrant("mgda", "", b""), TINY)
    ((back, cell),) = cells.perform_all([task], jobs=2)
    assert back == task
    torch.testing.assert_close(
        cell.losses, compete(standard()["conflict"], CONTESTANTS["mgda"], TINY).losses
    )


def test_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "sources", lambda: [Path(__file__)])
    arguments = [*SMALL, "--jobs", "1", "--out", str(tmp_path)]
    done = []

    def stops(task):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(task)
        return perform(task)

    perform = cells.perform
    monkeypatch.setattr(cells, "perform", stops)
    assert command.main(arguments) == 130
    assert "problems that every rule has met: conflict." in capsys.readouterr().err
    assert list(
        json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["problems"]
    ) == ["conflict"]
    monkeypatch.setattr(cells, "perform", perform)
    monkeypatch.setattr(command, "write", lambda *rest: [])
    assert command.main(arguments) == 0
    assert "2 of 6 cells new" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "0 of 6 cells new" in capsys.readouterr().out
    # a broken file is made again
    (tmp_path / "cells" / "conflict" / "mean.json").write_text("{", encoding="utf-8")
    assert command.main(arguments) == 0
    assert "1 of 6 cells new" in capsys.readouterr().out
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_store_gives_back_what_it_was_given(tmp_path):
    keeper = store.Store(tmp_path, TINY)
    problem = standard()["vlmop2"]
    cases = {
        "good": compete(problem, CONTESTANTS["mgda"], TINY),
        "lost": compete(problem, contestants(raises)["raises"], TINY),
        "search": compete(problem, None, TINY),
    }
    for name, cell in cases.items():
        keeper.write("a problem", name, b"", cell)
        back = keeper.read("a problem", name, b"")
        assert back is not None
        for left, right in zip(cell, back, strict=True):
            if isinstance(left, torch.Tensor):
                torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
            else:
                # the time of a step
                assert left == right or (name == "lost" and str(left) == str(right) == "nan")
        assert keeper.read("a problem", name, b"changed") is None
    assert store.Store(tmp_path, TINY._replace(seeds=9)).read("a problem", "good", b"") is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "nosuch"], "unknown 'nosuch'; choose from conflict"),
        (["--against", "mean,nosuch"], "unknown 'nosuch'; choose from mean"),
        (["--seeds", "1"], "expected an integer >= 2, got 1"),
        (["--budget", "0"], "expected a finite number above 0, got 0"),
        (["--rule", "nosuch"], "'nosuch': expected module:name"),
        (["--rule", "nosuch:rule"], "'nosuch:rule' cannot be imported: ModuleNotFoundError"),
        (["--rule", "math:pi"], "rule: expected a mtlfunc.Rule"),
        (["--out", __file__], "cannot be made a folder"),
    ],
)
def test_command_refuses(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_command_refuses_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "cells").write_text("not a folder")
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "cannot be made a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kept", ["3", "[]", "{}", '{"key": 1, "cell": ["p", "r"], "numbers": 2}', "null"]
)
def test_a_foreign_cell_is_made_again(tmp_path, kept):
    keeper = store.Store(tmp_path, TINY)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "r.json").write_text(kept)
    assert keeper.read("p", "r", b"") is None
    right = kept.replace("1", f'"{keeper.of(b"").key}"')
    (tmp_path / "p" / "r.json").write_text(right)  # of an older version with this key
    assert keeper.read("p", "r", b"") is None


def test_digits_are_learnt():
    problem = cells.problem_of("digits")
    cell = compete(problem, CONTESTANTS["pcgrad"], Settings(seeds=2, tuning=1, budget=0.5))
    assert not cell.error
    final = normalize_losses(problem, cell.losses)
    assert final[1].mean() < 0.85 < float(normalize_losses(problem, cell.start).mean())


def test_a_rule_is_known_by_what_it_reads(tmp_path, monkeypatch):
    """A number that the rule's module imports from another."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "read_rules.py").write_text(
        "from read_helper import K\n\ndef soft(gramian):\n"
        "    return (-K * gramian.diagonal()).softmax(-1)\n"
    )
    found = set()
    for k in (1, -5):
        (tmp_path / "read_helper.py").write_text(f"K = {k}\n")
        for name in ("read_rules", "read_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        found.add(source_of("read_rules:soft"))
    assert len(found) == 2
