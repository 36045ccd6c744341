"""Activation checkpointing: the trunk's activations are computed again in the backward passes of
the loops of stock_loop.py.

    python -m experiments.examples.checkpointing

What can go wrong:

- `use_reentrant=True`: torch's old checkpointing raises where leaves are chosen.
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

from experiments.examples.problem import Net, batches
from experiments.examples.stock_loop import balanced, plain


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


if __name__ == "__main__":
    data = batches(200, 32)
    for loop in (plain, balanced):
        net = Checkpointed()
        loop(data, net)
        print(f"{loop.__name__:9} {net.forwards / len(data):.1f} forwards a step")
    losses, off = balanced(data, Checkpointed())
    print(f"balanced  last losses {losses[-1].tolist()}; .grad off a loop by {off:.0e}")
    print(f"without checkpointing {balanced(data, Net())[0][-1].tolist()}")
