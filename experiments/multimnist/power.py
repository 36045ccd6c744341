"""`python -m experiments.multimnist.power`: three sets of pairs and twenty seeds, to decide.

power.md says what was decided before any run.
"""

import functools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import tuned
from common.cells import Cell, slug
from common.files import DataError, Files, Source
from common.intervals import half_width
from common.pooled import against_mean, arms_table, levels_table, panels, power_table, rivals_table
from common.study import Numbers
from common.tables import side_by_side
from mtlfunc.core.files import write_whole

from . import mnist
from .train import ALONE, BASE, TASKS, Settings, rate_at, together

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "docs" / "record" / "power.json"
SETS, SEEDS = tuple(mnist.MIXTURES), tuple(range(101, 121))
GRID = tuned.Grid(0.0125, (2, 3, 4), (-3, 9), (201, 202, 203))
rate = GRID.rate
NASH, LENGTHS, COSINE = "nash-mtl, weighted heads", "mean, lengths of nash-mtl", "mean, cosine"
MGDA = "mgda, own heads"
RIVALS = (NASH, "uw", "pcgrad", "cagrad", MGDA, "gradnorm")
EARLIER = ("nash-mtl", "uw", "pcgrad", "cagrad", "mgda", "gradnorm")
ARMS = ("nash-mtl, sum 1", "nash-mtl", LENGTHS, COSINE)
FIRST, SINGLE = ("mean", NASH, *ARMS), tuple(ALONE.values())
JOINT = (*FIRST, *RIVALS[1:])
STAGES = ((FIRST, 8), (JOINT, 8), (SINGLE, 8), ((*JOINT, *SINGLE), len(SEEDS)))
BORROWED = {LENGTHS: NASH, COSINE: NASH}
ALSO = "pairs of images, 10 epochs, batches of 256, CAGrad's c .5"
DESIGN = tuned.Design(GRID, STAGES, SEEDS, SETS, BORROWED, ALSO)


def differences(path: Path) -> dict[str, np.ndarray]:
    """Of the first study, by rule `[set, seed]`: accuracy less the mean loss's, in points."""
    sets = json.loads(path.read_text(encoding="utf-8")).values()
    runs = [kept["accuracies"]["hard sharing"] for kept in sets]
    level = {x: np.array([np.mean([*of[x].values()], 0) for of in runs]) for x in runs[0]}
    return {name: 100 * (level[name] - level["mean"]) for name in EARLIER}


def of_run(method: str, row: Sequence[Any]) -> list[float]:
    """Accuracies `[task]` of a row of the record, as in `accuracies`."""
    learnt = {i: row[2 + i] for i, x in enumerate(TASKS) if method in (ALONE[x], *JOINT)}
    found = {i: 10.0 if None in learnt.values() else 100 * x for i, x in learnt.items()}
    return [found.get(i, math.nan) for i in range(len(TASKS))]


def accuracies(
    record: tuned.Record, methods: Sequence[str]
) -> tuple[list[int], dict[str, np.ndarray]]:
    """The seeds on which all these methods ran, and accuracies `[task, set, seed]` in per cent: 10
    for a run that stopped being finite, NaN for a task that is not learnt. Raises DataError for
    fewer than two seeds.
    """
    found = record.whole(methods)
    every = [
        [[of_run(name, row) for row in rows] for name, rows in zip(methods, each, strict=True)]
        for each in found.values()
    ]
    return list(found), dict(zip(methods, np.array(every).transpose(1, 3, 2, 0), strict=True))


def kept(cell: Cell, numbers: Numbers) -> list[float | None]:
    """What the record has of a run: accuracies on held-out pairs and of both tasks on test pairs;
    of Nash-MTL also the mean sum of its weights in every tenth of the steps.
    """
    own = [numbers["test"].get(task, math.nan) for task in TASKS]
    return [numbers["score"], *own, *numbers.get("sums", ())]


class Found(NamedTuple):
    """Of the seeds on which all methods ran; before that, on which the first ones did."""

    seeds: list[int]
    levels: dict[str, np.ndarray]  # accuracies `[set, seed]` in per cent, mean over both tasks
    alone: dict[str, np.ndarray]  # the same of the networks that learn one task; none before
    deltas: dict[str, np.ndarray]  # Δm `[seed]` in per cent; none without the networks alone
    waits: str  # why the other methods are not there


def found(record: tuned.Record) -> Found:
    """What the record has. Raises DataError for fewer than two whole seeds."""
    waits, alone, deltas = "", dict[str, np.ndarray](), dict[str, np.ndarray]()
    try:
        seeds, each = accuracies(record, JOINT)
    except DataError as error:
        waits, (seeds, each) = str(error), accuracies(record, FIRST)
    with suppress(DataError):
        _, every = accuracies(record, SINGLE)  # of their own seeds, while some wait
        alone = {name: every[name][task] for task, name in enumerate(SINGLE)}
        base = np.stack([*alone.values()]).mean(-1, keepdims=True)  # one may have broken down
        deltas = {name: 100 * (1 - x / base).mean((0, 1)) for name, x in each.items()}
    return Found(seeds, {name: x.mean(0) for name, x in each.items()}, alone, deltas, waits)


def shown(record: tuned.Record) -> tuple[str, Figure]:
    """What the record says so far. Raises DataError for fewer than two whole seeds."""
    seeds, levels, alone, deltas, waits = found(record)
    state = f"{len(seeds)} of {len(SEEDS)} seeds"
    state += ", so that the verdicts are provisional" * (len(seeds) < len(SEEDS))
    gains, rivals = True, f"The other methods are not compared yet. {waits}."
    if not waits:
        judged = against_mean(levels, RIVALS)
        gains = judged[NASH].verdict.startswith("above")
        rivals = rivals_table(judged, levels, SETS)
    every = levels | alone
    rates = {name: [record.shown_rate(which, name) for which in SETS] for name in every}
    parts = [f"{state}.", rivals, arms_table(levels, NASH, ARMS, gains=gains)]
    parts += [levels_table(rates, every, deltas, SETS)]
    if alone:
        base = np.stack([*alone.values()])
        off = 100 * np.linalg.norm(half_width(base) / base.mean(-1)) / base[..., 0].size
        parts[-1] += (
            "\n\nΔm is what is lost against the networks alone, each by its mean over its seeds, "
            f"whose error ({off:.1f} at 95 %) moves all of them together."
        )
    parts += [record.machines()]
    drawn = panels(levels, [x for x in levels if x not in ("mean", *BORROWED)], SETS)
    return "\n\n".join(parts), side_by_side(drawn, dict.fromkeys(ARMS, "C7"))


def perform(data: Source, sums: Path, device: str, cells: Sequence[Cell]) -> list[Numbers]:
    """Runs of one set and method; Nash-MTL's sums of weights go into `sums`, for the arms."""
    settings, method = Settings(data, 10, 256, True, device, cells[0].problem), cells[0].method
    variant = "c 0.5" if method == "cagrad" else ""
    own = [cell._replace(problem=BASE, variant=variant) for cell in cells]
    nash = [cell._replace(method=NASH) for cell in cells]
    places = [sums / f"{slug(str(cell))}.pt" for cell in nash]
    if method in BORROWED:
        missing = [cell for cell, place in zip(nash, places, strict=True) if not place.exists()]
        if missing:
            perform(data, sums, device, missing)
        factors = [factors_of(settings, torch.load(x), method == COSINE) for x in places]
        own = [cell._replace(method="mean") for cell in own]
        return together(settings, own, torch.stack(factors))
    seen: list[Tensor] = []
    numbers = together(settings, own, watch=lambda info: seen.append(info.weights.sum(-1)))
    # [cell, step]; no step where a run is refused at its first one
    of_steps = torch.cat([torch.empty(0, device=device), *seen]).cpu().view(len(seen), len(cells)).T
    for cell, place, found, done in zip(cells, places, numbers, of_steps, strict=True):
        if method == NASH and cell.seed not in GRID.tuning:
            whole = torch.full((found["steps"],), math.nan)
            whole[: len(done)] = done
            sums.mkdir(parents=True, exist_ok=True)  # on the machine of a worker
            write_whole(place, functools.partial(torch.save, whole))
            tenths = [float(part.mean()) for part in whole.tensor_split(10)]
            found["sums"] = [float(f"{x:.4g}") if math.isfinite(x) else None for x in tenths]
    return numbers


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


def performer(
    data: Path, out: Path, sets: Sequence[str], device: str
) -> functools.partial[list[Numbers]]:
    """Of cells of one set and method, from the published files."""
    return functools.partial(perform, source_of(data, sets), out / "sums", device)


def source_of(data: Path, sets: Iterable[str]) -> Source:
    """The published files. Raises DataError for others."""
    for which in sets:
        held, _ = mnist.checked(data, which)
        if "not the published" in held:
            raise DataError(f"{data}: expected the published files, got {held}")
    return Files(data, {path for which in sets for path in mnist.files(data, which)}).source


def power(record: tuned.Record) -> str:
    """What difference is seen, from the deviations of the first study."""
    earlier = differences(RECORD.with_name("images.json"))
    return power_table(earlier, len(RIVALS), (8, len(SEEDS)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study or a part of it; the exit status."""
    name, names = "python -m experiments.multimnist.power", ("held-out pairs", *TASKS)
    of = (HERE, HERE / "power.md", RECORD, DESIGN, performer, kept, power)
    return tuned.command(tuned.Study(name, *of, shown, names), argv)


if __name__ == "__main__":
    sys.exit(main())
