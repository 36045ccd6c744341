"""How cost grows with tasks, parameters, samples and lanes, next to what else computes the same.

    python -m experiments.benchmarks.scale [--curves mgda ...] [--sizes N ...] [--seconds S]
    [--longest S]

Writes scale.json, scale.md and scale.png. Medians; all ways of a size take turns, among them the
unit: one gradient of the mean loss, for studies one run alone. A way whose next call would take
longer than --longest, by how it grew between the last two sizes, is left out from there on. The
default ends at ten million parameters; `--curves parameters --sizes 100000000` adds a hundred
million (rows of 1.6 GB).

By hand: `torch.autograd.grad` of every loss, for samples `vmap(grad)`; a study's loop over its
runs. TorchJD: its weighting, its autogram, its `backward` run after run. cvxpy: the parametrised
program at 1e-8. Solvers: the mean over a problem of each of FAMILIES. Errors: the worst gap that
weights certify; four rows of a Gramian against float64; the first run against itself alone.
"""

import copy
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.arguments import at_least, positive
from experiments.benchmarks import gramian
from experiments.benchmarks.families import gramians
from experiments.benchmarks.measuring import ROUNDS, Call, in_shares, timed
from experiments.benchmarks.networks import CLASSES, Outputs, Problem, Samples, dense
from experiments.benchmarks.record import Row, markdown
from experiments.benchmarks.runner import Axis, command
from experiments.benchmarks.solvers import gap
from experiments.benchmarks.solvers_peers import SOLVERS
from mtlfunc.core.files import write_whole

CURVES = {
    "mgda": ("MGDA's problem", "tasks"),
    "cagrad": ("CAGrad's problem", "tasks"),
    "upgrad": ("UPGrad's T problems", "tasks"),
    "tasks": ("Gramian, 10⁶ parameters", "tasks"),
    "parameters": ("Gramian, 4 tasks", "parameters"),
    "samples": ("Gramian of samples, 10⁵ parameters", "samples"),
    "lanes": ("study of a CAGrad run", "lanes"),
}
"""What a curve shows, and what grows along it."""
COLOURS = {"ours": "C0", "ours, a step": "C9", "by hand": "C7", "TorchJD": "C1", "cvxpy": "C2"}


def units(rows: Sequence[Row]) -> dict[tuple[str, int, str], float]:
    """Times by curve, size and way, in units of the size's own unit."""
    unit = {(row["curve"], row["size"]): row["seconds"] for row in rows if row["way"] == "unit"}
    return {
        (row["curve"], row["size"], row["way"]): row["seconds"] / unit[row["curve"], row["size"]]
        for row in rows
        if row["seconds"] is not None
    }


def table(rows: Sequence[Row], line: str) -> str:
    """Markdown: a line a size, every way's time in units; then the worst error of each curve."""
    found, lines = units(rows), []
    for row in rows:
        if row["way"] == "unit":
            times = [found.get((row["curve"], row["size"], way)) for way in COLOURS]
            cells = [CURVES[row["curve"]][0], f"{row['size']:,}", f"{1e3 * row['seconds']:.3g}"]
            cells += ["–" if time is None else f"{time:.3g}" for time in times]
            lines.append(cells)
    errors: dict[str, dict[str, float]] = {}
    for row in rows:
        if "error" in row:
            worst = errors.setdefault(CURVES[row["curve"]][0], {})
            worst[row["way"]] = max(worst.get(row["way"], 0.0), row["error"])
    said = [
        f"{title}: {', '.join(f'{way} {error:.0e}' for way, error in worst.items())}"
        for title, worst in errors.items()
    ]
    page = markdown(line, ["what", "size", "unit, ms", *COLOURS], lines)
    return f"{page}\n\nWorst errors. {'; '.join(said)}.\n"


def figure(rows: Sequence[Row], path: Path) -> None:
    """A panel a curve, all axes logarithmic and those of time alike."""
    from matplotlib.figure import Figure

    found = units(rows)
    curves = [name for name in CURVES if any(row["curve"] == name for row in rows)]
    across = min(4, len(curves))
    down = -(-len(curves) // across)
    panels = Figure(figsize=(2.9 * across, 3.0 * down + 0.5), layout="constrained")
    grid = panels.subplots(down, across, squeeze=False, sharey=True)
    handles = {}
    for axis, name in zip(grid.flat, curves, strict=False):
        for way, colour in COLOURS.items():
            points = sorted((n, t) for (c, n, w), t in found.items() if (c, w) == (name, way))
            if points:
                style = "-o" if way.startswith("ours") else "--s"
                drawn = axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4)
                handles.setdefault(way, drawn[0])
        axis.axhline(1, color="0.5", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel=CURVES[name][1])
        axis.set_title(CURVES[name][0], fontsize="medium")
        axis.grid(alpha=0.25)
    for axis in grid.flat[len(curves) :]:
        axis.axis("off")
    panels.supylabel("mean gradients (studies: runs alone)", fontsize="small")
    panels.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False)
    write_whole(path, lambda file: panels.savefig(file, format="png", dpi=150))


FAMILIES = ("gaussian", "conflicting", "weakly stationary, float32")
BATCH, STEPS = 64, 20


class Cell(NamedTuple):
    """What is timed at one size."""

    unit: Call
    ways: dict[str, Callable[[], Call]]
    error: Callable[[Any], float]
    problems: int = 1  # that a call solves


def network(params: float, outputs: int, samples: int = 0) -> Problem:
    """Three square layers of `params` weights together, and a loss an output or a sample."""
    width = max(2, round((params / 3) ** 0.5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = dense(*[width] * 4, outputs), torch.randn(samples or BATCH, width)
        y = torch.randint(outputs, (samples,)) if samples else torch.randn(BATCH, outputs)
    module = Samples(net) if samples else Outputs(net)
    return Problem(module, (x, y), per_sample=bool(samples))


def solving(kind: str, tasks: int) -> Cell:
    """From Gramians to weights."""
    problems = [gramians(name, tasks, 1, 0)[0] for name in FAMILIES]
    names = ("active_set", "TorchJD (defaults)", "cvxpy (DPP, 1e-8)")
    named = zip(("ours", "TorchJD", "cvxpy"), names, strict=True)

    def solve(name: str) -> Call:
        weigh = SOLVERS[name].make(kind)
        return lambda: torch.stack([weigh(g) for g in problems])

    return Cell(
        gramian.mean_gradient(network(1e6, tasks)),
        {way: lambda n=n: solve(n) for way, n in named if kind in SOLVERS[n].kinds},
        lambda answer: gap(kind, torch.stack(problems), answer.detach()),
        len(FAMILIES),
    )


def checked(task: Problem) -> Callable[[Any], float]:
    """The error of four rows, against gradients in float64."""
    exact = task.to("cpu", torch.float64)
    losses, leaves = exact.module(exact.batch), list(exact.module.parameters())
    some = torch.linspace(0, len(losses) - 1, min(4, len(losses))).long()
    rows = [torch.autograd.grad(losses[i], leaves, retain_graph=True) for i in some]
    truth = gramian.gram([torch.stack(parts) for parts in zip(*rows, strict=True)])

    def error(answer: Any) -> float:
        g = answer[0] if isinstance(answer, tuple) else answer
        return gramian.apart(g[some][:, some], truth)

    return error


def multiplying(task: Problem, *, step: bool = False) -> Cell:
    """From parameters and batch to a Gramian."""
    hand = gramian.vmap_grad if task.per_sample else gramian.loop
    ways: dict[str, Callable[[], Call]] = {"ours": lambda: gramian.ours(task)}
    if step:
        ways["ours, a step"] = lambda: gramian.our_step(task)
    ways |= {"by hand": lambda: hand(task), "TorchJD": lambda: gramian.autogram(task)}
    return Cell(gramian.mean_gradient(task), ways, checked(task))


def studying(lanes: int) -> Cell:
    """Whole runs of a small network with CAGrad, each from its own weights and at its own c."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [dense(8, 32, 3) for _ in range(lanes)]
        x, y = torch.randn(BATCH, 8), torch.randn(BATCH, 3)
    params, radii, rate = mf.stack(nets), torch.linspace(0.1, 0.9, lanes), 1e-2

    def losses_fn(p: mf.types.Params, batch: Any) -> Tensor:
        return (functional_call(nets[0], p, (batch[0],)) - batch[1]).square().mean(0)

    def train(p: mf.types.Params, c: Tensor) -> Tensor:
        step = mf.descend(losses_fn, mf.cagrad(c), mf.jacobian(), mf.sgd(rate))
        state = step.init(p, (x, y))
        for _ in range(STEPS):
            state, _ = step.update(state, (x, y))
        return torch.cat([leaf.flatten() for leaf in state.params.values()])

    def alone(i: int) -> Tensor:
        return train({n: leaf[i] for n, leaf in params.items()}, radii[i])

    def peer(i: int) -> Tensor:
        from torchjd.aggregation import CAGrad
        from torchjd.autojac import backward, jac_to_grad

        net, rule = copy.deepcopy(nets[i]), CAGrad(float(radii[i]))
        optimizer = torch.optim.SGD(net.parameters(), rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            backward((net(x) - y).square().mean(0))
            jac_to_grad(net.parameters(), rule)
            optimizer.step()
        return torch.cat([leaf.detach().flatten() for leaf in net.parameters()])

    def every(one: Callable[[int], Tensor]) -> Call:
        return lambda: torch.stack([one(i) for i in range(lanes)])

    return Cell(
        lambda: alone(0),
        {
            "ours": lambda: lambda: vmap(train)(params, radii),
            "by hand": lambda: every(alone),
            "TorchJD": lambda: every(peer),
        },
        lambda answer: float((answer[0] - alone(0)).norm() / alone(0).norm()),
    )


TASKS = 2, 8, 32, 128, 512
CELLS: dict[str, tuple[tuple[int, ...], Callable[[int], Cell]]] = {
    "mgda": (TASKS, lambda n: solving("min_norm", n)),
    "cagrad": (TASKS, lambda n: solving("cagrad", n)),
    "upgrad": (TASKS, lambda n: solving("upgrad", n)),
    "tasks": ((4, 16, 64, 256), lambda n: multiplying(network(1e6, n))),
    "parameters": ((10**4, 10**5, 10**6, 10**7), lambda n: multiplying(network(n, 4), step=True)),
    "samples": ((64, 256, 1024, 4096), lambda n: multiplying(network(1e5, CLASSES, n))),
    "lanes": ((1, 4, 16, 64, 256), studying),
}


def expected(rows: Sequence[Row], curve: str, way: str, size: int) -> float:
    """Seconds of a call at the next size, by the factor between the last two; inf after a gap."""
    smaller = [r for r in rows if (r["curve"], r["way"]) == (curve, way) and r["size"] < size]
    if any(row["seconds"] is None for row in smaller):
        return math.inf
    taken = [row["seconds"] * row["problems"] for row in smaller]
    return taken[-1] ** 2 / taken[-2] if len(taken) > 1 else 0.0


def measure(given: Namespace, curve: str, size: int) -> list[Row]:
    """A row a way of one size, the unit first; what would take too long by smaller ones is left
    out.
    """
    cell, smaller = CELLS[curve][1](size), given.record.here()
    found: dict[str, Row] = {"unit": {"way": "unit", "seconds": None, "problems": 1}}
    calls = {"unit": cell.unit}
    for way, make in cell.ways.items():
        row = found[way] = {"way": way, "seconds": None, "problems": cell.problems}
        if (wait := expected(smaller, curve, way, size)) > given.longest:
            row["left out"] = f"about {wait:.0f} s a call" if wait < math.inf else "as before"
            continue
        try:
            call = make()
            answer = call()
        except Exception as error:  # a peer that cannot do this is a result too
            if way.startswith("ours"):
                raise
            row["left out"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        calls[way], row["error"] = call, cell.error(answer)
    for way, times in take_turns(calls, given).items():
        seconds = median(times) / found[way]["problems"]
        found[way] |= {"seconds": seconds, "calls": len(times)}
    return list(found.values())


def take_turns(calls: dict[str, Call], given: Namespace) -> dict[str, list[float]]:
    """Seconds of every call, in random turns; a single one of what takes a quarter of --longest."""
    once = {way: timed(call) for way, call in calls.items()}
    slow = {way: [time] for way, time in once.items() if time > given.longest / 4}
    quick = {way: call for way, call in calls.items() if way not in slow}
    return slow | in_shares(quick, given.seconds, block=given.seconds / ROUNDS)


LONGEST: dict[str, Any] = {
    "type": positive,
    "default": 10.0,
    "help": "seconds that a call may take",
}
SIZES = {"nargs": "+", "type": at_least(2), "help": "instead of each curve's own, growing"}
main = command(
    "scale",
    __doc__,
    {"curve": Axis("curves", list(CURVES)), "size": Axis("", (), int)},
    measure,
    table,
    seconds=0.5,
    more={"sizes": SIZES, "longest": LONGEST},
    about=("longest",),
    cells=lambda given: [(c, n) for c in given.curves for n in sorted(given.sizes or CELLS[c][0])],
    figure=figure,
)

if __name__ == "__main__":
    main()
