"""What results depend on, as one key: equal keys mean equal results."""

import functools
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

from common import sources

from .figures import STYLE
from .findings import Settings

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
    """Of a module, all that it imports of ours, the style, settings, Python and libraries."""
    return sources.key([Path(str(module.__file__)), STYLE], settings, versions())


@functools.cache
def versions() -> str:
    """Of Python and the libraries."""
    found = [platform.python_version()]
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return " ".join(found)
