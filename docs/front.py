"""The front page's table of numbers: each is read from a record or a page that a command writes."""

import re
from collections.abc import Iterator
from pathlib import Path

from docs.blocks import marked, part, row_of
from experiments.benchmarks import gpu_report, record

DOCS = Path(__file__).parent
GPT = "GPT-2 small, 163 M, 16 × 512 tokens, bf16 autocast, K = 16"
MGDA, SAMPLES = "min-norm (MGDA) | 32", "MLP 3×512, 128 samples"
Line = tuple[str, str, str, str]
"""What, how much, the command, and where and when."""
Kept = dict[tuple[str, str], record.Row]


def block() -> str:
    """The table between its markers."""
    head = ["| what | measured | by `python -m experiments.…` | taken |", "|---|---|---|---|"]
    kept = {gpu_report.cell_of(row): row for row in record.read(gpu_report.KEPT)}
    rows = [f"| {' | '.join(row)} |" for row in [*of_device(kept), *of_pages(kept)]]
    return marked("numbers", "\n".join([*head, *rows]))


def of_device(kept: Kept) -> Iterator[Line]:
    """From gpu.json."""

    def line(what: str, said: str, *from_rows: record.Row) -> Line:
        first, days = from_rows[0], sorted({row["day"] for row in from_rows})
        where = first["settings"]["GPU"].removeprefix("NVIDIA ").split()[0]
        taken = f"{where}, {' and '.join(days)}"
        return what, said, f"`benchmarks.gpu --parts {first['part']}`", taken

    lanes = kept["lanes", "mgda, Adam, 4,096 runs"]
    all_of_them = lanes["note"].split(" a step")[0]
    yield line(
        "4,096 trainings with MGDA and Adam as one program",
        f"{all_of_them} a step of all, {gpu_report.measured(lanes)}",
        lanes,
    )
    ours = kept["weightings", f"{GPT}: mf.Balancer"]
    others = {
        said: kept["weightings", f"{GPT}: {name}"]
        for name, said in (("K passes", "K passes"), ("TorchJD", "TorchJD's autogram"))
        if ("weightings", f"{GPT}: {name}") in kept
    }
    text = "; ".join(f"{said} {_number(row)}" for said, row in others.items())
    yield line(
        "GPT-2 small, 16 weightings of its 16 samples as tasks",
        f"{_number(ours)} plain steps ({text})",
        *(ours, *others.values()),
    )


def _number(row: record.Row) -> str:
    failed = "out of memory" if "OutOfMemory" in row["note"] else "cannot"
    return failed if row["value"] is None else gpu_report.measured(row, unit=False)


def of_pages(on_gpu: Kept) -> Iterator[Line]:
    """From pages that commands write."""
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    yield from of_steps(part(page, "steps"), part(page, "memory"))
    about = part(page, "solvers")
    found = {name: cell.strip(")").split(" (") for name, cell in row_of(about, MGDA).items()}
    (time, gap), (theirs, off) = found["`active_set`"], found["TorchJD, defaults"]
    yield (
        "MGDA's problem of 32 tasks, exact, with a certificate",
        f"{time} µs, gap {gap} (TorchJD at its defaults {theirs} µs, gap {off})",
        "`benchmarks.solvers`",
        f"CPU, {day_of(about)}",
    )
    about = part(page, "gramians")
    found = row_of(about, SAMPLES)
    cells = {name: cell.split(" ")[0] for name, cell in list(found.items())[2:]}
    times = {name: float(cell) for name, cell in cells.items() if cell != "–"}
    ours = times.pop("ours, auto")
    best = min(times, key=times.__getitem__)
    said = f"{ours:g} gradients of their mean (the best other, {best}: {times[best]:g})"
    launched = on_gpu.get(("gramian", f"{SAMPLES}: time"))
    said += f"; on an H100 {launched['value']:.2f} of TorchJD's best" if launched else ""
    where = f"CPU, {day_of(about)}"
    yield "Gramian of 128 samples, MLP 3×512", said, "`benchmarks.gramian`", where


def of_steps(about: str, held: str) -> Iterator[Line]:
    """Time and memory of a ResNet's step with few and many tasks."""
    tasks = ("2", "3", "40")
    rows = [row_of(about, f"ResNet-18, {count} tasks, batch 8") for count in tasks]
    plain = [float(row["mean-loss step, ms"]) for row in rows]

    def ms(name: str) -> str:
        return ", ".join(
            f"{one * float(row[name]):,.0f}" for one, row in zip(plain, rows, strict=True)
        )

    others = ("shortest loop", "TorchJD", "LibMTL-style")
    where = f"CPU, {day_of(about)}"
    what = f"MGDA's step of ResNet-18, 8 images, with {', '.join(tasks[:-1])} and {tasks[-1]} tasks"
    said = "; ".join(f"{name} {ms(name)}" for name in others)
    yield (
        f"{what}, ms",
        f"{ms('mf.Balancer')} (the mean loss {', '.join(f'{x:,.0f}' for x in plain)}; {said})",
        "`benchmarks.steps`",
        where,
    )
    found = [row_of(held, f"{count} tasks, 8 images") for count in tasks]

    def mib(name: str) -> str:
        return ", ".join(row[name] for row in found)

    said = "; ".join(f"{name} {mib(name)}" for name in others)
    where = f"CPU, {day_of(held)}"
    yield f"{what}, MiB", f"{mib('mf.Balancer')} ({said})", "`benchmarks.memory`", where


def day_of(text: str) -> str:
    """The first day that a text names."""
    found = re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    if not found:
        raise SystemExit(f"no day is named in {text[:60]!r}")
    return found[0]
