"""What a reproduction's results depend on, as one key: equal keys mean that running it again would
find the same.
"""

import ast
import hashlib
from pathlib import Path
from types import ModuleType

import torch

import mtlfunc as mf

from .figures import STYLE
from .findings import Settings


def key(module: ModuleType, settings: Settings) -> str:
    """Of the module's source and all that it imports here, the package's source, the style, the
    settings and torch's version.
    """
    package = Path(mf.__file__).parent
    files = [*sorted(sources(Path(str(module.__file__)))), STYLE, *sorted(package.rglob("*.py"))]
    digest = hashlib.sha256(f"{settings} {torch.__version__}".encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sources(path: Path) -> set[Path]:
    """A file, and those beside it that it imports, directly or not."""
    found, left = set(), {path}
    while left:
        path = left.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                left |= {
                    beside for name in names if (beside := path.with_name(f"{name}.py")).exists()
                } - found
    return found
