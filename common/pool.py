"""Many calls of one function, in this process or side by side on an executor."""

import errno
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

from . import sources
from .files import DataError
from .machine import threads
from .signals import unbroken

Job = TypeVar("Job")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says where nothing more can be written."""
at_work = SimpleNamespace(say=lambda what: None, send=lambda said: None, digests={})
"""Of the job at work in this process: `say`; how that gets to the process that collects; the
digests of the sources that results are kept under there.
"""


class Died(RuntimeError):
    """Workers were ended, for memory perhaps; the text says how."""


def say(what: Any) -> None:
    """Inside of a job: let the caller of `perform_all` hear this."""
    at_work.say(what)


def perform_all(
    perform: Callable[[Job], Any],
    jobs: Sequence[Job],
    workers: int | str,
    hear: Callable[[Job, Any], object],
    *,
    died: Callable[[Job, Died], object] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Every job. What is at work when something is raised, Ctrl-C say, is ended at once and lost.
    `sources.Edited` is, and nothing heard, where the code of a result is not that of the keys here.
    Each process has one torch thread: the tensors are small, and threads that wait for one another
    cost more than they save.

    Args:
        perform: from a job to its result; with several workers it and both ends are pickled.
        jobs: what to do.
        workers: processes side by side; with 1 all is done in this one. A text is the address of a
            Dask scheduler.
        hear: gets a job and what it says, in the end its result; Ctrl-C waits for it.
        died: gets a job that ended several workers. Without it Died is raised after all others.
        tick: called twice a second while workers are at work.
    """
    events, left, lost = SimpleQueue[Any](), dict[int, Job](), list[tuple[Job, Died]]()
    far = isinstance(workers, str)

    def heard(job: Job, what: Any) -> None:
        with unbroken():
            sources.check()
            hear(job, what)

    def take(number: int, what: Any) -> None:
        if number not in left:
            return  # words of a worker that was given up
        job = left[number]
        if isinstance(what, Future):
            del left[number]
            try:
                what = what.result()
            except executor.LOST as error:
                lost.append((job, Died(str(error))))
                if died and not far:
                    died(*lost.pop())
                return
        heard(job, what)

    def complete(some: Iterable[Job]) -> None:
        for number, job in enumerate(some):
            left[number] = job
            future = executor.submit(answer, perform, number, job)
            future.add_done_callback(lambda future, number=number: events.put((number, future)))
        while left:
            with unbroken(), suppress(Empty):  # or what comes from the queue may be lost
                take(*events.get(timeout=0.5))
            executor.tick()
            tick()

    if workers == 1 or not jobs or (len(jobs) < 2 and not far):
        here = {"send": lambda said: heard(jobs[said[0]], said[1]), "digests": dict[str, str]()}
        with threads(1), patch.multiple(at_work, **here):  # the caller may be a job, too
            for number, job in enumerate(jobs):
                heard(job, answer(perform, number, job))
        return
    executor = _executor(workers, events.put)
    try:
        with executor:
            complete(jobs)
            again, lost[:] = ([job for job, _ in lost], []) if far else ([], lost)
            for job in again:  # who waited on a worker that was ended is also blamed: each alone
                complete([job])
    except BaseException:
        with suppress(Empty, OSError, DataError):  # a full disk or an edit is known
            while True:
                number, what = events.get_nowait()
                if not isinstance(what, Future) or not (what.cancelled() or what.exception()):
                    take(number, what)
        raise
    for job, error in lost:
        if died is None:
            raise Died("; ".join(f"{job}: {error}" for job, error in lost))
        died(job, error)


def _executor(workers: int | str, hear: Callable[[Any], object]) -> Any:
    if isinstance(workers, int):
        from .processes import Processes

        return Processes(workers, hear)
    from .cluster import Scheduler  # an extra

    return Scheduler(workers, hear)


def everywhere(address: str, call: Callable[..., Any], *args: Any) -> list[Any]:
    """What a call returns on each worker of a Dask scheduler."""
    with _executor(address, print) as executor:
        return [*executor._client.run(call, *args).values()]


def answer(perform: Callable[[Job], Any], number: int, job: Job) -> Any:
    """On a worker: a job's result; what it says goes before it. Raises `sources.Edited`."""

    def check() -> None:
        sources.check(sources.unlike(at_work.digests))

    def tell(what: Any) -> None:
        check()
        at_work.send((number, what))

    check()
    before, at_work.say = at_work.say, tell
    try:
        return perform(job)
    finally:
        at_work.say = before
        check()
