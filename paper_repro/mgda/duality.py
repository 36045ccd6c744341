"""Is the best direction the shortest convex combination of the gradients?"""

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.figures import arrow, axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.options import Impossible, Option, drawn
from .common import COLOURS, gram, normal, rows_of, shortest, solved, square, uniform

CLAIMS = {
    "SU-16": Exact(
        "The limit is a weighted mean of the g_t, its weights the current best task "
        "weighting; the smoothing route is heuristic, though the result is right.",
        exact(
            ("averaged iteration: largest excess over its bound", "<=", 1e-9),
            ("the same: largest relative difference of their directions", "<", 1e-6),
        ),
    ),
    "SU-17": Exact(
        "The set of T-ary distributions is the simplex, and min_t x_t is the minimum over "
        "it of Σ w_t x_t.",
        exact(
            ("linear program over the simplex against the minimum, *", "<", 1e-9),
            ("smallest Σ w_t x_t - min x over random weights", ">=", -1e-15),
        ),
    ),
    "SU-18": Exact(
        "The objective is concave in u and convex in w, both domains are convex, so by "
        "von Neumann's minimax theorem maximum and minimum swap.",
        exact(
            ("largest |primal - dual value| / min ‖g‖²", "<", 1e-6),
            ("largest ‖u*‖/max ‖g_t‖", "<=", 1),
            only_when=("u + w, both domains convex and growing: max min less min max", "<", 0),
        ),
        when="u is first confined to a ball, which loses nothing; the reason given is not enough",
    ),
    "SU-19": Exact(
        "In the dual the inner maximum is u = Σ w_t g_t, so the problem is to find the shortest "
        "convex combination: the minimum of ½‖Σ w_t g_t‖².",
        exact(
            ("largest gain of a move away from u = Jᵀw", "<", 0),
            ("inner maximum less ½‖Jᵀw‖²", "<", 1e-9),
            ("largest relative gap wᵀGw - min (Gw)_t at the answer", "<", 1e-12),
            ("smallest ‖Jᵀw‖² - ‖Jᵀw*‖² over random weights", ">=", 0),
        ),
    ),
    "SU-20": Exact(
        "T = 2: dropping a perpendicular in a triangle, w_1 = clip((G_22 - G_12)/(G_11 + "
        "G_22 - 2G_12), 0, 1); three cases.",
        exact(
            ("closed form against *: largest difference of directions, *", "<", 1e-9),
            ("draws in which the angles say another case", "==", 0),
        ).open_unless(("draws with the answer *", ">", 0)),
    ),
}
claim = Claims(CLAIMS)


def primal(rows: np.ndarray) -> float:
    """The maximum of s - ½‖u‖² with ⟨g_t, u⟩ >= s, in parameter space. By sequential quadratic
    programming: no simplex, no weights.
    """
    size = rows.shape[1]
    answer = optimize.minimize(
        lambda z: 0.5 * z[:-1] @ z[:-1] - z[-1],
        np.zeros(size + 1),
        jac=lambda z: np.append(z[:-1], -1.0),
        constraints={
            "type": "ineq",
            "fun": lambda z: rows @ z[:-1] - z[-1],
            "jac": lambda z: np.hstack([rows, -np.ones((len(rows), 1))]),
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return -float(answer.fun)


class Answers(NamedTuple):
    """Random matrices and their shortest convex combinations."""

    rows: Tensor  # [draw, task, param]
    g: Tensor  # [draw, task, task]
    w: Tensor  # [draw, task]
    u: Tensor  # [draw, param]
    anyhow: Tensor  # [draw, task], random weights


def run(settings: Settings) -> Findings:
    draws, tasks = settings.count(1000), 6
    rows = rows_of(draws, tasks, 10, 300, spread=5.0, common=0.4)
    g = gram(rows)
    w = shortest(g)
    anyhow = torch.softmax(3 * normal(311, (draws, tasks)), -1)
    found = Answers(rows, g, w, torch.einsum("dt,dtp->dp", w, rows), anyhow)
    yield simplex(anyhow, settings)
    yield swap(found, settings)
    yield inner_maximum(found)
    yield weighted_mean(found, settings)
    yield two_tasks()
    yield perpendicular(settings)


def simplex(anyhow: Tensor, settings: Settings) -> Claim:
    """The minimum of the x_t is the minimum over the simplex of Σ w_t x_t."""
    draws, tasks = anyhow.shape
    x = normal(310, (draws, tasks))
    programs = np.array(
        [
            optimize.linprog(row, A_eq=np.ones((1, tasks)), b_eq=[1.0]).fun
            for row in x[: settings.count(50)].numpy()
        ]
    )
    difference = float(np.abs(programs - x[: len(programs)].amin(-1).numpy()).max())
    excess = float(((anyhow * x).sum(-1) - x.amin(-1)).min())
    return claim(
        "SU-17",
        {
            "linear program over the simplex against the minimum, largest difference": difference,
            "smallest Σ w_t x_t - min x over random weights": excess,
        },
        f"{len(programs)} linear programs and {draws} random weights, T = {tasks}",
    )


def swap(found: Answers, settings: Settings) -> Claim:
    rows, g, u, value = found.rows, found.g, found.u, 0.5 * square(found.g, found.w)
    few = settings.count(60)
    primals = np.array(
        [primal(row) for row in tqdm(rows[:few].numpy(), desc="primal problems", leave=False)]
    )
    scale = g.diagonal(dim1=-2, dim2=-1).amin(-1)
    off = float((np.abs(primals - value[:few].numpy()) / scale[:few].numpy()).max())
    reach = float((u.norm(dim=-1) / rows.norm(dim=-1).amax(-1)).max())
    return claim(
        "SU-18",
        {
            "largest |primal - dual value| / min ‖g‖²": off,
            "largest ‖u*‖/max ‖g_t‖": reach,
            "u + w, both domains convex and growing: max min less min max": truncated_saddle(),
        },
        f"the result is right: {few} random matrices, primal by SLSQP in parameter space, dual "
        "by mtlfunc.solvers. Concave in u, convex in w and two convex domains alone do not make "
        "them swap, by a counterexample that no draw can change: u + w over the whole lines, from "
        "its values over |u| <= 10 and 1,000 and |w| <= 1,000 and 10. The reason holds only when u "
        "is first confined to the ball of radius max ‖g_t‖, which loses nothing: von Neumann asks "
        "for two compact sets and u is unbounded; Sion's theorem asks for one",
    )


def truncated_saddle() -> float:
    """max min less min max of u + w over intervals of which the inner one is the longer. As both
    grow to the line the first goes to minus infinity and the second to infinity.
    """
    short, long = np.linspace(-10, 10, 201), np.linspace(-1000, 1000, 2001)
    lower = (short[:, None] + long).min(1).max()
    upper = (long[:, None] + short).max(0).min()
    return float(lower - upper)


def inner_maximum(found: Answers) -> Claim:
    rows, g, w, anyhow = found.rows, found.g, found.w, found.anyhow
    draws, tasks, size = rows.shape

    def inner(v: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("dt,dtp,dp->d", w, rows, v) - 0.5 * (v * v).sum(-1)

    gw = torch.einsum("dt,dtp->dp", anyhow, rows)
    top = inner(gw, anyhow)
    better = largest(
        float((inner(gw + size_ * normal(312, (draws, size)), anyhow) - top).max())
        for size_ in (1e-3, 0.1, 10.0)
    )
    at_top = float((top - 0.5 * square(g, anyhow)).abs().max())
    gap = float(
        vmap(lambda g, w: mf.solvers.certify(mf.solvers.min_norm(g), w).relative_gap)(g, w).max()
    )
    longer = float((square(g, anyhow) - square(g, w)).min())
    return claim(
        "SU-19",
        {
            "largest gain of a move away from u = Jᵀw": better,
            "inner maximum less ½‖Jᵀw‖²": at_top,
            "largest relative gap wᵀGw - min (Gw)_t at the answer": gap,
            "smallest ‖Jᵀw‖² - ‖Jᵀw*‖² over random weights": longer,
        },
        f"{draws} random matrices of {tasks} gradients with {size} parameters",
    )


def weighted_mean(found: Answers, settings: Settings) -> Claim:
    rows, g, w, u = found.rows, found.g, found.w, found.u
    draws = len(rows)
    last = solved(mf.solvers.frank_wolfe(settings.count(2000), "1/(n+1)"), g)
    distance = square(g, last.weights - w) / square(g, w)
    bound = last.gap / square(g, w)
    twice = torch.cat([rows, rows[:, :1]], 1)
    alike = shortest(gram(twice))
    both = alike[:, [0, -1]].sum(-1, keepdim=True)  # to be shared between the two copies at will
    other = torch.cat([0.25 * both, alike[:, 1:-1], 0.75 * both], 1)
    same = torch.einsum("dt,dtp->dp", alike - other, twice).norm(dim=-1) / u.norm(dim=-1)
    apart = (alike - other).abs().amax(-1)
    return claim(
        "SU-16",
        {
            "averaged iteration: largest ‖u_n - u*‖²/‖u*‖²": distance.max(),
            "its bound, the duality gap over ‖u*‖², largest": bound.max(),
            "averaged iteration: largest excess over its bound": (distance - bound).max(),
            "smallest weight": min(float(last.weights.min()), float(w.min())),
            "first gradient repeated: largest difference of two optimal weightings": apart.max(),
            "the same: largest relative difference of their directions": same.max(),
        },
        f"{draws} random matrices, step 1/(n+1), {settings.count(2000)} iterations, against the "
        "exact dual solution; weights are unique only if the gradients "
        "are affinely independent, the direction always is",
    )


def closed_form(rows: Tensor) -> Tensor:
    """w_1 = clip((G_22 - G_12)/(G_11 + G_22 - 2G_12), 0, 1), ½ for equal gradients; `[draw, 2]`."""
    g = gram(rows)
    denominator = g[:, 0, 0] + g[:, 1, 1] - 2 * g[:, 0, 1]
    first = torch.where(
        denominator > 0, (g[:, 1, 1] - g[:, 0, 1]) / denominator.where(denominator > 0, 1.0), 0.5
    ).clamp(0, 1)
    return torch.stack([first, 1 - first], -1)


@drawn
def two_tasks(
    pairs: Annotated[
        tuple[tuple[float, float, float, float], ...],
        Option("pairs of gradients in the plane, as x1,y1,x2,y2", -1e6, 1e6),
    ] = ((0.6, 0.5, 1.6, 0.4), (1.5, 0.3, 0.2, 1.2), (0.5, 1.4, 0.5, 0.6)),
) -> Figure:
    """The closed form for two tasks: the shortest vector to the segment between their gradients."""
    canvas, panels = axes(1, len(pairs), (4.7 * len(pairs), 4.8))
    found = []
    for panel, (x1, y1, x2, y2) in zip(panels, pairs, strict=True):
        pair = ((x1, y1), (x2, y2))
        plane = torch.tensor(pair, dtype=torch.float64)
        if bool((plane == 0).all()):
            raise Impossible("pairs: expected a gradient that is not 0 in every pair")
        weights = closed_form(plane[None])[0]
        foot = (weights @ plane).tolist()
        share = float(weights[0])
        found.append({"g_1": pair[0], "g_2": pair[1], "w_1": share, "shortest": foot})
        title = "inside"
        if share >= 1 or share <= 0:
            which = 1 if share >= 1 else 2
            title = f"g_1·g_2 ≥ ‖g_{which}‖²: w_1 = {2 - which}"
        low, high = (x.numpy() for x in torch.cat([plane, 0 * plane]).aminmax(dim=0))
        margin = 0.15 * float((high - low).max())
        for i in range(2):
            colour = COLOURS[2 * i]
            arrow(panel, (0, 0), pair[i], colour)
            beside: dict[str, Any] = {"xytext": (6, 4), "textcoords": "offset points"}
            panel.annotate(f"g_{i + 1}", pair[i], color=colour, fontsize="medium", **beside)
        panel.plot(*plane.T, color="#999999", linewidth=3, zorder=1)
        panel.plot([0, foot[0]], [0, foot[1]], "--", color=COLOURS[1], linewidth=2, zorder=5)
        panel.plot(*foot, "o", color=COLOURS[1], zorder=6)
        panel.set(
            title=title,
            xlabel="first coordinate",
            xlim=(low[0] - margin, high[0] + 2 * margin),
            ylim=(low[1] - margin, high[1] + 2 * margin),
            aspect="equal",
        )
    panels[0].set_ylabel("second coordinate")
    return Figure(
        "two-tasks",
        "The closed form for two tasks: the shortest vector (dashed) from the origin to the "
        "segment between g_1 and g_2 (the cases of Figure 1 of Sener & Koltun 2018).",
        canvas,
        found,
    )


def perpendicular(settings: Settings) -> Claim:
    draws = settings.count(10000)
    rows = rows_of(draws, 2, 3, 320) * (10 ** (2 * uniform(321, (draws, 2, 1)) - 1))
    # equal gradients
    rows = torch.cat([rows, rows[:, :1].expand(-1, 2, -1)[: max(4, draws // 100)]])
    mine = closed_form(rows)
    direction = torch.einsum("dt,dtp->dp", mine, rows)
    off = {}
    for name, solver in {
        "active set": mf.solvers.active_set(),
        "all faces": mf.solvers.faces(),
    }.items():
        theirs = torch.einsum("dt,dtp->dp", solved(solver, gram(rows)).weights, rows)
        off[name] = float(((theirs - direction).norm(dim=-1) / rows.norm(dim=-1).amax(-1)).max())
    cases = {
        "first end": mine[:, 0] >= 1,
        "second end": mine[:, 0] <= 0,
        "inside": (mine[:, 0] > 0) & (mine[:, 0] < 1),
    }
    # By angles: the foot of the perpendicular is inside unless the angle at one end is not acute.
    g = gram(rows)
    ends = torch.where(g[:, 0, 1] >= g[:, 0, 0], 0, torch.where(g[:, 0, 1] >= g[:, 1, 1], 1, 2))
    ends = torch.where((g[:, 0, 0] == g[:, 1, 1]) & (g[:, 0, 1] == g[:, 0, 0]), 2, ends)
    counted = torch.stack(list(cases.values()), -1).to(torch.int8).argmax(-1)
    return claim(
        "SU-20",
        {
            f"closed form against {name}: largest difference of directions, units of max ‖g‖": value
            for name, value in off.items()
        }
        | {
            f"draws with the answer at the {name}"
            if "end" in name
            else "draws with the answer inside": float(x.sum())
            for name, x in cases.items()
        }
        | {"draws in which the angles say another case": float((ends != counted).sum())},
        f"{len(rows)} pairs, lengths spread over two decades, some of them equal",
    )
