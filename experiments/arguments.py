"""Kinds of command-line arguments that the experiments share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An integer in a range, as the `type` of an argument.

    Args:
        least: the smallest integer that is accepted.
        most: the largest one; none by default.

    Returns:
        A parser of the argument's text; argparse turns what it raises into a sentence, status 2.
    """
    wanted = f">= {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected an integer {wanted}, got {value}")
        return value

    parse.__name__ = "integer"  # argparse names it where the text is no number
    return parse


def positive(text: str) -> float:
    """A finite number above 0, as the `type` of an argument."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return value


positive.__name__ = "number"


def folder(text: str) -> Path:
    """A folder that exists afterwards, as the `type` of an argument: fails now, not at the end."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be made a folder: {error.strerror}"
        ) from error
    return path
