"""How the CPU kernels run: interpreted until their compiled form is there, never an error.

Kernels are plain Python over NumPy arrays. numba compiles them in twenty seconds, once for a
machine: a process of its own does that (`python -m mtlfunc.warmup`, which says where they lie).
The first that finds the cache empty starts it, and meanwhile answers come from the interpreter.
"""

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import active_count
from typing import Any
from warnings import warn

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "mtlfunc.compiling.lock"
RETRY = 1.0  # seconds between two looks at a cache that another process fills


class NotCompiled(Exception):
    """The cache lacks a kernel, and this process may not compile it now."""


class Kernel:
    """A function that other kernels call, interpreted or compiled, and that callers `run`."""

    def __init__(self, function: Callable[..., Any], fastmath: bool | set[str]) -> None:
        # as it was written, without what enforces annotations at run time (jaxtyping's import hook)
        self.function: Callable[..., Any] = inspect.unwrap(function)
        self.fastmath = fastmath
        self.ready: Any = None

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    @property
    def _numba_type_(self) -> Any:  # numba asks what a global of a compiled function is
        return self.dispatcher._numba_type_

    @cached_property
    def dispatcher(self) -> Any:
        from numba import njit  # 0.3 seconds

        options: Any = {"nogil": True, "error_model": "numpy", "fastmath": self.fastmath}
        try:
            return njit(self.function, cache=True, **options)
        except RuntimeError:  # no folder that can be written
            return njit(self.function, **options)

    def compile(self, *args: Any) -> Any:
        """Its answer, compiled here and now if the cache lacks it."""
        with COMPILER.allowed():
            answer = self.dispatcher(*args)
        self.ready = self.dispatcher
        return answer

    def run(self, *args: Any, many: bool = False) -> Any:
        """Its answer; `many` problems wait until it is compiled."""
        if self.ready is not None:
            try:
                return self.ready(*args)
            except NotCompiled:  # arrays of another kind
                return self.compile(*args)
        try:
            if (many or COMPILER.permits) and COMPILER.installed:
                return self.compile(*args)
            if COMPILER.due():
                answer, self.ready = self.dispatcher(*args), self.dispatcher
                return answer
        except NotCompiled:
            COMPILER.start(self.dispatcher)
        except Exception as error:  # such as a cache that was cut off
            COMPILER.give_up(f"{type(error).__name__}: {error}")
            self.ready = np.errstate(all="ignore")(self.function)
        with np.errstate(all="ignore"):  # as in the compiled form
            return self.function(*args)

    def run_in_threads(
        self, given: tuple[Any, ...], cuts: list[int], answers: tuple[Any, ...], threads: int
    ) -> None:
        """`run(*given, lo, hi, *answers)` on all ranges between `cuts`, by so many threads.

        It holds no lock. numba's own threading layers abort when two Python threads meet in them.
        """
        self.run(*given, 0, 0, *answers, many=True)  # compiled before the threads begin
        ranges = iter(list(pairwise(cuts)))

        def work() -> None:
            for lo, hi in ranges:
                self.run(*given, lo, hi, *answers)

        with ThreadPoolExecutor(threads - 1) as pool:
            helpers = [pool.submit(work) for _ in range(threads - 1)]
            work()
            for helper in helpers:
                helper.result()


def jit(fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Kernel]:
    """A kernel; `fastmath` names the liberties that the compiler has with sums, as LLVM does."""
    return lambda function: Kernel(function, fastmath)


class _Compiler:
    """This process's part in filling the cache."""

    def __init__(self) -> None:
        self.permits: int = 0
        self.child: subprocess.Popen[str] | None = None
        self.next_look: float = 0.0

    @cached_property
    def installed(self) -> bool:
        """Whether there is a compiler; if so, it asks here before it compiles a kernel."""
        try:
            from numba import __version__ as version
            from numba.core import event
        except ImportError as error:
            if error.name != "numba":  # it is there, and refuses this NumPy, say
                self.give_up(str(error))
            return False
        if tuple(map(int, version.split(".")[:2])) < (0, 59):
            self.give_up(f"numba {version} is older than 0.59")
            return False

        class Listener(event.Listener):
            def on_start(self, event: Any) -> None:
                module = (event.data or {})["dispatcher"].py_func.__module__
                if module.startswith("mtlfunc.") and not COMPILER.permits:
                    raise NotCompiled(module)

            def on_end(self, event: Any) -> None:
                pass

        event.register("numba:compile", Listener())
        blas = "scipy.linalg.cython_blas"  # numba sees whether it is there by importing all of it
        if blas not in sys.modules and active_count() == 1:
            sys.modules[blas] = type(sys)(blas)
            __import__("numba.np.arraymath")
            del sys.modules[blas]
        return True

    @contextmanager
    def allowed(self) -> Any:
        self.permits += 1
        try:
            yield
        finally:
            self.permits -= 1

    def due(self) -> bool:
        """Whether it is time to look at the cache: at first, and when it may have been filled."""
        if self.child is not None:
            if self.child.poll() is None:
                return False
            child, self.child = self.child, None
            said = child.communicate()[1]
            if child.returncode:
                lines = said.strip().splitlines() or [f"it ended with {child.returncode}"]
                self.give_up(lines[-1])
        if time.monotonic() < self.next_look:
            return False
        return self.installed

    def give_up(self, reason: str) -> None:
        self.next_look = np.inf
        warn(
            f"mtlfunc: its kernels could not be compiled ({reason}); they stay interpreted, right "
            "and slower. `python -m mtlfunc.warmup` says more",
            RuntimeWarning,
            stacklevel=2,
        )

    def start(self, dispatcher: Any) -> None:
        """Have the cache filled by a process of its own, unless one is at it."""
        self.next_look = time.monotonic() + RETRY
        folder = cache_of(dispatcher)
        if folder is None:
            self.next_look = np.inf
            return
        try:
            held = _locked(folder / LOCK)
        except BlockingIOError:
            return  # another process compiles
        print(
            "mtlfunc: its kernels are being compiled for this machine, once, in the background "
            "(ahead of time: python -m mtlfunc.warmup)",
            file=sys.stderr,
            flush=True,
        )
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        try:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "mtlfunc.warmup"],
                stdin=null,
                stdout=null,
                stderr=pipe,
                text=True,
                start_new_session=True,  # an interrupt of this process leaves it alone
                pass_fds=held,
            )
        except OSError as error:
            self.give_up(str(error))
        for lock in held:  # the child alone holds it now
            os.close(lock)


def _locked(path: Path) -> tuple[int, ...]:
    """A lock on this file, which whoever has its descriptor open holds; none on systems without."""
    if fcntl is None:
        return ()
    held = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    return (held,)


COMPILER = _Compiler()


def cache_of(dispatcher: Any) -> Path | None:
    """The folder in which numba keeps this function; None where it cannot write any."""
    path = dispatcher.stats.cache_path
    if path is None:
        return None
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
