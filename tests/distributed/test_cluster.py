"""Studies on the workers of a Dask scheduler: the numbers of one process, and what goes wrong."""

import asyncio
import errno
import json
import os
import signal
import threading
import time

import pytest
import torch

from common.arguments import workers
from common.files import DataError
from common.jobs import say
from common.pool import perform_all
from paper_repro.__main__ import main
from tests.support import ROOT
from tests.support.reproductions import left_in

dask, distributed, cluster = map(pytest.importorskip, ("dask", "distributed", "common.cluster"))


def square(job):
    return (torch.arange(4.0) * job[0]).square().tolist()


def slow(job):
    time.sleep(1.0)
    return square(job)


def seeded(job):
    say("a word")
    torch.manual_seed(job[0])
    return [torch.randn(2000).sum().item() for _ in range(50)]


def dies(job):
    if job == [3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def lacks(job):
    raise (DataError if job[0] else OSError)("no folder mnist")


JOBS = [[k] for k in range(6)]  # no keys of a dict


def started(count, threads=1, failures=1):
    """A scheduler on this machine, and `count` workers, each a process."""
    dask.config.set({"distributed.scheduler.allowed-failures": failures})
    return distributed.LocalCluster("", count, threads, dashboard_address=":0")


@pytest.fixture(scope="module")
def two():
    with started(2) as cluster:
        yield cluster.scheduler_address


def run(address, perform, jobs=JOBS, hear=lambda: None, **more):
    """What is heard, by the job's number."""
    found = {}

    def heard(job, result):
        assert job[0] not in found or found[job[0]] == "a word"
        found[job[0]] = result
        hear()

    perform_all(perform, jobs, workers(address), heard, **more)
    return found


def test_a_job_that_kills_its_workers_is_named_after_all_others(monkeypatch):
    """It keeps its number where it is tried again: no words of others are taken for its own."""
    died, given, submit = [], [], cluster.Scheduler.submit
    watched = lambda self, *call: given.append(call[2:]) or submit(self, *call)  # noqa: E731
    monkeypatch.setattr(cluster.Scheduler, "submit", watched)
    with started(3, failures=0) as many:  # it ends two, and Dask does not always start them again
        found = run(many.scheduler_address, dies, died=lambda *both: died.append(both))
    assert found == {job[0]: square(job) for job in JOBS if job != [3]}
    assert [(job, str(error)[:18]) for job, error in died] == [([3], "it ended 1 worker,")]
    assert len(given) > len(JOBS)
    assert all(JOBS[number] == job for number, job in given)


def test_workers_may_come_late_and_have_threads():
    with started(0, threads=3) as late:
        threading.Timer(1.0, late.scale, [1]).start()
        assert run(late.scheduler_address, seeded) == {job[0]: seeded(job) for job in JOBS}


def test_what_goes_wrong_is_said_and_what_came_is_kept(two, monkeypatch):
    for jobs in (JOBS[:1], JOBS[1:]):
        with pytest.raises(DataError, match=r"on the worker tcp://.*: no folder mnist"):
            run(two, lacks, jobs)
    kept = []

    def full():
        if len(kept) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(0)

    with pytest.raises(OSError, match="No space"):
        run(two, square, hear=full)
    assert len(kept) == 2
    other = rf"sources {cluster.sources.digest()[:12]}, here .* 0{{12}}; start"
    for check in (cluster._expect_alike, lambda *_: None):  # or of one that comes later
        with monkeypatch.context() as patch:
            patch.setattr(cluster.sources, "digest", lambda: "0" * 64)
            patch.setattr(cluster, "_expect_alike", check)
            with pytest.raises(DataError, match=other):
                run(two, square)
    monkeypatch.setattr(cluster.sources, "KEYED", {str(ROOT / "common" / "pool.py"): "other"})
    with pytest.raises(DataError, match=r"has another .*common/pool.py, here"):
        run(two, square)


def test_reproductions_find_what_one_process_finds(two, tmp_path, capsys):
    call = ["--quick", "--only", "mgda.counterexample", "--out"]
    (tmp_path / "s.json").write_text(json.dumps({"address": two}))
    for out, where in (("1", "1"), ("t", str(tmp_path / "s.json"))):
        assert main([*call, str(tmp_path / out), "--scheduler", where]) == 0
    assert "workers may take twice the time" in capsys.readouterr().out
    assert left_in(tmp_path / "1") == left_in(tmp_path / "t")


def test_a_scheduler_that_is_lost_or_was_never_there(monkeypatch):
    kept, lost = [], started(1)
    address = lost.scheduler_address

    def heard():
        kept.append(0)
        lost.close()

    with pytest.raises(DataError, match=f"{address} is gone: what is finished is kept"):
        run(address, slow, hear=heard)
    assert kept
    with pytest.raises(DataError, match=f"nobody answers at {address}"):
        run(address, square)
    monkeypatch.setattr(cluster, "connect", lambda *_, **_more: asyncio.sleep(60))
    monkeypatch.setattr(cluster, "GREETING", 0.1)
    with pytest.raises(DataError, match=f"at {address}: .* no scheduler, or busy"):
        run(address, square)
