"""A grid by many workers, and killed at any moment: the serial answers, and nothing lost."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import xarray

import mtlfunc as mf
from common.locks import InUse, hold_lock
from mtlfunc.studies import grid
from mtlfunc.studies._grid import Unfinished
from tests.support import ROOT
from tests.support.grids import AXES, weights
from tests.support.reproductions import until


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


@ONE_PROCESSOR
def test_processes_give_the_serial_answers(pool, whole, tmp_path):
    same(grid(weights, AXES, points_at_once=4, executor=pool), whole)
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
        axes = {"k": torch.arange(3), "f": {"next": lambda k: k + 1}}
        found = grid(lambda k, f: f(k), axes, points_at_once=1, executor=kind(pool))
        net = torch.nn.Linear(3, 3)
        run = lambda k: torch.func.functional_call(  # noqa: E731
            net, {n: k.sin() * p for n, p in net.named_parameters()}, (torch.ones(3),)
        )
        each = {"k": torch.arange(64.0)}
        serial = grid(run, each, points_at_once=1)
        same(grid(run, each, points_at_once=1, executor=kind(pool)), serial)
    assert found["value"].values.tolist() == [[1], [2], [3]]
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


@ONE_PROCESSOR
def test_what_finished_before_a_worker_died_is_kept(whole, tmp_path):
    with ProcessPoolExecutor(1, get_context("spawn")) as one, pytest.raises(BrokenExecutor) as died:
        grid(dies, AXES, points_at_once=6, executor=one, path=tmp_path)
    (note,) = died.value.__notes__
    assert note == "grid: a worker was killed, for memory perhaps, or cannot import f"
    again = grid(weights, AXES, points_at_once=6, path=tmp_path)
    same(again, grid(weights, AXES, points_at_once=6))


class Interrupted:
    """Evaluates two jobs; then Ctrl-C comes."""

    def __init__(self):
        self.jobs = []

    def submit(self, do, *arguments):
        future = Future()
        self.jobs.append(future)
        if len(self.jobs) > 2:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(do(*arguments))
        return future


def test_interruption_keeps_what_the_workers_have_done(whole, tmp_path):
    executor = Interrupted()
    with pytest.raises(Unfinished, match="after 8 of 36 points") as caught:
        grid(weights, AXES, points_at_once=4, executor=executor, path=tmp_path)
    assert int((~np.isnan(caught.value.dataset["default"])).sum()) == 8
    assert len(list(tmp_path.glob("points-*"))) == 2
    same(grid(weights, AXES, points_at_once=4, path=tmp_path), whole)


def test_jobs_of_an_array_make_the_whole(whole, tmp_path):
    """Each takes a slice of an axis and a folder of its own, as on the page of sweeps."""
    parts = [
        grid(weights, AXES | {"seed": AXES["seed"][i::2]}, path=tmp_path / str(i)) for i in range(2)
    ]
    found = xarray.concat(parts, "seed").sortby("seed").transpose(*whole.dims)
    np.testing.assert_allclose(found["weights"], whole["weights"], rtol=1e-12)


STUDY = """
import sys, time
from tests.support.grids import AXES, weights
from mtlfunc.studies import grid
def slow(**point):
    time.sleep(0.05)
    return weights(**point)
grid(slow, AXES, points_at_once=1, path=sys.argv[1])
"""


@ONE_PROCESSOR
def test_a_study_killed_at_any_moment_resumes(tmp_path):
    expected = grid(weights, AXES, points_at_once=1)
    command = [sys.executable, "-c", STUDY, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        until((tmp_path / "axes.json").exists)
        time.sleep(random.uniform(0, 1))
        process.kill()
    same(grid(weights, AXES, points_at_once=1, path=tmp_path), expected)


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
