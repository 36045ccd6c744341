"""What a reproduction's results depend on, as one key: equal keys mean equal results."""

import ast
from pathlib import Path
from types import ModuleType

import torch

import mtlfunc as mf
from mtlfunc.core.files import digest

from .figures import STYLE
from .findings import Settings


def key(module: ModuleType, settings: Settings) -> str:
    """Of a module, all that it imports here, the package, the style, settings and torch."""
    package = Path(mf.__file__).parent
    files = [*sorted(sources(Path(str(module.__file__)))), STYLE, *sorted(package.rglob("*.py"))]
    return digest(files, settings, torch.__version__)


def sources(path: Path) -> set[Path]:
    """A file, and those that it imports relatively, directly or not."""
    found, left = set(), {path}
    while left:
        path = left.pop()
        found.add(path)
        left |= imported(path) - found
    return found


def imported(path: Path) -> set[Path]:
    """The files that a file's relative imports name, whatever their level."""
    files: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            # `from .module import name`, or `from .package import module`
            named = (base / alias.name for alias in node.names)
            candidates = [base.with_suffix(".py"), base / "__init__.py"] if node.module else []
            candidates += [place.with_suffix(".py") for place in named]
            files |= {file for file in candidates if file.is_file()}
    return files
