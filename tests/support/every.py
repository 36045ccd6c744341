"""Many small cases as one, which still says of each that fails which it is."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def every(
    name: str, values: Iterable[Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`pytest.mark.parametrize` in one case, through `values`, or what this parameter lists."""
    known = None if values is None else list(values)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**given: Any) -> None:
            wrong, values = list[Exception](), given.pop(name) if known is None else known
            for value in values:
                try:
                    test(**given, **{name: value})
                except Exception as error:
                    error.add_note(f"{name}: {value}")
                    wrong.append(error)
            if wrong:
                where = ", ".join(error.__notes__[-1] for error in wrong)
                raise ExceptionGroup(f"{len(wrong)} of {len(values)}: {where}", wrong)

        found = inspect.signature(test)
        rest = [x for x in found.parameters.values() if known is None or x.name != name]
        run.__signature__ = found.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return decorate


def few(values: Iterable[Any], chosen: Callable[[Any], bool]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`; `exhaustive` alone runs those that are not chosen."""
    mark = pytest.mark.exhaustive
    return [value if chosen(value) else pytest.param(value, marks=mark) for value in values]


def in_turn(cases: Iterable[Any], options: Iterable[Any], each: int) -> list[Any]:
    """Pairs: each case with a list of options, which go round; `exhaustive` has all others."""
    pairs, options = list[Any](), list(options)
    for number, case in enumerate(cases):
        at, name = number * each % len(options), case if isinstance(case, str) else f"case {number}"
        turned = options[at:] + options[:at]
        pairs.append(pytest.param(case, turned[:each], id=name))
        mark = pytest.mark.exhaustive
        pairs.append(pytest.param(case, turned[each:], id=f"{name}, others", marks=mark))
    return pairs
