"""Arguments of a balancer that are something else."""

import pytest
from torch import nn

import mtlfunc as mf


def test_arguments_that_are_something_else():
    net = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"module: .*ModuleDict"):
        mf.Balancer([net], mf.mgda())  # pyright: ignore
    with pytest.raises(TypeError, match="rule"):
        mf.Balancer(net, mf.mgda)  # pyright: ignore
    with pytest.raises(ValueError, match="engine"):
        mf.Balancer(net, mf.mgda(), engine="fast")  # pyright: ignore
    with pytest.raises(ValueError, match="reduction"):
        mf.Balancer(net, mf.mgda(), reduction="max")  # pyright: ignore
