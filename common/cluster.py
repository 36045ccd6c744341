"""Many calls of one function on the workers of a Dask scheduler, on whatever machines these are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from . import sources
from .files import DataError

Job = TypeVar("Job")
PATIENCE = 3.0
"""Seconds in which a scheduler has to answer."""
WORKERS = 60.0
"""Seconds in which its first worker has to come."""
START = "start it in a checkout of this commit: PYTHONPATH=. dask worker ADDRESS --nthreads 1"


@functools.cache
def about() -> str:
    """Torch, and a digest of this process's sources, wherever they stand."""
    return f"torch {torch.__version__.split('+')[0]} and sources {sources.digest()[:12]}"


def _perform(perform: Callable[[Job], Any], job: Job, wanted: str) -> tuple[str, Any]:
    """On a worker: what it is, if that is not wanted, else a job's result."""
    if about() != wanted:
        return about(), None
    torch.set_num_threads(1)
    return wanted, perform(job)


def elsewhere(
    perform: Callable[[Job], Any],
    jobs: Sequence[Job],
    address: str,
    hear: Callable[[Job, Any], object],
    died: Callable[[Job, str], object],
) -> None:
    """Every job. A job whose worker is lost goes to another one, three times if the scheduler has
    Dask's default.

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
        client = Client(address, timeout=PATIENCE, set_as_default=False)
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
    from distributed import KilledWorker, as_completed

    wanted, lost = about(), list[tuple[Job, str]]()
    futures = {client.submit(_perform, perform, job, wanted, pure=False): job for job in jobs}
    for future in as_completed(futures, loop=client.loop):
        job = futures[future]
        try:
            found, result = future.result()
        except KilledWorker as error:
            lost.append((job, str(error)))
            continue
        except DataError as error:
            raise DataError(f"on a worker of {address}: {error}") from error
        except Exception as error:
            if client.status != "running" or type(error).__name__.endswith("CancelledError"):
                raise DataError(
                    f"--scheduler: {address} is gone: what is finished is kept, and the same "
                    "command goes on from there with another one"
                ) from error
            raise
        if found != wanted:
            raise DataError(f"a worker of {address} has {found}, here {wanted}; {START}")
        hear(job, result)
        future.release()
    return lost


def _expect_alike(client: Any, address: str) -> None:
    """Raises DataError where a worker that is there is another one than this process, or where
    there is none.
    """
    try:
        client.wait_for_workers(1, timeout=WORKERS)
        every = client.run(about)
    except TimeoutError as error:
        raise DataError(f"--scheduler: {address} has no worker; {START}") from error
    except ImportError as error:
        raise DataError(f"a worker of {address} lacks {error.name}; {START}") from error
    for worker, other in every.items():
        if other != about():
            raise DataError(f"the worker {worker} has {other}, here {about()}; {START}")
