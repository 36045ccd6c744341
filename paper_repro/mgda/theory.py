"""From one direction to the min-norm point (essay, Su 2022): first-order descent, Pareto
stationarity, normalised gradients, and the duality.

Rows g_t of J are task gradients, G = J Jᵀ, u a direction; the step is θ ← θ - ηu, so ⟨g_t, u⟩ > 0
lowers task t to first order.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import jacrev, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from ..report.intervals import share_interval
from .common import (
    COLOURS,
    claim,
    gram,
    judged,
    normal,
    normalised,
    rows_of,
    shortest,
    solved,
    square,
    stationary_rows,
    uniform,
)

ROUNDING = 1e-9
Batch = tuple[Tensor, Tensor]
"""Minimisers `[task, dim]` and Hessians `[task, dim, dim]`."""


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    """L_t(x) = ½ (x - c_t)ᵀA_t(x - c_t)."""
    off = params["x"] - batch[0]
    return 0.5 * torch.einsum("ti,tij,tj->t", off, batch[1], off)


def quadratics(draws: int, tasks: int, dim: int, tag: int) -> tuple[mf.types.Params, Batch]:
    """Random convex quadratics with Wishart Hessians of largest eigenvalue 1, and random starts;
    first axis `[draw]`.
    """
    factors, centres = normal(tag, (draws, tasks, dim, dim)), normal(tag + 1, (draws, tasks, dim))
    hessians = factors @ factors.mT
    hessians = hessians / torch.linalg.eigvalsh(hessians)[..., -1:, None] + 0.05 * torch.eye(
        dim, dtype=torch.float64
    )
    return {"x": 2 * normal(tag + 2, (draws, dim))}, (centres, hessians)


def run(settings: Settings) -> Findings:
    yield from scaling(settings)
    yield first_order(settings)
    yield from pareto(settings)
    yield from unit_gradients(settings)
    yield from duality(settings)
    yield from two_tasks(settings)


# ---- weights of 1/‖g‖ ----


def scaling(settings: Settings) -> Findings:
    draws, tasks, dim = settings.count(500), 4, 12
    params, batch = quadratics(draws, tasks, dim, 200)
    scale, shift = 10 ** (20 * uniform(210, (draws, tasks)) - 10), normal(211, (draws, tasks))

    def direction(
        rule: mf.Rule, params: mf.types.Params, batch: Batch, scale: Tensor, shift: Tensor
    ) -> Tensor:
        step = mf.balance(lambda p, b: scale * losses(p, b) + shift, rule, mf.jacobian())
        return step.update(params, batch, step.init(params, batch))[0]["x"]

    one, none = torch.ones_like(scale), torch.zeros_like(shift)
    found = {}
    for name, rule in (("1/‖g‖", normalised()), ("equal", mf.mean())):
        plain, moved = (
            vmap(lambda p, b, s, c, rule=rule: direction(rule, p, b, s, c))(params, batch, *change)
            for change in ((one, none), (scale, shift))
        )
        found[name] = (
            plain,
            (
                plain / plain.norm(dim=-1, keepdim=True) - moved / moved.norm(dim=-1, keepdim=True)
            ).norm(dim=-1),
        )
    yield claim(
        "SU-01",
        "Weighting each task by 1/‖g_t‖ makes the update independent of rescaling and of "
        "shifting any single loss.",
        judged(float(found["1/‖g‖"][1].max()) < ROUNDING),
        {
            "largest change of the unit direction, weights 1/‖g‖": found["1/‖g‖"][1].max(),
            "the same, equal weights": found["equal"][1].max(),
            "smallest scale": scale.min(),
            "largest scale": scale.max(),
        },
        f"{draws} draws of {tasks} quadratics, L_t replaced by a·L_t + b with a from 1e-10 to "
        "1e10, through mtlfunc.balance; while no gradient is zero: "
        "there 1/‖g‖ is infinite",
    )
    rows = vmap(lambda p, b: mf.task_gradients(losses, p, b)[1]["x"])(params, batch)
    units = (rows / rows.norm(dim=-1, keepdim=True)).sum(1)
    difference = (found["1/‖g‖"][0] - units).norm(dim=-1) / units.norm(dim=-1)

    def designed(x: Tensor, batch: Batch, *, constant: bool) -> Tensor:
        """The gradient of Σ L_t/‖g_t‖, the lengths held constant or not."""

        def total(y: Tensor) -> Tensor:
            at = x if constant else y
            lengths = mf.task_gradients(losses, {"x": at}, batch)[1]["x"].norm(dim=-1)
            return (losses({"x": y}, batch) / lengths).sum()

        return jacrev(total)(x)

    held = vmap(lambda x, b: designed(x, b, constant=True))(params["x"], batch)
    free = vmap(lambda x, b: designed(x, b, constant=False))(params["x"], batch)
    # A field is a gradient only if its Jacobian is symmetric.
    field = vmap(jacrev(lambda x, b: designed(x, b, constant=True)))(params["x"], batch)
    curl = (field - field.mT).flatten(1).norm(dim=-1) / field.flatten(1).norm(dim=-1)
    yield claim(
        "SU-02",
        "That weighting is the same as adding unit task gradients, so designing losses is at "
        "bottom designing gradients.",
        judged(
            float(difference.max()) < ROUNDING
            and float(((held - units).norm(dim=-1) / units.norm(dim=-1)).max()) < ROUNDING
        ),
        {
            "weights 1/‖g‖ against the sum of unit gradients, largest relative difference": difference.max(),
            "gradient of Σ L_t/‖g_t‖, lengths constant, against it": (
                (held - units).norm(dim=-1) / units.norm(dim=-1)
            ).max(),
            "the same, lengths differentiated too, median": (
                (free - units).norm(dim=-1) / units.norm(dim=-1)
            ).median(),
            "antisymmetric part of the field's Jacobian, median relative size": curl.median(),
        },
        f"{draws} draws of {tasks} quadratics; up to a common factor, with the lengths held "
        "constant. The Jacobian of the field is not symmetric: the sum of "
        "unit gradients is the gradient of no loss, so that gradients are designed and not losses",
    )


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
        "To first order L(θ + Δ) < L(θ) means ⟨∇L, Δ⟩ < 0, an angle of more than 90°; -η∇L is "
        "the natural choice.",
        judged(abs(order - 2) < 0.1 and steepest == 1 and small == 1, only_when=large == 1),
        {
            "order of |L(θ + Δ) - L(θ) - ⟨∇L, Δ⟩| in ‖Δ‖": order,
            "share of points where no random direction of the same length does better than -∇L": steepest,
            "share of quadratics that fall at .99 · 2‖g‖²/gᵀAg": small,
            "share of quadratics that rise at 1.01 · 2‖g‖²/gᵀAg": large,
        },
        f"holds when the step is small: {draws} sums of squared tanh units and as many "
        "quadratics, for which a step -ηg lowers L exactly if "
        f"η < 2‖g‖²/gᵀAg; steepest in the Euclidean norm, against {len(many)} random directions "
        "at η = 1e-6",
    )


# ---- Pareto optimality and stationarity ----


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


def pareto(settings: Settings) -> Findings:
    yield front(settings)
    draws = settings.count(40)
    cases = {
        (tasks, size): torch.cat(
            [rows_of(draws, tasks, size, 240), stationary_rows(draws, tasks, size, 245)]
        )
        for tasks, size in ((3, 2), (3, 5), (6, 3))
    }
    zero = max(
        float((rows @ torch.zeros(rows.shape[-1], dtype=rows.dtype)).abs().max())
        for rows in cases.values()
    )
    in_hull = {case: stationary(rows) for case, rows in cases.items()}
    strict = {case: linear_programs(rows, weak=False) for case, rows in cases.items()}
    agree = sum(int((strict[case] != in_hull[case]).sum()) for case in cases)
    total = sum(len(rows) for rows in cases.values())
    yield claim(
        "SU-06",
        "Seek Δ with ⟨g_t, Δ⟩ <= 0 for all t; Δ = 0 is always feasible, so the set is never empty.",
        judged(zero <= 0),
        {
            "largest ⟨g_t, 0⟩": zero,
            "draws": total,
            "of these, with 0 in the hull, where no Δ is strict": sum(
                int(x.sum()) for x in in_hull.values()
            ),
        },
        "trivial; that Δ = 0 is feasible at every point says nothing about the point",
    )
    numbers: dict[str, float] = {}
    for (tasks, size), rows in cases.items():
        weak = linear_programs(rows, weak=True)
        inside = in_hull[tasks, size]
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
    yield claim(
        "SU-07",
        "If the system has no solution but Δ = 0, the point is Pareto stationary.",
        "does not hold" if max(rates) <= 0 and not any(middle) else "holds",
        numbers
        | {
            "(1, 0, 0), (-1, 0, 0): largest rate of Δ = (0, 1, 0)": float(max(rates)),
            "(1, 0, 0), (-1, 0, 0): length of (g_1 + g_2)/2": float(sum(x * x for x in middle)),
            "(1, 0), (-1, 0), (0, 1), rank P: largest rate of Δ = (0, -1)": float(max(along)),
            "share of draws in which either 0 is in the hull or a strict solution exists, not "
            "both": agree / total,
        },
        f"as a definition of stationarity, against 0 in conv{{g_t}}: {total} draws by linear "
        "programs, and in fractions. Weak solutions exist at stationary "
        "points whenever rank J < P, so always for P > T, and also at full rank if 0 lies on the "
        "hull's boundary; with all inequalities strict the "
        "definition is right in every draw",
    )
    yield sufficient(settings)
    yield scale_of_the_best(cases, in_hull)


def scale_of_the_best(
    cases: dict[tuple[int, int], Tensor], in_hull: dict[tuple[int, int], np.ndarray]
) -> Claim:
    """max over the unit box of min_t ⟨g_t, u⟩ by linear programs, and along the ray through the
    best u.
    """
    wrong, ratio = 0, 0.0
    for case, rows in cases.items():
        best = linear_programs(rows, weak=False)
        wrong += int((best == in_hull[case]).sum())
        weights = shortest(gram(rows))
        u = torch.einsum("dt,dtp->dp", weights, rows)
        for s in (10.0, 1e3, 1e6):
            one, many = (
                torch.einsum("dtp,dp->dt", rows, size * u).amin(-1)[
                    ~torch.from_numpy(in_hull[case])
                ]
                for size in (1.0, s)
            )
            ratio = max(ratio, float((many / (s * one) - 1).abs().max()) if len(one) else 0.0)
    return claim(
        "SU-10",
        "Maximising the smallest inner product, max over u of min_t ⟨g_t, u⟩, yields the desired "
        "direction; without a penalty the maximum is infinite as "
        "soon as one good direction exists.",
        judged(wrong == 0 and ratio < ROUNDING),
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
    draws, corners = (
        settings.count(300),
        torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]], dtype=torch.float64),
    )
    shares = torch.softmax(2 * normal(250, (draws, 3)), -1)
    inside, sampled = (
        shares @ corners,
        torch.tensor([1.5, 1.0], dtype=torch.float64) + 3 * normal(251, (20 * draws, 2)),
    )
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
        "Pareto optimality: from θ* every change raises some loss; no task can gain without "
        "another's loss.",
        judged(on_front == 0 and beaten == 1, only_when=idle <= 0),
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
        "Pareto stationarity is necessary for Pareto optimality but not sufficient.",
        judged(float(distance.max()) < 1e-6 and length <= 0 and drop < 0),
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


# ---- normalised gradients ----

BROKEN = [
    [Fraction(1), Fraction(0)],
    [Fraction(-4, 5), Fraction(3, 5)],
    [Fraction(-4, 5), Fraction(3, 5)],
]
"""Three unit gradients whose sum raises the first task."""


def broken_rates() -> list[Fraction]:
    u = [sum(column, Fraction(0)) for column in zip(*BROKEN, strict=True)]
    return [sum((a * b for a, b in zip(row, u, strict=True)), Fraction(0)) for row in BROKEN]


def unit_descent(draws: int, tasks: int, dim: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps θ ← θ - Σ g_t/‖g_t‖ · 1/(T(k + 1)): the rates' signs `[step]` as shares of draws with a
    raised task, end distance, start distance.
    """
    params, batch = quadratics(draws, tasks, dim, 270)
    x = params["x"]
    raised = []
    measure = vmap(lambda x, b: mf.task_gradients(losses, {"x": x}, b)[1]["x"])
    weigh = vmap(lambda g: mf.weights(normalised(), g))

    def distance(x: Tensor) -> Tensor:
        g = gram(measure(x, batch))
        return square(g, shortest(g)).sqrt()

    start = distance(x)
    for k in tqdm(range(steps), desc=f"normalised gradients, T = {tasks}", leave=False):
        rows = measure(x, batch)
        u = torch.einsum("dt,dtp->dp", weigh(gram(rows)), rows)
        rates = torch.einsum("dtp,dp->dt", rows, u) / rows.norm(dim=-1)
        raised.append((rates < -ROUNDING).any(-1).double().mean())
        x = x - u / (tasks * (k + 1) ** 0.75)
    return torch.stack(raised), distance(x), start


def unit_gradients(settings: Settings) -> Findings:
    draws, steps = settings.count(10000), settings.count(1000)
    rows = rows_of(draws, 2, 5, 280, spread=100.0)
    u = (rows / rows.norm(dim=-1, keepdim=True)).sum(1)
    rates = torch.einsum("dtp,dp->dt", rows, u)
    cosine = vmap(mf.diagnostics.cosines)(gram(rows))[:, 0, 1]
    formula = float(
        ((rates - rows.norm(dim=-1) * (1 + cosine[:, None])).abs() / rows.norm(dim=-1)).max()
    )
    exact = broken_rates()
    tasks, sizes = (2, 3, 5, 10, 20), (5, 20, 100)
    shares = {}
    for size, count in itertools.product(sizes, tasks):
        g = gram(rows_of(settings.count(2000), count, size, 290))
        weights = vmap(lambda g: mf.weights(normalised(), g))(g)
        shares[size, count] = share_interval(
            int((torch.einsum("dts,ds->dt", g, weights) < -ROUNDING).any(-1).sum()), len(g)
        )
    runs = {count: unit_descent(settings.count(48), count, 6, steps) for count in (2, 3, 6)}
    ends = {count: float((end / start).median()) for count, (_, end, start) in runs.items()}
    canvas, axis = axes(1, 3, (16, 5))
    origin, plane = (0.0, 0.0), [[float(x) for x in row] for row in BROKEN]
    total = np.sum(plane, axis=0).tolist()
    for vector, label, colour, place in (
        (plane[0], "g_1", COLOURS[0], (4, 6)),
        (plane[1], "g_2 = g_3", COLOURS[2], (-36, 12)),
        (total, "u", COLOURS[1], (8, -4)),
    ):
        axis[0].annotate(
            "",
            (vector[0], vector[1]),
            origin,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2},
        )
        axis[0].annotate(
            label,
            (vector[0], vector[1]),
            xytext=place,
            textcoords="offset points",
            color=colour,
            fontsize=12,
        )
    axis[0].axvline(0, color="#888888", linestyle=":")
    axis[0].annotate("⟨g_1, u⟩ < 0", (-0.06, -0.22), ha="right", fontsize=11)
    axis[0].annotate("⟨g_1, u⟩ > 0", (0.06, -0.22), fontsize=11)
    axis[0].set(
        xlabel="first coordinate",
        ylabel="second coordinate",
        xlim=(-1.1, 1.25),
        ylim=(-0.35, 1.45),
        aspect="equal",
    )
    for size, colour, style in zip(sizes, COLOURS, ("-", "--", "-."), strict=False):
        found = [shares[size, count] for count in tasks]
        bars = np.array(
            [[share.mean - share.low, share.high - share.mean] for share in found]
        ).T.clip(0)
        axis[1].errorbar(
            tasks,
            [share.mean for share in found],
            bars,
            color=colour,
            linestyle=style,
            marker="o",
            capsize=3,
            label=f"{size} parameters",
        )
    axis[1].set(
        xlabel="tasks T",
        ylabel="share of draws in which u raises a task",
        ylim=(-0.03, 1.03),
        xticks=tasks,
    )
    axis[1].legend()
    for (count, (raised, _, _)), colour, style in zip(
        runs.items(), COLOURS, ("-", "--", "-."), strict=False
    ):
        axis[2].plot(
            np.arange(1, len(raised) + 1),
            raised,
            color=colour,
            linestyle=style,
            label=f"T = {count}",
        )
    axis[2].set(
        xlabel="step",
        ylabel="share of runs whose step raises a task",
        xscale="log",
        ylim=(-0.03, 1.03),
    )
    axis[2].legend()
    yield Figure(
        "unit-gradients",
        "The sum u of unit gradients. Left: (1, 0) and twice (-.8, .6), with ⟨g_1, u⟩ = "
        f"{float(exact[0]):g}. Middle: share of normal matrices for which u "
        f"raises a task, {settings.count(2000)} draws a point, Wilson's 95 % intervals: none for "
        f"T = 2. Right: the same along {settings.count(48)} runs on "
        "convex quadratics in 6 dimensions, steps falling as k^(-3/4).",
        canvas,
    )
    arrived = float((runs[2][1] < 0.05 * runs[2][2]).double().mean())
    two = max(shares[size, 2].mean for size in sizes)
    more = max(shares[size, 3].mean for size in sizes)
    yield claim(
        "SU-09",
        "For two tasks u = g_1/‖g_1‖ + g_2/‖g_2‖ always has ⟨g_t, u⟩ >= 0, so gradient "
        "normalisation reaches Pareto stationarity; with more the normalised sum "
        "no longer suffices.",
        judged(formula < ROUNDING and two == 0 and float(runs[2][0].max()) == 0 and min(exact) < 0)
        if arrived > 0.95
        else "inconclusive",
        {
            "T = 2: largest |⟨g_t, u⟩ - ‖g_t‖(1 + cos)|/‖g_t‖": formula,
            "T = 2: share of draws with a negative rate": two,
            "T = 2: share of steps that raise a task": runs[2][0].mean(),
            "T = 2: share of runs that end within 5 % of the start's distance of 0 from the hull": arrived,
            "T = 3: largest share of draws with a negative rate": more,
            "T = 3: share of steps that raise a task": runs[3][0].mean(),
            "(1, 0), (-.8, .6), (-.8, .6): ⟨g_1, u⟩": float(exact[0]),
        }
        | {
            f"T = {count}: median distance of 0 from the hull at the end, relative to the start": end
            for count, end in ends.items()
        },
        f"normal matrices, {steps} steps on random convex quadratics, and in fractions; small "
        "steps, non-zero gradients. For T >= 3 it is common descent that "
        "is lost: where the sum rests, Σ g_t/‖g_t‖ = 0 puts 0 in the hull for any T",
    )


# ---- duality ----


def primal(rows: np.ndarray) -> float:
    """max of s - ½‖u‖² with ⟨g_t, u⟩ >= s, in parameter space by sequential quadratic programming:
    no simplex, no weights.
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


def duality(settings: Settings) -> Findings:
    draws, tasks, size = settings.count(1000), 6, 10
    rows = rows_of(draws, tasks, size, 300, spread=5.0, common=0.4)
    g = gram(rows)
    w = shortest(g)
    u, value = torch.einsum("dt,dtp->dp", w, rows), 0.5 * square(g, w)
    # The minimum of the x_t is the minimum over the simplex of Σ w_t x_t.
    x, anyhow = normal(310, (draws, tasks)), torch.softmax(3 * normal(311, (draws, tasks)), -1)
    programs = np.array(
        [
            optimize.linprog(row, A_eq=np.ones((1, tasks)), b_eq=[1.0]).fun
            for row in x[: settings.count(50)].numpy()
        ]
    )
    difference = float(np.abs(programs - x[: len(programs)].amin(-1).numpy()).max())
    excess = float(((anyhow * x).sum(-1) - x.amin(-1)).min())
    yield claim(
        "SU-17",
        "The set of T-ary distributions is the simplex, and min_t x_t is the minimum over it of "
        "Σ w_t x_t.",
        judged(difference < ROUNDING and excess >= -1e-15),
        {
            "linear program over the simplex against the minimum, largest difference": difference,
            "smallest Σ w_t x_t - min x over random weights": excess,
        },
        f"{len(programs)} linear programs and {draws} random weights, T = {tasks}",
    )
    few = settings.count(60)
    primals = np.array(
        [primal(row) for row in tqdm(rows[:few].numpy(), desc="primal problems", leave=False)]
    )
    scale = g.diagonal(dim1=-2, dim2=-1).amin(-1)
    off = float((np.abs(primals - value[:few].numpy()) / scale[:few].numpy()).max())
    reach = float((u.norm(dim=-1) / rows.norm(dim=-1).amax(-1)).max())
    yield claim(
        "SU-18",
        "The objective is concave in u and convex in w, both domains are convex, so by von "
        "Neumann's minimax theorem maximum and minimum swap.",
        judged(off < 1e-6 and reach <= 1, only_when=True),
        {
            "largest |primal - dual value| / min ‖g‖²": off,
            "largest ‖u*‖/max ‖g_t‖": reach,
        },
        f"the result is right: {few} random matrices, primal by SLSQP in parameter space, dual "
        "by mtlfunc.solvers. The reason holds only when u is first "
        "confined to the ball of radius max ‖g_t‖, which loses nothing: von Neumann asks for two "
        "compact sets and u is unbounded; Sion's theorem asks for one",
    )
    inner = lambda v, w: torch.einsum("dt,dtp,dp->d", w, rows, v) - 0.5 * (v * v).sum(-1)  # noqa: E731
    gw = torch.einsum("dt,dtp->dp", anyhow, rows)
    top = inner(gw, anyhow)
    better = max(
        float((inner(gw + size_ * normal(312, (draws, size)), anyhow) - top).max())
        for size_ in (1e-3, 0.1, 10.0)
    )
    at_top = float((top - 0.5 * square(g, anyhow)).abs().max())
    gap = float(
        vmap(lambda g, w: mf.solvers.certify(mf.solvers.min_norm(g), w).relative_gap)(g, w).max()
    )
    longer = float((square(g, anyhow) - square(g, w)).min())
    yield claim(
        "SU-19",
        "The inner maximum is u = Σ w_t g_t, so the problem is to find the shortest convex "
        "combination: the minimum of ½‖Σ w_t g_t‖².",
        judged(better < 0 and at_top < ROUNDING and gap < 1e-12 and longer >= 0),
        {
            "largest gain of a move away from u = Jᵀw": better,
            "inner maximum less ½‖Jᵀw‖²": at_top,
            "largest relative gap wᵀGw - min (Gw)_t at the answer": gap,
            "smallest ‖Jᵀw‖² - ‖Jᵀw*‖² over random weights": longer,
        },
        f"{draws} random matrices of {tasks} gradients with {size} parameters",
    )
    last = solved(mf.solvers.frank_wolfe(settings.count(2000), "1/(n+1)"), g)
    distance = square(g, last.weights - w) / square(g, w)
    bound = last.gap / square(g, w)
    twice = torch.cat([rows, rows[:, :1]], 1)
    alike = shortest(gram(twice))
    both = alike[:, [0, -1]].sum(-1, keepdim=True)  # to be shared between the two copies at will
    other = torch.cat([0.25 * both, alike[:, 1:-1], 0.75 * both], 1)
    same = torch.einsum("dt,dtp->dp", alike - other, twice).norm(dim=-1) / u.norm(dim=-1)
    apart = (alike - other).abs().amax(-1)
    ok = float((distance - bound).max()) <= ROUNDING and float(same.max()) < 1e-6
    yield claim(
        "SU-16",
        "The limit is a weighted mean of the g_t, its weights the current best task weighting; "
        "the smoothing route is heuristic, though the result is right.",
        judged(ok),
        {
            "averaged iteration: largest ‖u_n - u*‖²/‖u*‖²": distance.max(),
            "its bound, the duality gap over ‖u*‖², largest": bound.max(),
            "smallest weight": min(float(last.weights.min()), float(w.min())),
            "first gradient repeated: largest difference of two optimal weightings": apart.max(),
            "the same: largest relative difference of their directions": same.max(),
        },
        f"{draws} random matrices, step 1/(n+1), {settings.count(2000)} iterations, against the "
        "exact dual solution; weights are unique only if the gradients "
        "are affinely independent, the direction always is",
    )


# ---- two tasks ----


def closed_form(rows: Tensor) -> Tensor:
    """w_1 = clip((G_22 - G_12)/(G_11 + G_22 - 2G_12), 0, 1), ½ for equal gradients; `[draw, 2]`."""
    g = gram(rows)
    denominator = g[:, 0, 0] + g[:, 1, 1] - 2 * g[:, 0, 1]
    first = torch.where(
        denominator > 0, (g[:, 1, 1] - g[:, 0, 1]) / denominator.where(denominator > 0, 1.0), 0.5
    ).clamp(0, 1)
    return torch.stack([first, 1 - first], -1)


def two_tasks(settings: Settings) -> Findings:
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
    canvas, axis = axes(1, 3, (14, 4.8))
    for one, (title, pair) in zip(
        axis,
        {
            "g_1·g_2 >= ‖g_1‖²: w_1 = 1": ((0.6, 0.5), (1.6, 0.4)),
            "inside": ((1.5, 0.3), (0.2, 1.2)),
            "g_1·g_2 >= ‖g_2‖²: w_1 = 0": ((0.5, 1.4), (0.5, 0.6)),
        }.items(),
        strict=True,
    ):
        plane = torch.tensor(pair, dtype=torch.float64)
        foot = (closed_form(plane[None])[0] @ plane).tolist()
        for i in range(2):
            one.annotate(
                "",
                pair[i],
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": COLOURS[2 * i], "linewidth": 2},
            )
            one.annotate(
                f"g_{i + 1}",
                pair[i],
                xytext=(6, 4),
                textcoords="offset points",
                color=COLOURS[2 * i],
                fontsize=12,
            )
        one.plot(*plane.T, color="#999999", linewidth=3, zorder=1)
        one.plot(
            [0, foot[0]], [0, foot[1]], color=COLOURS[1], linestyle="--", linewidth=2, zorder=5
        )
        one.plot(*foot, "o", color=COLOURS[1], zorder=6)
        one.set(
            title=title,
            xlabel="first coordinate",
            xlim=(-0.1, 1.9),
            ylim=(-0.1, 1.6),
            aspect="equal",
        )
    axis[0].set_ylabel("second coordinate")
    yield Figure(
        "two-tasks",
        "The closed form for two tasks: the shortest vector (dashed) from the origin to the "
        "segment between g_1 and g_2.",
        canvas,
    )
    yield claim(
        "SU-20",
        "T = 2: dropping a perpendicular in a triangle, w_1 = clip((G_22 - G_12)/(G_11 + G_22 - "
        "2G_12), 0, 1); three cases.",
        judged(max(off.values()) < ROUNDING and bool((ends == counted).all()))
        if all(bool(x.any()) for x in cases.values())
        else "inconclusive",
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
