"""What `python -m experiments.multimnist.power` found, for docs/benchmarks.md, the README and the
claims.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.files import DataError
from common.intervals import bracket, estimate
from common.pooled import Judged, against_arms, against_mean, broken
from common.tables import markdown, write_png
from common.tuned import Record
from docs.blocks import marked, paragraph, replaced
from experiments.multimnist import power as study
from experiments.multimnist.train import BASE, TASKS
from mtlfunc.core.files import write_whole
from paper_repro.report import images

PAGE = Path(__file__).parent / "benchmarks.md"
CPU = study.RECORD.with_name("power-cpu.json")
"""Runs of a CPU, of cells of which the record has a device's."""
FIGURE = "![Accuracy less the mean loss's of six rivals and two variants of Nash-MTL, three sets "
FIGURE += "together and one by one, with 95 % intervals, one at a time](images-power.png)"
CAPTION = "*Accuracy less the mean loss's, in points. Grey are variants of Nash-MTL.*"
TITLES = {study.NASH: "Nash-MTL", "uw": "UW", "pcgrad": "PCGrad", "cagrad": "CAGrad"}
TITLES |= {study.MGDA: "MGDA", "gradnorm": "GradNorm"}


def write() -> None:
    """The page's tables and figure, and the accuracies that decide claims."""
    record = Record(study.RECORD, study.DESIGN)
    path = images.RECORDS / f"{images.SECOND}.json"
    write_whole(path, json.dumps(accuracies(record), indent=1) + "\n")
    images.kept.cache_clear()
    text, figure = study.shown(record)
    parts = [part if part.startswith("|") else paragraph(part) for part in text.split("\n\n")]
    block = marked("power", *parts, FIGURE, CAPTION, *devices(record))
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), "power", block))
    write_png(figure, PAGE.with_name("images-power.png"))


def accuracies(record: Record) -> dict[str, Any]:
    """As `paper_repro.report.images` has them, of the seeds on which all ran."""
    seeds, found = study.accuracies(record, (*images.RULES, *study.SINGLE))
    return {
        which: {
            "seeds": seeds,
            "planned": len(study.SEEDS),
            "accuracies": {
                BASE: {
                    name: {
                        task: [round(x / 100, 6) for x in values.tolist()]
                        for task, values in zip(TASKS, of[:, at], strict=True)
                        if not np.isnan(values).any()
                    }
                    for name, of in found.items()
                }
            },
        }
        for at, which in enumerate(study.SETS)
    }


def devices(record: Record) -> list[str]:
    """How a device's runs differ from those of a CPU, by rate."""
    pairs: dict[str, list[list[float]]] = {}
    for cell, there in Record(CPU, study.DESIGN).runs.items():
        if cell not in record.runs:
            raise SystemExit(f"{CPU}: {cell} is not a run of {record.path}")
        method, rate, what = _parts(cell)
        both = [study.of_run(method, row) for row in (record.runs[cell], there)]
        pairs.setdefault(f"{rate}, seeds that {what}", []).append([*np.nanmean(both, 1)])
    lines = []
    for name in sorted(pairs):
        device, cpu = np.array(pairs[name]).T
        less = bracket(estimate([*map(float, device - cpu)])) if len(cpu) > 1 else "–"
        median = f"{np.median(device - cpu):+.2f}"
        below = [f"{broken(levels)}" for levels in (device, cpu)]
        lines.append([name, f"{len(cpu)}", less, median, *below])
    columns = ["rate", "runs", "GPU less CPU, points", "median", "GPU below 20 %", "CPU below 20 %"]
    first = sum("choose" in name and len(levels) for name, levels in pairs.items())
    gpu = [k for k, made in enumerate(record.made) if "NVIDIA" in made]
    cells = [cell for cell, row in record.runs.items() if row[0] in gpu]
    decide = [cell.rpartition(", rate ")[0] for cell in cells if _parts(cell)[2] == "decide"]
    counts = "; ".join(f"{what} ({count})" for what, count in Counter(decide).items())
    said = f"""Where both devices made a run, the record has the GPU's. This replaced {first} runs
        of a CPU that choose rates. Of the runs that decide, the GPU made these, and a CPU all
        others: {counts}. At a rate where training may break down the two differ, and it is not
        known why:"""
    every = [
        f"{name} {bracket(each.found.mixed)}, p {each.p:.2g}, {each.verdict}"
        for name, each in on_cpu(record).items()
    ]
    rest = f"""With the CPU's runs that decide in the place of the GPU's, methods differ from the
        mean loss by: {"; ".join(every)}."""
    return [paragraph(said), markdown(columns, lines), paragraph(rest)]


def _parts(cell: str) -> tuple[str, str, str]:
    """Method, rate, and what a run's seed is for, from the name of a run in the record."""
    name, seed = cell.rsplit(", seed ", 1)
    of, rate = name.rsplit(", rate ", 1)
    method = of.partition(", ")[2]
    return method, rate, "choose" if int(seed) in study.GRID.tuning else "decide"


def sentence() -> str:
    """Of the README. Raises DataError before all methods are compared."""
    record = Record(study.RECORD, study.DESIGN)
    found = study.found(record)
    if found.waits:
        raise DataError(found.waits)
    rivals, others = against_mean(found.levels, study.RIVALS), on_cpu(record)
    shown = [
        f"{TITLES[name]} by {bracket(each.found.mixed)}{' (not confirmed)' * each.found.drawn.open}"
        for name, each in rivals.items()
        if "not shown" not in (each.verdict, others[name].verdict)
    ]
    hang = [
        f"{TITLES[name]}'s {bracket(each.found.mixed)}"
        for name, each in rivals.items()
        if each.verdict != others[name].verdict
    ]
    seeds, planned = len(found.seeds), len(study.SEEDS)
    state = f"{seeds} seeds" if seeds == planned else f"{seeds} of {planned} seeds, provisional"
    are = "is" if len(shown) == 1 else "are"
    said = f"""On [three sets of real images](docs/benchmarks.md#twenty-seeds), {len(shown)} of
        {len(rivals)} methods {are} shown to differ from the mean loss in accuracy (points,
        {state})"""
    said += f"{': ' * bool(shown)}{', '.join(shown)}."
    these = f"{' and '.join(hang)} {'is' if len(hang) == 1 else 'are'} shown"
    said += f" Whether {these} depends on the device of some runs." * bool(hang)
    if rivals[study.NASH].verdict == others[study.NASH].verdict == "above":
        arm, *_ = against_arms(found.levels, study.NASH, study.ARMS)
        cost = bracket(arm.rest.found.mixed).replace("+", "")
        cost += " (not shown)" * (arm.rest.verdict == "not shown")
        said += f" Dividing Nash-MTL's weights by their sum costs {cost}."
    return said


def on_cpu(record: Record) -> dict[str, Judged]:
    """The rivals with the CPU's runs that decide in the place of the device's."""
    other = Record(record.path, study.DESIGN)
    own = Record(CPU, study.DESIGN).runs.items()
    other.runs |= {cell: row for cell, row in own if _parts(cell)[2] == "decide"}
    return against_mean(study.found(other).levels, study.RIVALS)
