"""A grid by many workers, in shards and killed at any moment: the serial answers, bit for bit, and
nothing lost.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

import mtlfunc as mf
from mtlfunc.core.files import InUse, hold_lock
from mtlfunc.studies import Unfinished, grid
from tests.support import ROOT
from tests.support.grids import AXES, weights


def raises(seed, rule, scale):
    if rule == "cagrad":
        raise ZeroDivisionError(f"for {rule}")
    return weights(seed, rule, scale)


def dies(seed, rule, scale):
    if rule == "cagrad":
        os.kill(os.getpid(), signal.SIGKILL)
    return weights(seed, rule, scale)


ONE_PROCESSOR = pytest.mark.skipif(
    "MTLFUNC_NUDGE" in os.environ, reason="a session's roundings do not reach other processes"
)


@pytest.fixture(scope="module")
def whole():
    return grid(weights, AXES, points_at_once=4)


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        yield pool


class Later:
    """A job that is no future, as submitit's: asked whether it is done."""

    def __init__(self, future):
        self.done, self.result, self.cancel = future.done, future.result, future.cancel


class Submits:
    """What has a submit() and no more."""

    def __init__(self, pool):
        self.pool = pool

    def submit(self, *job):
        return Later(self.pool.submit(*job))


def same(found, whole):
    """Bit for bit, dtypes included."""
    assert found.identical(whole)
    assert {name: x.dtype for name, x in found.items()} == {n: x.dtype for n, x in whole.items()}


# --- executors ----------------------------------------------------------------------------------


@ONE_PROCESSOR
def test_processes_give_the_serial_answers(pool, whole, tmp_path, capsys):
    same(grid(weights, AXES, points_at_once=4, executor=pool), whole)
    assert "workers: " in capsys.readouterr().err
    same(grid(weights, AXES, points_at_once=4, executor=pool, path=tmp_path), whole)
    assert len(list(tmp_path.glob("points-*"))) == 10
    same(grid(raises, AXES, path=tmp_path), whole)  # nothing is left to evaluate


def test_processes_take_the_default_dtype(pool):
    torch.set_default_dtype(torch.float64)
    try:
        found = grid(weights, AXES, points_at_once=9, executor=pool)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found["default"].dtype == np.float64


@pytest.mark.parametrize("kind", [lambda pool: pool, Submits])
def test_threads_and_what_submits_give_the_serial_answers(kind, whole, tmp_path):
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(3) as pool:
        same(grid(weights, AXES, points_at_once=4, executor=kind(pool), path=tmp_path), whole)
        found = grid(lambda k: k + 1, {"k": torch.arange(3)}, points_at_once=1, executor=kind(pool))
    assert found["value"].values.tolist() == [1, 2, 3]
    assert torch.get_num_threads() == threads


def test_an_error_names_its_points_and_keeps_the_rest(pool, tmp_path):
    with pytest.raises(ZeroDivisionError, match="for cagrad") as caught:
        grid(raises, AXES, points_at_once=3, executor=pool, path=tmp_path)
    (note,) = (x for x in caught.value.__notes__ if x.startswith("grid: at "))
    assert "rule=cagrad" in note
    with pytest.raises(ZeroDivisionError):
        grid(raises, AXES, points_at_once=3, executor=pool, path=tmp_path)
    kept = {int(k) for p in tmp_path.glob("points-*") for k in np.load(p)["points"]}
    assert kept == {k for k in range(36) if k // 3 % 2 == 0}  # all of the other rule


RULES = {"scale": torch.tensor([0.5, 2.0]), "rule": {"mgda": mf.mgda(), "cagrad": mf.cagrad(0.5)}}


def weighed(scale, rule):
    return mf.weights(rule, torch.tensor([[1.0, -0.2], [-0.2, 3.0]]) * scale)


def test_rules_are_sent_to_workers(pool):
    there = grid(weighed, RULES, points_at_once=1, executor=pool)
    assert there.equals(grid(weighed, RULES, points_at_once=1))


def test_what_cannot_be_pickled_is_explained(pool):
    cure = "write f at the top level of a module, not as a lambda .* make what cannot be sent"
    with pytest.raises(TypeError, match=cure):
        grid(lambda k: k, {"k": torch.arange(2)}, points_at_once=1, executor=pool)
    own = RULES | {"rule": {"own": mf.stateless(lambda g: g[0])}}
    with pytest.raises(TypeError, match=cure):
        grid(weighed, own, points_at_once=1, executor=pool)
    with pytest.raises(TypeError, match=r"executor: expected .*Executor.* str"):
        grid(weights, AXES, executor="processes")


class Quotes:
    """Raises a job's error as Ray and submitit do: their own, which quotes the worker's."""

    def submit(self, do, *arguments):
        future = Future()
        try:
            future.set_result(do(*arguments))
        except Exception:
            future.set_exception(RuntimeError(traceback.format_exc()))
        return future


def test_an_error_that_quotes_pickle_is_not_one_of_sending():
    with pytest.raises(RuntimeError, match=r"pickle.loads(.|\n)*ZeroDivisionError: for cagrad"):
        grid(raises, AXES, points_at_once=3, executor=Quotes())


ORPHANS = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tests.support.grids import number_of
from mtlfunc.studies import grid
import torch
if sys.argv[1] == "loky":
    from joblib.externals import loky
    pool = loky.ProcessPoolExecutor(2)
else:
    pool = ProcessPoolExecutor(2, get_context(sys.argv[1]))
with pool:
    found = grid(number_of, {"k": torch.arange(8)}, points_at_once=1, executor=pool)
    print(*set(found["value"].values.tolist()), flush=True)
    time.sleep(60)
"""


def runs(process):
    """Whether a process has memory; one that ended and was not waited for has none."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("kind", ["spawn", "fork", "forkserver", "loky"])
def test_workers_end_with_a_parent_that_was_killed(kind, capfd):
    command = [sys.executable, "-c", ORPHANS, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        workers = [int(x) for x in parent.stdout.readline().split()]
        parent.kill()
    assert workers
    until(lambda: not any(map(runs, workers)))
    assert "Traceback" not in capfd.readouterr().err


@ONE_PROCESSOR
def test_a_dead_worker_is_named_and_the_rest_kept(whole, tmp_path):
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(BrokenExecutor, match=r"a worker died with \d+ of 36 points done") as caught,
    ):
        grid(dies, AXES, points_at_once=6, executor=pool, path=tmp_path)
    text = str(caught.value)
    assert "Not evaluated: at (seed=0, rule=cagrad, scale=0.1)" in text
    assert "the same call goes on from there" in text
    found = caught.value.dataset  # pyright: ignore[reportAttributeAccessIssue]
    done = ~np.isnan(found["weights"].values).any(-1)
    assert not done[:, 1].any()
    np.testing.assert_array_equal(found["weights"].values[done], whole["weights"].values[done])
    again = grid(weights, AXES, points_at_once=6, path=tmp_path)
    same(again, grid(weights, AXES, points_at_once=6))


def test_one_chunk_for_many_workers_warns(pool):
    with pytest.warns(UserWarning, match="all 6 points are one chunk.*pass points_at_once="):
        grid(abs_of, {"k": torch.arange(6)}, executor=pool)


def abs_of(k):
    return k.abs()


class Interrupted:
    """Evaluates two jobs; then Ctrl-C comes."""

    def __init__(self):
        self.jobs = []

    def submit(self, do, *arguments):
        future = Future()
        self.jobs.append(future)
        if len(self.jobs) > 2:
            raise KeyboardInterrupt
        future.set_result(do(*arguments))
        return future


def test_interruption_keeps_what_the_workers_have_done(whole, tmp_path):
    executor = Interrupted()
    with pytest.raises(Unfinished, match=r"after 8 of 36 points.*same call goes on") as caught:
        grid(weights, AXES, points_at_once=4, executor=executor, path=tmp_path)
    assert int((~np.isnan(caught.value.dataset["default"])).sum()) == 8
    assert len(list(tmp_path.glob("points-*"))) == 2
    same(grid(weights, AXES, points_at_once=4, path=tmp_path), whole)


# --- shards -------------------------------------------------------------------------------------


def test_shards_make_the_whole(whole, tmp_path):
    first = grid(weights, AXES, points_at_once=4, path=tmp_path, shard=(0, 2))
    done = ~np.isnan(first["default"].values)
    assert done.sum() == 18  # chunks of 4, 4, 4, 4 and 2 points for each rule; every second one
    assert (first["weights"].values[done] == whole["weights"].values[done]).all()
    same(grid(weights, AXES, points_at_once=4, path=tmp_path, shard=(1, 2)), whole)
    same(grid(raises, AXES, path=tmp_path), whole)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_shards_of_other_cuts_lose_nothing(whole, tmp_path):
    """Calls that do not agree on n or points_at_once do some points twice, and none is lost."""
    grid(weights, AXES, points_at_once=5, path=tmp_path, shard=(1, 3))
    grid(weights, AXES, points_at_once=4, path=tmp_path, shard=(0, 2))
    found = grid(weights, AXES, points_at_once=1, path=tmp_path)
    np.testing.assert_allclose(found["weights"], whole["weights"], rtol=1e-12)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((2, 2), r"expected \(i, n\) with 0 <= i < n"),
        ((-1, 2), r"expected \(i, n\)"),
        ((0, 5), r"4 chunk\(s\) cannot be shared by 5; pass a smaller points_at_once"),
    ],
)
def test_shards_that_are_none_are_refused(shard, message, tmp_path):
    with pytest.raises(ValueError, match=f"shard: {message}"):
        grid(weights, AXES, points_at_once=9, path=tmp_path, shard=shard)
    with pytest.raises(ValueError, match="shard: needs a path"):
        grid(weights, AXES, shard=(0, 1))


# --- one folder, several processes --------------------------------------------------------------

STUDY = """
import os, sys, time
from tests.support.grids import AXES, weights
from mtlfunc.studies import grid
def slow(**point):
    while os.path.exists(sys.argv[1] + "-hold"):
        time.sleep(0.01)
    time.sleep(0.05)
    return weights(**point)
print("begun", flush=True)
grid(slow, AXES, points_at_once=1, path=sys.argv[1], shard=eval(sys.argv[2]))
"""


def study(folder, shard=None):
    command = [sys.executable, "-c", STUDY, str(folder), str(shard)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@ONE_PROCESSOR
def test_a_study_killed_at_any_moment_resumes(tmp_path):
    expected = grid(weights, AXES, points_at_once=1)
    with study(tmp_path) as process:
        until((tmp_path / "axes.json").exists)
        with pytest.raises(RuntimeError, match=rf"in use by .*process {process.pid} on .*shard="):
            grid(weights, AXES, points_at_once=1, path=tmp_path)
        with pytest.raises(RuntimeError, match=rf"process {process.pid} on "):
            grid(weights, AXES, points_at_once=1, path=tmp_path, shard=(0, 2))
        time.sleep(random.uniform(0, 1))
        process.kill()
    assert (tmp_path / ".lock-0-of-1").exists()  # and stands in nobody's way
    count = len(list(tmp_path.glob("points-*")))
    assert count < 36
    same(grid(weights, AXES, points_at_once=1, path=tmp_path), expected)
    assert not list(tmp_path.glob(".lock*"))


@ONE_PROCESSOR
def test_shards_side_by_side_share_a_folder(tmp_path):
    hold = tmp_path.with_name(f"{tmp_path.name}-hold")
    hold.touch()  # the other one waits at its first point
    with study(tmp_path, (0, 2)) as other:
        until((tmp_path / ".lock-0-of-2").exists)
        with pytest.raises(RuntimeError, match=f"process {other.pid}"):
            grid(weights, AXES, points_at_once=1, path=tmp_path, shard=(0, 2))
        with pytest.raises(RuntimeError, match=f"process {other.pid}"):
            grid(weights, AXES, points_at_once=1, path=tmp_path)
        hold.unlink()
        grid(weights, AXES, points_at_once=1, path=tmp_path, shard=(1, 2))
        assert other.wait() == 0
    same(grid(raises, AXES, path=tmp_path), grid(weights, AXES, points_at_once=1))


def test_a_folder_that_cannot_be_written_is_read_or_refused(tmp_path, monkeypatch):
    whole = grid(weights, AXES, points_at_once=9, path=tmp_path)
    monkeypatch.setattr("mtlfunc.studies._points.os.access", lambda path, mode: False)
    same(grid(raises, AXES, path=tmp_path), whole)
    next(iter(tmp_path.glob("points-*"))).unlink()
    with pytest.raises(ValueError, match=r"path: .* lacks 9 of 36 points and cannot be written"):
        grid(raises, AXES, path=tmp_path)


# --- locks --------------------------------------------------------------------------------------


def refused(lock):
    with pytest.raises(InUse) as caught, hold_lock(lock):
        pass
    return caught.value


def test_a_lock_names_its_process_and_a_dead_one_is_nobodys(tmp_path):
    lock, here = tmp_path / "lock", os.uname().nodename
    with hold_lock(lock):
        assert lock.read_text() == f"{os.getpid()}\n{here}\n"
        found = refused(lock)
        assert (found.holder, found.cure) == (f"process {os.getpid()} on {here}", "")
    assert not lock.exists()
    for stale in (f"{os.getpid()}\n{here}\n", "1\nanother\n", ""):  # the kernel knows better
        lock.write_text(stale)
        with hold_lock(lock):
            assert refused(lock).holder == f"process {os.getpid()} on {here}"


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_has_the_file(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr("fcntl.flock", missing)
    lock = tmp_path / "lock"
    with hold_lock(lock):
        assert refused(lock).holder == f"process {os.getpid()} on {os.uname().nodename}"
    assert not lock.exists()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    lock.write_text(f"{gone.pid}\n{os.uname().nodename}\n")
    with hold_lock(lock):
        pass
    lock.write_text("1\nanother\n")
    assert refused(lock).cure == f"; if it no longer runs, delete {lock}"


def test_a_forked_child_keeps_no_lock(tmp_path):
    with hold_lock(tmp_path / "lock"):
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        with hold_lock(tmp_path / "lock"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
