"""Studies on the workers of a Dask scheduler: the numbers of one process, and what goes wrong."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from common import cluster
from common.arguments import workers
from common.files import DataError
from common.pool import Died, perform_all
from tests.support import ROOT

pytest.importorskip("distributed")
PORT = 18_700 + os.getpid() % 1_000
ADDRESS = f"tcp://127.0.0.1:{PORT}"


def square(job):
    return (torch.arange(4.0) * job).square().exp().tolist()


def slow(job):
    time.sleep(2.0)
    return square(job)


def dies(job):
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def lacks(job):
    raise DataError("no folder mnist")


def dask(*words: str, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **variables}, stdout=quiet, stderr=quiet
    )


def worker(**variables: str) -> subprocess.Popen:
    there = {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__WORKER__DAEMON": "False"} | variables
    return dask("worker", ADDRESS, "--nthreads", "1", **there)


@pytest.fixture(scope="module")
def two():
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}  # 3 by default
    processes = [dask("scheduler", "--host", "127.0.0.1", "--port", str(PORT), **once)]
    for _ in range(600):
        with socket.socket() as here:
            if here.connect_ex(("127.0.0.1", PORT)) == 0:
                break
        time.sleep(0.1)
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def run(perform, jobs, hear=lambda job, found: None, **more):
    found = {}

    def heard(job, result):
        found[job] = result
        hear(job, result)

    perform_all(perform, jobs, workers(ADDRESS), heard, **more)
    return found


def test_workers_may_come_late_and_the_numbers_are_those_of_one_process(two):
    threading.Timer(1.0, lambda: two.extend([worker(), worker()])).start()
    assert run(square, range(8)) == {job: square(job) for job in range(8)}


def test_a_job_that_kills_its_workers_is_named_after_all_others(two):
    died = []
    found = run(dies, range(6), died=lambda job, error: died.append((job, error)))
    assert found == {job: square(job) for job in range(6) if job != 3}
    assert [job for job, _ in died] == [3]
    assert isinstance(died[0][1], Died)
    assert "workers died" in str(died[0][1])


def test_what_a_worker_lacks_is_said(two):
    with pytest.raises(DataError, match=f"on a worker of {ADDRESS}: no folder mnist"):
        run(lacks, [1])


def test_a_full_disk_ends_it_and_keeps_what_was_heard(two):
    kept = []

    def full(job, result):
        if len(kept) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(job)

    with pytest.raises(OSError, match="No space"):
        run(square, range(8), full)
    assert len(kept) == 2


def test_another_checkout_is_refused(two, monkeypatch):
    monkeypatch.setattr(cluster, "about", lambda: "torch 1.0 and sources 0")
    with pytest.raises(DataError, match=r"here torch 1\.0 and sources 0; start it in a checkout"):
        run(square, [1])


def test_an_address_where_nobody_listens():
    with pytest.raises(DataError, match=r"nobody answers at tcp://127\.0\.0\.1:9"):
        perform_all(square, [1], "tcp://127.0.0.1:9", lambda job, found: None)


def test_a_scheduler_that_is_lost_keeps_what_was_heard(two):
    kept = []

    def heard(job, result):
        kept.append(job)
        two[0].kill()

    with pytest.raises(DataError, match=f"{ADDRESS} is gone: what is finished is kept"):
        run(slow, range(8), heard)
    assert kept
