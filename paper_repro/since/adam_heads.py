"""Does Adam's update of a task's own parameters change when its loss is scaled?"""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import CHANGES, EPSILON
from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Findings, Settings
from .common import Data, losses, network, normal

CLAIMS = {
    "SI-05": Exact(
        "Elich et al. 2023: Adam has a partial invariance to the scales of losses: the update of a "
        "task's own parameters does not change.",
        exact(
            ("head, ε = 0: largest relative change of its path over all scales", "<", 1e-9),
            ("trunk, ε = 0: relative change of its first update by a scale of 1000", ">", CHANGES),
            ("head, SGD: relative change of its path by a scale of 1000", ">", 1),
            only_when=(
                "head, ε = 1e-8: largest relative change of its path over all scales",
                ">",
                EPSILON,
            ),
        ),
        when="the gradients are large against Adam's ε, and of a task's own parameters",
    )
}
claim = Claims(CLAIMS)

SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)


def drawn(seed: Tensor) -> tuple[mf.types.Params, Data]:
    key = mf.random.key(seed)
    x = normal(key, 0, 32, 8)
    return network(key, 8, 16, 2), Data(x, (x @ normal(key, 1, 8, 2)).tanh())


def path(optimizer: mf.Optimizer, steps: int, seeds: int, *, trunk: bool) -> Tensor:
    """How far a parameter has moved after every step, `[scale, seed, step, entry]`. The scale is
    that of task 1's loss. With `trunk` the parameter is the trunk, which both tasks train; else it
    is task 1's head, and the trunk is fixed.
    """

    def one(scale: Tensor, seed: Tensor) -> Tensor:
        params, data = drawn(seed)
        scales = torch.stack([scale, torch.ones_like(scale)])
        step = mf.descend(
            lambda p, d: scales * losses(params | p, d), mf.mean(), mf.jacobian(), optimizer
        )
        leaf = "trunk.weight" if trunk else "heads"
        state, found = step.init({leaf: params[leaf]}, data), []
        for _ in range(steps):
            state, _ = step.update(state, data)
            moved = state.params[leaf] - params[leaf]
            found.append(moved.flatten() if trunk else moved[:, 0])
        return torch.stack(found)

    scales = torch.tensor(SCALES, dtype=torch.float64)
    return vmap(vmap(one, (None, 0)), (0, None))(scales, torch.arange(seeds))


def change(paths: Tensor, scales: tuple[float, ...] = SCALES) -> float:
    """The largest distance from the path at scale 1, over that path's norm."""
    one = paths[SCALES.index(1.0)]
    rows = [paths[SCALES.index(scale)] for scale in scales]
    return largest(float(((row - one).norm(dim=-1) / one.norm(dim=-1)).max()) for row in rows)


def run(settings: Settings) -> Findings:
    steps, seeds, lr = settings.count(30), settings.seeds, 1e-2
    plain, usual = mf.adam(lr, eps=0.0), mf.adam(lr)
    yield claim(
        "SI-05",
        {
            "head, ε = 0: largest relative change of its path over all scales": change(
                path(plain, steps, seeds, trunk=False)
            ),
            "head, ε = 1e-8: largest relative change of its path over all scales": change(
                path(usual, steps, seeds, trunk=False)
            ),
            "head, SGD: relative change of its path by a scale of 1000": change(
                path(mf.sgd(1e-4), steps, seeds, trunk=False), (1e3,)
            ),
            "trunk, ε = 0: relative change of its first update by a scale of 1000": change(
                path(plain, 1, seeds, trunk=True), (1e3,)
            ),
        },
        f"two tasks on a network of 8-16-2, {seeds} seeds, {steps} steps on all data, task 1's "
        f"loss times {', '.join(f'{x:g}' for x in SCALES)}. The trunk stays: one that learns moves "
        "otherwise, and takes the head along. Partial: the trunk's own update changes; and only "
        "while the gradients are large against Adam's ε, 1e-8 by default",
    )
