"""Mixed precision: autocast inside `losses_fn`, and the gradient scaler of float16 around it.

    python -m experiments.bridge.mixed_precision

Parameters, Gramian, weights and gradients stay float32; only what `losses_fn` computes is in half
precision. Autocast around the whole step is refused: it would round the Gramian.

bfloat16 has the range of float32 and needs no scaler. In float16 small derivatives become 0, so the
losses are multiplied by s before the backward passes:

- `scaler.scale(losses)` inside losses_fn: the rows come out s times, the Gramian s² times as large.
- The rule should see neither: losses and Gramian are divided again for it (`unscaled`). Rules that
  do not depend on a common factor could do without; GradNorm, which compares losses over time while
  s changes, could not.
- `mf.assign_gradients` puts s times the gradient into .grad, where the scaler expects that.
- `scaler.unscale_`: .grad divided by s; from here on as ever: clip now, not before.
- `scaler.step`, `scaler.update`: no step where an entry overflowed, and s is adapted. The rule's
  state has seen that overflow: keep the one from before.

s is a power of 2, so scaling changes no bit that does not leave the range. On a GPU an overflow
arrives at the scaler as NaN; on a CPU the step looks at values and raises.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from experiments.bridge.problem import Net, batches
from mtlfunc.types import Params


def unscaled(rule: mf.Rule, scaler: torch.amp.GradScaler) -> mf.Rule:
    """The rule, seeing losses and Gramian as they are without the scaler."""

    def init(losses: Tensor, key: Tensor) -> mf.types.State:
        return rule.init(losses / scaler.get_scale(), key)

    def update(geometry: mf.Geometry, state: mf.types.State) -> tuple[Tensor, mf.types.State]:
        s = scaler.get_scale()
        return rule.update(
            geometry._replace(losses=geometry.losses / s, gramian=geometry.gramian / s / s), state
        )

    return mf.Rule(init, update)


def main(
    steps: int = 200,
    *,
    size: int = 32,
    half: torch.dtype | None = torch.bfloat16,
    scale: float | None = None,
    clip: float = 1.0,
    device: str = "cpu",
) -> tuple[Net, Tensor, float]:
    """Train with autocast in half precision.

    Args:
        steps: batches, one a step.
        size: samples in a batch.
        half: the dtype inside `losses_fn`; None is float32.
        scale: the first factor of the gradient scaler; None is no scaler.
        clip: the largest norm of a gradient.
        device: "cpu" or "cuda".

    Returns:
        the network, the losses `[step, task]` and the last scale.
    """
    net = Net().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=scale or 1.0, enabled=scale is not None)

    def losses(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast(device, half, enabled=half is not None):
            outputs = functional_call(net, params, (batch[0],))
        # sums over samples in float32
        return scaler.scale((outputs.float() - batch[1]).square().mean(0))

    data = [(x.to(device), y.to(device)) for x, y in batches(steps, size)]
    balance = mf.balance(losses, unscaled(mf.gradnorm(0.5), scaler), mf.jacobian(shared="trunk.*"))
    state, seen = balance.init(mf.parameters(net), data[0], key=0), []
    for batch in data:
        grads, moved, info = balance.update(mf.parameters(net), batch, state)
        s = scaler.get_scale()
        seen.append(info.losses / s)
        mf.assign_gradients(net, grads)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        state = state if scaler.get_scale() < s else moved
    return net, torch.stack(seen), scaler.get_scale()


if __name__ == "__main__":
    where = "cuda" if torch.cuda.is_available() else "cpu"
    for name, half, scale in (
        ("float32", None, None),
        ("bfloat16", torch.bfloat16, None),
        ("float16, with a scaler", torch.float16, 2.0**10),
    ):
        _, losses, _ = main(half=half, scale=scale, device=where)
        print(f"{name:22} losses of the tasks, last step: {losses[-1].tolist()}")
