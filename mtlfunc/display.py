"""Named tuples of tensors and of functions on one screen, in a terminal and in a notebook."""

from collections.abc import Iterable
from html import escape
from typing import Any

from torch import Tensor

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
    """A `__repr__` of what is made of functions: the call that made it, and what it says of itself.

    Of the call the numbers, names and parts are shown that its function holds.
    """
    said = [f"{type(self).__name__}: {made_by(self.update)}"]
    for field, verb in (("reads", "reads"), ("measures", "measures")):
        names = getattr(self, field, None)
        if names is not None:
            said.append(f"{verb} {', '.join(sorted(names)) or 'nothing else'}")
    return "; ".join(said)


def table_functions(self: Any) -> str:
    """A `_repr_html_`: the same as a line of code."""
    return code(show_functions(self))


def made_by(function: Any, functions: bool = True) -> str:
    """The call that made a function, as far as the function holds its arguments.

    Parts of a method are shown with theirs, functions only if asked for.
    """
    name, held = _base_name(function), _held(function)
    if not held and ".<locals>" not in getattr(function, "__qualname__", ""):
        return name if hasattr(function, "__qualname__") else f"{name}()"
    shown = []
    for key, x in held.items():
        if hasattr(x, "init") and hasattr(x, "update"):
            shown.append(f"{key}={made_by(x.update, False)}")
        elif functions and callable(x):
            shown.append(f"{key}={made_by(x, False)}")
    shown += [f"{key}={x!r}" for key, x in held.items() if isinstance(x, bool | int | float | str)]
    return _cut(f"{name}({', '.join(shown)})")


def _base_name(function: Any) -> str:
    """The name of the function that made it, or its own."""
    function = getattr(function, "func", function)  # of a partial one
    name = getattr(function, "__qualname__", type(function).__name__).split(".<locals>")[0]
    module = getattr(function, "__module__", None) or ""
    if name.startswith("_") and module.startswith(__package__ or "mtlfunc"):
        return module.rpartition(".")[2].lstrip("_")  # a file of one public function
    return name


def _held(function: Any) -> dict[str, Any]:
    """What a function holds: arguments of what made it, and of helpers that the same call made."""
    held: dict[str, Any] = {}
    for x in getattr(function, "args", ()):
        default = getattr(type(x), "_field_defaults", {})
        if hasattr(x, "_asdict"):
            held |= {k: v for k, v in x._asdict().items() if v is not default.get(k, ...)}
    inner = getattr(function, "func", function)
    names = getattr(getattr(inner, "__code__", None), "co_freevars", ())
    for key, cell in zip(names, getattr(inner, "__closure__", None) or (), strict=True):
        try:
            x = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if x is inner:
            continue
        # a helper of its name, such as `metric_balance` of `balance`
        own = hasattr(x, "__code__") and _base_name(x).endswith(_base_name(function))
        held |= _held(x) if own else {key: x}
    return held


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
        return made_by(x)
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
