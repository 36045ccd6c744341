"""Gradient accumulation: one step from several micro-batches, in three ways that are not the same.

    python -m experiments.examples.accumulation

- `one by one`: a `backward` for every micro-batch, `.grad` adds up. Another method: the rule sees
  the noisier Gramian of few samples (E‖g‖² > ‖E g‖²), and its state takes a step for each.
- `one graph`: losses added up, one `backward`. The step on the full batch, in the memory of all.
- `one Gramian`: task gradients added up, and the rule applied once. The step on the full batch,
  too, in the memory of one graph and T gradients.

What can go wrong: micro-batches of unequal size without their shares, here and in the plain loop.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from experiments.examples.problem import Net, batches

Micro = list[tuple[float, Tensor, Tensor]]  # the share of the samples, inputs, targets


def plain(net: nn.Module, micro: Micro, _: mf.Balancer) -> None:
    for share, x, y in micro:
        (share * (net(x) - y).square().mean(0)).mean().backward()


def one_by_one(net: nn.Module, micro: Micro, balancer: mf.Balancer) -> None:
    for share, x, y in micro:
        losses = share * (net(x) - y).square().mean(0)
        balancer.backward(losses)


def one_graph(net: nn.Module, micro: Micro, balancer: mf.Balancer) -> None:
    losses = sum(share * (net(x) - y).square().mean(0) for share, x, y in micro)
    balancer.backward(losses)


def one_gramian(net: nn.Module, micro: Micro, rule: mf.Rule) -> None:
    """A rule's first step; the state that `update` returns belongs to the next."""

    def losses_fn(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (functional_call(net, params, (batch[0],)) - batch[1]).square().mean(0)

    losses, rows = torch.zeros(()), dict.fromkeys(mf.parameters(net), torch.zeros(()))
    for share, x, y in micro:
        found, gradients = mf.task_gradients(losses_fn, mf.parameters(net), (x, y))
        losses = losses + share * found
        rows = {name: row + share * gradients[name] for name, row in rows.items()}
    flat = [row.flatten(1) for name, row in rows.items() if name.startswith("trunk.")]
    gramian = torch.stack([row @ row.mT for row in flat]).sum(0)
    mean = torch.full_like(losses, 1 / len(losses))
    geometry = mf.Geometry(losses, gramian, mean, torch.ones_like(losses, dtype=torch.bool), {})
    weights, _ = rule.update(geometry, rule.init(losses, mf.random.key(0)))
    for name, leaf in net.named_parameters():
        leaf.grad = torch.tensordot(weights if name.startswith("trunk.") else mean, rows[name], 1)


def main(sizes: tuple[int, ...] = (16, 16, 16, 16), rule: mf.Rule | None = None):
    """The `.grad` of each way on the same parameters, `{way: {name: gradient}}`."""
    rule = rule or mf.cagrad(0.4)
    ((x, y),) = batches(1, sum(sizes), dtype=torch.float64)
    micro = [(len(a) / len(x), a, b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
    ways = {"plain": plain, "one by one": one_by_one, "one graph": one_graph}
    ways["full batch"] = lambda net, _, balancer: one_graph(net, [(1.0, x, y)], balancer)
    ways["one Gramian"] = lambda net, micro, _: one_gramian(net, micro, rule)
    found = {}
    for way, run in ways.items():
        net = Net(dtype=torch.float64)
        run(net, micro, mf.Balancer(net, rule, mf.jacobian("trunk.*", heads="plain")))
        found[way] = {name: leaf.grad for name, leaf in net.named_parameters()}
    return found


if __name__ == "__main__":
    for way, grads in (found := main()).items():
        off = max(float((g - grads[n]).norm() / g.norm()) for n, g in found["full batch"].items())
        print(f"{way:12} differs from the full batch by up to {off:.1e} of a parameter's gradient")
