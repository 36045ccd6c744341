"""One training run, and after every step what it did to the losses of its own batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf

from .networks import NETWORKS, Problem

RULES: dict[str, Callable[[], mf.Rule]] = {
    "mean": mf.mean,
    "MGDA": mf.mgda,
    "CAGrad": lambda: mf.cagrad(0.5),
    "UPGrad": mf.upgrad,
}
WAYS = ("G", "metric", "safe")
"""The rule on JJᵀ; on J P Jᵀ; there, and made safe."""
OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "Adam, β₁ = 0": lambda p, rate: torch.optim.Adam(p, rate, betas=(0.0, 0.999)),
    "Adam, β₁ = .9": lambda p, rate: torch.optim.Adam(p, rate),
    "RMSprop": lambda p, rate: torch.optim.RMSprop(p, rate),
    "SGD, momentum .9": lambda p, rate: torch.optim.SGD(p, 10 * rate, momentum=0.9),
}
FIRST = 10  # steps that are left out: P says little before


class Called(nn.Module):
    """A module at other parameters."""

    def __init__(self, module: nn.Module, params: Any) -> None:
        super().__init__()
        self.inner, self.params = [module], params

    def forward(self, x: Tensor) -> Any:
        return functional_call(self.inner[0], self.params, (x,))


class Cell(NamedTuple):
    network: str
    optimizer: str
    rate: float  # of SGD ten times
    batch: int  # 0 is all data
    rule: str
    way: str


class Outcome(NamedTuple):
    """Means over the steps of one run, from the tenth on."""

    risen: float  # share of steps after which some loss of the batch is larger, to first order
    rise: float  # the largest rise over the largest change
    correlation: float  # of the predicted changes with the first-order ones; nan without a metric
    error: float  # `mtlfunc.diagnostics.metric_error`
    loss: float  # the mean loss over all data, at the end


def perform(cell: Cell, seed: int, steps: int) -> Outcome:
    problem: Problem = NETWORKS[cell.network](seed)
    module = problem.module
    optimizer = OPTIMIZERS[cell.optimizer](module.parameters(), cell.rate)
    rule = RULES[cell.rule]()
    rule = mf.safe(rule) if cell.way == "safe" else rule
    metric = None if cell.way == "G" else optimizer
    balancer = mf.Balancer(module, rule, problem.shared, metric=metric)
    leaves = dict(module.named_parameters())

    shared = [n for n in leaves if problem.shared == "*" or n.startswith("trunk")]

    def losses_fn(params: Any, batch: Any) -> tuple[Tensor, ...]:
        return tuple(problem.losses(Called(module, params), batch))

    count, key, found = len(problem.data[0]), mf.random.key(seed), []
    for step in range(steps):
        batch = problem.data
        if cell.batch:
            order = mf.random.permutation(mf.random.fold_in(key, step), count)
            batch = tuple(x[order[: cell.batch]] for x in batch)
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        rows = mf.task_gradients(losses_fn, before, batch)[1] if step >= FIRST else {}
        optimizer.zero_grad()
        with balancer:
            losses = problem.losses(module, batch)
        info = balancer.backward(losses)
        optimizer.step()
        if step < FIRST:
            continue
        moved = {name: (leaves[name].detach() - before[name]).flatten() for name in shared}
        predicted = torch.stack([rows[n].flatten(1) @ moved[n] for n in shared]).sum(0)
        change = mf.diagnostics.Change(predicted, predicted)
        found.append((predicted, info.rates, mf.diagnostics.metric_error(info.rates, change)))
    changes = torch.stack([x[0] for x in found]).double()
    rates = torch.stack([x[1] for x in found]).double()
    rises = (changes.amax(1).clamp_min(0) / changes.abs().amax(1)).nan_to_num()
    # rounding of float32 in a rate that is to be 0 is not a rise
    noise = 1e-5 * changes.abs().amax(1)
    pooled = torch.corrcoef(torch.stack([-rates.flatten(), changes.flatten()]))[0, 1]
    with torch.no_grad():
        end = torch.stack(problem.losses(module, problem.data)).mean()
    return Outcome(
        (changes.amax(1) > noise).double().mean().item(),
        rises.mean().item(),
        pooled.item(),
        torch.tensor([x[2] for x in found]).median().item(),
        end.item(),
    )
