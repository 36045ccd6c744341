"""Many calls of one function, in this process or side by side on an executor."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from . import sources
from .files import DataError
from .jobs import Died, Job, answer, answer_here
from .processes import Processes
from .signals import unbroken


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
    `sources.Edited` is, and nothing heard, where a result is of other code than the keys here.

    Args:
        perform: from a job to its result; with several workers it and both ends are pickled.
        workers: how many processes, 1 for this one alone; or the address of a Dask scheduler.
        hear: gets a job and what it says, in the end its result; Ctrl-C waits for it.
        died: gets a job that ended several workers. Without it Died is raised after all others.
        tick: called twice a second while workers are at work.
    """
    events, left, lost = SimpleQueue[Any](), set[int](), dict[int, Died]()
    far = isinstance(workers, str)

    def heard(number: int, what: Any) -> None:
        with unbroken():
            sources.check()
            hear(jobs[number], what)

    def take(number: int, what: Any) -> None:
        if not isinstance(what, Future):
            if number in left:  # else words of a worker that was given up
                heard(number, what)
            return
        left.remove(number)
        if isinstance(error := what.exception(), executor.LOST):
            lost[number] = Died(executor.why(error))
            if died and not far:
                died(jobs[number], lost.pop(number))
        else:
            heard(number, what.result())

    def complete(some: Iterable[int]) -> None:
        for number in some:
            left.add(number)
            future = executor.submit(answer, perform, number, jobs[number])
            future.add_done_callback(lambda future, number=number: events.put((number, future)))
        while left:
            with unbroken(), suppress(Empty):  # or what comes from the queue may be lost
                take(*events.get(timeout=0.5))
            executor.tick()
            tick()

    if workers == 1 or not jobs or (len(jobs) < 2 and not far):
        return answer_here(perform, jobs, heard)
    if isinstance(workers, int):
        executor = Processes(workers, events.put)
    else:
        from .cluster import Scheduler  # an extra

        executor = Scheduler(workers, events.put)
    try:
        with executor:
            complete(range(len(jobs)))
            for number in [*lost] if far else ():
                del lost[number]  # who waited on a worker that was ended is also blamed: each alone
                complete([number])
    except BaseException:
        with suppress(Empty, OSError, DataError):  # a full disk or an edit is known
            for number, what in iter(events.get_nowait, None):  # until it is empty
                if not isinstance(what, Future) or not (what.cancelled() or what.exception()):
                    take(number, what)
        raise
    for number, error in lost.items():
        if died is None:
            raise Died("; ".join(f"{jobs[number]}: {error}" for number, error in lost.items()))
        died(jobs[number], error)
