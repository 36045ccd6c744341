"""Activation checkpointing: the trunk's activations are computed again in the backward passes.

    python -m experiments.examples.checkpointing

What can go wrong:

- `use_reentrant=True`: torch's old checkpointing cannot be differentiated for chosen leaves, and
  raises.
- Calls inside a checkpoint are not watched, because that would hold their activations: their
  leaves are differentiated row by row. The checkpoint runs again once for a vector of losses, and
  once per task for separate scalars. `forwards` below counts this.
- `weigh`: the backward pass that follows runs the checkpoint once more.
- Dropout in the checkpoint: torch restores the generator for every pass (its default,
  `preserve_rng_state=True`), so that all tasks see one mask.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on


class Checkpointed(Net):
    """The same network; `forwards` counts the runs of its trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.trunk.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1

    def forward(self, x: Tensor) -> Tensor:
        z = checkpoint(self.trunk, x, use_reentrant=False)
        return torch.cat([head(z) for head in self.heads], 1)


def plain(data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    net, seen = Checkpointed(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x, y in data:
        losses = (net(x) - y).square().mean(0)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen), net.forwards / len(data)


def balanced(data: list[tuple[Tensor, Tensor]], kind: type[Net] = Checkpointed):
    """Losses `[step, task]`, the first `.grad`'s difference from a loop, forwards a step."""
    net, seen, off = kind(), [], 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    balancer = mf.Balancer(net, mf.cagrad(0.4), "trunk.*")  # 1
    for x, y in data:
        losses = (net(x) - y).square().mean(0)
        optimizer.zero_grad()
        info = balancer.backward(losses)  # 2
        if not seen:
            off = difference(net, on(x, y), info.weights, "mean")
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen), off, getattr(net, "forwards", len(data)) / len(data)


if __name__ == "__main__":
    data = batches(200, 32)
    losses, forwards = plain(data)
    print(f"plain     last losses {losses[-1].tolist()}; {forwards:.1f} forwards a step")
    losses, off, forwards = balanced(data)
    print(f"balanced  last losses {losses[-1].tolist()}; {forwards:.1f} forwards a step;")
    print(f"          .grad off a loop by {off:.0e}")
    print(f"          without checkpointing {balanced(data, Net)[0][-1].tolist()}")
