"""Is the best direction the shortest convex combination of the gradients?"""

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import gram, mixed, normal, relative_gap, rows_of, shortest, solved, square, uniform

CLAIMS = {
    "SU-11": Exact(
        "Regularised problem: max over u of min_t ⟨g_t, u⟩ - ½‖u‖². Where it is "
        "largest min_t ⟨g_t, u⟩ >= ½‖u‖² >= 0, so a non-zero u gives common descent along -u.",
        exact(
            ("largest |min ⟨g_t, u*⟩/‖u*‖² - 1|", "<", 1e-9),
            ("largest relative difference of the value from ½‖u*‖²", "<", 1e-9),
            ("active set against projected gradient: largest relative *", "<", 1e-5),
        ),
    ),
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


def run(settings: Settings) -> Findings:
    draws, tasks = settings.count(1000), 6
    rows = rows_of(draws, tasks, 10, 300, spread=5.0, common=0.4)
    found = shortest(gram(rows))
    anyhow = torch.softmax(3 * normal(311, (draws, tasks)), -1)
    yield regularised(settings)
    yield simplex(anyhow, settings)
    yield swap(rows, found, settings)
    yield inner_maximum(rows, found, anyhow)
    yield weighted_mean(rows, found, settings)
    yield perpendicular(settings)


def regularised(settings: Settings) -> Claim:
    draws = settings.count(2000)
    few = slice(0, max(4, draws // 20))
    below = off = apart = 0.0
    for tasks, size in ((2, 3), (5, 8), (20, 30)):
        g = gram(rows_of(draws, tasks, size, 500 + 2 * tasks, spread=5.0, common=0.3))
        found = solved(mf.solvers.active_set(), g)
        least, smallest = square(g, found.weights), found.rates.amin(-1)
        below = largest(below, (1 - smallest / least).abs())
        # the concave objective's value at u*, by its definition, against half the squared length
        off = largest(off, ((smallest - 0.5 * least) / (0.5 * least) - 1).abs())
        other = solved(mf.solvers.projected_gradient(1000), g[few])
        away = square(g[few], other.weights - found.weights[few]) / least[few]
        apart = largest(apart, away.sqrt())
    return Claim(
        "SU-11",
        {
            "largest |min ⟨g_t, u*⟩/‖u*‖² - 1|": below,
            "largest relative difference of the value from ½‖u*‖²": off,
            "active set against projected gradient: largest relative difference of u*": apart,
        },
        f"{3 * draws} random matrices, T = 2, 5, 20: the minimum even equals ‖u*‖², and u* is "
        "unique. This is about a plain step along -u*; X-05 asks what Adam leaves of it",
    )


def simplex(anyhow: Tensor, settings: Settings) -> Claim:
    draws, tasks = anyhow.shape
    x = normal(310, (draws, tasks))
    few = x[: settings.count(50)].numpy()
    programs = [optimize.linprog(row, A_eq=np.ones((1, tasks)), b_eq=[1.0]).fun for row in few]
    excess = (anyhow * x).sum(-1) - x.amin(-1)
    off = np.abs(programs - few.min(-1)).max()
    return Claim(
        "SU-17",
        {
            "linear program over the simplex against the minimum, largest difference": off,
            "smallest Σ w_t x_t - min x over random weights": excess.min(),
        },
        f"{len(programs)} linear programs and {draws} random weights, T = {tasks}",
    )


def swap(rows: Tensor, w: Tensor, settings: Settings) -> Claim:
    few, g = settings.count(60), gram(rows)
    primals = [primal(row) for row in tqdm(rows[:few].numpy(), desc="primal problems", leave=False)]
    off = np.abs(primals - 0.5 * square(g, w)[:few].numpy())
    shortest_square = g.diagonal(dim1=-2, dim2=-1).amin(-1)[:few].numpy()
    reach = mixed(w, rows).norm(dim=-1) / rows.norm(dim=-1).amax(-1)
    # u + w over intervals of which the inner one is the longer: as both grow to the line, the first
    # goes to minus infinity and the second to infinity
    short, long = np.linspace(-10, 10, 201), np.linspace(-1000, 1000, 2001)
    saddle = (short[:, None] + long).min(1).max() - (long[:, None] + short).max(0).min()
    return Claim(
        "SU-18",
        {
            "largest |primal - dual value| / min ‖g‖²": (off / shortest_square).max(),
            "largest ‖u*‖/max ‖g_t‖": reach.max(),
            "u + w, both domains convex and growing: max min less min max": saddle,
        },
        f"{few} random matrices, primal by SLSQP in parameter space. Two convex domains are not "
        "enough: of u + w, max min over |u| <= 10, |w| <= 1,000 is below min max over |u| <= "
        "1,000, |w| <= 10. Confined to the ball of radius max ‖g_t‖, u loses nothing: von Neumann "
        "asks for two compact sets, Sion for one",
    )


def inner_maximum(rows: Tensor, w: Tensor, anyhow: Tensor) -> Claim:
    draws, tasks, size = rows.shape
    g, best = gram(rows), mixed(anyhow, rows)

    def inner(v: Tensor) -> Tensor:
        return torch.einsum("dt,dtp,dp->d", anyhow, rows, v) - 0.5 * (v * v).sum(-1)

    top = inner(best)
    gain = [
        (inner(best + far * normal(312, (draws, size))) - top).max() for far in (1e-3, 0.1, 10.0)
    ]
    longer = square(g, anyhow) - square(g, w)
    return Claim(
        "SU-19",
        {
            "largest gain of a move away from u = Jᵀw": largest(gain),
            "inner maximum less ½‖Jᵀw‖²": (top - 0.5 * square(g, anyhow)).abs().max(),
            "largest relative gap wᵀGw - min (Gw)_t at the answer": relative_gap(g, w).max(),
            "smallest ‖Jᵀw‖² - ‖Jᵀw*‖² over random weights": longer.min(),
        },
        f"{draws} random matrices of {tasks} gradients with {size} parameters",
    )


def weighted_mean(rows: Tensor, w: Tensor, settings: Settings) -> Claim:
    g, steps = gram(rows), settings.count(2000)
    last = solved(mf.solvers.frank_wolfe(steps, "1/(n+1)"), g)
    excess = (square(g, last.weights - w) - last.gap) / square(g, w)
    twice = torch.cat([rows, rows[:, :1]], 1)
    alike = shortest(gram(twice))
    both = alike[:, [0, -1]].sum(-1, keepdim=True)  # to be shared between the two copies at will
    other = torch.cat([0.25 * both, alike[:, 1:-1], 0.75 * both], 1)
    apart = (alike - other).abs().max()
    moved = mixed(alike - other, twice).norm(dim=-1) / mixed(w, rows).norm(dim=-1)
    return Claim(
        "SU-16",
        {
            "averaged iteration: largest excess over its bound": excess.max(),
            "first gradient repeated: largest difference of two optimal weightings": apart,
            "the same: largest relative difference of their directions": moved.max(),
        },
        f"{len(rows)} random matrices, step 1/(n+1), {steps} iterations; ‖u_n - u*‖² is at most "
        "the duality gap. Of affinely dependent gradients the direction alone is unique",
    )


def closed_form(rows: Tensor) -> Tensor:
    """w_1 = clip((G_22 - G_12)/(G_11 + G_22 - 2G_12), 0, 1), ½ for equal gradients; `[draw, 2]`."""
    g = gram(rows)
    denominator = g[:, 0, 0] + g[:, 1, 1] - 2 * g[:, 0, 1]
    first = torch.where(
        denominator > 0, (g[:, 1, 1] - g[:, 0, 1]) / denominator.where(denominator > 0, 1.0), 0.5
    ).clamp(0, 1)
    return torch.stack([first, 1 - first], -1)


def perpendicular(settings: Settings) -> Claim:
    draws = settings.count(10000)
    rows = rows_of(draws, 2, 3, 320) * (10 ** (2 * uniform(321, (draws, 2, 1)) - 1))
    # equal gradients
    rows = torch.cat([rows, rows[:, :1].expand(-1, 2, -1)[: max(4, draws // 100)]])
    g, mine = gram(rows), closed_form(rows)
    numbers = {}
    for name, solver in (
        ("active set", mf.solvers.active_set()),
        ("all faces", mf.solvers.faces()),
    ):
        theirs = mixed(solved(solver, g).weights, rows)
        off = (theirs - mixed(mine, rows)).norm(dim=-1)
        numbers[
            f"closed form against {name}: largest difference of directions, units of max ‖g‖"
        ] = (off / rows.norm(dim=-1).amax(-1)).max()
    cases = torch.where(mine[:, 0] >= 1, 0, torch.where(mine[:, 0] <= 0, 1, 2))
    for i, where in enumerate(("at the first end", "at the second end", "inside")):
        numbers[f"draws with the answer {where}"] = (cases == i).sum()
    # by angles: the foot of the perpendicular is inside unless the angle at one end is not acute
    one, across, two = g[:, 0, 0], g[:, 0, 1], g[:, 1, 1]
    angles = torch.where(across >= one, 0, torch.where(across >= two, 1, 2))
    angles = torch.where((one == two) & (across == one), 2, angles)
    numbers["draws in which the angles say another case"] = (angles != cases).sum()
    return Claim(
        "SU-20", numbers, f"{len(rows)} pairs, lengths spread over two decades, some of them equal"
    )
