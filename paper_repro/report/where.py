"""From a claim's id to the lines that decide it."""

import ast
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Place(NamedTuple):
    """Where a claim is built, and so its verdict given."""

    path: Path
    line: int  # of the claim
    function: str  # around it
    first: int  # line of that function
    last: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line} in {self.function} ({self.first}-{self.last})"


def places(module: ModuleType) -> dict[str, Place]:
    """The claims that a module's own functions build, by id."""
    path = Path(str(module.__file__))
    found: dict[str, Place] = {}
    for function in ast.parse(path.read_bytes()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            identifier = _identifier(node)
            if identifier is not None:
                assert isinstance(node, ast.Call)
                last = function.end_lineno or function.lineno
                found[identifier] = Place(path, node.lineno, function.name, function.lineno, last)
    return found


def _identifier(node: ast.AST) -> str | None:
    """The first argument of a call of `Claim`, or of a paper's `claim`, that names it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        first = node.args[0]
        if node.func.id in ("Claim", "claim") and isinstance(first, ast.Constant):
            return str(first.value)
    return None
