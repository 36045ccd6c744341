"""Ctrl-C and SIGTERM, of which the first loses nothing that is finished."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

GRACE = 5.0
"""Seconds after a first signal in which others are taken for the same one."""
_now = SimpleNamespace(first=0, since=0.0, due=False, held=0)
"""The first signal, when it came, whether it is still to be raised, and blocks that defer it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whoever handles Ctrl-C also handles it."""


def _stop(number: int, frame: FrameType | None) -> None:
    if not _now.first:
        _now.first, _now.since, _now.due = number, time.monotonic(), True
    elif time.monotonic() - _now.since > GRACE:
        os._exit(128 + number)
    _raise()


def _raise() -> None:
    if _now.due and not _now.held:
        _now.due = False
        raise Terminated if _now.first == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, as Ctrl-C raises KeyboardInterrupt. Another one that
    comes later than `GRACE` ends the process at once; sooner it does nothing, so that what is
    finished is written down though a terminal or a batch system sends several.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it receives signals
        return
    hook = sys.unraisablehook

    def again(lost: Any) -> None:
        """Python drops what is raised while it clears an object away: the signal comes again."""
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            return hook(lost)
        _now.since, _now.due = time.monotonic(), True
        threading.Timer(0.1, os.kill, (os.getpid(), _now.first)).start()

    sys.unraisablehook = again
    before = {
        number: signal.signal(number, _stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as Ctrl-C behind a shell's `&`
    }
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _now.first, _now.due = 0, False


@contextmanager
def unbroken() -> Iterator[None]:
    """A signal of `terminable` that comes inside is raised at the end."""
    _now.held += 1
    try:
        yield
    finally:
        _now.held -= 1
        _raise()
