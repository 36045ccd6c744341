"""Projections on thin cones of gradients, against exact fractions from the gradients themselves."""

from fractions import Fraction
from itertools import combinations

import pytest
import torch

import mtlfunc as mf
from mtlfunc.solvers.problems import resolution
from mtlfunc.solvers.simplex import faces

EPS = torch.finfo(torch.float64).eps
OPENINGS = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12]


def almost_antiparallel(opening, seed):
    """Four gradients of which two leave a cone of this opening between them."""
    draw = torch.Generator().manual_seed(seed)
    J = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    axis, aside = J[2] / J[2].norm(), torch.randn(6, generator=draw, dtype=torch.float64)
    aside = aside - (aside @ axis) * axis
    J[3] = -1.5 * (axis + opening * aside / aside.norm())
    return J


def exact_projection(J):
    """The mean gradient projected on {d: J d >= 0}, in rational arithmetic, face by face."""
    rows = [[Fraction(float(x)) for x in row] for row in J]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    for face in (f for size in range(len(J) + 1) for f in combinations(rows, size)):
        system: list[list] = [[*(dot(a, b) for b in face), -dot(a, mean)] for a in face]
        for p in range(len(face)):  # Gauss–Jordan; rows in general position
            pivot = system[p] = [x / system[p][p] for x in system[p]]
            for r, row in enumerate(system):
                if r != p:
                    system[r] = [x - row[p] * y for x, y in zip(row, pivot, strict=True)]
        u = [row[-1] for row in system]
        d = [x + dot(u, column) for x, column in zip(mean, zip(*face, strict=True), strict=False)]
        d = d if face else mean
        if min(u, default=0) >= 0 and min(dot(row, d) for row in rows) >= 0:
            return torch.tensor([float(x) for x in d], dtype=torch.float64)
    raise AssertionError("no face meets the optimality conditions")


@pytest.mark.usefixtures("roundings")
@pytest.mark.parametrize("opening", OPENINGS)
def test_aggregate_is_exact_as_far_as_its_gramian_resolves_the_cone(opening):
    """With s the least singular value of the unit rows of a face: the proximal steps leave
    (δ/(s² + δ))² of each of its T constraints, and solving it Tε/(s² + δ) of rounding. No task is
    hurt by more than √δ‖g_t‖‖g₀‖, resolved or not.
    """
    delta = resolution(4, EPS)
    for seed in range(10):
        J = almost_antiparallel(opening, seed)
        n = J.norm(dim=1)
        unit, length = J / n[:, None], J.mean(0).norm()
        d = mf.aggregate(mf.dualproj(), J)
        assert (J @ d >= -(delta**0.5) * n * length).all()
        face = faces(4, J.device)
        cosines = torch.where(face[:, :, None] & face[:, None], unit @ unit.mT, 0.0)
        square = torch.linalg.eigvalsh(cosines + torch.diag_embed((~face).double()))[:, 0]
        square = square.clamp_min(0)
        left = (delta / (square + delta)) ** 2 + 4 * EPS / (square + delta)
        assert (d - exact_projection(J)).norm() <= len(J) * float(left.max()) * length
