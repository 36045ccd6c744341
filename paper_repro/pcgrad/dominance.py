"""Does the largest gradient dominate the sum?"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Measured, Row, decided, named_so, verdict_of
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

RATIOS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
DIM = 10
Batch = tuple[Tensor, Tensor, Tensor]


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    factors, centres, scale = batch
    apart = torch.einsum("tij,tj->ti", factors, params["x"] - centres)
    return scale * 0.5 * apart.square().sum(-1)


def small_task_s_fall(key: Tensor, ratio: Tensor, adam: bool, steps: int) -> Tensor:
    """Of two quadratic tasks of which the second is multiplied by `ratio`: the fall of the first
    one's loss over its initial gap.
    """
    factors, centres = normal(key, 0, (2, DIM, DIM)) / DIM**0.5, normal(key, 1, (2, DIM))
    scale = torch.stack([torch.ones_like(ratio), ratio])
    hessian = (scale[:, None, None] * (factors.mT @ factors)).sum(0)
    optimizer = mf.adam(0.05) if adam else mf.sgd(1 / torch.linalg.eigvalsh(hessian)[-1])
    step = mf.descend(losses, mf.mean(), mf.jacobian(), optimizer, reduction="sum")
    batch, params = (factors, centres, scale), {"x": 2 * normal(key, 2, (DIM,))}
    state = step.init(params, batch)
    for _ in range(steps):
        state, _ = step.update(state, batch)
    return 1 - losses(state.params, batch)[0] / losses(params, batch)[0]


def run(settings: Settings) -> Findings:
    draws, steps = settings.count(200), settings.count(50)
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    numbers: dict[str, float] = {}
    for name, adam in (("SGD", False), ("Adam", True)):
        of_ratio = vmap(small_task_s_fall, (0, None, None, None))
        falls = vmap(of_ratio, (None, 0, None, None))(torch.arange(draws), ratios, adam, steps)
        over = mean_interval(falls[-1] - falls[0])
        numbers |= named(f"{name}: change of task 1's fall from ρ = 1 to 1000", over)
        for (a, before), (b, after) in pairwise(zip(RATIOS, falls, strict=True)):
            change = mean_interval(after - before)
            numbers |= named(f"{name}, ρ = {a:g} to {b:g}: change of task 1's fall", change)
    yield Claim(
        "PC-02",
        numbers,
        f"{draws} random pairs; SGD by 1/ℒ of the sum, Adam by .05, {steps} steps; task 1 has the "
        "small gradient; paired 95 % t intervals",
    )
