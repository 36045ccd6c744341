"""PCGrad's definitions and algorithm (Yu et al. 2020, section 2): identities in exact fractions
where they are rational, on random draws elsewhere.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings
from .common import PAPER, arrow, normal
from .many import FAN, ORDERS, RAISED, exact_coefficients, gramian_of, times
from .training import PROBLEMS, regression, regression_batch, regression_start

EXACT = 1e-12
"""What float64 identities may differ by, relative to their terms."""


def jacobians(settings: Settings, tasks: int, size: int) -> Tensor:
    return vmap(lambda key: normal(key, 0, (tasks, size)))(torch.arange(settings.count(500)))


def literal(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """Algorithm 1 on the vectors themselves; the sum of the projected gradients."""
    total = torch.zeros_like(jacobian[0])
    for task, order in enumerate(orders):
        p = jacobian[task].clone()
        for j in order:
            inner = p @ jacobian[j]
            if j != task and inner < 0:
                p = p - inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total = total + p
    return total


def claim(
    identifier: str,
    text: str,
    ok: bool,
    numbers: dict[str, float],
    where: str,
    *,
    partly: bool = False,
) -> Claim:
    return Claim(
        identifier,
        PAPER,
        text,
        ("holds only when" if partly else "holds") if ok else "does not hold",
        numbers,
        where,
    )


# ---- what the method reads ----


def model_agnostic(settings: Settings) -> Claim:
    """The direction is a function of the gradients alone, and the same call serves a regression, a
    policy and a goal-conditioned maze.
    """
    J = jacobians(settings, 4, 12)
    basis = torch.linalg.qr(vmap(lambda key: normal(key, 1, (12, 12)))(torch.arange(len(J))))[0]
    keys = torch.arange(len(J))
    direction = vmap(lambda J, key: mf.weights(mf.pcgrad(), J @ J.mT, key=key) @ J)
    rotated, plain = direction(J @ basis, keys), direction(J, keys)
    turned = float(
        ((rotated - plain[:, None].matmul(basis)[:, 0]).norm(dim=-1) / plain.norm(dim=-1)).max()
    )
    numbers = {"largest relative difference of rotated directions": turned}
    zero = torch.zeros((), dtype=torch.int64)
    worst = 0.0
    for name, problem in PROBLEMS.items():

        def one(key: Tensor, problem=problem) -> Tensor:
            params, batch = problem.start(key), problem.batch(key, zero)
            step = mf.balance(problem.losses, mf.pcgrad(), mf.jacobian())
            grads, _, info = step.update(params, batch, step.init(params, batch))
            rows = mf.task_gradients(problem.losses, params, batch)[1]
            alpha = mf.weights(mf.pcgrad(), info.gramian)
            errors = [
                (grads[leaf] - torch.tensordot(alpha, row, 1)).abs().max()
                for leaf, row in rows.items()
            ]
            return (
                torch.stack(errors).max()
                / torch.stack([grad.abs().max() for grad in grads.values()]).max()
            )

        found = float(vmap(one)(torch.arange(settings.seeds)).max())
        numbers[f"{name}: largest relative difference of the step from Jᵀα(G)"] = found
        worst = max(worst, found)
    return claim(
        "PC-06",
        "PCGrad edits gradients only, so it is model-agnostic: supervised, reinforcement and "
        "goal-conditioned problems alike.",
        max(worst, turned) < 1e-9,
        numbers,
        f"{len(J)} random Jacobians of 4 tasks under orthogonal changes of basis; a regression "
        "and a maze with two goals, exact policy gradients, the goal a "
        f"one-hot input, by the same mtlfunc.balance, {settings.seeds} seeds each; holds below "
        "1e-9. That it can be applied, not that it helps",
    )


def the_sum(settings: Settings) -> Claim:
    """L = Σ L_i; the mean is its expectation over uniform tasks; a one-hot task code is a head
    selected by its index.
    """
    zero = torch.zeros((), dtype=torch.int64)

    def one(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        params, batch = regression_start(key), regression_batch(key, zero)
        steps = {
            kind: mf.balance(regression, mf.mean(), mf.jacobian(), reduction=kind)
            for kind in ("sum", "mean")
        }
        grads = {
            kind: step.update(params, batch, step.init(params, batch))[0]
            for kind, step in steps.items()
        }
        _, rows = mf.task_gradients(regression, params, batch)
        flat = {
            kind: torch.cat([leaf.flatten() for leaf in found.values()])
            for kind, found in grads.items()
        }
        straight = torch.cat([leaf.sum(0).flatten() for leaf in rows.values()])
        # The same network with the code z as an input of its last layer: out = Σ_i z_i head_i.
        coded = mf.task_gradients(coded_regression, params, batch)[1]
        apart = torch.stack([(coded[name] - rows[name]).abs().max() for name in rows]).max()
        return (
            (flat["sum"] - straight).norm() / straight.norm(),
            (flat["sum"] - 2 * flat["mean"]).norm() / straight.norm(),
            apart,
        )

    direct, scale, coded = (float(x.max()) for x in vmap(one)(torch.arange(settings.seeds)))
    return claim(
        "PC-09",
        "The training loss is the plain sum Σ L_i, T times the expectation over uniform tasks; a "
        "task-conditioned f(y given x, z) has the same gradients.",
        max(direct, scale, coded) < EXACT,
        {
            'reduction="sum" against the sum of task gradients': direct,
            'reduction="sum" against T times "mean"': scale,
            "one-hot code against heads by index, largest difference of rows": coded,
        },
        f"regression with two tasks, {settings.seeds} seeds, float64; holds below {EXACT:g}. "
        "Step sizes and ℒ of the theorems are at the scale of the sum",
    )


def coded_regression(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """`regression` with each task's one-hot code as an input."""
    x, y = batch
    for layer in ("trunk.0", "trunk.1"):
        x = torch.tanh(x @ params[f"{layer}.weight"].mT + params[f"{layer}.bias"])
    codes = torch.eye(2, dtype=x.dtype)
    out = torch.stack(
        [(x @ params["heads.weight"].mT + params["heads.bias"]) @ z for z in codes], -1
    )
    return (out - y).square().mean(0)


# ---- Definitions 1 to 5 ----


def conflict(settings: Settings) -> Claim:
    pairs = {
        "opposed": [[1, 2], [-2, 0]],
        "at a right angle": [[1, 2], [-2, 1]],
        "agreeing": [[1, 2], [3, 1]],
        "a zero gradient": [[1, 2], [0, 0]],
    }
    expected, found = [], []
    for pair in pairs.values():
        expected.append(gramian_of(pair)[0][1] < 0)
        found.append(bool(mf.diagnostics.conflicts(_float(gramian_of(pair)))[0, 1]))
    J = jacobians(settings, 2, 5)
    gramian = J @ J.mT
    same = (
        vmap(mf.diagnostics.conflicts)(gramian)[:, 0, 1]
        == (vmap(mf.diagnostics.cosines)(gramian)[:, 0, 1] < 0)
    ).all()
    return claim(
        "PC-10",
        "Definition 1: two gradients conflict if cos φ < 0.",
        expected == found and bool(same),
        {f"{name}: conflict": float(value) for name, value in zip(pairs, found, strict=True)}
        | {"draws": len(J)},
        "integer pairs against exact fractions, random pairs against the cosine; a right angle "
        "is no conflict, nor is a zero gradient",
    )


def similarity(settings: Settings) -> Claim:
    J = jacobians(settings, 2, 5)
    scale = 10 ** vmap(lambda key: normal(key, 2, ()))(torch.arange(len(J)))
    J = J * torch.stack([torch.ones_like(scale), scale], -1)[:, :, None]
    measure = lambda J: vmap(mf.diagnostics.magnitude_similarity)(J @ J.mT)[:, 0, 1]  # noqa: E731
    phi, equal = measure(J), measure(J / J.norm(dim=-1, keepdim=True))
    a, b = J.norm(dim=-1).unbind(-1)
    by_definition = float((phi - 2 * a * b / (a**2 + b**2)).abs().max())
    common = float((measure(1e3 * J) - phi).abs().max())
    zeros = bool(mf.diagnostics.magnitude_similarity(torch.zeros(2, 2))[0, 1].isnan())
    inside = bool(((phi >= 0) & (phi <= 1)).all())
    below = bool((phi[(a / b - 1).abs() > 1e-6] < 1).all())
    return claim(
        "PC-11",
        "Definition 2: Φ = 2‖g_i‖‖g_j‖/(‖g_i‖² + ‖g_j‖²).",
        inside
        and zeros
        and below
        and max(by_definition, common, float((1 - equal).abs().max())) < EXACT,
        {
            "largest difference from the definition": by_definition,
            "largest |1 - Φ| for equal lengths": float((1 - equal).abs().max()),
            "largest change under a common scale": common,
            "smallest Φ": float(phi.min()),
            "largest Φ": float(phi.max()),
        },
        f"{len(J)} random pairs; within [0, 1], 1 for equal lengths alone, scale-free, undefined "
        f"for two zero gradients; holds below {EXACT:g}",
    )


def curvature(settings: Settings) -> Claim:
    """On quadratics H = gᵀA g for every step, so that it cannot measure a change of curvature."""
    keys = torch.arange(settings.count(500))

    def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, (linear, quadratic) = params["x"], batch
        return linear @ x + 0.5 * torch.einsum("i,tij,j->t", x, quadratic, x)

    def one(key: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        root = normal(key, 1, (2, 4, 4))
        batch, params = (
            (normal(key, 0, (2, 4)), root + root.mT),
            {"x": torch.zeros(4, dtype=torch.float64)},
        )
        g = batch[0].sum(0)
        return mf.diagnostics.curvature(losses, params, batch, lr=lr), g @ batch[1].sum(0) @ g

    lr = torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=torch.float64)
    measured, expected = vmap(vmap(one, (0, None)), (None, 0))(keys, lr)
    error = float(((measured - expected).abs() / (1 + expected.abs())).max())
    share = float((measured.abs() > 1e-6).double().mean())
    return claim(
        "PC-12",
        "Definition 3: H = ∫₀¹ gᵀ∇²L(θ + s(θ' - θ)) g ds, read as how the curvature changes over "
        "a step.",
        error < 1e-10,
        {
            "largest relative difference from gᵀA g, steps 0 to 10": error,
            "share of quadratics with H ≠ 0, where curvature never changes": share,
        },
        f"{len(keys)} random quadratics; the definition holds (H = gᵀA g, whatever the step) "
        "only when H is read as the mean curvature along g: as a change "
        "of curvature it would be 0 here. Theorem 2 needs the weight 2(1 - s) (PC-19)",
        partly=share > 0.5,
    )


def one_step(settings: Settings) -> Claim:
    """θ^MT and θ^PCGrad are points: θ less t times the sum of the gradients, or of the projected
    ones.
    """
    zero, lr = torch.zeros((), dtype=torch.int64), 0.03

    def one(key: Tensor) -> tuple[Tensor, Tensor]:
        params, batch = regression_start(key), regression_batch(key, zero)
        _, rows = mf.task_gradients(regression, params, batch)
        J = torch.cat([leaf.flatten(1) for leaf in rows.values()], 1)
        gramian = J @ J.mT
        inner = gramian[0, 1].clamp_max(0)
        projected = J.sum(0) - inner / gramian[1, 1] * J[1] - inner / gramian[0, 0] * J[0]
        errors = []
        for rule, expected in ((mf.mean(), J.sum(0)), (mf.pcgrad(), projected)):
            step = mf.descend(regression, rule, mf.sgd(lr), mf.jacobian(), reduction="sum")
            after = step.update(step.init(params, batch), batch)[0].params
            moved = torch.cat([(params[name] - after[name]).flatten() for name in rows])
            errors.append((moved - lr * expected).norm() / (lr * expected).norm())
        return errors[0], errors[1]

    plain, edited = (float(x.max()) for x in vmap(one)(torch.arange(settings.seeds)))
    return claim(
        "PC-13",
        "Definition 4: L = L_1 + L_2, g = g_1 + g_2 with g_i = ∇L_i; θ^MT and θ^PCGrad are the "
        "parameters after one step along g or along PCGrad's sum.",
        max(plain, edited) < 1e-11,
        {
            "plain step, largest relative difference": plain,
            "PCGrad's step, largest relative difference": edited,
        },
        'mtlfunc.descend with sgd and reduction="sum" against the written-out steps, '
        f"{settings.seeds} seeds of the regression; holds below 1e-11",
    )


def bound(settings: Settings) -> Claim:
    J = jacobians(settings, 2, 5)
    J = torch.where(
        ((J[:, 0] * J[:, 1]).sum(-1) < 0)[:, None, None],
        J,
        J * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None],
    )
    gramian = J @ J.mT
    xi = vmap(mf.diagnostics.curvature_bound)(gramian)[:, 0, 1]
    weights = 2 * vmap(lambda G: mf.weights(mf.pcgrad(), G))(gramian)
    length = torch.einsum("ds,dst,dt->d", weights, gramian, weights)
    error = float((length / (xi * gramian.sum((-1, -2))) - 1).abs().max())
    scaled = float(
        (vmap(mf.diagnostics.curvature_bound)(1e4 * gramian)[:, 0, 1] / xi - 1).abs().max()
    )
    cos, phi = (
        vmap(f)(gramian)[:, 0, 1]
        for f in (mf.diagnostics.cosines, mf.diagnostics.magnitude_similarity)
    )
    over = float((xi - (1 + cos.abs()) ** 2).max())
    near, along = (
        float(mf.diagnostics.curvature_bound(_float(gramian_of(pair)))[0, 1])
        for pair in ([[1000, 1], [-1000, 0]], [[1001, 0], [-1000, 0]])
    )
    # G = [[1, -1], [-1, 4]]: cos = -1/2, ‖g_1 - g_2‖² = 7, ‖g_1 + g_2‖² = 3
    exact = Fraction(3, 4) * Fraction(7, 3)
    integer = abs(
        float(
            mf.diagnostics.curvature_bound(
                torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
            )[0, 1]
        )
        - float(exact)
    )
    implied = int(((xi <= 1) & (cos > -phi)).sum())
    return claim(
        "PC-14",
        "Definition 5: ξ = (1 - cos²φ)‖g_1 - g_2‖²/‖g_1 + g_2‖².",
        error < 1e-9 and scaled < 1e-9 and integer < EXACT and over <= EXACT and implied == 0,
        {
            "‖PCGrad's sum‖² against ξ‖g_1 + g_2‖², largest relative difference": error,
            "largest change under a common scale": scaled,
            "difference from an exact fraction": integer,
            "largest ξ - (1 + |cos φ|)²": over,
            "ξ of (1000, 1) and (-1000, 0)": near,
            "ξ of (1001, 0) and (-1000, 0)": along,
            "conflicting draws with ξ <= 1 but cos φ > -Φ": implied,
        },
        f"{len(J)} random conflicting pairs; a number without a unit, the factor by which PCGrad "
        "changes ‖g‖²; at most (1 + |cos φ|)² < 4, "
        "so it is not infinite at g = 0 but undefined: near there it takes any value from 0 to 4",
    )


# ---- Algorithm 1 ----


def algorithm(settings: Settings) -> Claim:
    J = jacobians(settings, 5, 7)
    errors = []
    for seed, jacobian in enumerate(J[: settings.count(200)]):
        orders = mf.random.permutation(mf.random.key(seed), 5, rows=5)
        expected = literal(jacobian, orders.tolist())
        gramian = jacobian @ jacobian.mT
        errors.append(
            float(
                (5 * mf.weights(mf.pcgrad(orders), gramian) @ jacobian - expected).norm()
                / expected.norm()
            )
        )
    J[0, 2] = 0
    orders = mf.random.permutation(mf.random.key(0), 5, rows=5)
    with_zero = float(
        (
            5 * mf.weights(mf.pcgrad(orders), J[0] @ J[0].mT) @ J[0]
            - literal_without_zero(J[0], orders.tolist())
        ).norm()
    )
    first = exact_coefficients(gramian_of(RAISED), ORDERS[0])
    library = 3 * mf.weights(
        mf.pcgrad(torch.tensor([[i, *order] for i, order in enumerate(ORDERS[0])])),
        _float(gramian_of(RAISED)),
    )
    fraction = max(abs(float(a) - float(b)) for a, b in zip(first, library, strict=True))
    return claim(
        "PC-15",
        "Algorithm 1: project a copy of every gradient off the others it conflicts with, in "
        "random order; update with all the edited gradients.",
        max(*errors, with_zero, fraction) < EXACT,
        {
            "largest relative difference of literal vectors and the recurrence on G": max(errors),
            "largest difference with a zero gradient, skipped": with_zero,
            "largest difference from exact fractions, one order of three tasks": fraction,
        },
        f"{len(errors)} Jacobians of 5 tasks with given random orders; the current copy is "
        f"tested against the original gradients; holds below {EXACT:g}",
    )


def literal_without_zero(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """`literal` with the zero gradients left out of every order."""
    return literal(jacobian, [[j for j in order if bool(jacobian[j].any())] for order in orders])


def after_projection(settings: Settings) -> Claim:
    J = jacobians(settings, 2, 6)
    gramian = J @ J.mT
    cos = vmap(mf.diagnostics.cosines)(gramian)[:, 0, 1]
    rates = 2 * torch.einsum(
        "dst,dt->ds", gramian, vmap(lambda G: mf.weights(mf.pcgrad(), G))(gramian)
    )
    square = gramian.diagonal(dim1=-2, dim2=-1)
    clash = cos < 0
    two = float(((rates - (1 - cos**2)[:, None] * square).abs() / square)[clash].max())
    agreeing = J.abs()
    same = (
        float(
            (4 * vmap(lambda G: mf.weights(mf.pcgrad(), G))(agreeing @ agreeing.mT) - 2).abs().max()
        )
        / 2
    )
    negative = sum(
        rate < 0
        for rate in times(gramian_of(RAISED), exact_coefficients(gramian_of(RAISED), ORDERS[0]))
    )
    # Unit gradients at 120°: task 1's copy, projected off task 2 and then off task 3.
    own, left = [Fraction(1), Fraction(0), Fraction(0)], []
    for j in (1, 2):
        own[j] -= min(times(FAN, own)[j], Fraction(0)) / FAN[j][j]
        left.append(times(FAN, own)[j])
    again = times(FAN, own)[1]
    ok = two < 1e-10 and same < EXACT and all(x == 0 for x in left)
    return claim(
        "PC-16",
        "After its projection a gradient has no component against the one it was projected on; "
        "gradients without conflict are left alone.",
        ok,
        {
            "T = 2: largest relative difference of g_i·d from (1 - cos²φ)‖g_i‖²": two,
            "no conflict: largest difference of the coefficients from 1": same,
            "120°: task 1 right after its projection on task 2, p·g_2": float(left[0]),
            "120°: the same after the next projection, on task 3, p·g_2": float(again),
            "(-2, -2), (-2, 0), (2, 1): tasks raised by the final direction": negative,
        },
        f"{len(J)} random pairs; three unit gradients at 120° and (-2, -2), (-2, 0), (2, 1) in "
        "exact fractions. Holds of one projection and of two tasks only: "
        "with three a later projection can restore an earlier conflict",
        partly=negative > 0 or again < 0,
    )


def definitions_figure() -> Figure:
    canvas, panels = axes(1, 3, (15, 4.6))
    g, h = np.array([1.3, 1.1]), np.array([-0.9, 0.2])
    off = lambda a, b: a - min(a @ b, 0) / (b @ b) * b  # noqa: E731
    vectors = (
        (g, "g₁", "C0", "-"),
        (h, "g₂", "C1", "-"),
        (off(g, h), "g₁ off g₂", "C0", "--"),
        (off(h, g), "g₂ off g₁", "C1", "--"),
    )
    for vector, label, colour, style in (
        *vectors,
        (off(g, h) + off(h, g), "PCGrad", "black", "-"),
        (g + h, "g₁ + g₂", "#777777", ":"),
    ):
        arrow(panels[0], np.zeros(2), vector, colour, style)
        panels[0].plot([], [], color=colour, linestyle=style, label=label)
    for end, start in ((off(g, h), g), (off(h, g), h)):
        panels[0].plot(*np.stack([start, end]).T, color="#aaaaaa", linewidth=1)
    panels[0].set(xlabel="θ₁", ylabel="θ₂", xlim=(-1.5, 1.7), ylim=(-0.2, 2.6), aspect="equal")
    panels[0].legend(frameon=False, loc="upper left", fontsize="small", ncols=2)
    cos, ratio = (
        torch.linspace(-0.999, 0, 181, dtype=torch.float64),
        torch.logspace(-2, 2, 181, dtype=torch.float64),
    )
    grid = vmap(
        vmap(
            lambda c, r: torch.stack(
                [torch.stack([torch.ones_like(r), c * r]), torch.stack([c * r, r**2])]
            ),
            (0, None),
        ),
        (None, 0),
    )(cos, ratio)
    both = [
        vmap(vmap(f))(grid)[..., 0, 1].numpy()
        for f in (mf.diagnostics.curvature_bound, mf.diagnostics.magnitude_similarity)
    ]
    shades = ([0, 0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4], np.linspace(0, 1, 11))
    for panel, values, name, levels in zip(panels[1:], both, ("ξ", "Φ"), shades, strict=True):
        filled = panel.contourf(cos, ratio, values, levels=levels, cmap="cividis")
        canvas.colorbar(filled, ax=panel, label=name, ticks=levels, format="%g")
        panel.contour(cos, ratio, both[0], levels=[1], colors="white", linewidths=2)
        panel.contour(
            cos,
            ratio,
            cos.numpy() + both[1],
            levels=[0],
            colors="white",
            linestyles="dashed",
            linewidths=2,
        )
        panel.plot([], [], color="#bbbbbb", label="ξ = 1")
        panel.plot([], [], color="#bbbbbb", linestyle="--", label="cos φ = -Φ")
        panel.set(xlabel="cos φ", ylabel="‖g₂‖ / ‖g₁‖", yscale="log")
        panel.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small"
        )
    return Figure(
        "definitions",
        "Left: two conflicting gradients, each projected off the other, and the sums of both "
        "pairs. Middle and right: ξ and Φ over the angle and the ratio of "
        "lengths. Where ξ < 1 (outside the solid line) cos φ <= -Φ holds (outside the dashed "
        "one): Theorem 2's condition (a) follows from (b).",
        canvas,
    )


def _float(gramian: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in gramian], dtype=torch.float64)


def run(settings: Settings) -> Findings:
    yield definitions_figure()
    for check in (
        model_agnostic,
        the_sum,
        conflict,
        similarity,
        curvature,
        one_step,
        bound,
        algorithm,
        after_projection,
    ):
        yield check(settings)
