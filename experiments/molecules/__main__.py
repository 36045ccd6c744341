"""`python -m experiments.molecules`: methods on eleven properties of molecules.

decisions.md says what was decided before any run.
"""

import functools
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from common import pooled, tuned
from common.cells import Cell
from common.files import DataError
from common.intervals import estimate, pm
from common.problems import molecules
from common.problems.molecules import NAMES
from common.study import Numbers
from common.tables import markdown, side_by_side

from .train import METHODS, RAW, SINGLE, UNTUNED, Settings, perform

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "docs" / "record" / "molecules.json"
SEEDS, GRID = tuple(range(101, 111)), tuned.Grid(0.001, (1, 2, 3), (-3, 6), (201, 202, 203))
FIRST, ARMS = METHODS[:4], (UNTUNED, RAW)
STAGES = tuple((methods, len(SEEDS)) for methods in (FIRST, SINGLE, METHODS, ARMS))
NUMBERS = ("score on held-out molecules", "seconds", *NAMES)
HELD = Settings(HERE, HERE)
ALSO = f"molecules {HELD.parts}, draw {HELD.draw}, {HELD.epochs} epochs, batches of {HELD.batch}"
DESIGN = tuned.Design(GRID, STAGES, SEEDS, borrowed={UNTUNED: GRID.rate(0)}, also=ALSO)
PUBLISHED = {
    **{"mean": 177.6, "si": 77.8, "rlw": 203.8, "dwa": 175.3, "uw": 108.0, "mgda": 120.5},
    **{"pcgrad": 125.7, "cagrad": 112.8, "imtl-g": 77.2, "nash-mtl": 62.0, "famo": 58.5},
}
"""Δm in per cent, of Nash-MTL's and FAMO's tables."""


def errors_of(record: tuned.Record, method: str) -> dict[int, np.ndarray]:
    """Of the seeds that have run: `[property]`, NaN of a run that stopped being finite."""
    found = record.whole([method])
    return {seed: np.array(rows[0][0][3:], float) for seed, rows in found.items()}


class Found(NamedTuple):
    """By method and seed, of the methods that have run."""

    errors: dict[str, dict[int, np.ndarray]]  # [property]
    alone: dict[str, dict[int, np.ndarray]]  # [1], of the networks that learn one property
    over: dict[str, dict[int, np.ndarray]]  # [property] in per cent: errors above the networks'
    levels: dict[str, dict[int, float]]  # Δm in per cent


def found(record: tuned.Record) -> Found:
    """What the record has. Raises DataError for fewer than two seeds of the mean loss or of a
    network that learns one property, and for one of these that failed.
    """
    alone, errors = ({x: errors_of(record, x) for x in names} for names in (SINGLE, METHODS[:1]))
    if failed := [f"{x}, seed {k}" for x, of in alone.items() for k in of if np.isnan(of[k]).any()]:
        cure = "without its line in that file `show` leaves the seed out and `run` makes it again"
        raise DataError(f"{record.path}: no finite error of {'; '.join(failed)}: {cure}")
    for name in (*METHODS[1:], *ARMS):
        with suppress(DataError):  # it has not run
            errors[name] = errors_of(record, name)
    base = np.array([np.mean([*each.values()]) for each in alone.values()])
    over = {name: {k: 100 * (x / base - 1) for k, x in of.items()} for name, of in errors.items()}
    levels = {name: {k: float(x.mean()) for k, x in of.items()} for name, of in over.items()}
    return Found(errors, alone, over, levels)


def shown(record: tuned.Record) -> tuple[str, Figure]:
    """What the record says so far. Raises DataError as `found`."""
    errors, alone, over, levels = found(record)
    waiting = [name for name in (*METHODS, *ARMS) if name not in levels]
    least = min(map(len, [*levels.values(), *alone.values()]))
    state = f"{least} of {len(SEEDS)} seeds" + f"; not yet: {', '.join(waiting)}" * bool(waiting)
    state += ". The verdicts are provisional" * bool(waiting or least < len(SEEDS))
    more = {}
    for name in levels:
        own = [row[2] for k, row in record.runs.items() if k.startswith(f"{name}, rate ")]
        more[name] = [record.shown_rate("", name), f"{np.median(own):.0f}"]
    verdicts = pooled.alone_table(levels, METHODS[1:], more, ["rate", "seconds", "Δm, %"])
    parts = [f"{state}.", verdicts, pooled.order(PUBLISHED, levels)]
    every: Any = {name: zip(*of.values(), strict=True) for name, of in errors.items()}
    every["one network each"] = [np.ravel([*of.values()]) for of in alone.values()]
    table = [[k, *(pm(estimate([*map(float, x)]), 3) for x in v)] for k, v in every.items()]
    parts.append(markdown(["mean absolute error", *NAMES], table))
    ranked = pooled.ranked(levels)
    panels = {"Δm, %": {name: estimate([*levels[name].values()]) for name in ranked}}
    for i, title in enumerate(NAMES):
        own = {name: [x[i].item() for x in over[name].values()] for name in ranked}
        panels[f"{title}, %"] = {name: estimate(x) for name, x in own.items()}
    colours = {"mean": "C3"} | dict.fromkeys(ARMS, "C7")
    return "\n\n".join(parts), side_by_side(panels, colours)


def power(record: tuned.Record) -> str:
    """What is seen of Δm, from the differences of scores on the seeds that choose."""

    def scores(name: str) -> np.ndarray:
        cell = Cell("", name, "", record.chosen("", name), 0)
        rows = [record.runs[str(cell._replace(seed=seed))] for seed in GRID.tuning]
        return np.array([row[1] for row in rows], float)

    known = [x for x in METHODS[1:] if record.tried("", x) and not record.missing("", x)]
    squares = {x: float((scores(x) - scores("mean")).var(ddof=1)) for x in known}
    if not squares:
        raise DataError(f"{record.path}: no method besides the mean loss has its rate yet")
    lines = []
    for name, square in {**squares, "all": float(np.mean([*squares.values()]))}.items():
        deviation = 100 * math.sqrt(square)
        ends = [pooled.seen(deviation, len(SEEDS), 0.05 / k) for k in (len(METHODS) - 1, 1)]
        lines.append([name, f"{deviation:.2f}", f"{ends[0]:.1f} to {ends[1]:.1f}"])
    columns = ["method", "deviation of a difference, %", f"seen with {len(SEEDS)} seeds, %"]
    return markdown(columns, lines)


def performer(
    data: Path, out: Path, problems: Sequence[str], device: str
) -> functools.partial[list[Numbers]]:
    """Of cells of one method. Raises DataError for other files than the known ones."""
    if other := molecules.checked(data):
        raise DataError(f"{data}: {other}. Expected {molecules.EXPECTED}")
    return functools.partial(perform, Settings(data, out, device=device))


def kept(cell: Cell, numbers: Numbers) -> list[float | None]:
    """What the record has of a run: its score, its seconds, its errors on test molecules."""
    test = [float(f"{x:.6g}") for x in numbers["test"]]
    return [round(numbers["score"], 6), round(numbers["seconds"], 1), *test]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study or a part of it; the exit status."""
    name, of = "python -m experiments.molecules", (DESIGN, performer, kept, power, shown, NUMBERS)
    return tuned.command(tuned.Study(name, HERE, HERE / "decisions.md", RECORD, *of), argv)


if __name__ == "__main__":
    sys.exit(main())
