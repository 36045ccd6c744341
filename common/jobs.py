"""A job, in the process that it runs in: what it says, and what it was computed by."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

from . import sources
from .machine import threads

Job = TypeVar("Job")
at_work = SimpleNamespace(say=lambda what: None, send=lambda said: None, digests={})
"""Of the job at work in this process: `say`; how that gets to the process that collects; the
digests of the sources that results are kept under there.
"""


class Died(RuntimeError):
    """Workers were ended, for memory perhaps; the text says how."""


def say(what: Any) -> None:
    """Inside of a job: let the caller of `pool.perform_all` hear this."""
    at_work.say(what)


def answer(perform: Callable[[Job], Any], number: int, job: Job) -> Any:
    """A job's result; what it says goes before it. Raises `sources.Edited`."""

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


def answer_here(
    perform: Callable[[Job], Any], jobs: Sequence[Job], heard: Callable[[int, Any], object]
) -> None:
    """All jobs, one by one in this process, which may be at work on one itself."""
    with threads(1), patch.multiple(at_work, send=lambda said: heard(*said), digests={}):
        for number, job in enumerate(jobs):
            heard(number, answer(perform, number, job))
