"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--tasks T] [--batch B]
    [--seconds S] [--clock cpu] [--out DIR]

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

CASES = {
    "mlp-sample": (1, 128),
    "mlp-task": (40, 128),
    "resnet18": (4, 8),
    "decoders": (4, 8),
    "own-inputs": (8, 64),
    **{name: (1, 256) for name in BUILDERS if name.split("-")[0] in LAPLACIANS},
}
"""Tasks and batch of every family of problems, as the page shows them."""
IMAGES = {"cpu": 32, "cuda": 64}  # sides in pixels


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
    case: Case, seconds: float, clock: str = "wall", methods: Sequence[str] = ()
) -> list[Row]:
    """A row for every contender of a case, or for these `methods` and the mean gradient, which have
    `seconds` each; what one cannot do stands under "failed".
    """
    family, count, batch, image, device = case
    base = problem(family, count, batch, image)
    task, double = base.to(device), base.to(device, torch.float64)
    truth = reference(double)
    rows: dict[tuple[str, str], Row] = {}
    calls: dict[tuple[str, str], Call] = {}
    common = {"family": family, "case": case.name(), "tasks": count, "batch": batch}
    for quantity, method, make in contenders(task):
        if methods and quantity != "gradient" and method not in methods:
            continue
        row: Row = common | {"device": device, "quantity": quantity, "method": method}
        rows[quantity, method] = row
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = make(task)
                answer, row["memory"] = with_memory(call, device)
            row["error"] = error(quantity, answer, truth)
            del answer
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


def precision(case: Case) -> None:
    """TF32 in the ResNet on a GPU, full float32 everywhere else."""
    fast = case.family == "resnet18" and case.device == "cuda"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast


TORCHJD = ("TorchJD autojac", "TorchJD autogram")
OURS = "ours, auto"
BARS: list[tuple[str, str, str, tuple[str, ...], float]] = [
    ("mlp-sample", "gramian", OURS, ("mean gradient",), 2.0),
    ("mlp-sample", "gramian", OURS, TORCHJD[1:], 1 / 50),
    ("mlp-task", "gramian", OURS, TORCHJD[1:], 0.5),
    ("mlp-task", "gramian", OURS, ("loop",), 0.5),
    ("resnet18", "gramian", OURS, ("loop", "vmap(vjp)", *TORCHJD), 1.05),
    *(
        (family, quantity, f"{OURS}{stacked}", ("loop",), 1.3)
        for family in ("decoders", "own-inputs")
        for quantity in ("gramian", "step")
        for stacked in ("", ", stacked")
    ),
    ("jets-128-sample", "gramian", OURS, ("mean gradient",), 7.0),
    ("jets-256-sample", "gramian", OURS, ("mean gradient",), 3.5),
    ("autograd-128-sample", "gramian", OURS, ("mean gradient",), 12.0),
    ("autograd-256-sample", "gramian", OURS, ("mean gradient",), 6.0),
]
"""Family, quantity, contender, its rivals, and the most of the best one's time that it may take."""


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for family, quantity, method, others, limit in BARS:
        case = [
            row
            for row in rows
            if (row["family"], row["tasks"], row["batch"]) == (family, *CASES[family])
            and "fastest" in row
            and row["quantity"] in (quantity, "gradient")
        ]
        mine = [row for row in case if (row["quantity"], row["method"]) == (quantity, method)]
        rivals = [row for row in case if row["method"] in others]
        if mine and rivals:
            best = min(rivals, key=lambda row: row["fastest"])
            ratios = {key: mine[0][key] / best[key] for key in ("median", "fastest")}
            said = {"case": f"{mine[0]['case']}, {quantity}", "method": method}
            found.append(said | {"against": best["method"], "limit": limit} | ratios)
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = runner.parser(__doc__, 1.0, "wall", "time for each contender of a case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tasks", type=at_least(1), help="instead of each case's own")
    parser.add_argument("--batch", type=at_least(1), help="instead of each case's own")
    given = parser.parse_args(arguments)
    wanted = [
        Case(family, given.tasks or tasks, given.batch or batch, IMAGES["cpu"], "cpu")
        for family, (tasks, batch) in CASES.items()
        if family in given.cases
    ]
    cases = {(case.name(),): case for case in wanted}

    def one(name: str) -> list[Row]:
        return measure(cases[name,], given.seconds, given.clock)

    record = runner.record_of(
        given, "gramian", ("case",), lambda row: list(CASES).index(row["family"])
    )
    runner.run(given, record, cases, one)


if __name__ == "__main__":
    main()
