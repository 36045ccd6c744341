"""How far a long job is: a bar on a terminal; elsewhere one line per minute with what is left."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

EVERY = 60.0
"""Seconds between two lines at least."""


class Progress:
    """Counts steps of known number; a context manager that ends the bar.

    Workers also write lines on a terminal, as the bar there is that of their parent.
    """

    def __init__(self, total: int, doing: str, unit: str, done: int = 0) -> None:
        """Nothing is shown yet without a bar.

        Args:
            total: how many steps there are.
            doing: what is done, first in the line.
            unit: what is counted, in the plural.
            done: steps that an earlier run has done.
        """
        self.total, self.doing, self.unit = total, doing, unit
        self.done = self.first = done
        self.begun = self.said = time.monotonic()
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = (
            tqdm(total=total, initial=done, desc=doing, unit=f" {unit}", leave=False)
            if self.terminal and multiprocessing.parent_process() is None
            else None
        )

    def update(self, steps: int = 1, note: str = "") -> None:
        """Some steps more are done; `note` is shown with them."""
        self.done += steps
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.total = self.total
            self.bar.initial = self.first
            self.bar.update(self.done - self.bar.n)
        elif time.monotonic() - self.said >= EVERY and sys.stderr is not None:
            self.said = time.monotonic()
            clear = "\r\x1b[K" if self.terminal else ""
            print(f"{clear}{self.line(note)}", file=sys.stderr, flush=True)

    def skip(self) -> None:
        """A step more that an earlier run has done."""
        self.done += 1
        self.first += 1

    def line(self, note: str = "") -> str:
        """What is done, what is left."""
        gone, made = time.monotonic() - self.begun, self.done - self.first
        left = f", about {duration(gone / made * (self.total - self.done))} left" if made else ""
        counted = f"{self.done:,} of {self.total:,} {self.unit}"
        noted = f"; {note}" if note else ""
        return f"{self.doing}: {counted} after {duration(gone)}{left}{noted}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *stopped: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def counted(items: Sequence[Item], doing: str, unit: str) -> Iterator[Item]:
    """The items, one after the other, with their `Progress`."""
    with Progress(len(items), doing, unit) as progress:
        for item in items:
            yield item
            progress.update()


def duration(seconds: float) -> str:
    """Two units at most, such as `3 min`, `2 h 5 min`, `4 d 3 h`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if n]
    return " ".join(parts[:2])


def say(text: str, stream: TextIO, end: str = "\n") -> None:
    """Print at once; words that no one reads any more, as behind `| head`, end nothing."""
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError:
        # its number leads elsewhere from here on: what waits in the stream would be tried again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
