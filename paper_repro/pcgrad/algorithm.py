"""Is the library's rule Algorithm 1, on any model?"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from . import rational
from .common import jacobians, normal
from .problems import PROBLEMS, Problem, regression, regression_batch, regression_start, trunk

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


def run(settings: Settings) -> Findings:
    for check in (model_agnostic, the_sum, algorithm, after_projection):
        yield check(settings)


def literal(jacobian: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 on the vectors themselves; the sum of the projected gradients."""
    total = torch.zeros_like(jacobian[0])
    for task, order in enumerate(orders.tolist()):
        p = jacobian[task].clone()
        for j in order:
            inner = p @ jacobian[j]
            if j != task and inner < 0:
                p = p - inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total = total + p
    return total


def model_agnostic(settings: Settings) -> Claim:
    J = jacobians(settings, 4, 12)
    keys, zero = torch.arange(len(J)), torch.zeros((), dtype=torch.int64)
    basis = torch.linalg.qr(vmap(lambda key: normal(key, 1, (12, 12)))(keys))[0]
    direction = vmap(lambda J, key: mf.weights(mf.pcgrad(), J @ J.mT, key=key) @ J)
    rotated, plain = direction(J @ basis, keys), direction(J, keys)
    apart = (rotated - plain[:, None].matmul(basis)[:, 0]).norm(dim=-1) / plain.norm(dim=-1)
    numbers = {"largest relative difference of rotated directions": apart.max()}
    for name, problem in PROBLEMS.items():

        def one(key: Tensor, problem: Problem = problem) -> Tensor:
            params, batch = problem.start(key), problem.batch(key, zero)
            step = mf.balance(problem.losses, mf.pcgrad(), mf.jacobian())
            grads, _, info = step.update(params, batch, step.init(params, batch))
            rows = mf.task_gradients(problem.losses, params, batch)[1]
            alpha = mf.weights(mf.pcgrad(), info.gramian)
            found = torch.cat([grad.flatten() for grad in grads.values()])
            expected = alpha @ torch.cat([rows[leaf].flatten(1) for leaf in grads], 1)
            return (found - expected).abs().max() / found.abs().max()

        label = f"{name}: largest relative difference of the step from Jᵀα(G)"
        numbers[label] = vmap(one)(torch.arange(settings.seeds)).max()
    return Claim(
        "PC-06",
        numbers,
        f"{len(J)} random Jacobians of 4 tasks under orthogonal changes of basis; a regression "
        "and a maze with two goals, exact policy gradients, the goal a one-hot input, by the same "
        f"mtlfunc.balance, {settings.seeds} seeds each. That it can be applied, not that it helps",
    )


def the_sum(settings: Settings) -> Claim:
    zero = torch.zeros((), dtype=torch.int64)

    def one(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        params, batch = regression_start(key), regression_batch(key, zero)
        _, rows = mf.task_gradients(regression, params, batch)
        straight = torch.cat([leaf.sum(0).flatten() for leaf in rows.values()])
        flat = []
        for reduction in ("sum", "mean"):
            step = mf.balance(regression, mf.mean(), mf.jacobian(), reduction=reduction)
            grads = step.update(params, batch, step.init(params, batch))[0]
            flat.append(torch.cat([leaf.flatten() for leaf in grads.values()]))
        # The same network with the code z as an input of its last layer: out = Σ_i z_i head_i.
        coded = mf.task_gradients(coded_regression, params, batch)[1]
        return (
            (flat[0] - straight).norm() / straight.norm(),
            (flat[0] - 2 * flat[1]).norm() / straight.norm(),
            torch.stack([(coded[name] - rows[name]).abs().max() for name in rows]).max(),
        )

    direct, scale, coded = vmap(one)(torch.arange(settings.seeds))
    return Claim(
        "PC-09",
        {
            'reduction="sum" against the sum of task gradients': direct.max(),
            'reduction="sum" against T times "mean"': scale.max(),
            "one-hot code against heads by index, largest difference of rows": coded.max(),
        },
        f"regression with two tasks, {settings.seeds} seeds, float64. Step sizes and ℒ of the "
        "theorems are at the scale of the sum",
    )


def coded_regression(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """`regression` with each task's one-hot code as an input."""
    x, y = batch
    heads = trunk(params, x) @ params["heads.weight"].mT + params["heads.bias"]
    out = torch.stack([heads @ z for z in torch.eye(2, dtype=x.dtype)], -1)
    return (out - y).square().mean(0)


def algorithm(settings: Settings) -> Claim:
    def apart(jacobian: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        orders = mf.random.permutation(mf.random.key(seed), 5, rows=5)
        expected = literal(jacobian, orders)
        found = 5 * mf.weights(mf.pcgrad(orders), jacobian @ jacobian.mT) @ jacobian
        return (found - expected).norm(), expected.norm()

    J = jacobians(settings, 5, 7)[: settings.count(200)]
    errors = [error / size for error, size in (apart(x, seed) for seed, x in enumerate(J))]
    J[0, 2] = 0
    gramian, orders = rational.gramian_of(rational.RAISED), rational.orders_of(3)[0]
    exact = rational.tensor_of([rational.exact_coefficients(gramian, orders)])[0]
    fractions = (exact - rational.library_coefficients(gramian, orders)).abs()
    worst = torch.stack(errors).max()
    return Claim(
        "PC-15",
        {
            "largest relative difference of literal vectors and the recurrence on G": worst,
            "largest difference with a zero gradient, skipped": apart(J[0], 0)[0],
            "largest difference from exact fractions, one order of three tasks": fractions.max(),
        },
        f"{len(errors)} Jacobians of 5 tasks with given random orders; the current copy is tested "
        "against the original gradients",
    )


def after_projection(settings: Settings) -> Claim:
    J = jacobians(settings, 2, 6)
    weights = vmap(lambda J: 2 * mf.weights(mf.pcgrad(), J @ J.mT))
    gramian = J @ J.mT
    cos = vmap(mf.diagnostics.cosines)(gramian)[:, 0, 1]
    rates = torch.einsum("dst,dt->ds", gramian, weights(J))
    square = gramian.diagonal(dim1=-2, dim2=-1)
    two = ((rates - (1 - cos**2)[:, None] * square).abs() / square)[cos < 0]
    same = (weights(J.abs()) - 1).abs()
    # Unit gradients at 120°: task 1's copy, projected off task 2 and then off task 3.
    own, left = [Fraction(1), Fraction(0), Fraction(0)], []
    for j in (1, 2):
        own[j] -= min(rational.times(rational.FAN, own)[j], Fraction(0)) / rational.FAN[j][j]
        left.append(rational.times(rational.FAN, own)[j])
    after = rational.times(rational.FAN, own)[1]
    return Claim(
        "PC-16",
        {
            "T = 2: largest relative difference of g_i·d from (1 - cos²φ)‖g_i‖²": two.max(),
            "no conflict: largest difference of the coefficients from 1": same.max(),
            "120°: task 1 right after its projection on task 2, p·g_2": left[0],
            "120°: task 1 right after its projection on task 3, p·g_3": left[1],
            "120°: the same after the next projection, on task 3, p·g_2": after,
        },
        f"{len(J)} random pairs; three unit gradients at 120° in exact fractions. With three a "
        "later projection can restore an earlier conflict",
    )
