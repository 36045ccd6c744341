"""Kinds of command-line arguments that the experiments share."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch


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

    parse.__name__ = "integer"  # argparse names it where the text is not a number
    return parse


def workers(text: str) -> int | str:
    """A number of processes >= 1, or the address of a Dask scheduler or the file that has it, as
    the `type` of an argument.
    """
    if text.endswith(".json"):
        try:
            text = str(json.loads(Path(text).read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            why = f"expected what dask scheduler --scheduler-file wrote, got {text}: {error}"
            raise argparse.ArgumentTypeError(why) from error
    if text.isdecimal():
        return at_least(1)(text)
    if not re.fullmatch(r"(tcp|tls|ucx)://[^/]+:\d+", text):
        wanted = "N >= 1, tcp://HOST:PORT or a scheduler file"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    if find_spec("distributed") is None:
        raise argparse.ArgumentTypeError(
            'a scheduler takes the package distributed: pip install -e ".[cluster]"'
        )
    return text


workers.__name__ = "integer or address"


def positive(text: str) -> float:
    """A finite number above 0, as the `type` of an argument."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return value


positive.__name__ = "number"


def folder(text: str) -> Path:
    """A folder that exists afterwards, as the `type` of an argument: fails now, not at the end."""
    path = Path(text).resolve()  # workers of a scheduler have folders of their own
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be made a folder: {error.strerror}"
        ) from error
    return path


def existing_folder(text: str) -> Path:
    """A folder that is there already, as the `type` of an argument."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is not a folder")
    return path


def among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Some of `known`, comma-separated, as the `type` of an argument."""

    def parse(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(
                f"unknown {', '.join(map(repr, unknown or ['']))}; choose from {', '.join(known)}"
            )
        return list(dict.fromkeys(given))

    return parse


def seeds(text: str) -> tuple[int, ...]:
    """`N` for 0 … N-1 or `A:B` for A … B-1, at least two, as the `type` of an argument."""
    first, colon, end = text.partition(":")
    try:
        found = range(int(first), int(end)) if colon else range(int(text))
    except ValueError:
        found = range(0)
    if len(found) < 2 or found[0] < 0:
        raise argparse.ArgumentTypeError(
            f"expected N >= 2, or A:B with A >= 0 and at least two seeds, got {text}"
        )
    return tuple(found)


def device(text: str) -> torch.device:
    """A device of torch that works here, as the `type` of an argument."""
    try:
        found = torch.device(text)
        torch.zeros((), device=found).tolist()  # meta has no numbers
    # a CPU build of torch answers with an assertion
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return found
