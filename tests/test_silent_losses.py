"""Losses without a graph, at every step; and those of a vector that read nothing shared."""

import pytest
import torch
from torch.func import functional_call

import mtlfunc as mf
from tests.support.every import every
from tests.support.problems import BATCH, PARAMS, TASKS, TrunkAndHeads

FORMS = {
    "list": list,
    "dict": lambda losses: dict(zip("abc", losses, strict=True)),
    "stack": torch.stack,
    "functions": lambda losses: [lambda x=x: x for x in losses],
}
PROBES = {
    "losses alone": (mf.losses_only, lambda: mf.uw(0.1)),
    "rows": (lambda: mf.jacobian("trunk.*"), mf.mgda),
    "averages": (lambda: mf.moving_average("trunk.*"), mf.moco),
}


def losses_of(net, gone=None):
    """By passes of their own; the loss of `gone` is a constant."""
    found = [(net(BATCH[0])[t] - BATCH[1][:, t]).square().mean() for t in range(TASKS)]
    return [x.detach() if t == gone else x for t, x in enumerate(found)]


@every("step", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_loss_without_graph_is_refused_at_every_step(probe, form, step):
    net, make = TrunkAndHeads(0), FORMS[form]
    balancer = mf.Balancer(net, PROBES[probe][1](), PROBES[probe][0]())
    for _ in range(step):
        balancer.backward(make(losses_of(net)))
    before = str((balancer.state_dict()["state"], [x.grad for x in net.parameters()]))
    with pytest.raises(ValueError, match=r"^losses: no graph for task ('b'|1), as after"):
        balancer.backward(make(losses_of(net, gone=1)))
    assert before == str((balancer.state_dict()["state"], [x.grad for x in net.parameters()]))
    balancer.backward(make(losses_of(net, gone=1)), present=[True, False, True])


def test_so_it_is_in_a_pure_step():
    net = TrunkAndHeads(0)

    def losses(params, gone):
        return tuple(losses_of(lambda x: functional_call(net, params, (x,)), gone))

    step = mf.balance(losses, mf.mgda(), mf.jacobian("trunk.*"))
    with pytest.raises(ValueError, match=r"^losses: no graph for task 2,"):
        step.update(PARAMS, 2, step.init(PARAMS, None))
