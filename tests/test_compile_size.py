"""How large the graph of a compiled step is: what a rule adds to it, and what it does not."""

from collections import Counter

import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf


def graph_of(rule: mf.Rule) -> Counter[str]:
    """What the graph of one `balance` step calls, of three tasks on a convolution."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).eval()
    params = mf.parameters(module)
    batch = torch.randn(2, 3, 4, 4)
    calls: Counter[str] = Counter()

    def losses(params, x):
        return functional_call(module, params, (x,)).tanh().square().mean((0, 2, 3))

    def counting(graph, inputs):
        calls.update(str(node.target) for node in graph.graph.nodes if "call" in node.op)
        return graph.forward

    step = mf.balance(losses, rule, mf.jacobian())
    state = step.init(params, batch)
    torch.compiler.reset()
    torch.compile(step.update, fullgraph=True, backend=counting)(params, batch, state)
    return calls


def test_a_random_order_is_no_sort():
    """Which not every Triton can fuse with the numbers that are sorted."""
    for rule in (mf.pcgrad(), mf.gradvac(0.3)):
        calls = graph_of(rule)
        assert any("scatter" in name for name in calls)
        assert not any("sort" in name for name in calls)


def test_exact_weights_are_one_operator_of_the_graph():
    """Less than half of what the formulas of every face come to."""
    rules = mf.mean(), mf.cagrad(0.5), mf.cagrad(0.5, solver=mf.solvers.faces())
    mean, exact, formulas = map(graph_of, rules)
    assert [sum("active_set" in name for name in calls) for calls in (mean, exact)] == [0, 1]
    added = exact.total() - mean.total()
    assert added > 0
    assert 2 * added < formulas.total() - mean.total()
