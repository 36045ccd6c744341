"""What tells the gains of a group before it is trained: `[seed, group, task]`, larger is better."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.types import Params

from .affinity import affinity
from .data import SIZES, TASKS, Data, Part
from .truth import (
    BATCH,
    EVERY,
    GROUPS,
    Tick,
    Trained,
    every_group,
    joint,
    logits,
    losses,
    masks,
    sample_losses,
)

TRUNK = "trunk.*"
LOOKAHEAD = 0.1  # the plain gradient step of TAG, where losses fall by a few per cent
PROJECTED = 40  # dimensions to which Grad-TAG projects gradients
RIDGES = (1e-3, 1e-2)
ITERATIONS = 5  # of Newton
Affinity = Callable[[Params, Part], Float[Tensor, "task task"]]
"""From parameters and a batch to Z `[task i, task j]`: what training i does for j."""


def tag(params: Params, batch: Part) -> Tensor:
    """First-order affinity (Fifty et al. 2021): the share of loss j that a step on i removes."""
    return affinity(losses, params, batch, lr=LOOKAHEAD, shared=TRUNK)


def etap(params: Params, batch: Part) -> Tensor:
    """The linear part of ETAP (Ayman et al. 2026), ⟨g_i, g_j⟩ / L_j: TAG's for a short step."""
    values, gramian = mf.task_gramian(losses, params, batch, shared=TRUNK)
    return gramian / values


def cosine(params: Params, batch: Part) -> Tensor:
    _, gramian = mf.task_gramian(losses, params, batch, shared=TRUNK)
    lengths = gramian.diagonal().sqrt()
    return gramian / (lengths[:, None] * lengths)


def products(params: Params, batch: Part) -> Tensor:
    """⟨E g_i, E g_j⟩ without the noise of the batch, by `mf.diagnostics.conflict`."""
    _, gramian = mf.sample_gramian(sample_losses, params, batch, shared=TRUNK)
    return mf.diagnostics.conflict(gramian, TASKS).inner


def as_cosines(inner: Tensor) -> Tensor:
    """0 where a squared length, whose estimate is unbiased, is not positive: nothing is known."""
    squares = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    return torch.nan_to_num(inner / (squares[..., None] * squares[..., None, :]).sqrt(), 0, 0, 0)


def of_groups(affinity: Float[Tensor, "*seed task task"]) -> Float[Tensor, "*seed group task"]:
    """The mean over the others of a group of what each does for a task, as TAG and ETAP have it."""
    members = masks().to(affinity)
    own = affinity.diagonal(dim1=-2, dim2=-1)[..., None, :]
    others = members @ affinity - own
    return others / (members.sum(1, keepdim=True) - 1).clamp_min(1)


def pairs(gains: Float[Tensor, "seed group task"]) -> Float[Tensor, "seed group task"]:
    """Gains in the pairs, which are trained, averaged over the others of a group."""
    affinity = gains.new_zeros(len(gains), TASKS, TASKS)
    for number, group in enumerate(GROUPS):
        if len(group) == 2:
            i, j = group
            affinity[:, i, j], affinity[:, j, i] = gains[:, number, j], gains[:, number, i]
    return of_groups(affinity)


def grad_tag(params: Params, data: Data, key: Tensor) -> Float[Tensor, "group task"]:
    """Grad-TAG (Li et al. 2024): gradients of the joint network's logits, projected to a few
    dimensions, are the features of a logistic regression on the tasks of a group; the network moved
    by what it finds is evaluated. Here on validation data, with the ridge that is best there.

    Args:
        params: of the network of all tasks, at the end.
        data: the tasks.
        key: of the projection.
    """
    flat = torch.cat([leaf.flatten() for leaf in params.values()])
    project = mf.random.normal(key, (len(flat), PROJECTED)) / math.sqrt(PROJECTED)

    def moved(by: Tensor) -> Params:
        parts = (project @ by).split([leaf.numel() for leaf in params.values()])
        return {
            name: leaf + part.view(leaf.shape)
            for (name, leaf), part in zip(params.items(), parts, strict=True)
        }

    def outputs(by: Tensor) -> Tensor:
        return logits(moved(by), data.train.x)

    none = flat.new_zeros(PROJECTED)
    # [sample · task, dimension]
    features, answers = torch.func.jacfwd(outputs)(none).flatten(0, 1), data.train.y.flatten()
    base = outputs(none).flatten()

    def fitted(group: Tensor, ridge: Tensor) -> Tensor:
        """Newton's method on the group's mean loss, linearised, with a ridge."""
        by, share = none, (group / group.sum() / SIZES[0]).repeat(SIZES[0])
        for _ in range(ITERATIONS):
            said = torch.sigmoid(base + features @ by)
            slope = features.mT @ ((said - answers) * share) + ridge * by
            bend = (features.mT * (said * (1 - said) * share)) @ features
            by = by - torch.linalg.solve(bend + ridge * torch.eye(PROJECTED), slope)
        return losses(moved(by), data.validation)

    groups = masks().to(flat)
    tried = vmap(vmap(fitted, (0, None)), (None, 0))(groups, torch.tensor(RIDGES))
    mean = (tried * groups).sum(-1)  # [ridge, group]
    found = torch.take_along_dim(tried, mean.argmin(0)[None, :, None], 0)[0]
    return (found[:TASKS].diagonal() / found).log()


PAIRWISE: dict[str, tuple[Affinity, Callable[[Tensor], Tensor]]] = {
    "TAG": (tag, lambda z: z),
    "ETAP, linear part": (etap, lambda z: z),
    "cosines": (cosine, lambda z: z),
    "conflict": (products, as_cosines),
}
"""Measured along the joint run and averaged; then what is done with the average."""
NAMES = (*PAIRWISE, "Grad-TAG", "pairs", "every group")


def forecasts(
    seeds: Sequence[int],
    data: Data,
    trained: Trained,
    gains: Float[Tensor, "seed group task"],
    pairwise: Sequence[str] = tuple(PAIRWISE),
) -> dict[str, Float[Tensor, "seed group task"]]:
    """By every forecaster, or of the pairwise ones by these, from each seed alone. "every group" is
    the gains themselves.
    """
    found = {}
    for name in pairwise:
        affinity, finish = PAIRWISE[name]
        points = zip(trained.params, trained.batches, strict=True)
        seen = torch.stack([vmap(affinity)(params, batch) for params, batch in points])
        found[name] = of_groups(finish(seen.mean(0)))
    keys = torch.stack([mf.random.fold_in(torch.tensor(seed), 5) for seed in seeds])
    found["Grad-TAG"] = vmap(grad_tag)(trained.last, data, keys)
    return found | {"pairs": pairs(gains), "every group": gains}


def measured(
    seeds: Sequence[int],
    data: Data,
    steps: int,
    tick: Tick,
    pairwise: Sequence[str] = tuple(PAIRWISE),
) -> dict[str, Float[Tensor, "seed group task"]]:
    """Test losses and gains of all groups, and what `forecasts` says of them."""
    found = every_group(seeds, data, steps, tick)
    alone = found[:, :TASKS].diagonal(dim1=1, dim2=2)
    gains = (alone[:, None] / found).log()
    said = forecasts(seeds, data, joint(seeds, data, steps), gains, pairwise)
    return {"losses": found, "gains": gains} | said


def costs(steps: int) -> dict[str, float]:
    """In trainings of one network, whose unit is a gradient of a batch; a forward pass is a third.

    Without the regressions of Grad-TAG, whose dimensions are few; with its forward passes on
    validation data, one for each group and ridge.
    """
    looks = math.ceil(steps / EVERY) / steps
    gradients = TASKS * looks
    passes = len(GROUPS) * len(RIDGES) * SIZES[1] / 3
    return {
        "TAG": 1 + gradients + TASKS * looks / 3,
        "ETAP, linear part": 1 + gradients,
        "cosines": 1 + gradients,
        "conflict": 1 + gradients,
        "Grad-TAG": 1 + (TASKS * SIZES[0] + passes) / BATCH / steps,
        "pairs": math.comb(TASKS, 2) + TASKS,
        "every group": len(GROUPS),
    }
