"""The public surface as text, for releases: `python -m tests.support.surface` writes it anew."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mtlfunc as mf

SURFACE = Path(__file__).with_name("surface.txt")


def described() -> list[str]:
    """A line for each public name, in order; modules by what they offer."""
    return sorted(_of_module(mf, "mf"))


def _of_module(module: ModuleType, name: str) -> Iterator[str]:
    for each in module.__all__:
        value = getattr(module, each)
        if inspect.ismodule(value):
            yield from _of_module(value, f"{name}.{each}")
        else:
            yield from _of_value(value, f"{name}.{each}")


def _of_value(value: Any, name: str) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}{_returned(value)}"
        return
    fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None)
    yield f"{name}: {', '.join(fields)}" if fields else f"{name}{_parameters(value)}"
    for method in vars(value):
        if not method.startswith("_") and inspect.isroutine(inner := getattr(value, method)):
            yield f"{name}.{method}{_parameters(inner)}"


def _returned(function: Any) -> str:
    """The fields of the records that come back, unless the record is a public name itself."""
    if not inspect.isfunction(function):
        return ""
    inner = inspect.unwrap(function)
    kinds = re.findall(r"\b[A-Z]\w+", inspect.formatannotation(inner.__annotations__.get("return")))
    found = (inner.__globals__.get(kind) for kind in kinds if kind not in mf.__all__)
    fields = [getattr(x, "_fields", getattr(x, "__dataclass_fields__", ())) for x in found]
    return "".join(f" -> {', '.join(each)}" for each in fields if each)


def _parameters(function: Any) -> str:
    """Names, kinds and defaults; no types, which are spelled in many ways."""
    if not callable(function):
        return ""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return "(...)"
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return re.sub(r"<function (\S+) at 0x\w+>", r"\1", str(inspect.Signature(bare)))


if __name__ == "__main__":
    SURFACE.write_text("\n".join(described()) + "\n")
    print(SURFACE)
