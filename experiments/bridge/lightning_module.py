"""PyTorch Lightning, by manual optimization.

    pip install lightning
    python -m experiments.bridge.lightning_module

Lightning's automatic optimization calls `backward` on one loss; a balanced step has a gradient
instead. So `automatic_optimization = False`, and `training_step` does what the stock loop does. The
rest of Lightning (loaders, logging, checkpoints, devices) works as ever, with three things to know:

- The balance's state goes into the checkpoint by two hooks.
- `Trainer(gradient_clip_val=…)` is for automatic optimization; call `self.clip_gradients`. The
  schedule is stepped by hand, too.
- `Trainer(precision="bf16-mixed")` opens autocast around `training_step`, which a balanced step
  refuses, because the Gramian would be rounded. Leave `precision` at its default and open autocast
  inside `losses`, as `mixed_precision.py` does.
"""

from typing import Any, cast

import lightning
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

import mtlfunc as mf
from experiments.bridge.problem import Net, batches


class Balanced(lightning.LightningModule):
    """A network of several tasks, trained by PCGrad.

    Args:
        example: a batch, from which the first state is made.
        lr: the learning rate of Adam.
        decay: what it is multiplied by at every step.
        clip: the largest norm of a gradient.
    """

    def __init__(
        self, example: Any, lr: float = 1e-2, decay: float = 0.98, clip: float = 1.0
    ) -> None:
        super().__init__()
        self.automatic_optimization, self.lr, self.decay, self.clip = False, lr, decay, clip
        self.net = Net()
        self.balance = mf.balance(self.losses, mf.pcgrad(), mf.jacobian(shared="trunk.*"))
        self.balance_state = self.balance.init(mf.parameters(self.net), example, key=0)
        self.seen: list[Tensor] = []

    def losses(self, params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (functional_call(self.net, params, (x,)) - y).square().mean(0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)]

    def on_fit_start(self) -> None:
        # Lightning moves modules, not tuples
        self.balance_state = tree_map(lambda leaf: leaf.to(self.device), self.balance_state)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizer, schedule = cast(Any, self.optimizers()), cast(Any, self.lr_schedulers())
        grads, self.balance_state, info = self.balance.update(
            mf.parameters(self.net), batch, self.balance_state
        )
        mf.assign_gradients(self.net, grads)
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        optimizer.step()
        schedule.step()
        self.log_dict(dict(zip(("first", "second", "third"), info.losses.unbind(), strict=True)))
        self.seen.append(info.losses)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["balance"] = self.balance_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.balance_state = checkpoint["balance"]


def main(steps: int = 200, *, size: int = 32, **trainer: Any) -> tuple[Net, Tensor]:
    """Train in Lightning's loop.

    Args:
        steps: batches, one a step.
        size: samples in a batch.
        trainer: further arguments of the Trainer.

    Returns:
        the network and the losses `[step, task]`.
    """
    data = batches(steps, size)
    module = Balanced(data[0])
    # a list is a dataset; its entries are batches already
    loader = DataLoader(data, batch_size=None)  # pyright: ignore[reportArgumentType]
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(**options | trainer).fit(module, loader)
    return module.net, torch.stack(module.seen)


if __name__ == "__main__":
    _, losses = main()
    print(f"losses of the tasks, first step: {losses[0].tolist()}")
    print(f"                      last step: {losses[-1].tolist()}")
