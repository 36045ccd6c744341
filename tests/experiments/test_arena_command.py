"""The arena from a notebook: broken rules and refusals; and what its command keeps."""

import errno
import json
import math
from functools import partial
from unittest.mock import Mock

import pytest
import torch

import mtlfunc as mf
from common.jobs import Died
from experiments.arena import __main__ as command
from experiments.arena.contestants import CONTESTANTS
from mtlfunc.studies.arena import STATIC, Settings, arena, compete, contest, contestants, standard
from tests.support.arena import TINY


def soft(gramian):
    return torch.softmax(-gramian.diagonal() / gramian.diagonal().amax(), -1)


def raises(gramian):
    raise RuntimeError("out of ideas\nsecond line")


def test_broken_rules_are_reported_and_rank_last():
    rules = {
        "good": soft,
        "raises": raises,
        "branches": lambda gramian: gramian[0] if gramian[0, 1] < 0 else gramian[1],
        "nan": lambda gramian: gramian.diagonal() * math.nan,
        "scalar": lambda gramian: gramian.sum(),
        "up": lambda gramian: -torch.ones_like(gramian[0]),
    }
    losses, names = f"{STATIC} (yours)", ["conflict", "vlmop2"]  # of two of one name none is lost
    others = {"mean": contest.REFERENCES["mean"], STATIC: (soft, mf.losses_only())}
    found = arena(rules, against=others, problems=names, settings=TINY, progress=False)
    for name in found.problems:
        status = {rule: found.status(name, rule) for rule in found.rules}
        assert status["good"] == status["mean"] == status[STATIC] == ""
        assert status["raises"] == "raised RuntimeError: out of ideas"
        assert "torch.where" in status["branches"]
        assert status["nan"] == "not finite on 3 of 3 seeds"
        assert status["scalar"].startswith("raised")
        assert status["up"] == "ends above its start"
        assert "reads 'gramian', but the probe measures the losses alone" in status[losses]
    places = {rank.rule: rank.rank for rank in found.ranks()}
    lost = {"raises", "branches", "nan", "scalar", losses}
    assert {places[rule] for rule in lost} == {7.0}  # 5 to 9 of 9, shared
    assert max(place for rule, place in places.items() if rule not in lost) <= 4
    text = str(found)
    assert "! raises on conflict, vlmop2: raised RuntimeError: out of ideas" in text
    assert text.count("failed !") == 2 * len(lost)


def test_what_counts_as_a_rule():
    weighted = partial(mf.jacobian, heads="weighted")
    pairs = (mf.gradnorm(0.1), weighted), (mf.mean, mf.losses_only())
    rules = (mf.pcgrad(), mf.mgda, soft, *pairs, CONTESTANTS["mean"])
    found = contestants(dict(zip("abcdef", rules, strict=True)))
    assert list(found) == list("abcdef")
    for contestant in found.values():
        assert isinstance(contestant.rule(), mf.Rule)
        assert isinstance(contestant.probe("*"), mf.Probe)
    assert list(contestants(mf.pcgrad(), taken=["pcgrad"])) == ["pcgrad (yours)"]
    assert list(contestants(soft)) == list(contestants(mf.stateless(soft))) == ["soft"]
    assert list(contestants(lambda gramian: gramian[0])) == ["your rule"]
    for wrong in (3, (soft, 3), mf.cagrad):
        with pytest.raises(TypeError):
            contestants(wrong)
    for problems in ([], {}, iter(()), ["nosuch"], "nosuch"):
        with pytest.raises(ValueError, match="problem"):
            arena(soft, problems=problems)


SMALL = ["--only", "conflict,vlmop2", "--against", f"mean,mgda,{STATIC}", "--seeds", "2"]
SMALL += ["--tuning", "1", "--budget", "0.02"]


def test_a_broken_cell_is_made_anew_and_is_the_contest_alone(tmp_path, monkeypatch, capsys):
    text = "def soft(G):\n    d = G.diagonal()\n    return (-d / d.amax()).softmax(-1)\n"
    inner = tmp_path / "my_rules" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("from . import even\nfrom .inner import soft\n")
    (inner.parent / "even.py").write_text("def soft(G):\n    return 0 * G.diagonal() + 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = [*SMALL, "--rule", "my_rules:soft", "--workers", "1", "--out", str(tmp_path / "out")]
    kept = lambda: (tmp_path / "out" / "cells").rglob("conflict/soft.json")  # noqa: E731
    few = Settings(seeds=2, tuning=1, budget=0.02)
    alone = compete(standard()["conflict"], contestants(soft)["soft"], few)
    for new, more in ((8, ""), (1, ""), (2, "# edited\n")):
        for path in kept():
            path.write_text("{", encoding="utf-8")
        (inner / "__init__.py").write_text(text + more)
        assert command.main(call) == 0
        assert f"{new} of 8 cells new" in capsys.readouterr().out
        (text_of,) = (x for x in (path.read_text("utf-8") for path in kept()) if x != "{")
        numbers = json.loads(text_of)["numbers"]
        torch.testing.assert_close(torch.tensor(numbers["losses"]).double(), alone.losses)

    def stops(perform, todo, workers, keep):
        keep(todo[0], perform(todo[0]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "perform_all", stops)
        assert command.main([*call, "--fresh"]) == 130
    assert "The same command without --fresh goes on" in capsys.readouterr().err
    for error in (OSError(errno.ENOSPC, "No space left"), Died("killed for memory perhaps")):
        with monkeypatch.context() as patch:
            patch.setattr(command, "perform_all", Mock(side_effect=error))
            assert command.main(call) == 1
        said = capsys.readouterr().err
        assert error.args[-1] in said
        assert "finished runs are kept" in said
    assert len(json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["problems"]) == 2
    assert command.main(call) == 0
    assert "7 of 8 cells new" in capsys.readouterr().out
    assert command.main([x.replace("my_rules:", "my_rules.even:") for x in call]) == 0
    assert "2 of 8 cells new" in capsys.readouterr().out  # another rule of this name
