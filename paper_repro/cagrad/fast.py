"""CAGrad-Fast: what does a subset of the tasks lose, and what does it save?"""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import A_PASS_HIGH, A_PASS_LOW, PUBLISHED
from ..report.counting import operations
from ..report.decisions import Measured, Row, decided, exact
from ..report.findings import Claim, Findings, Settings, Verdict
from .common import gram, rows_of


@decided("neither ratio of operations is within 30 % of its published one", trained=False)
def faster(measured: Measured) -> Verdict:
    near = [
        abs(measured[f"{sizes}: operations, full over fast"] / claimed - 1) <= PUBLISHED.now
        for sizes, claimed in (("T = 10, n = 4", 2.0), ("T = 50, n = 8", 5.0))
    ]
    if all(near):
        return "holds"
    return "holds only when" if any(near) else "does not hold"


CLAIMS = {
    "CA-22": Row(
        "CAGrad-Fast: gradients for a sampled subset of tasks (plus the mean), and only "
        "those in the minimum.",
        exact(
            ("largest error of g₀, relative", "<", 1e-12),
            ("largest ‖d - g₀‖/(c‖g₀‖) - 1", "<", 1e-9),
        ),
    ),
    "CA-23": Row(
        "Cost falls from T backward passes plus the solve to the subset's size plus one.",
        exact(
            ("T = *: operations a further row costs over one backward pass", ">", A_PASS_LOW),
            ("T = *: operations a further row costs over one backward pass", "<", A_PASS_HIGH),
        ),
    ),
    "CA-34": Row(
        "CAGrad-Fast is about 2× faster on MT10 and 5× on MT50.", faster, instead="Meta-World"
    ),
    "CA-40": Row(
        "A step of CAGrad costs K backward passes and the optimisation, O(KN + T), which does not "
        "depend on the model.",
        exact(
            ("T = *: operations of a step over those of its T backward passes", ">", A_PASS_LOW),
            ("T = *: operations of a step over those of its T backward passes", "<", A_PASS_HIGH),
        ),
    ),
}

SUBSETS = {10: (2, 4, 6, 8, 10), 50: (2, 4, 8, 16, 32, 50)}
TIMES = {10: 4, 50: 8}
"""T -> the subset's size in the paper's Meta-World runs."""
C = 0.5


def run(settings: Settings) -> Findings:
    yield in_the_ball(settings.count(4), settings.count(200))
    further, whole, ratios = {}, {}, {}
    for tasks, sizes in SUBSETS.items():
        once = backward_operations(tasks)
        costs = {n: cost_of(tasks, n) for n in sizes}
        slope = np.polyfit(sizes, [*costs.values()], 1)[0]
        few, full, name = TIMES[tasks], costs[tasks], f"T = {tasks}: operations"
        further[f"{name} a further row costs over one backward pass"] = slope / once
        whole[f"{name} of a step over those of its T backward passes"] = full / (tasks * once)
        ratios[f"T = {tasks}, n = {few}: operations, full over fast"] = full / costs[few]
    setting = "shared trunk 64-256-256, 256 samples, counted operations of matrix products"
    yield Claim(
        "CA-23",
        further,
        f"{setting}, one backward pass a row (`chunk_size=1`), slope over 2 to T rows. "
        "In this form the mean of the rest is one of the rows",
    )
    yield Claim(
        "CA-40",
        whole,
        f"{setting}, the forward pass included. The formula leaves out T² products of gradients "
        "and the product with the weights, which do depend on the model",
    )
    yield Claim(
        "CA-34",
        ratios,
        "a supervised network in place of the reinforcement-learning agents, one backward pass a "
        "row",
    )


def in_the_ball(points: int, draws: int) -> Claim:
    error, outside = np.max(
        [
            sampled(rows, n, draws)
            for tasks, sizes in SUBSETS.items()
            for rows in rows_of(points, tasks, 100, 300 + tasks, common=0.3)
            for n in sizes
        ],
        axis=0,
    )
    return Claim(
        "CA-22",
        {"largest error of g₀, relative": error, "largest ‖d - g₀‖/(c‖g₀‖) - 1": outside},
        f"n - 1 drawn tasks and the mean of the rest, c = {C:g}, {points} normal Jacobians of 100 "
        f"parameters with a common part, {draws} subsets each",
    )


def sampled(rows: Tensor, n: int, draws: int) -> tuple[float, float]:
    """CAGrad-Fast at one Jacobian `[task, parameter]` over draws of the subset: the largest error
    of g₀, and how far d leaves the ball at most.
    """
    matrix, preference = vmap(
        lambda key: mf.subset(n)(mf.random.fold_in(mf.random.key(5), key), len(rows))
    )(torch.arange(draws))
    mixed, g0, solve = matrix @ rows, rows.mean(0), mf.solvers.auto()
    weights = vmap(lambda g, p: solve(mf.solvers.cagrad(g, C, preference=p)).weights)(
        gram(mixed), preference
    )
    d, mean = (torch.einsum("dr,drp->dp", w, mixed) for w in (weights, preference))
    return (
        float((mean - g0).norm(dim=-1).max() / g0.norm()),
        float(((d - g0).norm(dim=-1) / (C * g0.norm())).max() - 1),
    )


def network(tasks: int, hidden: int = 256, samples: int = 256) -> tuple[mf.types.Params, Tensor]:
    """A shared trunk, whose backward pass is most of the work, with a linear head a task."""
    key = mf.random.key(tasks)
    shapes = {"trunk.0": (64, hidden), "trunk.1": (hidden, hidden), "heads": (hidden, tasks)}
    params = {
        name: mf.random.normal(mf.random.fold_in(key, i), shape) * shape[0] ** -0.5
        for i, (name, shape) in enumerate(shapes.items())
    }
    return params, mf.random.normal(mf.random.fold_in(key, 9), (samples, 64))


def network_losses(params: mf.types.Params, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.relu(x @ params["trunk.0"]) @ params["trunk.1"])
    return (hidden @ params["heads"] - torch.sin(x[:, :1])).square().mean(0)


def cost_of(tasks: int, n: int) -> int:
    """Operations of matrix products of a CAGrad step on n rows, which are all for n = T."""
    params, x = network(tasks)
    probe = mf.jacobian("trunk.*", mix=None if n == tasks else mf.subset(n), chunk_size=1)
    step = mf.balance(network_losses, mf.cagrad(C), probe)
    state = step.init(params, x)
    return operations(lambda: step.update(params, x, state))


def backward_operations(tasks: int) -> int:
    """Of one backward pass of one task to the trunk."""
    params, x = network(tasks)
    trunk = [params[name].requires_grad_() for name in ("trunk.0", "trunk.1")]
    loss = network_losses(params, x)[0]
    return operations(lambda: torch.autograd.grad(loss, trunk))
