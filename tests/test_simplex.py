"""Projection onto the simplex against bisection and a quadratic program, and its faces."""

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from mtlfunc.solvers import simplex

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


def bisected(point, normal):
    """max(point - t·normal, 0), with t found by halving an interval on which normal·y falls through
    1.
    """
    low, high = float(((point * normal - 1) / normal**2).min()) - 1, float((point / normal).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if float(normal @ (point - middle * normal).clamp_min(0)) > 1
            else (low, middle)
        )
    return (point - high * normal).clamp_min(0)


@given(points())
def test_project_equals_bisection(case):
    point, normal = case
    # The threshold comes out of sums of T terms as large as |point|; normal multiplies it.
    noise = (
        16
        * len(point)
        * EPS
        * (1 + point.abs().max() + 1 / normal.min())
        * (normal.max() / normal.min())
    )
    found = simplex.project(point, normal)
    assert (found >= 0).all()
    assert abs(float(normal @ found) - 1) <= noise * float(normal.sum())
    torch.testing.assert_close(found, bisected(point, normal), rtol=0, atol=float(noise))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_project_equals_quadratic_program(seed, weighted):
    rng = np.random.default_rng(seed)
    point, normal = rng.standard_normal(6), rng.uniform(0.5, 2.0, 6) if weighted else np.ones(6)
    constraints = np.hstack([normal[:, None], np.eye(6)])
    expected = quadprog.solve_qp(
        np.eye(6), point, constraints, np.concatenate([[1.0], np.zeros(6)]), meq=1
    )[0]
    found = simplex.project(torch.from_numpy(point), torch.from_numpy(normal) if weighted else None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-13)


@given(points())
def test_project_leaves_the_simplex_alone(case):
    point, _ = case
    w = point.abs() + 1e-3
    w = w / w.sum()
    torch.testing.assert_close(simplex.project(w), w, rtol=0, atol=8 * len(w) * EPS)


def test_project_vmapped_equals_loop():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    assert torch.equal(
        vmap(simplex.project)(points), torch.stack([simplex.project(p) for p in points])
    )


@pytest.mark.parametrize("count", range(1, 7))
def test_faces_are_all_subsets_once(count):
    masks = simplex.faces(count)
    assert masks.shape == (2**count - 1, count)
    assert masks.any(-1).all()
    assert len({tuple(mask) for mask in masks.tolist()}) == 2**count - 1
