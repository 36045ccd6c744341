"""Projection onto the simplex against bisection."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlfunc.solvers import simplex
from tests.support.oracles import bisected, near

EPS = torch.finfo(torch.float64).eps


@st.composite
def points(draw):
    """A point and a positive normal; both may be spread over several orders of magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 40))
    point = rng.standard_normal(count) * 10.0 ** draw(st.integers(-3, 3))
    if draw(st.booleans()):
        point = np.round(point)  # ties
    normal = np.ones(count) if draw(st.booleans()) else 10.0 ** rng.uniform(-2, 2, count)
    return torch.from_numpy(point), torch.from_numpy(normal)


@given(points())
def test_project_equals_bisection(case):
    point, normal = case
    # The threshold comes out of sums of T terms as large as |point|; normal multiplies it.
    size = (1 + point.abs().max() + 1 / normal.min()) * (normal.max() / normal.min())
    noise = 16 * len(point) * EPS * size
    found = simplex.project(point, None if (normal == 1).all() else normal)
    assert (found >= 0).all()
    assert abs(float(normal @ found) - 1) <= noise * float(normal.sum())
    near(found, bisected(point, normal), 0, float(noise))
