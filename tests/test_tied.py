"""A parameter of several names is chosen by the first of them, or by its module."""

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


def made(first, whole=False) -> Any:
    torch.manual_seed(0)
    net = Tied(first, whole)
    x = torch.randn(5, 4, dtype=F64)
    return net, lambda params, x: functional_call(net, params, (x,)).square().mean(0), x


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("first", ["trunk", "head"])
def test_a_tied_parameter_is_chosen_by_its_first_name_or_its_module(first, whole):
    """Also on parameters of later steps."""
    net, losses, x = made(first, whole)
    params = mf.parameters(net)
    if whole:
        assert params.keys() == {f"{first}.weight", f"{first}.bias"}
    expected = gramian_of(losses, params, x, net.trunk)
    moved = {name: leaf.clone() for name, leaf in params.items()}
    names = [f"{first}.weight", f"{first if whole else 'trunk'}.bias"]
    for some in (params, moved):
        for which in (names, names.__contains__, net.trunk):
            torch.testing.assert_close(gramian_of(losses, some, x, which), expected)
    found = vmap(lambda p: gramian_of(losses, p, x, names))(mf.stack([net, net]))[1]
    torch.testing.assert_close(found, expected)
    # functional_call leaves other tensors in a module that has two names
    for which in (names,) if whole else (names, net.trunk):
        step = mf.balance(losses, mf.mgda(), mf.jacobian(which))
        _, _, info = step.update(moved, x, step.init(moved, x))
        torch.testing.assert_close(info.gramian, expected)
        info = mf.Balancer(net, mf.mgda(), shared=which).measure(net(x).square().mean(0))
        torch.testing.assert_close(info.gramian, expected)


def test_another_name_of_a_tied_parameter_is_none():
    net, losses, x = made("head", whole=True)
    with pytest.raises(ValueError, match=r"'trunk\.\*' matches no parameter.*first name alone"):
        gramian_of(losses, mf.parameters(net), x, "trunk.*")
