"""An executor of processes of this machine, each with one thread: on small tensors several threads
wait for one another.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm

from . import sources
from .jobs import Died, at_work
from .signals import unbroken

TRIES = 3
"""Processes in which a job that ends them is begun."""
_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ALONE = {
    **dict.fromkeys((*_NAMES, "TORCHINDUCTOR_COMPILE_THREADS"), "1"),
    # else glibc hands each block above 32 MB back, which takes half of the time of a thousand lanes
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}
"""What a process finds in its environment."""


class Processes(ThreadPoolExecutor):
    """Each of its threads has a pool of one process, so that one that is ended takes no other's job
    along. Its own is begun again in a new process, `TRIES` times in all.
    """

    LOST, why = Died, str

    def __init__(self, workers: int, hear: Callable[[Any], object]) -> None:
        """`hear` gets what jobs say, in one of the threads."""
        super().__init__(workers)
        self.hear, self.own, self.lock = hear, threading.local(), threading.Lock()
        self.every, self.over = list[tuple[ProcessPoolExecutor, Any]](), False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._apart, fn, *args)

    def tick(self) -> None:
        """Nothing is to be looked at."""

    def _apart(self, *call: Any) -> Any:
        """In a thread: the result of a call in its process. Raises Died."""
        own, status, content = self.own, 0, pickle.dumps(call)
        for _ in range(TRIES):
            if not hasattr(own, "pool"):
                own.pool, own.process, own.said = self._started()
            with suppress(BrokenProcessPool):
                future = own.pool.submit(_perform, content)
                with suppress(EOFError, OSError):  # it is gone, as the future says
                    while (what := own.said.recv()) is not None:
                        self.hear(what)
                return pickle.loads(future.result())
            own.process.kill()
            own.pool.shutdown()  # of two that wait for a process, one would not learn its status
            status = own.process.exitcode
            del own.pool
        how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
        raise Died(f"its process ended {how}, killed for memory perhaps, {TRIES} times")

    def _started(self) -> tuple[ProcessPoolExecutor, Any, Any]:
        """A new pool, its process, and what this says. Raises CancelledError after the end."""
        with self.lock:
            if self.over:
                raise CancelledError
            context = multiprocessing.get_context("spawn")
            said, link = context.Pipe(duplex=False)
            new = ProcessPoolExecutor(1, context, _begin, (link, sources.KEYED))
            if hasattr(signal, "pthread_sigmask"):  # a process that imports hears no Ctrl-C either
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            with patch.dict(os.environ, ALONE):
                new.submit(os.getpid)
            link.close()
            [process] = new._processes.values()
            self.every.append((new, process))
            return new, process, said

    def __exit__(self, *error: object) -> None:
        """What is at work is ended, and lost."""
        with unbroken(), self.lock:
            self.over = True
            for _, process in self.every:
                process.kill()
        self.shutdown(cancel_futures=True)
        for each, _ in self.every:
            each.shutdown()


def _ends_with_parent() -> None:
    """Each process that is forked here ends soon after its parent. Else it would hold open the
    pipes of a parent that is killed, by whose ends its death is seen.
    """
    parent = 0

    def before() -> None:  # asked later, it could be dead and another in its place
        nonlocal parent
        parent = os.getpid()

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    def after() -> None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()

    os.register_at_fork(before=before, after_in_child=after)


def _begin(link: Any, digests: dict[str, str]) -> None:
    """How a process begins. Signals are its parent's matter, without whom it has no life."""

    def follow(parent: Any) -> None:
        parent.join()
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=follow, args=(parent,), daemon=True).start()
    if hasattr(os, "register_at_fork"):
        _ends_with_parent()
    torch.set_num_threads(1)
    # else a semaphore of the system, whose loss Python would report when this process is killed
    tqdm.set_lock(threading.RLock())
    sources.unlike(digests)
    at_work.send, at_work.digests = link.send, digests


def _perform(content: bytes) -> bytes:
    """A result, pickled, as is its call: what cannot be read would break the pool, or leave the
    other end to wait. So would an error.
    """
    try:
        call, *args = pickle.loads(content)
        return pickle.dumps(call(*args))
    except BaseException as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(traceback.format_exc()) from None
        raise
    finally:
        at_work.send(None)
