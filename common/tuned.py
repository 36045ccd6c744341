"""Studies whose every method has its own best rate: finished runs in one file, and what is left.

Rates are r · 2ⁿ. A method starts at some n; while its best one has an untried neighbour, that is
tried on the seeds that choose, up to an end on either side.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from mtlfunc.core.files import write_whole

from . import sources
from .arguments import device, existing_folder, folder
from .cells import Cell, sources_of
from .command import add_workers, alone_in
from .files import DataError
from .jobs import Died
from .locks import writer_lock
from .machine import processor
from .pool import perform_all
from .progress import Progress
from .signals import Terminated
from .study import Numbers
from .tables import markdown, write_png


class Grid(NamedTuple):
    """Rates, and the seeds that choose among them."""

    least: float  # the rate of n = 0
    start: tuple[int, ...]
    ends: tuple[int, int]  # the least and the largest n
    tuning: tuple[int, ...]

    def rate(self, n: int) -> float:
        """The rate of an n."""
        return self.least * 2.0**n


Stages = Sequence[tuple[Sequence[str], int]]
"""Methods, and on how many seeds they have run after the stage."""


class Design(NamedTuple):
    """Which runs a study has."""

    grid: Grid
    stages: Stages
    seeds: tuple[int, ...]  # that results are taken on
    problems: tuple[str, ...] = ("",)
    # methods that have the rate of another one, or one that is given
    borrowed: Mapping[str, str | float] = {}
    also: str = ""  # what the runs rest on besides

    @property
    def methods(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys(name for methods, _ in self.stages for name in methods))


class Record:
    """Finished runs in one file: by cell what made it (an index of `made`), its score on held-out
    data and what else it leaves; None is not finite or not learnt.
    """

    def __init__(self, path: Path, design: Design) -> None:
        """Reads the file if it is there. Raises DataError for a file of something else, or of
        another design.
        """
        self.path, self.design, self.grid = path, design, design.grid
        self.made, self.runs = list[str](), dict[str, list[Any]]()
        self._read()

    def _read(self) -> None:
        path, design = self.path, self.design
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                made, runs, other = kept["made"], kept["runs"], kept.get("of", "")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} holds something else than runs of this study") from error
            if other != design.also:
                raise DataError(
                    f"{path} is of other decisions ({other or 'none'}; here {design.also}): check "
                    "out their commit, or give another file with --record"
                )
            self.made, self.runs = made, runs

    def add(self, cell: Cell, numbers: Sequence[float | None], made: str) -> None:
        """Keep a run, its score first, and write the file, with what others have added to it."""
        with writer_lock(self.path):
            self._read()
            if made not in self.made:
                self.made.append(made)
            own = [x if x is None or math.isfinite(x) else None for x in numbers]
            self.runs[str(cell)] = [self.made.index(made), *own]
            lines = [f"  {json.dumps(k)}: {json.dumps(self.runs[k])}" for k in sorted(self.runs)]
            of = f' "of": {json.dumps(self.design.also)},\n' * bool(self.design.also)
            text = f'{{\n{of} "made": {json.dumps(self.made)},\n "runs": {{\n' + ",\n".join(lines)
            write_whole(self.path, f"{text}\n }}\n}}\n")

    def score(self, problem: str, method: str, n: int) -> float | None:
        """Mean over the seeds that choose, at a rate; -inf as soon as one failed."""
        cell = Cell(problem, method, "", self.grid.rate(n), 0)
        rows = [self.runs.get(str(cell._replace(seed=seed))) for seed in self.grid.tuning]
        if None in rows:
            return None
        scores = [row[1] for row in rows if row is not None]
        return -math.inf if None in scores else sum(scores) / len(scores)

    def tried(self, problem: str, method: str) -> dict[int, float]:
        """Scores by n."""
        low, high = self.grid.ends
        every = {n: self.score(problem, method, n) for n in range(low, high + 1)}
        return {n: score for n, score in every.items() if score is not None}

    def missing(self, problem: str, method: str) -> list[int]:
        """The n that are to be tried next; none where the best has both its neighbours, or where
        the rate is another method's.
        """
        if method in self.design.borrowed:
            return []
        tried, (low, high) = self.tried(problem, method), self.grid.ends
        if not {*self.grid.start} <= {*tried}:
            return [n for n in self.grid.start if n not in tried]
        best = max(tried, key=tried.__getitem__)
        return [n for n in (best - 1, best + 1) if n not in tried and low <= n <= high]

    def edge(self, problem: str, method: str) -> bool:
        """Whether the best rate is an end of all that may be tried."""
        return self.chosen(problem, method) in map(self.grid.rate, self.grid.ends)

    def shown_rate(self, problem: str, method: str) -> str:
        """The best rate for a table."""
        given = isinstance(self.design.borrowed.get(method), float)
        edge = " (edge)" * (not given and self.edge(problem, method))
        return f"{self.chosen(problem, method):g}{edge}"

    def machines(self) -> str:
        """How many runs were made, and on what."""
        on = Counter(self.made[row[0]].rpartition(", code")[0] for row in self.runs.values())
        each = "; ".join(f"{count} on {machine}" for machine, count in on.most_common())
        return f"{len(self.runs)} runs: {each}."

    def chosen(self, problem: str, method: str) -> float:
        """The best rate. Raises DataError where nothing is tried yet."""
        lender = self.design.borrowed.get(method, method)
        if not isinstance(lender, str):
            return lender
        tried = self.tried(problem, lender)
        if not tried:
            raise DataError(f"{self.path}: no rate of {method} is chosen yet")
        return self.grid.rate(max(tried, key=tried.__getitem__))

    def whole(self, methods: Sequence[str]) -> dict[int, list[list[list[Any]]]]:
        """By seed on which all these methods ran their rows, `[method][problem]`. Raises DataError
        where a rate is not chosen, or for fewer than two seeds.
        """
        _, _, seeds, problems, *_ = self.design
        left = [name for name in methods if any(self.missing(x, name) for x in problems)]
        if left:
            raise DataError(f"{self.path}: the rates of {', '.join(left)} are not all chosen yet")
        every: Any = {
            seed: [[self._row(problem, name, seed) for problem in problems] for name in methods]
            for seed in seeds
        }
        found = {k: rows for k, rows in every.items() if all(None not in row for row in rows)}
        if len(found) < 2:
            raise DataError(f"{self.path}: {len(found)} whole seeds, 2 at least are needed")
        return found

    def _row(self, problem: str, method: str, seed: int) -> list[Any] | None:
        return self.runs.get(str(Cell(problem, method, "", self.chosen(problem, method), seed)))


def to_do(record: Record) -> Iterator[tuple[str, list[Cell]]]:
    """What is left, phase by phase: each is asked for when those before it are done."""
    _, stages, seeds, problems, borrowed, _ = record.design
    for methods, count in stages:
        every = [(problem, name) for name in methods for problem in problems]
        while cells := [
            cell
            for seed in record.grid.tuning
            for problem, name in every
            for n in record.missing(problem, name)
            if str(cell := Cell(problem, name, "", record.grid.rate(n), seed)) not in record.runs
        ]:
            tuned = sum(name not in borrowed for name in methods)
            yield f"rates of {tuned} methods", cells
        rounds = [
            Cell(problem, name, "", record.chosen(problem, name), seed)
            for seed in seeds[:count]
            for name in methods
            for problem in problems
        ]
        yield f"{count} seeds", [cell for cell in rounds if str(cell) not in record.runs]


class Study(NamedTuple):
    """What the command of a study of this kind needs."""

    name: str  # as `python -m` takes it
    here: Path  # its folder
    decisions: Path  # what was decided beforehand, which `--help` prints
    kept: Path  # the record of the repository
    design: Design
    # of the folders of the data and of the results, the problems and the device: from cells of one
    # problem and method to the numbers of each
    perform: Callable[[Path, Path, Sequence[str], str], Callable[[Sequence[Cell]], list[Numbers]]]
    numbers: Callable[[Cell, Numbers], Sequence[float | None]]  # what the record keeps of them
    power: Callable[[Record], str]
    shown: Callable[[Record], tuple[str, Figure | None]]
    names: Sequence[str]  # of the record's numbers


def _run(
    study: Study, data: Path, record: Record, out: Path, workers: int | str, device: torch.device
) -> None:
    """Everything that is left, into the record: run after run, or on a device all of a problem and
    method that differ in rate and seed as one program.
    """
    run = study.perform(data, out, study.design.problems, str(device))
    code = sources.key(sources_of(study.here), torch.__version__)[:16]
    where = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    made = f"{where}, torch {torch.__version__}, code {code}"
    if others := sum(record.made[row[0]] != made for row in record.runs.values()):
        print(f"{others} runs of {record.path.name} are of other code, torch, machines; all count")
    for doing, cells in to_do(record):
        jobs: dict[object, list[Cell]] = {}
        for cell in cells:
            whose = cell if device.type == "cpu" else (cell.problem, cell.method)
            jobs.setdefault(whose, []).append(cell)
        with Progress(len(cells), doing, "runs") as progress:

            def hear(job: list[Cell], found: list[Numbers], progress: Progress = progress) -> None:
                sources.check()
                for cell, numbers in zip(job, found, strict=True):
                    record.add(cell, study.numbers(cell, numbers), made)
                    progress.update(note=str(cell))

            perform_all(run, [*jobs.values()], workers, hear)


def _again(study: Study, given: argparse.Namespace, record: Record) -> str:
    """One run of the record, made again."""
    problem = getattr(given, "set", "")
    cell = Cell(problem, given.method, "", record.chosen(problem, given.method), given.seed)
    found: list[float | None] = []
    run = study.perform(given.data, given.out, [problem], "cpu")
    perform_all(run, [[cell]], 1, lambda _, made: found.extend(study.numbers(cell, made[0])))
    there = record.runs.get(str(cell))
    known = [*there[1:]] if there else [None] * len(found)
    names = [*study.names, *[""] * len(found)][: len(found)]
    rows = [
        [name, *["" if x is None else f"{x:.6g}" for x in pair]]
        for name, *pair in zip(names, found, known, strict=True)
    ]
    table = markdown(["", "this run", "the record"], rows)
    where = f"made on {record.made[there[0]]}" if there else "which has no such run"
    return f"{cell}; the record: {where}\n\n{table}"


def command(study: Study, argv: Sequence[str] | None) -> int:
    """Run the study or a part of it; the exit status."""
    parser = argparse.ArgumentParser(
        prog=study.name, description=study.decisions.read_text("utf-8")
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add, said = parser.add_argument, "finished runs"
    add("--record", type=Path, default=study.kept, metavar="FILE", help=said)
    which = parser.add_subparsers(dest="what", required=True)
    which.add_parser("power", help="what difference would be seen nine times of ten")
    show = which.add_parser("show", help="what the record says, of as many seeds as it has")
    show.add_argument("--figure", type=Path, metavar="FILE", help="a PNG, where there is one")
    run = which.add_parser("run", help="all runs that are left; a stop loses those at work")
    one = which.add_parser("row", help="one run again, half a minute to some minutes")
    for part in (run, one):
        part.add_argument("--data", type=existing_folder, metavar="FOLDER", required=True)
        usual = study.here / "out" / study.name.split(".")[-1]
        part.add_argument("--out", type=folder, default=usual, metavar="FOLDER")
    add_workers(run, 1)
    said = "a CUDA device trains all rates and seeds of a method as one program"
    run.add_argument("--device", type=device, default=torch.device("cpu"), help=said)
    known: Any = {"choices": study.design.methods, "metavar": "METHOD"}
    one.add_argument("method", help=", ".join(map(repr, study.design.methods)), **known)
    if study.design.problems != ("",):
        one.add_argument("set", choices=study.design.problems)
    one.add_argument("seed", type=int, metavar="SEED")
    given = parser.parse_args(argv)
    record: Record | None = None
    try:
        record = Record(given.record, study.design)
        if given.what == "power":
            print(study.power(record))
        elif given.what == "show":
            text, figure = study.shown(record)
            print(text)
            if given.figure and figure:
                write_png(figure, given.figure)
        elif given.what == "row":
            print(_again(study, given, record))
        else:
            given.record.absolute().parent.mkdir(parents=True, exist_ok=True)
            with alone_in(given.out):
                _run(study, given.data, record, given.out, given.workers, given.device)
    except (DataError, Died, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        runs = len(record.runs) if record else 0
        print(f"\nstopped; {given.record} has {runs} runs, and the same command goes on")
        return 143 if isinstance(stop, Terminated) else 130
    return 0
