"""Do ConFIG and weights from kernels balance the terms of a physics loss, and lower the error?"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.decisions import Claims, Exact, Row, exact, sided
from ..report.extremes import largest, smallest
from ..report.findings import Claim, Findings, Settings
from ..report.grids import Best, at_best
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
claim = Claims(CLAIMS)

CROWDED = 3  # dimensions, for five gradients


def run(settings: Settings) -> Findings:
    yield no_conflict(settings.count(1000))
    seeds, steps = max(2, settings.seeds * 3 // 8), settings.count(physics.STEPS)
    where = f"{physics.ABOUT}; geometric means of paired ratios, 95 % t intervals"
    yield balanced(8 * seeds, where)
    found = {name: ended(name, seeds, steps) for name in physics.PROBLEMS}
    yield from lower(found, f"{where}; {seeds} seeds, {steps} steps")


def no_conflict(draws: int) -> Claim:
    """ConFIG's products with gradients of lengths that differ."""
    numbers: dict[str, float] = {}
    for tasks, size in ((2, 10), (3, 10), (5, 10), (5, CROWDED)):

        def one(seed: Tensor, tasks: int = tasks, size: int = size) -> tuple[Tensor, Tensor]:
            key = mf.random.fold_in(mf.random.key(seed), size)
            rows = normal(key, tasks, tasks, size) * normal(key, 9, tasks, 1).exp()
            d = mf.aggregate(mf.config(), rows)
            cosine = rows @ d / rows.norm(dim=1) / d.norm()
            return cosine.amin(), cosine.amax() - cosine.amin()

        least, spread = vmap(one)(torch.arange(draws))
        if size > tasks:
            case = f"{tasks} independent gradients"
            numbers |= {
                f"{case}: smallest cosine with the update": smallest(least),
                f"{case}: largest difference of two cosines": largest(spread),
            }
        else:
            share = share_interval(int((least < 0).sum()), draws)
            name = f"{tasks} gradients in {size} dimensions: share of updates against one of them"
            numbers |= named(name, share)
    return claim(
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


def apart(problem: physics.Problem, weigh: physics.Weigh | None, draws: int) -> Tensor:
    """The distance of the logarithms of the terms' falls, `[draw]`, when their sum is a tenth. By
    gradient flow with the kernel of the start, as in the theory: the weighted residuals decay by
    exp(-2 λ t) along the eigenvectors of the weighted kernel.
    """

    def one(params: mf.types.Params, points: physics.Points) -> Tensor:
        w = torch.ones(2).double() if weigh is None else weigh(params, points)
        root = torch.cat([w[i].expand(len(x)) for i, x in enumerate(points)]).sqrt()
        rows = root[:, None] * problem.rows(params, points)
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        turned = vectors.mT @ (root * problem.stacked(params, points))
        before = torch.stack(problem.terms(params, points))

        def terms(exponent: Tensor) -> Tensor:
            decay = (-2 * 10**exponent * (values / values[-1]).clamp_min(0)).exp()
            left = ((vectors @ (decay * turned)) / root).square()
            return torch.stack([part.sum() for part in left.split([len(x) for x in points])])

        low, high = values[0] * 0 - 3, values[0] * 0 + 15
        for _ in range(60):  # bisection for the time, in units of 1/λ of the largest λ
            middle = (low + high) / 2
            late = terms(middle).sum() <= 0.1 * before.sum()
            low, high = torch.where(late, low, middle), torch.where(late, middle, high)
        then = terms(high)
        return ((then / before).log() * torch.tensor([1.0, -1.0])).sum().abs()

    return vmap(one)(*physics.begun(problem, draws))


def balanced(draws: int, where: str) -> Claim:
    """The distance of the terms' falls, with and without the weights."""
    numbers: dict[str, float] = {}
    for name, problem in physics.PROBLEMS.items():
        equal, ntk = (apart(problem, w, draws).cpu() for w in (None, ntk_weights(problem)))
        label = f"{name}: difference of the falls' logarithms, NTK weights over equal ones"
        numbers |= named(label, ratio_interval(ntk, equal))
        numbers[f"{name}, equal weights: difference of the falls' logarithms, median"] = float(
            equal.median()
        )
    return claim(
        "SI-21",
        numbers,
        f"{where}. Gradient flow with the kernel of the start, {draws} draws, until the sum of the "
        "terms is a tenth; traces are means over a term's points",
    )


def ended(name: str, seeds: int, steps: int) -> dict[str, Best]:
    """Errors of Adam on equal weights, NTK weights and ConFIG."""
    problem = physics.PROBLEMS[name]

    def config(w: Tensor, optimizer: mf.Optimizer) -> mf.Step:
        return mf.descend(problem.terms, mf.config(), mf.jacobian(), optimizer)

    ends = {
        "equal weights": physics.with_adam(name, seeds, steps),
        "NTK weights": physics.trained(
            problem, physics.weighted(problem), seeds, steps, ntk_weights(problem)
        ),
        "ConFIG": physics.trained(problem, config, seeds, steps),
    }
    return {
        way: at_best(physics.errors(problem, params), physics.RATES) for way, params in ends.items()
    }


def lower(found: dict[str, dict[str, Best]], where: str) -> Iterator[Claim]:
    rates = "; ".join(
        f"{name}, {way}: {best.settings}"
        for name, ways in found.items()
        for way, best in ways.items()
    )
    where += f". Relative L2 errors; Adam at its best rate by the other half: {rates}"
    yield claim("SI-22", _ratios(found, "NTK weights", "equal weights"), where)
    yield claim("SI-20", _ratios(found, "ConFIG", "equal weights", "NTK weights"), where)


def _ratios(found: dict[str, dict[str, Best]], own: str, *rivals: str) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, ways in found.items():
        for rival in rivals:
            label = f"{name}: error of {own} over that of {rival}"
            numbers |= named(
                label,
                ratio_interval(ways[own].scores, ways[rival].scores),
                unsettled=ways[own].edge or ways[rival].edge,
            )
    return numbers
