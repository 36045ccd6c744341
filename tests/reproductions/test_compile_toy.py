"""Unrolled programs: one region, however many steps, and the steps of the plain loop."""

import os

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from common.problems import cagrad_toy as toy
from common.regions import compile_steps, plain_steps
from mtlfunc.types import TrainState
from paper_repro.pcgrad import landscape

pytestmark = pytest.mark.skipif(
    "MTLFUNC_TYPES" in os.environ, reason="torch traces no constructor whose types are enforced"
)


def test_unrolled_steps_are_one_region_called_again():
    # its graph holds NaN, by which a region that is traced anew seems another one
    names = ("PCGrad",)
    lanes, _, _ = toy.lanes_of(*names, torch.zeros(0, 2, dtype=torch.float64))
    state, each = toy.start_of(names, lanes), (lanes.which, lanes.hyper, lanes.sign)
    seen = []

    def capture(graph, inputs):
        seen.append([name for name, _ in graph.named_children()])
        return graph.forward

    torch.compiler.reset()
    after, points = toy.compile_steps(names, 2, lanes, state, capture)(*each, state)
    assert seen == [["subgraph_0"]]
    expected, plain = toy.advance(names, 2)(*each, state)
    torch.testing.assert_close(points, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.params, expected.params, rtol=1e-12, atol=0)


def test_pcgrads_landscape_is_compiled():
    # without a compiler its default run is shorter, which moves verdicts
    lanes = landscape.lanes_of(2)
    each = (lanes.arm, lanes.sgd, lanes.lr)

    def first(arm: Tensor, sgd: Tensor, lr: Tensor, start: Tensor) -> TrainState:
        return landscape.step_of(arm, sgd, lr).init({"theta": start}, None)

    def advance(arm: Tensor, sgd: Tensor, lr: Tensor, state: TrainState) -> TrainState:
        return landscape.step_of(arm, sgd, lr).update(state, None)[0]

    state, step = vmap(first)(*each, lanes.start), vmap(advance)
    torch.compiler.reset()
    program = compile_steps(step, 2, each, state, "theta", lambda graph, _: graph.forward)
    after, points = program(*each, state)
    expected, plain = plain_steps(step, 2, "theta")(*each, state)
    torch.testing.assert_close(points, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.params, expected.params, rtol=1e-12, atol=0)
