"""What the examples train: three regressions on one trunk, on data that conflict."""

import torch
from torch import Tensor, nn

TASKS = 3


class Net(nn.Module):
    """A shared trunk, and a head for each task.

    `mtlfunc` needs no base class and no hook: only names, here `trunk.*`.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(TASKS))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x `[sample, 8]` to predictions `[sample, task]`."""
        z = self.trunk(x)
        return torch.cat([head(z) for head in self.heads], 1)


def batches(
    count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """Batches of inputs `[sample, 8]` and targets `[sample, task]`, of tasks that conflict.

    Args:
        count: how many.
        size: samples in each.
        seed: of the data.
        dtype: of inputs and targets.
    """
    draw = torch.Generator().manual_seed(seed)
    teacher = torch.randn(8, TASKS, generator=draw, dtype=torch.float64) / 8**0.5
    x = torch.randn(count, size, 8, generator=draw, dtype=torch.float64)
    noise = torch.randn(count, size, TASKS, generator=draw, dtype=torch.float64)
    y = ((x @ teacher).sin() + 0.1 * noise) * torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64)
    return list(zip(x.to(dtype), y.to(dtype), strict=True))
