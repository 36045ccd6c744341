"""Figures as functions: their options, with ranges, are their signatures."""

import argparse
import difflib
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, get_args, get_origin

from .figures import in_style
from .findings import Figure

P = ParamSpec("P")


class Impossible(ValueError):
    """An option has a value that it cannot have; the text is the sentence that says why."""


class Option(NamedTuple):
    """What is said of an option, and what each of its numbers may be."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    least: int = 1  # entries, of one that has several
    twice: bool = False  # whether several may have the same number


Steps = Annotated[int, Option("steps of the optimizer", low=1)]
Rate = Annotated[float, Option("learning rate of Adam", low=1e-12, high=1e3)]
Seeds = Annotated[int, Option("seeds, which intervals are over", low=2, high=10_000)]
Draws = Annotated[int, Option("random problems", low=2, high=1_000_000)]
Starts = Annotated[tuple[tuple[float, float], ...], Option("starts in the plane, as x,y")]


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
            check(parameter, bound.arguments[name])
        with in_style():
            return function(*args, **kwargs)._replace(arguments=dict(bound.arguments))

    return styled


def check(parameter: Parameter, value: Any) -> None:
    """Raises Impossible where a value has another form, a number is outside its range, or one of
    several stands there twice.
    """
    name, kind, option = parameter.name, parameter.kind, parameter.option
    if get_origin(kind) is tuple and len(value) < option.least:
        raise Impossible(f"{name}: expected at least {option.least} values, got {len(value)}")
    for entry in _entries(name, kind, value):
        if isinstance(entry, str | bool):
            continue
        if not math.isfinite(entry):
            raise Impossible(f"{name}: expected finite numbers, got {entry}")
        if not option.low <= entry <= option.high:
            low, high = (f"{bound:g}" for bound in (option.low, option.high))
            range_ = f"{low} to {high}" if high != "inf" else f"at least {low}"
            range_ = range_ if low != "-inf" else f"at most {high}"
            raise Impossible(f"{name}: expected {range_}, got {entry:g}")
    if get_origin(kind) is tuple and kind.__args__[-1] is Ellipsis and not option.twice:
        again = [entry for i, entry in enumerate(value) if entry in value[:i]]
        if again and not isinstance(again[0], tuple):
            raise Impossible(f"{name}: expected every value once, got {written(again[0])} twice")


def _entries(name: str, kind: Any, value: Any) -> Iterator[Any]:
    """The single values; of the types that the signature says."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise Impossible(f"{name}: expected several values, got {value!r}")
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            shown = ",".join(map(str, value))
            raise Impossible(f"{name}: expected {len(kinds)} numbers together, got {shown}")
        for one, part in zip(kinds, value, strict=True):
            yield from _entries(name, one, part)
    elif origin is Literal:
        if value not in inner:
            raise Impossible(f"{name}: expected {', '.join(inner)}; got {value}")
        yield value
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = number and (kind is float or isinstance(value, int))
        if kind in (int, float) and not right:
            raise Impossible(f"{name}: expected {TYPES[kind]}, got {value!r}")
        yield value


TYPES = {int: "a whole number", float: "a number", str: "a word", bool: "yes or no"}


def read(name: str, kind: Any, text: str) -> Any:
    """A value as it is typed: entries separated by blanks, or by commas inside of an entry.

    Raises:
        Impossible: where the text is none of the type.
    """
    if get_origin(kind) is not tuple:
        return _single(name, kind, text)
    inner = get_args(kind)
    if get_origin(inner[0]) is tuple:
        return tuple(read(name, inner[0], row) for row in text.split())
    if get_origin(inner[0]) is Literal:
        return _names(name, get_args(inner[0]), text)
    words = text.replace(",", " ").split()
    kinds = [inner[0]] * len(words) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(words):
        raise Impossible(f"{name}: expected {len(kinds)} numbers together, got {text}")
    return tuple(_single(name, one, word) for one, word in zip(kinds, words, strict=True))


def _names(name: str, known: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Names in a row; some hold blanks or commas, so the longest that fits is meant."""
    longest = sorted(known, key=len, reverse=True)
    found, left = [], text.strip(" ,")
    while left:
        one = next((x for x in longest if re.match(rf"{re.escape(x)}(?![^ ,])", left)), None)
        if one is None:
            shown = ", ".join(repr(x) if " " in x else x for x in known)
            raise Impossible(f"{name}: expected {shown}; got {left.split()[0]}")
        found.append(one)
        left = left[len(one) :].lstrip(" ,")
    return tuple(found)


def _single(name: str, kind: Any, text: str) -> Any:
    if kind is bool and text in ("yes", "no"):
        return text == "yes"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            single = " alone" if " " in text.strip() else ""
            raise Impossible(f"{name}: expected {TYPES[kind]}{single}, got {text!r}") from None
    if kind is bool:
        raise Impossible(f"{name}: expected {TYPES[bool]}, got {text!r}")
    return text


def written(value: Any) -> str:
    """A value as it is typed; `read` reads it."""
    if isinstance(value, tuple):
        rows = any(isinstance(entry, tuple) for entry in value)
        return " ".join(
            ",".join(map(written, entry)) if rows else written(entry) for entry in value
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def folder(name: str) -> Path:
    """A folder's name, as argparse reads it: "" is a variable of a shell that is not set."""
    if not name:
        raise argparse.ArgumentTypeError("expected a folder's name, got none; . is this folder")
    return Path(name)


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
