"""What max–min weighting costs (essay, Su 2022): the inner iteration, the Gramian, T gradients, and
the bound at the representation.

Times are CPU wall-clock, the best of several turns taken in rotation; floating-point operations are
counted and do not depend on the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import METHOD_COLOURS, axes
from ..report.findings import Claim, Figure, Findings, Settings
from .common import COLOURS, DASHES, claim, gram, judged, normal, rows_of

INPUTS, SAMPLES = 64, 32
LARGE = "heads with 512 units"
Encoded = dict[str, Tensor]


def network(
    tasks: int, width: int, *, code: int = 16, head: int = 0
) -> tuple[mf.types.Params, Encoded]:
    """A ReLU trunk of two layers with `width` units and a code; a linear head a task, or one with
    `head` hidden units.
    """
    layers = {"trunk.0": (width, INPUTS), "trunk.1": (width, width), "trunk.2": (code, width)}
    params = {
        name: (normal(400 + i, shape) / shape[1] ** 0.5).float()
        for i, (name, shape) in enumerate(layers.items())
    }
    if head:
        params["heads.0"] = (normal(410, (tasks, head, code)) / code**0.5).float()
    params["heads.1"] = (normal(411, (tasks, head or code)) / (head or code) ** 0.5).float()
    return params, {
        "x": normal(412, (SAMPLES, INPUTS)).float(),
        "y": normal(413, (SAMPLES, tasks)).float(),
    }


def encode(params: mf.types.Params, batch: Encoded) -> Tensor:
    hidden = F.linear(F.linear(batch["x"], params["trunk.0"]).relu(), params["trunk.1"]).relu()
    return F.linear(hidden, params["trunk.2"])


def decode(params: mf.types.Params, z: Tensor, batch: Encoded) -> Tensor:
    if "heads.0" in params:
        hidden = torch.einsum("bc,thc->bth", z, params["heads.0"]).relu()
        out = torch.einsum("bth,th->bt", hidden, params["heads.1"])
    else:
        out = F.linear(z, params["heads.1"])
    return (out - batch["y"]).square().mean(0)


def losses(params: mf.types.Params, batch: Encoded) -> Tensor:
    return decode(params, encode(params, batch), batch)


def step_of(tasks: int, width: int, probe: mf.Probe, **sizes: int) -> Callable[[], Any]:
    params, batch = network(tasks, width, **sizes)
    step = mf.balance(losses, mf.mgda(), probe)
    state = step.init(params, batch)
    return lambda: step.update(params, batch, state)


def in_turns(calls: Mapping[Any, Callable[[], Any]], turns: int, label: str) -> dict[Any, float]:
    """The best time of each call, one call after the other in every turn, so that a busy machine is
    busy for all.
    """
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in tqdm(range(turns), desc=label, leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """torch's profiler writes of itself to the file descriptor of stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call holds beyond what there was."""
    call()
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    results = seen.profiler.kineto_results if seen.profiler else None
    held = most = 0
    for event in (
        sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
        if results
        else ()
    ):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return most


def run(settings: Settings) -> Findings:
    yield gramian_once()
    yield from inner_iteration(settings)
    yield from many_gradients(settings)
    yield from bound(settings)


# ---- the Gramian once a step ----


def on_vectors(rows: Tensor, steps: int) -> Tensor:
    """Frank–Wolfe, step 1/(n+1), with inner products of long vectors at every iteration."""
    weights = rows.new_full((len(rows),), 1 / len(rows))
    for n in range(1, steps + 1):
        toward = F.one_hot((rows @ (weights @ rows)).argmin(), len(rows)).to(weights)
        weights = weights + (toward - weights) / (n + 1)
    return weights


def gramian_once() -> Claim:
    tasks, size, steps = 8, 10000, 200
    solve = mf.solvers.frank_wolfe(steps, "1/(n+1)")
    differences, counts, whole = [], {}, 0
    for i in range(4):
        rows = rows_of(1, tasks, size, 420 + 2 * i, spread=4.0)[0]
        differences.append(
            float(
                (on_vectors(rows, steps) - solve(mf.solvers.min_norm(gram(rows))).weights)
                .abs()
                .max()
            )
        )
        counts = {
            "vectors": operations(lambda rows=rows: on_vectors(rows, steps)),
            "Gramian": operations(lambda rows=rows: gram(rows)),
        }
        whole = operations(lambda rows=rows: solve(mf.solvers.min_norm(gram(rows))))
    once = counts["Gramian"] / (2 * tasks**2 * size)
    return claim(
        "SU-26",
        "Inner products of gradients need computing once a step: ⟨g_t, Σ w_s g_s⟩ = Σ w_s G_ts, "
        "only w changes.",
        judged(max(differences) < 1e-9 and abs(once - 1) < 1e-9 and whole < counts["vectors"]),
        {
            "largest difference of weights, vectors against Gramian": max(differences),
            "operations of the Gramian over 2T²P": once,
            "operations of all iterations on the Gramian, the Gramian included, over those on "
            "vectors": whole / counts["vectors"],
        },
        f"T = {tasks}, P = {size}, {steps} iterations of Frank–Wolfe, counted floating-point "
        "operations of matrix products",
    )


# ---- the solver's share of a step ----


def inner_iteration(settings: Settings) -> Findings:
    tasks, widths = (2, 8, 32), (32, 128, 512)
    turns, solvers = (
        settings.count(9),
        {"exact": mf.solvers.auto(), "Frank–Wolfe, 100 steps": mf.solvers.frank_wolfe(100)},
    )
    calls: dict[tuple[str, int, int], Callable[[], Any]] = {}
    sizes: dict[int, int] = {}
    for count, width in itertools.product(tasks, widths):
        params, batch = network(count, width)
        sizes[width] = sum(
            leaf.numel() for name, leaf in params.items() if name.startswith("trunk")
        )
        calls["step", count, width] = step_of(count, width, mf.jacobian("trunk.*"))
        g = mf.task_gramian(losses, params, batch, shared="trunk.*")[1]
        calls |= {
            (name, count, width): lambda g=g, solve=solve: solve(mf.solvers.min_norm(g))
            for name, solve in solvers.items()
        }
    best = in_turns(calls, turns, "solver and step")
    canvas, axis = axes(1, 2, (13, 4.8))
    shares = {name: {} for name in solvers}
    for one, name in zip(axis, solvers, strict=True):
        for count, colour, style in zip(tasks, COLOURS, DASHES, strict=False):
            found = []
            for width in widths:
                rest = best["step", count, width] - best["exact", count, width]
                found.append(
                    best[name, count, width] / (rest + best[name, count, width])
                    if rest > 0
                    else 1.0
                )
                shares[name][count, width] = found[-1]
            one.plot(
                [sizes[width] for width in widths],
                found,
                color=colour,
                linestyle=style,
                marker="o",
                label=f"T = {count}",
            )
        one.set(
            title=f"solver: {name}",
            xlabel="shared parameters P",
            ylabel="solver's share of a training step",
            xscale="log",
            yscale="log",
            ylim=(1e-3, 1.1),
        )
        one.legend()
    yield Figure(
        "solver-share",
        f"Share of MGDA's step that the inner problem takes: a ReLU network, batch of {SAMPLES}, "
        f"eager, {torch.get_num_threads()} thread(s), best of {turns} "
        "turns. Left: the exact active-set kernel. Right: a hundred iterations of Frank–Wolfe in "
        "eager torch.",
        canvas,
    )
    small = max(shares["exact"].values())
    loop = shares["Frank–Wolfe, 100 steps"]
    yield claim(
        "SU-25",
        "Both schemes run an inner iteration at every training step, so the cost is considerable.",
        "holds only when"
        if max(loop.values()) > 0.2 and small < 0.5 * max(loop.values())
        else "holds"
        if small > 0.2
        else "does not hold",
        {
            f"{name}, T = {count}, P = {sizes[width]}: share of the step": share
            for name, found in shares.items()
            for (count, width), share in found.items()
        }
        | {f"{name}, T = 32: µs a solve": 1e6 * best[name, 32, 512] for name in solvers},
        "holds only when the iteration is interpreted op by op, and most of all on small "
        "networks; on the Gramian an exact compiled solve is a small part of "
        f"the step, at most {100 * small:.0f} % here. Considerable: above 20 %",
    )


# ---- T gradients at once ----


def many_gradients(settings: Settings) -> Findings:
    tasks, width = (2, 8, 32), 512
    ways = ("one gradient", "T rows", "layerwise Gramian, chunks of 4")
    memory: dict[tuple[str, int], int] = {}
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    error = 0.0
    for count in tasks:
        params, batch = network(count, width)
        equal = mf.balance(losses, mf.mean(), mf.losses_only())
        state = equal.init(params, batch)
        calls[ways[0], count] = lambda p=params, b=batch, s=state, step=equal: step.update(p, b, s)
        calls[ways[1], count] = lambda p=params, b=batch: mf.task_gramian(
            losses, p, b, shared="trunk.*", engine="rows"
        )
        calls[ways[2], count] = lambda p=params, b=batch: mf.task_gramian(
            losses, p, b, shared="trunk.*", engine="layerwise", chunk_size=4
        )
        memory |= {(way, count): peak_bytes(calls[way, count]) for way in ways}
        exact, other = calls[ways[1], count]()[1], calls[ways[2], count]()[1]
        error = max(error, float((exact - other).norm() / exact.norm()))
    best = in_turns(calls, settings.count(6), "T gradients")
    canvas, axis = axes(1, 2, (13, 4.8))
    for way, colour, style in zip(ways, COLOURS, DASHES, strict=False):
        axis[0].plot(
            tasks,
            [memory[way, count] / 2**20 for count in tasks],
            color=colour,
            linestyle=style,
            marker="o",
            label=way,
        )
        axis[1].plot(
            tasks,
            [1e3 * best[way, count] for count in tasks],
            color=colour,
            linestyle=style,
            marker="o",
            label=way,
        )
    axis[0].set(xlabel="tasks T", ylabel="peak memory, MiB", xscale="log", ylim=(0, None))
    axis[1].set(xlabel="tasks T", ylabel="time, ms", xscale="log", ylim=(0, None))
    for one in axis:
        one.set_xticks(tasks, [str(count) for count in tasks])
        one.minorticks_off()
    axis[0].legend()
    size = sum(
        leaf.numel() for name, leaf in network(2, width)[0].items() if name.startswith("trunk")
    )
    yield Figure(
        "many-gradients",
        f"Peak memory and time of T gradients against one, {size} shared parameters, batch of "
        f"{SAMPLES}: rows of the Jacobian grow with T, the layer-wise "
        "Gramian holds none of them.",
        canvas,
    )
    most, last = (
        tasks[-1],
        {way: memory[way, tasks[-1]] / memory[ways[0], tasks[-1]] for way in ways},
    )
    rows_grow, layers_do_not = last[ways[1]] > most / 4, last[ways[2]] < most / 4
    yield claim(
        "SU-27",
        "For very large models even T separate gradients are infeasible.",
        "inconclusive"
        if not rows_grow
        else "holds only when"
        if layers_do_not and error < 1e-3
        else "holds",
        {
            f"{way}, T = {count}: peak memory, MiB": memory[way, count] / 2**20
            for way, count in calls
        }
        | {f"{way}, T = {most}: peak memory over one gradient's": last[way] for way in ways[1:]}
        | {
            f"{way}, T = {most}: time over one gradient's": best[way, most] / best[ways[0], most]
            for way in ways[1:]
        }
        | {"relative difference of the two Gramians, largest": error},
        f"holds only when rows are stored: {size} shared parameters, {SAMPLES} samples. Their "
        "memory grows as T·P, while the Gramian layer by layer and the "
        "weighted gradient need no row; the T backward passes remain",
    )


# ---- the bound at the representation ----


def bound(settings: Settings) -> Findings:
    tasks, width = (1, 4, 16, 32), 256
    probes = {
        "MGDA": lambda: mf.jacobian("trunk.*"),
        "MGDA-UB": lambda: mf.representation(encode, decode, shared="trunk.*"),
    }
    heads = {"small heads": 0, LARGE: 512}
    calls = {
        (name, place, count): step_of(count, width, make(), head=head)
        for name, make in probes.items()
        for place, head in heads.items()
        for count in tasks
    }
    counted = {key: operations(call) for key, call in calls.items()}
    best = in_turns(calls, settings.count(5), "MGDA and its bound")
    canvas, axis = axes(1, 2, (13, 4.8))
    series = list(itertools.product(probes, heads))
    for name, place in series:
        colour, style = METHOD_COLOURS[name], "-" if place == "small heads" else "--"
        axis[0].plot(
            tasks,
            [1e3 * best[name, place, count] for count in tasks],
            color=colour,
            linestyle=style,
            marker="o",
            label=f"{name}, {place}",
        )
        axis[1].plot(
            tasks,
            [counted[name, place, count] / counted[name, place, 1] for count in tasks],
            color=colour,
            linestyle=style,
            marker="o",
        )
    axis[0].set(xlabel="tasks T", ylabel="time a step, ms", xscale="log", yscale="log")
    axis[1].set(
        xlabel="tasks T",
        ylabel="operations of a step, relative to T = 1",
        xscale="log",
        yscale="log",
    )
    for one in axis:
        one.set_xticks(tasks, [str(count) for count in tasks])
        one.minorticks_off()
    axis[0].legend()
    yield Figure(
        "bound",
        "A step of MGDA and of MGDA-UB against the number of tasks: trunk of two layers with "
        f"{width} units, code of 16 numbers, batch of {SAMPLES}; heads of "
        "one linear unit, or with a hidden layer. Left: best time of several turns. Right: "
        "counted operations.",
        canvas,
    )
    most = tasks[-1]
    growth = {key: best[*key, most] / best[*key, 1] for key in series}
    flops = {key: counted[*key, most] / counted[*key, 1] for key in series}
    flat = flops["MGDA-UB", "small heads"] < 1.5
    cheaper = counted["MGDA-UB", "small heads", most] < 0.5 * counted["MGDA", "small heads", most]
    yield claim(
        "SU-29",
        "Minimise the bound's right-hand side: only gradients with respect to encodings are "
        "needed, which is much cheaper.",
        judged(flat and cheaper, only_when=flops["MGDA-UB", LARGE] > 2),
        {
            f"{name}, {place}: operations at T = {most} over T = 1": value
            for (name, place), value in flops.items()
        }
        | {
            f"{name}, {place}: time at T = {most} over T = 1": value
            for (name, place), value in growth.items()
        }
        | {
            f"{place}: operations of MGDA over MGDA-UB at T = {most}": counted["MGDA", place, most]
            / counted["MGDA-UB", place, most]
            for place in heads
        }
        | {
            f"{place}: time of MGDA over MGDA-UB at T = {most}": best["MGDA", place, most]
            / best["MGDA-UB", place, most]
            for place in heads
        },
        "holds only when the heads are small against the trunk: then the operations of a step "
        "hardly grow with T (below 1.5 times at T = 32, and half of "
        "MGDA's); with large heads the T passes through them are what a step costs",
    )
