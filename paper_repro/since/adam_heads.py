"""Does Adam's update of a task's own parameters change when its loss is scaled?"""

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import CHANGES, EPSILON
from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
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

SCALES = (1e-6, 1e-3, 1e3, 1e6)


def change(
    optimizer: mf.Optimizer,
    steps: int,
    seeds: int,
    leaf: str = "heads",
    scales: tuple[float, ...] = SCALES,
) -> float:
    """The largest distance of a parameter's path from the path without a scale of task 1's loss,
    over how far that has come. The parameter is `trunk.weight`, which both tasks train, or task 1's
    own part of `heads`, while the trunk stays.
    """

    def path(scale: Tensor, seed: Tensor) -> Tensor:
        key = mf.random.key(seed)
        x, params = normal(key, 0, 32, 8), network(key, 8, 16, 2)
        data, factors = Data(x, (x @ normal(key, 1, 8, 2)).tanh()), [scale, torch.ones_like(scale)]
        step = mf.descend(
            lambda p, d: torch.stack(factors) * losses(params | p, d),
            mf.mean(),
            mf.jacobian(),
            optimizer,
        )
        state, found = step.init({leaf: params[leaf]}, data), []
        for _ in range(steps):
            state, _ = step.update(state, data)
            moved = state.params[leaf] - params[leaf]
            found.append(moved[:, 0] if leaf == "heads" else moved.flatten())
        return torch.stack(found)

    every = torch.tensor([1.0, *scales], dtype=torch.float64)
    paths = vmap(vmap(path, (None, 0)), (0, None))(every, torch.arange(seeds))
    return float(((paths[1:] - paths[0]).norm(dim=-1) / paths[0].norm(dim=-1)).max())


def run(settings: Settings) -> Findings:
    steps, seeds, plain = settings.count(30), settings.seeds, mf.adam(1e-2, eps=0.0)
    over_all = "largest relative change of its path over all scales"
    yield Claim(
        "SI-05",
        {
            f"head, ε = 0: {over_all}": change(plain, steps, seeds),
            f"head, ε = 1e-8: {over_all}": change(mf.adam(1e-2), steps, seeds),
            "head, SGD: relative change of its path by a scale of 1000": change(
                mf.sgd(1e-4), steps, seeds, scales=(1e3,)
            ),
            "trunk, ε = 0: relative change of its first update by a scale of 1000": change(
                plain, 1, seeds, "trunk.weight", (1e3,)
            ),
        },
        f"two tasks on a network of 8-16-2, {seeds} seeds, {steps} steps on all data, task 1's "
        f"loss times {', '.join(f'{x:g}' for x in SCALES)}. The trunk stays, as one that learns "
        "takes the head along",
    )
