"""Do ConFIG and weights from kernels balance the terms of a physics loss, and lower the error?"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Exact, Row, exact, sided
from ..report.findings import Claim, Findings, Settings
from ..report.grids import at_best
from ..report.intervals import named, ratio_interval, share_interval
from . import physics
from .common import normal

CLAIMS = {
    "SI-19": Exact(
        "Liu et al. 2025: ConFIG's update has a positive product with every term's gradient, and "
        "one rate for all terms.",
        exact(
            ("*: smallest cosine with the update", ">", 0),
            ("*: largest difference of two cosines", "<", 1e-6),
            only_when=("*: share of updates against one of them", ">", 0),
        ),
        when="there are fewer gradients than dimensions; else some updates point against one",
    ),
    "SI-20": Row(
        "Liu et al. 2025: ConFIG is consistently better than other methods on physics losses.",
        sided(("*: error of ConFIG over that of *", "<", 1)),
        instead="differential equations in several dimensions",
    ),
    "SI-21": Row(
        "Wang et al. 2022: the terms of a physics loss converge at rates far apart, and weights "
        "from the neural tangent kernel balance them.",
        sided(("*: difference of the falls' logarithms, NTK weights over equal ones", "<", 1)),
    ),
    "SI-22": Row(
        "Wang et al. 2022: weights from the neural tangent kernel make physics-informed networks "
        "more accurate.",
        sided(("*: error of NTK weights over that of *", "<", 1)),
        instead="differential equations in several dimensions",
    ),
}


def run(settings: Settings) -> Findings:
    yield no_conflict(settings.count(1000))
    seeds, steps = max(2, settings.seeds * 3 // 8), settings.count(physics.STEPS)
    where = f"{physics.ABOUT}; geometric means of paired ratios, 95 % t intervals"
    yield balanced(8 * seeds, where)
    yield from lower(seeds, steps, where)


def no_conflict(draws: int) -> Claim:
    """ConFIG's products with gradients of lengths that differ."""
    numbers: dict[str, float] = {}
    for tasks, size in ((2, 10), (3, 10), (5, 10), (5, 3)):

        def one(seed: Tensor, tasks: int = tasks, size: int = size) -> Tensor:
            key = mf.random.fold_in(mf.random.key(seed), size)
            rows = normal(key, tasks, tasks, size) * normal(key, 9, tasks, 1).exp()
            d = mf.aggregate(mf.config(), rows)
            return rows @ d / rows.norm(dim=1) / d.norm()

        cosines = vmap(one)(torch.arange(draws))
        least, most = cosines.amin(1), cosines.amax(1)
        if size > tasks:
            case = f"{tasks} independent gradients"
            numbers[f"{case}: smallest cosine with the update"] = float(least.min())
            numbers[f"{case}: largest difference of two cosines"] = float((most - least).max())
        else:
            share = share_interval(int((least < 0).sum()), draws)
            name = f"{tasks} gradients in {size} dimensions: share of updates against one of them"
            numbers |= named(name, share)
    return Claim(
        "SI-19",
        numbers,
        f"{draws} draws of gradients with lengths spread over e. One rate: the same cosine with "
        "all; a loss then falls by that times the length of its gradient. Wilson's interval",
    )


def ntk_weights(problem: physics.Problem) -> physics.Weigh:
    """Residuals are over the roots of their numbers, so that the traces are means, as the terms."""
    probe = mf.physics.kernel_traces([problem.inner, problem.outer], mf.losses_only())
    step = mf.balance(problem.terms, mf.physics.ntk(), probe)
    return lambda params, points: step.update(params, points, step.init(params, points))[2].weights


def apart(problem: physics.Problem, weigh: physics.Weigh, draws: int) -> Tensor:
    """The distance of the logarithms of the terms' falls, `[draw]`, when their sum is a tenth. By
    gradient flow with the kernel of the start, as in the theory: the weighted residuals decay by
    exp(-2 λ t) along the eigenvectors of the weighted kernel.
    """

    def one(params: mf.types.Params, points: physics.Points) -> Tensor:
        sizes = [len(x) for x in points]
        root = torch.cat([w.expand(n) for w, n in zip(weigh(params, points), sizes, strict=True)])
        root = root.sqrt()
        rows = root[:, None] * problem.rows(params, points)
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        turned = vectors.mT @ (root * problem.stacked(params, points))
        before = torch.stack(problem.terms(params, points))

        def terms(exponent: Tensor) -> Tensor:
            decay = (-2 * 10**exponent * (values / values[-1]).clamp_min(0)).exp()
            left = ((vectors @ (decay * turned)) / root).square()
            return torch.stack([part.sum() for part in left.split(sizes)])

        low, high = values[0] * 0 - 3, values[0] * 0 + 15
        for _ in range(60):  # bisection for the time, in units of 1/λ of the largest λ
            middle = (low + high) / 2
            late = terms(middle).sum() <= 0.1 * before.sum()
            low, high = torch.where(late, low, middle), torch.where(late, middle, high)
        first, second = (terms(high) / before).log()
        return (first - second).abs()

    return vmap(one)(*physics.begun(problem, draws))


def balanced(draws: int, where: str) -> Claim:
    """The distance of the terms' falls, with and without the weights."""
    numbers: dict[str, float] = {}
    for name, problem in physics.PROBLEMS.items():
        ntk, equal = (apart(problem, w, draws) for w in (ntk_weights(problem), physics.equal))
        label = f"{name}: difference of the falls' logarithms, NTK weights over equal ones"
        numbers |= named(label, ratio_interval(ntk, equal))
        numbers[f"{name}: the same, equal weights, mean"] = float(equal.mean())
    return Claim(
        "SI-21",
        numbers,
        f"{where}. Gradient flow with the kernel of the start, {draws} draws, until the sum of the "
        "terms is a tenth; traces are means over a term's points",
    )


def lower(seeds: int, steps: int, where: str) -> Iterator[Claim]:
    """Errors of Adam on equal weights, NTK weights and ConFIG."""
    config: dict[str, float] = {}
    ntk: dict[str, float] = {}
    for name, problem in physics.PROBLEMS.items():
        ends = {
            "equal weights": physics.with_adam(name, seeds, steps),
            "NTK weights": physics.trained(problem, seeds, steps, ntk_weights(problem)),
            "ConFIG": physics.trained(problem, seeds, steps, config=True),
        }
        best = {
            way: at_best(physics.errors(problem, params), physics.RATES)
            for way, params in ends.items()
        }
        for numbers, own, rival in (
            (ntk, "NTK weights", "equal weights"),
            (config, "ConFIG", "equal weights"),
            (config, "ConFIG", "NTK weights"),
        ):
            label = f"{name}: error of {own} over that of {rival}"
            numbers.update(physics.compared(label, best[own], best[rival]))
    where = (
        f"{where}; {seeds} seeds, {steps} steps. Relative L2 errors; Adam at the best of "
        f"{len(physics.RATES)} rates by the other half of the seeds"
    )
    yield Claim("SI-22", ntk, where)
    yield Claim("SI-20", config, where)
