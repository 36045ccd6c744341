"""`python -m mtlfunc.audit module:rule`, or `--solver module:solver`: one table in a shell."""

import argparse
import ast
import importlib
import os
import sys
from typing import Any

from ..rules.common import required_arguments
from ..testing import check_solver
from ..testing.judge import describe_error
from ..testing.strategies import KINDS
from .run import NAMES, audit

EPILOG = """\
examples:
  python -m mtlfunc.audit mtlfunc:mgda
  python -m mtlfunc.audit "mtlfunc:cagrad(0.4)"
  python -m mtlfunc.audit --solver my_solvers:my_solver --problems min_norm

exit status:
  0  nothing is wrong with how the rule computes, and every property named by --require holds
  1  a defect (an absolute epsilon is one), or a required property that does not hold
  2  the rule could not be found, or cannot be a rule
With --solver: 0 if every answer is certified and every claim holds, else 1; 2 as above.

What the rule does is for its author to judge: the mean of the gradients conflicts, and that is no
defect. Which rule was meant is not known: GradNorm with its sign flipped passes.
"""

OPTIONS = {"rule": ("only", "require", "instances"), "solver": ("problems", "claims", "tasks")}


def load(spec: str) -> Any:
    """What `module:expression` names, or makes of no arguments; the working directory is searched.
    Raises ValueError if it is not of this form, or importing or evaluating it raises.
    """
    module, _, expression = spec.partition(":")
    if not module or not expression:
        raise ValueError(f'{spec!r}: expected module:name, as mtlfunc:mgda or "mtlfunc:cagrad(1)"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        room = importlib.import_module(module)
        names = {x.id for x in ast.walk(ast.parse(expression.strip())) if isinstance(x, ast.Name)}
        found = eval(expression, {x: getattr(room, x) for x in names if hasattr(room, x)})
        return found() if callable(found) and required_arguments(found) == 0 else found
    except Exception as error:  # whatever runs on import, or in a factory
        raise ValueError(f"{spec!r}: {describe_error(error)}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mtlfunc.audit",
        description="What a balancing rule does and what it breaks, or at which problems a "
        "solver is wrong, with the smallest counterexamples.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    names: Any = {"nargs": "+", "metavar": "PROPERTY", "choices": NAMES}
    add("rule", nargs="?", help="module:rule: a Rule, a factory of one, or f(gramian[, losses])")
    add("--solver", metavar="MODULE:SOLVER", help="check a solver by its certificates instead")
    add("--problems", nargs="+", choices=KINDS, help="of a solver: which; default: all it takes")
    add("--claims", nargs="+", choices=("vmap", "grad"), help="of a solver: what it claims to do")
    ends: Any = {"nargs": 2, "type": int, "metavar": ("LEAST", "MOST")}
    add("--tasks", help="of a solver: numbers of tasks (default: 1 to 8, 12 and 20)", **ends)
    add("--only", help="test these properties only; quote names with spaces", **names)
    add("--require", help="exit with 1 unless these hold, too", **names)
    add("--instances", type=int, help="integer Jacobians for T = 1, 2 and 3 each (default 400)")
    add("--tolerance", type=float, help="relative; more for iterative solvers (default 1e-5; 1e-6)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = _parser()
    given = vars(parser.parse_args(argv))  # those that are not left out
    options: dict[str, Any] = {k: tuple(x) if k == "tasks" else x for k, x in given.items()}
    if ("rule" in options) == ("solver" in options):
        parser.error("expected either module:rule or --solver module:solver")
    kind, other = ("solver", "rule") if "solver" in options else ("rule", "solver")
    for option in sorted(options.keys() & OPTIONS[other]):
        parser.error(f"--{option}: there is no such option of a {kind}")
    spec, required = options.pop(kind), options.pop("require", ())
    if "only" in options:
        options["only"] += required
    try:
        run: Any = check_solver if kind == "solver" else audit
        report = run(load(spec), name=spec.partition(":")[2], **options)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(report)
    return 0 if report.sound and all(report[x].status == "holds" for x in required) else 1


if __name__ == "__main__":
    sys.exit(main())
