"""Does CAGrad reach stationary points of the mean, at the promised rate?"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.bounds import AT_REST, MOST_RUNS
from ..report.decisions import Measured, Row, decided, ends, exact, named_so
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import Quadratics, quadratic_losses, quadratics


@decided(
    "under 90 % of the exact runs of some c, by the interval, bring ‖g₀‖ below 1e-3 of its start"
)
def approaches(measured: Measured) -> Verdict:
    if measured["steps"] < 800:
        return "inconclusive"
    shares = [ends(measured, name) for name in named_so(measured, "*: share below 1e-3")]
    if all(low > MOST_RUNS.now for low, _ in shares):
        return "holds"
    return "does not hold" if any(high < MOST_RUNS.now for _, high in shares) else "inconclusive"


@decided("all ends are stationary, and none is the lowest minimum", trained=False)
def lowest(measured: Measured) -> Verdict:
    if measured["largest ‖g₀‖ at the end"] > AT_REST.now:
        return "inconclusive"
    other = measured["share ending at the other minimum"]
    if other == 0:
        return "holds"
    return "holds only when" if other < 1 else "does not hold"


CLAIMS = {
    "CA-19": Row(
        "For 0 <= c < 1 the iterates approach stationary points of the mean loss.", approaches
    ),
    "CA-20": Row(
        "Rate: Σ_k ‖g₀(θ_k)‖² <= 2(L₀(θ₀) - inf L₀)/(η(1 - c²)).",
        exact(("*: largest ratio of both sides", "<=", 1)),
    ),
    "CA-21": Row(
        "CAGrad's theorem shows convergence to the minimum of the mean.",
        lowest,
        when="the start is on the side of the lowest minimum, or the losses are convex",
    ),
}


def descend(
    problem: Quadratics,
    cs: tuple[float, ...],
    steps: int,
    mix: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Of steps of η = .9/H along d at every c, all at once, Σ‖g₀‖² over its bound, which is
    2(L₀(θ₀) - inf L₀)/(η(1 - c²)), and the last ‖g₀‖ over the first, each `[draw]`.
    """
    draws = len(problem.start)
    c = torch.tensor(cs, dtype=torch.float64).repeat_interleave(draws)
    problem = Quadratics(*(x.repeat(len(cs), *(1,) * (x.ndim - 1)) for x in problem))
    eta, probe = 0.9 / problem.smoothness, mf.jacobian(mix=mix)
    batch = problem.matrix, problem.middle

    def step_at(lr: Tensor, c: Tensor) -> mf.Step:
        return mf.descend(quadratic_losses, mf.cagrad(c), probe, mf.sgd(lr))

    state = vmap(lambda lr, c, x, b, key: step_at(lr, c).init({"x": x}, b, key))(
        eta, c, problem.start, batch, torch.arange(len(eta))
    )
    every = vmap(lambda lr, c, state, b: step_at(lr, c).update(state, b)[:1])
    move = replayed(lambda state, lr, c, b: every(lr, c, state, b))
    matrix = problem.matrix.mean(1)
    pull = torch.einsum("dtij,dtj->di", *batch) / problem.matrix.shape[1]
    squares = []
    for _ in tqdm(range(steps), desc="quadratics", leave=False):
        squares.append(
            (torch.einsum("dij,dj->di", matrix, state.params["x"]) - pull).square().sum(-1)
        )
        (state,) = move(state, eta, c, batch)
    lowest = torch.linalg.solve(matrix, pull)
    first, least = (
        vmap(quadratic_losses)({"x": x}, batch).mean(-1) for x in (problem.start, lowest)
    )
    ratio = torch.stack(squares).sum(0) * eta * (1 - c * c) / (2 * (first - least))
    left = (squares[-1] / squares[0]).sqrt()
    return list(zip(ratio.split(draws), left.split(draws), strict=True))


def run(settings: Settings) -> Findings:
    draws, steps, cs = settings.count(100), settings.count(800), (0.2, 0.5, 0.9)
    problem = quadratics(draws, 3, 5, 140)
    plain = descend(problem, cs, steps)
    fast = descend(problem, (0.5,), steps, mf.subset(2))
    names = *(f"c = {c:g}" for c in cs), "c = 0.5, fast with 2 of 3 rows"
    setting = f"{draws} triples of convex quadratics, {steps} steps of .9/H, H the most curvature"
    yield Claim(
        "CA-20",
        {
            f"{name}: largest ratio of both sides": ratio.max()
            for name, (ratio, _) in zip(names, plain + fast, strict=True)
        },
        f"{setting}. Only the ball is used, so it covers the fast variant",
    )
    shares: dict[str, float] = {}
    for name, (_, left) in zip(names, plain, strict=False):
        near = int((left < 1e-3).sum())
        shares |= named(f"{name}: share below 1e-3", share_interval(near, draws))
    yield Claim("CA-19", shares | {"steps": steps}, f"{setting}; on the toy see CA-26")
    yield several_minima(settings.count(200), settings.count(1000))


def several_minima(count: int, steps: int) -> Claim:
    """Two tasks (x² - 1)² + .3x ± x/2: the mean has two minima."""
    weigh = vmap(lambda g: mf.weights(mf.cagrad(0.5), g))
    x = torch.linspace(-1.8, 1.8, count, dtype=torch.float64)
    for _ in tqdm(range(steps), desc="two minima", leave=False):
        slope = 4 * x * (x.square() - 1) + 0.3
        rows = torch.stack([slope + 0.5, slope - 0.5], -1)
        x = x - 0.02 * (weigh(rows[:, :, None] * rows[:, None]) * rows).sum(-1)
    value = (x.square() - 1).square() + 0.3 * x
    grid = np.linspace(-2, 0, 20_001)
    lowest = float(((grid**2 - 1) ** 2 + 0.3 * grid).min())
    return Claim(
        "CA-21",
        {
            "largest ‖g₀‖ at the end": (4 * x * (x.square() - 1) + 0.3).abs().max(),
            "share ending at the other minimum": (value > lowest + 0.1).double().mean(),
        },
        f"L_i = (x² - 1)² + .3x ± x/2, c = .5, {count} starts over [-1.8, 1.8]",
    )
