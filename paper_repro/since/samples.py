"""Does UPGrad on the losses of single samples train better than SGD on their mean?"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.decisions import Claims, Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best, judged
from ..report.intervals import mean_interval, named, ratio_interval
from .common import normal

CLAIMS = {
    "SI-08": Row(
        "Quinton & Rey 2024: with a loss a sample UPGrad trains better than the direct "
        "minimization of their average.",
        sided(("UPGrad on samples over SGD on their mean: *", "<", 1)),
        instead="subsets of image data sets",
    )
}
claim = Claims(CLAIMS)

IMAGES, TEST, BATCH, HIDDEN = 256, 512, 16, 16
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
RULES: dict[str, mf.Rule] = {"SGD on the mean": mf.mean(), "UPGrad on samples": mf.upgrad()}

Data = tuple[Tensor, Tensor]


def images(seeds: int, train: int = IMAGES) -> tuple[Data, Data]:
    """Digits of 8 by 8 pixels and their labels, one split per seed."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.stack(
        [mf.random.permutation(mf.random.key(s), len(labels))[: train + TEST] for s in range(seeds)]
    )
    x, y = pixels[order].double() / 16, labels[order]
    return (x[:, :train], y[:, :train]), (x[:, train:], y[:, train:])


def network(key: Tensor) -> mf.types.Params:
    return {
        "in": normal(key, 1, 64, HIDDEN) / 8,
        "bias": 0 * normal(key, 2, HIDDEN),
        "out": normal(key, 3, HIDDEN, 10) / HIDDEN**0.5,
    }


def logits(params: mf.types.Params, x: Tensor) -> Tensor:
    return (x @ params["in"] + params["bias"]).tanh() @ params["out"]


def losses(params: mf.types.Params, batch: Data) -> Tensor:
    """`[sample]`, in nats."""
    return F.cross_entropy(logits(params, batch[0]), batch[1], reduction="none")


def train(rule: mf.Rule, data: Data, steps: int) -> tuple[Tensor, mf.types.Params]:
    """The mean training loss after tenths of the steps `[moment, rate, seed]`, and the ends."""
    rates, seeds = torch.tensor(RATES, dtype=torch.float64), torch.arange(len(data[0]))

    def step_of(lr: Tensor) -> mf.Step:
        return mf.descend(losses, rule, mf.jacobian(), mf.sgd(lr))

    def batch_of(moment: int) -> Data:
        key = mf.random.fold_in(mf.random.key(7), moment)
        index = (mf.random.uniform(key, (len(seeds), BATCH)) * IMAGES).long()
        return data[0][seeds[:, None], index], data[1][seeds[:, None], index]

    start = vmap(
        vmap(lambda lr, s, b: step_of(lr).init(network(mf.random.key(s)), b), (None, 0, 0)),
        (0, None, None),
    )
    every = vmap(
        vmap(lambda lr, state, b: step_of(lr).update(state, b)[:1], (None, 0, 0)), (0, 0, None)
    )
    move = replayed(lambda state, batch: every(rates, state, batch))
    measure = vmap(vmap(lambda p, d: losses(p, d).mean()), (0, None))
    state, found = start(rates, seeds, batch_of(0)), []
    for moment in tqdm(range(steps), desc="a loss per sample", leave=False):
        (state,) = move(state, batch_of(moment))
        if moment + 1 in moments(steps):
            found.append(measure(state.params, data))
    return torch.stack(found), state.params


def moments(steps: int) -> list[int]:
    return sorted({-(-steps * i // 10) for i in range(1, 11)})


def run(settings: Settings) -> Findings:
    steps, seeds = settings.count(200), max(2, settings.seeds // 2)
    data, test = images(seeds)
    found = {name: train(rule, data, steps) for name, rule in RULES.items()}
    where = (
        f"{IMAGES} images of digits, a network of 64-{HIDDEN}-10, {steps} steps of SGD on batches "
        f"of {BATCH} at the best of {len(RATES)} rates by the other half of the seeds' training "
        f"losses, {seeds} seeds"
    )
    curves, accuracies, rates, edges = {}, {}, [], []
    for name, (losses_at, params) in found.items():
        best = at_best(losses_at[-1].numpy(), RATES)
        curves[name] = losses_at[:, best.choice, torch.arange(seeds)]
        right = vmap(
            vmap(lambda p, d: (logits(p, d[0]).argmax(-1) == d[1]).double().mean()), (0, None)
        )
        accuracies[name] = judged(right(params, test).numpy(), best.choice)
        rates.append(f"{name}: {best.settings}")
        edges.append(best.edge)
    yield better(curves, accuracies, edges, f"{where}; rates: {'; '.join(rates)}")


def better(
    curves: dict[str, Tensor], accuracies: dict[str, Tensor], edges: list[bool], where: str
) -> Claim:
    mean, samples = curves.values()
    numbers: dict[str, float] = {}
    for i, moment in ((len(mean) // 2 - 1, "half of the steps"), (-1, "all steps")):
        label = f"UPGrad on samples over SGD on their mean: training loss after {moment}"
        numbers |= named(label, ratio_interval(samples[i], mean[i]))
        numbers[f"{label}, settles nothing"] = float(any(edges))
    base, own = accuracies.values()
    numbers |= named("test accuracy, UPGrad less SGD", mean_interval(own - base))
    where += f"; test accuracy, UPGrad less SGD: {mean_interval(own - base)}"
    return claim("SI-08", numbers, f"{where}. Geometric means of paired ratios, 95 % t intervals")
