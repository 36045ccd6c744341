"""What the experiments share: tuning, keeping, stopping, intervals, tables, arguments."""

import errno
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from common import cells, command, intervals, locks, machine, pool, progress, signals, study, tables
from common.jobs import say
from common.remaining import unit
from tests.support import ROOT, python

PLAN = study.Plan(
    methods={"one": ("",), "two": ("a", "b")}, rates=(0.1, 0.2, 0.4), tuning=(8, 9), seeds=(0, 1)
)
BEST = {"one": 0.2, "two": 0.8}
"""Of the second, the grid's upper edge is best, the rate beyond it better still, the next not."""


def toy(cell: cells.Cell) -> study.Numbers:
    """A run whose score peaks at a known rate, and is higher for variant b."""
    score = -abs(math.log(cell.rate / BEST[cell.method])) + (cell.variant == "b") + 0.01 * cell.seed
    return {"score": score, "rate": cell.rate, "variant": cell.variant}


def store_in(folder: Path, settings: object = "") -> cells.Store:
    return cells.Store(folder, [], settings)


def test_rates_are_chosen_by_validation_and_widened_until_the_best_lies_inside(tmp_path):
    found = study.conduct(PLAN, toy, store_in(tmp_path))
    (one,), (two,) = found.choices[""].values()
    assert (one.variant, one.rate, one.widened, one.edge) == ("", 0.2, (), False)
    assert (two.variant, two.rate, two.widened, two.edge) == ("b", 0.8, (0.8, 1.6), False)
    assert set(two.scores["a"]) == {0.1, 0.2, 0.4}
    assert set(two.scores["b"]) == {0.1, 0.2, 0.4, 0.8, 1.6}
    for rate, score in two.scores["b"].items():
        cell = cells.Cell("", "two", "b", rate, 0)
        mean = np.mean([toy(cell._replace(seed=s))["score"] for s in (8, 9)])
        assert score == pytest.approx(mean)
    assert [run["rate"] for run in found.runs[""]["one"]] == [0.2, 0.2]
    assert study.rate_of([two]) == "0.8, b"


def test_every_seed_may_choose_for_itself_and_fronts_take_the_leaders_rate(
    tmp_path, monkeypatch, capsys
):
    """Below the grid, too; a rate at which one run failed is never best."""
    best = {0: 0.05, 1: 0.2, "p": 0.1, "q": 0.4}

    def perform(cell):
        score = -abs(math.log(cell.rate / best[cell.problem or cell.seed]))
        return {"score": score if cell.rate > 0.04 else math.nan, "rate": cell.rate}

    plan = PLAN._replace(methods={"one": ("",)}, tuning=())
    found = study.conduct(plan, perform, store_in(tmp_path / "own"))
    first, second = found.choices[""]["one"]
    assert (first.rate, first.widened, first.edge, second.rate) == (0.05, (0.05, 0.025), False, 0.2)
    assert first.scores[""][0.025] == -math.inf
    assert [run["rate"] for run in found.runs[""]["one"]] == [0.05, 0.2]
    plan = plan._replace(problems=("p", "q"), fronts={"f": ("a", "b")}, leader="one", tuning=(8,))
    found = study.conduct(plan._replace(front_seeds=(5,)), perform, store_in(tmp_path / "fronts"))
    assert [[run["rate"] for run in runs] for runs in found.fronts["f"].values()] == [[0.1]] * 2
    monkeypatch.setattr(progress, "EVERY", 0)
    plan = plan._replace(methods={"one": ("",), "new": ("",)}, front_seeds=(5,), beyond=0)
    study.conduct(plan, perform, store_in(tmp_path / "fronts"))
    # what is kept of all phases counts from the start: 6 that choose, 4 results, 2 of the fronts
    assert "all runs: 13 of 22 runs" in capsys.readouterr().err


def test_nothing_runs_twice_and_a_kept_cell_is_whole(tmp_path):
    done: list[cells.Cell] = []

    def counted(cell):
        done.append(cell)
        return toy(cell)

    first = study.conduct(PLAN, counted, store_in(tmp_path))
    # 3 methods and variants × 3 rates × 2 tuning seeds, two rates more, two choices on two seeds
    assert len(done) == len(set(done)) == 18 + 4 + 4
    done.clear()
    assert study.conduct(PLAN, counted, store_in(tmp_path)) == first
    assert not done
    study.conduct(PLAN._replace(seeds=(0, 1, 2)), counted, store_in(tmp_path))
    assert {cell.seed for cell in done} == {2}
    done.clear()
    study.conduct(PLAN._replace(tuning=(0, 1)), counted, store_in(tmp_path / "same"))
    assert len(done) == 18 + 4  # results are those of the tuning
    done.clear()
    file = next(tmp_path.rglob("rate 0.2 seed 0.json"))
    for broken in ("{", "[]", '{"key": 1}', ""):
        file.write_text(broken, encoding="utf-8")
        study.conduct(PLAN, counted, store_in(tmp_path))
    assert len(done) == 4
    for settings in ("other settings", ""):  # these keep theirs
        study.conduct(PLAN, counted, store_in(tmp_path, settings))
        assert len(done) == 4 + 26


def test_cells_that_belong_together_are_performed_in_one_call(tmp_path):
    calls: list[list[cells.Cell]] = []

    def many(group):
        calls.append(list(group))
        return [toy(cell) for cell in group]

    apart = study.conduct(PLAN, toy, store_in(tmp_path / "a"))
    store = store_in(tmp_path / "b")
    assert study.conduct_together(PLAN, many, lambda cell: cell.method, store) == apart
    assert all(len({cell.method for cell in group}) == 1 for group in calls)
    assert len({cell.method for group in calls[:2] for cell in group}) == 2
    every = [cell for group in calls for cell in group]
    assert len(set(every)) == len(every) > len(calls)


def test_numbers_come_back_as_they_were(tmp_path):
    store = store_in(tmp_path)
    cell = cells.Cell("a/b", "m", "x y", 1e-3, 5)
    numbers = {"score": -math.inf, "list": [1.5, math.inf], "deep": {"text": "ü", "none": None}}
    store.write(cell, numbers)
    assert store.read(cell) == numbers
    store.write(cell, {"score": math.nan, "t": torch.tensor([1.0, math.nan])})
    back = store.read(cell)
    assert back is not None
    assert math.isnan(back["score"])
    assert back["t"][0] == 1.0
    # a name that falls on the same file is another cell
    assert store.path(cell._replace(problem="a?b")) == store.path(cell)
    assert store.read(cell._replace(problem="a?b")) is None


def test_what_ends_a_worker(tmp_path):
    """Its job is begun three times, then named when the others are done. What it forked ends."""
    for perform, said in ((math.sqrt, "math domain error"), (lambda job: job, "an't pickle")):
        with pytest.raises(Exception, match=said):
            pool.perform_all(perform, [-9, -9], 2, lambda *said: pytest.fail("it is done"))
    forked = "(__import__('time').sleep(20), open({0!r} + ' late', 'w'), os._exit(0))"
    dies = f"open({{0!r}}, 'a').write('x') and (os.fork() or {forked}) and os.kill(os.getpid(), 9)"
    job = f"open({{0!r}}, 'a+').seek(0, 2) > {{1}} or (os := __import__('os')) and {dies}"
    forks = "(os.fork() or os._exit(0), __import__('time').sleep(0.5), os._exit(7))"
    forks = f"(pid := (os := __import__('os')).fork()) and os.waitpid(pid, 0)[1] or {forks}"
    jobs = [job.format(str(tmp_path / name), most) for name, most in (("a", 0), ("b", 9))]
    found = []
    with pytest.raises(pool.Died, match=r"/b.*: its process ended by signal 9, .*, 3 times$"):
        pool.perform_all(eval, [*jobs, forks], 2, lambda job, said: found.append((job, said)))
    assert dict(found) == {jobs[0]: True, forks: 7 << 8}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "x", "b": "xxx"}


def test_what_runs_here_has_one_thread_and_leaves_the_others():
    """As does a benchmark. A job that has jobs of its own still says what it says."""
    seen, counts = [], []

    def perform(job):
        if job:
            pool.perform_all(perform, [0], 1, lambda *x: seen.append(x))
        say(job)
        return torch.get_num_threads()

    with machine.threads(2):
        pool.perform_all(perform, [5], 1, lambda *x: seen.append(x))
        unit(lambda: counts.append(torch.get_num_threads()) or len(counts))
        assert (seen, torch.get_num_threads()) == ([(0, 0), (0, 1), (5, 5), (5, 1)], 2)
    assert {*counts} == {1}


def test_a_digest_is_of_names_contents_and_texts(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    given = [("a",), ("b",), ("c",), ("a", "b")]
    found = [locks.digest([tmp_path / name for name in names]) for names in given]
    assert len({*found, locks.digest([tmp_path / "a"], "z")}) == len(given) + 1


TREE = {
    "torch.py": "set_num_threads = get_num_threads = lambda *count: 1",
    "mtlfunc/__init__.py": "from .plot import picture",
    "mtlfunc/plot/picture.py": "",
    "mtlfunc/rules/rule.py": "FOUND = 1",
    "paper_repro/__init__.py": "",
    "paper_repro/question.py": "from mtlfunc.rules.rule import *\ndef perform(job): return FOUND",
    "command.py": """
import sys
from pathlib import Path
if __name__ == "__main__":
    import common
    sooner, later, workers = map(Path, sys.argv[1:])
    sooner.write_text("FOUND = 2")
    from common import pool, sources
    from paper_repro import question
    print(sources.key([Path(question.__file__)]))
    later.write_text("FOUND = 2")
    pool.perform_all(question.perform, [0, 0], int(str(workers)), lambda job, found: print(found))
""",
}


def test_a_result_is_kept_under_the_key_of_the_code_that_computed_it(tmp_path):
    """Whenever a source is edited. The key is of what is imported, pictures left out."""
    shutil.copytree(ROOT / "common", tmp_path / "common")
    rule, picture, none = "mtlfunc/rules/rule.py", "mtlfunc/plot/picture.py", "none"

    def run(sooner, later, workers, text=TREE[rule]):
        for path, content in (TREE | {rule: text}).items():
            (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / path).write_text(content)
        found = subprocess.run(
            [sys.executable, "-B", "command.py", sooner, later, str(workers)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        said = f"{rule} was edited after this command had begun" in found.stderr
        return found.stdout.split(), said

    key = run(none, none, 1)[0][0]
    whole, refused = ([key, "1", "1"], False), ([key], True)
    assert run(none, rule, 1) == whole  # the process has what it imported
    assert run(picture, picture, 2) == whole
    assert run(rule, none, 2) == ([], True)
    assert run(none, rule, 2) == refused
    other = run(none, none, 1, "FOUND = 3")[0]
    assert key not in other
    assert other[1:] == ["3", "3"]


SLOW = """
import sys, time
from pathlib import Path
from common import cells, command, study

PLAN = study.Plan({"m": ("",)}, (1.0, 2.0, 3.0), (0,), (1, 2))

def perform(cell):
    if cell.seed:
        time.sleep(float(sys.argv[3]))
    return {"score": -abs(cell.rate - 2.0)}

if __name__ == "__main__":
    out = Path(sys.argv[1])
    def body():
        study.conduct(PLAN, perform, cells.Store(out / "cells", [], ""), int(sys.argv[2]))
    sys.exit(command.finish(body, out))
"""


def test_a_stopped_command_goes_on(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW, encoding="utf-8")
    out, kept = tmp_path / "out", cells.Store(tmp_path / "out" / "cells", [], "").folder / "m"
    running = subprocess.Popen(
        [sys.executable, str(script), str(out), "2", "600"],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    until = time.monotonic() + 120
    while len(list(kept.glob("rate*"))) < 3:
        assert time.monotonic() < until, "the first three runs did not finish"
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=120)  # well before the sleeping workers would end
    assert running.returncode == 143
    assert "terminated; 3 finished runs are kept" in errors.decode()
    before = {path: path.read_bytes() for path in kept.glob("rate*")}
    done: list[cells.Cell] = []
    slow = runpy.run_path(str(script))

    def perform(cell):
        done.append(cell)
        return {"score": -abs(cell.rate - 2.0)}

    study.conduct(slow["PLAN"], perform, cells.Store(out / "cells", [], ""))
    assert [cell.seed for cell in done] == [1, 2]
    after = {path: path.read_bytes() for path in kept.iterdir()}
    assert len(after) == 5
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("stop", "status"),
    [(KeyboardInterrupt("interrupted"), 130), (OSError(errno.ENOSPC, "No space left"), 1)],
)
def test_what_stops_a_study_leaves_what_is_finished(stop, status, tmp_path, monkeypatch, capsys):
    write, room = cells.write_whole, [5]

    def full(path, content):
        if not room[0]:
            raise stop
        room[0] -= 1
        write(path, content)

    def body():
        study.conduct(PLAN, toy, store_in(tmp_path / "cells"))

    monkeypatch.setattr(cells, "write_whole", full)
    assert command.finish(body, tmp_path) == status
    said = capsys.readouterr().err
    assert stop.args[-1] in said
    assert "; 5 finished runs are kept" in said
    room[0] = 1000
    assert command.finish(body, tmp_path) == 0


def test_two_studies_in_one_folder_are_refused(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    with command.alone_in(tmp_path):
        assert command.finish(lambda: pytest.fail("it ran"), tmp_path) == 2
        assert f"{tmp_path} is in use by another run" in capsys.readouterr().err
        assert sorted(x.name for x in tmp_path.rglob("*")) == [".lock", "cells"]
    assert command.finish(lambda: None, tmp_path) == 0
    assert not (tmp_path / ".lock").exists()


def test_a_state_goes_when_the_numbers_are_kept(tmp_path, monkeypatch):
    """Not before: a stop between the two would lose a long run."""
    own = cells.unfinished_in(tmp_path, [], "settings")
    assert own != cells.unfinished_in(tmp_path, [Path(__file__)], "settings")
    assert own != cells.unfinished_in(tmp_path, [], "others")
    store = cells.Store(tmp_path / "cells", [], "", own)
    cell = cells.Cell("1:4", "a/b", "", 0.1, 0)
    state = cells.state_of(own, cell)
    cells.keep_state(state, "settings", cell, {"done": 3})
    assert cells.kept_state(state, "settings", cell, "cpu") == {"done": 3}
    assert cells.kept_state(state, "others", cell, "cpu") == {}
    write = cells.write_whole
    monkeypatch.setattr(cells, "write_whole", lambda *rest: (state.stat(), write(*rest)))
    store.write(cell, {"score": 1.0})
    assert not state.exists()


def test_estimate_is_the_t_interval():
    values = [3.0, 1.0, 4.0, 1.5]
    wide = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 7)
    wanted = (np.mean(values), stats.sem(values), wide.low, wide.high)
    assert intervals.estimate(values, 7)[:4] == pytest.approx(wanted)
    ours, theirs = [1.0, 2.0, 4.0], [0.0, 2.5, 1.0]
    both = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert intervals.paired(ours, theirs)[2:4] == pytest.approx((both.low, both.high))
    assert all(math.isnan(x) for x in intervals.estimate([1.0, math.nan])[:4])
    up, down = intervals.estimate([1.0, 1.1, 1.2]), intervals.estimate([-1.0, -2.0, -3.0, -2.0])
    assert intervals.all_above([up, down, None]) == "does not hold"
    assert intervals.all_above([up] * 7 + [down]) == "inconclusive"  # by chance, of so many
    assert tables.said("x", {"a": up}, lower_is_better=False) == ["**x** — better: a.", ""]
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        intervals.estimate([1.0])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        intervals.estimate(values, 0)


def test_the_time_that_is_left_is_of_what_this_run_did():
    shown = progress.Progress(10, "all", "runs", done=2)
    shown.begun -= 60
    shown.done += 2
    assert shown.line() == "all: 4 of 10 runs after 1 min, about 3 min left"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_the_last(first: int) -> None:
    """What it comes into is finished, and so is what follows it; a late one ends all at once."""
    written = []
    with signals.terminable():
        try:
            with signals.unbroken():
                signal.raise_signal(first)
                written.append("result")
        except KeyboardInterrupt as stop:
            for number in (signal.SIGINT, signal.SIGTERM):
                with signals.unbroken():
                    signal.raise_signal(number)
                signal.raise_signal(number)
            written.append(type(stop))
    assert written == ["result", {2: KeyboardInterrupt, 15: signals.Terminated}[first]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @signals.terminable()
    def cleared():
        type("", (), {"__del__": lambda _: signal.raise_signal(first)})()  # Python drops that
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        cleared()
    late = "import signal as s; from common import signals as t; t.GRACE = -1\ntry:\n with "
    late += f"t.terminable(), t.unbroken(): [s.raise_signal({first}) for _ in '{{}}']; print(3)"
    late += "\nexcept KeyboardInterrupt: print(4)"
    for count, status, said in (("1", 0, "3\n4\n"), ("12", 128 + first, "")):
        ended = python("-c", late.format(count), check=False)
        assert (ended.returncode, ended.stdout) == (status, said)
