"""CAGrad, the theory (Liu et al. 2021, sections 3 and 4): the ball, its dual, the role of c,
convergence, the fast variant and its solvers.

Rows g_t of J are task gradients, G = J Jᵀ, g₀ their mean, d the direction, ⟨g_t, d⟩ the rate of
task t. Draws are normal matrices unless said otherwise; "relative" numbers are in units of ‖g₀‖
times the shortest gradient.
"""

import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy import optimize, stats
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import share_interval

PAPER = "CAGrad (Liu et al. 2021)"
CS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#444444")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 2)))


def rows_of(
    draws: int, tasks: int, size: int, tag: int, *, spread: float = 1.0, common: float = 0.0
) -> Tensor:
    """Normal matrices `[draw, task, param]`; lengths spread from 1 to `spread`, plus a common
    vector.
    """
    root = mf.random.fold_in(mf.random.key(11), tag)
    keys = vmap(lambda i: mf.random.fold_in(root, i))(torch.arange(draws))
    rows = vmap(
        lambda key: mf.random.normal(mf.random.fold_in(key, 0), (tasks, size), torch.float64)
    )(keys)
    shared = vmap(
        lambda key: mf.random.normal(mf.random.fold_in(key, 1), (1, size), torch.float64)
    )(keys)
    lengths = torch.logspace(0, np.log10(spread), tasks, dtype=torch.float64)
    return (rows + common * shared) * lengths[:, None]


def stationary_rows(draws: int, tasks: int, size: int, tag: int) -> Tensor:
    """Rows with 0 in the interior of their hull: a random convex combination is subtracted."""
    rows = rows_of(draws, tasks, size, tag)
    shares = rows_of(draws, 1, tasks, tag + 1)[:, 0].abs()
    return rows - ((shares / shares.sum(-1, keepdim=True))[:, None] @ rows)


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


def cagrad(g: Tensor, c: float | Tensor) -> mf.Solution:
    """Exact solutions for a batch of Gramians and one c, or one a Gramian."""
    solve = mf.solvers.auto()
    return vmap(lambda g, c: solve(mf.solvers.cagrad(g, c)))(
        g, torch.as_tensor(c, dtype=g.dtype).expand(len(g))
    )


def min_norm(g: Tensor) -> Tensor:
    solve = mf.solvers.auto()
    return vmap(lambda g: solve(mf.solvers.min_norm(g)).weights)(g)


def dual_cone(g: Tensor) -> Tensor:
    """Weights of the mean gradient projected on {d: J d >= 0} (DualProj)."""
    solve = mf.solvers.auto()
    return vmap(
        lambda g: solve(mf.solvers.dual_cone(g, g.new_full((len(g),), 1 / len(g)))).weights
    )(g)


def length(g: Tensor, weights: Tensor) -> Tensor:
    """‖Jᵀweights‖, batched."""
    return torch.einsum("dt,dts,ds->d", weights, g, weights).clamp_min(0).sqrt()


def angle(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Between Jᵀa and Jᵀb, radians; by the difference of unit vectors, so that small angles keep
    their digits.
    """
    a, b = a / length(g, a)[:, None], b / length(g, b)[:, None]
    return 2 * torch.asin((length(g, a - b) / 2).clamp_max(1))


def unit_of(g: Tensor) -> Tensor:
    """‖g₀‖ times the shortest gradient's length, batched."""
    return (g.sum((1, 2)).clamp_min(0).sqrt() / g.shape[-1]) * g.diagonal(dim1=-2, dim2=-1).amin(
        -1
    ).sqrt()


def mean_weights(g: Tensor) -> Tensor:
    return torch.full_like(g[..., 0], 1 / g.shape[-1])


def threshold(g: Tensor) -> tuple[Tensor, Tensor]:
    """c* = ‖v - g₀‖/‖g₀‖ with v the dual-cone projection of g₀, and v's weights."""
    v, p = dual_cone(g), mean_weights(g)
    return length(g, v - p) / length(g, p), v


def _is(condition: bool) -> Verdict:
    return "holds" if condition else "does not hold"


def run(settings: Settings) -> Findings:
    yield from definitions(settings)
    yield from the_ball(settings)
    yield from the_role_of_c(settings)
    yield from special_cases(settings)
    yield from halting(settings)
    yield from convergence(settings)
    yield from diagnosis(settings)


# ---- definitions and small exact things ----


def definitions(settings: Settings) -> Findings:
    draws = settings.count(1000)
    # Gordan: a common descent direction exists iff 0 is outside the hull; found here by a linear
    # program, there by the shortest point.
    some = settings.count(200)
    outside, inside = rows_of(some, 3, 4, 20), stationary_rows(some, 3, 4, 22)
    disagree = 0
    for rows in (outside, inside):
        shortest = length(gram(rows), min_norm(gram(rows))) / rows.norm(dim=-1).amax(-1)
        for j, short in zip(rows.numpy(), shortest.tolist(), strict=True):
            # max s: J d >= s, |d_i| <= 1, s <= 1
            program = optimize.linprog(
                [0, 0, 0, 0, -1],
                A_ub=np.c_[-j, np.ones(len(j))],
                b_ub=np.zeros(len(j)),
                bounds=[(-1, 1)] * 4 + [(None, 1)],
            )
            disagree += (-program.fun > 1e-8) != (short > 1e-8)
    # both tasks: L(x) = -x², stationary at 0
    hill = [-(Fraction(x) ** 2) for x in (Fraction(0), Fraction(1, 2))]
    yield Claim(
        "CA-05",
        PAPER,
        "The notes call a point Pareto optimal when no direction improves all tasks at once.",
        "does not hold" if disagree == 0 and hill[1] < hill[0] else "inconclusive",
        {
            "draws in which 'no common descent' and '0 in the hull' disagree": float(disagree),
            "draws": float(2 * some),
            "L_1 = L_2 = -x² at its stationary point 0": float(hill[0]),
            "at 1/2": float(hill[1]),
        },
        "the condition is 0 in conv{g_t}, Pareto stationarity (linear program against the "
        "shortest point, half of the draws stationary); "
        "L_1 = L_2 = -x² meets it at 0, where every step improves both",
    )
    yield conflict_measure(draws)
    yield delta_m()
    q = torch.linalg.qr(rows_of(draws, 5, 5, 30))[0] * rows_of(draws, 5, 1, 31).exp()
    w, inverse = min_norm(gram(q)), 1 / q.square().sum(-1)
    off = float((w - inverse / inverse.sum(-1, keepdim=True)).abs().max())
    yield Claim(
        "X-04",
        PAPER,
        "Min-norm weights of orthogonal gradients are proportional to 1/‖g‖²: MGDA favours small "
        "gradients.",
        _is(off < 1e-12),
        {"largest difference of weights": off, "draws": float(draws)},
        "five orthogonal rows of log-normal lengths; holds below 1e-12",
    )


def conflict_measure(draws: int) -> Claim:
    """R(θ, d) on quadratics L_t = ½(θ - m_t)ᵀA_t(θ - m_t), along the mean gradient."""
    root = rows_of(3 * draws, 6, 6, 40).reshape(draws, 3, 6, 6)
    matrix, middle = root @ root.mT / 6, rows_of(draws, 3, 6, 41)

    def values(x: Tensor) -> Tensor:
        off = x[:, None] - middle
        return 0.5 * torch.einsum("dti,dtij,dtj->dt", off, matrix, off)

    x = rows_of(draws, 1, 6, 42)[:, 0]
    rows = torch.einsum("dtij,dtj->dti", matrix, x[:, None] - middle)
    d = rows.mean(1)
    limit = -torch.einsum("dti,di->dt", rows, d).amin(-1)
    etas = (1e-6, 1e-4, 1e-2, 0.3, 1.0)
    measured = {eta: ((values(x - eta * d) - values(x)) / eta).amax(-1) for eta in etas}
    error = {
        eta: float(((m - limit).abs() / limit.abs().clamp_min(1e-12)).median())
        for eta, m in measured.items()
    }
    flips = {eta: float(((m > 0) != (limit > 0)).double().mean()) for eta, m in measured.items()}
    ratio = error[1e-4] / error[1e-6]
    return Claim(
        "CA-09",
        PAPER,
        "Conflict measure R(θ, d) = max_i (L_i(θ - ηd) - L_i(θ))/η ≈ -min_i ⟨g_i, d⟩; below 0 "
        "every loss falls, above 0 some loss rises.",
        "holds" if 50 < ratio < 200 and flips[1e-6] < 0.01 else "does not hold",
        {f"median relative error at η = {eta:g}": e for eta, e in error.items()}
        | {f"share with the other sign at η = {eta:g}": f for eta, f in flips.items()},
        f"{draws} random triples of quadratics, d = g₀; holds if the error falls like η and the "
        "signs agree in the limit. It is first order: "
        "at training steps signs differ",
    )


def delta_m() -> Claim:
    metrics, baselines, higher = (
        {"accuracy": 0.75, "error": 1.0},
        {"accuracy": 1.0, "error": 0.5},
        {"accuracy": True, "error": False},
    )
    by_hand = Fraction(100, 2) * (-(Fraction(3, 4) - 1) / 1 + (1 - Fraction(1, 2)) / Fraction(1, 2))
    library = mf.diagnostics.delta_m(metrics, baselines, higher)
    five = {f"a{i}": 1.2 for i in range(5)} | {"b": 1.0}
    weighed = mf.diagnostics.delta_m(five, dict.fromkeys(five, 1.0), dict.fromkeys(five, False))
    return Claim(
        "CA-29",
        PAPER,
        "Δm %: mean relative drop against single-task baselines, lower is better.",
        _is(abs(library - float(by_hand)) < 1e-12),
        {
            "worked example, fractions": float(by_hand),
            "library": library,
            "a task with five metrics 20 % worse, one unchanged with a single metric": weighed,
        },
        "accuracy .75 against 1, error 1 against .5; the average runs over metrics, so a task "
        "with five of them counts five times",
    )


# ---- the ball and its dual ----


def the_ball(settings: Settings) -> Findings:
    draws = settings.count(200)
    gap = tight = conic = sampled = 0.0
    for tasks in (2, 3, 10):
        rows = rows_of(draws, tasks, 20, 50 + tasks)
        g = gram(rows)
        scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
        for c in (0.1, 0.4, 0.8, 1.0, 3.0):
            found = cagrad(g, c)
            d, g0 = torch.einsum("dt,dtp->dp", found.weights, rows), rows.mean(1)
            gap = max(gap, float((found.gap / (scale * d.norm(dim=-1))).max()))
            tight = max(
                tight, float(((d - g0).norm(dim=-1) / (c * g0.norm(dim=-1)) - 1).abs().max())
            )
            for i in range(2):
                other = mf.solvers.cvx()(mf.solvers.cagrad(g[i], c))
                conic = max(
                    conic, float((found.value[i] - other.value).abs() / unit_of(g[i : i + 1])[0])
                )
            ball = rows_of(draws, 100, 20, 60 + tasks)
            ball = g0[:, None] + c * g0.norm(dim=-1)[:, None, None] * ball / ball.norm(
                dim=-1, keepdim=True
            )
            best = torch.einsum("dtp,dnp->dnt", rows, ball).amin(-1).amax(-1)
            sampled = max(sampled, float(((best - found.rates.amin(-1)) / unit_of(g)).max()))
    setting = f"{draws} draws each of 2, 3 and 10 tasks in 20 parameters, c = .1, .4, .8, 1, 3"
    yield Claim(
        "CA-10",
        PAPER,
        "Primal: max over d of min_i ⟨g_i, d⟩ subject to ‖d - g₀‖ <= c‖g₀‖.",
        _is(gap < 1e-10 and tight < 1e-9 and sampled <= 0),
        {
            "largest duality gap over longest gradient times ‖d‖": gap,
            "largest |‖d - g₀‖/(c‖g₀‖) - 1|": tight,
            "best of 100 random points of the sphere above it": sampled,
        },
        f"{setting}; holds if d is feasible, the gap closed and no random point of the sphere "
        "better (relative)",
    )
    yield Claim(
        "CA-16",
        PAPER,
        "Dual: min over the simplex of g_w·g₀ + √φ‖g_w‖, φ = c²‖g₀‖²; d = g₀ + (√φ/‖g_w‖) g_w.",
        _is(gap < 1e-10 and tight < 1e-9 and conic < 1e-5),
        {
            "largest duality gap over longest gradient times ‖d‖": gap,
            "largest |‖d - g₀‖/(c‖g₀‖) - 1|": tight,
            "largest difference to the conic solver's value": conic,
        },
        f"{setting}; strong duality and a tight ball, values as those of cvxpy and Clarabel. "
        "While g_w is not 0; at Pareto-stationary points see CA-18",
    )
    yield size_matters()


def size_matters() -> Claim:
    """The solver's time against the number of parameters."""
    seconds, unknowns = {}, {}
    for size in (1_000, 100_000):
        rows = rows_of(2, 10, size, 70)
        batch = gram(rows)
        solve = mf.solvers.auto()
        times = []
        for g in batch.repeat(50, 1, 1):
            start = time.perf_counter()
            solve(mf.solvers.cagrad(g, 0.5))
            times.append(time.perf_counter() - start)
        seconds[size], unknowns[size] = float(np.median(times)), batch.shape[-1]
    ratio = seconds[100_000] / seconds[1_000]
    return Claim(
        "CA-15",
        PAPER,
        "The primal has the model's dimension, the dual only T unknowns.",
        _is(len(set(unknowns.values())) == 1 and 0.5 < ratio < 2),
        {f"unknowns of the dual at P = {size}": float(n) for size, n in unknowns.items()}
        | {f"microseconds for the dual at P = {size}": 1e6 * s for size, s in seconds.items()},
        "ten tasks, median of 100 solutions given the Gramian; holds if a hundred times the "
        "parameters changes the time by less than a factor of 2",
    )


# ---- c from 0 to infinity ----


class Sweep(NamedTuple):
    worst: Tensor  # [c, draw], min_t rate, relative
    mean_angle: Tensor  # [c, draw], to g₀
    mgda_angle: Tensor  # [c, draw], to MGDA's direction
    progress: Tensor  # [c, draw], g₀·d/‖g₀‖²
    threshold: Tensor  # [draw], c*
    stretch: Tensor  # [c, draw], ‖d‖/‖d_MGDA‖


def sweep(rows: Tensor) -> Sweep:
    g = gram(rows)
    p, w = mean_weights(g), min_norm(g)
    results = []
    for c in CS:
        found = cagrad(g, c)
        a = found.weights
        inner = torch.einsum("dt,dts,ds->d", p, g, a) / length(g, p) ** 2
        results.append(
            (
                found.rates.amin(-1) / unit_of(g),
                angle(g, a, p),
                angle(g, a, w),
                inner,
                length(g, a) / length(g, w),
            )
        )
    worst, to_mean, to_mgda, progress, stretch = (
        torch.stack(x) for x in zip(*results, strict=True)
    )
    return Sweep(worst, to_mean, to_mgda, progress, threshold(g)[0], stretch)


def the_role_of_c(settings: Settings) -> Findings:
    draws = settings.count(300)
    swept = {tasks: sweep(rows_of(draws, tasks, 20, 80 + tasks)) for tasks in (2, 5, 10)}
    yield c_figure(swept, draws)
    fall = max(float(-s.worst.diff(dim=0).min()) for s in swept.values())
    slack = min(
        float((s.progress - (1 - torch.tensor(CS, dtype=torch.float64))[:, None]).min())
        for s in swept.values()
    )
    yield Claim(
        "CA-11",
        PAPER,
        "Keeping d in a ball around g₀ keeps the overall objective in view; c tunes how much the "
        "worst task counts.",
        _is(fall < 1e-9 and slack > -1e-9),
        {
            "largest fall of the worst rate from one c to the next": fall,
            "least g₀·d/‖g₀‖² - (1 - c)": slack,
        }
        | {
            f"T = {tasks}: median worst rate at c = {c:g}": float(s.worst[CS.index(c)].median())
            for tasks, s in swept.items()
            for c in (0.0, 0.4, 1.0)
        },
        f"{draws} draws each of 2, 5 and 10 tasks, {len(CS)} values of c from 0 to 100; holds if "
        "the worst rate never falls with c and g₀·d >= (1 - c)‖g₀‖²",
    )
    at_zero = max(float(s.mean_angle[0].max()) for s in swept.values())
    # Where MGDA's point is a corner of the hull, its direction is met exactly from some c on.
    near, far = (
        torch.cat([s.mgda_angle[CS.index(c)] for s in swept.values()]) for c in (10.0, 100.0)
    )
    inner = far > 1e-5
    order = float((near[inner] / far[inner]).median())
    last = max(float(s.mgda_angle[-1].max()) for s in swept.values())
    grows = min(float((s.stretch[-1] / s.stretch[CS.index(10.0)]).median()) for s in swept.values())
    limit = at_zero < 1e-7 and 8 < order < 12
    yield Claim(
        "CA-12",
        PAPER,
        "Gradient descent (c = 0) and MGDA (c → ∞) are special cases.",
        "holds only when" if limit and grows > 5 else "holds" if limit else "does not hold",
        {
            "c = 0: largest angle to g₀": at_zero,
            "c = 100: largest angle to MGDA, radians": last,
            "angle to MGDA at c = 10 over that at 100, median where it is not 0": order,
            "share where it is 0, MGDA's point being a corner": float((~inner).double().mean()),
        }
        | {"‖d‖/‖d_MGDA‖ at c = 100 over that at 10, median": grows},
        f"{draws} draws each of 2, 5 and 10 tasks in 20 parameters. c = 0 is g₀; the angle to "
        "MGDA falls like 1/c, while the length grows like c: "
        "MGDA's direction in the limit, not its length. On the toy see CA-14",
    )


def c_figure(swept: dict[int, Sweep], draws: int) -> Figure:
    canvas, axes = axes_of(1, 4, (16, 4.2))
    c = np.array([0.07, *CS[1:]])  # 0 drawn there
    for (tasks, s), colour, dash in zip(swept.items(), COLOURS, DASHES, strict=False):
        for axis, values in zip(
            axes, (s.worst, torch.rad2deg(s.mean_angle), torch.rad2deg(s.mgda_angle)), strict=False
        ):
            low, middle, high = values.quantile(
                torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1
            ).numpy()
            axis.plot(c, middle, color=colour, linestyle=dash, label=f"T = {tasks}")
            axis.fill_between(c, low, high, color=colour, alpha=0.15, linewidth=0)
        axes[3].step(
            np.sort(s.threshold.numpy()),
            np.arange(1, draws + 1) / draws,
            color=colour,
            linestyle=dash,
            where="post",
        )
    axes[0].axhline(0, color="#777777", linewidth=1)
    axes[0].set(
        yscale="symlog", ylim=(-1, None), ylabel="worst task's rate / (‖g₀‖ · shortest gradient)"
    )
    axes[1].set(ylabel="angle to the mean gradient, degrees")
    axes[2].set(ylabel="angle to MGDA's direction, degrees")
    for axis in axes[:3]:
        axis.set(xlabel="c (leftmost: 0)", xscale="log")
        axis.set_xticks([0.07, 0.2, 1, 10, 100], ["0", "0.2", "1", "10", "100"])
        axis.minorticks_off()
    axes[3].set(
        xlabel="c*: from here on no task's rate is negative",
        ylabel="share of draws at or below",
        ylim=(0, 1.02),
    )
    axes[0].legend(frameon=False)
    return Figure(
        "c",
        f"CAGrad from c = 0 to 100 on {draws} random Jacobians of 20 parameters a T: medians, "
        "bands from 5 to 95 %.",
        canvas,
    )


def special_cases(settings: Settings) -> Findings:
    draws = max(20, settings.count(150))
    wrong, away, tested = 0, 0.0, 0
    for tasks in (2, 3, 5, 10):
        g = gram(rows_of(draws, tasks, tasks + 1, 100 + tasks, spread=0.3))
        c, v = threshold(g)
        some = c > 1e-3  # below: no conflict to remove
        if not some.any():
            continue
        tested += int(some.sum())
        g, c, v = g[some], c[some], v[some]
        unit = unit_of(g)
        wrong += int((cagrad(g, 0.95 * c).rates.amin(-1) / unit > -1e-9).sum()) + int(
            (cagrad(g, 1.05 * c).rates.amin(-1) / unit < -1e-9).sum()
        )
        away = max(away, float((length(g, cagrad(g, c).weights - v) / length(g, v)).max()))
    grid = (
        torch.linspace(0, 1, 101, dtype=torch.float64).tolist()
        + torch.logspace(0, 3, 50, dtype=torch.float64).tolist()[1:]
    )
    closest, ratios, at_c = {}, {}, {}
    for tasks in (2, 3):
        g = gram(rows_of(draws, tasks, 3, 110 + tasks))
        some = (g < 0).flatten(1).any(-1)
        g = g[some]
        orders = torch.arange(tasks).expand(tasks, tasks)
        pcgrad = vmap(lambda g, orders=orders: mf.weights(mf.pcgrad(orders), g))(g)
        best, where, ratio = (
            torch.full((len(g),), torch.inf, dtype=torch.float64),
            torch.zeros(len(g)),
            torch.zeros(len(g), dtype=torch.float64),
        )
        for c in grid:
            found = cagrad(g, c).weights
            apart = angle(g, found, pcgrad)
            better = apart < best
            best, where = torch.where(better, apart, best), torch.where(better, c, where)
            ratio = torch.where(better, length(g, found) / length(g, pcgrad), ratio)
        closest[tasks], at_c[tasks], ratios[tasks] = best, where, ratio
    matched = {tasks: share_interval(int((x < 0.02).sum()), len(x)) for tasks, x in closest.items()}
    general = matched[3].mean > 0.99 and matched[2].mean > 0.99
    numbers = {
        "c*: draws with a conflict to remove": float(tested),
        "c*: draws with the wrong sign at .95 c* and 1.05 c*": float(wrong),
        "c*: largest relative distance of d to DualProj's": away,
    }
    for tasks in (2, 3):
        numbers |= {
            f"T = {tasks}: share of PCGrad's directions met by some c": matched[tasks].mean,
            f"T = {tasks}: largest angle to the nearest c": float(closest[tasks].max()),
        }
    numbers |= {
        "T = 2: c that comes closest, 5 %": float(at_c[2].quantile(0.05)),
        "95 %": float(at_c[2].quantile(0.95)),
        "T = 2: largest ‖CAGrad‖/‖PCGrad‖ there": float(ratios[2].max()),
    }
    yield Claim(
        "CA-13",
        PAPER,
        "Earlier methods in general are special cases.",
        "holds"
        if general
        else "holds only when"
        if wrong == 0 and away < 1e-6
        else "does not hold",
        numbers,
        f"DualProj's direction at c = c*, {draws} draws each of 2, 3, 5 and 10 tasks; PCGrad "
        f"(order 0, 1, 2) against {len(grid)} values of c "
        "on conflicting draws in 3 parameters, "
        "met: within .02 radians. Besides c = 0, the limit of CA-12 and DualProj: two tasks' "
        "PCGrad only with another c at every step and "
        "another length, three tasks' not",
    )
    opposed = rows_of(draws, 1, 6, 120)
    opposed = torch.cat([opposed, -2.5 * opposed], 1)
    three = stationary_rows(draws, 3, 6, 122)
    rest = {}
    for tasks, rows in ((2, opposed), (3, three)):
        g = gram(rows)
        scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
        orders = torch.arange(tasks).expand(tasks, tasks)
        rest[tasks] = [
            length(g, w) / scale
            for w in (
                min_norm(g),
                vmap(lambda g, orders=orders: mf.weights(mf.pcgrad(orders), g))(g),
                mean_weights(g),
            )
        ]
    stops = {tasks: [float(x.max()) < 1e-7 for x in found[:2]] for tasks, found in rest.items()}
    yield Claim(
        "CA-03",
        PAPER,
        "Earlier methods are heuristics without convergence guarantee and/or may stop at any "
        "Pareto-stationary point.",
        "holds"
        if all(map(all, stops.values()))
        else "holds only when"
        if all(stops[2])
        else "does not hold",
        {
            f"T = {tasks}: largest ‖d‖ of {name}": float(x.max())
            for tasks, found in rest.items()
            for name, x in zip(("MGDA", "PCGrad"), found, strict=False)
        }
        | {
            f"T = {tasks}: smallest ‖d‖ of PCGrad": float(found[1].min())
            for tasks, found in rest.items()
        }
        | {f"T = {tasks}: smallest ‖g₀‖": float(found[2].min()) for tasks, found in rest.items()},
        f"{draws} Pareto-stationary draws each, two opposed gradients and three around 0, in "
        "units of the longest; the part about stopping: "
        "MGDA rests at all, PCGrad at those of "
        "two tasks; at three tasks it does not even rest there",
    )


# ---- fixed points and convergence ----


def halting(settings: Settings) -> Findings:
    draws = settings.count(200)
    hull = outside = 0.0
    resting: dict[float, int] = {}
    least = np.inf
    opposed = rows_of(draws, 1, 12, 130)
    families = [
        stationary_rows(draws, 3, 6, 132),
        stationary_rows(draws, 5, 12, 134),
        torch.cat([opposed, -1.7 * opposed], 1),
        rows_of(draws, 3, 6, 136),
    ]
    for c in (0.0, 0.2, 0.5, 0.9, 1.0, 1.5, 3.0, 10.0):
        resting[c] = 0
        for rows in families:
            g = gram(rows)
            scale = g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
            weights = cagrad(g, c).weights
            d, shortest = length(g, weights) / scale, length(g, min_norm(g)) / scale
            still = d < 1e-7
            resting[c] += int(still.sum())
            if still.any():
                hull = max(hull, float(shortest[still].max()))
            if c < 1:
                least = min(least, float((d * scale / length(g, mean_weights(g)) - (1 - c)).min()))
            v = dual_cone(g)
            outside = max(
                outside, float((length(g, v - mean_weights(g)) / length(g, mean_weights(g))).max())
            )
    yield Claim(
        "CA-18",
        PAPER,
        "Fixed points of CAGrad are Pareto stationary (stated for c >= 1).",
        _is(hull < 1e-6 and least > -1e-7 and outside < 1 + 1e-9),
        {
            "largest distance of 0 from the hull where d = 0": hull,
            "c < 1: least ‖d‖/‖g₀‖ - (1 - c)": least,
            "largest c*": outside,
        }
        | {f"c = {c:g}: draws with d = 0": float(n) for c, n in resting.items()},
        f"{draws} draws each of three stationary families and a general one, lengths in units of "
        "the longest gradient, 0: below 1e-7. True "
        "for every c >= 0: below 1 d = 0 only where "
        "g₀ = 0, from 1 on at Pareto-stationary points, where d is the dual-cone projection of g₀",
    )


class Quadratics(NamedTuple):
    matrix: Tensor  # [draw, task, param, param]
    middle: Tensor  # [draw, task, param]
    start: Tensor  # [draw, param]
    smoothness: Tensor  # [draw], H: the largest eigenvalue of a task's Hessian


def quadratics(draws: int, tasks: int, size: int, tag: int) -> Quadratics:
    """Strongly convex quadratics; the tasks' curvatures differ by log-normal factors."""
    root = rows_of(draws * tasks, size, size, tag).reshape(draws, tasks, size, size)
    matrix = root.mT @ root / size + 0.2 * torch.eye(size, dtype=torch.float64)
    matrix = matrix * rows_of(draws, tasks, 1, tag + 1).exp()[..., None]
    return Quadratics(
        matrix,
        rows_of(draws, tasks, size, tag + 2),
        3 * rows_of(draws, 1, size, tag + 3)[:, 0],
        torch.linalg.eigvalsh(matrix).amax((-1, -2)),
    )


def quadratic_losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, middle = batch
    off = params["x"] - middle
    return 0.5 * torch.einsum("ti,tij,tj->t", off, matrix, off)


class Descent(NamedTuple):
    ratio: Tensor  # [draw], Σ‖g₀‖² over its bound
    squares: Tensor  # [step, draw], ‖g₀‖²


def descend(
    problem: Quadratics,
    cs: tuple[float, ...],
    steps: int,
    label: str,
    mix: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> list[Descent]:
    """Plain steps of η = .9/H along d, all c at once; the bound is 2(L₀(θ₀) - inf L₀)/(η(1 - c²))."""
    draws = len(problem.start)
    c = torch.tensor(cs, dtype=torch.float64).repeat_interleave(draws)
    problem = Quadratics(*(x.repeat(len(cs), *(1,) * (x.ndim - 1)) for x in problem))
    eta, batch, probe = (
        0.9 / problem.smoothness,
        (problem.matrix, problem.middle),
        mf.jacobian(mix=mix),
    )

    def step_at(lr: Tensor, c: Tensor) -> mf.Step:
        return mf.descend(quadratic_losses, mf.cagrad(c), mf.sgd(lr), probe)

    state = vmap(lambda lr, c, x, b, key: step_at(lr, c).init({"x": x}, b, key))(
        eta, c, problem.start, batch, torch.arange(len(eta))
    )
    move = vmap(lambda lr, c, state, b: step_at(lr, c).update(state, b)[0])
    matrix, pull = (
        problem.matrix.mean(1),
        torch.einsum("dtij,dtj->di", problem.matrix, problem.middle) / problem.matrix.shape[1],
    )
    squares = []
    for _ in tqdm(range(steps), desc=label, leave=False):
        squares.append(
            (torch.einsum("dij,dj->di", matrix, state.params["x"]) - pull).square().sum(-1)
        )
        state = move(eta, c, state, batch)
    lowest = torch.linalg.solve(matrix, pull)
    first, least = (
        vmap(quadratic_losses)({"x": x}, batch).mean(-1) for x in (problem.start, lowest)
    )
    kept = torch.stack(squares)
    ratio = kept.sum(0) * eta * (1 - c * c) / (2 * (first - least))
    return [Descent(*both) for both in zip(ratio.split(draws), kept.split(draws, 1), strict=True)]


def convergence(settings: Settings) -> Findings:
    draws, steps, cs = settings.count(50), settings.count(800), (0.2, 0.5, 0.9)
    problem = quadratics(draws, 3, 5, 140)
    runs = {
        f"c = {c:g}": run
        for c, run in zip(cs, descend(problem, cs, steps, "quadratics"), strict=True)
    }
    runs["c = 0.5, fast with 2 of 3 rows"] = descend(
        problem, (0.5,), steps, "quadratics, fast", mf.subset(2)
    )[0]
    yield convergence_figure(runs, steps)
    worst = {name: float(run.ratio.max()) for name, run in runs.items()}
    exact = {name: run for name, run in runs.items() if "fast" not in name}
    left = {name: (run.squares[-1] / run.squares[0]).sqrt() for name, run in runs.items()}
    yield Claim(
        "CA-20",
        PAPER,
        "Rate: Σ_k ‖g₀(θ_k)‖² <= 2(L₀(θ₀) - inf L₀)/(η(1 - c²)).",
        _is(max(worst.values()) <= 1),
        {f"{name}: largest ratio of both sides": x for name, x in worst.items()}
        | {"draws": float(draws), "steps": float(steps)},
        "random triples of convex quadratics, plain steps of .9/H, H the largest curvature of a "
        "task; holds if no ratio is above 1. Only the "
        "ball is used, so it covers the fast variant",
    )
    share = {name: float((x < 1e-3).double().mean()) for name, x in left.items()}
    shrinks = all(share[name] > 0.9 for name in exact)
    yield Claim(
        "CA-19",
        PAPER,
        "For 0 <= c < 1 the iterates approach stationary points of the mean loss.",
        ("holds" if shrinks else "does not hold") if steps >= 800 else "inconclusive",
        {
            f"{name}: median of ‖g₀‖ at the end over the start": float(x.median())
            for name, x in left.items()
        }
        | {f"{name}: share below 1e-3": share[name] for name in left},
        "the same runs; holds if ‖g₀‖ falls below 1e-3 of its start in more than 90 % of the "
        "exact ones; on the toy see CA-26",
    )
    yield several_minima(settings)


def convergence_figure(runs: dict[str, Descent], steps: int) -> Figure:
    canvas, axes = axes_of(1, 2, (11, 4.2))
    for (name, run), colour, dash in zip(runs.items(), COLOURS, DASHES, strict=False):
        ratio = np.sort(run.ratio.numpy())
        axes[0].step(
            ratio,
            np.arange(1, len(ratio) + 1) / len(ratio),
            color=colour,
            linestyle=dash,
            where="post",
        )
        low, middle, high = (
            (run.squares / run.squares[0])
            .sqrt()
            .quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1)
            .clamp_min(1e-16)
            .numpy()
        )
        axes[1].plot(middle, color=colour, linestyle=dash, label=name)
        axes[1].fill_between(range(len(middle)), low, high, color=colour, alpha=0.12, linewidth=0)
    axes[0].axvline(1, color="#777777", linewidth=1)
    axes[0].set(
        xlabel="Σ ‖g₀‖² over its bound (the theorem: at most 1)",
        ylabel="share of draws at or below",
        ylim=(0, 1.02),
        xlim=(0, 1.05),
    )
    axes[1].set(xlabel="step", ylabel="‖g₀‖ over its start", yscale="log")
    axes[1].legend(frameon=False, loc="lower left")
    return Figure(
        "convergence",
        f"The convergence theorem on random quadratics, {steps} plain steps of .9/H: medians, "
        "bands from 5 to 95 %.",
        canvas,
    )


def several_minima(settings: Settings) -> Claim:
    """Two tasks (x² - 1)² + .3x ± x/2: the mean has two minima."""
    count, steps = settings.count(200), settings.count(1000)

    def wells(params: mf.types.Params, _: Tensor) -> Tensor:
        x = params["x"]
        return (x.square() - 1).square() + 0.3 * x + torch.stack([x, -x]) / 2

    step = mf.descend(wells, mf.cagrad(0.5), mf.sgd(0.02), mf.jacobian())
    start, none = torch.linspace(-1.8, 1.8, count, dtype=torch.float64), torch.zeros(count)
    state = vmap(lambda x, b: step.init({"x": x}, b))(start, none)
    move = vmap(lambda state, b: step.update(state, b)[0])
    for _ in tqdm(range(steps), desc="two minima", leave=False):
        state = move(state, none)
    x = state.params["x"]
    slope = float((4 * x * (x.square() - 1) + 0.3).abs().max())
    value = vmap(wells)({"x": x}, none).mean(-1)
    grid = np.linspace(-2, 0, 20_001)
    lowest = float(((grid**2 - 1) ** 2 + 0.3 * grid).min())
    short = share_interval(int((value > lowest + 0.1).sum()), count)
    return Claim(
        "CA-21",
        PAPER,
        "This shows convergence to the minimum of the mean.",
        "inconclusive" if slope > 1e-3 else "holds only when" if short.mean > 0 else "holds",
        {
            "largest ‖g₀‖ at the end": slope,
            "share ending at the other minimum": short.mean,
            "least mean loss": lowest,
            "largest mean loss at an end": float(value.max()),
        },
        f"L_i = (x² - 1)² + .3x ± x/2, c = .5, {count} starts over [-1.8, 1.8]: stationary "
        "points of the mean are reached, its minimum only "
        "from starts on its side (or under convexity)",
    )


# ---- diagnosis ----


def diagnosis(settings: Settings) -> Findings:
    """Which pairs does the mean gradient hurt, and does conflict at the start foretell a worse end?"""
    draws = settings.count(4000)
    rows = rows_of(draws, 2, 4, 150) * rows_of(draws, 2, 1, 151).exp()
    g = gram(rows)
    n = g.diagonal(dim1=-2, dim2=-1).sqrt()
    cos, ratio = g[:, 0, 1] / n.prod(-1), n.amin(-1) / n.amax(-1)
    hurt = (g.mean(-1) < 0).any(-1)
    violations = int((hurt != (cos < -ratio)).sum())
    small = (g.mean(-1) < 0).gather(-1, n.argmin(-1, keepdim=True))[:, 0]
    pairs, steps = settings.count(300), settings.count(1000)
    problem = quadratics(pairs, 2, 5, 160)
    eta, batch = 0.9 / problem.smoothness, (problem.matrix, problem.middle)
    matrix, pull = (
        problem.matrix.mean(1),
        torch.einsum("dtij,dtj->di", problem.matrix, problem.middle) / 2,
    )
    x = problem.start
    first = vmap(quadratic_losses)({"x": x}, batch)
    start = vmap(lambda x, b: mf.task_gramian(quadratic_losses, {"x": x}, b)[1])(x, batch)
    for _ in tqdm(range(steps), desc="mean loss", leave=False):
        x = x - eta[:, None] * (torch.einsum("dij,dj->di", matrix, x) - pull)
    excess = (vmap(quadratic_losses)({"x": x}, batch) / first).amax(-1)  # each task alone reaches 0
    m = start.diagonal(dim1=-2, dim2=-1).sqrt()
    found = {"cosine": start[:, 0, 1] / m.prod(-1), "ratio of lengths": m.amin(-1) / m.amax(-1)}
    rho = {
        name: float(
            np.corrcoef(stats.rankdata(values.numpy()), stats.rankdata(excess.numpy()))[0, 1]
        )
        for name, values in found.items()
    }
    strong = rho["cosine"] < -0.5
    yield Claim(
        "CA-02",
        PAPER,
        "Main cause: misaligned gradients, so the mean direction hurts some task; also unequal "
        "norms let a few tasks dominate.",
        "holds"
        if violations == 0 and strong
        else "holds only when"
        if violations == 0
        else "does not hold",
        {
            "pairs in which 'g₀ raises a task' and 'cos < -shorter/longer' differ": float(
                violations
            ),
            "share of pairs hurt": float(hurt.double().mean()),
        }
        | {
            "share of these in which the shorter gradient's task is the one": float(
                small[hurt].double().mean()
            )
        }
        | {
            f"rank correlation of the worst task's end with the {name} at the start": r
            for name, r in rho.items()
        },
        f"{draws} normal pairs with log-normal lengths; {pairs} pairs of convex quadratics, "
        f"{steps} steps on the mean, worst loss at the end "
        "over its start. To first order exact; "
        "as the main cause of a worse end it would need a rank correlation below -.5: "
        f"{'yes' if strong else 'no'}",
    )


def axes_of(rows: int, columns: int, size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=size, layout="constrained")
    axes = [canvas.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return canvas, axes
