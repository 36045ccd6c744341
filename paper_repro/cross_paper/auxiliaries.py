"""Does MGDA neglect a main task among auxiliary ones, and does CAGrad keep the balance?

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

from ..report.bounds import FAR, NEAR
from ..report.decisions import Measured, Row, decided, ends, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.grids import at_edge, chosen
from ..report.intervals import mean_interval, named


@decided(
    "in no case all parts are shown, and in one MGDA's weight on the main task is above 1/3, its "
    f"accuracy less than {FAR:g} below, CAGrad's more than {NEAR:g} below, or CAGrad's least "
    "cosine smaller than equal weights'"
)
def balance(measured: Measured) -> Verdict:
    """Of every scale of the reconstruction error and time."""
    shown, lost = [], []
    for end in named_so(measured, "* steps: MGDA's weight on the main task, low"):
        case = end.split(": MGDA's weight")[0]
        share, mgda, cagrad, least = (
            ends(measured, f"{case}: {what}")
            for what in (
                "MGDA's weight on the main task",
                "MGDA minus equal weights, accuracy",
                "CAGrad minus equal weights, accuracy",
                "least cosine of d with a task, CAGrad minus equal weights",
            )
        )
        if measured[f"{case}: a best rate at the edge of its grid (1: yes)"]:
            shown.append(False)
            lost.append(False)
            continue
        near = cagrad[0] > -NEAR.now and least[0] > 0
        shown.append(share[1] < 1 / 3 and mgda[1] < -FAR.now and near)
        lost.append(share[0] > 1 / 3 or mgda[0] > -FAR.now or cagrad[1] < -NEAR.now or least[1] < 0)
    return verdict_of(shown, lost)


CLAIMS = {
    "CA-37": Row(
        "MGDA neglects the main task and falls far below the baseline; CAGrad keeps main "
        "and auxiliary tasks balanced.",
        balance,
        when="the reconstruction error is the mean per pixel",
        instead="CIFAR-10",
    )
}

LABELS, VALIDATION, TEST = 200, 400, 400
HIDDEN, BATCH = 32, 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SCALES = {"per pixel": 1.0, "summed over pixels": 64.0}
"""What the error of reconstruction is multiplied by: two conventions, between which min-norm
weights are not indifferent.
"""


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
    accuracy: Tensor  # [moment, seed], of the main task on test images, at that rate
    weights: Tensor  # [step, seed, task], scaled to sum 1
    cosines: Tensor  # [step, seed, task], of g_t and d over the trunk


def moments(steps: int) -> list[int]:
    """After a third of the steps, and after all."""
    return [-(-steps // 3), steps]


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
    weights, cosines, reached, choices = [], [], [], []
    for step in tqdm(range(steps), desc=label, leave=False):
        state, w, c = move(state, batch_of(data, step))
        weights.append(w)
        cosines.append(c)
        if step + 1 in moments(steps):
            errors = 1 - vmap(score, (0, None, None))(state.params, *data.validation).cpu().numpy()
            choices.append(np.stack([chosen(part) for part in errors]))
            best = torch.as_tensor(choices[-1])
            there = {name: leaf[rows, best, seeds] for name, leaf in state.params.items()}
            reached.append(score(there, *data.test).cpu())
    both, accuracies = (torch.stack(weights), torch.stack(cosines)), torch.stack(reached)
    runs = []
    for i, choice in enumerate(np.stack(choices, 1)):  # [scale, moment, seed]
        kept = (part[:, i, choice[-1], seeds].double().cpu() for part in both)
        runs.append(Runs(choice, accuracies[:, i], *kept))
    return runs


def run(settings: Settings) -> Findings:
    steps, data = settings.count(300), split(settings.seeds)
    scales, radius = torch.tensor([*SCALES.values()]), torch.tensor(0.4)
    rules = {"mean": mf.mean(), "MGDA": mf.mgda(), "CAGrad": mf.cagrad(c=radius)}
    every = {name: train(rule, scales, data, steps, name) for name, rule in rules.items()}
    numbers: dict[str, float] = {}
    for scale, *each in zip(SCALES, *every.values(), strict=True):
        for i, moment in enumerate(moments(steps)):
            numbers |= at(f"{scale}, {moment} steps", dict(zip(rules, each, strict=True)), i)
    yield Claim(
        "CA-37",
        numbers,
        f"digits, {LABELS} labels, rotation and reconstruction as auxiliaries, trunk of "
        f"{HIDDEN}-{HIDDEN}, {steps} steps of Adam at the best of {len(RATES)} rates, "
        f"{settings.seeds} seeds, 95 % t intervals, paired. Both scales of the reconstruction "
        "error, after a third of the steps and after all: accuracies at the rate that is best "
        "then, the rest at the rate that is best at the end; the mean weight over the steps, and "
        "the cosine with the task that d serves least",
    )


def at(case: str, methods: dict[str, Runs], moment: int) -> dict[str, float]:
    """Numbers up to the moment of that index."""
    base = methods["mean"]
    steps = moments(len(base.weights))[moment]
    share = mean_interval(methods["MGDA"].weights[:steps, :, 0].mean(0))
    numbers = named(f"{case}: MGDA's weight on the main task", share)
    for name in ("MGDA", "CAGrad"):
        less = mean_interval(methods[name].accuracy[moment] - base.accuracy[moment])
        numbers |= named(f"{case}: {name} minus equal weights, accuracy", less)
    # The task that d serves least: the smallest over tasks of the mean cosine.
    own, equal = (methods[x].cosines[:steps].mean(0).amin(-1) for x in ("CAGrad", "mean"))
    least = f"{case}: least cosine of d with a task, CAGrad minus equal weights"
    edge = any(at_edge(x.choice[[moment, -1]].ravel(), len(RATES)) for x in methods.values())
    return {
        **numbers,
        **named(least, mean_interval(own - equal)),
        f"{case}: a best rate at the edge of its grid (1: yes)": float(edge),
    }
