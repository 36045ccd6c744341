"""Mixed precision: autocast around the forward, and the gradient scaler of float16.

    python -m experiments.examples.mixed_precision

`weigh` finds the weights and leaves `.grad` alone, so that scaler, clipping and optimizer see one
ordinary loss. The Gramian is summed in float32, outside autocast. All parameters get the weighted
loss, the heads too.

What can go wrong:

- float16 without a scaler: small derivatives are 0, in `.grad` and in the Gramian, without a word.
  bfloat16 has the range of float32 and needs none.
- `weigh(losses)` next to `scaler.scale(...)`: then `.grad` is right, and the Gramian still of
  derivatives that are 0. Weigh the scaled losses: CAGrad's weights do not depend on the scale. To
  a rule that reads losses, `docs/how-to/recipes.md` gives them without the factor.
- an overflow, for which `weigh` raises where values can be read: the scaler must see it, to skip
  the step and lower its factor.
"""

import torch
from torch import Tensor

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on

Data = list[tuple[Tensor, Tensor]]


def balanced(
    data: Data, half: torch.dtype, rule: mf.Rule, device: str = "cpu"
) -> tuple[Tensor, float]:
    """Losses `[step, task]`, and how far the first `.grad` is from float64.

    A plain loop is this without the marked lines, and `scaler.scale(losses.mean())` goes backward.
    """
    net, seen, off = Net().to(device), [], 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, 2.0**10, enabled=half == torch.float16)
    balancer = mf.Balancer(net, rule, "trunk.*")  # 1
    for x, y in data:
        with torch.autocast(device, half):
            losses = (net(x).float() - y).square().mean(0)
        scaled = scaler.scale(losses)
        try:
            weights, _ = balancer.weigh(scaled)  # 2
        except ValueError:  # an overflow
            weights = torch.full_like(losses, torch.nan)
        optimizer.zero_grad()
        (weights @ scaled).backward()  # instead of the mean
        scaler.unscale_(optimizer)
        if not seen:
            off = difference(net, on(x, y), weights)
        scaler.step(optimizer)
        scaler.update()
        seen.append(losses.detach())
    return torch.stack(seen), off


if __name__ == "__main__":
    where, data = "cuda" if torch.cuda.is_available() else "cpu", batches(200, 32)
    data = [(x.to(where), y.to(where)) for x, y in data]
    for half in (torch.bfloat16, torch.float16):
        for name, rule in {"mean": mf.mean(), "cagrad": mf.cagrad(0.4)}.items():
            losses, off = balanced(data, half, rule, where)
            print(f"{half}, {name:6} last losses {losses[-1].tolist()}; .grad off by {off:.0e}")
