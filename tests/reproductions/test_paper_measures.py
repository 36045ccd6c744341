"""Definitions 1, 2 and 5 of PCGrad, on the vectors themselves."""

from itertools import product

import numpy as np
import torch
from hypothesis import given

from mtlfunc.analysis import diagnostics
from paper_repro.pcgrad.measures import conflicting, curvature_bound, magnitude_similarity
from tests.support.families import FAMILIES, jacobians

EPS = torch.finfo(torch.float64).eps
PAIRWISE = [diagnostics.cosines, conflicting, magnitude_similarity, curvature_bound]


@given(
    jacobians(
        least=2,
        families=tuple(f for f in FAMILIES if f not in ("near_duplicates", "near_stationary")),
    )
)
def test_pairwise_diagnostics_equal_definitions(J):
    """1 - cos² and ‖g_i ± g_j‖² lose ε to cancellation, relative to their terms."""
    cosines, conflicts, similar, bound = (f(J @ J.mT).numpy() for f in PAIRWISE)
    for (i, g), (j, h) in product(enumerate(J.numpy()), repeat=2):
        a, b = np.linalg.norm(g), np.linalg.norm(h)
        if a == 0 or b == 0:
            assert np.isnan([cosines[i, j], bound[i, j]]).all()
            assert not conflicts[i, j]
            assert np.isnan(similar[i, j]) if a == b == 0 else similar[i, j] == 0
            continue
        k = (g / a) @ (h / b)
        np.testing.assert_allclose(cosines[i, j], k, rtol=0, atol=64 * EPS)
        assert abs(k) <= 64 * EPS or conflicts[i, j] == (k < 0)
        sizes = a**2 + b**2
        np.testing.assert_allclose(similar[i, j], 2 * a * b / sizes, rtol=64 * EPS)
        plus, minus = np.linalg.norm(g + h) ** 2, np.linalg.norm(g - h) ** 2
        if plus > 1e-6 * sizes:
            lost = float(1e3 * EPS * sizes**2 / plus**2)
            expected = (1 - k**2) * minus / plus
            np.testing.assert_allclose(bound[i, j], expected, rtol=1e-12, atol=lost)
