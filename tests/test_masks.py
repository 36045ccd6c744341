"""Masks of the probe `jacobian`: what they do must not depend on how parameters are ordered."""

import torch

import mtlfunc as mf
from tests.support.problems import BATCH, PARAMS, vector

SHARED = "trunk.*"


def test_graddrop_does_not_depend_on_the_order_of_the_parameters():
    generator = torch.Generator().manual_seed(5)
    shapes = {"b": (4, 3), "a": (7,), "c.weight": (2, 2), "c.bias": ()}
    rows = {name: torch.randn(3, *s, generator=generator) for name, s in shapes.items()}
    for seed in range(3):
        expected = mf.graddrop(0.1)(mf.random.key(seed), rows)
        for order in (sorted(rows), sorted(rows, reverse=True)):
            edited = mf.graddrop(0.1)(mf.random.key(seed), {name: rows[name] for name in order})
            assert list(edited) == order
            assert all(torch.equal(edited[name], expected[name]) for name in rows)


def test_a_run_with_graddrop_does_not_depend_on_the_order_of_the_parameters():
    step = mf.descend(vector, mf.mean(), mf.jacobian(SHARED, mask=mf.graddrop()), mf.sgd(0.1))
    ends = []
    for params in (PARAMS, dict(reversed(PARAMS.items()))):
        state = step.init(params, BATCH, key=2)
        for _ in range(3):
            state, _ = step.update(state, BATCH)
        ends.append(state.params)
    for name in PARAMS:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-13, atol=1e-15)
