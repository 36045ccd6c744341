"""A main task of few labels among auxiliary ones: data, network, training.

Digits with few class labels; how far an image was turned and the image itself are auxiliary tasks
on the others. A method's learning rate is the one that is best on validation images.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed
from common.problems.digits import digits

from ..report.grids import chosen

LABELS, VALIDATION, TEST = 200, 400, 400
HIDDEN, BATCH = 32, 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SCALES = {"per pixel": 1.0, "summed over pixels": 64.0}
"""What the error of reconstruction is multiplied by: two conventions, between which min-norm
weights are not indifferent.
"""

MOMENTS = 6


class Data(NamedTuple):
    """Every leaf has the seed first: a seed is a split of its own."""

    labelled: tuple[Tensor, Tensor]  # images [seed, image, pixel] in [0, 1], labels [seed, image]
    unlabelled: Tensor  # the labelled ones' images and others, for the auxiliaries
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Batch(NamedTuple):
    images: Tensor  # [image, pixel], labelled
    labels: Tensor
    plain: Tensor  # [image, pixel], to be reconstructed
    turned: Tensor  # the same, by a number of quarter turns
    turns: Tensor


def split(seeds: int) -> Data:
    source = digits(torch.get_default_device())
    images, labels = source.images.flatten(1), source.labels
    keys = (mf.random.fold_in(mf.random.key(s), 0) for s in range(seeds))
    order = torch.stack([mf.random.permutation(key, len(labels)) for key in keys])
    test, validation, others = order.split((TEST, VALIDATION, len(labels) - TEST - VALIDATION), 1)
    few = others[:, :LABELS]
    return Data(
        (images[few], labels[few]),
        images[others],
        (images[validation], labels[validation]),
        (images[test], labels[test]),
    )


def batch_of(data: Data, step: int) -> Batch:
    """Images of one step for all seeds, drawn with replacement."""
    seeds = torch.arange(len(data.unlabelled))[:, None]
    key = mf.random.fold_in(mf.random.fold_in(mf.random.key(5), 1), step)
    u = mf.random.uniform(key, (3, len(seeds), BATCH))
    labelled = (u[0] * data.labelled[1].shape[1]).long()
    plain = data.unlabelled[seeds, (u[1] * data.unlabelled.shape[1]).long()]
    turns = (4 * u[2]).long()
    images, labels = (part[seeds, labelled] for part in data.labelled)
    return Batch(images, labels, plain, turn(plain, turns), turns)


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Each of `[seed, image, pixel]` by its own number of quarter turns."""
    square = images.unflatten(-1, (8, 8))
    every = torch.stack([torch.rot90(square, k, (-2, -1)) for k in range(4)])
    index = turns[None, :, :, None, None].expand(1, *square.shape)
    return every.gather(0, index)[0].flatten(-2)


def network(key: Tensor) -> mf.types.Params:
    widths = {
        "trunk.0": (64, HIDDEN),
        "trunk.1": (HIDDEN, HIDDEN),
        "class": (HIDDEN, 10),
        "rotation": (HIDDEN, 4),
        "image": (HIDDEN, 64),
    }
    params = {}
    for i, (name, shape) in enumerate(widths.items()):
        gain = 2.0 if name.startswith("trunk") else 1.0
        own = mf.random.normal(mf.random.fold_in(key, i), shape)
        params[f"{name}.weight"] = (gain / shape[0]) ** 0.5 * own
        params[f"{name}.bias"] = 0 * own[0]
    return params


def linear(params: mf.types.Params, name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def outputs(params: mf.types.Params, head: str, x: Tensor) -> Tensor:
    trunk = F.relu(linear(params, "trunk.1", F.relu(linear(params, "trunk.0", x))))
    return linear(params, head, trunk)


def losses(params: mf.types.Params, batch: Batch) -> list[Tensor]:
    """Cross-entropy of the class and of the rotation in nats, mean squared error of a pixel. A
    scalar a task, from the task's own images, so that each is differentiated through these alone.
    """
    return [
        F.cross_entropy(outputs(params, "class", batch.images), batch.labels),
        F.cross_entropy(outputs(params, "rotation", batch.turned), batch.turns),
        (outputs(params, "image", batch.plain) - batch.plain).square().mean(),
    ]


def accuracy(params: mf.types.Params, images: Tensor, labels: Tensor) -> Tensor:
    return (outputs(params, "class", images).argmax(-1) == labels).double().mean()


class Runs(NamedTuple):
    """Of one method at its best rate, by the validation images of the other half of the seeds."""

    choice: np.ndarray  # [moment, seed], index of `RATES` that is best there
    curve: Tensor  # [moment, seed], accuracy of the main task on test images, at that rate
    weights: Tensor  # [step, seed, task], scaled to sum 1
    cosines: Tensor  # [step, seed, task], of g_t and d over the trunk


def train(rule: mf.Rule, scales: Tensor, data: Data, steps: int, label: str) -> list[Runs]:
    """All scales of the error of reconstruction, learning rates and seeds at once. Of the rates the
    one with the best mean accuracy on the other half of the seeds' validation images is kept.
    """
    rates, seeds = torch.tensor(RATES), torch.arange(len(data.unlabelled))

    def method(scale: Tensor, lr: Tensor) -> mf.Step:
        def scaled(params: mf.types.Params, batch: Batch) -> list[Tensor]:
            entropy, rotation, error = losses(params, batch)
            return [entropy, rotation, scale * error]

        return mf.descend(scaled, rule, mf.jacobian("trunk.*"), mf.adam(lr))

    def advance(
        scale: Tensor, lr: Tensor, state: mf.TrainState, batch: Batch
    ) -> tuple[mf.TrainState, Tensor, Tensor]:
        state, info = method(scale, lr).update(state, batch)
        length = (info.weights @ info.rates).clamp_min(0).sqrt() * info.gramian.diagonal().sqrt()
        return state, info.weights / info.weights.sum(), info.rates / length.clamp_min(1e-30)

    def first(scale: Tensor, lr: Tensor, seed: Tensor, batch: Batch) -> mf.TrainState:
        return method(scale, lr).init(network(mf.random.fold_in(mf.random.key(seed), 2)), batch)

    # over seeds, then rates, then scales
    start = vmap(
        vmap(vmap(first, (None, None, 0, 0)), (None, 0, None, None)), (0, None, None, None)
    )
    every = vmap(vmap(vmap(advance, (None, None, 0, 0)), (None, 0, 0, None)), (0, None, 0, None))
    move = replayed(lambda state, batch: every(scales, rates, state, batch))
    score = vmap(vmap(accuracy), (0, None, None))
    state = start(scales, rates, seeds, batch_of(data, 0))
    rows = torch.arange(len(scales))[:, None]
    weights, cosines, curve, choices = [], [], [], []
    for step in tqdm(range(steps), desc=label, leave=False):
        state, w, c = move(state, batch_of(data, step))
        weights.append(w)
        cosines.append(c)
        if step + 1 in moments(steps):
            errors = 1 - vmap(score, (0, None, None))(state.params, *data.validation).cpu().numpy()
            choices.append(np.stack([chosen(part) for part in errors]))
            best = torch.as_tensor(choices[-1])
            there = {name: leaf[rows, best, seeds] for name, leaf in state.params.items()}
            curve.append(score(there, *data.test).cpu())
    both, curves = (torch.stack(weights), torch.stack(cosines)), torch.stack(curve)
    runs = []
    for i, choice in enumerate(np.stack(choices, 1)):  # [scale, moment, seed]
        kept = (part[:, i, choice[-1], seeds].double().cpu() for part in both)
        runs.append(Runs(choice, curves[:, i], *kept))
    return runs


def moments(steps: int) -> list[int]:
    return sorted({-(-steps * i // MOMENTS) for i in range(1, MOMENTS + 1)})
