"""Named tuples of tensors and of functions on one screen, in a terminal and in a notebook."""

from collections.abc import Callable, Iterable
from html import escape
from typing import Any, TypeVar

from torch import Tensor

from .calls import call_of, written

K = TypeVar("K", bound=type)

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


def fields_shown(kind: K) -> K:
    """Show a named tuple by one line per field, of large tensors the shape alone."""

    def text(self: Any) -> str:
        width = max(map(len, self._fields), default=0)
        lines = (f"  {x:{width}}  {_short(y)}" for x, y in _filled(self))
        return "\n".join([type(self).__name__, *lines])

    def html(self: Any) -> str:
        return table(type(self).__name__, ((name, code(_short(x))) for name, x in _filled(self)))

    return _shown(kind, text, html)


def _filled(fields: Any) -> list[tuple[str, Any]]:
    """The fields that are not empty."""
    pairs = zip(fields._fields, fields, strict=True)
    return [(name, x) for name, x in pairs if not (isinstance(x, tuple | dict) and not x)]


def functions_shown(kind: K) -> K:
    """Show a named tuple of functions by the code that makes it, or else by its fields."""

    def text(self: Any) -> str:
        if call := call_of(self):
            return repr(call)
        default = type(self)._field_defaults
        pairs = zip(self._fields, self, strict=True)
        shown = [f"{key}={written(x)}" for key, x in pairs if x is not default.get(key, ...)]
        return f"{type(self).__name__}({', '.join(shown)})"

    return _shown(kind, text, lambda self: code(text(self)))


def _shown(kind: Any, text: Callable[[Any], str], html: Callable[[Any], str]) -> Any:
    kind.__repr__, kind._repr_html_ = text, html
    return kind


def code(text: str) -> Markup:
    """Code in a line of HTML."""
    return Markup(f"<code>{escape(text)}</code>")


def _short(x: Any) -> str:
    text = _describe(x)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _describe(x: Any) -> str:
    if isinstance(x, Tensor):
        return _tensor(x)
    if isinstance(x, dict):
        size = f"{len(x)}: " if len(x) > 1 else ""
        # of many entries the first; more would be cut off
        return f"{{{size}{', '.join(_named(list(x.items())[:VALUES]))}}}"
    if hasattr(x, "_asdict"):
        return f"{type(x).__name__}({', '.join(_named(x._asdict().items()))})"
    if isinstance(x, tuple | list):
        return f"({', '.join(map(_inside, x[:VALUES]))}{', …' * (len(x) > VALUES)})"
    return written(x) if callable(x) else " ".join(repr(x).split())


def _inside(x: Any) -> str:
    if isinstance(x, Tensor):
        return str(list(x.shape)) if x.ndim else _tensor(x).partition(" ")[0]
    return _describe(x)


def _named(pairs: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{name} {_inside(x)}" for name, x in pairs]


def _tensor(x: Tensor) -> str:
    shape, dtype = list(x.shape), str(x.dtype).removeprefix("torch.")
    if x.numel() > (9 if x.ndim == 2 else VALUES) or x.ndim > 2:
        return f"{shape} {dtype}"
    try:
        return f"{_numbers(x.detach().tolist())} {dtype}"
    except Exception:  # under a transform, or without data, there is nothing to read
        return f"{shape} {dtype}"


def _numbers(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)
