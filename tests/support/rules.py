"""Rules along a trajectory of geometries, with and without absent tasks."""

import numpy as np
import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.types import Geometry
from tests.support.losses import geometry as geometry_of

F64 = torch.float64
SPECTRAL = {
    "imtl_g": mf.imtl_g,
    "config": mf.config,
    "aligned_mtl": mf.aligned_mtl,
    "aligned_mtl-median": lambda: mf.aligned_mtl(scale="median"),
    "aligned_mtl-rmse": lambda: mf.aligned_mtl(scale="rmse"),
}


def losses_of(count, step=0):
    """Positive, unequal, falling at unequal rates."""
    task = torch.arange(count, dtype=F64)
    return (1 + task) * (0.9 - 0.1 * task / count) ** step


def geometry(gramian, losses):
    return geometry_of(losses)._replace(gramian=gramian)


def trajectory(
    rule, gramian, losses=None, steps=3, key: int | torch.Tensor = 0, state=None, start=0
):
    """Weights [step, task] and the last state, on a Gramian whose tasks change lengths."""
    count = len(gramian)
    if state is None:
        initial = losses_of(count).to(gramian) if losses is None else losses
        state = rule.init(initial, mf.random.key(key))
    kept = []
    for step in range(start, start + steps):
        factor = 1 + 0.1 * step * torch.arange(count, device=gramian.device).to(gramian)
        now = losses_of(count, step).to(gramian) if losses is None else losses
        weights, state = rule.update(geometry(gramian * factor[:, None] * factor, now), state)
        kept.append(weights)
    return torch.stack(kept), state


def with_absent(rule, J, losses, present, steps=3):
    """Weights [step, task] where tasks are absent: zero rows, no loss, no say in the mean."""
    state, kept = rule.init(losses, mf.random.key(0)), []
    share = present.to(F64) / present.sum().clamp_min(1)
    rows = J * present[:, None]
    for step in range(steps):
        weights, state = rule.update(
            Geometry(losses * present / (1 + step), rows @ rows.mT, share, present, {}), state
        )
        kept.append(weights)
    return torch.stack(kept)


STATIONARY = (
    "antiparallel", "pareto_stationary", "near_stationary", "integer_ties", "rank_deficient",
    "zero_row",
)  # fmt: skip
"""Families in which 0 may be in the hull of the gradients, or next to it."""


INDEPENDENT = ("gaussian", "spread", "hull", "orthogonal")


def lengths(G: Tensor) -> Tensor:
    return G.diagonal().clamp_min(0).sqrt()


def updated(
    rule: mf.Rule, G: Tensor, present: Tensor | None = None, preference: Tensor | None = None
) -> Tensor:
    """Weights by way of a geometry: for absent tasks, and without the checks of `mf.weights`."""
    count = len(G)
    present = torch.ones(count, dtype=torch.bool) if present is None else present
    preference = present.to(G) / present.sum().clamp_min(1) if preference is None else preference
    geometry = Geometry(torch.ones_like(G[0]), G, preference, present, {})
    return rule.update(geometry, rule.init(geometry.losses, mf.random.key(0)))[0]


def preferences(count: int, seed: int = 0) -> Tensor:
    p = torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 2.0, count))
    return p / p.sum()


def random_orders(count, seed):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.permutation(count) for _ in range(count)]))
