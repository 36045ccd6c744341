"""A stock PyTorch loop: optimizer, gradient clipping, checkpoints.

    python -m experiments.examples.stock_loop

What can go wrong:

- Losses from before the last `optimizer.step()`: the balancer says so, as `backward` does.
- `optimizer.zero_grad()` after `balancer.backward` instead of before it: nothing is trained.
- The parameters under `shared` are balanced; the heads get the gradient of the mean loss. Names
  that match nothing are an error, names that match too much are not: look at what they select.
- A checkpoint without `balancer.state_dict()`: random keys, averages and learned weights start
  again, so that a resumed run is another run.

Both loops below take a network and what is called in its place: compiled.py and checkpointing.py
run them on networks of their own.
"""

import io

import torch
from torch import Tensor, nn

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on

Data = list[tuple[Tensor, Tensor]]


def plain(data: Data, net: nn.Module, model: nn.Module | None = None) -> Tensor:
    """The mean loss, as everywhere; returns the losses `[step, task]`."""
    model, seen = net if model is None else model, []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x, y in data:
        losses = (model(x) - y).square().mean(0)
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen.append(losses.detach())
    return torch.stack(seen)


def balanced(
    data: Data,
    net: nn.Module,
    model: nn.Module | None = None,
    *,
    file: io.BytesIO | None = None,
    resume: bool = False,
) -> tuple[Tensor, float]:
    """The same loop with two lines of another kind.

    Args:
        data: a batch a step.
        net: whose parameters are trained.
        model: what is called, the network itself by default.
        file: where a checkpoint is written at the end.
        resume: whether to read it at the start.

    Returns:
        losses `[step, task]`, and the first `.grad`'s difference from a loop over the tasks.
    """
    model, seen, off = net if model is None else model, [], 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    balancer = mf.Balancer(net, mf.pcgrad(), "trunk.*")  # 1
    if file and resume:
        kept = torch.load(file)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        balancer.load_state_dict(kept["balancer"])
    for x, y in data:
        losses = (model(x) - y).square().mean(0)
        optimizer.zero_grad()
        info = balancer.backward(losses)  # 2
        off = off if seen else difference(net, on(x, y), info.weights, "mean")
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen.append(losses.detach())
    if file:
        parts = {"net": net, "optimizer": optimizer, "balancer": balancer}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
    return torch.stack(seen), off


if __name__ == "__main__":
    data, file = batches(200, 32), io.BytesIO()
    print(f"plain     last losses {plain(data, Net())[-1].tolist()}")
    losses, off = balanced(data, Net())
    print(f"balanced  last losses {losses[-1].tolist()}; .grad off a loop by {off:.0e}")
    first, _ = balanced(data[:100], Net(), file=file)
    second, _ = balanced(data[100:], Net(), file=file, resume=True)
    same = torch.equal(losses, torch.cat([first, second]))
    print(f"through a checkpoint at step 100 bit for bit: {same}")
