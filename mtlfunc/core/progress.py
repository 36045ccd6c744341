"""One progress bar: a widget in a notebook, a line in a terminal."""

import warnings
from typing import Any


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm.auto.tqdm`, without its warning where a notebook has no widgets, and gone at the end.

    Args:
        iterable: what is iterated over; None for a bar that is updated by hand.
        **options: of tqdm.

    Returns:
        the bar.
    """
    with warnings.catch_warnings(action="ignore"):  # without ipywidgets it is a line of text
        from tqdm.auto import tqdm
    return tqdm(iterable, **{"leave": False} | options)
