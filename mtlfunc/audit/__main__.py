"""`python -m mtlfunc.audit module:rule`: the table of one rule in a shell."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from html import escape
from pathlib import Path
from typing import Any

from ..core.files import write_whole
from .harness import describe_error
from .run import NAMES, audit

EPILOG = """\
examples:
  python -m mtlfunc.audit mtlfunc:mgda
  python -m mtlfunc.audit "mtlfunc:cagrad(0.4)"
  python -m mtlfunc.audit my_rules:my_rule --html my_rule.html

exit status:
  0  nothing is wrong with how the rule computes, and every property named by --require holds
  1  a defect (the lower block of the table), or a required property that does not hold
  2  the rule could not be found, or cannot be a rule

What a rule does (the upper block) is for its author to judge: the mean of the gradients conflicts,
and that is no defect.
"""


def load(spec: str) -> Any:
    """The object that `module:expression` names; the working directory is searched, too.

    Raises:
        ValueError: if it is not of this form, or importing or evaluating it raises.
    """
    module, _, expression = spec.partition(":")
    if not module or not expression:
        raise ValueError(
            f'{spec!r}: expected module:rule, for instance mtlfunc:mgda or "mtlfunc:cagrad(0.4)"'
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return eval(expression, dict(vars(importlib.import_module(module))))
    except Exception as error:  # whatever runs on import
        raise ValueError(f"{spec!r}: {describe_error(error)}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mtlfunc.audit",
        description="What a balancing rule does and what it breaks, with the smallest "
        "counterexamples.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names: Any = {"nargs": "+", "default": (), "metavar": "PROPERTY"}
    add("rule", help="module:rule: a Rule, a factory of one, or f(gramian[, losses])")
    add("--only", help="test these properties only; quote names with spaces", **names)
    add("--require", help="exit with 1 unless these hold, too", **names)
    number = "the most integer Jacobians for each T of 1, 2, 3 (default 400)"
    add("--instances", type=int, default=400, help=number)
    share = "relative; larger for a rule with an iterative solver inside (default 1e-5)"
    add("--tolerance", type=float, default=1e-5, help=share)
    add("--html", type=Path, metavar="FILE", help="write the table as HTML, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    unknown = [name for name in options.require if name not in NAMES]
    if unknown:
        parser.error(
            f"--require: expected names among {', '.join(NAMES)}; got "
            f"{', '.join(map(repr, unknown))}"
        )
    if options.html:
        unwritable = _unwritable(options.html)
        if unwritable:  # now rather than after the audit
            parser.error(f"--html: {unwritable}")
    more = [name for name in options.require if options.only and name not in options.only]
    try:
        report = audit(
            load(options.rule),
            only=[*options.only, *more],
            instances=options.instances,
            tolerance=options.tolerance,
            name=options.rule.partition(":")[2],
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(report)
    if options.html:
        head = f'<!doctype html><meta charset="utf-8"><title>{escape(options.rule)}</title>'
        try:
            write_whole(options.html, f"{head}{report._repr_html_()}\n")
        except OSError as error:
            parser.error(f"--html: {options.html} cannot be written: {error.strerror}")
    holds = all(report[name].status == "holds" for name in options.require)
    return 0 if report.sound and holds else 1


def _unwritable(path: Path) -> str:
    """What keeps a file from being written there; empty if nothing does."""
    if path.is_dir():
        return f"{path} is a folder; expected a file"
    if not path.parent.is_dir():
        return f"{path.parent} is no folder; make it first, or pass another file"
    return "" if os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written into"


if __name__ == "__main__":
    sys.exit(main())
