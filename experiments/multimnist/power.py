"""`python -m experiments.multimnist.power`: three sets of pairs and twenty seeds, to decide.

power.md says what was decided before any run.
"""

import argparse
import functools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import sources
from common.arguments import at_least, existing_folder, folder
from common.cells import Cell, slug, sources_of
from common.command import alone_in
from common.files import DataError, Files, Source
from common.intervals import estimate, pm
from common.machine import processor
from common.pool import perform_all
from common.pooled import arms_table, power_table, rivals_table
from common.progress import Progress
from common.study import Numbers
from common.tables import markdown
from mtlfunc.core.files import write_whole

from . import mnist
from .train import ALONE, BASE, TASKS, Settings, rate_at, together

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "docs" / "record" / "power.json"
SETS, SEEDS, TUNING = tuple(mnist.MIXTURES), tuple(range(101, 121)), (201, 202, 203)
START, ENDS = (2, 3, 4), (-3, 9)
NASH, LENGTHS, COSINE = "nash-mtl, weighted heads", "mean, lengths of nash-mtl", "mean, cosine"
MGDA = "mgda, own heads"
RIVALS = (NASH, "uw", "pcgrad", "cagrad", MGDA, "gradnorm")
EARLIER = ("nash-mtl", "uw", "pcgrad", "cagrad", "mgda", "gradnorm")
ARMS = ("nash-mtl, sum 1", "nash-mtl", LENGTHS, COSINE)
FIRST, SINGLE = ("mean", NASH, *ARMS), tuple(ALONE.values())
JOINT = (*FIRST, *RIVALS[1:])
STAGES = ((FIRST, 8), (JOINT, 8), (SINGLE, 8), ((*JOINT, *SINGLE), len(SEEDS)))
"""Methods, and on how many seeds they have run after the stage."""


def differences(path: Path) -> dict[str, np.ndarray]:
    """Of the first study, by rule `[set, seed]`: accuracy less the mean loss's, in points."""
    sets = json.loads(path.read_text(encoding="utf-8")).values()
    runs = [kept["accuracies"]["hard sharing"] for kept in sets]
    level = {x: np.array([np.mean([*of[x].values()], 0) for of in runs]) for x in runs[0]}
    return {name: 100 * (level[name] - level["mean"]) for name in EARLIER}


class Job(NamedTuple):
    """One training run."""

    set: str
    method: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.set}, {self.method}, rate {self.rate:g}, seed {self.seed}"


class Record:
    """Finished runs in one file: by job what made it (an index of `made`) and its accuracies, on
    held-out pairs and of both tasks on test pairs; None is not finite or not learnt. Of Nash-MTL
    also the mean sum of its weights in every tenth of the steps.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file of something else."""
        self.path, self.made, self.runs = path, list[str](), dict[str, list[Any]]()
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                self.made, self.runs = kept["made"], kept["runs"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} holds something else than runs of this study") from error

    def keep(self, job: Job, numbers: Numbers, made: str) -> None:
        """Add a run, and write the file."""
        if made not in self.made:
            self.made.append(made)
        every = (numbers["score"], *(numbers["test"].get(task, math.nan) for task in TASKS))
        own = [x if math.isfinite(x) else None for x in every]
        self.runs[str(job)] = [self.made.index(made), *own, *numbers.get("sums", ())]
        lines = [f"  {json.dumps(k)}: {json.dumps(self.runs[k])}" for k in sorted(self.runs)]
        text = f'{{\n "made": {json.dumps(self.made)},\n "runs": {{\n' + ",\n".join(lines)
        write_whole(self.path, f"{text}\n }}\n}}\n")

    def score(self, which: str, method: str, n: int) -> float | None:
        """Mean over the seeds that choose, at a rate; -inf as soon as one failed."""
        rows = [self.runs.get(str(Job(which, method, rate(n), seed))) for seed in TUNING]
        if None in rows:
            return None
        scores = [row[1] for row in rows if row is not None]
        return -math.inf if None in scores else sum(scores) / len(scores)

    def tried(self, which: str, method: str) -> dict[int, float]:
        """Scores by n."""
        every = {n: self.score(which, method, n) for n in range(ENDS[0], ENDS[1] + 1)}
        return {n: score for n, score in every.items() if score is not None}

    def missing(self, which: str, method: str) -> list[int]:
        """The n that are to be tried next; none where the best has both its neighbours."""
        tried = self.tried(which, method)
        if not {*START} <= {*tried}:
            return [n for n in START if n not in tried]
        best = max(tried, key=tried.__getitem__)
        return [n for n in (best - 1, best + 1) if n not in tried and ENDS[0] <= n <= ENDS[1]]

    def edge(self, which: str, method: str) -> bool:
        """Whether the best rate is an end of all that may be tried."""
        return self.chosen(which, method) in map(rate, ENDS)

    def chosen(self, which: str, method: str) -> float:
        """The best rate; that of Nash-MTL for what has its lengths."""
        tried = self.tried(which, NASH if method in (LENGTHS, COSINE) else method)
        if not tried:
            raise DataError(f"{self.path}: no rate of {method} is chosen yet")
        return rate(max(tried, key=tried.__getitem__))

    def levels(self, methods: Sequence[str]) -> tuple[list[int], dict[str, np.ndarray]]:
        """The seeds on which all these methods ran, and accuracies `[set, seed]` in points: the
        mean over both tasks, 10 for a run that stopped being finite. Raises DataError for fewer
        than two seeds.
        """
        if any(
            self.missing(which, x) for x in methods if x not in (LENGTHS, COSINE) for which in SETS
        ):
            raise DataError(
                f"{self.path}: the rates of {', '.join(methods)} are not all chosen yet"
            )

        def level(which: str, method: str, seed: int) -> float | None:
            row = self.runs.get(str(Job(which, method, self.chosen(which, method), seed)))
            if row is None:
                return None
            return 10.0 if None in row[2:4] else 50 * (row[2] + row[3])

        every = {
            seed: [[level(which, name, seed) for which in SETS] for name in methods]
            for seed in SEEDS
        }
        whole = {k: rows for k, rows in every.items() if all(None not in row for row in rows)}
        stacked = np.array(list(whole.values()), float).reshape(-1, len(methods), len(SETS))
        if len(whole) < 2:
            raise DataError(f"{self.path}: {len(whole)} whole seeds, 2 at least are needed")
        return list(whole), dict(zip(methods, stacked.transpose(1, 2, 0), strict=True))


def shown(record: Record) -> str:
    """What the record says so far: of the arms, and of all rivals as soon as they have run. Raises
    DataError for fewer than two whole seeds.
    """
    seeds, levels = record.levels(FIRST)
    parts = [_state(seeds, "arms"), arms_table(levels, NASH, ARMS)]
    try:
        seeds, levels = record.levels(JOINT)
        parts += [_state(seeds, "rivals"), rivals_table(levels, RIVALS, SETS)]
    except DataError as error:
        parts.append(f"Rivals: {error}.")
    rates = []
    for name in (name for name in levels if name not in (LENGTHS, COSINE)):
        edges = [" (edge)" * record.edge(which, name) for which in SETS]
        own = [f"{record.chosen(which, name):g}" for which in SETS]
        rates.append([name, *map("".join, zip(own, edges, strict=True))])
        rates[-1] += [pm(estimate(values)) for values in levels[name]]
    columns = ["method", *(f"rate, {x}" for x in SETS), *(f"{x}, %" for x in SETS)]
    return "\n\n".join([*parts, markdown(columns, rates)])


def _state(seeds: Sequence[int], what: str) -> str:
    state = "" if len(seeds) == len(SEEDS) else ", so that the verdicts are provisional"
    return f"{len(seeds)} of {len(SEEDS)} seeds of the {what}{state}."


def rate(n: int) -> float:
    """Of the grid."""
    return 0.0125 * 2.0**n


def perform(data: Source, sums: Path, job: Job) -> Numbers:
    """One run; of Nash-MTL the sums of weights `[step]` go into the folder `sums`, from which the
    arms take them.
    """
    settings = Settings(data, 10, 256, True, "cpu", job.set)
    variant = "c 0.5" if job.method == "cagrad" else ""
    cell = Cell(BASE, job.method, variant, job.rate, job.seed)
    nash = job._replace(method=NASH)
    kept = sums / f"{slug(str(nash))}.pt"
    if job.method in (LENGTHS, COSINE):
        if not kept.exists():
            perform(data, sums, nash)
        factors = factors_of(settings, torch.load(kept), job.method == COSINE)
        return together(settings, [cell], factors)[0]
    seen: list[float] = []
    numbers = together(settings, [cell], watch=lambda info: seen.append(float(info.weights.sum())))
    if job == nash and job.seed not in TUNING:
        steps = numbers[0]["steps"]
        every = torch.tensor(seen + [math.nan] * (steps - len(seen)))
        write_whole(kept, lambda file: torch.save(every, file))
        tenths = [float(part.mean()) for part in every.tensor_split(10)]
        numbers[0]["sums"] = [float(f"{x:.4g}") if math.isfinite(x) else None for x in tenths]
    return numbers[0]


def factors_of(settings: Settings, sums: Tensor, cosine: bool) -> Tensor:
    """What the mean loss is multiplied by `[step]`: `sums` themselves, or what makes the rate fall
    along a cosine with the mean over the steps that it has with `sums`.
    """
    if not cosine:
        return sums
    shares = [n / len(sums) for n in range(len(sums))]
    usual = torch.tensor([rate_at(settings, share) for share in shares])
    fall = torch.tensor([1 + math.cos(math.pi * share) for share in shares])
    return (usual * sums).mean() * fall / fall.mean() / usual


def to_do(record: Record) -> Iterator[tuple[str, list[Job]]]:
    """What is left, phase by phase: each is asked for when those before it are done."""
    for methods, count in STAGES:
        tuned = [name for name in methods if name not in (LENGTHS, COSINE)]
        every = [(which, name) for name in tuned for which in SETS]
        while jobs := [
            Job(which, name, rate(n), seed)
            for seed in TUNING
            for which, name in every
            for n in record.missing(which, name)
            if str(Job(which, name, rate(n), seed)) not in record.runs
        ]:
            yield f"rates of {len(tuned)} methods", jobs
        rounds = [
            Job(which, name, record.chosen(which, name), seed)
            for seed in SEEDS[:count]
            for name in methods
            for which in SETS
        ]
        yield f"{count} seeds", [job for job in rounds if str(job) not in record.runs]


def study(data: Path, record: Record, out: Path, workers: int) -> None:
    """Everything that is left, one run after the other into the record."""
    source = source_of(data, SETS)
    code = sources.key(sources_of(HERE), torch.__version__)[:16]
    made = f"{processor()}, torch {torch.__version__}, code {code}"
    run = functools.partial(perform, source, folder(str(out / "sums")))
    for doing, jobs in to_do(record):
        with Progress(len(jobs), doing, "runs") as progress:

            def hear(job: Job, numbers: Numbers, progress: Progress = progress) -> None:
                sources.check()
                record.keep(job, numbers, made)
                progress.update(note=str(job))

            perform_all(run, jobs, workers, hear)


def source_of(data: Path, sets: Iterable[str]) -> Source:
    """The published files. Raises DataError for others."""
    for which in sets:
        held, _ = mnist.checked(data, which)
        if "not the published" in held:
            raise DataError(f"{data}: expected the published files, got {held}")
    return Files(data, {path for which in sets for path in mnist.files(data, which)}).source


def repeat(data: Path, record: Record, job: Job) -> str:
    """One run of the record, made again."""
    job = job._replace(rate=record.chosen(job.set, job.method))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as sums:
        run = functools.partial(perform, source_of(data, [job.set]), Path(sums))
        perform_all(run, [job], 1, lambda job, numbers: found.update(numbers["test"]))
    here = ", ".join(f"{task} {x:.4f}" for task, x in found.items())
    return f"{job}: {here}; the record has {record.runs.get(str(job), [])[2:4] or 'no such run'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study or a part of it; the exit status."""
    name = "python -m experiments.multimnist.power"
    parser = argparse.ArgumentParser(prog=name, description=(HERE / "power.md").read_text())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="finished runs")
    which = parser.add_subparsers(dest="what", required=True)
    which.add_parser("power", help="what difference would be seen nine times of ten")
    which.add_parser("show", help="what the record says, of as many seeds as it has")
    run = which.add_parser("run", help="all runs that are left; a stop loses those at work alone")
    row = which.add_parser("row", help="one run again, some two to five minutes")
    for part in (run, row):
        part.add_argument("--data", type=existing_folder, metavar="FOLDER", required=True)
    run.add_argument("--workers", type=at_least(1), default=1, metavar="N")
    run.add_argument("--out", type=folder, default=HERE / "out" / "power", metavar="FOLDER")
    row.add_argument("method", choices=[*JOINT, *SINGLE])
    row.add_argument("set", choices=SETS)
    row.add_argument("seed", type=int)
    given = parser.parse_args(argv)
    if given.what == "power":
        earlier = differences(RECORD.with_name("images.json"))
        print(power_table(earlier, len(RIVALS), (8, len(SEEDS))))
        return 0
    record = Record(given.record)
    try:
        if given.what == "show":
            print(shown(record))
        elif given.what == "row":
            print(repeat(given.data, record, Job(given.set, given.method, 0.0, given.seed)))
        else:
            with alone_in(given.out):
                study(given.data, record, given.out, given.workers)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"{given.record} has {len(record.runs)} runs"
        print(f"\nstopped; {kept}, and the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
