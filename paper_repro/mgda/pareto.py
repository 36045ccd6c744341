"""When does a direction descend on every task?

Rows g_t of J are task gradients, G = J Jᵀ, u a direction; the step is θ ← θ - ηu, so ⟨g_t, u⟩ > 0
lowers task t to first order."""

from fractions import Fraction

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import MOST_ORDER, ORDER
from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import gram, normal, rows_of, shortest, stationary_rows
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
claim = Claims(CLAIMS)


def first_order(settings: Settings) -> Claim:
    draws, dim = settings.count(400), 8
    points, matrices = normal(220, (draws, dim)), normal(221, (draws, dim, dim))

    def loss(x: Tensor, matrix: Tensor) -> Tensor:
        return torch.tanh(matrix @ x).square().sum() + 0.1 * x @ x

    value, slope = vmap(loss)(points, matrices), vmap(jacrev(loss))(points, matrices)
    other = normal(222, (draws, dim))
    sizes = torch.logspace(-1, -4, 7, dtype=torch.float64)
    errors = []
    for size in sizes:
        step = size * other / other.norm(dim=-1, keepdim=True)
        errors.append(
            (vmap(loss)(points + step, matrices) - value - (slope * step).sum(-1)).abs().median()
        )
    order = np.polyfit(sizes.log(), torch.stack(errors).log(), 1)[0]
    # Steepest among many directions of the same length, once the step is small.
    many = normal(223, (settings.count(200), 1, dim)).expand(-1, draws, -1)
    many, eta = many / many.norm(dim=-1, keepdim=True), 1e-6
    along = vmap(lambda d: vmap(loss)(points + eta * d, matrices))(many).amin(0)
    best = vmap(loss)(points - eta * slope / slope.norm(dim=-1, keepdim=True), matrices)
    params, batch = quadratics(draws, 1, dim, 224)
    g = vmap(lambda p, b: mf.task_gradients(losses, p, b)[1]["x"][:, :])(params, batch)[:, 0]
    longest = 2 * (g * g).sum(-1) / torch.einsum("di,dij,dj->d", g, batch[1][:, 0], g)
    before = vmap(losses)(params, batch)[:, 0]
    after = {
        share: vmap(losses)({"x": params["x"] - share * longest[:, None] * g}, batch)[:, 0]
        for share in (0.99, 1.01)
    }
    small, large = (
        float(((after[share] < before) == (share < 1)).double().mean()) for share in (0.99, 1.01)
    )
    steepest = float((best <= along).double().mean())
    return claim(
        "SU-03",
        {
            "order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖": order,
            "share of points where no random direction of the same length does better than "
            "-∇L": steepest,
            "share of quadratics that fall at .99 · 2‖g‖²/gᵀAg": small,
            "share of quadratics that rise at 1.01 · 2‖g‖²/gᵀAg": large,
        },
        f"{draws} sums of squared tanh units and as many quadratics, for which a step -ηg lowers "
        f"L exactly if η < 2‖g‖²/gᵀAg; steepest in the Euclidean norm, against {len(many)} random "
        "directions at η = 1e-6",
    )


def linear_programs(rows: Tensor, *, weak: bool) -> np.ndarray:
    """For every draw: is there a Δ ≠ 0 with JΔ <= 0 (weak), or a Δ with JΔ < 0 (strict)? By linear
    programs over the box |Δ_i| <= 1.
    """
    found = []
    for matrix in tqdm(rows.numpy(), desc="linear programs", leave=False):
        tasks, size = matrix.shape
        if weak:
            programs = (sign * np.eye(size)[i] for i in range(size) for sign in (1, -1))
            found.append(
                any(
                    -optimize.linprog(-c, matrix, np.zeros(tasks), bounds=[(-1, 1)] * size).fun
                    > 1e-7
                    for c in programs
                )
            )
        else:
            constraints = np.hstack([matrix, np.ones((tasks, 1))])
            answer = optimize.linprog(
                np.eye(size + 1)[-1] * -1,
                constraints,
                np.zeros(tasks),
                bounds=[*[(-1, 1)] * size, (0, None)],
            )
            found.append(-answer.fun > 1e-7)
    return np.array(found)


def stationary(rows: Tensor) -> np.ndarray:
    """0 in the convex hull of the rows, to rounding."""
    return vmap(lambda g: mf.diagnostics.stationarity(g).stationary)(gram(rows)).numpy()


Cases = dict[tuple[int, int], Tensor]
"""Rows by (T, P), half of them around 0."""
Flags = dict[tuple[int, int], np.ndarray]


def run(settings: Settings) -> Findings:
    yield first_order(settings)
    yield front(settings)
    draws = settings.count(40)
    cases = {
        (tasks, size): torch.cat(
            [rows_of(draws, tasks, size, 240), stationary_rows(draws, tasks, size, 245)]
        )
        for tasks, size in ((3, 2), (3, 5), (6, 3))
    }
    in_hull = {case: stationary(rows) for case, rows in cases.items()}
    strict = {case: linear_programs(rows, weak=False) for case, rows in cases.items()}
    yield never_empty(cases, in_hull)
    yield weak_system(cases, in_hull, strict)
    yield sufficient(settings)
    yield scale_of_the_best(cases, in_hull, strict)


def never_empty(cases: Cases, in_hull: Flags) -> Claim:
    # solved with no hint that Δ = 0 is one: a random objective in the unit box
    programs = [
        optimize.linprog(aim, A_ub=matrix, b_ub=np.zeros(len(matrix)), bounds=(-1, 1))
        for rows in cases.values()
        for matrix, aim in zip(
            rows.numpy(), normal(249, (len(rows), rows.shape[-1])).numpy(), strict=True
        )
    ]
    return claim(
        "SU-06",
        {
            "linear programs without a solution": sum(program.status != 0 for program in programs),
            "draws": sum(len(rows) for rows in cases.values()),
            "of these, with 0 in the hull, where no Δ is strict": sum(
                int(x.sum()) for x in in_hull.values()
            ),
        },
        "linear programs over the system and the unit box; that Δ = 0 is feasible at every point "
        "says nothing about the point",
    )


def weak_system(cases: Cases, in_hull: Flags, strict: Flags) -> Claim:
    agree = sum(int((strict[case] != in_hull[case]).sum()) for case in cases)
    total = sum(len(rows) for rows in cases.values())
    numbers: dict[str, float] = {}
    alone = outside = 0
    for (tasks, size), rows in cases.items():
        weak = linear_programs(rows, weak=True)
        inside = in_hull[tasks, size]
        alone, outside = alone + int((~weak).sum()), outside + int((~weak & ~inside).sum())
        numbers[
            f"T = {tasks}, P = {size}: share of stationary draws that have a non-zero weak solution"
        ] = float(weak[inside].mean()) if inside.any() else 0.0
    exact = [[Fraction(x) for x in row] for row in ((1, 0, 0), (-1, 0, 0))]
    rates = [
        sum(a * b for a, b in zip(row, (Fraction(0), Fraction(1), Fraction(0)), strict=True))
        for row in exact
    ]
    middle = [(a + b) / 2 for a, b in zip(*exact, strict=True)]
    flat = [[Fraction(x) for x in row] for row in ((1, 0), (-1, 0), (0, 1))]
    along = [row[0] * 0 + row[1] * -1 for row in flat]
    return claim(
        "SU-07",
        numbers
        | {
            "draws with no solution but Δ = 0": alone,
            "of these, with 0 outside the hull": outside,
            "(1, 0, 0), (-1, 0, 0): largest rate of Δ = (0, 1, 0)": float(max(rates)),
            "(1, 0, 0), (-1, 0, 0): length of (g_1 + g_2)/2": float(sum(x * x for x in middle)),
            "(1, 0), (-1, 0), (0, 1), rank P: largest rate of Δ = (0, -1)": float(max(along)),
            "share of draws in which either 0 is in the hull or a strict solution exists, not "
            "both": agree / total,
        },
        f"stationary: 0 in conv{{g_t}}; {total} draws by linear "
        "programs, and in fractions. Beside stands the converse, which the sentence does not say "
        "and which fails: weak solutions exist at stationary points "
        "whenever rank J < P, so always for P > T, and also at full rank if 0 lies on the "
        "hull's boundary; with all inequalities strict the "
        "definition is right in every draw",
    )


def scale_of_the_best(cases: Cases, in_hull: Flags, strict: Flags) -> Claim:
    """The largest smallest product over the unit box, and along the ray through the best u."""
    wrong, ratio = 0, 0.0
    for case, rows in cases.items():
        wrong += int((strict[case] == in_hull[case]).sum())
        weights = shortest(gram(rows))
        u = torch.einsum("dt,dtp->dp", weights, rows)
        for s in (10.0, 1e3, 1e6):
            one, many = (
                torch.einsum("dtp,dp->dt", rows, size * u).amin(-1)[~torch.as_tensor(in_hull[case])]
                for size in (1.0, s)
            )
            ratio = largest(ratio, float((many / (s * one) - 1).abs().max()) if len(one) else 0.0)
    return claim(
        "SU-10",
        {
            "draws": sum(len(rows) for rows in cases.values()),
            "draws where the value over the unit box is positive and the point stationary, or "
            "neither": wrong,
            "deviation from linear growth of the smallest inner product along a good ray": ratio,
        },
        "stationary and other draws with (T, P) = "
        + ", ".join(map(str, cases))
        + "; value by linear programs, u ← 10, 1e3, 1e6 times u",
    )


def front(settings: Settings) -> Claim:
    """L_t = ½‖x - c_t‖² in the plane: the Pareto set is the triangle of the c_t."""
    draws = settings.count(300)
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    shares = torch.softmax(2 * normal(250, (draws, 3)), -1)
    inside = shares @ corners
    sampled = torch.tensor([1.5, 1.0], dtype=torch.float64) + 3 * normal(251, (20 * draws, 2))
    at = lambda points: 0.5 * (points[:, None] - corners).square().sum(-1)  # noqa: E731
    dominates = lambda a, b: (a <= b + 1e-12).all(-1) & (a < b - 1e-9).any(-1)  # noqa: E731
    on_front = int(dominates(at(sampled)[:, None], at(inside)[None]).sum())
    # The nearest point of the triangle is the min-norm problem of the c_t - x.
    off = corners - sampled[:, None]
    nearest = sampled + torch.einsum("dt,dtp->dp", shortest(gram(off)), off)
    outside = (nearest - sampled).norm(dim=-1) > 1e-6
    beaten = float(dominates(at(nearest), at(sampled))[outside].double().mean())
    # In space, with a third coordinate that no loss depends on: a change along it raises nothing.
    lifted = lambda points: at(points[:, :2])  # noqa: E731
    flat = torch.nn.functional.pad(inside, (0, 1))
    idle = float(
        (lifted(flat + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)) - lifted(flat))
        .abs()
        .max()
    )
    return claim(
        "SU-05",
        {
            "pairs of a Pareto point and a sampled point": float(len(sampled) * draws),
            "of these, in which the sampled point dominates": on_front,
            "share of sampled points off the set that their projection dominates": beaten,
            "change of the losses along a coordinate that none depends on": idle,
        },
        "three squared distances in the plane, whose Pareto set is the triangle of their "
        "minimisers; holds when changes that alter no loss are excepted: "
        "the second half is the definition, the first is too strict",
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
    distance = (
        vmap(lambda g: mf.diagnostics.stationarity(g).length)(g)
        / g.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
    )
    # Convex: the weights of the shortest combination at a stationary point make a weighted sum that
    # the point minimises.
    weights = shortest(g)
    lowest = torch.linalg.solve(
        torch.einsum("dt,dtij->dij", weights, batch[1]),
        torch.einsum("dt,dtij,dtj->di", weights, batch[1], batch[0]),
    )
    gain = (weights * (vmap(losses)({"x": best}, batch) - vmap(losses)({"x": lowest}, batch))).sum(
        -1
    ) / vmap(losses)({"x": best}, batch).sum(-1)

    def saddle(params: mf.types.Params, batch: Tensor) -> Tensor:
        x, y = params["x"]
        return torch.stack([x**2 - y**2, x**2 - 2 * y**2])

    origin, below = ({"x": torch.tensor([0.0, y], dtype=torch.float64)} for y in (0.0, 0.5))
    length = float(
        mf.diagnostics.stationarity(mf.task_gramian(saddle, origin, torch.zeros(1))[1]).length
    )
    drop = float((saddle(below, torch.zeros(1)) - saddle(origin, torch.zeros(1))).max())
    return claim(
        "SU-08",
        {
            "Pareto optima of convex quadratics: largest distance of 0 from the hull, units of "
            "max ‖g‖": distance.max(),
            "the converse there: what the weighted sum at a stationary point can still fall by, "
            "relative": gain.max(),
            "x² - y², x² - 2y² at 0: distance of 0 from the hull": length,
            "largest change of a loss from 0 to (0, ½)": drop,
        },
        f"{draws} draws of {tasks} convex quadratics, where stationary points are minimisers of "
        "a weighted sum; a common saddle, which is stationary and "
        "dominated",
    )
