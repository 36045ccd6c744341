"""Are conflict, similarity, curvature and ξ what PCGrad's definitions say?"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from .common import jacobians, normal
from .measures import conflicting, curvature_bound, magnitude_similarity
from .problems import regression, regression_batch, regression_start
from .rational import gramian_of, tensor_of

CLAIMS = {
    "PC-10": Exact(
        "Definition 1: two gradients conflict if cos φ < 0.",
        exact(
            ("pairs in which library and fractions differ", "==", 0),
            ("draws in which conflict and sign of the cosine differ", "==", 0),
        ),
    ),
    "PC-11": Exact(
        "Definition 2: Φ = 2‖g_i‖‖g_j‖/(‖g_i‖² + ‖g_j‖²).",
        exact(
            ("largest difference from the definition", "<", 1e-12),
            ("largest |1 - Φ| for equal lengths", "<", 1e-12),
            ("largest change under a common scale", "<", 1e-12),
            ("smallest Φ", ">=", 0),
            ("largest Φ", "<=", 1),
            ("unequal lengths with Φ = 1", "==", 0),
            ("two zero gradients: undefined (1: yes)", "==", 1),
        ),
    ),
    "PC-12": Exact(
        "Definition 3: H = ∫₀¹ gᵀ∇²L(θ + s(θ' - θ)) g ds, read as how the curvature "
        "changes over a step.",
        exact(
            ("largest relative difference from gᵀA g, steps 0 to 10", "<", 1e-10),
            only_when=("share of quadratics with H ≠ 0, where curvature never changes", ">", 0.5),
        ),
        when="H is read as the mean curvature along g, not as a change of curvature",
    ),
    "PC-13": Exact(
        "Definition 4: L = L_1 + L_2, g = g_1 + g_2 with g_i = ∇L_i; θ^MT and θ^PCGrad "
        "are the parameters after one step along g or along PCGrad's sum.",
        exact(("*, largest relative difference", "<", 1e-11)),
    ),
    "PC-14": Exact(
        "Definition 5: ξ = (1 - cos²φ)‖g_1 - g_2‖²/‖g_1 + g_2‖².",
        exact(
            ("‖PCGrad's sum‖² against *, largest relative difference", "<", 1e-9),
            ("largest change under a common scale", "<", 1e-9),
            ("difference from an exact fraction", "<", 1e-12),
            ("largest ξ - (1 + |cos φ|)²", "<=", 1e-12),
            ("conflicting draws with ξ <= 1 but cos φ > -Φ", "==", 0),
        ),
    ),
}


def of_pairs(measure: Callable[[Tensor], Tensor], jacobian: Tensor) -> Tensor:
    """A measure of the two gradients of every draw, `[draw]`."""
    return vmap(measure)(jacobian @ jacobian.mT)[:, 0, 1]


def conflict(J: Tensor) -> Claim:
    # opposed, at a right angle, agreeing, and with a zero gradient
    pairs = [[1, 2], [-2, 0]], [[1, 2], [-2, 1]], [[1, 2], [3, 1]], [[1, 2], [0, 0]]
    wrong = sum(
        bool(conflicting(tensor_of(gramian))[0, 1]) != (gramian[0][1] < 0)
        for gramian in map(gramian_of, pairs)
    )
    differ = of_pairs(conflicting, J) != (of_pairs(mf.diagnostics.cosines, J) < 0)
    return Claim(
        "PC-10",
        {
            "pairs in which library and fractions differ": wrong,
            "draws in which conflict and sign of the cosine differ": differ.sum(),
        },
        f"4 integer pairs against exact fractions, {len(J)} random pairs against the cosine; a "
        "right angle is no conflict, nor is a zero gradient",
    )


def similarity(J: Tensor) -> Claim:
    scale = 10 ** vmap(lambda key: normal(key, 2, ()))(torch.arange(len(J)))
    J = J * torch.stack([torch.ones_like(scale), scale], -1)[:, :, None]
    a, b = J.norm(dim=-1).unbind(-1)
    phi = of_pairs(magnitude_similarity, J)
    equal = of_pairs(magnitude_similarity, J / J.norm(dim=-1, keepdim=True))
    scaled = of_pairs(magnitude_similarity, 1e3 * J)
    zeros = magnitude_similarity(torch.zeros(2, 2))[0, 1]
    return Claim(
        "PC-11",
        {
            "largest difference from the definition": (phi - 2 * a * b / (a**2 + b**2)).abs().max(),
            "largest |1 - Φ| for equal lengths": (1 - equal).abs().max(),
            "largest change under a common scale": (scaled - phi).abs().max(),
            "smallest Φ": phi.min(),
            "largest Φ": phi.max(),
            "unequal lengths with Φ = 1": (phi[(a / b - 1).abs() > 1e-6] >= 1).sum(),
            "two zero gradients: undefined (1: yes)": zeros.isnan(),
        },
        f"{len(J)} random pairs",
    )


def curvature(settings: Settings) -> Claim:
    """On quadratics H = gᵀA g for every step."""
    keys = torch.arange(settings.count(500))

    def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, (linear, quadratic) = params["x"], batch
        return linear @ x + 0.5 * torch.einsum("i,tij,j->t", x, quadratic, x)

    def one(key: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        root = normal(key, 1, (2, 4, 4))
        batch = (normal(key, 0, (2, 4)), root + root.mT)
        params = {"x": torch.zeros(4, dtype=torch.float64)}
        g = batch[0].sum(0)
        return mf.diagnostics.curvature(losses, params, batch, lr=lr), g @ batch[1].sum(0) @ g

    lr = torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=torch.float64)
    measured, expected = vmap(vmap(one, (0, None)), (None, 0))(keys, lr)
    error, bent = (measured - expected).abs() / (1 + expected.abs()), measured.abs() > 1e-6
    return Claim(
        "PC-12",
        {
            "largest relative difference from gᵀA g, steps 0 to 10": error.max(),
            "share of quadratics with H ≠ 0, where curvature never changes": bent.double().mean(),
        },
        f"{len(keys)} random quadratics; H = gᵀA g, whatever the step; as a change of curvature it "
        "would be 0 here. Theorem 2 needs the weight 2(1 - s) (PC-19)",
    )


def one_step(settings: Settings) -> Claim:
    """θ^MT and θ^PCGrad are points: θ less t times the sum of the (projected) gradients."""
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
            step = mf.descend(regression, rule, mf.jacobian(), mf.sgd(lr), reduction="sum")
            after = step.update(step.init(params, batch), batch)[0].params
            moved = torch.cat([(params[name] - after[name]).flatten() for name in rows])
            errors.append((moved - lr * expected).norm() / (lr * expected).norm())
        return errors[0], errors[1]

    plain, edited = vmap(one)(torch.arange(settings.seeds))
    return Claim(
        "PC-13",
        {
            "plain step, largest relative difference": plain.max(),
            "PCGrad's step, largest relative difference": edited.max(),
        },
        'mtlfunc.descend with sgd and reduction="sum" against the written-out steps, '
        f"{settings.seeds} seeds of the regression",
    )


def bound(J: Tensor) -> Claim:
    inner = (J[:, 0] * J[:, 1]).sum(-1)
    J = torch.stack([J[:, 0], torch.where((inner < 0)[:, None], J[:, 1], -J[:, 1])], 1)
    gramian = J @ J.mT
    measures = curvature_bound, mf.diagnostics.cosines, magnitude_similarity
    xi, cos, phi = (of_pairs(measure, J) for measure in measures)
    weights = 2 * vmap(lambda G: mf.weights(mf.pcgrad(), G))(gramian)
    length = torch.einsum("ds,dst,dt->d", weights, gramian, weights)
    error = length / (xi * gramian.sum((-1, -2))) - 1
    scaled = vmap(curvature_bound)(1e4 * gramian)[:, 0, 1]
    # cos = -1/2, ‖g_1 - g_2‖² = 7, ‖g_1 + g_2‖² = 3
    integer = curvature_bound(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64))[0, 1]
    return Claim(
        "PC-14",
        {
            "‖PCGrad's sum‖² against ξ‖g_1 + g_2‖², largest relative difference": error.abs().max(),
            "largest change under a common scale": (scaled / xi - 1).abs().max(),
            "difference from an exact fraction": (integer - 3 / 4 * 7 / 3).abs(),
            "largest ξ - (1 + |cos φ|)²": (xi - (1 + cos.abs()) ** 2).max(),
            "conflicting draws with ξ <= 1 but cos φ > -Φ": ((xi <= 1) & (cos > -phi)).sum(),
        },
        f"{len(J)} random conflicting pairs; a number without a unit, the factor by which PCGrad "
        "changes ‖g‖²; at most (1 + |cos φ|)² < 4, undefined at g = 0",
    )


def run(settings: Settings) -> Findings:
    J = jacobians(settings, 2, 5)
    yield from (conflict(J), similarity(J), curvature(settings), one_step(settings), bound(J))
