"""A network through `torch.compile`.

    python -m experiments.examples.compiled

What can go wrong:

- A compiled network gives its buffers away in the first backward pass, and balancing has several:
  `donated_buffer = False` below, before it is compiled. The balancer also says so.
- Parameters of compiled calls are not watched, so they are differentiated row by row, and losses in
  one vector one after the other where the compiled backward takes no batch of rows.
- `torch.compile` around the whole step: a balancer changes `.grad`, so it stays outside; inside
  compiled functions there is `mtlfunc.balance`, which is pure.
- Names are those of the network itself: `trunk.*`, not `_orig_mod.trunk.*`.
"""

import torch
import torch._functorch.config
from torch import Tensor

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on


def plain(data: list[tuple[Tensor, Tensor]], backend: str = "inductor") -> Tensor:
    net, seen = Net(), []
    compiled = torch.compile(net, backend=backend)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x, y in data:
        losses = (compiled(x) - y).square().mean(0)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen)


def balanced(data: list[tuple[Tensor, Tensor]], backend: str = "inductor") -> tuple[Tensor, float]:
    """Losses `[step, task]`, and the first `.grad`'s difference from a loop over the tasks."""
    net, seen, off = Net(), [], 0.0
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(net, backend=backend)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    balancer = mf.Balancer(net, mf.cagrad(0.4), "trunk.*")  # 1
    for x, y in data:
        losses = (compiled(x) - y).square().mean(0)
        optimizer.zero_grad()
        info = balancer.backward(losses)  # 2
        if not seen:
            off = difference(net, on(x, y), info.weights, "mean")
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen), off


if __name__ == "__main__":
    data = batches(200, 32)
    print(f"plain     last losses {plain(data)[-1].tolist()}")
    losses, off = balanced(data)
    print(f"balanced  last losses {losses[-1].tolist()}; .grad off a loop by {off:.0e}")
