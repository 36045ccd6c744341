"""Memory of a step whose losses are functions: `python -m experiments.benchmarks.in_turn`.

ResNet-18 for small images with a head for each task, every task with images of its own. Counted are
the bytes of all storages that operations return and that are alive at once, parameters aside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from experiments.benchmarks.networks import resnet18


class Alive(TorchDispatchMode):
    """The most bytes that are alive at once, those of parameters aside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.aside = {x.untyped_storage()._cdata for x in net.parameters()}
        self.alive: dict[int, Any] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, Tensor) else None
            if storage is not None and storage._cdata not in self.aside | self.alive.keys():
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.bytes += storage.nbytes()
        for key in [key for key, (ref, _) in self.alive.items() if ref.expired()]:
            self.bytes -= self.alive.pop(key)[1]
        self.peak = max(self.peak, self.bytes)
        return out


def peak(net: nn.Module, step: Callable[[], Any]) -> float:
    """MiB of the second of two steps."""
    step()
    net.zero_grad()
    with Alive(net) as seen:
        step()
    net.zero_grad()
    return seen.peak / 2**20


def table(tasks: int, batch: int = 16, image: int = 32) -> dict[str, float]:
    torch.manual_seed(0)
    trunk, heads = resnet18(64), nn.ModuleList(nn.Linear(64, 10) for _ in range(tasks))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads})
    data = [(torch.randn(batch, 3, image, image), torch.randint(10, (batch,))) for _ in heads]
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")

    def loss(task: int) -> Tensor:
        x, y = data[task]
        return F.cross_entropy(heads[task](trunk(x)), y)

    row = sum(p.numel() * p.element_size() for p in trunk.parameters()) / 2**20
    in_turn = [partial(loss, task) for task in range(tasks)]
    return {
        "one task alone, `loss.backward()`": peak(net, lambda: loss(0).backward()),
        "rows of the trunk": tasks * row,
        "functions": peak(net, lambda: balancer.backward(in_turn)),
        "losses together": peak(
            net, lambda: balancer.backward([loss(task) for task in range(tasks)])
        ),
    }


def main(counts: tuple[int, ...] = (3, 8), **size: int) -> None:
    found = {count: table(count, **size) for count in counts}
    print(f"| MiB | {' | '.join(f'T = {count}' for count in counts)} |")
    print("|---" * (1 + len(counts)) + "|")
    for name in found[counts[0]]:
        print(f"| {name} | {' | '.join(f'{found[count][name]:.0f}' for count in counts)} |")


if __name__ == "__main__":
    main()
