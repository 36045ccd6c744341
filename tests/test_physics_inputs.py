"""Physics losses that cannot work: each is refused, or gives a step of 0, and the words say why."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf

F64 = torch.float64
POINTS = torch.linspace(-1, 1, 24, dtype=F64).sin().reshape(12, 2)


def _net(activation: nn.Module, width: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, width), activation, nn.Linear(width, 1)).double()


def _laplacian(net: nn.Module):
    """The residual Δu - 1 as people write it."""

    def residual(params, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            u = functional_call(net, params, (x,))
            first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            second = [
                torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i]
                for i in range(2)
            ]
        return second[0] + second[1] - 1

    return residual


def _step(residual, damping: float, net: nn.Module, points: Tensor = POINTS):
    step = mf.descend(residual, mf.physics.gauss_newton(damping), mf.jacobian(), mf.sgd(1.0))
    return step.update(step.init(mf.parameters(net), points), points)


def test_a_residual_of_relu_has_no_gradient():
    """Its second derivative is 0 almost everywhere, for all parameters."""
    net = _net(nn.ReLU())
    residual, params = _laplacian(net), mf.parameters(net)
    _, gramian = mf.sample_gramian(residual, params, POINTS)[:2]
    assert not gramian.any()
    assert not mf.sample_norms(residual, params, POINTS)[1].any()
    with pytest.raises(ValueError, match=r"damping: 0 leaves the Gramian of 12 residuals singular"):
        _step(residual, 0.0, net)
    state, _ = _step(residual, 1e-6, net)
    for name, leaf in params.items():
        assert torch.equal(state.params[name], leaf)
