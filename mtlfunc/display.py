"""Named tuples of tensors and of functions on one screen."""

from collections.abc import Iterable
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
        width = max(map(len, self._fields), default=0)
        lines = (f"  {x:{width}}  {_short(y)}" for x, y in _filled(self))
        return "\n".join([type(self).__name__, *lines])

    kind.__repr__ = text
    return kind


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

    kind.__repr__ = text
    return kind


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
