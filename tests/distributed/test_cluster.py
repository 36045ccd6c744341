"""Studies on the workers of a Dask scheduler: the numbers of one process, and what goes wrong."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from common import cluster
from common.arguments import workers
from common.files import DataError
from common.pool import Died, perform_all
from tests.support import ROOT

pytest.importorskip("distributed")


def square(job):
    return (torch.arange(4.0) * job[0]).square().tolist()


def slow(job):
    time.sleep(1.0)
    return square(job)


def seeded(job):
    torch.manual_seed(job[0])
    return [torch.randn(2000).sum().item() for _ in range(50)]


def dies(job):
    if job == [3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def lacks(job):
    raise DataError("no folder mnist")


JOBS = [[k] for k in range(6)]  # which no dict can have as keys


@contextmanager
def started(count, threads="1"):
    """A scheduler's address, and what starts its workers; `count` of them are started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, every, none = f"tcp://127.0.0.1:{port}", [], subprocess.DEVNULL
    own = {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}

    def dask(*words):
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
        more = {"cwd": ROOT, "env": os.environ | own, "stdout": none, "stderr": none}
        every.append(subprocess.Popen(command, **more))  # pyright: ignore
        return every[-1]

    def worker():
        return dask("worker", address, "--nthreads", threads)

    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", str(port))
    try:
        while True:
            with socket.socket() as here:
                if not here.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        for _ in range(count):
            worker()
        yield address, worker, scheduler
    finally:
        for process in every:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def two():
    with started(2) as (address, *_):
        yield address


def run(address, perform, jobs=JOBS, hear=lambda: None, **more):
    """What is heard, by the job's number."""
    found = {}

    def heard(job, result):
        found[job[0]] = result
        hear()

    perform_all(perform, jobs, workers(address), heard, **more)
    return found


def test_a_job_that_kills_its_workers_is_named_after_all_others(two):
    died = []
    found = run(two, dies, died=lambda job, error: died.append((job, error)))
    assert found == {job[0]: square(job) for job in JOBS if job != [3]}
    [(job, error)] = died
    assert job == [3]
    assert isinstance(error, Died)
    assert "[3]: Attempted to run" in str(error)


def test_workers_may_come_late_and_have_threads():
    """The numbers are those of one process."""
    with started(0, threads="3") as (address, worker, _):
        threading.Timer(1.0, worker).start()
        assert run(address, seeded) == {job[0]: seeded(job) for job in JOBS}


def test_what_goes_wrong_is_said_and_what_came_is_kept(two, monkeypatch):
    with pytest.raises(DataError, match=f"on a worker of {two}: no folder mnist"):
        run(two, lacks)
    kept = []

    def full():
        if len(kept) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(0)

    with pytest.raises(OSError, match="No space"):
        run(two, square, hear=full)
    assert len(kept) == 2
    there = cluster.sources.digest()
    for where in ("at the start", "later"):
        with monkeypatch.context() as patch:
            patch.setattr(cluster.sources, "digest", lambda: "0" * 64)
            if where == "later":
                patch.setattr(cluster, "_expect_alike", lambda *_: None)
            with pytest.raises(
                DataError, match=rf"sources {there[:12]}, here .* {'0' * 12}; start"
            ):
                run(two, square)
    with monkeypatch.context() as patch:
        patch.setattr(cluster.sources, "KEYED", {str(ROOT / "common" / "pool.py"): "other"})
        with pytest.raises(DataError, match=r"has another .*common/pool.py, here"):
            run(two, square)


def test_a_scheduler_that_is_lost_or_was_never_there():
    with started(1) as (address, _, scheduler):
        kept = []

        def heard():
            kept.append(0)
            scheduler.kill()

        with pytest.raises(DataError, match=f"{address} is gone: what is finished is kept"):
            run(address, slow, hear=heard)
    assert kept
    with pytest.raises(DataError, match=f"nobody answers at {address}"):
        run(address, square)
