"""When does a direction descend on every task?

Rows g_t of J are task gradients, u a direction; θ ← θ - ηu lowers task t to first order where
⟨g_t, u⟩ > 0."""

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import MOST_ORDER, ORDER
from ..report.decisions import Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import gram, mixed, normal, rows_of, shortest, stationary_rows
from .quadratics import losses, quadratics

CLAIMS = {
    "SU-03": Exact(
        "To first order L(θ + Δ) < L(θ) means ⟨∇L, Δ⟩ < 0, an angle of more than 90°; "
        "-η∇L is the natural choice.",
        exact(
            ("order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖", ">", ORDER),
            ("order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖", "<", MOST_ORDER),
            ("share of points where no random direction of the same length *", "==", 1),
            ("share of quadratics that fall at .99 · 2‖g‖²/gᵀAg", "==", 1),
            only_when=("share of quadratics that rise at 1.01 · 2‖g‖²/gᵀAg", "==", 1),
        ),
        when="the step is below 2‖g‖²/gᵀAg",
    ),
    "SU-05": Exact(
        "Pareto optimality: at θ every change raises some loss; no task can gain "
        "without another's loss.",
        exact(
            ("of these, in which the sampled point dominates", "==", 0),
            ("share of sampled points off the set that their projection dominates", "==", 1),
            only_when=("change of the losses along a coordinate that none depends on", "<=", 0),
        ),
        when="changes that alter no loss are excepted",
    ),
    "SU-06": Exact(
        "Seek Δ with ⟨g_t, Δ⟩ <= 0 for all t; Δ = 0 is always feasible, so the set is never empty.",
        exact(("linear programs without a solution", "==", 0)),
    ),
    "SU-07": Exact(
        "If the system has no solution but Δ = 0, the point is Pareto stationary.",
        exact(("of these, with 0 outside the hull", "==", 0)).open_unless(
            ("draws with no solution but Δ = 0", ">", 0)
        ),
    ),
    "SU-08": Exact(
        "Pareto stationarity is necessary for Pareto optimality but not sufficient.",
        exact(
            ("Pareto optima of convex quadratics: largest distance *", "<", 1e-6),
            ("x² - y², x² - 2y² at 0: distance of 0 from the hull", "<=", 0),
            ("largest change of a loss from 0 to (0, ½)", "<", 0),
        ),
    ),
    "SU-10": Exact(
        "Maximising the smallest inner product, max over u of min_t ⟨g_t, u⟩, yields the "
        "desired direction; without a penalty the maximum is infinite as soon as one good "
        "direction exists.",
        exact(
            ("draws where the value over the unit box is positive and *", "==", 0),
            ("deviation from linear growth of *", "<", 1e-9),
        ),
    ),
}


def run(settings: Settings) -> Findings:
    yield first_order(settings)
    yield front(settings)
    yield sufficient(settings)
    yield from systems(settings.count(40))


def first_order(settings: Settings) -> Claim:
    draws, dim = settings.count(400), 8
    points, matrices = normal(220, (draws, dim)), normal(221, (draws, dim, dim))

    def loss(x: Tensor, matrix: Tensor) -> Tensor:
        return torch.tanh(matrix @ x).square().sum() + 0.1 * x @ x

    value, slope = vmap(loss)(points, matrices), vmap(jacrev(loss))(points, matrices)

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def error(step: Tensor) -> Tensor:
        change = vmap(loss)(points + step, matrices) - value
        return (change - (slope * step).sum(-1)).abs().median()

    other, sizes = unit(normal(222, (draws, dim))), torch.logspace(-1, -4, 7, dtype=torch.float64)
    errors = torch.stack([error(size * other) for size in sizes])
    # steepest among many directions of the same length, once the step is small
    many, eta = unit(normal(223, (settings.count(200), 1, dim))).expand(-1, draws, -1), 1e-6
    along = vmap(lambda d: vmap(loss)(points + eta * d, matrices))(many).amin(0)
    best = vmap(loss)(points - eta * unit(slope), matrices)

    params, batch = quadratics(draws, 1, dim, 224)
    g = vmap(lambda p, b: mf.task_gradients(losses, p, b)[1]["x"])(params, batch)[:, 0]
    longest = 2 * (g * g).sum(-1) / torch.einsum("di,dij,dj->d", g, batch[1][:, 0], g)
    before, small, large = (
        vmap(losses)({"x": params["x"] - share * longest[:, None] * g}, batch)[:, 0]
        for share in (0.0, 0.99, 1.01)
    )
    order = np.polyfit(sizes.log(), errors.log(), 1)[0]
    return Claim(
        "SU-03",
        {
            "order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖": order,
            "share of points where no random direction of the same length does better than -∇L": (
                best <= along
            )
            .double()
            .mean(),
            "share of quadratics that fall at .99 · 2‖g‖²/gᵀAg": (small < before).double().mean(),
            "share of quadratics that rise at 1.01 · 2‖g‖²/gᵀAg": (large >= before).double().mean(),
        },
        f"{draws} sums of squared tanh units and as many quadratics; steepest in the Euclidean "
        f"norm, against {len(many)} random directions at η = 1e-6",
    )


def front(settings: Settings) -> Claim:
    """L_t = ½‖x - c_t‖² in the plane: the Pareto set is the triangle of the c_t."""
    draws = settings.count(300)
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    inside = torch.softmax(2 * normal(250, (draws, 3)), -1) @ corners
    sampled = torch.tensor([1.5, 1.0], dtype=torch.float64) + 3 * normal(251, (20 * draws, 2))

    def at(points: Tensor) -> Tensor:
        """A third coordinate of a point changes no loss."""
        return 0.5 * (points[:, None, :2] - corners).square().sum(-1)

    def dominates(a: Tensor, b: Tensor) -> Tensor:
        return (a <= b + 1e-12).all(-1) & (a < b - 1e-9).any(-1)

    # the nearest point of the triangle is the min-norm problem of the c_t - x
    off = corners - sampled[:, None]
    nearest = sampled + mixed(shortest(gram(off)), off)
    outside = (nearest - sampled).norm(dim=-1) > 1e-6
    beaten = dominates(at(nearest), at(sampled))[outside].double().mean()
    flat, lifted = (torch.nn.functional.pad(inside, (0, 1), value=z) for z in (0.0, 1.0))
    change = (at(lifted) - at(flat)).abs().max()
    above = dominates(at(sampled)[:, None], at(inside)[None])
    return Claim(
        "SU-05",
        {
            "pairs of a Pareto point and a sampled point": above.numel(),
            "of these, in which the sampled point dominates": above.sum(),
            "share of sampled points off the set that their projection dominates": beaten,
            "change of the losses along a coordinate that none depends on": change,
        },
        "three squared distances in the plane, whose Pareto set is the triangle of their "
        "minimisers; the second half is the definition, the first is too strict",
    )


def linear_programs(rows: Tensor, *, weak: bool) -> np.ndarray:
    """For every draw: is there a Δ ≠ 0 with JΔ <= 0 (weak), or a Δ with JΔ < 0 (strict)? By linear
    programs over the box |Δ_i| <= 1.
    """

    def found(matrix: np.ndarray) -> bool:
        tasks, size = matrix.shape
        box, zero = [(-1.0, 1.0)] * size, np.zeros(tasks)
        if weak:  # as far as possible along every axis, both ways
            aims = np.vstack([np.eye(size), -np.eye(size)])
            return any(-optimize.linprog(-aim, matrix, zero, bounds=box).fun > 1e-7 for aim in aims)
        slack = np.hstack([matrix, np.ones((tasks, 1))])
        aim = np.eye(size + 1)[-1]
        return -optimize.linprog(-aim, slack, zero, bounds=[*box, (0, None)]).fun > 1e-7

    return np.array([found(x) for x in tqdm(rows.numpy(), desc="linear programs", leave=False)])


def stationary(rows: Tensor) -> np.ndarray:
    """0 in the convex hull of the rows, to rounding."""
    return vmap(lambda g: mf.diagnostics.stationarity(g).stationary)(gram(rows)).numpy()


def systems(draws: int) -> Findings:
    """⟨g_t, Δ⟩ <= 0 for all t, on gradients of which half have 0 in their hull."""
    sizes = (3, 2), (3, 5), (6, 3)
    failed = alone = outside = wrong = 0
    off = 0.0
    for size in sizes:
        rows = torch.cat([rows_of(draws, *size, 240), stationary_rows(draws, *size, 245)])
        in_hull = stationary(rows)
        # solved with no hint that Δ = 0 is one: a random objective in the unit box
        aims = normal(249, (len(rows), size[1])).numpy()
        for matrix, aim in zip(rows.numpy(), aims, strict=True):
            program = optimize.linprog(aim, matrix, np.zeros(len(matrix)), bounds=(-1, 1))
            failed += program.status != 0
        none = ~linear_programs(rows, weak=True)
        alone, outside = alone + int(none.sum()), outside + int((none & ~in_hull).sum())
        wrong += int((linear_programs(rows, weak=False) == in_hull).sum())
        # along the ray through the best u of draws that have one
        good = rows[~torch.as_tensor(in_hull)]
        u = mixed(shortest(gram(good)), good)
        least = torch.einsum("dtp,dp->dt", good, u).amin(-1)
        for s in (10.0, 1e3, 1e6):
            many = torch.einsum("dtp,dp->dt", good, s * u).amin(-1)
            off = largest(off, [0.0, *(many / (s * least) - 1).abs()])
    count = 2 * draws * len(sizes)
    where = f"{count} draws, half of them stationary, (T, P) = {', '.join(map(str, sizes))}"
    yield Claim(
        "SU-06",
        {"linear programs without a solution": failed},
        f"{where}; over the unit box. That Δ = 0 is feasible says nothing about a point",
    )
    yield Claim(
        "SU-07",
        {"draws with no solution but Δ = 0": alone, "of these, with 0 outside the hull": outside},
        f"{where}, by linear programs; stationary: 0 in conv{{g_t}}. The converse, which the "
        "sentence does not say, fails: (1, 0, 0) and (-1, 0, 0) are stationary, and (0, 1, 0) "
        "solves their system",
    )
    yield Claim(
        "SU-10",
        {
            "draws where the value over the unit box is positive and the point stationary, or "
            "neither": wrong,
            "deviation from linear growth of the smallest inner product along a good ray": off,
        },
        f"{where}; by linear programs, and at 10, 1e3, 1e6 times the shortest combination",
    )


def sufficient(settings: Settings) -> Claim:
    draws, tasks, dim = settings.count(300), 3, 6
    _, batch = quadratics(draws, tasks, dim, 260)
    shares = torch.softmax(normal(265, (draws, tasks)), -1)
    best = torch.linalg.solve(
        torch.einsum("dt,dtij->dij", shares, batch[1]),
        torch.einsum("dt,dtij,dtj->di", shares, batch[1], batch[0]),
    )
    g = vmap(lambda x, b: mf.task_gramian(losses, {"x": x}, b)[1])(best, batch)
    distance = vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)

    def saddle(params: mf.types.Params, batch: Tensor) -> Tensor:
        x, y = params["x"]
        return torch.stack([x**2 - y**2, x**2 - 2 * y**2])

    none = torch.zeros(1)
    origin, below = ({"x": torch.tensor([0.0, y], dtype=torch.float64)} for y in (0.0, 0.5))
    length = mf.diagnostics.stationarity(mf.task_gramian(saddle, origin, none)[1]).length
    drop = (saddle(below, none) - saddle(origin, none)).max()
    return Claim(
        "SU-08",
        {
            "Pareto optima of convex quadratics: largest distance of 0 from the hull, units of "
            "max ‖g‖": (distance / g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()).max(),
            "x² - y², x² - 2y² at 0: distance of 0 from the hull": length,
            "largest change of a loss from 0 to (0, ½)": drop,
        },
        f"{draws} minimisers of weighted sums of {tasks} convex quadratics; a common saddle, which "
        "is stationary and dominated",
    )
