"""One progress bar: a widget in a notebook, a line in a terminal."""

import importlib.util
import sys
import warnings
from typing import Any

SELDOM = 10.0
"""Seconds between two lines where each stays: in a notebook without widgets."""


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm.auto.tqdm`, without its warning where a notebook has no widgets, and gone at the end;
    where tqdm was not installed the iterable alone. No iterable makes a bar updated by hand.
    """
    if iterable is not None and importlib.util.find_spec("tqdm") is None:
        return iterable
    with warnings.catch_warnings(action="ignore"):
        from tqdm.auto import tqdm
    given: dict[str, Any] = {"leave": False} | options
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is None:
        given["mininterval"] = given["delay"] = SELDOM
    return tqdm(iterable, **given)
