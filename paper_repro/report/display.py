"""What a run shows of itself: a line for every finding, and what each question is doing just now.

Questions draw progress bars and print on their own; all of it comes through here, so that several
at once stay readable and a log that is not a terminal gets whole lines and no carriage returns.
"""

import io
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from common.progress import duration, say
from common.remaining import Remaining

EVERY = {True: 0.5, False: 30.0}
"""Seconds between two looks at what is at work, on a terminal and elsewhere."""


class Display:
    """Lines on stdout, and below them (or, without a terminal, now and then) what is at work."""

    def __init__(self, total: int) -> None:
        self.out, self.err = sys.stdout, sys.stderr  # before a question's are caught
        self.terminal = self.err.isatty()
        self.total, self.done = total, 0
        self.work: dict[str, tuple[float, str]] = {}  # start and progress, by question
        self.remaining = Remaining({}, 1)
        self.shown, self.last, self.width = False, time.monotonic(), 0

    def line(self, text: str) -> None:
        self._clear()
        say(text, self.out)

    def begin(self, name: str) -> None:
        self.work[name] = time.monotonic(), ""

    def end(self, name: str) -> float:
        """Seconds since the beginning."""
        now = time.monotonic()
        wall = now - self.work.pop(name, (now, ""))[0]
        self.done += 1
        self.remaining.end(name, wall)
        return wall

    def progress(self, name: str, text: str) -> None:
        if name in self.work:
            self.work[name] = self.work[name][0], text
        self.tick()

    def tick(self) -> None:
        """Show what is at work, if that is due."""
        now = time.monotonic()
        if now - self.last < EVERY[self.terminal] or not self.work:
            return
        self.last = now
        parts = [
            f"{name} {now - start:.0f} s{f' ({text})' if text else ''}"
            for name, (start, text) in self.work.items()
        ]
        left = self.remaining.now({name: now - start for name, (start, _) in self.work.items()})
        said = "time left unknown" if left is None else f"about {duration(left)} left"
        text = f"{self.done} of {self.total} done, {said}; at work: {', '.join(parts)}"
        if not self.terminal:
            say(text, self.err)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        say(f"\r{text.ljust(self.width)}", self.err, end="")
        self.shown, self.width = True, len(text)

    def _clear(self) -> None:
        if self.shown:
            say(f"\r{' ' * self.width}\r", self.err, end="")
            self.shown, self.width = False, 0


class _Caught(io.TextIOBase):
    """A stream that hands on whole lines, and what a progress bar last said."""

    def __init__(self, line: Callable[[str], object], progress: Callable[[str], object]) -> None:
        self.line, self.progress = line, progress
        self.rest, self.last = "", 0.0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.__stderr__.fileno() if sys.__stderr__ else super().fileno()

    def write(self, text: str) -> int:
        *lines, self.rest = re.sub(r"\x1b\[[0-9;]*\w", "", self.rest + text).split("\n")
        for whole in lines:
            _, bar, line = whole.rpartition("\r")
            if bar:  # what was printed behind a bar, or where one was, stands on its line
                line = re.sub(r"^[^%]*%\|.*?\[.*?\]", "", line).lstrip()
            if line.strip() and not re.match(r".*\d+%\|", line):
                self.line(line)
        now = time.monotonic()
        if "\r" in self.rest and now - self.last > EVERY[True]:
            bar = re.match(r"(.*?): +(\d+%)", self.rest.split("\r")[-1])
            if bar:
                self.last = now
                self.progress(f"{bar[1]}: {bar[2]}")
        self.rest = self.rest.rpartition("\r")[1] + self.rest.rpartition("\r")[2]
        return len(text)


@contextmanager
def caught(line: Callable[[str], object], progress: Callable[[str], object]) -> Iterator[None]:
    """Standard output and error as whole lines and as what progress bars say."""
    with (
        redirect_stdout(_Caught(line, progress)),  # pyright: ignore[reportArgumentType]
        redirect_stderr(_Caught(line, progress)),  # pyright: ignore[reportArgumentType]
    ):
        yield
