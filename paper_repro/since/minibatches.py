"""Does exact Gauss-Newton generalise on minibatches as well as Adam?"""

import torch
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Row, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best, judged
from ..report.intervals import named, ratio_interval
from .common import flat, unflat
from .samples import Data, drawn, images, network

CLAIMS = {
    "SI-24": Row(
        "Buffelli et al. 2024: on minibatches exact Gauss-Newton saturates on the training loss, "
        "and generalises poorly.",
        sided(("*, exact Gauss-Newton over Adam", ">", 1)),
        instead="reversible networks on benchmarks of images",
    )
}

HIDDEN, BATCH, TRAIN, DAMPING = 8, 32, (256, 1200), 1e-10
RATES = {"Adam": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "Gauss-Newton": (0.03, 0.1, 0.3, 0.6, 1.0)}


def residuals(params: mf.types.Params, batch: Data) -> Tensor:
    """Of one sample or several: the output less 1 for an odd digit and -1 for an even one."""
    hidden = (batch[0] @ params["in"] + params["bias"]).tanh()
    return hidden @ params["out"] - (2.0 * (batch[1] % 2) - 1)


def loss(params: mf.types.Params, batch: Data) -> Tensor:
    return residuals(params, batch).square().mean()


def newton(lr: Tensor, params: mf.types.Params, batch: Data) -> mf.types.Params:
    """A part of the step that makes the batch's residuals 0 to first order."""
    rows = vmap(flat)(vmap(grad(residuals), (None, 0))(params, batch))
    rule = mf.physics.gauss_newton(DAMPING)
    d = unflat(mf.aggregate(rule, rows, losses=residuals(params, batch)), params)
    return {name: leaf - lr * d[name] for name, leaf in params.items()}


def trained(method: str, data: Data, steps: int) -> mf.types.Params:
    """Where a method ends at all its rates, `[rate, seed, ...]`."""
    rates = torch.tensor(RATES[method], dtype=torch.float64)
    seeds = torch.arange(len(data[0]))
    params = vmap(lambda s: network(mf.random.key(s), HIDDEN))(seeds)
    params = {name: leaf.expand(len(rates), *leaf.shape).clone() for name, leaf in params.items()}
    memory = vmap(vmap(mf.adam(1.0).init))(params)

    def one(lr: Tensor, params: mf.types.Params, memory: mf.types.State, batch: Data):
        if method == "Adam":
            return mf.adam(lr).update(grad(loss)(params, batch), memory, params)
        return newton(lr, params, batch), memory

    every = vmap(vmap(one, (None, 0, 0, 0)), (0, 0, 0, None))
    for moment in tqdm(range(steps), desc=f"{method} on minibatches", leave=False):
        params, memory = every(rates, params, memory, drawn(data, BATCH, 8, moment))
    return params


def run(settings: Settings) -> Findings:
    steps, seeds = settings.count(100), max(2, settings.seeds * 3 // 8)
    numbers: dict[str, float] = {}
    for count in TRAIN:
        parts, found = images(seeds, count), {}
        for method, rates in RATES.items():
            params = trained(method, parts[0], steps)
            values = [vmap(vmap(loss), (0, None))(params, part).cpu().numpy() for part in parts]
            best = at_best(values[0], rates)
            found[method] = [judged(part, best.choice) for part in values], best.edge
        (adam, one), (newton, other) = found.values()
        for i, name in enumerate(("training", "test")):
            label = f"{count} images: {name} loss, exact Gauss-Newton over Adam"
            numbers |= named(label, ratio_interval(newton[i], adam[i]), unsettled=one or other)
    yield Claim(
        "SI-24",
        numbers,
        f"odd or even digits, 64-{HIDDEN}-1 with tanh, mean squares, {steps} steps on batches of "
        f"{BATCH}, {seeds} seeds; exact: damping {DAMPING:g} of the largest diagonal entry. The "
        "best of five rates by the other half of the seeds' training losses. Geometric means of "
        "paired ratios, 95 % t intervals",
    )
