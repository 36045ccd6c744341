"""Many calls of one function, in this process or side by side in several."""

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")

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


def perform_all(
    perform: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, as they are finished.

    What is at work when the caller stops (an exception, Ctrl-C, a generator that is closed) is
    ended at once and lost. Each process has one torch thread: the tensors are small, and threads
    that wait for one another cost more than they save.

    Args:
        perform: from a job to its result; with several workers it and both ends are pickled.
        jobs: what to do.
        workers: processes side by side; with 1 all is done in this one.

    Yields:
        pairs of a job and its result, in the order in which they are finished.
    """
    if workers == 1 or len(jobs) < 2:
        keep_memory()
        with threads(1):
            for job in jobs:
                yield job, perform(job)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(jobs)), context, prepare) as pool:
        finished = False
        try:
            pending = {pool.submit(perform, job): job for job in jobs}
            for done in as_completed(pending):
                yield pending[done], done.result()
            finished = True
        finally:
            if not finished:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This number of threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare() -> None:
    """In a new worker: one thread; Ctrl-C is the parent's matter, without whom it has no life."""
    keep_memory()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent(os.getpid())


@functools.cache
def follow_parent(process: int) -> None:
    """End this process within a second of the one that started it, even if that was killed.

    The workers of a process pool hold both ends of the pipes that they read, so nothing else tells
    them that the parent is gone.

    Args:
        process: `os.getpid()`, since a forked process has the parent's cache and not its threads.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None

    def follow() -> None:
        # a forked sibling may keep the pipe open that `join` waits for; Windows keeps the number;
        # loky's workers have no such pipe
        while os.getppid() == number and (parent.sentinel is None or parent.is_alive()):
            time.sleep(1.0) if parent.sentinel is None else parent.join(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
