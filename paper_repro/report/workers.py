"""Questions one after the other, or side by side in processes of their own, one thread each."""

import errno
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib import style
from tqdm import tqdm

from common.device import on
from common.locks import digest
from common.pool import keep_memory, prepare, threads, unbroken

from .display import Display, caught
from .draws import redrawn
from .figures import STYLE
from .findings import Claim, Figure, Settings
from .parts import Store, drop, read, spent
from .results import Drawn, Results, draw
from .verdicts import findings

Send = Callable[[str, Any], object]
"""Takes what a question has to say: "line", "progress", "waits", "found", "done", "failed", "full".
"""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says where nothing more can be written."""


class Question(NamedTuple):
    """One that is to run."""

    name: str
    module: ModuleType
    key: str  # of its results


class Run:
    """Questions at work, and what has come of them; `parts` is the folder of long computations."""

    def __init__(self, results: Results, display: Display, settings: Settings, parts: Path) -> None:
        self.results, self.display, self.settings, self.parts = results, display, settings, parts
        self.found: dict[str, list[Claim | Drawn]] = {}  # by question that has begun
        self.keys: dict[str, str] = {}
        self.done: list[str] = []
        self.failed: dict[str, str] = {}  # what ended them
        self.waiting: set[str] = set()  # for another question's long computation
        self.start = time.time()

    def begin(self, question: Question) -> None:
        self.results.start(question.name)
        self.begun(question.name).touch()
        self.found[question.name], self.keys[question.name] = [], question.key
        self.display.begin(question.name)

    def begun(self, name: str) -> Path:
        """A file that is there while a question has begun and is not finished, in any run of these
        settings.
        """
        return self.parts / f"begun-{name}-{digest([], self.settings)[:24]}"

    def drop(self, which: Callable[[Path], bool] = lambda path: True) -> None:
        """Take away these long computations, or all; what no run wrote stays."""
        drop(self.parts, which)

    def own(self, path: Path) -> bool:
        """Whether a file holds a computation of this run."""
        return not path.name.startswith("begun-") and path.stat().st_mtime >= self.start

    def skip(self, name: str) -> None:
        """Its results are those of an earlier run."""
        self.begun(name).unlink(missing_ok=True)
        self.done.append(name)
        self.display.done += 1
        self.display.line(
            f"[{name}] same code and settings as when it last ran: results kept (--fresh runs it "
            "again)"
        )

    @unbroken()
    def receive(self, name: str, kind: str, what: Any) -> None:
        """Put what a question says in its place."""
        if name in self.failed:
            return  # its last words
        if kind == "line":
            self.display.line(f"[{name}] {what}")
        elif kind == "progress":
            self.display.progress(name, what)
        elif kind == "waits":
            (self.waiting.add if what else self.waiting.discard)(name)
        elif kind == "found":
            try:
                self.results.add(name, what)
            except ValueError as error:
                return self.fail(name, str(error))
            self.found[name].append(what)
            text = f"figure {what.name}" if isinstance(what, Drawn) else f"{what.id} {what.verdict}"
            self.display.line(f"[{name}] {text}")
        elif kind == "done":
            self.results.finish(name, self.keys[name], self.found[name], what)
            self.begun(name).unlink(missing_ok=True)
            self.done.append(name)
            wall = self.display.end(name)
            self.display.line(f"[{name}] finished in {wall:.0f} s, {what:.0f} s of processor time")
        elif kind == "full":
            raise OSError(*what)
        else:
            self.fail(name, what)

    def fail(self, name: str, text: str) -> None:
        self.failed[name] = text.strip().splitlines()[-1]
        self.display.end(name)
        self.display.line(f"[{name}] failed:\n{text.rstrip()}")

    def one_by_one(self, questions: Sequence[Question]) -> None:
        """All in this process."""
        keep_memory()
        Store.folder = self.parts
        try:
            with threads(1):
                for question in questions:
                    self.begin(question)
                    name = question.name

                    def send(kind: str, what: Any, name: str = name) -> None:
                        self.receive(name, kind, what)

                    answer(question.module, name, self.settings, self.results.folder, send)
        finally:
            Store.folder = None

    def side_by_side(self, questions: Sequence[Question], workers: int) -> None:
        """Each in a process of its own, `workers` at a time; ended with this one. The first imports
        for itself, and has begun while that which all others are forked from still compiles
        kernels.
        """
        left, work = list(questions), {}
        others = set(multiprocessing.active_children())
        alone = multiprocessing.get_context("spawn")
        contexts = itertools.chain([alone], itertools.repeat(forked()))
        try:
            while left or work:
                while left and len(work) - len(self.waiting) < workers:
                    question = left.pop(0)
                    self.begin(question)
                    here, there = multiprocessing.Pipe(duplex=False)
                    job = (question.name, question.module.__name__, self.settings)
                    context = next(contexts)
                    process = context.Process(
                        target=_worker,
                        args=(*job, self.results.folder, self.parts, there),
                        daemon=True,
                    )
                    # a fork may have to wait for the kernels, and Ctrl-C must end that
                    with one_thread(), deaf() if context is alone else nullcontext():
                        process.start()
                    there.close()
                    work[here] = question.name, process
                for link in connection.wait(list(work), timeout=0.5):
                    name, process = work[link]
                    if not self.heard(name, link):
                        process.join()
                        del work[link]
                        self.ended(name, process.exitcode)
                self.display.tick()
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            for _, process in work.values():
                process.join()
            for link, (name, _) in work.items():
                with suppress(OSError):  # of a full disk: what ended the run is said already
                    while link.poll() and self.heard(name, link):
                        pass

    @unbroken()
    def heard(self, name: str, link: Any) -> bool:
        """Take one message; False where there will be none any more."""
        try:
            kind, what = link.recv()
        except (EOFError, OSError):
            return False
        self.receive(name, kind, what)
        return True

    def ended(self, name: str, status: int | None) -> None:
        """A process is gone: with its last word, or killed."""
        self.waiting.discard(name)
        if name not in self.done and name not in self.failed:
            how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
            self.fail(
                name,
                f"its process ended {how}, killed for memory perhaps; the same command runs "
                "it again",
            )


def forked() -> Any:
    """The context of new processes: forks of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preload"])
    from multiprocessing import forkserver

    with one_thread(), deaf():
        forkserver.ensure_running()
    return context


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that begin inside have one thread, and so have their compilers."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    ours = dict.fromkeys((*names, "TORCHINDUCTOR_COMPILE_THREADS"), "1")
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that begin inside do not hear Ctrl-C, not even while they import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def answer(module: ModuleType, name: str, settings: Settings, folder: Path, send: Send) -> None:
    """Run a question; `send` gets its findings one by one, and in the end that it is done."""
    Store.question, Store.earlier, begin = name, {}, spent()
    if getattr(module, "TIMED", False):
        settings = settings._replace(device=torch.device("cpu"))
    try:
        with (
            style.context(STYLE),
            caught(lambda text: send("line", text), lambda text: send("progress", text)),
            redrawn(settings.draw),
            on(settings.device),
        ):
            for finding in findings(module, settings):
                if isinstance(finding, Figure):
                    send("found", draw(folder, name, finding))
                else:
                    send("found", finding)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            send("full", (error.errno, error.strerror, error.filename))
        else:
            send("failed", traceback.format_exc())
    else:
        send("done", spent() - begin + sum(Store.earlier.values()))


def _worker(
    name: str, module: str, settings: Settings, folder: Path, parts: Path, link: Any
) -> None:
    """What a process does. Signals are its parent's matter."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prepare()
    mpl.use("Agg")
    # else a semaphore of the system, whose loss Python would report when this process is killed
    tqdm.set_lock(threading.RLock())

    def send(kind: str, what: Any) -> None:
        link.send((kind, what))

    Store.folder, Store.waits = parts, _changes(lambda waiting: send("waits", waiting))
    answer(importlib.import_module(module), name, settings, folder, send)


def _changes(tell: Callable[[bool], object]) -> Callable[[bool], None]:
    """Tells only what is new."""
    last = False

    def waits(waiting: bool) -> None:
        nonlocal last
        if waiting != last:
            last = waiting
            tell(waiting)

    return waits


def question_of(path: Path) -> str:
    """That did a long computation; none of a file that holds none, or not whole."""
    try:
        return read(path).question
    except Exception:  # as where it is used
        return ""


def described(run: Run) -> str:
    """What questions that were interrupted had found."""
    texts = []
    for name in run.display.work:
        found = run.found[name]
        figures = sum(isinstance(finding, Drawn) for finding in found)
        texts.append(f"in {name}, after {len(found) - figures} claims and {figures} figures of it")
    return "; ".join(texts)
