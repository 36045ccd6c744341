"""`python -m mtlfunc.audit module:rule`: the table of one rule in a shell."""

from __future__ import annotations

import argparse
import ast
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
    """What a name on the command line stands for; the working directory is searched, too.

    Args:
        spec: `module:name`, `module:name.attribute` or `module:name(literal, key=literal)`.

    Returns:
        the object.

    Raises:
        ValueError: that says what is wrong with the name.
    """
    where, colon, what = spec.partition(":")
    if not colon or not where or not what:
        raise ValueError(
            f'{spec!r}: expected module:rule, for instance mtlfunc:mgda or "mtlfunc:cagrad(0.4)"'
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ValueError(f"{spec!r}: there is no module {error.name!r}") from error
    except Exception as error:  # whatever runs on import
        raise ValueError(f"{spec!r}: importing {where} {describe_error(error)}") from error
    try:
        expression = ast.parse(what, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{spec!r}: {what!r} is neither a name nor a call") from error
    call = expression if isinstance(expression, ast.Call) else None
    path = ast.unparse(call.func if call else expression)
    found: Any = module
    for part in path.split("."):
        if not part.isidentifier():
            raise ValueError(f"{spec!r}: {path!r} is not a name")
        if not hasattr(found, part):
            raise ValueError(f"{spec!r}: {where} has no {path!r}")
        found = getattr(found, part)
    if call is None:
        return found
    try:
        args = [ast.literal_eval(x) for x in call.args]
        named = {str(x.arg): ast.literal_eval(x.value) for x in call.keywords}
    except ValueError as error:
        raise ValueError(
            f"{spec!r}: arguments must be numbers, strings or other literals; define the rule in "
            "a module and name it"
        ) from error
    return found(*args, **named)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mtlfunc.audit",
        description="What a balancing rule does and what it breaks, with the smallest "
        "counterexamples.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rule",
        help="module:rule, where rule is a Rule, a factory of one that needs no arguments, a "
        "call of one, or f(gramian[, losses])",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="PROPERTY",
        help="test these properties only; quote names with spaces",
    )
    parser.add_argument(
        "--require",
        nargs="+",
        default=(),
        metavar="PROPERTY",
        help="exit with 1 unless these hold, too",
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=400,
        help="the most integer Jacobians for each T of 1, 2, 3 (default 400)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="relative; larger for a rule with an iterative solver inside (default 1e-5)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table as HTML, too")
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
    if not os.access(path.parent, os.W_OK):
        return f"nothing can be written into {path.parent}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
