"""CAGrad's toy, unrolled: one region, however many steps, and the steps of the plain loop."""

import torch

from common.problems import cagrad_toy as toy


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
    program = toy.compile_steps(names, 2, lanes, state, capture)
    after, points = program(*each, state)
    assert seen == [["subgraph_0"]]
    expected, plain = toy.advance(names, 2)(*each, state)
    torch.testing.assert_close(points, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.params, expected.params, rtol=1e-12, atol=0)
