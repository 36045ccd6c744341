"""CAGrad, the cost (Liu et al. 2021, section 3.3 and code): four solvers of its dual, and the fast
variant on a subset of the tasks.

"Relative" numbers are in units of ‖g₀‖ times the shortest gradient, as in `cagrad_theory`.
"""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.findings import Claim, Figure, Findings, Settings
from .theory import COLOURS, DASHES, PAPER, axes_of, cagrad, gram, rows_of, unit_of


def run(settings: Settings) -> Findings:
    yield from solvers(settings)
    yield from fast(settings)


# ---- solvers ----


def official_weights(g: Tensor, c: float) -> Tensor:
    """The official approximate solver: softmax weights, 20 momentum steps at rate 25 (50 for T =
    50), the best of 21 objectives, 1e-4 in every root.

    Returns:
        weights `[task]` of d at the paper's scale, that is without the code's division by 1 + c².
    """
    scaled = g / (g.diagonal() + 1e-4).sqrt().mean() ** 2
    count = len(g)
    linear = scaled.mean(1)
    radius = c * (linear.mean() + 1e-4).sqrt()
    a, velocity, best, lowest = (
        torch.zeros_like(linear),
        torch.zeros_like(linear),
        torch.full_like(linear, 1 / count),
        torch.inf,
    )
    for _ in range(21):
        w = torch.softmax(a, 0)
        size = (w @ scaled @ w + 1e-4).sqrt()
        value = float(linear @ w + radius * size)
        if value < lowest:
            lowest, best = value, w
        slope = linear + radius * (scaled @ w) / size
        velocity = 0.5 * velocity + w * (slope - w @ slope)
        a = a - (50.0 if count == 50 else 25.0) * velocity
    return 1 / count + radius / ((best @ scaled @ best + 1e-4).sqrt() + 1e-4) * best


def slsqp_weights(g: Tensor, c: float) -> Tensor:
    """SciPy's SLSQP on the dual, scaled to a largest gradient of 1, without epsilons inside the
    root but the one that keeps it smooth.
    """
    matrix = (g / g.diagonal().amax()).numpy()
    count = len(matrix)
    linear = matrix.mean(1)
    radius = c * np.sqrt(linear.mean())
    goal = lambda w: linear @ w + radius * np.sqrt(max(w @ matrix @ w, 0) + 1e-16)  # noqa: E731
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = optimize.minimize(
        goal, np.full(count, 1 / count), bounds=[(0, 1)] * count, constraints=[sums], method="SLSQP"
    ).x
    w = torch.tensor(np.maximum(found, 0) / np.maximum(found, 0).sum())
    return 1 / count + c * (g.mean() / (w @ g @ w)).clamp_min(0).sqrt() * w


SOLVERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "active set": lambda g, c: mf.solvers.auto()(mf.solvers.cagrad(g, c)).weights,
    "conic (Clarabel)": lambda g, c: mf.solvers.cvx()(mf.solvers.cagrad(g, c)).weights,
    "SLSQP": slsqp_weights,
    "official, softmax": official_weights,
}


class Trial(NamedTuple):
    missed: np.ndarray  # [draw], worst rate below the exact one's, relative
    ball: np.ndarray  # [draw], ‖d - g₀‖/(c‖g₀‖)
    seconds: float  # median a problem


def trial(name: str, g: Tensor, c: float) -> Trial:
    best, unit, missed, ball, seconds = cagrad(g, c).rates.amin(-1), unit_of(g), [], [], []
    for i, one in enumerate(g):
        begin = time.perf_counter()
        weights = SOLVERS[name](one, c)
        seconds.append(time.perf_counter() - begin)
        missed.append(float((best[i] - (one @ weights).amin()) / unit[i]))
        off = weights - 1 / len(one)
        ball.append(
            float((off @ one @ off).clamp_min(0).sqrt() / (c * one.mean().clamp_min(0).sqrt()))
        )
    return Trial(np.array(missed), np.array(ball), float(np.median(seconds)))


def solvers(settings: Settings) -> Findings:
    draws = settings.count(16)
    families = {
        f"T = {tasks}, {name}": gram(
            rows_of(draws, tasks, 100, 200 + 10 * i + tasks, spread=spread)
        )
        * scale**2
        for tasks in (2, 10, 50)
        for i, (name, spread, scale) in enumerate(
            (("normal", 1.0, 1.0), ("lengths 1 to 1e-4", 1e-4, 1.0), ("all × 1e-3", 1.0, 1e-3))
        )
    }
    results: dict[tuple[str, str], Trial] = {}
    for family, g in tqdm(families.items(), desc="solvers", leave=False):
        for name in SOLVERS:
            slow = "conic" in name or (name == "SLSQP" and g.shape[-1] > 10)
            results[name, family] = trial(name, g[: max(2, draws // 4)] if slow else g, 0.5)
    yield solver_figure(results, list(families), draws)
    official = {family: results["official, softmax", family] for family in families}
    most = {
        name: max(float(np.abs(results[name, family].missed).max()) for family in families)
        for name in SOLVERS
    }
    slowest = {name: max(results[name, family].seconds for family in families) for name in SOLVERS}
    good = [name for name in SOLVERS if most[name] < 1e-5 and slowest[name] < 1]
    numbers: dict[str, float] = {}
    for (name, family), t in results.items():
        numbers |= {
            f"{name}, {family}: median missed": float(np.median(t.missed)),
            f"{name}, {family}: most": float(t.missed.max()),
            f"{name}, {family}: ms": 1e3 * t.seconds,
        }
    for family, t in official.items():
        numbers |= {
            f"official, {family}: least ‖d - g₀‖/(c‖g₀‖)": float(t.ball.min()),
            f"official, {family}: largest": float(t.ball.max()),
        }
    yield Claim(
        "CA-17",
        PAPER,
        "Standard optimisation libraries solve the dual efficiently.",
        "holds" if len(good) == len(SOLVERS) else "holds only when" if good else "does not hold",
        numbers,
        f"c = .5, {draws} draws a family (conic, and SLSQP at T = 50: {max(2, draws // 4)}), 100 "
        "parameters; missed: the worst task's rate below the "
        "optimum, relative; a solver is good if it misses less than 1e-5 and takes less than a "
        f"second everywhere: {', '.join(good) or 'none'}. "
        f"Most missed: {', '.join(f'{name} {value:.1g}' for name, value in most.items())}",
    )


def solver_figure(results: dict[tuple[str, str], Trial], families: list[str], draws: int) -> Figure:
    canvas, axes = axes_of(1, 2, (14, 5))
    width = 0.19
    for k, (name, colour) in enumerate(zip(SOLVERS, COLOURS, strict=False)):
        at = np.arange(len(families)) + (k - 1.5) * width
        picked = [results[name, family] for family in families]
        middle = np.array([max(np.median(np.abs(t.missed)), 1e-17) for t in picked])
        top = np.array([max(np.abs(t.missed).max(), 1e-17) for t in picked])
        axes[0].errorbar(
            at,
            middle,
            [np.zeros_like(middle), top - middle],
            fmt="osD^"[k],
            color=colour,
            capsize=3,
            label=name,
        )
        axes[1].plot(at, [1e3 * t.seconds for t in picked], "osD^"[k], color=colour)
    for axis in axes:
        axis.set_xticks(
            range(len(families)),
            [f.replace(", ", "\n").replace("lengths ", "lengths\n") for f in families],
            fontsize=8,
        )
        axis.set_yscale("log")
    axes[0].set_ylabel("|worst rate missed| / (‖g₀‖ · shortest gradient)")
    axes[1].set_ylabel("milliseconds a problem (median)")
    canvas.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(SOLVERS),
        frameon=False,
    )
    return Figure(
        "solvers",
        "CAGrad's dual at c = 0.5 by four solvers: what the worst task loses (median, bar to "
        f"the largest of {draws}; 1e-17 for none) and the time.",
        canvas,
    )


# ---- CAGrad-Fast ----


class Sampled(NamedTuple):
    bias: float  # ‖E d - d_full‖ over ‖d_full‖
    deviation: float  # √E‖d - E d‖² over ‖d_full‖
    missed: float  # worst rate lost, mean, over ‖g₀‖ times the mean gradient length
    mean_error: float  # largest ‖Σ preference·row - g₀‖/‖g₀‖: 0 if g₀ is the true one
    outside: float  # largest ‖d - g₀‖/(c‖g₀‖) - 1


def sampled(rows: Tensor, n: int, c: float, draws: int) -> Sampled:
    """CAGrad-Fast's directions at one Jacobian `[task, param]` over draws of the subset."""
    matrix, preference = vmap(
        lambda key: mf.subset(n)(mf.random.fold_in(mf.random.key(5), key), len(rows))
    )(torch.arange(draws))
    mixed = matrix @ rows
    solve = mf.solvers.auto()
    weights = vmap(lambda g, p: solve(mf.solvers.cagrad(g, c, p)).weights)(gram(mixed), preference)
    d = torch.einsum("dr,drp->dp", weights, mixed)
    full = cagrad(gram(rows)[None], c).weights[0] @ rows
    g0 = rows.mean(0)
    rates = (d @ rows.mT).amin(-1)
    return Sampled(
        float((d.mean(0) - full).norm() / full.norm()),
        float((d - d.mean(0)).square().sum(-1).mean().sqrt() / full.norm()),
        float(((rows @ full).amin() - rates).mean() / (g0.norm() * rows.norm(dim=-1).mean())),
        float((torch.einsum("dr,drp->dp", preference, mixed) - g0).norm(dim=-1).max() / g0.norm()),
        float(((d - g0).norm(dim=-1) / (c * g0.norm())).max() - 1),
    )


SUBSETS = {10: (2, 4, 6, 8, 10), 50: (2, 4, 8, 16, 32, 50)}
PUBLISHED = {10: (4, 2.0), 50: (8, 5.0)}
"""T -> the subset's size in the paper's Meta-World runs, and the speed-up it reports."""


def network(tasks: int, hidden: int = 256, samples: int = 256) -> tuple[mf.types.Params, Tensor]:
    """A shared trunk of two layers with a linear head a task; the trunk's backward pass is most of
    the work.
    """
    key = mf.random.key(tasks)
    shapes = {"trunk.0": (64, hidden), "trunk.1": (hidden, hidden), "heads": (hidden, tasks)}
    params = {
        name: mf.random.normal(mf.random.fold_in(key, i), shape) * shape[0] ** -0.5
        for i, (name, shape) in enumerate(shapes.items())
    }
    return params, mf.random.normal(mf.random.fold_in(key, 9), (samples, 64))


def network_losses(params: mf.types.Params, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.relu(x @ params["trunk.0"]) @ params["trunk.1"])
    return (hidden @ params["heads"] - torch.sin(x[:, :1])).square().mean(0)


def seconds_a_step(tasks: int, n: int, *, batched: bool, repeats: int) -> np.ndarray:
    """Times `[repeat]` of a CAGrad step on n rows; n = T is the full method."""
    params, x = network(tasks)
    probe = mf.jacobian(
        "trunk.*", mix=None if n == tasks else mf.subset(n), chunk_size=None if batched else 1
    )
    step = mf.balance(network_losses, mf.cagrad(0.5), probe)
    state, times = step.init(params, x), []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        _, state, _ = step.update(params, x, state)
        times.append(time.perf_counter() - begin)
    return np.array(times[2:])


def fast(settings: Settings) -> Findings:
    draws, c, points = settings.count(200), 0.5, settings.count(4)
    quality: dict[tuple[int, int], list[Sampled]] = {}
    for tasks, sizes in SUBSETS.items():
        jacobians = rows_of(points, tasks, 100, 300 + tasks, common=0.3)
        for n in sizes:
            quality[tasks, n] = [sampled(rows, n, c, draws) for rows in jacobians]
    repeats = settings.count(15)
    cells = [
        (tasks, n, batched)
        for tasks, sizes in SUBSETS.items()
        for n in sizes
        for batched in (False, True)
    ]
    clock = {
        (tasks, n, batched): seconds_a_step(tasks, n, batched=batched, repeats=repeats)
        for tasks, n, batched in tqdm(cells, desc="time a step", leave=False)
    }
    yield fast_figure(quality, clock)
    worst_mean, worst_ball = (
        max(getattr(s, name) for found in quality.values() for s in found)
        for name in ("mean_error", "outside")
    )
    falls = {
        name: all(
            np.mean([getattr(s, name) for s in quality[tasks, few]])
            >= np.mean([getattr(s, name) for s in quality[tasks, more]])
            for tasks, sizes in SUBSETS.items()
            for few, more in itertools.pairwise(sizes)
        )
        for name in ("bias", "missed")
    }
    numbers = {
        "largest error of g₀, relative": worst_mean,
        "largest ‖d - g₀‖/(c‖g₀‖) - 1": worst_ball,
    }
    for (tasks, n), found in quality.items():
        for name, text in (
            ("bias", "bias of d"),
            ("deviation", "standard deviation of d"),
            ("missed", "worst rate missed"),
        ):
            numbers[f"T = {tasks}, n = {n}: {text}"] = float(
                np.mean([getattr(s, name) for s in found])
            )
    yield Claim(
        "CA-22",
        PAPER,
        "CAGrad-Fast: gradients for a sampled subset of tasks (plus the mean), and only those in "
        "the minimum.",
        "holds" if worst_mean < 1e-12 and worst_ball < 1e-9 else "does not hold",
        numbers,
        f"n - 1 drawn tasks and the mean of the rest, c = {c:g}, {points} normal Jacobians of "
        f"100 parameters with a common part, {draws} subsets each; holds "
        "if g₀ is the true one in every draw and d in the ball around it. In units of the full "
        "method's ‖d‖ and of ‖g₀‖ · mean length; never growing with n: "
        f"bias {'yes' if falls['bias'] else 'no'}, worst rate missed "
        f"{'yes' if falls['missed'] else 'no'}",
    )
    slopes, single = {}, {}
    for tasks, sizes in SUBSETS.items():
        slopes[tasks] = float(
            np.polyfit(sizes, [clock[tasks, n, False].min() for n in sizes], 1)[0]
        )
        single[tasks] = backward_seconds(tasks, repeats)
    linear = {tasks: slopes[tasks] / single[tasks] for tasks in SUBSETS}
    yield Claim(
        "CA-23",
        PAPER,
        "Cost falls from T backward passes plus the solve to the subset's size plus one.",
        "holds" if all(0.7 < x < 1.3 for x in linear.values()) else "does not hold",
        {
            f"T = {tasks}: slope of the time in n over one backward pass": x
            for tasks, x in linear.items()
        }
        | {
            f"T = {tasks}, n = {n}{', batched' if batched else ''}: ms a step": 1e3 * float(t.min())
            for (tasks, n, batched), t in clock.items()
        },
        "shared trunk 64-256-256, 256 samples, one backward pass a row (`chunk_size=1`); the "
        f"fastest of {repeats} steps; holds if each row costs 0.7 to 1.3 "
        "backward passes. In this form the mean of the "
        "rest is one of the n rows",
    )
    numbers, inside = {}, []
    for batched in (False, True):
        for tasks, (n, claimed) in PUBLISHED.items():
            ratio = float(clock[tasks, tasks, batched].min() / clock[tasks, n, batched].min())
            numbers[f"T = {tasks}, n = {n}{', batched' if batched else ''}: full over fast"] = ratio
            if not batched:
                inside.append(0.7 * claimed <= ratio <= 1.3 * claimed)
    yield Claim(
        "CA-34",
        PAPER,
        "CAGrad-Fast is about 2× faster on MT10 and 5× on MT50.",
        "holds" if all(inside) else "holds only when" if any(inside) else "does not hold",
        numbers,
        "the same network in place of the reinforcement-learning agents, the published subset "
        "sizes 4 of 10 and 8 of 50, "
        f"one backward pass a row (batched passes beside it), the fastest of {repeats} steps; "
        "holds if the ratio of the times a step is within 30 % of 2 and 5",
    )


def backward_seconds(tasks: int, repeats: int) -> float:
    """One backward pass of one task to the trunk."""
    params, x = network(tasks)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    loss = network_losses(leaves, x)[0]
    trunk, times = [leaves["trunk.0"], leaves["trunk.1"]], []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        torch.autograd.grad(loss, trunk, retain_graph=True)
        times.append(time.perf_counter() - begin)
    return min(times[2:])


def fast_figure(
    quality: dict[tuple[int, int], list[Sampled]], clock: dict[tuple[int, int, bool], np.ndarray]
) -> Figure:
    canvas, axes = axes_of(1, 4, (16, 4.2))
    for (tasks, sizes), colour, dash in zip(SUBSETS.items(), COLOURS, DASHES, strict=False):
        for axis, name in zip(axes, ("bias", "deviation", "missed"), strict=False):
            axis.plot(
                sizes,
                [float(np.mean([getattr(s, name) for s in quality[tasks, n]])) for n in sizes],
                "o",
                linestyle=dash,
                color=colour,
                label=f"T = {tasks}",
            )
        for batched, marker in ((False, "o"), (True, "s")):
            label = f"T = {tasks}, {'batched' if batched else 'one at a time'}"
            axes[3].plot(
                sizes,
                [1e3 * float(clock[tasks, n, batched].min()) for n in sizes],
                marker,
                linestyle=dash,
                color=colour,
                label=label,
                fillstyle="none" if batched else "full",
            )
    labels = (
        "bias of d / ‖d‖ of the full method",
        "standard deviation of d / ‖d‖",
        "worst task's rate missed / (‖g₀‖ · mean length)",
        "milliseconds a step",
    )
    for axis, label in zip(axes, labels, strict=True):
        axis.set(
            xlabel="rows n (the last one: mean of the rest)",
            ylabel=label,
            xscale="log",
            ylim=(0, None),
        )
        axis.set_xticks([2, 4, 10, 20, 50], ["2", "4", "10", "20", "50"])
        axis.minorticks_off()
    axes[0].legend(frameon=False)
    axes[3].legend(frameon=False, fontsize=8)
    return Figure(
        "fast", "CAGrad-Fast against the number of rows, c = 0.5; n = T is the full method.", canvas
    )
