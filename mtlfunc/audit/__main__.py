"""`python -m mtlfunc.audit module:rule`, or `--solver module:solver`: one table in a shell."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from html import escape
from pathlib import Path
from typing import Any

from ..core.files import write_whole
from ..rules.common import required_arguments
from ..testing import SolverReport, check_solver
from ..testing._judge import describe_error
from ..testing.strategies import KINDS
from .report import Report
from .run import NAMES, audit

EPILOG = """\
examples:
  python -m mtlfunc.audit mtlfunc:mgda
  python -m mtlfunc.audit "mtlfunc:cagrad(0.4)"
  python -m mtlfunc.audit my_rules:my_rule --html my_rule.html
  python -m mtlfunc.audit --solver my_solvers:my_solver --problems min_norm

exit status:
  0  nothing is wrong with how the rule computes, and every property named by --require holds
  1  a defect (the lower block of the table), or a required property that does not hold
  2  the rule could not be found, or cannot be a rule
With --solver: 0 if every answer is certified and every claim holds, else 1; 2 as above.

What a rule does (the upper block) is for its author to judge: the mean of the gradients conflicts,
and that is no defect.
"""


def load(spec: str) -> Any:
    """The object that `module:expression` names; the working directory is also searched.

    Raises:
        ValueError: if it is not of this form, or importing or evaluating it raises.
    """
    module, _, expression = spec.partition(":")
    if not module or not expression:
        such = 'mtlfunc:mgda or "mtlfunc:cagrad(0.4)"'
        raise ValueError(f"{spec!r}: expected module:name, for instance {such}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return eval(expression, dict(vars(importlib.import_module(module))))
    except Exception as error:  # whatever runs on import
        raise ValueError(f"{spec!r}: {describe_error(error)}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mtlfunc.audit",
        description="What a balancing rule does and what it breaks, or at which problems a "
        "solver is wrong, with the smallest counterexamples.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names: Any = {"nargs": "+", "default": (), "metavar": "PROPERTY"}
    add("rule", nargs="?", help="module:rule: a Rule, a factory of one, or f(gramian[, losses])")
    add("--solver", metavar="MODULE:SOLVER", help="check a solver by its certificates instead")
    add("--problems", nargs="+", choices=KINDS, help="of a solver: which; default: all it takes")
    claims: Any = {"nargs": "+", "choices": ("vmap", "grad"), "default": ()}
    add("--claims", help="of a solver: what it says that it can do", **claims)
    ends: Any = {"nargs": 2, "type": int, "metavar": ("LEAST", "MOST")}
    add("--tasks", help="of a solver: numbers of tasks (default: 1 to 8, 12 and 20)", **ends)
    add("--only", help="test these properties only; quote names with spaces", **names)
    add("--require", help="exit with 1 unless these hold, too", **names)
    number = "the most integer Jacobians for each T of 1, 2, 3 (default 400)"
    add("--instances", type=int, default=400, help=number)
    share = "relative; larger for a rule with an iterative solver inside (default 1e-5; 1e-6)"
    add("--tolerance", type=float, help=share)
    add("--html", type=Path, metavar="FILE", help="write the table as HTML, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.rule is None) == (options.solver is None):
        parser.error("expected either module:rule or --solver module:solver")
    unknown = ", ".join(repr(name) for name in options.require if name not in NAMES)
    if unknown:
        parser.error(f"--require: expected names among {', '.join(NAMES)}; got {unknown}")
    if options.html and (unwritable := _unwritable(options.html)):  # now rather than later
        parser.error(f"--html: {unwritable}")
    spec = options.solver or options.rule
    try:
        report = (examine_solver if options.solver else examine_rule)(options)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(report)
    if options.html:
        head = f'<!doctype html><meta charset="utf-8"><title>{escape(spec)}</title>'
        try:
            write_whole(options.html, f"{head}{report._repr_html_()}\n")
        except OSError as error:
            parser.error(f"--html: {options.html} cannot be written: {error.strerror}")
    holds = isinstance(report, SolverReport) or all(
        report[name].status == "holds" for name in options.require
    )
    return 0 if report.sound and holds else 1


def examine_rule(options: argparse.Namespace) -> Report:
    """The audit of the rule that is named on the command line."""
    more = [name for name in options.require if options.only and name not in options.only]
    return audit(
        load(options.rule),
        only=[*options.only, *more],
        instances=options.instances,
        tolerance=1e-5 if options.tolerance is None else options.tolerance,
        name=options.rule.partition(":")[2],
    )


def examine_solver(options: argparse.Namespace) -> SolverReport:
    """The check of the solver that is named there; a function without arguments makes one."""
    found: Any = load(options.solver)
    if callable(found) and required_arguments(found) == 0:
        made: Any = found()
        found = made
    return check_solver(
        found,
        options.problems,
        1e-6 if options.tolerance is None else options.tolerance,
        claims=options.claims,
        tasks=None if options.tasks is None else tuple(options.tasks),
        name=options.solver.partition(":")[2],
    )


def _unwritable(path: Path) -> str:
    """What keeps a file from being written there; empty if nothing does."""
    if path.is_dir():
        return f"{path} is a folder; expected a file"
    if not path.parent.is_dir():
        return f"{path.parent} is no folder; make it first, or pass another file"
    return "" if os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written into"


if __name__ == "__main__":
    sys.exit(main())
