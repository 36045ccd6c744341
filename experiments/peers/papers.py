"""Papers' algorithms as they are printed, in fractions, closed forms and cvxpy, all in float64.

Each takes J `[task, param]`, losses `[step, task]` and a peer's answer, to which the nearest is
taken where a paper leaves a choice. None: the paper divides by 0. Orders are those of the tasks.
"""

import torch
from torch import Tensor

from mtlfunc.solvers import cagrad as ball
from mtlfunc.solvers import cvx, dual_cone
from mtlfunc.testing.compare import exact_weights

C, FAIR, BETA, ALPHA, SPEED = 0.4, 2.0, 0.5, 1.5, 0.01


def mgda(J: Tensor, *_: Tensor) -> Tensor:
    return exact_weights(J @ J.mT) @ J


def cagrad(J: Tensor, _: Tensor, near: Tensor) -> Tensor:
    g0 = J.mean(0)
    if mgda(J).norm() <= 1e-9 * J.norm() and (J @ g0).amin() >= 0:  # the ball's best rate is 0
        return g0 + (near - g0) * (C * g0.norm() / (near - g0).norm().clamp_min(1e-99)).clamp_max(1)
    return cvx()(ball(J @ J.mT, C)).weights @ J


def upgrad(J: Tensor, *_: Tensor) -> Tensor:
    each = [cvx()(dual_cone(J @ J.mT, row)).weights for row in torch.eye(len(J)).to(J)]
    return torch.stack(each).mean(0) @ J


def dualproj(J: Tensor, *_: Tensor) -> Tensor:
    return cvx()(dual_cone(J @ J.mT, torch.ones(len(J)).to(J) / len(J))).weights @ J


def imtl_g(J: Tensor, *_: Tensor) -> Tensor | None:
    units = J / J.norm(dim=1, keepdim=True)
    D, U = J[0] - J[1:], units[0] - units[1:]
    if not U.isfinite().all() or torch.linalg.matrix_rank(D @ U.mT, atol=1e-12 * D.norm()) < len(D):
        return None
    return J[0] - J[0] @ U.mT @ torch.linalg.inv(D @ U.mT) @ D


def aligned_mtl(J: Tensor, *_: Tensor) -> Tensor:
    U, s, V = torch.linalg.svd(J, full_matrices=False)
    kept = s > 1e-12 * s[0]
    return s[kept].amin() * U[:, kept].mean(0) @ V[kept]


def fairgrad(J: Tensor, losses: Tensor, near: Tensor, alpha: float = FAIR) -> Tensor | None:
    """(JJᵀ)w = w^(-1/α) by Newton's method; none where a sum of gradients is 0."""
    if mgda(J).norm() <= 1e-9 * J.norm():
        return None
    w = J.norm(dim=1) ** (-2 * alpha / (1 + alpha))
    for _ in range(400):
        power = w ** (1 - 1 / alpha)
        slope = (J @ J.mT) * w * w[:, None] + (power / alpha).diag()
        step = torch.linalg.solve(slope, w * (J @ (w @ J)) - power)
        w = w * (1 - step / (1 + 2 * step.abs().amax()))
    return w @ J


def nash_mtl(J: Tensor, losses: Tensor, near: Tensor) -> Tensor | None:
    """As long as the official code's limit, 1."""
    d = fairgrad(J, losses, near, 1.0)
    return d if d is None else d / d.norm()


def config(J: Tensor, *_: Tensor) -> Tensor | None:
    if not J.norm(dim=1).all():
        return None
    d = torch.linalg.pinv(J / J.norm(dim=1, keepdim=True)).sum(1)
    return d * (J @ d).sum() / d.square().sum().clamp_min(1e-9)


def pcgrad(J: Tensor, *_: Tensor) -> Tensor:
    rows = J.clone()
    for i, row in enumerate(rows):
        for j, other in enumerate(J):
            if i != j and row @ other < 0:
                row.sub_(row @ other / (other @ other) * other)
    return rows.sum(0)


def gradvac(J: Tensor, losses: Tensor, _: Tensor) -> Tensor | None:
    """Targets start at 0."""
    targets, rows = torch.zeros(len(J), len(J)).to(J), J
    for _ in losses:
        rows = J.clone()
        for i, row in enumerate(rows):
            for j, other in enumerate(J):
                cosine, target = torch.cosine_similarity(row, other, 0), targets[i, j].clone()
                if i != j and cosine < target:
                    sines = [(1 - x**2).clamp_min(0).sqrt() for x in (cosine, target)]
                    by = (target * sines[0] - cosine * sines[1]) / sines[1] / other.norm()
                    row.add_(row.norm() * by * other)
                targets[i, j] += (i != j) * BETA * (cosine - target)
    return rows.sum(0) if J.norm(dim=1).all() else None


def gradnorm(J: Tensor, losses: Tensor, _: Tensor) -> Tensor:
    """Steps of gradient descent, whose speed the paper leaves open: 1 % of a weight at most."""
    w, n = torch.ones(len(J)).double(), J.norm(dim=1)
    for ratio in losses[:-1] / losses[0]:
        above = w * n - (w * n).mean() * (ratio / ratio.mean()) ** ALPHA
        w = w - SPEED * n / n.amax() * above.sign()
        w = w * len(J) / w.sum()
    return w @ J


def ntk(J: Tensor, *_: Tensor) -> Tensor | None:
    """Of one residual a term, whose gradient is J's row."""
    traces = J.square().sum(1)
    return (traces.sum() / traces) @ J if traces.all() else None
