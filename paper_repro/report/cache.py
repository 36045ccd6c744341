"""What results depend on, as one key: equal keys mean equal results."""

import ast
import functools
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

from common.cells import package
from common.locks import digest

from .figures import STYLE
from .findings import Settings

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "clarabel",
    "cvxpy",
    "numba",
    "llvmlite",
    "matplotlib",
    "scikit-learn",
    "triton",
)
"""Whose versions may change a number or a figure."""


def key(module: ModuleType, settings: Settings) -> str:
    """Of a module, all that it imports here, the package, the style, settings and libraries."""
    return digest([*sorted(sources(Path(str(module.__file__)))), STYLE], settings, base())


@functools.cache
def base() -> str:
    """Of the package, Python and the libraries, as they were when this was first asked."""
    versions = [platform.python_version()]
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return digest(package(), *versions)


def sources(path: Path) -> set[Path]:
    """A file, and those that it imports relatively or from `common`, directly or not."""
    found, left = set(), {path}
    while left:
        path = left.pop()
        found.add(path)
        left |= imported(path) - found
    return found


def imported(path: Path) -> set[Path]:
    """The files that a file's imports name: relative ones, whatever their level, and absolute ones
    of `common`.
    """
    files: set[Path] = set()
    for level, module, names in _ours(path.read_bytes()):
        base = (path.parents[level - 1] if level else ROOT).joinpath(*module.split("."))
        # `from .module import name`, or `from .package import module`
        named = (base / name for name in names)
        candidates = [base.with_suffix(".py"), base / "__init__.py"] if module else []
        candidates += [place.with_suffix(".py") for place in named]
        files |= {file for file in candidates if file.is_file()}
    return files


@functools.cache  # most files are imported by many
def _ours(source: bytes) -> list[tuple[int, str, list[str]]]:
    """Level, module and names of a source's imports, relative ones and those of `common`."""
    return [
        (node.level, node.module or "", [alias.name for alias in node.names])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        and (node.level or f"{node.module}.".startswith("common."))
    ]
