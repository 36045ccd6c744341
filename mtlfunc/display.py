"""Named tuples of tensors and of functions on one screen, in a terminal and in a notebook."""

from collections.abc import Iterable
from html import escape
from typing import Any

from torch import Tensor

from .calls import call_of, written

WIDTH = 88
"""Letters of one line; what is longer ends in …"""

VALUES = 6
"""The most numbers of a tensor that are written out; 9 in a matrix."""


class Markup(str):
    """HTML, which `table` leaves as it is."""

    __slots__ = ()


def table(title: str, lines: Iterable[Iterable[str]]) -> str:
    """An HTML table: a caption, then lines of cells; a line of one cell is a heading."""
    left = 'style="text-align:left;vertical-align:top"'
    body = ""
    for line in lines:
        cells = [x if isinstance(x, Markup) else escape(x) for x in line]
        if len(cells) == 1:
            body += f'<tr><th colspan="9" {left}>{cells[0]}</th></tr>'
        else:
            body += f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in cells)}</tr>"
    return f"<table><caption {left}>{escape(title)}</caption>{body}</table>"


def items(lines: Iterable[str]) -> str:
    """An HTML list, empty for no lines."""
    shown = [x if isinstance(x, Markup) else escape(x) for x in lines]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in shown)}</ul>" if shown else ""


def show_fields(self: Any) -> str:
    """A `__repr__`: one line per field, of large tensors the shape alone."""
    names = self._fields
    width = max(map(len, names), default=0)
    lines = [f"  {name:{width}}  {_short(x)}" for name, x in zip(names, self, strict=True)]
    return "\n".join([type(self).__name__, *lines])


def table_fields(self: Any) -> str:
    """A `_repr_html_`: the same as a table."""
    shown = [code(_short(x)) for x in self]
    return table(type(self).__name__, zip(self._fields, shown, strict=True))


def code(text: str) -> Markup:
    """Code in a line of HTML."""
    return Markup(f"<code>{escape(text)}</code>")


def coloured(text: str, colour: str) -> Markup:
    """A word in a colour."""
    return Markup(f'<span style="color:{colour}">{escape(text)}</span>')


def show_functions(self: Any) -> str:
    """A `__repr__` of what is made of functions: code that makes it, or else its fields."""
    call = call_of(self)
    if call is not None:
        return repr(call)
    default = type(self)._field_defaults
    pairs = zip(self._fields, self, strict=True)
    shown = [f"{key}={written(x)}" for key, x in pairs if x is not default.get(key, ...)]
    return f"{type(self).__name__}({', '.join(shown)})"


def table_functions(self: Any) -> str:
    """A `_repr_html_`: the same as a line of code."""
    return code(show_functions(self))


def _short(x: Any) -> str:
    return _cut(_describe(x))


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _describe(x: Any, nested: bool = False) -> str:
    if isinstance(x, Tensor):
        return str(list(x.shape)) if nested else _tensor(x)
    if isinstance(x, dict):
        size = f"{len(x)}: " if len(x) > 1 else ""
        # of many entries the first; more would be cut off
        shown = ", ".join(
            f"{key} {_describe(value, True)}" for key, value in list(x.items())[:VALUES]
        )
        return f"{{{size}{shown}}}"
    if hasattr(x, "_asdict"):
        pairs = x._asdict().items()
        return (
            f"{type(x).__name__}({', '.join(f'{name} {_describe(y, True)}' for name, y in pairs)})"
        )
    if isinstance(x, tuple | list):
        return f"({', '.join(_describe(y, True) for y in x[:VALUES])}{', …' * (len(x) > VALUES)})"
    if callable(x):
        return written(x)
    return " ".join(repr(x).split())


def _tensor(x: Tensor) -> str:
    shape = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    if x.numel() > (9 if x.ndim == 2 else VALUES) or x.ndim > 2:
        return shape
    try:
        values = x.detach().tolist()
    except Exception:  # under a transform, or without data, there is nothing to read
        return shape
    return f"{_numbers(values)} {str(x.dtype).removeprefix('torch.')}"


def _numbers(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)
