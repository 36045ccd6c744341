"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--tasks 4 40 ...] [--batch 64
    ...] [--seconds S] [--out DIR]

Writes gramian.json (after every case; a run that was stopped goes on where it was, --again measures
again), gramian.md and gramian.png. A case is reused only where machine, versions, sources and
settings are the same.

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
import random
import warnings
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.arguments import at_least, folder, positive
from common.progress import Progress
from experiments.benchmarks.gramian_report import figure, tables
from experiments.benchmarks.gramian_ways import (
    contenders,
    gram,
    leaves_of,
    losses_of,
    some_weights,
    vector,
)
from experiments.benchmarks.measuring import CLOCK_HELP, CLOCKS, Call, timed, with_memory
from experiments.benchmarks.networks import BUILDERS, LAPLACIANS, Problem, describe, problem
from experiments.benchmarks.record import Record, Row, settings

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
ROUNDS = 9
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


def take_turns(
    calls: dict[tuple[str, str], Call], device: str, seconds: float, clock: str, bar: Any
) -> dict[tuple[str, str], list[float]]:
    """All times of every contender, in random turns.

    Fast ones are called several times a turn; slow ones take part in three rounds at least.
    """
    once = {name: timed(call, clock, device) for name, call in calls.items()}
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for turn in range(ROUNDS):
        order = list(calls)
        shuffle(order)
        for name in order:
            rounds = min(ROUNDS, max(3, int(seconds / once[name])))
            if (turn * rounds) % ROUNDS < rounds:
                for _ in range(max(1, min(200, int(seconds / ROUNDS / once[name])))):
                    times[name].append(timed(calls[name], clock, device))
        if bar is not None:
            bar.update()
    return times


def measure(
    case: Case,
    seconds: float,
    clock: str = "wall",
    methods: list[str] | None = None,
    bar: Any = None,
) -> list[Row]:
    """Every contender of one case.

    Args:
        case: what is measured.
        seconds: time for each contender.
        clock: a key of `CLOCKS`.
        methods: names of the contenders that take part next to the mean gradient; all by default.
        bar: a progress bar, advanced once a round.

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
        times = take_turns(calls, device, seconds, clock, bar)
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


def methods_of(family: str) -> set[str]:
    """Names of the contenders of a family of problems."""
    return {method for _, method, _ in contenders(problem(family, 2, 2, 8), family)}


def _device(text: str) -> str:
    if text not in IMAGES or (text == "cuda" and not torch.cuda.is_available()):
        where = "cpu or cuda" if torch.cuda.is_available() else "cpu: torch finds no CUDA device"
        raise argparse.ArgumentTypeError(f"expected {where}, got {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=folder, default=str(Path(__file__).parent / "out"))
    add("--cases", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    own = "instead of each case's own"
    tasks = f"numbers of tasks, {own}; with --batch all pairs"
    add("--tasks", type=at_least(1), nargs="+", help=tasks)
    add("--batch", type=at_least(1), nargs="+", help=f"batch sizes, {own}")
    sides = "side of the images in pixels; 32 on a CPU, 64 on a GPU"
    add("--image", type=at_least(8), help=sides)
    add("--seconds", type=positive, default=1.0, help="time for each contender of a case")
    names = "only these, as the table names them, and the mean gradient"
    add("--methods", nargs="+", help=names)
    add("--clock", default="wall", choices=list(CLOCKS), help=CLOCK_HELP)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    add("--devices", nargs="+", type=_device, default=devices)
    full = "full float32 products on a GPU, also in the ResNet"
    add("--no-tf32", action="store_true", help=full)
    add("--again", action="store_true", help="measure anew what the record already has")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    wanted = cases(given)
    if given.methods:
        known = {name for family in given.cases for name in methods_of(family)}
        if unknown := sorted(set(given.methods) - known):
            parser.error(f"--methods: unknown {', '.join(unknown)}; of {', '.join(sorted(known))}")
    for package in PEERS:
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed: left out")
    record = Record(
        given.out / "gramian.json",
        ("case", "device"),
        settings(
            seconds=given.seconds,
            clock=given.clock,
            methods=given.methods or "all",
            **({"TF32": not given.no_tf32} if "cuda" in given.devices else {}),
        ),
        order=lambda row: (
            *(row["device"], list(BUILDERS).index(row["family"])),
            *(row["tasks"], row["batch"]),
        ),
    )
    left = [case for case in wanted if given.again or record.missing([(case.name(), case.device)])]
    try:
        with Progress(len(left) * ROUNDS, "Gramians", "rounds") as bar:
            for case in left:
                precision(case, given.no_tf32)
                record.keep(*measure(case, given.seconds, given.clock, given.methods, bar))
    except KeyboardInterrupt:
        many = len({(row["case"], row["device"]) for row in record.rows})
        tqdm.write(f"stopped; {record.path} has {many} cases, and the next run goes on")
    record.write_tables(given.out / "gramian.md", tables)
    if record.here():
        figure(record.here(), given.out / "gramian.png")


if __name__ == "__main__":
    main()
