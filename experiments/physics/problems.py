"""Differential equations with known solutions, as residuals of a small network."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mtlfunc as mf
from mtlfunc.types import Params

from .references import ALLEN_CAHN, KORTEWEG, LAST, REACTION, cole_hopf, evolution

F64 = torch.float64
DATA = 10.0  # factor of the residuals u - g at the start and on the edge
VISCOSITY = 0.1 / math.pi


class Net(nn.Module):
    """Layers with tanh, from points in a box; of period 2 in the first coordinate if wanted."""

    centre: Tensor
    reach: Tensor

    def __init__(self, box: list[tuple[float, float]], width: int, periodic: bool) -> None:
        super().__init__()
        low, high = torch.tensor(box, dtype=F64).unbind(1)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("reach", (high - low) / 2)
        self.periodic = periodic
        sizes = (len(box) + periodic, width, width, 1)
        layers = [nn.Linear(a, b, dtype=F64) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        if self.periodic:
            angle, t = math.pi * x[:, :1], x[:, 1:]
            z = torch.cat([angle.cos(), angle.sin(), (t - self.centre[1:]) / self.reach[1:]], 1)
        else:
            z = (x - self.centre) / self.reach
        return self.layers(z)


class Points(NamedTuple):
    """Where the residuals are taken."""

    x: Tensor  # [n, d]
    inside: Tensor  # [n], whether the equation is asked for there, else the value
    target: Tensor  # [n], of the operator or of the value
    scale: Tensor  # [n], 1/√(points of the term), times DATA for values
    member: Tensor  # [n, term], ones and zeros


Operator = Callable[[nn.Module, Params, Tensor], tuple[Tensor, Tensor]]
"""u and D u, both [n], of an equation D u = f."""


class Problem(NamedTuple):
    """D u = f in a box, and the values of u on some of its faces."""

    about: str
    box: list[tuple[float, float]]
    operator: Operator
    source: Callable[[Tensor], Tensor]  # f
    value: Callable[[Tensor], Tensor]  # u, on the faces
    faces: dict[str, tuple[tuple[int, int], ...]]  # by term, each an axis and an end
    solution: Callable[[int], tuple[Tensor, Tensor]]  # points and u there, about n along an axis
    counts: tuple[int, ...] = (240, 60)  # points of the equation, then of the faces' terms
    periodic: bool = False
    width: int = 32
    fresh: bool = False  # other points at every step
    noise: float = 0.0  # standard deviation of f's errors

    def network(self, seed: int) -> Net:
        """Glorot's normal weights, no biases."""
        made = Net(self.box, self.width, self.periodic)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, leaf in made.named_parameters():
                if name.endswith("bias"):
                    leaf.zero_()
                else:
                    nn.init.xavier_normal_(leaf, generator=draw)
        return made

    def draw(self, generator: torch.Generator) -> Points:
        """Even in the box, and on every term's faces by turns; drawn on the CPU."""
        low, high = torch.tensor(self.box, dtype=F64).unbind(1)

        def even(n: int) -> Tensor:
            return low + (high - low) * torch.rand(n, len(low), dtype=F64, generator=generator)

        parts = [even(self.counts[0])]
        for n, faces in zip(self.counts[1:], self.faces.values(), strict=True):
            x = even(n)
            for i, (axis, end) in enumerate(faces):
                x[i :: len(faces), axis] = self.box[axis][end]
            parts.append(x)
        x = torch.cat(parts)
        term = torch.arange(len(parts)).repeat_interleave(torch.tensor(self.counts))
        factor = torch.tensor([1.0] + [DATA] * len(self.faces), dtype=F64)
        scale = (factor / torch.tensor(self.counts, dtype=F64).sqrt())[term]
        inside = term == 0
        target = torch.where(inside, self.source(x), self.value(x))
        if self.noise:
            errors = torch.randn(len(x), dtype=F64, generator=generator)
            target = target + self.noise * errors * inside
        member = (term[:, None] == torch.arange(len(parts))).to(F64)
        return Points(x, inside, target, scale, member)

    def residuals(self, net: nn.Module, params: Params, points: Points) -> Tensor:
        """Signed, `[n]`: the sum of their squares is that of the terms' mean squares."""
        value, operated = self.operator(net, params, points.x)
        off = torch.where(points.inside, operated, value) - points.target
        return points.scale * off

    def batches(self, seed: int, device: torch.device) -> Iterator[Points]:
        """The points of every step."""
        generator = torch.Generator().manual_seed(10**6 + seed)
        fixed = None if self.fresh else self.draw(generator)
        while True:
            points = self.draw(generator) if fixed is None else fixed
            moved = Points(*(leaf.to(device) for leaf in points))
            yield moved
            if fixed is not None:
                yield from itertools.repeat(moved)


def _laplacian(own: float) -> Operator:
    """Δu + own·u."""

    def operator(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        found = mf.physics.laplacian(net, params, x)
        return found.value[:, 0], (found.laplacian + own * found.value)[:, 0]

    return operator


def _evolving(order: int, rest: Callable[..., Tensor]) -> Operator:
    """u_t + rest(u, u_x, … up to an order)."""

    def operator(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        space, time = torch.eye(2, dtype=x.dtype, device=x.device)
        along = mf.physics.directional(net, params, x, space, order)
        _, slope = mf.physics.directional(net, params, x, time, 1)
        return along[0][:, 0], (slope + rest(*along))[:, 0]

    return operator


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, 0])


Solution = Callable[[int], tuple[Tensor, Tensor]]


def _grid(box: list[tuple[float, float]], u: Callable[[Tensor], Tensor]) -> Solution:
    def solution(n: int) -> tuple[Tensor, Tensor]:
        x = torch.cartesian_prod(*(torch.linspace(a, b, n, dtype=F64) for a, b in box))
        return x, u(x)

    return solution


def _elliptic(
    about: str, box: list[tuple[float, float]], own: float, factor: float, u, **more
) -> Problem:
    """Δu + own·u = factor·u for a u of which Δu is a multiple, with the values on all faces."""
    faces = tuple(itertools.product(range(len(box)), (0, 1)))
    solution = _grid(box, u) if len(box) == 2 else _cloud(len(box), u)
    return Problem(
        about, box, _laplacian(own), lambda x: factor * u(x), u, {"edge": faces}, solution, **more
    )


def _cloud(d: int, u: Callable[[Tensor], Tensor]) -> Solution:
    def solution(n: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(n**2, d, dtype=F64, generator=torch.Generator().manual_seed(0))
        return x, u(x)

    return solution


def _shock(x: Tensor) -> Tensor:
    space, time = x.numpy().T
    return torch.from_numpy(cole_hopf(space, time, VISCOSITY))


def _periodic(name: str, about: str, operator: Operator, start, **more) -> Problem:
    return Problem(
        about, [(-1, 1), (0, LAST[name])], operator, _zero, start, {"start": ((1, 0),)},
        lambda n: evolution(name, n), periodic=True, **more,
    )  # fmt: skip


UNIT = [(0.0, 1.0)] * 2
POISSON = (
    "Δu = f on the unit square, u = sin πx sin πy", UNIT, 0.0, -2 * math.pi**2,
    lambda x: torch.sin(math.pi * x).prod(1),
)  # fmt: skip

PROBLEMS: dict[str, Problem] = {
    "Poisson 2-D": _elliptic(*POISSON),
    "Poisson 5-D": _elliptic(
        "Δu = f on the unit cube of five dimensions, u = Σ cos πx_i",
        [(0.0, 1.0)] * 5, 0.0, -(math.pi**2), lambda x: torch.cos(math.pi * x).sum(1),
    ),
    "Helmholtz": _elliptic(
        "Δu + u = f on [-1, 1]², u = sin πx sin 2πy",
        [(-1.0, 1.0)] * 2, 1.0, 1 - 5 * math.pi**2,
        lambda x: torch.sin(math.pi * x[:, 0]) * torch.sin(2 * math.pi * x[:, 1]),
    ),
    "Burgers": Problem(
        f"u_t + u u_x = {VISCOSITY * math.pi:g}/π u_xx on [-1, 1], t ≤ 1, u = -sin πx at the start",
        [(-1.0, 1.0), (0.0, 1.0)],
        _evolving(2, lambda u, first, second: u * first - VISCOSITY * second),
        _zero,
        lambda x: -torch.sin(math.pi * x[:, 0]),  # 0 at the ends
        {"start": ((1, 0),), "edge": ((0, 0), (0, 1))},
        _grid([(-1.0, 1.0), (0.0, 1.0)], _shock),
        counts=(240, 30, 30),
    ),
    "Allen-Cahn": _periodic(
        "Allen-Cahn",
        f"u_t = {ALLEN_CAHN:g} u_xx + {REACTION:g} (u - u³), period 2, t ≤ {LAST['Allen-Cahn']:g}, "
        "u = x² cos πx at the start",
        _evolving(2, lambda u, _, second: REACTION * (u**3 - u) - ALLEN_CAHN * second),
        lambda x: x[:, 0] ** 2 * torch.cos(math.pi * x[:, 0]),
    ),
    "Korteweg-de Vries": _periodic(
        "Korteweg-de Vries",
        f"u_t + u u_x + {KORTEWEG:g} u_xxx = 0, period 2, t ≤ {LAST['Korteweg-de Vries']:g}, "
        "u = cos πx at the start",
        _evolving(3, lambda u, first, _, third: u * first + KORTEWEG * third),
        lambda x: torch.cos(math.pi * x[:, 0]),
    ),
    "Poisson 2-D with new points": _elliptic(*POISSON, counts=(24, 8), fresh=True),
    "Poisson 2-D with noisy new points": _elliptic(
        *POISSON, counts=(24, 8), fresh=True, noise=10.0
    ),
    "Poisson 2-D with few weights": _elliptic(*POISSON, counts=(1600, 400), width=8),
}  # fmt: skip
HARD = {
    "Poisson 2-D with new points": "32 other points at every step",
    "Poisson 2-D with noisy new points": "the same, f with errors of half its largest value",
    "Poisson 2-D with few weights": "2,000 points, 105 parameters",
}
"""Variants that should be hard for Gauss-Newton: minibatches, more residuals than parameters."""
