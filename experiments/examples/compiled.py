"""A network through `torch.compile`, in the loops of stock_loop.py.

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

from typing import Any

import torch
import torch._functorch.config

from experiments.examples.problem import Net, batches
from experiments.examples.stock_loop import balanced, plain


def compiled(backend: str = "inductor") -> tuple[Net, Any]:
    """A network for the balancer, and what the loop calls."""
    torch._functorch.config.donated_buffer = False
    net = Net()
    return net, torch.compile(net, backend=backend)


if __name__ == "__main__":
    data = batches(200, 32)
    print(f"plain     last losses {plain(data, *compiled())[-1].tolist()}")
    losses, off = balanced(data, *compiled())
    print(f"balanced  last losses {losses[-1].tolist()}; .grad off a loop by {off:.0e}")
