"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--tasks 4 40 ...] [--batch 64
    ...] [--seconds S] [--out DIR]

Writes gramian.json (after every case; a run that was stopped goes on where it was, --again measures
again) and gramian.md. A case is reused only where machine, versions, sources and settings are the
same.

Time: one call from parameters and batch to the Gramian, or to Gramian and combined gradient (a
step). All contenders of a case take turns, in random order, so that what else the machine does hits
all of them alike; compare ratios, not milliseconds. The least is one gradient of the mean loss. On
a busy machine, OMP_NUM_THREADS=1 and --clock cpu count the processor's time instead of the wall's.
Memory: the most that one call holds beyond what was there before it, as the allocator counts it.
Error: worst |G_ij - H_ij| / √(H_ii H_jj) against a float64 Gramian H from a loop of backward
passes; of a step, also of the gradient, ‖g - h‖ / ‖h‖.
"""

import argparse
import importlib.util
import math
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.arguments import at_least
from experiments.benchmarks import runner
from experiments.benchmarks.gramian_ways import (
    contenders,
    gram,
    leaves_of,
    losses_of,
    some_weights,
    vector,
)
from experiments.benchmarks.measuring import Call, in_shares, with_memory
from experiments.benchmarks.networks import BUILDERS, LAPLACIANS, Problem, describe, problem
from experiments.benchmarks.record import Row

MLP_TASKS = [(40, 128), *((t, b) for b in (64, 256) for t in (2, 4, 8, 40))]
# family -> (tasks, batch) on a CPU and on a GPU
GRIDS: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {
    "mlp-sample": ([(1, 64), (1, 128), (1, 256)], [(1, 64), (1, 128), (1, 256)]),
    "mlp-task": (MLP_TASKS, MLP_TASKS),
    "resnet18": ([(4, 8)], [(4, 64), (40, 64)]),
    "transformer-sample": ([(1, 64)], [(1, 64), (1, 256)]),
    "transformer-task": ([(8, 64), (40, 64)], [(8, 64), (40, 64)]),
    "decoders": ([(4, 8)], [(4, 64)]),
    "own-inputs": ([(8, 64)], [(8, 64)]),
    **{name: ([(1, 256)], [(1, 256)]) for name in BUILDERS if name.split("-")[0] in LAPLACIANS},
}
IMAGES = {"cpu": 32, "cuda": 64}  # sides in pixels
PEERS = ("torchjd", "opacus", "backpack")


class Case(NamedTuple):
    """One network and its batch on a device."""

    family: str
    tasks: int
    batch: int
    image: int
    device: str

    def name(self) -> str:
        return describe(*self[:4])


def reference(task: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Gramian and a step's gradient in float64, a few leaves at a time."""
    shared, heads = leaves_of(task)
    losses = losses_of(task)(shared | heads, task.batch)
    count = len(losses)
    gramian = vector(losses).new_zeros(count, count)
    names, most = list(shared), 2**27 // count  # a gigabyte of rows
    while names:
        some = [names.pop(0)]
        while names and sum(shared[n].numel() for n in [*some, names[0]]) <= most:
            some.append(names.pop(0))
        rows = [
            torch.autograd.grad(losses[i], [shared[n] for n in some], retain_graph=True)
            for i in range(count)
        ]
        gramian += gram([torch.stack(parts) for parts in zip(*rows, strict=True)])
    weighted = (some_weights(count, gramian) * vector(losses)).sum()
    pulled = torch.autograd.grad(weighted, list(shared.values()), retain_graph=True)
    step = dict(zip(shared, pulled, strict=True))
    if heads:
        own = torch.autograd.grad(vector(losses).mean(), list(heads.values()))
        step |= dict(zip(heads, own, strict=True))
    return gramian.detach(), step


def error(quantity: str, answer: Any, truth: tuple[Tensor, dict[str, Tensor]]) -> float:
    """Worst relative error of a Gramian, and of a step's gradient; NaN for a mean gradient."""
    if quantity == "gradient":
        return float("nan")
    gramian, step = answer if quantity == "step" else (answer, None)
    scale = truth[0].diagonal().sqrt()
    worst = float(((gramian.double() - truth[0]).abs() / (scale[:, None] * scale)).amax())
    if step is not None:
        assert step.keys() == truth[1].keys()
        off = sum(float((step[n].double() - x).square().sum()) for n, x in truth[1].items())
        worst = max(worst, math.sqrt(off / sum(float(x.square().sum()) for x in truth[1].values())))
    return worst


def measure(
    case: Case, seconds: float, clock: str = "wall", methods: list[str] | None = None
) -> list[Row]:
    """Every contender of one case.

    Args:
        case: what is measured.
        seconds: time for each contender.
        clock: a key of `CLOCKS`.
        methods: names of the contenders that take part next to the mean gradient; all by default.

    Returns:
        A row a contender, with what it cannot do under "failed".
    """
    family, count, batch, image, device = case
    base = problem(family, count, batch, image)
    task, double = base.to(device), base.to(device, torch.float64)
    truth = reference(double)
    rows: dict[tuple[str, str], Row] = {}
    calls: dict[tuple[str, str], Call] = {}
    common = {"family": family, "case": case.name(), "tasks": count, "batch": batch}
    for quantity, method, make in contenders(task, family):
        if methods and quantity != "gradient" and method not in methods:
            continue
        row: Row = common | {"device": device, "quantity": quantity, "method": method}
        rows[quantity, method] = row
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                call = make(task)
                answer, row["memory"] = with_memory(call, device)
                row["error"] = error(quantity, answer, truth)
                del answer
                if method.startswith("ours") and not (device == "cuda" and family == "resnet18"):
                    row["error64"] = error(quantity, make(double)(), truth)
            row["warned"] = sorted({str(w.message).splitlines()[0] for w in said})
            calls[quantity, method] = call
        except Exception as reason:  # a peer that cannot do this is a result too
            row["failed"] = f"{type(reason).__name__}: {reason}"
            first = row["failed"].splitlines()[0]
            tqdm.write(f"{case.name()} {device}: {quantity}, {method} failed: {first}")
    del truth, double
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = in_shares(calls, seconds, clock, device)
    for name, taken in times.items():
        rows[name] |= {"median": median(taken), "fastest": min(taken), "calls": len(taken)}
    return list(rows.values())


def precision(case: Case, full: bool) -> None:
    """TF32 in the ResNet on a GPU, unless full float32 is wanted; full float32 everywhere else."""
    precise = full or case.family != "resnet18" or case.device != "cuda"
    torch.set_float32_matmul_precision("highest" if precise else "high")
    torch.backends.cudnn.allow_tf32 = not precise


def cases(given: argparse.Namespace) -> list[Case]:
    """The cases that the command line names."""
    found = []
    for device in given.devices:
        image = given.image or IMAGES[device]
        for family in given.cases:
            grid = GRIDS[family][device == "cuda"]
            tasks = given.tasks or list(dict.fromkeys(t for t, _ in grid))
            batches = given.batch or list(dict.fromkeys(b for _, b in grid))
            if given.tasks or given.batch:
                every = [1] if family.endswith("-sample") else tasks
                grid = [(t, b) for t in every for b in batches]
            found += [Case(family, t, b, image, device) for t, b in grid]
    return found


def find(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that were timed and have these entries."""
    return [
        row
        for row in rows
        if "fastest" in row and all(row[key] == value for key, value in wanted.items())
    ]


class Bar(NamedTuple):
    """What the layerwise engine is for."""

    family: str
    tasks: int
    batch: int
    device: str
    quantity: str
    method: str
    others: tuple[str, ...]  # against the best of these
    limit: float  # the most of theirs that it may be
    what: str = "time"


TORCHJD = ("TorchJD autojac", "TorchJD autogram")
BARS = [
    Bar("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("mean gradient",), 2.0),
    Bar("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), 1 / 50),
    Bar("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), 0.5),
    Bar("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("loop",), 0.5),
    Bar("resnet18", 4, 8, "cpu", "gramian", "ours, auto", ("loop", "vmap(vjp)", *TORCHJD), 1.05),
    *(
        Bar(family, tasks, batch, "cpu", quantity, f"ours, auto{stacked}", ("loop",), 1.3)
        for family, tasks, batch in (("decoders", 4, 8), ("own-inputs", 8, 64))
        for quantity in ("gramian", "step")
        for stacked in ("", ", stacked")
    ),
    *(
        Bar(
            f"{way}-{width}-sample",
            1,
            256,
            "cpu",
            "gramian",
            "ours, auto",
            ("mean gradient",),
            most,
        )
        for way, width, most in (
            ("jets", 128, 7.0),
            ("jets", 256, 3.5),
            ("autograd", 128, 12.0),
            ("autograd", 256, 6.0),
        )
    ),
    Bar("resnet18", 40, 64, "cuda", "gramian", "ours, auto", TORCHJD, 1.0),
    Bar("resnet18", 40, 64, "cuda", "gramian", "ours, auto", TORCHJD, 0.35, "memory"),
]


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for bar in BARS:
        case = find(rows, family=bar.family, tasks=bar.tasks, batch=bar.batch, device=bar.device)
        mine = find(case, quantity=bar.quantity, method=bar.method)
        against = [
            row
            for row in case
            if row["method"] in bar.others and row["quantity"] in (bar.quantity, "gradient")
        ]
        if mine and against:
            keys = ("memory",) * 2 if bar.what == "memory" else ("median", "fastest")
            best = min(against, key=lambda row, key=keys[1]: row[key])
            found.append(
                {
                    "case": f"{mine[0]['case']}, {bar.device}, {bar.quantity}",
                    "method": bar.method,
                    "against": best["method"],
                    "what": bar.what,
                    "median": mine[0][keys[0]] / best[keys[0]],
                    "fastest": mine[0][keys[1]] / best[keys[1]],
                    "limit": bar.limit,
                }
            )
    return found


def methods_of(family: str) -> set[str]:
    """Names of the contenders of a family of problems."""
    return {method for _, method, _ in contenders(problem(family, 2, 2, 8), family)}


def _device(text: str) -> str:
    if text not in IMAGES or (text == "cuda" and not torch.cuda.is_available()):
        where = "cpu or cuda" if torch.cuda.is_available() else "cpu: torch finds no CUDA device"
        raise argparse.ArgumentTypeError(f"expected {where}, got {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = runner.parser(__doc__, 1.0, "wall", "time for each contender of a case")
    add, own = parser.add_argument, "instead of each case's own"
    add("--cases", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    tasks = f"numbers of tasks, {own}; with --batch all pairs"
    add("--tasks", type=at_least(1), nargs="+", help=tasks)
    add("--batch", type=at_least(1), nargs="+", help=f"batch sizes, {own}")
    sides = "side of the images in pixels; 32 on a CPU, 64 on a GPU"
    add("--image", type=at_least(8), help=sides)
    names = "only these, as the table names them, and the mean gradient"
    add("--methods", nargs="+", help=names)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    add("--devices", nargs="+", type=_device, default=devices)
    full = "full float32 products on a GPU, also in the ResNet"
    add("--no-tf32", action="store_true", help=full)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    wanted = {(case.name(), case.device): case for case in cases(given)}
    if given.methods:
        known = {name for family in given.cases for name in methods_of(family)}
        if unknown := sorted(set(given.methods) - known):
            parser.error(f"--methods: unknown {', '.join(unknown)}; of {', '.join(sorted(known))}")
    for package in PEERS:
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed: left out")
    about: Row = {"TF32": not given.no_tf32} if "cuda" in given.devices else {}

    def order(row: Row) -> tuple[Any, ...]:
        return row["device"], list(BUILDERS).index(row["family"]), row["tasks"], row["batch"]

    fields, methods = ("case", "device"), given.methods or "all"
    record = runner.record_of(given, "gramian", fields, order, methods=methods, **about)

    def one(name: str, device: str) -> list[Row]:
        precision(wanted[name, device], given.no_tf32)
        return measure(wanted[name, device], given.seconds, given.clock, given.methods)

    runner.run(given, record, wanted, one)


if __name__ == "__main__":
    main()
