"""A stock PyTorch loop: `torch.optim`, a learning-rate schedule, gradient clipping, checkpoints to
save and resume.

    python -m experiments.bridge.stock_loop

Of the loop of a single task two lines change. `loss.backward()` becomes `balance.update`, which
returns one gradient instead of adding it to `.grad`; and `mf.assign_gradients` puts it there, so
there is nothing to zero. All that follows (clipping, optimizer, schedule) sees an ordinary
gradient.

One thing joins the checkpoint: the state of the rule (random keys, averages, learned weights),
without which a resumed run is another run.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from experiments.bridge.problem import Net, batches


class Run:
    """All that a checkpoint has to hold: network, optimizer, schedule, and the balance's state."""

    def __init__(self, example: Any, lr: float = 1e-2, decay: float = 0.98) -> None:
        self.net = Net()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, decay)
        self.balance = mf.balance(self.losses, mf.pcgrad(), mf.jacobian(shared="trunk.*"))
        # PCGrad draws its orders from this key, and from no other
        self.state = self.balance.init(mf.parameters(self.net), example, key=0)

    def losses(self, params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Stateless: with the parameters that it is given, not with the network's own."""
        x, y = batch
        return (functional_call(self.net, params, (x,)) - y).square().mean(0)

    def step(self, batch: tuple[Tensor, Tensor], clip: float = 1.0) -> Tensor:
        grads, self.state, info = self.balance.update(mf.parameters(self.net), batch, self.state)
        mf.assign_gradients(self.net, grads)
        nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.optimizer.step()
        self.schedule.step()
        return info.losses

    def save(self, path: Path) -> None:
        """Whole or not at all; `torch.load` takes states with its safe defaults."""
        parts = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(parts | {"balance": self.state}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        parts = torch.load(path)
        self.net.load_state_dict(parts["net"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        self.state = parts["balance"]


def main(
    steps: int = 200,
    *,
    size: int = 32,
    clip: float = 1.0,
    decay: float = 0.98,
    stop: int | None = None,
) -> tuple[Net, Tensor]:
    """Train through a checkpoint after `stop` steps, if any.

    Args:
        steps: batches, one a step.
        size: samples in a batch.
        clip: the largest norm of a gradient.
        decay: what the learning rate is multiplied by at every step.
        stop: None is no checkpoint.

    Returns:
        the network and the losses `[step, task]`.
    """
    data = batches(steps, size)
    run = Run(data[0], decay=decay)
    seen = [run.step(batch, clip) for batch in data[:stop]]
    if stop is not None:
        with tempfile.TemporaryDirectory() as folder:
            run.save(Path(folder) / "run.pt")
            run = Run(data[0], decay=decay)
            run.load(Path(folder) / "run.pt")
        seen += [run.step(batch, clip) for batch in data[stop:]]
    return run.net, torch.stack(seen)


if __name__ == "__main__":
    losses, resumed = main()[1], main(stop=100)[1]
    print(f"losses of the tasks, first step: {losses[0].tolist()}")
    print(f"                      last step: {losses[-1].tolist()}")
    print(f"through a checkpoint at step 100 the same, bit for bit: {torch.equal(losses, resumed)}")
