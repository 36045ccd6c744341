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
    decided: tuple[Path, int, int] | None = None  # the decision's file and lines

    def __str__(self) -> str:
        numbers = f"{self.path}:{self.line} in {self.function} ({self.first}-{self.last})"
        if self.decided is None:
            return numbers
        path, first, last = self.decided
        return f"{numbers}\ndecided by {path}:{first}-{last}"


def decisions(path: Path) -> dict[str, tuple[Path, int, int]]:
    """The lines of a table of decisions, by id; of a function, where an entry names one."""
    if not path.exists():
        return {}
    body = ast.parse(path.read_bytes()).body
    named = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    found: dict[str, tuple[Path, int, int]] = {}
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant):
                # `when(...)` names the function that it leaves open
                inner = [word.value for word in getattr(value, "keywords", ())]
                names = [getattr(part, "id", "") for part in (value, *inner)]
                lines: ast.AST = next((named[name] for name in names if name in named), value)
                first = lines.decorator_list[0] if isinstance(lines, ast.FunctionDef) else key
                last = getattr(lines, "end_lineno", key.lineno)
                found[str(key.value)] = path, first.lineno, last
    return found


def title(module: ModuleType) -> str:
    """A reproduction's question: the first line of its docstring."""
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def places(module: ModuleType) -> dict[str, Place]:
    """The claims that a module's own functions build, by id."""
    path = Path(str(module.__file__))
    judged = decisions(path.with_name("decisions.py"))
    found: dict[str, Place] = {}
    for function in ast.parse(path.read_bytes()).body:
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
