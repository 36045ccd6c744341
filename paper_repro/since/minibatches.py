"""Does exact Gauss-Newton generalise on minibatches as well as Adam?"""

import torch
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.decisions import Claims, Row, sided
from ..report.findings import Findings, Settings
from ..report.grids import at_best, judged
from ..report.intervals import named, ratio_interval
from .common import flat, normal, unflat
from .samples import Data, images

CLAIMS = {
    "SI-24": Row(
        "Buffelli et al. 2024: on minibatches exact Gauss-Newton saturates on the training loss, "
        "and generalises poorly.",
        sided(("*, exact Gauss-Newton over Adam", ">", 1)),
        instead="reversible networks on benchmarks of images",
    )
}
claim = Claims(CLAIMS)

HIDDEN, BATCH, TRAIN = 8, 32, (256, 1200)
RATES = {"Adam": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "Gauss-Newton": (0.03, 0.1, 0.3, 0.6, 1.0)}
DAMPING = 1e-10


def network(key: Tensor) -> mf.types.Params:
    return {
        "in": normal(key, 1, 64, HIDDEN) / 8,
        "bias": 0 * normal(key, 2, HIDDEN),
        "out": normal(key, 3, HIDDEN) / HIDDEN**0.5,
    }


def residuals(params: mf.types.Params, batch: Data) -> Tensor:
    """`[sample]`: the output less 1 for an odd digit and -1 for an even one."""
    hidden = (batch[0] @ params["in"] + params["bias"]).tanh()
    return hidden @ params["out"] - (2.0 * (batch[1] % 2) - 1)


def loss(params: mf.types.Params, batch: Data) -> Tensor:
    return residuals(params, batch).square().mean()


def newton(lr: Tensor, params: mf.types.Params, batch: Data) -> mf.types.Params:
    """A part of the step that makes the batch's residuals 0 to first order."""

    def one(params: mf.types.Params, x: Tensor, y: Tensor) -> Tensor:
        return residuals(params, (x[None], y[None]))[0]

    rows = vmap(grad(one), (None, 0, 0))(params, *batch)
    d = mf.aggregate(
        mf.physics.gauss_newton(DAMPING), vmap(flat)(rows), losses=residuals(params, batch)
    )
    return {name: params[name] - lr * part for name, part in unflat(d, params).items()}


def trained(method: str, data: Data, steps: int) -> mf.types.Params:
    """Where a method ends at all its rates, `[rate, seed, ...]`."""
    rates = torch.tensor(RATES[method], dtype=torch.float64)
    seeds = torch.arange(len(data[0]))
    params = vmap(lambda s: network(mf.random.key(s)))(seeds)
    params = {name: leaf.expand(len(rates), *leaf.shape).clone() for name, leaf in params.items()}
    slopes = torch.zeros(len(rates), len(seeds))
    memory = vmap(vmap(lambda p, _: mf.adam(1.0).init(p)))(params, slopes)

    def one(lr: Tensor, params: mf.types.Params, memory: mf.types.State, batch: Data):
        if method == "Adam":
            return mf.adam(lr).update(grad(loss)(params, batch), memory, params)
        return newton(lr, params, batch), memory

    every = vmap(vmap(one, (None, 0, 0, 0)), (0, 0, 0, None))
    for moment in tqdm(range(steps), desc=f"{method} on minibatches", leave=False):
        key = mf.random.fold_in(mf.random.key(8), moment)
        index = (mf.random.uniform(key, (len(seeds), BATCH)) * data[0].shape[1]).long()
        batch = data[0][seeds[:, None], index], data[1][seeds[:, None], index]
        params, memory = every(rates, params, memory, batch)
    return params


def run(settings: Settings) -> Findings:
    steps, seeds = settings.count(100), max(2, settings.seeds * 3 // 8)
    numbers: dict[str, float] = {}
    picked = []
    for count in TRAIN:
        data, test = images(seeds, count)
        found, edges = {}, []
        for method, rates in RATES.items():
            params = trained(method, data, steps)
            every = {
                name: vmap(vmap(loss), (0, None))(params, part).cpu().numpy()
                for name, part in (("training", data), ("test", test))
            }
            best = at_best(every["training"], rates)
            edges.append(best.edge)
            found[method] = {name: judged(values, best.choice) for name, values in every.items()}
            picked.append(f"{method}, {count} images: {best.settings}")
        for name in ("training", "test"):
            label = f"{count} images: {name} loss, exact Gauss-Newton over Adam"
            ratio = ratio_interval(found["Gauss-Newton"][name], found["Adam"][name])
            numbers |= named(label, ratio, unsettled=any(edges))
    yield claim(
        "SI-24",
        numbers,
        f"odd or even digits, 64-{HIDDEN}-1 with tanh, mean squares, {steps} steps on batches of "
        f"{BATCH}, {seeds} seeds; exact: damping {DAMPING:g} of the largest diagonal entry. The "
        "best rate by the other half of the seeds' training losses: "
        f"{'; '.join(picked)}. Geometric means of paired ratios, 95 % t intervals",
    )
