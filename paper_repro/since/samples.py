"""Does UPGrad on the losses of single samples train better than SGD on their mean?"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed
from common.problems.digits import digits

from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best, judged
from ..report.intervals import named, ratio_interval
from .common import normal

CLAIMS = {
    "SI-08": Row(
        "Quinton & Rey 2024: with a loss a sample UPGrad trains better than the direct "
        "minimization of their average.",
        sided(("UPGrad on samples over SGD on their mean: *", "<", 1)),
        instead="subsets of image data sets",
    )
}

IMAGES, TEST, BATCH, HIDDEN = 256, 512, 16, 16
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
RULES: dict[str, mf.Rule] = {"SGD on the mean": mf.mean(), "UPGrad on samples": mf.upgrad()}

Data = tuple[Tensor, Tensor]


def images(seeds: int, train: int = IMAGES) -> tuple[Data, Data]:
    """Digits of 8 by 8 pixels and their labels to train on and to test, one split per seed."""
    source = digits(torch.get_default_device(), torch.float64)
    x, labels = source.images.flatten(1), source.labels
    order = torch.stack(
        [mf.random.permutation(mf.random.key(s), len(labels)) for s in range(seeds)]
    )
    first, second = order[:, :train], order[:, train : train + TEST]
    return (x[first], labels[first]), (x[second], labels[second])


def drawn(data: Data, size: int, key: int, moment: int) -> Data:
    """A batch of every seed, with replacement."""
    seeds = torch.arange(len(data[0]))[:, None]
    own = mf.random.fold_in(mf.random.key(key), moment)
    index = (mf.random.uniform(own, (len(seeds), size)) * data[0].shape[1]).long()
    return data[0][seeds, index], data[1][seeds, index]


def network(key: Tensor, hidden: int, *outputs: int) -> mf.types.Params:
    return {
        "in": normal(key, 1, 64, hidden) / 8,
        "bias": 0 * normal(key, 2, hidden),
        "out": normal(key, 3, hidden, *outputs) / hidden**0.5,
    }


def losses(params: mf.types.Params, batch: Data) -> Tensor:
    """`[sample]`, in nats."""
    logits = (batch[0] @ params["in"] + params["bias"]).tanh() @ params["out"]
    return F.cross_entropy(logits, batch[1], reduction="none")


def train(rule: mf.Rule, data: Data, steps: int) -> Tensor:
    """The mean training loss after half of the steps and after all, `[2, rate, seed]`."""
    rates, seeds = torch.tensor(RATES, dtype=torch.float64), torch.arange(len(data[0]))

    def step_of(lr: Tensor) -> mf.Step:
        return mf.descend(losses, rule, mf.jacobian(), mf.sgd(lr))

    def first(lr: Tensor, seed: Tensor, batch: Data) -> mf.TrainState:
        return step_of(lr).init(network(mf.random.key(seed), HIDDEN, 10), batch)

    def lanes(function, *each: int | None):
        """Over rates, and within each over seeds."""
        return vmap(vmap(function, (None, 0, 0)), each)

    every = lanes(lambda lr, state, batch: step_of(lr).update(state, batch)[:1], 0, 0, None)
    move = replayed(lambda state, batch: every(rates, state, batch))
    measure = vmap(vmap(lambda params, data: losses(params, data).mean()), (0, None))
    state, found = lanes(first, 0, None, None)(rates, seeds, drawn(data, BATCH, 7, 0)), []
    for moment in tqdm(range(steps), desc="a loss per sample", leave=False):
        (state,) = move(state, drawn(data, BATCH, 7, moment))
        if moment + 1 in ((steps + 1) // 2, steps):
            found.append(measure(state.params, data))
    return torch.stack(found)


def run(settings: Settings) -> Findings:
    steps, seeds = settings.count(200), max(2, settings.seeds // 2)
    data, _ = images(seeds)
    found = {name: train(rule, data, steps).numpy() for name, rule in RULES.items()}
    best = {name: at_best(values[-1], RATES) for name, values in found.items()}
    numbers: dict[str, float] = {}
    for i, moment in enumerate(("half of the steps", "all steps")):
        mean, samples = (judged(found[name][i], best[name].choice) for name in RULES)
        label = f"UPGrad on samples over SGD on their mean: training loss after {moment}"
        edge = any(one.edge for one in best.values())
        numbers |= named(label, ratio_interval(samples, mean), unsettled=edge)
    yield Claim(
        "SI-08",
        numbers,
        f"{IMAGES} images of digits, a network of 64-{HIDDEN}-10, {steps} steps of SGD on batches "
        f"of {BATCH} at the best of {len(RATES)} rates by the other half of the seeds' training "
        f"losses, {seeds} seeds. Geometric means of paired ratios, 95 % t intervals",
    )
