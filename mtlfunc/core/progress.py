"""One progress bar: a widget in a notebook, a line in a terminal."""

import importlib.util
import sys
import warnings
from typing import Any

SELDOM = 10.0
"""Seconds between two lines of a bar in a notebook without widgets, which keeps every line."""


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm.auto.tqdm`, without its warning where a notebook has no widgets, and gone at the end.

    Args:
        iterable: what is iterated over; None for a bar that is updated by hand.
        **options: of tqdm.

    Returns:
        the bar.
    """
    with warnings.catch_warnings(action="ignore"):
        from tqdm.auto import tqdm
    given: dict[str, Any] = {"leave": False} | options
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is None:
        given["mininterval"] = given["delay"] = SELDOM
    return tqdm(iterable, **given)
