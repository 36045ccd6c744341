"""Many calls of one function on the workers of a Dask scheduler, on whatever machines these are."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from . import sources
from .files import DataError

Job = TypeVar("Job")
PATIENCE = 3.0
"""Seconds in which a scheduler has to answer."""
WORKERS = 60.0
"""Seconds in which its first worker has to come, in which all have to say what they are, and
between two lines while none is there.
"""
START = "start it in a checkout of this commit: PYTHONPATH=. dask worker ADDRESS --nthreads 1"
_ONE = threading.Lock()


def about() -> str:
    """Torch, and a digest of this process's sources, wherever they stand."""
    return f"torch {torch.__version__.split('+')[0]} and sources {sources.digest()[:12]}"


def _perform(
    perform: Callable[[Job], Any], job: Job, wanted: str, keyed: Mapping[str, str]
) -> tuple[str, Any]:
    """On a worker: in what it is another one than is wanted, or "", and a job's result.

    Args:
        perform: from a job to its result.
        job: what to do.
        wanted: `about` of the process that collects.
        keyed: digests of the sources that results rest on, as `sources.portable` names them.
    """
    from distributed import get_worker

    here = {sources.local(name): digest for name, digest in keyed.items()}
    with _ONE:  # generators and threads of torch are the process's own
        own = "" if about() == wanted else about()
        if not (own or sources.unlike(here)):
            torch.set_num_threads(1)
            result = perform(job)
            if not sources.unlike(here):
                return "", result
    return f"{get_worker().address} has {own or 'another ' + sources.unlike(here)}", None


def elsewhere(
    perform: Callable[[Job], Any],
    jobs: Sequence[Job],
    address: str,
    hear: Callable[[Job, Any], object],
    died: Callable[[Job, str], object],
) -> None:
    """Every job. A job whose worker is lost goes to another one, as often as the scheduler allows;
    then it is tried once more, alone. What has come is heard whatever is raised.

    Args:
        perform: from a job to its result; both ends are pickled.
        jobs: what to do.
        address: of the scheduler, tcp://HOST:PORT.
        hear: gets a job and its result, as they come, in this process.
        died: gets, after all others, a job that lost its workers, and how.

    Raises:
        DataError: where no scheduler or no worker answers, where a worker has other sources or
            another torch or cannot import them, for data that a worker lacks, and where the
            scheduler is lost.
    """
    from distributed import Client  # an extra, and a second

    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise DataError(f"--scheduler: nobody answers at {address}: {error}") from error
    with client:
        _expect_alike(client, address)
        lost = _round(client, address, perform, jobs, hear)
        # one that only waited on a worker that another job ended is blamed as well: so each alone
        lost = [x for job, _ in lost for x in _round(client, address, perform, [job], hear)]
    for job, how in lost:
        died(job, how)


def _round(
    client: Any,
    address: str,
    perform: Callable[[Job], Any],
    jobs: Sequence[Job],
    hear: Callable[[Job, Any], object],
) -> list[tuple[Job, str]]:
    """Every job but those that lost their workers, and how these did."""
    from distributed import KilledWorker, wait

    keyed = {sources.portable(path): digest for path, digest in sources.KEYED.items()}
    also, lost = (about(), keyed), list[tuple[Job, str]]()
    left = {client.submit(_perform, perform, job, *also, pure=False): job for job in jobs}

    def take(future: Any) -> None:
        job = left.pop(future)
        try:
            other, result = future.result()
        except KilledWorker as error:
            return lost.append((job, str(error)))
        except DataError as error:
            raise DataError(f"on a worker of {address}: {error}") from error
        if other:
            raise DataError(f"the worker {other}, here is {about()}; {START}")
        hear(job, result)

    try:
        while left:
            try:
                some: Any = wait(list(left), timeout=WORKERS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if not client.scheduler_info(n_workers=-1)["workers"]:
                    tqdm.write(f"{address} has no worker; {len(left)} jobs wait for one")
                continue
            for future in some.done:
                take(future)
    except (KeyboardInterrupt, Exception) as error:
        came = [x for x in left if x.status == "finished" and not isinstance(error, OSError)]
        for future in came:  # but where the disk is full
            take(future)
        if client.status != "running" or type(error).__name__.endswith("CancelledError"):
            raise DataError(
                f"--scheduler: {address} is gone: what is finished is kept, and the same command "
                "goes on from there with another one"
            ) from error
        raise
    return lost


def _expect_alike(client: Any, address: str) -> None:
    """Raises DataError where a worker that is there is another one than this process, or does not
    answer, or where there is none.
    """
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(client.run(about))
        except Exception as error:
            found.append(error)

    try:
        client.wait_for_workers(1, timeout=WORKERS)
    except TimeoutError as error:
        raise DataError(f"--scheduler: {address} has no worker; {START}") from error
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WORKERS)
    every = found[0] if found else None
    if every is None:
        raise DataError(f"--scheduler: a worker of {address} does not answer; stop it")
    if isinstance(every, ImportError):
        raise DataError(f"a worker of {address} lacks {every.name}; {START}") from every
    if isinstance(every, Exception):
        raise every
    for worker, other in every.items():
        if other != about():
            raise DataError(f"the worker {worker} has {other}, here is {about()}; {START}")
