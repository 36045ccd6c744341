"""Does GradNorm with α = 0 rest at the sum of unit gradients?"""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import LAST_STEPS
from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Claim, Findings, Settings
from ..report.intervals import named, share_interval

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
claim = Claims(CLAIMS)

Vector = tuple[int, ...]
PAIR: tuple[Vector, ...] = ((3, 4), (-5, 12))  # lengths 5 and 13
TRIPLE: tuple[Vector, ...] = ((5, 0), (-4, 3), (-8, 6))  # lengths 5, 5 and 10
OUTSIDE: tuple[Vector, ...] = ((1, 1), (1, -4))  # W is the first coordinate
HALVINGS, EACH, FIRST = 20, 40, 0.3


def exact_rest(rows: tuple[Vector, ...], measured: int) -> tuple[list[Fraction], list[Fraction]]:
    """Weights `∝ 1/‖∇_W L_t‖` that sum to 1 and the rates ⟨g_t, Σ w_s g_s⟩ over all coordinates. W:
    the first `measured` ones.
    """
    inverse = []
    for row in rows:
        length = round(sum(x * x for x in row[:measured]) ** 0.5)
        assert length**2 == sum(x * x for x in row[:measured])  # an integer length: all is rational
        inverse.append(Fraction(1, length))
    weights = [x / sum(inverse) for x in inverse]
    d = [
        sum((w * x for w, x in zip(weights, column, strict=True)), Fraction(0))
        for column in zip(*rows, strict=True)
    ]
    return weights, [sum((x * y for x, y in zip(row, d, strict=True)), Fraction(0)) for row in rows]


def rest(gramians: Tensor) -> tuple[Tensor, dict[float, float]]:
    """Weights `[draw, task]` of gradnorm(0) after steps of halving size, and distances. At
    gradients that stay as they are; a distance after each size.
    """
    tasks = gramians.shape[-1]
    one = torch.ones(tasks, dtype=gramians.dtype)

    def move(gramian: Tensor, weights: Tensor, lr: Tensor) -> Tensor:
        # The least length is for training; here lengths, and the last weights, differ by up to
        # 10⁴.
        rule = mf.gradnorm(0.0, lr, optimizer=mf.optim.multiplicative, floor=1e-9)
        state = rule.init(one, torch.zeros((), dtype=torch.int64))._replace(weights=weights)
        return rule.update(mf.Geometry(one, gramian, one / tasks, one > 0, {}), state)[1].weights

    lengths, weights = gramians.diagonal(dim1=-2, dim2=-1).sqrt(), torch.ones_like(gramians[..., 0])
    distance = {}
    for k in tqdm(range(HALVINGS), desc=f"GradNorm at rest, T = {tasks}", leave=False):
        lr = torch.tensor(FIRST * 2.0**-k, dtype=gramians.dtype)
        for _ in range(EACH):
            weights = vmap(move, (0, 0, None))(gramians, weights, lr)
        logs = (weights * lengths).log()
        distance[float(lr)] = float((logs - logs.mean(-1, keepdim=True)).abs().max())
    return weights / tasks, distance


class Drawn(NamedTuple):
    """Random gradients over W (three parameters) and three others."""

    numbers: dict[str, float]
    error: float  # largest distance of Σ w_t g_t from the sum of unit gradients, over T
    ratio: float  # largest distance from the rest point over the step size
    raised: float  # share of pairs of which a step on W raises one


def on_draws(draws: int) -> Drawn:
    """The library's rule where it stops against the closed form, and whom a step raises."""
    numbers, errors, ratios, raised = {}, [], [], {}
    for tasks in (2, 3, 5):
        key = mf.random.fold_in(mf.random.key(61), tasks)
        rows = mf.random.normal(key, (draws, tasks, 2, 3), torch.float64)
        spread = mf.random.uniform(mf.random.fold_in(key, 1), (draws, tasks, 1, 1), torch.float64)
        rows = rows * 10 ** (4 * spread - 2)
        own, whole = rows[:, :, 0], rows.flatten(2)
        weights, distance = rest(own @ own.mT)
        unit = own / own.norm(dim=-1, keepdim=True)
        scaled = weights * own.norm(dim=-1)
        d = torch.einsum("dt,dtp->dp", weights, own) / scaled.mean(-1, keepdim=True)
        errors.append(float((d - unit.sum(1)).norm(dim=-1).max() / tasks))
        ratios.append(largest(left / lr for lr, left in distance.items()))
        # The closed form's own rates: what is left of the distance to it would blur the sign of
        # those near 0.
        form = 1 / own.norm(dim=-1)
        for name, part in (("W", own), ("W and the rest", whole)):
            along = part / part.norm(dim=-1, keepdim=True)
            step = torch.einsum("dt,dtp->dp", form, part)
            cosines = torch.einsum("dtp,dp->dt", along, step) / tasks
            raised[tasks, name] = share_interval(int((cosines.amin(-1) < -1e-12).sum()), draws)
            numbers |= named(
                f"T = {tasks}: share of draws in which a step on {name} raises a task",
                raised[tasks, name],
            )
        numbers[f"T = {tasks}: largest |log(w_t‖g_t‖) - mean| at the last step size"] = list(
            distance.values()
        )[-1]
    return Drawn(numbers, largest(errors), largest(ratios), raised[2, "W"].mean)


def library_error(examples: dict[tuple[Vector, ...], list[Fraction]]) -> float:
    """Largest difference of the library's weights there from those in fractions."""
    worst = 0.0
    for rows, expected in examples.items():
        matrix = torch.tensor(rows, dtype=torch.float64)[None]
        found = rest(matrix @ matrix.mT)[0][0]
        worst = largest(
            worst, *(abs(float(x) - float(y)) for x, y in zip(found, expected, strict=True))
        )
    return worst


def run(settings: Settings) -> Findings:
    yield unit_gradients(settings)


def unit_gradients(settings: Settings) -> Claim:
    """In fractions, and by the library's rule on random gradients."""
    draws = settings.count(400)
    drawn = on_draws(draws)
    two, rates_two = exact_rest(PAIR, 2)
    three, rates_three = exact_rest(TRIPLE, 2)
    _, rates_outside = exact_rest(OUTSIDE, 1)
    library = library_error({PAIR: two, TRIPLE: three})
    last = FIRST * 2.0 ** (1 - HALVINGS)
    return claim(
        "X-03",
        {
            **drawn.numbers,
            "last step size": last,
            "largest distance from the rest point over the step size, all sizes": drawn.ratio,
            "largest difference of Σ w_t g_t from the sum of unit gradients, over T": drawn.error,
            "(3, 4), (-5, 12): w_1 in fractions": float(two[0]),
            "smallest rate": float(min(rates_two)),
            "(5, 0), (-4, 3), (-8, 6): w_1 in fractions": float(three[0]),
            "rate of task 1, three tasks": float(rates_three[0]),
            "library against these fractions, largest difference": library,
            "library against these fractions, in last step sizes": library / last,
            "largest difference of Σ w_t g_t from the sum of unit gradients, over T, in last step "
            "sizes": drawn.error / last,
            "W rows 1, 1, the rest 1, -4: rate of task 1 over both": float(rates_outside[0]),
        },
        "at equilibrium and on W alone: L_grad has its zero where all w_t‖∇_W L_t‖ are equal, and "
        f"⟨g_1, u_1 + u_2⟩ = ‖g_1‖(1 + cos) >= 0. {draws} draws of lengths from .01 to 100 that "
        "stay as they are, through mtlfunc.gradnorm with mtlfunc.optim.multiplicative, step "
        f"halved {HALVINGS - 1} times. With T = 3 a task may be raised on W, and with T = 2 by the "
        "parameters outside W, on which the weighted gradients are not of one length",
    )
