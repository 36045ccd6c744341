"""Many calls of one function, in this process or side by side in several."""

import ctypes
import errno
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from tqdm import tqdm

from common import sources

Job = TypeVar("Job")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says where nothing more can be written."""
RETURNED = 30.0
"""Seconds between two moments at which a process gives back what memory it does not use."""


def cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whoever handles Ctrl-C also handles it."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, as Ctrl-C raises KeyboardInterrupt; the first of them
    alone, so that another one does not end what writes down the results.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it receives signals
        return
    came = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def again(lost: Any) -> None:
        # Python drops what is raised while it clears an object away: so the signal comes again,
        # and from another thread, as here it would also be dropped.
        nonlocal came
        if isinstance(lost.exc_value, KeyboardInterrupt):
            came, ended = False, isinstance(lost.exc_value, Terminated)
            number = signal.SIGTERM if ended else signal.SIGINT
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        else:
            hook(lost)

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as Ctrl-C behind a shell's `&`
    }
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come inside come at its end: what is finished is written down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


class Died(RuntimeError):
    """A worker was ended, for memory perhaps; the text says how."""

    def __init__(self, how: int | str | None) -> None:
        """`how`: its process's status, or in words."""
        if not isinstance(how, str):
            how = f"by signal {-how}" if how and how < 0 else f"with status {how}"
            how = f"its process ended {how}, killed for memory perhaps"
        super().__init__(how)


def _raise(job: Any, error: Died) -> None:
    raise error


_job = SimpleNamespace(send=lambda kind, what: None)
"""Of the job at work in this process: what takes the things that it says."""


def say(what: Any) -> None:
    """Inside of a job: let the caller of `perform_all` hear this."""
    _job.send("said", what)


def waits(now: bool) -> None:
    """Inside of a job: whether it has nothing to do until another one is done; a further one is at
    work meanwhile.
    """
    _job.send("waits", now)


def perform_all(
    perform: Callable[[Job], Any],
    jobs: Sequence[Job],
    workers: int | str,
    hear: Callable[[Job, Any], object],
    *,
    died: Callable[[Job, Died], object] = _raise,
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
            Dask scheduler, whose workers say nothing but results.
        hear: gets a job and what it says, in the end its result; Ctrl-C waits for it.
        died: gets a job whose worker was ended.
        tick: called twice a second while workers are at work.
    """

    @unbroken()
    def heard(job: Job, what: Any) -> None:
        sources.check()
        hear(job, what)

    if isinstance(workers, str):
        from .cluster import elsewhere  # an extra

        elsewhere(perform, jobs, workers, heard, lambda job, how: died(job, Died(f"{job}: {how}")))
        return
    if workers > 1 and len(jobs) > 1:
        _side_by_side(perform, list(jobs), workers, hear, died, tick)
        return
    keep_memory()
    before = _job.send

    try:
        with threads(1):
            for job in jobs:
                _job.send = lambda kind, what, job=job: kind == "said" and heard(job, what)
                heard(job, perform(job))
    finally:
        _job.send = before


def _side_by_side(
    perform: Callable[[Job], Any],
    left: list[Job],
    workers: int,
    hear: Callable[[Job, Any], object],
    died: Callable[[Job, Died], object],
    tick: Callable[[], object],
) -> None:
    """As `perform_all` says, in processes."""
    others = set(multiprocessing.active_children())
    work: dict[Any, tuple[Any, Job]] = {}  # by the link to a process: that, and its job
    waiting: set[Any] = set()  # of these

    def give(link: Any, process: Any) -> None:
        work[link] = process, left.pop(0)
        with suppress(OSError):  # of one that is gone, which is seen next
            link.send((perform, work[link][1]))

    try:
        while left or work:
            while left and len(work) - len(waiting) < workers:
                give(*_started())
            ready: list[Any] = wait(list(work), timeout=0.5)
            for link in ready:
                with unbroken():
                    process, job = work[link]
                    kind, what, edited = "died", cast(Any, None), ""
                    with suppress(EOFError, OSError):
                        kind, what, edited = link.recv()
                    sources.check(edited)
                    (waiting.add if kind == "waits" and what else waiting.discard)(link)
                    if kind in ("said", "done"):
                        hear(job, what)
                    elif kind == "raised":
                        raise what
                    elif kind == "died":
                        process.join()
                        died(job, Died(process.exitcode))
                    if kind == "done" and left and len(work) - len(waiting) <= workers:
                        give(link, process)
                    elif kind in ("done", "died"):
                        del work[link]
                        link.close()
            tick()
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        for link, (process, job) in work.items():
            process.join()
            with suppress(EOFError, OSError):  # nor of a full disk, which is known
                while link.poll():
                    kind, what, edited = link.recv()
                    if kind in ("said", "done") and not edited:
                        hear(job, what)


def _started() -> tuple[Any, Any]:
    """The link to a new process, and that. It has one thread, and so have its compilers; it does
    not hear Ctrl-C, not even while it imports.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    ours = dict.fromkeys((*names, "TORCHINDUCTOR_COMPILE_THREADS"), "1")
    before = {name: os.environ[name] for name in ours if name in os.environ}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ |= ours
    try:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, sources.KEYED), daemon=True)
        process.start()
        there.close()
        return here, process
    finally:
        for name in ours:
            del os.environ[name]
        os.environ |= before
        if main:
            signal.signal(signal.SIGINT, handler)


def _work(link: Any, digests: dict[str, str]) -> None:
    """What a worker does. Signals are its parent's matter, without whom it has no life. With each
    word goes the first source that it has not imported as the digests of the parent's keys say.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None

    def follow() -> None:
        while os.getppid() == number and parent.is_alive():  # Windows keeps the number
            parent.join(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    keep_memory()
    torch.set_num_threads(1)
    # else a semaphore of the system, whose loss Python would report when this process is killed
    tqdm.set_lock(threading.RLock())
    sources.unlike(digests)
    _job.send = lambda kind, what: link.send((kind, what, sources.unlike(digests)))
    with suppress(EOFError):
        while True:
            message = link.recv_bytes()
            try:
                perform, job = pickle.loads(message)  # which imports what they are of
                last = "done", perform(job)
            except Exception as error:
                error.add_note(traceback.format_exc())
                last = "raised", error
            _job.send(*last)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This number of threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache  # once a process
def keep_memory() -> None:
    """Let this process keep the memory that its tensors free, where the C library is glibc.

    By default it hands blocks of more than some MB back to the system, which clears and maps them
    again at the next operation: half of the time of a program of a thousand lanes. Now what is free
    goes back every half minute alone. (Never would not do: a small tensor that stays may lie where
    a large one was, which then finds no room again, and so the process grows with every step.)
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, TypeError):  # another C library; Windows, where None is not a library
        return
    mmap_threshold, trim_threshold = -3, -1  # as malloc.h has them
    if not mallopt(mmap_threshold, 2**31 - 1):  # before 2.35
        mallopt(mmap_threshold, 2**25)
    mallopt(trim_threshold, -1)  # never

    def hand_back() -> None:
        while True:
            time.sleep(RETURNED)
            trim(0)

    threading.Thread(target=hand_back, daemon=True).start()
