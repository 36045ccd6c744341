"""The even grid of the simplex."""

import itertools
import math

import pytest
import torch

from mtlfunc.studies.lattice import simplex_lattice


@pytest.mark.parametrize(("divisions", "tasks"), [(1, 1), (4, 1), (1, 4), (4, 2), (5, 3), (3, 5)])
def test_lattice_is_every_composition(divisions, tasks):
    expected = [
        k for k in itertools.product(range(divisions + 1), repeat=tasks) if sum(k) == divisions
    ]
    found = simplex_lattice(divisions, tasks)
    assert found.shape == (math.comb(divisions + tasks - 1, tasks - 1), tasks)
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float64) / divisions)
