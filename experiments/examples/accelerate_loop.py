"""Hugging Face `accelerate`, in bfloat16 and with gradient accumulation.

    pip install accelerate
    python -m experiments.examples.accelerate_loop

`weigh` gives one loss, and `accelerator.backward` takes it: scaling, accumulation and clipping stay
Accelerate's. A balancer has `state_dict` and `load_state_dict`, which is all that
`register_for_checkpointing` wants: `save_state` and `load_state` then also keep the rule's state.

What can go wrong:

- With several processes `prepare` returns a DistributedDataParallel, which a balancer refuses:
  every process would weigh its own batch (data_parallel.py).
- A balancer made before `prepare` knows the network that was handed in; where `prepare` returns
  another one, its parameters are not in the losses, and the balancer says so. Make it afterwards.
- `gradient_accumulation_steps=k`: the rule sees every micro-batch alone (accumulation.py).
"""

import torch
from accelerate import Accelerator
from torch import Tensor

import mtlfunc as mf
from experiments.examples.problem import Net, batches, difference, on

Data = list[tuple[Tensor, Tensor]]


def balanced(
    data: Data, accelerator: Accelerator, rule: mf.Rule
) -> tuple[Tensor, float, mf.Balancer]:
    """Losses `[step, task]`, the first `.grad`'s difference from float64, the balancer.

    A plain loop is this without the marked lines, and `losses.mean()` goes backward.
    """
    net, seen, off = Net(), [], 0.0
    net, optimizer = accelerator.prepare(net, torch.optim.Adam(net.parameters(), lr=1e-2))
    balancer = mf.Balancer(net, rule, "trunk.*")  # 1
    accelerator.register_for_checkpointing(balancer)
    for x, y in data:
        with accelerator.accumulate(net):
            losses = (net(x) - y).square().mean(0)
            weights, _ = balancer.weigh(losses)  # 2
            accelerator.backward(weights @ losses)  # instead of the mean
            if not seen:
                share = weights / accelerator.gradient_accumulation_steps
                off = difference(net, on(x, y), share)
            optimizer.step()
            optimizer.zero_grad()
        seen.append(losses.detach())
    return torch.stack(seen), off, balancer


if __name__ == "__main__":
    both = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    for name, rule in {"mean": mf.mean(), "pcgrad": mf.pcgrad()}.items():
        losses, off, _ = balanced(batches(200, 32), both, rule)
        print(f"{name:6} last losses {losses[-1].tolist()}; .grad off float64 by {off:.0e}")
