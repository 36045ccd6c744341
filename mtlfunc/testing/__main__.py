"""`python -m mtlfunc.testing`: installed solvers of min_norm against exact answers, as a table."""

import argparse
import math
from argparse import ArgumentTypeError
from contextlib import suppress

from ._outside import CURE, installed
from .compare import OWN, table

EPILOG = """Each solver gets the Gramians G of the hard families (near duplicates left out), times
every fourth power of ten of --scales (the nearest power of two), and answers in a process of its
own. Exact weights are fractions up to 8 tasks; beyond, an error is the certified one. Silently
wrong: the solver says that it succeeded, but the direction, as a share of Σ w_t‖g_t‖, the sum, a
sign or, of well-conditioned gradients, a weight is off by more than 1e-3. After ten seconds in one
problem it did not finish; another process goes on, three in all."""


def _names(text: str) -> list[str]:
    known = [*OWN, *installed()]
    names = known if text == "all" else text.split(",")
    if alien := [name for name in names if name not in known]:
        raise ArgumentTypeError(f"{alien} not among all, {', '.join(known)}; {CURE}")
    return names


def _counts(text: str) -> list[int]:
    if not all(x.isdecimal() and int(x) for x in text.split(",")):
        raise ArgumentTypeError(f"expected whole numbers >= 1 such as 2,3,8, got {text!r}")
    return [int(x) for x in text.split(",")]


def _exponents(text: str) -> list[int]:
    with suppress(ValueError):  # not two, or no numbers
        low, high = map(float, text.split(":"))
        if 0 < low <= high < math.inf:
            first, last = (round(math.log10(x)) for x in (low, high))
            return [*range(first, last, 4), last]
    raise ArgumentTypeError(f"expected LOW:HIGH, 0 < LOW <= HIGH, such as 1e-12:1e12, got {text!r}")


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser("python -m mtlfunc.testing", description=EPILOG)
    add, said = parser.add_argument, f"all, or NAME,... of {', '.join(OWN)} and testing.outside's"
    add("--solvers", type=_names, default="all", help=said)
    add("--tasks", type=_counts, default="2,3,8", help="numbers of tasks (default 2,3,8)")
    add("--scales", type=_exponents, default="1e-12:1e12", help="the ends (default 1e-12:1e12)")
    given = parser.parse_args(argv)
    print(table(given.solvers, given.tasks, given.scales))


if __name__ == "__main__":
    main()
