"""An executor of the workers of a Dask scheduler, on whatever machines these are."""

import asyncio
import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

import torch
from distributed import Client, KilledWorker, get_worker
from distributed.cfexecutor import ClientExecutor
from distributed.comm import connect
from tqdm import tqdm

from . import sources
from .files import DataError
from .jobs import at_work

PATIENCE, GREETING = 3.0, 30.0
"""Seconds in which somebody has to listen, and in which a scheduler, which may be busy, answers."""
WORKERS = 60.0
"""Seconds in which its first worker has to come, in which all have to say what they are, and
between two lines while none is there.
"""
CHECKOUT = "start it in a checkout of this commit: PYTHONPATH=. dask"
START = f"{CHECKOUT} worker ADDRESS --nthreads 1"
TRIM = "MALLOC_TRIM_THRESHOLD_"
"""What Dask sets so low that memory goes back to the system, and comes again, at every step."""
_ONE = threading.Lock()
logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is said below


def about() -> str:
    """Torch, and a digest of this process's sources, wherever they stand."""
    return f"torch {torch.__version__.split('+')[0]} and sources {sources.digest()[:12]}"


def everywhere(address: str, call: Callable[..., Any], *args: Any) -> list[Any]:
    """What a call returns on each worker of a scheduler. Raises DataError as `Scheduler` does."""
    with Scheduler(address, print) as executor:
        return [*executor._client.run(call, *args).values()]


class Scheduler(ClientExecutor):
    """Jobs whose worker is lost go to another one, as often as the scheduler allows."""

    LOST = KilledWorker

    def __init__(self, address: str, hear: Callable[[Any], object]) -> None:
        """Raises DataError where no scheduler or no worker answers, and where one of them has other
        sources or another torch. `hear` gets what jobs say, in another thread.
        """
        try:
            asyncio.run(_reach(address))
            client = Client(address, timeout=PATIENCE)
        except (OSError, TimeoutError, TypeError, ValueError) as error:
            raise DataError(f"--scheduler: nobody answers at {address}: {error}") from error
        super().__init__(client, pure=False)
        self.address, self.topic, self.looked = address, str(uuid.uuid4()), time.monotonic()
        try:
            _expect_alike(client, address)
        except BaseException:
            client.close()
            raise
        client.subscribe_topic(self.topic, lambda event: hear(pickle.loads(event[1])))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        keyed = {sources.portable(path): digest for path, digest in sources.KEYED.items()}
        return super().submit(_perform, self.topic, about(), keyed, fn, *args)

    @staticmethod
    def why(error: Any) -> str:
        """What a job did to its workers."""
        count, last = error.allowed_failures + 1, error.last_worker.address
        return f"it ended {count} worker{'s' * (count > 1)}, the last was {last}"

    def tick(self) -> None:
        """Say now and then that no worker is there."""
        if time.monotonic() - self.looked > WORKERS:
            self.looked = time.monotonic()
            if not self._client.scheduler_info(n_workers=-1)["workers"]:
                tqdm.write(f"{self.address} has no worker; jobs wait for one")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Jobs at work are cancelled. Raises DataError where the scheduler is lost."""
        gone = self._client.status != "running" or isinstance(error, CancelledError)
        if not gone:
            self.shutdown(wait=False)
        self._client.close()
        if error and gone:
            raise DataError(
                f"--scheduler: {self.address} is gone: what is finished is kept, and the same "
                "command goes on from there with another one"
            ) from error


async def _reach(address: str) -> None:
    """Raises OSError where no scheduler answers in time; a `Client` bounds a part of its wait."""
    try:
        (await asyncio.wait_for(connect(address, timeout=PATIENCE), GREETING)).abort()
    except TimeoutError as error:
        raise OSError(f"what listens there is no scheduler, or busy for {GREETING:g} s") from error


def _facts() -> tuple[str, str | None]:
    """`about` of this process, and when Dask hands its memory back."""
    return about(), os.getenv(TRIM)


def _expect_alike(client: Client, address: str) -> None:
    """As `Scheduler` says."""
    try:
        client.wait_for_workers(1, timeout=WORKERS)
    except TimeoutError as error:
        raise DataError(f"--scheduler: {address} has no worker; {START}") from error
    there, every = _asked(client, address)
    told = [(f"the scheduler {address}", there, f"{CHECKOUT} scheduler")]
    told += [(f"the worker {name}", facts, START) for name, facts in every.items()]
    for who, facts, start in told:
        if isinstance(facts, Exception):
            lacks = isinstance(facts, ImportError)
            how = f"lacks {facts.name}" if lacks else f"raises {facts!r}"
        elif facts[0] != about():
            how = f"has {facts[0]}"
        else:
            continue
        raise DataError(f"{who} {how}, here is {about()}; {start}")
    if "65536" in [limit for _, limit in every.values()]:
        tqdm.write(f"{address}: workers may take twice the time; {TRIM} is in docs/cluster.md")


def _asked(client: Client, address: str) -> tuple[Any, dict[str, Any]]:
    """`_facts` of the scheduler and of its workers, by address, or the error that finding them
    raised there. Raises DataError where one does not answer.
    """
    answer = Future[tuple[Any, dict[str, Any]]]()

    def ask() -> None:
        try:
            every: Any = client.run(_facts, on_error="return")
            try:
                there: Any = client.run_on_scheduler(_facts)
            except ImportError as error:
                there = error
            answer.set_result((there, every))
        except Exception as error:  # as of a client that is closed
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(WORKERS)
    except TimeoutError as error:
        known = client.scheduler_info(n_workers=-1)["workers"]
        silent = min(known, key=lambda name: known[name]["last_seen"])
        raise DataError(f"--scheduler: the worker {silent} does not answer; stop it") from error
    except (OSError, CancelledError) as error:
        raise DataError(f"--scheduler: {address} is gone: {error}") from error


def _perform(
    topic: str, wanted: str, keyed: Mapping[str, str], call: Callable[..., Any], *args: Any
) -> Any:
    """On a worker: a call's result. `topic` is of what it says, `wanted` is `about` of the process
    that collects, `keyed` are the digests of its sources, as `sources.portable` names them.
    Raises DataError where the worker is another one than is wanted, or lacks data.
    """
    worker = get_worker()
    with _ONE:  # generators, threads of torch and `at_work` are the process's own
        try:
            if about() != wanted:
                raise sources.Edited(about())
            at_work.digests = {sources.local(name): digest for name, digest in keyed.items()}
            at_work.send = lambda what: worker.log_event(topic, pickle.dumps(what))
            torch.set_num_threads(1)
            return call(*args)
        except sources.Edited as error:
            other = about() if about() != wanted else f"another {sources.unlike(at_work.digests)}"
            said = f"the worker {worker.address} has {other}, here is {wanted}; {START}"
            raise DataError(said) from error
        except (DataError, OSError) as error:  # such as its full disk
            raise DataError(f"on the worker {worker.address}: {error}") from error
