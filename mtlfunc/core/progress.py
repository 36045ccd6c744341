"""One progress bar: a widget in a notebook, a line in a terminal, lines without tqdm."""

import importlib.util
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

SELDOM = 10.0
"""Seconds between two lines where each stays: in a notebook without widgets, or without tqdm."""


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm.auto.tqdm`, without its warning where a notebook has no widgets, and gone at the end;
    without tqdm only the iterable's entries, and lines on standard error. No iterable makes a bar
    that is updated by hand.
    """
    if iterable is not None and importlib.util.find_spec("tqdm") is None:
        return _lines(iterable, **options)
    with warnings.catch_warnings(action="ignore"):
        from tqdm.auto import tqdm
    given: dict[str, Any] = {"leave": False} | options
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is None:
        given["mininterval"] = given["delay"] = SELDOM
    return tqdm(iterable, **given)


def _lines(
    iterable: Iterable[Any], *, desc: str = "", total: int | None = None, **ignored: Any
) -> Iterator[Any]:
    last = time.monotonic()
    total = len(iterable) if total is None and isinstance(iterable, list | tuple) else total
    for done, entry in enumerate(iterable, 1):
        yield entry
        if time.monotonic() - last >= SELDOM:
            last = time.monotonic()
            print(f"{desc}: {done} of {total or 'many'}", file=sys.stderr, flush=True)
