"""Small problems with known answers, drawn from a key, so that a study over seeds is one `vmap`.

A problem's scale is its own: `ideal` is what each task reaches alone, `nadir` what it has to bear
at worst on the Pareto front (where the front is a single point, or not known: where it starts, or
what a constant prediction gives). Scores are (loss - ideal)/(nadir - ideal), 0 and 1 at the two. No
loss is negative, as GradNorm and rules that take logarithms ask; constants that no gradient sees
were added where the source's losses are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import random
from ...types import Batch, Key, Losses, Params
from ..lattice import simplex_lattice


class BenchmarkProblem(NamedTuple):
    """A multi-task problem and its answer."""

    text: str  # what it is, where it is from, and what is known of it
    draw: Callable[[Key], tuple[Params, Any]]  # a seed's start and its data
    losses: Callable[[Params, Batch], Tensor]  # to the losses [task], a vector
    ideal: Float[Tensor, " task"]  # score 0
    nadir: Float[Tensor, " task"]  # score 1
    # a dense sample of the Pareto front, the same for every seed; None where it is not known
    front: Float[Tensor, "point task"] | None
    steps: int
    rates: tuple[float, ...]  # the grid of learning rates, one for every rule
    shared: str = "*"
    batch: Callable[[Any, Key], Batch] = lambda data, key: data  # of one step
    # final losses; None is `losses` on all the data
    evaluate: Callable[[Params, Any], Losses] | None = None


RATES = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0)
# what a rule meets in a notebook: the fewest that can say anything at 95 % about others
QUICK = ("conflict", "spread", "difficulty", "vlmop2", "zdt1", "regression")


@cache
def standard() -> dict[str, BenchmarkProblem]:
    """All problems by name."""
    return {
        "conflict": quadratics(2, conflict=0.7, spread=1.0, condition=10.0),
        "spread": quadratics(3, conflict=0.2, spread=100.0, condition=3.0),
        "conditioning": quadratics(3, conflict=0.3, spread=1.0, condition=100.0),
        "difficulty": difficulty(),
        "cagrad toy": cagrad_toy(),
        "pcgrad landscape": pcgrad_landscape(),
        "vlmop2": vlmop2(),
        "zdt1": zdt1(),
        "dtlz2": dtlz2(),
        "regression": regression(),
    }


def quadratics(tasks: int, *, conflict: float, spread: float, condition: float) -> BenchmarkProblem:
    """L_t = ½ s_t (x - c_t)ᵀA_t(x - c_t), exactly of these three properties at a reference point.

    Args:
        conflict: the cosine of any two of the gradients there is minus this; at most 1/(tasks - 1).
        spread: longest over shortest of the gradients; s_t is spaced geometrically.
        condition: of each A_t, whose eigenvectors are unrelated.

    c_t is chosen to give the gradients: A_t(x - c_t) are unit vectors at equal angles. A seed turns
    the plane of x (Adam sees other coordinates) and starts at distance 1 of the reference point.
    The Pareto set holds the minimisers of all weighted sums, each one linear system.
    """
    size = 10
    lengths = torch.logspace(0, math.log10(spread), tasks, dtype=torch.float64)
    # The symmetric root of their Gramian: it is unique, where one from eigenvectors, of which some
    # share an eigenvalue, is another one on another machine.
    across, along = (1 + conflict) ** 0.5, max(0.0, 1 - conflict * (tasks - 1)) ** 0.5
    units = torch.zeros(tasks, size, dtype=torch.float64)
    units[:, :tasks] = (along - across) / tasks
    units.diagonal().add_(across)
    half = 0.5 * math.log10(condition)
    eigenvalues = torch.logspace(-half, half, size, dtype=torch.float64)
    keys = (random.fold_in(random.key(tasks), t) for t in range(tasks))
    frames = torch.stack([_rotation(key, size) for key in keys])
    shapes = lengths[:, None, None] * (frames * eigenvalues) @ frames.mT  # s_t A_t
    minima = -torch.linalg.solve(shapes / lengths[:, None, None], units)  # the reference point is 0

    def losses(params: Params, turn: Tensor) -> Tensor:
        apart = turn.mT @ params["x"] - minima
        return 0.5 * torch.einsum("ti,tij,tj->t", apart, shapes, apart)

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        turn = _rotation(random.fold_in(key, 0), size)
        away = random.normal(random.fold_in(key, 1), (size,), torch.float64)
        return {"x": turn @ (away / away.norm())}, turn

    weights = simplex_lattice(1000 if tasks == 2 else 80, tasks) / lengths
    sums = torch.einsum("nt,tij->nij", weights, shapes)
    points = torch.linalg.solve(sums, torch.einsum("nt,tij,tj->ni", weights, shapes, minima))
    apart = points[:, None] - minima
    front = 0.5 * torch.einsum("nti,tij,ntj->nt", apart, shapes, apart)
    text = (
        f"{tasks} quadratics in {size} variables: cosine {-conflict:g} between any two gradients "
        f"and lengths 1 to {spread:g} at the reference point, condition {condition:g}, unrelated "
        "eigenvectors. Known: the minimiser of every weighted sum, so the Pareto set."
    )
    return _with_front(text, draw, losses, front)


def cagrad_toy() -> BenchmarkProblem:
    """The toy of Liu et al. 2021, section 5.1, as in the authors' code (+tanh in the second
    valley), plus 21; their starts, each moved by a normal step.
    """
    places = (-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0)
    starts = torch.tensor(places, dtype=torch.float64)

    def losses(params: Params, data: Tensor) -> Tensor:
        x, y = params["x"].unbind(-1)
        bend = torch.tanh(-y)
        inner = torch.stack([0.5 * (-x - 7) - bend, 0.5 * (-x + 3) + bend + 2])
        valleys = inner.abs().clamp_min(5e-6).log() + 6
        bowls = (torch.stack([x - 7, x + 7]) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        above, below = (torch.tanh(0.5 * sign * y).clamp_min(0) for sign in (1, -1))
        return above * valleys + below * bowls + 21

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        which = (random.uniform(random.fold_in(key, 0), (1,), torch.float64) * len(starts)).long()
        step = 0.5 * random.normal(random.fold_in(key, 1), (2,), torch.float64)
        return {"x": starts.index_select(0, which)[0] + step}, starts.new_zeros(0)

    # Below y = 0 the weighted loss s L_1 + (1 - s) L_2 is tanh(-y/2)(.01(y + 8)² + k): x = 7(2s -
    # 1) wherever y is, and Newton's method finds y.
    s = torch.linspace(0, 1, 1001, dtype=torch.float64)
    level = 19.6 * s * (1 - s) - 20
    y = torch.full_like(s, -8.4)
    for _ in range(20):
        rise, bowl, apart = torch.tanh(-0.5 * y), level + 0.01 * (y + 8) ** 2, 0.02 * (y + 8)
        slope = -0.5 * (1 - rise**2)
        bend = rise * slope * bowl + 2 * slope * apart + 0.02 * rise
        y = y - (slope * bowl + rise * apart) / bend
    front = torch.func.vmap(lambda x: losses({"x": x}, x))(torch.stack([14 * s - 7, y], -1))
    text = (
        "Two losses on the plane (Liu et al. 2021, section 5.1, + 21): valleys that are "
        "logarithms of distances, with cusps, above bowls that conflict. "
        "Known: the Pareto set, a curve near y = -8.36, with the minimum of the mean in its middle."
    )
    rates = (0.0316, 0.1, 0.316, 1.0, 3.16)
    return _with_front(text, draw, losses, front, steps=400, rates=rates)


def pcgrad_landscape() -> BenchmarkProblem:
    """Yu et al. 2020, Figure 1, above its floor; starts are normal around the paper's (.5, -3)."""
    start = torch.tensor([0.5, -3.0], dtype=torch.float64)
    scale = torch.tensor([20.0, 25.0], dtype=torch.float64)

    def losses(params: Params, data: Tensor) -> Tensor:
        x, y = params["x"].unbind(-1)
        inner = torch.stack([x / 2 + torch.tanh(y), x / 2 - torch.tanh(y) + 2])
        return scale * torch.log(inner.abs().clamp_min(5e-6) / 5e-6)

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        return {"x": start + 0.5 * random.normal(key, (2,), torch.float64)}, start.new_zeros(0)

    text = (
        "Two losses on the plane (Yu et al. 2020, Figure 1, above their floor): logarithms of "
        "the distances to two bent valleys, with cusps. Known: both "
        "are 0 at x = -2, y > 6.5, which is the whole Pareto front."
    )
    nadir = losses({"x": start}, start)
    return _with_front(text, draw, losses, torch.zeros_like(start[None]), nadir=nadir, steps=400)


def vlmop2() -> BenchmarkProblem:
    """VLMOP2 (Van Veldhuizen & Lamont 1999; Fonseca & Fleming's second problem): two bumps, a
    concave front, gradients that vanish far away.
    """
    centre = torch.full((2,), 2**-0.5, dtype=torch.float64)

    def losses(params: Params, data: Tensor) -> Tensor:
        x = params["x"]
        return 1 - torch.exp(-torch.stack([((x - centre) ** 2).sum(), ((x + centre) ** 2).sum()]))

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        return {"x": 4 * random.uniform(key, (2,), torch.float64) - 2}, centre.new_zeros(0)

    t = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    front = 1 - torch.exp(-torch.stack([(t - 1) ** 2, (t + 1) ** 2], -1))
    text = (
        "VLMOP2 in 2 variables, starts uniform in [-2, 2]. Known: the Pareto set is the "
        "segment between the two centres; the front is concave."
    )
    return _with_front(text, draw, losses, front)


def zdt1() -> BenchmarkProblem:
    """ZDT1 (Zitzler et al. 2000) without its box: x_1 = sigmoid(z_1), x_i = z_i²/(1 + z_i²), so
    that x_i = 0 is reached at z_i = 0.
    """

    def losses(params: Params, data: Tensor) -> Tensor:
        z = params["z"]
        # √x_1 by its own formula: at x_1 = 0 its derivative would be infinite.
        first, root = torch.sigmoid(z[0]), torch.exp(0.5 * torch.nn.functional.logsigmoid(z[0]))
        rest = 1 + 9 * (z[1:] ** 2 / (1 + z[1:] ** 2)).mean()
        return torch.stack([first, rest - rest.sqrt() * root])

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        z = random.normal(key, (10,), torch.float64)
        return {"z": z}, z.new_zeros(0)

    first = torch.linspace(0, 1, 1001, dtype=torch.float64)
    front = torch.stack([first, 1 - first.sqrt()], -1)
    text = (
        "ZDT1 in 10 variables, its box [0, 1] replaced by x_1 = sigmoid(z_1) and x_i = z_i²/(1 + "
        "z_i²): smooth and unconstrained, with the same front (its two ends in the limit). Known: "
        "f_2 = 1 - √f_1, convex; the minimum of the mean at f_1 = 1/4."
    )
    return _with_front(text, draw, losses, front)


def dtlz2() -> BenchmarkProblem:
    """DTLZ2 (Deb et al. 2002) with three objectives, without its box: every x_i = sigmoid(z_i)."""

    def losses(params: Params, data: Tensor) -> Tensor:
        x = torch.sigmoid(params["z"])
        a, b = (0.5 * math.pi * x[:2]).unbind()
        radius = 1 + ((x[2:] - 0.5) ** 2).sum()
        return radius * torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()])

    def draw(key: Tensor) -> tuple[Params, Tensor]:
        z = random.normal(key, (7,), torch.float64)
        return {"z": z}, z.new_zeros(0)

    side = 0.5 * math.pi * torch.linspace(0, 1, 61, dtype=torch.float64)
    a, b = torch.cartesian_prod(side, side).unbind(-1)
    front = torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)
    text = (
        "DTLZ2 with three objectives in 7 variables, its box [0, 1] replaced by x = sigmoid(z). "
        "Known: the front is the unit sphere's positive octant (its edges in the limit), concave, "
        "so the minimum of the mean lies at the corners."
    )
    return _with_front(text, draw, losses, front)


INPUTS, WIDTH, TAKEN = 8, 12, 32  # of the networks: inputs, units of a layer, samples a step
TRUNK = f"one tanh trunk ({INPUTS}-{WIDTH}-{WIDTH}) and linear heads"


def regression() -> BenchmarkProblem:
    """A trunk learns two networks of its own width at once, their targets at scales 1 and 10."""
    scale, samples = torch.tensor([1.0, 10.0]), 128

    def draw(key: Tensor) -> tuple[Params, Any]:
        part = [random.fold_in(key, i) for i in range(3)]
        x = random.normal(part[0], (2, samples, INPUTS))
        first = _layer(part[1], 2 * WIDTH, INPUTS).reshape(2, WIDTH, INPUTS)
        hidden = torch.tanh(2 * torch.einsum("sni,thi->snth", x, first))
        y = torch.einsum("snth,th->snt", hidden, _layer(part[2], 2, WIDTH))
        y = scale * (y - y.mean((0, 1))) / y.std((0, 1))
        return _trunk_and_heads(random.fold_in(key, 3), 2), (x, y)

    def batch(data: Any, key: Tensor) -> Batch:
        x, y = data
        chosen = random.permutation(key, samples)[:TAKEN]
        return x[0].index_select(0, chosen), y[0].index_select(0, chosen)

    text = (
        f"2 regressions by {TRUNK}, batches of {TAKEN} of {samples}. Targets: standardised outputs "
        "of 2 unrelated networks of the same width, times 1, 10. Test losses; the score is 1 - R², "
        "1 for a constant prediction. The front is not known."
    )
    nadir = scale.double() ** 2
    return _networks(text, draw, 0 * nadir, nadir, batch, lambda data: (data[0][1], data[1][1]))


def difficulty() -> BenchmarkProblem:
    """Three regressions of unit variance on fresh inputs: a linear target, a product of inputs, and
    a linear one of which .7 is noise.
    """
    noise = 0.7

    def sample(task: Tensor, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
        x = random.normal(random.fold_in(key, 0), (count, INPUTS))
        easy, noisy = (x @ task.mT).unbind(-1)
        error = random.normal(random.fold_in(key, 1), (count,))
        noisy = (1 - noise) ** 0.5 * noisy + noise**0.5 * error
        return x, torch.stack([easy, x[:, 0] * x[:, 1], noisy], -1)

    def draw(key: Tensor) -> tuple[Params, Any]:
        task = random.normal(random.fold_in(key, 0), (2, INPUTS))
        task = task / task.norm(dim=-1, keepdim=True)
        test = sample(task, random.fold_in(key, 2), 256)
        return _trunk_and_heads(random.fold_in(key, 1), 3), (task, test)

    def batch(data: Any, key: Tensor) -> Batch:
        return sample(data[0], key, TAKEN)

    text = (
        f"Three regressions by {TRUNK}, {TAKEN} fresh samples a step, targets of variance 1: a "
        "linear one, the product of two inputs, a linear one of which .7 is noise. Equal scale, "
        "unequal difficulty. Known: no expected test loss can be below 0, 0 and .7."
    )
    ideal = torch.tensor([0.0, 0.0, noise], dtype=torch.float64)
    return _networks(text, draw, ideal, torch.ones_like(ideal), batch, lambda data: data[1])


def _networks(
    text: str, draw: Any, ideal: Tensor, nadir: Tensor, batch: Any, test: Callable[[Any], Any]
) -> BenchmarkProblem:
    """Networks whose squared errors are those of `test`, a part of a seed's data."""
    return BenchmarkProblem(
        *(text, draw, _squares, ideal, nadir, None, 300, RATES[:5], "trunk.*", batch),
        evaluate=lambda params, data: _squares(params, test(data)),
    )


def _squares(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared errors `[task]` of a trunk of two tanh layers and linear heads."""
    x, y = batch
    h = torch.tanh(x @ params["trunk.0.weight"].mT + params["trunk.0.bias"])
    h = torch.tanh(h @ params["trunk.1.weight"].mT + params["trunk.1.bias"])
    return ((h @ params["heads.weight"].mT + params["heads.bias"] - y) ** 2).mean(0)


def _trunk_and_heads(key: Tensor, tasks: int) -> Params:
    sizes = {"trunk.0": (WIDTH, INPUTS), "trunk.1": (WIDTH, WIDTH), "heads": (tasks, WIDTH)}
    params: Params = {}
    for i, (name, (out, into)) in enumerate(sizes.items()):
        params[f"{name}.weight"] = _layer(random.fold_in(key, i), out, into)
        params[f"{name}.bias"] = params[f"{name}.weight"].new_zeros(out)
    return params


def _layer(key: Tensor, out: int, into: int) -> Tensor:
    return random.normal(key, (out, into)) / into**0.5


def _with_front(text: str, draw: Any, losses: Any, front: Tensor, **more: Any) -> BenchmarkProblem:
    """A problem whose front is known, and so its scale."""
    more = {"nadir": front.amax(0), "steps": 300, "rates": RATES[1:]} | more
    return BenchmarkProblem(text, draw, losses, ideal=front.amin(0), front=front, **more)


def _rotation(key: Tensor, size: int) -> Tensor:
    """A random orthogonal matrix."""
    q, r = torch.linalg.qr(random.normal(key, (size, size), torch.float64))
    return q * torch.sign(r.diagonal())
