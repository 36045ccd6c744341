"""A network written out by hand, and its gradients by torch.autograd."""

from itertools import pairwise

import torch
from torch import nn

import mtlfunc as mf
from tests.support.oracles import rows_by_name


def perceptron(*widths, activation: type[nn.Module] = nn.Tanh, **more) -> nn.Sequential:
    """Linear layers of these widths, in float64 and always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [(nn.Linear(*ends, **more), activation()) for ends in pairwise(widths)]
        return nn.Sequential(*sum(layers, ())[:-1]).double()


def network(seed=0, tasks=3):
    """A trunk of two layers and a head a task, in float64, with a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(tasks))
        net = nn.ModuleDict({"trunk": trunk, "heads": heads}).double()
        x, y = torch.randn(6, 4).double(), torch.randn(6, tasks).double()

    def forward(params, batch):
        x, y = batch

        def layer(name, h):
            return h @ params[f"{name}.weight"].mT + params[f"{name}.bias"]

        h = layer("trunk.2", torch.tanh(layer("trunk.0", x)))
        out = torch.cat([layer(f"heads.{t}", h) for t in range(tasks)], 1)
        return (out - y).square().mean(0)

    return forward, mf.parameters(net), (x, y)


def gradient_rows(losses, params, batch, names):
    """By torch.autograd, one task at a time: {name: [task, *shape]}."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    return rows_by_name(losses(leaves, batch), {name: leaves[name] for name in names})
