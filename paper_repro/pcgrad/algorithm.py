"""Is the library's rule Algorithm 1, on any model?"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from .common import jacobians, normal
from .problems import PROBLEMS, regression, regression_batch, regression_start
from .rational import FAN, ORDERS, RAISED, exact_coefficients, gramian_of, tensor_of, times

CLAIMS = {
    "PC-06": Exact(
        "PCGrad edits gradients only, so it is model-agnostic: supervised, reinforcement "
        "and goal-conditioned problems alike.",
        exact(("*largest relative difference of *", "<", 1e-9)),
    ),
    "PC-09": Exact(
        "The training loss is the plain sum Σ L_i, T times the expectation over uniform "
        "tasks; a task-conditioned f(y given x, z) has the same gradients.",
        exact(("reduction=*", "<", 1e-12), ("one-hot code against *", "<", 1e-12)),
    ),
    "PC-15": Exact(
        "Algorithm 1: project a copy of every gradient off the others it conflicts with, "
        "in random order; update with all the edited gradients.",
        exact(("largest *", "<", 1e-12)),
    ),
    "PC-16": Exact(
        "After its projection a gradient has no component against the one it was "
        "projected on; gradients without conflict are left alone.",
        exact(
            ("T = 2: largest relative difference of g_i·d from *", "<", 1e-10),
            ("no conflict: largest difference of the coefficients from 1", "<", 1e-12),
            ("120°: task 1 right after its projection on task *", "==", 0),
            only_when=("120°: the same after the next projection, *", "<", 0),
        ),
        when="one projection, or two tasks; with three a later projection restores a conflict",
    ),
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    for check in (model_agnostic, the_sum, algorithm, after_projection):
        yield check(settings)


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


def model_agnostic(settings: Settings) -> Claim:
    """The direction is a function of the gradients alone. The same call serves a regression, a
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
        worst = largest(worst, found)
    return claim(
        "PC-06",
        numbers,
        f"{len(J)} random Jacobians of 4 tasks under orthogonal changes of basis; a regression "
        "and a maze with two goals, exact policy gradients, the goal a one-hot input, by the same "
        f"mtlfunc.balance, {settings.seeds} seeds each. That it can be applied, not that it helps",
    )


def the_sum(settings: Settings) -> Claim:
    """L = Σ L_i. The mean is its expectation over uniform tasks; a one-hot task code is a head
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
        {
            'reduction="sum" against the sum of task gradients': direct,
            'reduction="sum" against T times "mean"': scale,
            "one-hot code against heads by index, largest difference of rows": coded,
        },
        f"regression with two tasks, {settings.seeds} seeds, float64. Step sizes and ℒ of the "
        "theorems are at the scale of the sum",
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
        tensor_of(gramian_of(RAISED)),
    )
    fraction = largest(abs(float(a) - float(b)) for a, b in zip(first, library, strict=True))
    return claim(
        "PC-15",
        {
            "largest relative difference of literal vectors and the recurrence on G": largest(
                errors
            ),
            "largest difference with a zero gradient, skipped": with_zero,
            "largest difference from exact fractions, one order of three tasks": fraction,
        },
        f"{len(errors)} Jacobians of 5 tasks with given random orders; the current copy is tested "
        "against the original gradients",
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
    return claim(
        "PC-16",
        {
            "T = 2: largest relative difference of g_i·d from (1 - cos²φ)‖g_i‖²": two,
            "no conflict: largest difference of the coefficients from 1": same,
            "120°: task 1 right after its projection on task 2, p·g_2": float(left[0]),
            "120°: task 1 right after its projection on task 3, p·g_3": float(left[1]),
            "120°: the same after the next projection, on task 3, p·g_2": float(again),
            "(-2, -2), (-2, 0), (2, 1): tasks raised by the final direction": negative,
        },
        f"{len(J)} random pairs; three unit gradients at 120° and (-2, -2), (-2, 0), (2, 1) in "
        "exact fractions. Holds of one projection and of two tasks only: "
        "with three a later projection can restore an earlier conflict",
    )
