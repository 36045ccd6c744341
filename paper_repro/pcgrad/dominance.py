"""Does the largest gradient dominate the sum?"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import mean_interval, named
from .common import normal


@decided(
    "with neither optimizer the small-gradient task's progress falls with every step of ρ, and "
    "with one it grows from ρ = 1 to 1000"
)
def dominance(measured: Measured) -> Verdict:
    falls, grows = [], []
    for name in ("SGD", "Adam"):
        steps = named_so(measured, f"{name}, ρ = * to *: change of task 1's fall, high")
        falls.append(all(measured[step] < 0 for step in steps))
        grows.append(measured[f"{name}: change of task 1's fall from ρ = 1 to 1000, low"] > 0)
    return verdict_of(falls, grows)


CLAIMS = {
    "PC-02": Row(
        "The summed gradient can be dominated by the largest one, which is then "
        "over-served while the others are under-served.",
        dominance,
    )
}
claim = Claims(CLAIMS)

RATIOS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def progress(settings: Settings) -> dict[str, np.ndarray]:
    """Fall of each task's loss over its initial gap, `[ratio, draw, task]`. The second of two
    quadratic tasks is multiplied by ρ.
    """
    draws, dim, steps = settings.count(200), 10, settings.count(50)

    def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        factors, centres, scale = batch
        return (
            scale
            * 0.5
            * torch.einsum("tij,tj->ti", factors, params["x"] - centres).square().sum(-1)
        )

    def one(key: Tensor, ratio: Tensor, adam: bool) -> tuple[Tensor, Tensor]:
        factors, centres = normal(key, 0, (2, dim, dim)) / dim**0.5, normal(key, 1, (2, dim))
        scale = torch.stack([torch.ones_like(ratio), ratio])
        hessian = (scale[:, None, None] * (factors.mT @ factors)).sum(0)
        optimizer = mf.adam(0.05) if adam else mf.sgd(1 / torch.linalg.eigvalsh(hessian)[-1])
        step = mf.descend(losses, mf.mean(), mf.jacobian(), optimizer, reduction="sum")
        batch, params = (factors, centres, scale), {"x": 2 * normal(key, 2, (dim,))}
        state = step.init(params, batch)
        first = losses(params, batch)
        for _ in range(steps):
            state, _ = step.update(state, batch)
        square = mf.task_gramian(losses, params, batch)[1].diagonal()
        return 1 - losses(state.params, batch) / first, square / square.sum()

    grid = {}
    for name, adam in (("SGD", False), ("Adam", True)):
        both = vmap(vmap(lambda key, ratio, adam=adam: one(key, ratio, adam), (0, None)), (None, 0))
        fall, share = both(torch.arange(draws), torch.tensor(RATIOS, dtype=torch.float64))
        grid[name] = fall.numpy()
        grid["share"] = share.numpy()
    return grid


def run(settings: Settings) -> Findings:
    yield dominated(progress(settings), settings)


def dominated(grid: dict[str, np.ndarray], settings: Settings) -> Claim:
    small = {name: grid[name][:, :, 0] for name in ("SGD", "Adam")}
    falls = {
        name: [mean_interval(values[i + 1] - values[i]) for i in range(len(RATIOS) - 1)]
        for name, values in small.items()
    }
    over = {name: mean_interval(values[-1] - values[0]) for name, values in small.items()}
    numbers: dict[str, float] = {
        f"ρ = {ratio:g}: share of task 2": float(grid["share"][i, :, 1].mean())
        for i, ratio in enumerate(RATIOS)
    }
    for name, values in small.items():
        numbers |= {
            f"{name}, ρ = {ratio:g}: fall of task 1": float(values[i].mean())
            for i, ratio in enumerate(RATIOS)
        }
        numbers |= named(f"{name}: change of task 1's fall from ρ = 1 to 1000", over[name])
        for (a, b), change in zip(pairwise(RATIOS), falls[name], strict=True):
            numbers |= named(f"{name}, ρ = {a:g} to {b:g}: change of task 1's fall", change)
    return claim(
        "PC-02",
        numbers,
        f"{settings.count(200)} random pairs; SGD by 1/ℒ of the sum, Adam by .05, "
        f"{settings.count(50)} steps; task 1 has the small gradient; paired 95 % t intervals",
    )
