"""What a run says of its own length: at its start, and then of all that is left."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paper_repro.__main__ import complete, reproductions
from paper_repro.report.compare import seconds_of
from paper_repro.report.display import Display
from paper_repro.report.findings import QUICK, Settings
from paper_repro.report.remaining import (
    EARLY,
    QUICKLY,
    SLOW,
    Remaining,
    expected,
    in_order,
    in_words,
)
from paper_repro.report.workers import Question, Run


def test_the_record_has_a_length_of_every_question():
    seconds = json.loads(QUICKLY.read_text())["seconds"]
    assert seconds.keys() == reproductions().keys()
    quick = expected(list(seconds), QUICK)
    assert quick == pytest.approx(seconds)
    default = expected([*seconds, "new"], Settings())
    assert default.pop("new") == pytest.approx(sum(default.values()) / len(default))
    # README: five to twelve minutes on two cores
    assert 5 * 60 < (Remaining(default, 2).now({}) or 0) < 12 * 60
    assert expected(list(seconds), Settings(full=True)) == {}


def test_short_questions_come_early():
    """After the one that needs no kernels, before the other long ones; no long one is last."""
    names = list(reproductions())
    seconds = expected(names, Settings())
    order = in_order(names, SLOW, seconds)
    assert sorted(order) == sorted(names)
    assert order[0] == SLOW[0]
    early = order[1 : 1 + EARLY]
    assert not {*early} & {*SLOW}
    assert sum(seconds[name] for name in early) < 0.01 * sum(seconds.values())
    assert order[1 + EARLY : EARLY + len(SLOW)] == list(SLOW[1:])
    assert in_order(["a", "b", "c"], ("c", "d", "b"), {}) == ["c", "b", "a"]
    assert in_order(["a"], (), {}) == ["a"]


def side_by_side(
    seconds: dict[str, float], workers: int
) -> Iterator[tuple[float, dict[str, float], list[tuple[str, float]]]]:
    """Every tenth of a second: since when questions are at work, and which have ended."""
    left, work, now = list(seconds), dict[str, float](), 0.0
    while left or work:
        ended = [
            (name, now - work.pop(name)) for name in [*work] if now >= work[name] + seconds[name]
        ]
        while left and len(work) < workers:
            work[left.pop(0)] = now
        yield now, {name: now - start for name, start in work.items()}, ended
        now += 0.1


@pytest.mark.parametrize("pace", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_time_left_is_that_of_all_that_is_left(pace, workers):
    """On a machine so much slower than the record's, which is seen from what is done."""
    names = in_order(list(reproductions()), SLOW, expected(list(reproductions()), Settings()))
    recorded = expected(names, Settings())
    remaining, every = Remaining(recorded, workers), sum(recorded.values())
    assert remaining.now({}) == pytest.approx(max(every / workers, *recorded.values()))
    looks = list(side_by_side({name: pace * x for name, x in recorded.items()}, workers))
    total = looks[-1][0]
    for now, work, ended in looks:
        for name, wall in ended:
            remaining.end(name, wall)
        said = remaining.now(work)
        assert said is not None
        if now > 0.6 * total:
            assert abs(said - (total - now)) <= 0.1 * total, (now, said)
    assert remaining.now({}) == 0


def test_a_run_says_at_once_how_long_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """And its lines what is left; the first comes before any question begins."""
    clock = itertools.count(0, 40)
    monkeypatch.setattr("paper_repro.report.display.time.monotonic", lambda: next(clock))

    class Results:
        def kept(self, name: str, key: str) -> bool:
            return name == "pcgrad.figure1"

    def run_of(settings: Settings) -> Run:
        run = Run(Results(), Display(3), settings, tmp_path)  # pyright: ignore[reportArgumentType]

        def work(questions: list[Question], workers: int) -> None:
            for question in questions:
                run.display.begin(question.name)
                run.display.tick()
                run.display.end(question.name)

        one: Callable[..., None] = lambda questions: work(questions, 1)  # noqa: E731
        run.side_by_side, run.one_by_one = work, one  # type: ignore[method-assign]
        return run

    names = ["pcgrad.figure1", "gradnorm.alpha", "mgda.adam"]
    questions = [Question(name, reproductions()[name], "") for name in names]
    complete(run_of(Settings()), questions, fresh=False, workers=2)
    out, err = capsys.readouterr()
    assert "\n2 questions, 2 side by side: about 86 s\n" in re.sub(
        r"about \d+ s\n", "about 86 s\n", out
    )
    assert re.match(r"1 of 3 done, about \d+ s left; at work: gradnorm\.alpha \d+ s\n", err)
    complete(run_of(Settings(full=True)), questions, fresh=True, workers=1)
    out, err = capsys.readouterr()
    assert "about" not in out + err  # nothing is known of it


def test_lengths_come_from_a_run_that_is_kept(tmp_path: Path):
    assert seconds_of(tmp_path / "claims.json") == {}
    (tmp_path / "runs.json").write_text('{"b": {"seconds": 2.5}, "a": {"seconds": 0.1}}')
    assert list(seconds_of(tmp_path / "claims.json").items()) == [("a", 0.1), ("b", 2.5)]


def test_lengths_in_words():
    said = [in_words(x) for x in (0, 14, 80, 100, 1234, 6000)]
    assert said == [
        "about 10 s",
        "about 10 s",
        "about 80 s",
        "about 2 minutes",
        "about 21 minutes",
        "about 1.7 hours",
    ]
