"""One training run, and after every step what it did to the losses of its own batch."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf

from .networks import NETWORKS, Problem
from .steps import DIAGONAL, EXACT, MUON, Linear, Muon

RULES: dict[str, Callable[[], mf.Rule]] = {
    "mean": mf.mean, "MGDA": mf.mgda, "CAGrad": lambda: mf.cagrad(0.5), "UPGrad": mf.upgrad,
}  # fmt: skip
WAYS = ("G", "metric", "safe", "norm")
"""The rule on JJᵀ; on J P Jᵀ; there, and made safe; of Muon, the steepest descent in its norm."""
CPU = torch.device("cpu")
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
    error: float  # the largest missing change over the largest change
    loss: float  # the mean loss over all data, at the end


class Met(NamedTuple):
    """How far the tasks of a network are at odds, over the steps of some runs of MGDA on J Jᵀ."""

    conflict: float  # share of steps at which two gradients of the batch have a negative product
    cosine: float  # the least one of a step, median
    lengths: float  # the longest gradient over the shortest, median
    fall: float  # share of the mean loss of all data that is gone at the end


def problem_of(network: str, seed: int, device: torch.device) -> Problem:
    """Drawn on the CPU."""
    with torch.device("cpu"):
        return NETWORKS[network](seed).to(device)


def meet(
    network: str,
    rate: float,
    batch: int,
    seeds: Sequence[int],
    steps: int,
    device: torch.device = CPU,
) -> Met:
    """Whether there is something for a rule to keep its promise about."""
    rows, falls = [], []
    for seed in seeds:
        problem = problem_of(network, seed, device)
        optimizer = DIAGONAL["Adam, β₁ = .9"](problem.module.parameters(), rate)
        plain = mf.jacobian(problem.shared, heads="plain")
        balancer = mf.Balancer(problem.module, mf.mgda(), plain)
        first = _mean_loss(problem)
        for step in range(steps):
            optimizer.zero_grad()
            losses = problem.losses(problem.module, _batch(problem, batch, seed, step))
            gramian = balancer.backward(losses).gramian
            optimizer.step()
            length = gramian.diagonal().sqrt()
            cosine = gramian / length / length[:, None]
            least = cosine.masked_fill(torch.eye(len(length)).bool(), 1.0).min()
            rows.append(torch.stack([least, length.max() / length.min()]))
        falls.append(1 - _mean_loss(problem) / first)
    least, lengths = torch.stack(rows).unbind(1)
    return Met(
        (least < 0).double().mean().item(), least.median().item(), lengths.median().item(),
        sum(falls) / len(falls),
    )  # fmt: skip


def _batch(problem: Problem, size: int, seed: int, step: int) -> tuple[Tensor, ...]:
    if not size:
        return problem.data
    key = mf.random.fold_in(mf.random.key(seed), step)
    order = mf.random.permutation(key, len(problem.data[0]))[:size]
    return tuple(x[order] for x in problem.data)


def _mean_loss(problem: Problem) -> float:
    with torch.no_grad():
        return torch.stack(problem.losses(problem.module, problem.data)).mean().item()


def perform(cell: Cell, seed: int, steps: int, device: torch.device = CPU) -> Outcome:
    problem = problem_of(cell.network, seed, device)
    module = problem.module
    rule = RULES[cell.rule]()
    rule = mf.safe(rule) if cell.way == "safe" else rule
    if cell.optimizer in (MUON, EXACT):
        exact = cell.optimizer == EXACT
        move = Muon(problem, rule, cell.rate, norm=cell.way == "norm", exact=exact)
    else:
        make = DIAGONAL[cell.optimizer]
        move = Linear(problem, rule, make, cell.rate, metric=cell.way != "G")
    leaves, shared = dict(module.named_parameters()), problem.names

    def losses_fn(params: Any, batch: Any) -> tuple[Tensor, ...]:
        return tuple(problem.losses(Called(module, params), batch))

    found = []
    for step in range(steps):
        batch = _batch(problem, cell.batch, seed, step)
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        gradients = cache(partial(mf.task_gradients, losses_fn, before, batch))
        promised = move(batch, lambda gradients=gradients: gradients()[1])
        if step < FIRST:
            continue
        rows = gradients()[1]
        moved = {name: (leaves[name].detach() - before[name]).flatten() for name in shared}
        predicted = torch.stack([rows[n].flatten(1) @ moved[n] for n in shared]).sum(0)
        missing = (promised.to(predicted) + predicted).abs().amax()
        found.append((predicted, promised, missing / predicted.abs().amax()))
    changes = torch.stack([x[0] for x in found]).double()
    rates = torch.stack([x[1] for x in found]).double()
    rises = (changes.amax(1).clamp_min(0) / changes.abs().amax(1)).nan_to_num()
    # rounding of float32 in a rate that is to be 0 is not a rise
    noise = 1e-5 * changes.abs().amax(1)
    pooled = torch.corrcoef(torch.stack([-rates.flatten(), changes.flatten()]))[0, 1]
    return Outcome(
        (changes.amax(1) > noise).double().mean().item(), rises.mean().item(), pooled.item(),
        torch.tensor([x[2] for x in found]).median().item(), _mean_loss(problem),
    )  # fmt: skip
