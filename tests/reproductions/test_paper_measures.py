"""Definitions 1, 2 and 5 of PCGrad, on the vectors themselves."""

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
    """On the vectors themselves, with cosines of unit vectors; 1 - cos² and ‖g_i ± g_j‖² lose ε to
    cancellation, relative to their terms.
    """
    G, rows = J @ J.mT, J.numpy()
    cosines, conflicts, similar, bound = (f(G).numpy() for f in PAIRWISE)
    for i, g in enumerate(rows):
        for j, h in enumerate(rows):
            a, b = np.linalg.norm(g), np.linalg.norm(h)
            if a == 0 or b == 0:
                assert np.isnan(cosines[i, j])
                assert np.isnan(bound[i, j])
                assert not conflicts[i, j]
                assert np.isnan(similar[i, j]) if a == b == 0 else similar[i, j] == 0
                continue
            k = (g / a) @ (h / b)
            np.testing.assert_allclose(cosines[i, j], k, rtol=0, atol=64 * EPS)
            if abs(k) > 64 * EPS:
                assert conflicts[i, j] == (k < 0)
            np.testing.assert_allclose(similar[i, j], 2 * a * b / (a**2 + b**2), rtol=64 * EPS)
            plus, minus = np.linalg.norm(g + h) ** 2, np.linalg.norm(g - h) ** 2
            sizes = a**2 + b**2
            if plus > 1e-6 * sizes:
                expected = (1 - k**2) * minus / plus
                np.testing.assert_allclose(
                    bound[i, j], expected, rtol=1e-12, atol=float(1e3 * EPS * sizes**2 / plus**2)
                )
