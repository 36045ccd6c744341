"""CAGrad's toy, unrolled: one region, however many steps, and the steps of the plain loop."""

import torch
from torch.func import vmap

from paper_repro.cagrad import toy


def test_unrolled_steps_are_one_region_called_again():
    name = "PCGrad"  # its graph holds NaN, by which a region that is traced anew seems another one
    lanes, _, _ = toy.lanes_of(name, torch.zeros(0, 2, dtype=torch.float64))
    state = vmap(lambda hyper, sign, x: toy.step_of(name, hyper).init({"x": x}, sign))(*lanes[::-1])
    seen = []

    def capture(graph, inputs):
        seen.append([name for name, _ in graph.named_children()])
        return graph.forward

    torch.compiler.reset()
    program = toy.compile_steps(name, 2, lanes, state, capture)
    after, points = program(lanes.hyper, lanes.sign, state)
    assert seen == [["subgraph_0"]]
    expected, plain = toy.advance(name, 2)(lanes.hyper, lanes.sign, state)
    torch.testing.assert_close(points, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.params, expected.params, rtol=1e-12, atol=0)
