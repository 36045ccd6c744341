"""`python -m mtlfunc.testing`: installed solvers of min_norm against exact answers, as a table."""

import argparse
import math

from ._outside import installed, outside
from .compare import OWN, table

EPILOG = """Each solver gets the Gramians G of the hard families (near duplicates left out), times
every fourth power of ten of --scales (the nearest power of two), and answers in a process of its
own. Exact weights are fractions up to 8 tasks; beyond, an error is the certified one. Silently
wrong: the solver says that it succeeded, but the direction, as a share of Σ w_t‖g_t‖, the sum, a
sign or, of well-conditioned gradients, a weight is off by more than 1e-3. After ten seconds in one
problem it did not finish; another process goes on, three in all."""


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser("python -m mtlfunc.testing", description=EPILOG)
    parser.add_argument("--solvers", default="all", help="all, or NAME,...; see testing.outside")
    parser.add_argument("--tasks", default="2,3,8", help="numbers of tasks (default 2,3,8)")
    parser.add_argument("--scales", default="1e-12:1e12", help="the ends (default 1e-12:1e12)")
    given = parser.parse_args(argv)
    try:
        tasks = [int(x) for x in given.tasks.split(",")]
        ends = [round(math.log10(float(x))) for x in given.scales.split(":")]
        names = [*OWN, *installed()] if given.solvers == "all" else given.solvers.split(",")
        for name in names:
            _ = name in OWN or outside(name)
        print(table(names, tasks, [*range(ends[0], ends[-1], 4), ends[-1]]))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
