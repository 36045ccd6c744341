"""Figures as functions: their options, with ranges, are their signatures."""

import argparse
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, get_args, get_origin

from .figures import in_style
from .findings import Figure

P = ParamSpec("P")
LARGEST = 2.0**62
"""What no number of an option exceeds."""


class Impossible(argparse.ArgumentTypeError, ValueError):
    """An option has a value that it cannot have; the text is the sentence that says why."""


class Option(NamedTuple):
    """What is said of an option, and what each of its numbers may be."""

    text: str
    low: float = -LARGEST
    high: float = LARGEST
    least: int = 1  # entries, of one that has several
    twice: bool = False  # whether several may have the same number


Steps = Annotated[int, Option("steps of the optimizer", low=1)]
Rate = Annotated[float, Option("learning rate of Adam", low=1e-12, high=1e3)]
Seeds = Annotated[int, Option("seeds, which intervals are over", low=2, high=10_000)]
Draws = Annotated[int, Option("random problems", low=2, high=1_000_000)]
PLACE = Option("starts in the plane, as x,y", low=-1e6, high=1e6)
Starts = Annotated[tuple[tuple[float, float], ...], PLACE]


class Parameter(NamedTuple):
    """Of a figure function."""

    name: str
    kind: Any  # its type, without what is said of it
    default: Any
    option: Option


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """By name, in the order of the signature."""
    hints = inspect.get_annotations(inspect.unwrap(function), eval_str=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind, option = hints[name], Option("")
        if get_origin(kind) is Annotated:
            kind, option = get_args(kind)
        found[name] = Parameter(name, kind, parameter.default, option)
    return found


def drawn(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """A figure function: its options are checked, and kept next to the numbers of the figure.

    Raises:
        Impossible: where an option has a value that it cannot have.
    """

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        for name, parameter in parameters(function).items():
            try:
                given = bound.arguments[name]
                bound.arguments[name] = read(parameter.kind, parameter.option, given)
            except Impossible as error:
                raise Impossible(f"{name}: {error}") from None
        with in_style():
            found = function(*bound.args, **bound.kwargs)
        return found._replace(arguments=dict(bound.arguments))

    return styled


def read(kind: Any, option: Option, given: Any) -> Any:
    """An option's value, from one or from what is typed: entries separated by blanks, or by commas
    inside of an entry. Raises Impossible.
    """
    inner = get_args(kind)
    if get_origin(kind) is not tuple:
        return _single(kind, option, given)
    if isinstance(given, str):
        given = _words(inner[0], given)
    if not isinstance(given, tuple | list):
        raise Impossible(f"expected several values, got {given!r}")
    kinds = [inner[0]] * len(given) if several(kind) else inner
    if len(kinds) != len(given):
        shown = ",".join(map(str, given))
        raise Impossible(f"expected {len(kinds)} numbers together, got {shown}")
    if several(kind) and len(given) < option.least:
        raise Impossible(f"expected at least {option.least} values, got {len(given)}")
    inside = option._replace(least=1, twice=True)
    value = tuple(read(one, inside, part) for one, part in zip(kinds, given, strict=True))
    again = [entry for i, entry in enumerate(value) if entry in value[:i]]
    if again and several(kind) and not option.twice and not isinstance(again[0], tuple):
        raise Impossible(f"expected every value once, got {written(again[0])} twice")
    return value


def several(kind: Any) -> bool:
    """Whether an option takes any number of values."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _words(kind: Any, text: str) -> list[str]:
    """The entries of a text. Some names hold blanks or commas: the longest that fits is meant."""
    if get_origin(kind) is tuple:
        return text.split()
    known = get_args(kind) if get_origin(kind) is Literal else ()
    longest = [re.escape(name) for name in sorted(known, key=len, reverse=True)]
    return re.findall("|".join([*(rf"{name}(?![^ ,])" for name in longest), "[^ ,]+"]), text)


def _single(kind: Any, option: Option, given: Any) -> Any:
    if get_origin(kind) is Literal:
        if given not in get_args(kind):
            raise Impossible(f"expected {names(kind)}; got {given}")
        return given
    value = given
    if isinstance(given, str):
        with suppress(ValueError):
            value = kind(given)
    if not isinstance(value, int | kind) or isinstance(value, bool):
        whole, single = "whole " * (kind is int), " alone" * (" " in str(given).strip())
        raise Impossible(f"expected a {whole}number{single}, got {given!r}")
    if not option.low <= value <= option.high:  # nor is it a number where it is none
        most = f" to {option.high:g}" if option.high < LARGEST else " or more"
        raise Impossible(f"expected {option.low:g}{most}, got {given!s:.30}")
    return value


def names(kind: Any) -> str:
    """Those that an option may have, quoted where they hold blanks or commas."""
    return ", ".join(repr(name) if {*name} & {*" ,"} else name for name in get_args(kind))


def written(value: Any) -> str:
    """A value as it is typed; `read` reads it."""
    if isinstance(value, tuple):
        return " ".join(
            written(entry).replace(" ", ",") if isinstance(entry, tuple) else written(entry)
            for entry in value
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def meant(word: str, names: Iterable[str]) -> str:
    """A question for the names that a wrong word is close to, or whose end it is; "" for none."""
    known, given = {name.lower(): name for name in names}, word.lower()
    near = [name for name in known if given in (name.partition(".")[2], name.replace("-0", "-"))]
    near = near or difflib.get_close_matches(given, known)
    return f"did you mean {' or '.join(known[name] for name in near)}? " if near else ""


def exported(package: str, figures: Mapping[str, str], name: str) -> Any:
    """A paper's figure function, imported when it is asked for; `figures` has the module of every
    one. Raises AttributeError where the paper has no such figure.
    """
    if name not in figures:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{figures[name]}"), name)
