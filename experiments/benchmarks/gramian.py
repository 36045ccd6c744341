"""Gramians of task and sample gradients: time, peak memory and error of every way to compute them.

    python -m experiments.benchmarks.gramian [--cases mlp-task ...] [--tasks 4 40 ...] [--batch 64
    ...] [--seconds S] [--out DIR]

Writes gramian.json (after every case; a run that was stopped goes on where it was, --again measures
anew), gramian.md and gramian.png.

Time: one call from parameters and batch to the Gramian, or to Gramian and combined gradient (a
step). All contenders of a case take turns, in random order, so that what else the machine does hits
all of them alike; compare ratios, not milliseconds. The floor is one gradient of the mean loss. On
a busy machine, OMP_NUM_THREADS=1 and --clock cpu count the processor's time instead of the wall's.
Memory: the most that one call holds beyond what was there before it, as the allocator counts it.
Error: worst |G_ij - H_ij| / √(H_ii H_jj) against a float64 Gramian H from a loop of backward
passes; of a step, also of the gradient, ‖g - h‖ / ‖h‖.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import mtlfunc as mf
from experiments.benchmarks.files import write
from experiments.benchmarks.networks import BUILDERS, Problem, describe, problem

mpl.use("Agg")
import matplotlib.pyplot as plt

Call = Callable[[], Any]
Row = dict[str, Any]

MLP_TASKS = [(40, 128), *((t, b) for b in (64, 256) for t in (2, 4, 8, 40))]
# family -> (tasks, batch) on a CPU and on a GPU, and the side of the images
GRIDS: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {
    "mlp-sample": ([(1, 64), (1, 128), (1, 256)], [(1, 64), (1, 128), (1, 256)]),
    "mlp-task": (MLP_TASKS, MLP_TASKS),
    "resnet18": ([(4, 8)], [(4, 64), (40, 64)]),
    "transformer-sample": ([(1, 64)], [(1, 64), (1, 256)]),
    "transformer-task": ([(8, 64), (40, 64)], [(8, 64), (40, 64)]),
    "decoders": ([(4, 8)], [(4, 64)]),
    "own-inputs": ([(8, 64)], [(8, 64)]),
}
IMAGES = {"cpu": 32, "cuda": 64}
ENGINES = ("auto", "layerwise", "rows")
ROUNDS = 9


def losses_of(task: Problem) -> Callable[[mf.types.Params, Any], Any]:
    return lambda params, batch: functional_call(task.module, params, (batch,))


def vector(losses: Any) -> Tensor:
    return losses if isinstance(losses, Tensor) else torch.stack(losses)


def gram(rows: Any) -> Tensor:
    """J Jᵀ from rows leaf by leaf."""
    return torch.stack([x.flatten(1) @ x.flatten(1).mT for x in rows]).sum(0)


def some_weights(count: int, like: Tensor) -> Tensor:
    """Those of no solver, which would be timed too."""
    weights = torch.linspace(1, 2, count, dtype=like.dtype, device=like.device)
    return weights / weights.sum()


def leaves_of(task: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared parameters and heads, as autograd's leaves."""
    named = dict(task.module.named_parameters())
    prefix = task.shared.removesuffix("*")
    return {n: x for n, x in named.items() if n.startswith(prefix)}, {
        n: x for n, x in named.items() if not n.startswith(prefix)
    }


def mean_gradient(task: Problem) -> Call:
    shared, heads = leaves_of(task)
    leaves, f = shared | heads, losses_of(task)
    return lambda: torch.autograd.grad(vector(f(leaves, task.batch)).mean(), list(leaves.values()))


def loop(task: Problem, *, stacked: bool = False, step: bool = False) -> Call:
    """autograd.grad of every loss; a step also takes, with each, the gradient of that task's own
    head.
    """
    shared, heads = leaves_of(task)
    f = losses_of(task)

    def call() -> Any:
        losses = f(shared | heads, task.batch)
        losses = vector(losses) if stacked else losses
        count, rows, found = len(losses), [], {}
        for i in range(count):
            own = [n for n in heads if n.startswith(f"heads.{i}.")] if step else []
            grads = torch.autograd.grad(
                losses[i], [*shared.values(), *(heads[n] for n in own)], retain_graph=i + 1 < count
            )
            rows.append(grads[: len(shared)])
            found |= {n: x / count for n, x in zip(own, grads[len(shared) :], strict=True)}
        leaves = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        gramian = gram(leaves)
        if not step:
            return gramian
        weights = some_weights(count, gramian)
        return gramian, found | {
            n: torch.tensordot(weights, x, 1) for n, x in zip(shared, leaves, strict=True)
        }

    return call


def vmap_vjp(task: Problem) -> Call:
    shared, heads = leaves_of(task)
    fixed, params, f = (
        {n: x.detach() for n, x in heads.items()},
        {n: x.detach() for n, x in shared.items()},
        losses_of(task),
    )

    def call() -> Tensor:
        losses, pull = vjp(lambda p: vector(f(p | fixed, task.batch)), params)[:2]
        with torch.no_grad():  # or the rows would keep a graph of their own
            return gram(
                vmap(lambda v: tuple(pull(v)[0].values()))(
                    torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
                )
            )

    return call


def vmap_grad(task: Problem) -> Call:
    params, f = mf.parameters(task.module), losses_of(task)
    one = grad(lambda p, sample: f(p, tuple(x[None] for x in sample))[0])
    return lambda: gram(vmap(one, (None, 0))(params, task.batch).values())


def autojac(task: Problem) -> Call:
    from torchjd.autojac import jac  # a test dependency

    leaves = list(leaves_of(task)[0].values())
    return lambda: gram(jac(task.module(task.batch), leaves))


def autogram(task: Problem) -> Call:
    from torchjd.autogram import Engine  # a test dependency

    # its hooks stay on the modules
    apart = task.to(task.batch[0].device.type, next(task.module.parameters()).dtype)
    engine = Engine(apart.trunk, batch_dim=0 if task.per_sample else None)
    return lambda: engine.compute_gramian(vector(apart.module(apart.batch)))


def opacus(task: Problem) -> Call:
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]  # not a dependency

    apart = task.to(task.batch[0].device.type, next(task.module.parameters()).dtype)
    module = GradSampleModule(apart.module, loss_reduction="sum")

    def call() -> Tensor:
        module(apart.batch).sum().backward()
        gramian = gram([x.grad_sample for x in module.parameters()])
        module.zero_grad(set_to_none=True)
        for x in module.parameters():
            x.grad_sample = None
        return gramian

    return call


def backpack(task: Problem) -> Call:
    from backpack import backpack, extend, extensions  # pyright: ignore[reportMissingImports]  # not a dependency

    apart = task.to(task.batch[0].device.type, next(task.module.parameters()).dtype)
    net, loss = (
        extend(apart.module.get_submodule("net")),
        extend(torch.nn.CrossEntropyLoss(reduction="sum")),
    )
    x, y = apart.batch

    def call() -> Tensor:
        with backpack(extensions.BatchGrad()):
            loss(net(x), y).backward()
        gramian = gram([p.grad_batch for p in net.parameters()])
        for p in net.parameters():
            p.grad = p.grad_batch = None
        return gramian

    return call


def ours(
    task: Problem, engine: Any, *, stacked: bool = False, chunk_size: int | None = None
) -> Call:
    params, f = mf.parameters(task.module), losses_of(task)
    if task.per_sample:
        return lambda: mf.sample_gramian(f, params, task.batch, engine=engine)[1]
    g = (lambda p, b: vector(f(p, b))) if stacked else f
    return lambda: mf.task_gramian(
        g, params, task.batch, shared=task.shared, engine=engine, chunk_size=chunk_size
    )[1]


def our_step(task: Problem, engine: Any, *, stacked: bool = False) -> Call:
    params, f = mf.parameters(task.module), losses_of(task)
    g = (lambda p, b: vector(f(p, b))) if stacked else f
    probe = mf.jacobian(task.shared, engine=engine)
    _, state = probe.init(g, params, task.batch, torch.tensor(0))

    def call() -> tuple[Tensor, Any]:
        measured, _ = probe.update(g, params, task.batch, state)
        gramian = measured.geometry.gramian
        return gramian, measured.combine(some_weights(len(gramian), gramian))

    return call


def contenders(task: Problem, family: str) -> Iterator[tuple[str, str, Callable[[Problem], Call]]]:
    """(quantity, method, how to make it)."""
    yield "gradient", "mean gradient", mean_gradient
    yield "gramian", "loop", loop
    yield "gramian", "vmap(vjp)", vmap_vjp
    if task.per_sample:
        yield "gramian", "vmap(grad)", vmap_grad
        if importlib.util.find_spec("opacus"):
            yield "gramian", "Opacus", opacus
        if family == "mlp-sample" and importlib.util.find_spec("backpack"):
            yield "gramian", "BackPACK", backpack
    if importlib.util.find_spec("torchjd"):
        yield "gramian", "TorchJD autojac", autojac
        yield "gramian", "TorchJD autogram", autogram
    for engine in ENGINES:
        yield "gramian", f"ours, {engine}", lambda task, engine=engine: ours(task, engine)
    if task.per_sample:
        return
    yield "gramian", "ours, rows, one at a time", lambda task: ours(task, "rows", chunk_size=1)
    yield "step", "loop", lambda task: loop(task, step=True)
    for engine in ENGINES:
        yield "step", f"ours, {engine}", lambda task, engine=engine: our_step(task, engine)
    # separate losses: what becomes of them where they come stacked to one vector
    if len(leaves_of(task)[1]):
        yield "gramian", "loop, stacked", lambda task: loop(task, stacked=True)
        for engine in ENGINES:
            yield (
                "gramian",
                f"ours, {engine}, stacked",
                lambda task, engine=engine: ours(task, engine, stacked=True),
            )
            yield (
                "step",
                f"ours, {engine}, stacked",
                lambda task, engine=engine: our_step(task, engine, stacked=True),
            )


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
    step = dict(
        zip(
            shared,
            torch.autograd.grad(weighted, list(shared.values()), retain_graph=True),
            strict=True,
        )
    )
    if heads:
        step |= dict(
            zip(
                heads, torch.autograd.grad(vector(losses).mean(), list(heads.values())), strict=True
            )
        )
    return gramian.detach(), step


def error(quantity: str, answer: Any, truth: tuple[Tensor, dict[str, Tensor]]) -> float:
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


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def silence() -> Iterator[None]:
    """torch's profiler reports its start and stop on the terminal, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def with_memory(call: Call, device: str) -> tuple[Any, int]:
    """What the call returns, and its peak memory in bytes."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer = call()
        return answer, torch.cuda.max_memory_allocated() - before
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        answer = call()
    kineto = seen.profiler.kineto_results if seen.profiler else None
    held = most = 0
    for event in (
        sorted((e for e in kineto.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
        if kineto
        else ()
    ):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return answer, most


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Call, device: str, clock: str) -> float:
    synchronize(device)
    start = CLOCKS[clock]()
    call()
    synchronize(device)
    return CLOCKS[clock]() - start


def take_turns(
    calls: dict[tuple[str, str], Call], device: str, seconds: float, clock: str, bar: Any
) -> dict[tuple[str, str], list[float]]:
    """All times of every contender. Fast ones are called several times a turn; slow ones take part
    in three rounds at least.
    """
    once = {name: timed(call, device, clock) for name, call in calls.items()}
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for turn in range(ROUNDS):
        order = list(calls)
        shuffle(order)
        for name in order:
            rounds = min(ROUNDS, max(3, int(seconds / once[name])))
            if (turn * rounds) % ROUNDS < rounds:
                for _ in range(max(1, min(200, int(seconds / ROUNDS / once[name])))):
                    times[name].append(timed(calls[name], device, clock))
        bar.update()
    return times


def measure(
    family: str,
    count: int,
    batch: int,
    image: int,
    device: str,
    seconds: float,
    clock: str,
    methods: list[str] | None,
    bar: Any,
) -> list[Row]:
    """Every contender of one case."""
    base = problem(family, count, batch, image)
    task, double = base.to(device), base.to(device, torch.float64)
    truth = reference(double)
    rows: dict[tuple[str, str], Row] = {}
    calls: dict[tuple[str, str], Call] = {}
    case = {
        "family": family,
        "case": describe(family, count, batch, image),
        "tasks": count,
        "batch": batch,
        "device": device,
    }
    for quantity, method, make in contenders(task, family):
        if methods and quantity != "gradient" and method not in methods:
            continue
        row: Row = case | {"quantity": quantity, "method": method}
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
        except Exception as problem_:  # a peer that cannot do this is a result too
            tqdm.write(
                f"{row['case']} {device}: {quantity}, {method} failed: "
                f"{type(problem_).__name__}: {str(problem_).splitlines()[0]}"
            )
            rows[quantity, method] = row | {"failed": f"{type(problem_).__name__}: {problem_}"}
            continue
        rows[quantity, method], calls[quantity, method] = row, call
    del truth, double
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = take_turns(calls, device, seconds, clock, bar)
    for name, taken in times.items():
        rows[name] |= {"median": median(taken), "fastest": min(taken), "calls": len(taken)}
    return list(rows.values())


def find(rows: list[Row], **wanted: Any) -> list[Row]:
    return [
        row
        for row in rows
        if "fastest" in row and all(row[key] == value for key, value in wanted.items())
    ]


def peers(rows: list[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if not row["method"].startswith("ours") and row["quantity"] != "gradient"
    ]


# What the layerwise engine is for: (family, tasks, batch, device, quantity, our method, the peers,
# what is compared, the most it may be)
BARS: list[tuple[str, int, int, str, str, str, tuple[str, ...], str, float]] = [
    ("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("mean gradient",), "time", 2.0),
    ("mlp-sample", 1, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), "time", 1 / 50),
    ("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("TorchJD autogram",), "time", 0.5),
    ("mlp-task", 40, 128, "cpu", "gramian", "ours, auto", ("loop",), "time", 0.5),
    (
        "resnet18",
        4,
        8,
        "cpu",
        "gramian",
        "ours, auto",
        ("loop", "vmap(vjp)", "TorchJD autojac", "TorchJD autogram"),
        "time",
        1.05,
    ),
    *(
        (family, tasks, batch, "cpu", quantity, f"ours, auto{stacked}", ("loop",), "time", 1.3)
        for family, tasks, batch in (("decoders", 4, 8), ("own-inputs", 8, 64))
        for quantity in ("gramian", "step")
        for stacked in ("", ", stacked")
    ),
    (
        "resnet18",
        40,
        64,
        "cuda",
        "gramian",
        "ours, auto",
        ("TorchJD autojac", "TorchJD autogram"),
        "time",
        0.6,
    ),
    (
        "resnet18",
        40,
        64,
        "cuda",
        "gramian",
        "ours, auto",
        ("TorchJD autojac", "TorchJD autogram"),
        "memory",
        1.0,
    ),
]


def against_bars(rows: list[Row]) -> list[Row]:
    """Every bar of which both sides were measured."""
    found = []
    for family, tasks, batch, device, quantity, method, others, what, limit in BARS:
        case = find(rows, family=family, tasks=tasks, batch=batch, device=device)
        mine = find(case, quantity=quantity, method=method)
        against = [
            row
            for row in case
            if row["method"] in others and row["quantity"] in (quantity, "gradient")
        ]
        if mine and against:
            if what == "memory":
                best = min(against, key=lambda row: row["memory"])
                ratios = (mine[0]["memory"] / best["memory"],) * 2
            else:
                best = min(against, key=lambda row: row["fastest"])
                ratios = mine[0]["median"] / best["median"], mine[0]["fastest"] / best["fastest"]
            found.append(
                {
                    "case": f"{mine[0]['case']}, {device}, {quantity}",
                    "method": method,
                    "against": best["method"],
                    "what": what,
                    "median": ratios[0],
                    "fastest": ratios[1],
                    "limit": limit,
                }
            )
    return found


def tables(rows: list[Row], machine: str) -> str:
    lines = ["# Gramians of task and sample gradients", "", machine, ""]
    lines += [
        "Ratios of medians, in brackets of the fastest calls. A step: the Gramian and the "
        "gradient that weights combine.",
        "",
    ]
    bars = against_bars(rows)
    if bars:
        lines += [
            "## Against its bars",
            "",
            "| case | method | against | what | ratio | at most | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {bar['case']} | {bar['method']} | {bar['against']} | {bar['what']} | "
            f"{bar['median']:.3g} ({bar['fastest']:.3g}) | {bar['limit']:.3g} "
            f"| {'holds' if bar['fastest'] <= bar['limit'] else 'missed'} |"
            for bar in bars
        ]
        lines.append("")
    for name, device in dict.fromkeys((row["case"], row["device"]) for row in rows):
        case = [row for row in rows if (row["case"], row["device"]) == (name, device)]
        lines += [
            f"## {name}, {device}",
            "",
            "| quantity | method | ms | × mean gradient | × fastest peer | peak MiB | error "
            "float32 | error float64 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        floor = find(case, quantity="gradient")
        for row in case:
            cells = [row["quantity"], row["method"]]
            if "failed" in row:
                lines.append(
                    f"| {' | '.join(cells)} | cannot: "
                    f"{row['failed'].splitlines()[0].split(': ')[0]} | | | | | |"
                )
                continue
            cells.append(f"{1e3 * row['median']:.3g} ({1e3 * row['fastest']:.3g})")
            others = peers(find(case, quantity=row["quantity"]))
            for best in (
                floor[0] if floor else None,
                min(others, key=lambda other: other["fastest"], default=None),
            ):
                cells.append(
                    ""
                    if best is None
                    else f"{row['median'] / best['median']:.3g} "
                    f"({row['fastest'] / best['fastest']:.3g})"
                )
            cells.append(f"{row['memory'] / 2**20:.3g}")
            cells += [
                f"{row[key]:.1e}" if key in row and not math.isnan(row[key]) else ""
                for key in ("error", "error64")
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


STYLES = {
    "loop": ("C7", "s"),
    "vmap(vjp)": ("C5", "v"),
    "vmap(grad)": ("C6", "<"),
    "Opacus": ("C8", "P"),
    "BackPACK": ("C9", "X"),
    "TorchJD autojac": ("C1", "D"),
    "TorchJD autogram": ("C3", "^"),
    "ours, auto": ("C0", "o"),
    "ours, layerwise": ("C2", "d"),
    "ours, rows": ("C4", ">"),
}


def figure(rows: list[Row], path: Path) -> None:
    """Time against one mean gradient, a line a case."""
    cases = list(
        dict.fromkeys(
            (row["case"], row["device"], row["quantity"])
            for row in rows
            if row["quantity"] != "gradient"
        )
    )
    panel, axis = plt.subplots(figsize=(10, 1.6 + 0.36 * len(cases)), layout="constrained")
    used = []
    for line, (name, device, quantity) in enumerate(cases):
        floor = find(rows, case=name, device=device, quantity="gradient")
        for row in find(rows, case=name, device=device, quantity=quantity):
            if row["method"] in STYLES and floor:
                colour, marker = STYLES[row["method"]]
                front = row["method"] == "ours, auto"
                axis.scatter(
                    row["fastest"] / floor[0]["fastest"],
                    line,
                    c=colour,
                    marker=marker,
                    s=60 if front else 34,
                    zorder=3 if front else 2,
                    alpha=0.85,
                )
                used.append(row["method"])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(
        xlabel="time / time of one mean gradient (fastest calls)", ylim=(len(cases) - 0.5, -0.5)
    )
    axis.set_yticks(
        range(len(cases)),
        [
            f"{name}, {device}{' (step)' if quantity == 'step' else ''}"
            for name, device, quantity in cases
        ],
    )
    axis.grid(alpha=0.25, which="both", axis="x")
    axis.grid(alpha=0.25, axis="y")
    handles = [
        plt.Line2D([], [], color=c, marker=m, linestyle="", label=name)
        for name, (c, m) in STYLES.items()
        if name in used
    ]
    panel.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    panel.savefig(path.with_suffix(".part.png"), dpi=150)
    plt.close(panel)
    os.replace(path.with_suffix(".part.png"), path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--cases", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument(
        "--tasks",
        type=int,
        nargs="+",
        help="numbers of tasks, instead of each case's own; with --batch all pairs",
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", help="batch sizes, instead of each case's own"
    )
    parser.add_argument(
        "--image", type=int, help="side of the images in pixels; 32 on a CPU, 64 on a GPU"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="time for each contender of a case"
    )
    parser.add_argument(
        "--methods", nargs="+", help="only these, as the table names them, and the mean gradient"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: the processor's time; for one thread of a busy machine",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"],
        choices=["cpu", "cuda"],
    )
    parser.add_argument(
        "--no-tf32", action="store_true", help="full float32 products on a GPU, also in the ResNet"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure anew what the record already has"
    )
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    record = given.out / "gramian.json"
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    machine += f", {given.seconds:g} s a contender, {given.clock} clock"
    if "cuda" in given.devices:
        machine += (
            f", {torch.cuda.get_device_name()}, "
            f"{'full float32' if given.no_tf32 else 'TF32 in the ResNet'}"
        )
    for package in ("torchjd", "opacus", "backpack"):
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed: left out")
    rows: list[Row] = json.loads(record.read_text())["rows"] if record.exists() else []
    cells = []
    for device in given.devices:
        image = given.image or IMAGES[device]
        for family in given.cases:
            grid = GRIDS[family][device == "cuda"]
            if given.tasks or given.batch:
                every = (
                    [1]
                    if family.endswith("-sample")
                    else given.tasks or list(dict.fromkeys(t for t, _ in grid))
                )
                grid = [
                    (t, b)
                    for t in every
                    for b in given.batch or list(dict.fromkeys(b for _, b in grid))
                ]
            cells += [(family, t, b, image, device) for t, b in grid]
    done = {(row["case"], row["device"]) for row in rows}
    left = [cell for cell in cells if given.again or (describe(*cell[:4]), cell[4]) not in done]
    try:
        with tqdm(total=len(left) * ROUNDS) as bar:
            for number, (family, tasks, batch, image, device) in enumerate(left, start=1):
                name = describe(family, tasks, batch, image)
                bar.set_description(f"{name}, {device}")
                precise = given.no_tf32 or family != "resnet18" or device != "cuda"
                torch.set_float32_matmul_precision("highest" if precise else "high")
                torch.backends.cudnn.allow_tf32 = not precise
                found = measure(
                    family,
                    tasks,
                    batch,
                    image,
                    device,
                    given.seconds,
                    given.clock,
                    given.methods,
                    bar,
                )
                rows = [
                    row for row in rows if (row["case"], row["device"]) != (name, device)
                ] + found
                # stable: methods stay in order
                rows.sort(
                    key=lambda row: (
                        row["device"],
                        list(BUILDERS).index(row["family"]),
                        row["tasks"],
                        row["batch"],
                    )
                )
                write(record, json.dumps({"machine": machine, "rows": rows}, indent=1))
                bar.n = number * ROUNDS
    except KeyboardInterrupt:
        tqdm.write(
            f"stopped; {len({(row['case'], row['device']) for row in rows})} cases are in "
            f"{record}, the next run goes on from there"
        )
    write(given.out / "gramian.md", tables(rows, machine))
    if rows:
        figure(rows, given.out / "gramian.png")


if __name__ == "__main__":
    main()
