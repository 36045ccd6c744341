"""The largest and the smallest of numbers, which no NaN escapes: Python's max and min drop some."""

from collections.abc import Iterable
from typing import SupportsFloat

import numpy as np


def largest(*numbers: SupportsFloat | Iterable[SupportsFloat]) -> float:
    """Of several numbers, or of those of one iterable; NaN where one is."""
    return float(np.max(flat(numbers)))


def smallest(*numbers: SupportsFloat | Iterable[SupportsFloat]) -> float:
    """The same at the other end."""
    return float(np.min(flat(numbers)))


def flat(numbers: Iterable[SupportsFloat | Iterable[SupportsFloat]]) -> list[float]:
    return [
        float(value)
        for part in numbers
        for value in (part if isinstance(part, Iterable) else (part,))
    ]
