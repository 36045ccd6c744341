"""Does GradNorm with α = 0 rest at the sum of unit gradients?"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import LAST_STEPS
from ..report.decisions import Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings

CLAIMS = {
    "X-03": Exact(
        "GradNorm with α = 0 at equilibrium weighs by 1/‖∇_W L_t‖: the sum of unit "
        "gradients on W, a common descent direction on W for T = 2.",
        exact(
            ("largest difference of Σ w_t g_t *, over T, in last step sizes", "<", LAST_STEPS),
            ("library against these fractions, in last step sizes", "<", LAST_STEPS),
            ("largest distance from the rest point over the step size, all sizes", "<", LAST_STEPS),
            ("T = 2: share of draws in which a step on W raises a task", "==", 0),
            ("smallest rate", ">=", 0),
            ("rate of task 1, three tasks", "<", 0),
        ),
    )
}

Vector = tuple[int, ...]
PAIR: tuple[Vector, ...] = ((3, 4), (-5, 12))  # lengths 5 and 13
TRIPLE: tuple[Vector, ...] = ((5, 0), (-4, 3), (-8, 6))  # lengths 5, 5 and 10
HALVINGS, EACH, FIRST = 20, 40, 0.3


def exact_rest(rows: tuple[Vector, ...]) -> tuple[list[Fraction], list[Fraction]]:
    """Weights `∝ 1/‖g_t‖` that sum to 1 and the rates ⟨g_t, Σ w_s g_s⟩, of integer lengths."""
    inverse = [Fraction(1, round(sum(x * x for x in row) ** 0.5)) for row in rows]
    weights = [x / sum(inverse) for x in inverse]
    d = [
        sum((w * x for w, x in zip(weights, column, strict=True)), Fraction(0))
        for column in zip(*rows, strict=True)
    ]
    return weights, [sum((x * y for x, y in zip(row, d, strict=True)), Fraction(0)) for row in rows]


def rest(gramians: Tensor) -> tuple[Tensor, float]:
    """Weights `[draw, task]` of gradnorm(0) after steps of halving size, at gradients that stay as
    they are; and the largest distance from the rest point after any size, over that size.
    """
    tasks = gramians.shape[-1]
    one = torch.ones(tasks, dtype=gramians.dtype)

    def move(gramian: Tensor, weights: Tensor, lr: Tensor) -> Tensor:
        # the least length is for training; here lengths, and the last weights, differ by up to 10⁴
        rule = mf.gradnorm(0.0, lr, optimizer=mf.optim.multiplicative, floor=1e-9)
        state = rule.init(one, torch.zeros((), dtype=torch.int64))._replace(weights=weights)
        return rule.update(mf.Geometry(one, gramian, one / tasks, one > 0, {}), state)[1].weights

    lengths, weights = gramians.diagonal(dim1=-2, dim2=-1).sqrt(), torch.ones_like(gramians[..., 0])
    ratio = 0.0
    for k in tqdm(range(HALVINGS), desc=f"GradNorm at rest, T = {tasks}", leave=False):
        lr = torch.tensor(FIRST * 2.0**-k, dtype=gramians.dtype)
        for _ in range(EACH):
            weights = vmap(move, (0, 0, None))(gramians, weights, lr)
        logs = (weights * lengths).log()
        distance = (logs - logs.mean(-1, keepdim=True)).abs().max()
        ratio = largest(ratio, float(distance / lr))
    return weights / tasks, ratio


def run(settings: Settings) -> Findings:
    """In fractions, and by the library's rule on random gradients over W, three parameters."""
    draws = settings.count(400)
    errors, ratios, shares = [], [], []
    for tasks in (2, 3, 5):
        key = mf.random.fold_in(mf.random.key(61), tasks)
        rows = mf.random.normal(key, (draws, tasks, 2, 3), torch.float64)[:, :, 0]
        spread = mf.random.uniform(mf.random.fold_in(key, 1), (draws, tasks, 1), torch.float64)
        rows = rows * 10 ** (4 * spread - 2)
        lengths = rows.norm(dim=-1, keepdim=True)
        weights, ratio = rest(rows @ rows.mT)
        ratios.append(ratio)
        # the sign of a small rate is read off the closed form: the rule stops near it
        units = rows / lengths
        unit, scale = units.sum(1), (weights[..., None] * lengths).mean(1)
        found = torch.einsum("dt,dtp->dp", weights, rows) / scale
        errors.append((found - unit).norm(dim=-1).max() / tasks)
        raised = (torch.einsum("dtp,dp->dt", units, unit) < -1e-12).any(-1)
        shares.append(raised.double().mean())
    library, rates = [], []
    for example in (PAIR, TRIPLE):
        matrix = torch.tensor(example, dtype=torch.float64)[None]
        weights, rate = exact_rest(example)
        library += [
            abs(float(x) - y) for x, y in zip(weights, rest(matrix @ matrix.mT)[0][0], strict=True)
        ]
        rates.append(rate)
    last = FIRST * 2.0 ** (1 - HALVINGS)
    yield Claim(
        "X-03",
        {
            "T = 2: share of draws in which a step on W raises a task": shares[0],
            "largest distance from the rest point over the step size, all sizes": largest(ratios),
            "smallest rate": float(min(rates[0])),
            "rate of task 1, three tasks": float(rates[1][0]),
            "library against these fractions, in last step sizes": largest(library) / last,
            "largest difference of Σ w_t g_t from the sum of unit gradients, over T, in last step "
            "sizes": largest(errors) / last,
        },
        f"⟨g_1, u_1 + u_2⟩ = ‖g_1‖(1 + cos) >= 0. {draws} draws of lengths from .01 to 100 that "
        "stay as they are, of 2, 3 and 5 tasks, through mtlfunc.gradnorm with "
        f"mtlfunc.optim.multiplicative, step halved {HALVINGS - 1} times; in fractions (3, 4), "
        "(-5, 12) and (5, 0), (-4, 3), (-8, 6)",
    )
