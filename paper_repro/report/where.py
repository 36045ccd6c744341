"""From a claim's id to the lines that decide it."""

import ast
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Place(NamedTuple):
    """Where a claim's numbers are put together, and where they are judged."""

    path: Path
    line: int  # of the claim
    function: str  # around it
    first: int  # line of that function
    last: int
    decided: tuple[int, int] | None = None  # the decision's lines there

    def __str__(self) -> str:
        numbers = f"{self.path}:{self.line} in {self.function} ({self.first}-{self.last})"
        if self.decided is None:
            return numbers
        first, last = self.decided
        return f"{numbers}\ndecided by {self.path}:{first}-{last}"


def decisions(body: list[ast.stmt]) -> dict[str, tuple[int, int]]:
    """The lines of every row of a module's claims, by id; of a function, where that decides it."""
    named = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    found: dict[str, tuple[int, int]] = {}
    for row in (node for statement in body for node in ast.walk(statement)):
        if isinstance(row, ast.Call) and getattr(row.func, "id", "") == "Row":
            names = [getattr(node, "id", "") for part in row.args[3:] for node in ast.walk(part)]
            judge = next((named[name] for name in names if name in named), None)
            lines = judge or row
            first = (*getattr(lines, "decorator_list", ()), lines)[0].lineno
            found[str(ast.literal_eval(row.args[0]))] = first, lines.end_lineno or first
    return found


def title(module: ModuleType) -> str:
    """A reproduction's question: the first line of its docstring."""
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def places(module: ModuleType) -> dict[str, Place]:
    """The claims that a module's own functions build, by id."""
    path = Path(str(module.__file__))
    body = ast.parse(path.read_bytes()).body
    judged = decisions(body)
    found: dict[str, Place] = {}
    for function in body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            identifier = _identifier(node)
            if identifier is not None:
                assert isinstance(node, ast.Call)
                last = function.end_lineno or function.lineno
                found[identifier] = Place(
                    path,
                    node.lineno,
                    function.name,
                    function.lineno,
                    last,
                    judged.get(identifier),
                )
    return found


def _identifier(node: ast.AST) -> str | None:
    """The first argument of a call of `Claim`, or of a paper's `claim`, that names it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        first = node.args[0]
        if node.func.id in ("Claim", "claim") and isinstance(first, ast.Constant):
            return str(first.value)
    return None
