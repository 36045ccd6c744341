"""What are the targets Ḡ r_i^α, and can the norms reach them?"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, ratio_interval
from .common import ALPHA
from .lanes import PAIRED, STRONG, STRONG_ALPHA, Size, Trace, size_of
from .rivals import ten_tasks

CLAIMS = {
    "GN-10": Exact(
        "A task's target length is Ḡ r_i^α.",
        exact(
            ("largest difference of the next weights from the formula's", "<", 1e-9),
            ("the same, normalised targets", "<", 1e-9),
        ),
    )
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    size, frozen = size_of(settings), still_targets(settings)
    yield targets_of_the_rule(*ten_tasks(settings)[1:], frozen, size)


class Update(NamedTuple):
    """One update of the library's rule with SGD on the weights, against the formula."""

    gap: Tensor  # [draw, task], of the next weights
    total: Tensor  # [draw], Σ targets/(T·Ḡ)
    left: Tensor  # [draw], L_grad/Ḡ at the weights in proportion r_i^α/‖∇_W L_i‖
    bound: Tensor  # [draw], |T - Σ r_i^α|
    alpha: Tensor  # [draw]


def update(key: Tensor, *, normalised: bool) -> Update:
    """With random lengths, losses, weights and α."""
    tasks, lr = 5, 1e-5
    u = mf.random.uniform(mf.random.fold_in(key, 7), (4, tasks), torch.float64)
    length, now, begin = 10 ** (3 * u[:3] - 1.5)
    w = 0.05 + u[3]
    w = tasks * w / w.sum()
    alpha = torch.tensor([0.0, ALPHA, 0.5, 1.0, 2.0], dtype=torch.float64)[key % 5]
    rule = mf.gradnorm(alpha, lr, optimizer=mf.sgd, floor=1e-6, normalize_targets=normalised)
    state = rule.init(begin, key)._replace(weights=w)
    one = torch.ones(tasks, dtype=torch.float64)
    geometry = mf.types.Geometry(now, torch.diag(length**2), one / tasks, one > 0, {})
    following = rule.update(geometry, state)[1].weights
    G, rate = w * length, (now / begin) / (now / begin).mean()
    target = G.mean() * rate**alpha
    target = target / (rate**alpha).mean() if normalised else target
    slope = torch.where(target < G, length, -length)
    moved = (w - lr * slope).clamp_min(1e-6)
    balanced = rate**alpha / length
    # the G_i at the weights in proportion r_i^α/‖∇_W L_i‖
    balanced = tasks * balanced / balanced.sum() * length
    shape = rate**alpha / (rate**alpha).mean() if normalised else rate**alpha
    return Update(
        following - tasks * moved / moved.sum(),
        target.sum() / (tasks * G.mean()),
        (balanced / balanced.mean() - shape).abs().sum(),
        (tasks - (rate**alpha).sum()).abs(),
        alpha,
    )


def targets_of_the_rule(
    plain: Trace, normalised: Trace, frozen: dict[str, np.ndarray], size: Size
) -> Claim:
    draws = 4000
    keys = torch.arange(draws)
    gap, total, left, bound, alpha = vmap(lambda key: update(key, normalised=False))(keys)
    gap_n, total_n, left_n, *_ = vmap(lambda key: update(key, normalised=True))(keys)
    one, under, over = (alpha == 0) | (alpha == 1), (alpha > 0) & (alpha < 1), alpha > 1
    error, error_n = float(gap.abs().max()), float(gap_n.abs().max())
    numbers = {
        "largest difference of the next weights from the formula's": error,
        "the same, normalised targets": error_n,
        "largest deviation of Σ targets/(T·Ḡ) from 1, α of 0 or 1": float(
            (total[one] - 1).abs().max()
        ),
        "largest Σ targets/(T·Ḡ), 0 < α < 1": float(total[under].max()),
        "smallest Σ targets/(T·Ḡ), α = 2": float(total[over].min()),
        "largest deviation of Σ targets/(T·Ḡ) from 1, normalised targets": float(
            (total_n - 1).abs().max()
        ),
        "L_grad/Ḡ at w_i ∝ r_i^α/‖∇_W L_i‖, α neither 0 nor 1, median": float(
            left[under | over].median()
        ),
        "its lower bound |T - Σ r_i^α|, median": float(bound[under | over].median()),
        "the same with normalised targets, largest": float(left_n.max()),
        "draws": draws,
        "L_grad/Ḡ after descending on w alone, median": float(np.median(frozen["GradNorm"][-1])),
        "the same with normalised targets, median": float(np.median(frozen["normalised"][-1])),
        **named(
            f"training, T = 10, α = {STRONG_ALPHA:g}: final loss, normalised targets over plain",
            ratio_interval(*(t.judged(STRONG) for t in (normalised, plain))),
        ),
    }
    return claim(
        "GN-10",
        numbers,
        "random lengths, losses, weights, five tasks, α of 0, .12, .5, 1, 2, float64. The targets "
        "add up to T·Ḡ only for α of 0 or 1: otherwise L_grad has no zero, unless the targets are "
        f"normalised. Training: {size}; {PAIRED}",
    )


def still_targets(settings: Settings) -> dict[str, np.ndarray]:
    """L_grad/Ḡ `[step, draw]` while the rule moves its weights alone. Lengths and losses stay as
    they are; α = .5, five tasks.
    """
    draws, tasks, lr = 32, 5, 0.02
    u = mf.random.uniform(mf.random.key(3), (2, draws, tasks), torch.float64)
    lengths, rates = 10 ** (2 * u - 1)
    target = (rates / rates.mean(1, keepdim=True)) ** STRONG_ALPHA
    one = torch.ones(tasks, dtype=torch.float64)
    found = {}
    for name in ("GradNorm", "normalised"):
        rule = mf.gradnorm(
            STRONG_ALPHA,
            lr,
            optimizer=mf.optim.multiplicative,
            normalize_targets=name == "normalised",
        )
        state = vmap(lambda key, rule=rule: rule.init(one, key))(torch.arange(draws))
        move = vmap(
            lambda n, now, s, rule=rule: rule.update(
                mf.types.Geometry(now, torch.diag(n**2), one / tasks, one > 0, {}), s
            )[1]
        )
        aim = target / target.mean(1, keepdim=True) if name == "normalised" else target
        left = []
        for _ in range(settings.count(300)):
            G = state.weights * lengths
            left.append((G / G.mean(1, keepdim=True) - aim).abs().sum(1))
            state = move(lengths, rates, state)
        found[name] = torch.stack(left).numpy()
    return found
