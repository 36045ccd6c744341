"""A part of a method is data: it is written, compared and pickled as the call that made it."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

LARGEST = 64  # entries of a tensor that are written out as code
WIDTH = 100  # letters of one line; what is longer ends in …
VALUES = 6  # the most numbers of a tensor that are shown in a field; 9 in a matrix


def constructor(make: Callable[P, T]) -> Callable[P, T]:
    """A function that makes a part of a method, of which every function then is a `Made`.

    Two parts are equal that one constructor made of equal arguments: numbers, tensors, tuples,
    dicts, parts; of anything else the same object. A part can be pickled if its arguments can.
    """

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        made: Any = make(*args, **kwargs)
        origin = Call(call, args, kwargs, made)
        if not hasattr(made, "_fields"):
            return Made(origin, "", made)  # pyright: ignore[reportReturnType]
        pairs = zip(made._fields, made, strict=True)
        return made._replace(**{key: Made(origin, key, x) for key, x in pairs if callable(x)})

    return call


@dataclass(eq=False, repr=False)
class Call:
    """A constructor, its arguments, and what it made of them."""

    make: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Any
    made: Any  # of functions that know no call: what arguments hold is freed with the last part

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """By the names of the constructor's parameters, defaults included."""
        bound = signature(self.make).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def __eq__(self, other: Any) -> bool:
        alike = isinstance(other, Call) and self.make is other.make
        return alike and _same(self.arguments, other.arguments)

    def __hash__(self) -> int:
        return hash(self.make)  # arguments may be tensors

    def __repr__(self) -> str:
        shown, placed = [], True
        for name, parameter in signature(self.make).parameters.items():
            value = self.arguments[name]
            default = _same(value, parameter.default)
            placed = placed and not default and parameter.kind is not parameter.KEYWORD_ONLY
            if not default:
                shown.append(written(value) if placed else f"{name}={written(value)}")
        return f"{_name(self.make)}({', '.join(shown)})"


class Made:
    """A function of a part: a field of what a call made, or all of it."""

    def __init__(self, call: Call, field: str, function: Callable[..., Any]) -> None:
        self.call = call
        self.field = field
        self.function = function
        self.__name__: str = call.make.__name__
        self.__qualname__: str = self.__name__  # `vmap` asks for it, too

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and (self.field, self.call) == (other.field, other.call)

    def __hash__(self) -> int:
        return hash(self.__dict__.get("field"))  # torch 2.11 compiles one that is not filled

    def __repr__(self) -> str:
        return f"{self.call!r}.{self.field}" if self.field else repr(self.call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.call.make, self.call.args, self.call.kwargs, self.field)

    def __deepcopy__(self, memo: Any) -> "Made":
        return self  # nothing in it changes


def _again(make: Callable[..., Any], args: Any, kwargs: Any, field: str) -> Any:
    made = make(*args, **kwargs)
    return getattr(made, field) if field else made


def call_of(value: Any) -> Call | None:
    """The call that made a part, or None; also for a part with a field that was replaced since."""
    if isinstance(value, Made):
        return None if value.field else value.call
    fields = value if hasattr(value, "_fields") else ()
    call = next((x.call for x in fields if isinstance(x, Made)), None)
    if call is None or type(call.made) is not type(value):
        return None
    told = zip(value._fields, value, call.made, strict=True)
    same = (x == Made(call, key, y) if callable(y) else _same(x, y) for key, x, y in told)
    return call if all(same) else None


def written(x: Any) -> str:
    """Code that gives `x` back; the name of a function, the kind of what cannot be written."""
    if call := call_of(x):
        return repr(call)
    if type(x) in (tuple, list):
        inner = ", ".join(map(written, x))
        return f"[{inner}]" if type(x) is list else f"({inner}{',' * (len(x) == 1)})"
    if isinstance(x, frozenset):
        return f"frozenset({{{', '.join(sorted(map(written, x)))}}})"
    if type(x) is dict:
        return f"{{{', '.join(f'{key!r}: {written(value)}' for key, value in x.items())}}}"
    if isinstance(x, Tensor):
        kind = f"<{x.dtype} {list(x.shape)}>"
        return kind if x.numel() > LARGEST else f"torch.{' '.join(repr(x).split())}"
    text = repr(x)
    if callable(x) and hasattr(x, "__qualname__"):
        return text if isinstance(x, Made) else _name(x)
    return f"<{type(x).__name__}>" if " at 0x" in text or "\n" in text else text


def _name(function: Any) -> str:
    """As one writes it after `import mtlfunc as mf`; of others', and inner ones, the last name."""
    name, package = function.__qualname__, __name__.partition(".")[0]
    if f"{getattr(function, '__module__', None)}.".startswith(f"{package}."):
        mf = sys.modules[package]
        for place, room in (("mf", mf), *((f"mf.{x}", vars(mf).get(x)) for x in mf.__all__)):
            if getattr(room, name, None) is function:
                return f"{place}.{name}"
    return name.rpartition(".")[2]


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal; tensors with their dtypes and devices."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, Tensor):
        return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    same: Any = one == other
    return getattr(same, "ndim", 0) == 0 and bool(same)  # an array answers entry by entry


def shown(kind: type[T]) -> type[T]:
    """Show a named tuple of functions by the code that makes it, or else by its fields; any other
    by one line per field, of large tensors the shape alone.
    """

    def text(self: Any) -> str:
        if call := call_of(self):
            return repr(call)
        name, pairs = type(self).__name__, list(zip(self._fields, self, strict=True))
        if callable(self[0]):
            default = self._field_defaults
            given = [f"{key}={written(x)}" for key, x in pairs if x is not default.get(key, ...)]
            return f"{name}({', '.join(given)})"
        width = max(map(len, self._fields))
        full = (pair for pair in pairs if not isinstance(pair[1], tuple | dict) or pair[1])
        lines = (f"  {key:{width}}  {_line(x)}" for key, x in full)
        cut = (x if len(x) <= WIDTH else f"{x[: WIDTH - 1]}…" for x in lines)
        return "\n".join([name, *cut])

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
