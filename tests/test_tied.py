"""A parameter of several names is chosen by any of them."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import mtlfunc as mf

F64 = torch.float64


def gramian_of(losses, params, x, shared):
    return mf.task_gramian(losses, params, x, shared=shared)[1]


class Tied(nn.Module):
    """A trunk whose weight is also the heads', which `first` may register before it."""

    trunk: nn.Linear
    head: nn.Linear

    def __init__(self, first, whole=False):
        super().__init__()
        made = {"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 4)}
        for name in (first, *made):
            setattr(self, name, made[name])
        if whole:  # one module of two names
            setattr(self, first, getattr(self, {"trunk": "head", "head": "trunk"}[first]))
        else:
            self.trunk.weight = self.head.weight
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)))


CHOICES = {
    "a glob": "trunk.*",
    "its name": ["trunk.weight", "trunk.bias"],
    "a predicate": lambda name: name.startswith("trunk."),
    "globs": ["trunk.w*", "trunk.b*"],
}


def made(first, whole=False) -> Any:
    torch.manual_seed(0)
    net = Tied(first, whole)
    x = torch.randn(5, 4, dtype=F64)

    def losses(params, x):
        return functional_call(net, params, (x,)).square().mean(0)

    return net, losses, x


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("first", ["trunk", "head"])
@pytest.mark.parametrize("which", CHOICES.values(), ids=CHOICES)
def test_any_name_of_a_tied_parameter_chooses_it(first, whole, which):
    """As the module itself does, whichever name came first, also on parameters of later steps."""
    net, losses, x = made(first, whole)
    params = mf.parameters(net)
    expected = gramian_of(losses, params, x, net.trunk)
    moved = {name: leaf.clone() for name, leaf in params.items()}
    for some in (params, moved):
        torch.testing.assert_close(gramian_of(losses, some, x, which), expected)
    torch.testing.assert_close(
        vmap(lambda p: gramian_of(losses, p, x, which))(mf.stack([net, net]))[1],
        expected,
    )
    for measure in (None, which):
        probe = mf.jacobian(which, gramian_over=measure)
        step = mf.balance(losses, mf.mgda(), probe)
        _, _, info = step.update(moved, x, step.init(moved, x))
        torch.testing.assert_close(info.gramian, expected)
    same = mf.Balancer(net, mf.mgda(), shared=net.trunk).measure(net(x).square().mean(0))
    info = mf.Balancer(net, mf.mgda(), shared=which).measure(net(x).square().mean(0))
    torch.testing.assert_close(info.gramian, same.gramian)
    torch.testing.assert_close(info.gramian, expected)


def test_a_tie_made_later_is_seen_and_one_undone_forgotten():
    net, losses, x = made("head")
    mf.parameters(net)
    net.trunk.weight = nn.Parameter(net.trunk.weight.detach().clone())
    params = mf.parameters(net)
    alone = gramian_of(losses, params, x, net.trunk)
    torch.testing.assert_close(gramian_of(losses, params, x, "trunk.*"), alone)
    net.trunk.weight = net.head.weight
    params = mf.parameters(net)
    both = gramian_of(losses, params, x, net.trunk)
    torch.testing.assert_close(gramian_of(losses, params, x, "trunk.*"), both)
    assert not torch.allclose(alone, both)


def test_names_that_two_modules_tie_differently_are_refused():
    """Parameters of a later step have only names, so nothing says which module is meant."""
    net, losses, x = made("head")
    other, _, _ = made("head")
    other.trunk.weight = nn.Parameter(torch.ones(4, 4, dtype=F64))
    other.trunk.register_parameter("weight", None)
    names = set(mf.parameters(net))
    assert set(mf.parameters(other)) == names
    moved = {name: leaf.clone() for name, leaf in mf.parameters(net).items()}
    with pytest.raises(ValueError, match=r"shared: .*another module.*pass the module"):
        gramian_of(losses, moved, x, "trunk.*")
    gramian_of(losses, moved, x, "head.*")  # both modules agree
    gramian_of(losses, moved, x, net.trunk)
