"""Data parallel: a stock loop with DistributedDataParallel, each process with its own samples.

    torchrun --nproc-per-node 2 -m experiments.examples.data_parallel [FOLDER]

Of the loop of one process three things change: the module is wrapped, `group=` tells the balancer
who else there is, and every process reads its own part of the data. Gramian, weights and gradients
are those of all samples together; averaging what each process would do alone is another step,
since the rule's weights depend on products of gradients across processes.

The wrapper's own averaging has nothing to do: its hooks fire in `loss.backward()`, in whose place
`balancer.backward` is. What is left of it is the broadcast of parameters and buffers.

A checkpoint is written by the first process alone, for all hold the same.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mtlfunc as mf
from experiments.examples.problem import Net, batches


class Run:
    """Network, optimizer and balancer of one process of a group."""

    def __init__(self, group: Any) -> None:
        self.net, self.group = Net(), group
        self.wrapped: nn.Module = self.net
        if dist.get_world_size(group) > 1:
            self.wrapped = DistributedDataParallel(self.net, process_group=group)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        # PCGrad draws its orders from this key: the same on every process
        self.balancer = mf.Balancer(
            self.wrapped, mf.pcgrad(), mf.jacobian(self.net.trunk, heads="own", group=group), key=0
        )

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        rank, size = dist.get_rank(self.group), dist.get_world_size(self.group)
        x, y = (part.tensor_split(size)[rank] for part in batch)  # a DistributedSampler's work
        losses = (self.wrapped(x) - y).square().mean(0)
        info = self.balancer.backward(losses.unbind())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return info.losses  # of all samples

    def save(self, path: Path) -> None:
        if dist.get_rank(self.group) == 0:
            parts = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(parts | {"balancer": self.balancer.state_dict()}, path)
        dist.barrier(self.group)

    def load(self, path: Path) -> None:
        parts = torch.load(path)
        self.net.load_state_dict(parts["net"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.balancer.load_state_dict(parts["balancer"])


def main(folder: Path, steps: int = 8, size: int = 32) -> float:
    """Train through a checkpoint halfway, and once more on one process and all samples.

    Args:
        folder: where all processes can read.
        steps: batches, one per step.
        size: samples in a batch of all processes; a multiple of their number.

    Returns:
        the largest difference between the two runs' parameters.
    """
    data, half = batches(steps, size), steps // 2
    run = Run(dist.group.WORLD)
    for batch in data[:half]:
        run.step(batch)
    run.save(folder / "run.pt")
    run = Run(dist.group.WORLD)
    run.load(folder / "run.pt")
    seen = [run.step(batch) for batch in data[half:]]
    first = dist.get_rank() == 0
    if first:
        print(f"resumed at step {half}; losses of the tasks then {seen[0].tolist()}")
        print(f"and at the last step {seen[-1].tolist()}")
    # a group of this process, which says that it is meant to be alone
    alone = Run(dist.new_group([dist.get_rank()], use_local_synchronization=True))
    for batch in data:
        alone.step(batch)
    pairs = zip(run.net.parameters(), alone.net.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    if first:
        print(f"largest difference from one process on the union: {apart:.1e}")
    return apart


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl" where every process has a GPU
    with tempfile.TemporaryDirectory() as own:
        places = [sys.argv[1] if len(sys.argv) > 1 else own]
        dist.broadcast_object_list(places)  # the first process's
        main(Path(places[0]))
        dist.barrier()
    dist.destroy_process_group()
