"""Gradient accumulation: one step from several micro-batches, in two ways that are not the same.

    python -m experiments.bridge.accumulation

1. **Weights for every micro-batch**: a balanced gradient from each, and the mean of these. Any
   probe and rule, the memory of one micro-batch. But it is another method: the rule sees the
   noisier Gramian of few samples (E‖g‖² is larger than ‖E g‖²), and its state takes a step for
   each.
2. **One Gramian of the whole batch**: add up every task's gradient over the micro-batches, then
   apply the rule once. This is the step on the full batch, at the price of T gradients in memory.
   It is the probe `accumulated` below, and any rule runs on it.

A loop over micro-batches inside `losses_fn` is exact, too, but the graphs of all of them are kept
until the backward pass: it saves no memory.
"""

import torch
from torch import Tensor
from torch.func import functional_call

import mtlfunc as mf
from experiments.bridge.problem import Net, batches
from mtlfunc.types import BalanceState, LossesFn, Params, State

Batch = tuple[Tensor, Tensor]

WAYS = ("full batch", "weights for every micro-batch", "one Gramian")


def accumulated(prefix: str) -> mf.Probe:
    """The geometry of a batch that is a list of micro-batches; losses are means over samples.

    Args:
        prefix: with which the names of the shared parameters start.
    """

    def update(
        losses_fn: LossesFn, params: Params, batch: list[Batch], state: State
    ) -> tuple[mf.TaskGradients, State]:
        losses, rows = torch.tensor(0.0), {name: torch.tensor(0.0) for name in params}
        for micro in batch:
            share = len(micro[0]) / sum(len(x) for x, _ in batch)
            # [task], {name: [task, *shape]}
            found, gradients = mf.task_gradients(losses_fn, params, micro)
            losses = losses + share * found
            rows = {name: row + share * gradients[name] for name, row in rows.items()}
        shared = [row.flatten(1) for name, row in rows.items() if name.startswith(prefix)]
        gramian = torch.stack([row @ row.mT for row in shared]).sum(0)
        mean = torch.full_like(losses, 1 / len(losses))
        everyone = torch.ones_like(losses, dtype=torch.bool)

        # the heads get the gradient of the mean loss, as from `mf.jacobian(heads="plain")`
        def combine(weights: Tensor) -> Params:
            return {
                name: torch.tensordot(weights if name.startswith(prefix) else mean, row, 1)
                for name, row in rows.items()
            }

        geometry = mf.Geometry(losses, gramian, mean, everyone, {})
        return mf.TaskGradients(losses, geometry, combine, ()), state

    def init(losses_fn: LossesFn, params: Params, batch: list[Batch], key: Tensor):
        return update(losses_fn, params, batch, ())[0].losses, ()

    return mf.Probe(init, update)


def weighted_apart(
    balance: mf.Balance, params: Params, batch: list[Batch], state: BalanceState
) -> tuple[Params, BalanceState]:
    """The mean of every micro-batch's own balanced gradient.

    In a training loop: `param.grad += …` here, `optimizer.step()` after the last one.
    """
    mean = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    for micro in batch:
        share = len(micro[0]) / sum(len(x) for x, _ in batch)
        grads, state, _ = balance.update(params, micro, state)
        mean = {name: mean[name] + share * grads[name] for name in params}
    return mean, state


def main(steps: int = 3, *, sizes: tuple[int, ...] = (16, 16, 16, 16)) -> dict[str, list[Params]]:
    """The gradients of every step, by the full batch and in both ways.

    The parameters stay where they are, so that the ways can be compared.

    Args:
        steps: batches, one a step.
        sizes: samples in each micro-batch.
    """
    net = Net(dtype=torch.float64)
    params, data = mf.parameters(net), batches(steps, sum(sizes), dtype=torch.float64)

    def losses(params: Params, batch: Batch) -> Tensor:
        return (functional_call(net, params, (batch[0],)) - batch[1]).square().mean(0)

    whole, at_once = (
        mf.balance(losses, mf.pcgrad(), probe)
        for probe in (mf.jacobian(shared="trunk.*"), accumulated("trunk."))
    )
    # states; that of `at_once` is the same, since neither probe has one
    full = apart = once = whole.init(params, data[0], key=0)
    found: dict[str, list[Params]] = {way: [] for way in WAYS}
    for x, y in data:
        micro = list(zip(x.split(sizes), y.split(sizes), strict=True))
        first, full, _ = whole.update(params, (x, y), full)
        second, apart = weighted_apart(whole, params, micro, apart)
        third, once, _ = at_once.update(params, micro, once)
        for way, grads in zip(WAYS, (first, second, third), strict=True):
            found[way].append(grads)
    return found


if __name__ == "__main__":
    ways = main()
    for way, grads in ways.items():
        off = max(
            float((a[name] - b[name]).norm() / a[name].norm())
            for a, b in zip(ways["full batch"], grads, strict=True)
            for name in a
        )
        print(f"{way:30} differs from the full batch by up to {off:.1e} of a parameter's gradient")
