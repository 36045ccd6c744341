"""Named tuples of tensors and of functions on one screen."""

from contextlib import suppress
from typing import Any, TypeVar

from torch import Tensor

from .calls import call_of, written

K = TypeVar("K", bound=Any)

WIDTH = 88
"""Letters of one line; what is longer ends in …"""

VALUES = 6
"""The most numbers of a tensor that are written out; 9 in a matrix."""


def fields_shown(kind: K) -> K:
    """Show a named tuple by one line per field, of large tensors the shape alone."""

    def text(self: Any) -> str:
        lines, width = [type(self).__name__], max(map(len, self._fields), default=0)
        for name, x in zip(self._fields, self, strict=True):
            if not isinstance(x, tuple | dict) or x:
                line = _line(x)
                line = line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
                lines.append(f"  {name:{width}}  {line}")
        return "\n".join(lines)

    kind.__repr__ = text
    return kind


def functions_shown(kind: K) -> K:
    """Show a named tuple of functions by the code that makes it, or else by its fields."""

    def text(self: Any) -> str:
        if call := call_of(self):
            return repr(call)
        default = type(self)._field_defaults
        pairs = zip(self._fields, self, strict=True)
        shown = [f"{key}={written(x)}" for key, x in pairs if x is not default.get(key, ...)]
        return f"{type(self).__name__}({', '.join(shown)})"

    kind.__repr__ = text
    return kind


def _line(x: Any, inner: bool = False) -> str:
    """`x` on one line; a tensor inside of something by its number, or else its shape."""
    if isinstance(x, Tensor):
        text = str(list(x.shape))
        if x.numel() <= (9 if x.ndim == 2 else VALUES) and x.ndim <= (0 if inner else 2):
            with suppress(Exception):  # under a transform, or without data, nothing can be read
                text = _numbers(x.detach().tolist())
        return text if inner else f"{text} {str(x.dtype).removeprefix('torch.')}"
    if isinstance(x, dict):
        pairs = list(x.items())[:VALUES]  # of many entries the first; more would be cut off
        size = f"{len(x)}: " if len(x) > 1 else ""
        return f"{{{size}{', '.join(f'{name} {_line(y, True)}' for name, y in pairs)}}}"
    if hasattr(x, "_asdict"):
        pairs = x._asdict().items()
        return f"{type(x).__name__}({', '.join(f'{name} {_line(y, True)}' for name, y in pairs)})"
    if isinstance(x, tuple | list):
        inside = ", ".join(_line(value, True) for value in x[:VALUES])
        return f"({inside}{', …' * (len(x) > VALUES)})"
    return written(x) if callable(x) else " ".join(repr(x).split())


def _numbers(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)
