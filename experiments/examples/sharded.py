"""Sharded parameters: a stock loop on a module under `fully_shard` (FSDP2).

    torchrun --nproc-per-node 2 -m experiments.examples.sharded [FOLDER]

Every process holds its part of each parameter, of its gradient and of the optimizer's state, and
of the rows of the Jacobian: T times a part of the parameters. The balancer runs one backward pass a
task, in which `fully_shard` reduces and scatters that task's gradient; inner products of the parts
are summed over the processes, and the combination needs no communication at all.

Network and optimizer go through `torch.distributed.checkpoint`, part by part, so that another
number of processes can resume. The balancer's state is the same everywhere, and one process writes
it.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mtlfunc as mf
from experiments.examples.problem import Net, batches


class Run:
    """Network, optimizer and balancer of one process of a mesh, or of one alone."""

    def __init__(self, mesh: Any = None) -> None:
        self.net = Net()
        if mesh is not None:
            fully_shard(self.net.trunk, mesh=mesh)
            fully_shard(self.net, mesh=mesh)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        self.group = mesh or dist.new_group([dist.get_rank()], use_local_synchronization=True)
        self.rank, self.size = (mesh.get_local_rank(), mesh.size()) if mesh else (0, 1)
        # PCGrad draws its orders from this key: the same on every process
        self.balancer = mf.Balancer(
            self.net, mf.pcgrad(), "trunk.*", heads="own", group=self.group, key=0
        )

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (part.tensor_split(self.size)[self.rank] for part in batch)
        losses = (self.net(x) - y).square().mean(0)
        info = self.balancer.backward(losses.unbind())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return info.losses  # of all samples

    def save(self, folder: Path) -> None:
        net, optimizer = get_state_dict(self.net, self.optimizer)
        parts = {"net": net, "optimizer": optimizer, "balancer": self.balancer}
        checkpoint.save(parts, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        net, optimizer = get_state_dict(self.net, self.optimizer)
        parts = {"net": net, "optimizer": optimizer, "balancer": self.balancer}
        checkpoint.load(parts, checkpoint_id=folder)
        set_state_dict(self.net, self.optimizer, model_state_dict=net, optim_state_dict=optimizer)


def main(folder: Path, steps: int = 8, size: int = 32) -> float:
    """Train through a checkpoint halfway, and once more on one process and all samples.

    Args:
        folder: where all processes can read and write.
        steps: batches, one per step.
        size: samples in a batch of all processes; a multiple of their number.

    Returns:
        the largest difference between the two runs' parameters.
    """
    data, half = batches(steps, size), steps // 2
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    run = Run(mesh)
    for batch in data[:half]:
        run.step(batch)
    run.save(folder)
    run = Run(mesh)
    run.load(folder)
    seen = [run.step(batch) for batch in data[half:]]
    whole = [leaf.full_tensor() for leaf in run.net.parameters()]  # pyright: ignore
    alone = Run()
    for batch in data:
        alone.step(batch)
    pairs = zip(whole, alone.net.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    if run.rank == 0:
        print(f"resumed at step {half}; losses of the tasks then {seen[0].tolist()}")
        print(f"and at the last step {seen[-1].tolist()}")
        print(f"largest difference from one process on the union: {apart:.1e}")
    return apart


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl", and "cuda" for the mesh, where processes have GPUs
    with tempfile.TemporaryDirectory() as own:
        places = [sys.argv[1] if len(sys.argv) > 1 else own]
        dist.broadcast_object_list(places)  # the first process's
        main(Path(places[0]))
        dist.barrier()
    dist.destroy_process_group()
