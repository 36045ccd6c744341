"""What experiments and reproductions share: cells that are kept, rates that are chosen, reports.

An experiment says what one cell is (`cells.Cell`: a problem, a method, one of its variants, a
learning rate, a seed) and how to perform it; `study.conduct` runs all that the plan needs and
nothing twice, chooses rates on validation data, and `command.finish` makes a command of it that can
be stopped at any time and goes on where it was.
"""

from importlib.util import find_spec

_absent = [name for name in ("tqdm", "moocore", "xarray", "PIL") if find_spec(name) is None]
if _absent:
    raise ModuleNotFoundError(
        f"experiments and paper_repro: {', '.join(_absent)} not installed; in the clone: "
        'python -m pip install -e ".[repro]"',
        name=_absent[0],
    )
from . import sources as sources  # noqa: E402 - it looks at all before one is imported
