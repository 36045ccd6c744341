"""PyTorch Lightning with its automatic optimisation, in bfloat16.

    pip install lightning
    python -m experiments.examples.lightning_module

`training_step` returns one loss, weighted by `weigh`, and Lightning does the rest: scaling,
accumulation, clipping, schedules, logging.

What can go wrong:

- `shared="trunk.*"` counts from the module that the balancer gets: `self.net` here; of `self` the
  names would be `net.trunk.*`.
- The rule's state is in no checkpoint without the two hooks below.
- `accumulate_grad_batches=k`: the rule sees every micro-batch alone (accumulation.py).
- `precision="16-mixed"`: Lightning scales the returned loss, and what was measured before is not
  scaled: faint gradients are 0 in it (mixed_precision.py). bfloat16 has no such limit.
- `strategy="ddp"`: every process would weigh its own batch (data_parallel.py).
"""

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mtlfunc as mf
from experiments.examples.problem import Net, batches


class Balanced(lightning.LightningModule):
    """A plain module is this without the marked lines and the hooks, and returns the mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = Net(), []
        self.balancer = mf.Balancer(self.net, mf.pcgrad(), "trunk.*")  # 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        losses = (self.net(x).float() - y).square().mean(0)
        weights, info = self.balancer.weigh(losses)  # 2
        self.log_dict(mf.log_dict(info, names=("first", "second", "third")))
        self.seen.append(losses.detach())
        return weights @ losses  # instead of the mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["balancer"] = self.balancer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.balancer.load_state_dict(checkpoint["balancer"])


def main(module: Balanced, steps: int = 200, **options: Any) -> Tensor:
    """Train in Lightning's loop; returns losses `[step, task]`."""
    common: Any = {"max_epochs": 1, "accelerator": "cpu", "precision": "bf16-mixed"}
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(**common | quiet | options)
    # a list is a dataset; its entries are batches already
    trainer.fit(module, DataLoader(batches(steps, 32), batch_size=None))  # pyright: ignore
    return torch.stack(module.seen)


if __name__ == "__main__":
    print(f"last losses {main(Balanced())[-1].tolist()}")
