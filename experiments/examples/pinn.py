"""A physics-informed network: -u'' = π² sin(πx) on [0, 1] with u(0) = u(1) = 0, so u = sin(πx).

    python -m experiments.examples.pinn

The losses are written as everyone writes them: points with `requires_grad_()`, and `u''` by two
calls of `torch.autograd.grad(..., create_graph=True)`. Residual and boundary are two tasks.

What can go wrong:

- ReLU: u'' is zero almost everywhere, and so is the residual's gradient.
- A small loss does not mean a small error: look at u where it is known.
- `x.grad` stays empty: a balancer adds to its module's parameters alone. Unknown coefficients of
  the equation have to be among these.
"""

import math

import torch
from torch import Tensor, nn

import mtlfunc as mf
from experiments.examples.problem import difference


def network() -> nn.Module:
    torch.manual_seed(0)
    one, two, out = nn.Linear(1, 32), nn.Linear(32, 32), nn.Linear(32, 1)
    return nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), out)


def losses_of(net: nn.Module) -> Tensor:
    """[residual, boundary] on 64 points."""
    dtype = next(net.parameters()).dtype
    x = torch.linspace(0, 1, 64, dtype=dtype)[:, None].requires_grad_()
    u = net(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
    residual = (ddu + math.pi**2 * (math.pi * x).sin()).square().mean()
    boundary = net(torch.tensor([[0.0], [1.0]], dtype=dtype)).square().mean()
    return torch.stack([residual, boundary])


def error(net: nn.Module) -> float:
    x = torch.linspace(0, 1, 101)[:, None]
    return float((net(x).detach() - (math.pi * x).sin()).abs().max())


def plain(steps: int) -> tuple[nn.Module, Tensor]:
    net, seen = network(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        losses = losses_of(net)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        seen.append(losses.detach())
    return net, torch.stack(seen)


def balanced(steps: int) -> tuple[nn.Module, Tensor, float]:
    """The network, losses `[step, task]`, and the first `.grad`'s difference from a loop."""
    net, seen, off = network(), [], 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    balancer = mf.Balancer(net, mf.aligned_mtl())  # 1
    for _ in range(steps):
        losses = losses_of(net)
        optimizer.zero_grad()
        info = balancer.backward(losses)  # 2
        off = off if seen else difference(net, losses_of, info.weights)
        optimizer.step()
        seen.append(losses.detach())
    return net, torch.stack(seen), off


if __name__ == "__main__":
    net, losses = plain(500)
    print(f"plain     last losses {losses[-1].tolist()}, error of u {error(net):.4f}")
    net, losses, off = balanced(500)
    print(f"balanced  last losses {losses[-1].tolist()}, error of u {error(net):.4f}, {off=:.0e}")
