"""A stock PyTorch loop: optimizer, gradient clipping, checkpoints.

    python -m experiments.examples.stock_loop

What can go wrong:

- Losses from before the last `optimizer.step()`: the balancer says so, as `backward` does.
- `optimizer.zero_grad()` after `balancer.backward` instead of before it: nothing is trained.
- The parameters under `shared` are balanced; the heads get the gradient of the mean loss. Names
  that match nothing are an error, names that match too much are not: look at what they select.
- A checkpoint without `balancer.state_dict()`: random keys, averages and learned weights start
  again, so that a resumed run is another run.
"""

import io

import torch
from torch import Tensor, nn

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on

Data = list[tuple[Tensor, Tensor]]


def plain(data: Data) -> Tensor:
    """The mean loss, as everywhere; returns the losses `[step, task]`."""
    net, seen = Net(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x, y in data:
        losses = (net(x) - y).square().mean(0)
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen)


def balanced(data: Data, checkpoint: io.BytesIO, resume: bool = False) -> tuple[Tensor, float]:
    """The same loop with two lines of another kind.

    Args:
        data: a batch a step.
        checkpoint: where to write at the end.
        resume: whether to read there at the start.

    Returns:
        losses `[step, task]`, and the first `.grad`'s difference from a loop over the tasks.
    """
    net, seen, off = Net(), [], 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    balancer = mf.Balancer(net, mf.pcgrad(), "trunk.*")  # 1
    if resume:
        kept = torch.load(checkpoint)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        balancer.load_state_dict(kept["balancer"])
    for x, y in data:
        losses = (net(x) - y).square().mean(0)
        optimizer.zero_grad()
        info = balancer.backward(losses)  # 2
        off = off if seen else difference(net, on(x, y), info.weights, "mean")
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen.append(losses.detach())
    parts = {"net": net, "optimizer": optimizer, "balancer": balancer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    checkpoint.seek(0)
    return torch.stack(seen), off


if __name__ == "__main__":
    data, file = batches(200, 32), io.BytesIO()
    print(f"plain     last losses {plain(data)[-1].tolist()}")
    losses, off = balanced(data, io.BytesIO())
    print(f"balanced  last losses {losses[-1].tolist()}; .grad off a loop by {off:.0e}")
    both = [balanced(data[:100], file)[0], balanced(data[100:], file, resume=True)[0]]
    print(f"through a checkpoint at step 100 bit for bit: {torch.equal(losses, torch.cat(both))}")
