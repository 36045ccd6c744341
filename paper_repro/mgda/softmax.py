"""Gradient descent on w = softmax(a), as a solver and over a grid of steps and scales."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import mtlfunc as mf

from ..report.intervals import Interval, share_interval
from .common import relative_gap, scaled

SMALL = 1e-6  # the relative gap that counts as reached


def softmax_descent(steps: int, rate: float | Tensor) -> mf.types.Solver:
    """w = softmax(a) and gradient descent on a, `steps` times from a = 0. ∇_a ½wᵀGw = w ∘ (Gw -
    wᵀGw). Not scale-free: `rate` multiplies G.
    """

    def solve(problem: mf.solvers.MinNorm) -> mf.Solution:
        a = torch.zeros_like(problem.gramian[0])
        for _ in range(steps):
            w = torch.softmax(a, -1)
            rates = problem.gramian @ w
            a = a - rate * w * (rates - w @ rates)
        w = torch.softmax(a, -1)
        return problem.solution(w, w, torch.full((), steps))

    return solve


class Grid(NamedTuple):
    """The softmax form's relative gap at every (scale of G, step, draw)."""

    scales: Tensor
    rates: Tensor
    gaps: Tensor  # [scale, rate, draw]
    steps: int

    def shares(self) -> Tensor:
        """Of draws whose gap counts as reached, `[scale, rate]`."""
        return (self.gaps < SMALL).double().mean(-1)

    def tuned(self) -> Interval:
        """The share at scale 1 and the best step there."""
        there = self.gaps[len(self.scales) // 2] < SMALL
        return share_interval(int(there.sum(-1).max()), there.shape[-1])

    def single(self) -> Interval:
        """The share that gets there at every scale with one step, the best for that."""
        served = (self.gaps < SMALL).all(0)
        return share_interval(int(served.sum(-1).max()), served.shape[-1])

    def span(self) -> float:
        """The largest over the smallest step within 90 % of the best share; 0 for none."""
        shares = self.shares()[len(self.scales) // 2]
        if self.tuned().mean <= 0:
            return 0.0
        working = self.rates[shares >= 0.9 * shares.max()]
        return float(working.max() / working.min())


def softmax_grid(gramians: Tensor, steps: int) -> Grid:
    scales = torch.logspace(-4, 4, 3, dtype=torch.float64)
    rates = torch.logspace(-4, 8, 25, dtype=torch.float64)
    g = scaled(gramians)
    # only scale times step enters: one matrix a draw serves all of both
    moves = (scales[:, None] * rates).reshape(-1, 1)
    a = torch.zeros(len(g), len(moves), g.shape[-1], dtype=torch.float64)
    for _ in tqdm(range(steps), desc="softmax form", leave=False):
        w = torch.softmax(a, -1)
        speed = w @ g
        a = a - moves * w * (speed - (w * speed).sum(-1, keepdim=True))
    gaps = relative_gap(g.repeat_interleave(len(moves), 0), torch.softmax(a, -1).flatten(0, 1))
    return Grid(scales, rates, gaps.reshape(len(g), len(scales), -1).movedim(0, -1), steps)


def best_rate(grids: list[Grid]) -> float:
    """The step with the smallest median gaps at scale 1, averaged over the grids in logarithms."""
    middle = len(grids[0].scales) // 2
    logs = [grid.gaps[middle].median(-1).values.clamp_min(1e-17).log() for grid in grids]
    return float(grids[0].rates[torch.stack(logs).sum(0).argmin()])
