"""The methods, each a generator that takes one step after the other and yields the parameters."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.types import Params

from .problems import Net, Points, Problem

KEPT = 50  # steps for which NTK weights stay
HISTORY, BLOCK = 50, 10  # pairs that L-BFGS remembers, iterations of it between two looks
LENGTHS = 8  # of the line search: 1, 1/2, 1/4, …
MOMENTUM = 0.9

Steps = Iterator[Params]
Way = Callable[[Problem, Net, Iterator[Points], float], Steps]


class Method(NamedTuple):
    """How it steps, and the grid of its one setting."""

    way: Way  # from a problem, its network, the points of every step, and the setting
    setting: str
    grid: tuple[float, ...]


def _leaves(net: Net) -> Params:
    return dict(net.named_parameters())


def _by_adam(
    problem: Problem,
    net: Net,
    batches: Iterator[Points],
    rate: float,
    backward: Callable[[Tensor, Points], object] = lambda squares, _: squares.sum().backward(),
) -> Steps:
    """On the sum of the terms, or by what makes gradients of the residuals' squares."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for points in batches:
        optimizer.zero_grad()
        backward(problem.residuals(net, _leaves(net), points).square(), points)
        optimizer.step()
        yield _leaves(net)


def _lbfgs(problem: Problem, net: Net, batches: Iterator[Points], rate: float) -> Steps:
    """With the strong Wolfe conditions; it stops by time alone."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), rate, BLOCK, 10**9, 0.0, 0.0, HISTORY, "strong_wolfe"
    )

    def closure(points: Points) -> Tensor:
        optimizer.zero_grad()
        loss = problem.residuals(net, _leaves(net), points).square().sum()
        loss.backward()
        return loss

    for points in batches:
        optimizer.step(functools.partial(closure, points))
        yield _leaves(net)


def _balanced(
    rule: Callable[[], mf.Rule], problem: Problem, net: Net, batches: Iterator[Points], rate: float
) -> Steps:
    """A rule on the terms' gradients, then Adam."""
    balancer = mf.Balancer(net, rule())

    def backward(squares: Tensor, points: Points) -> None:
        balancer.backward(squares @ points.member)

    return _by_adam(problem, net, batches, rate, backward)


def _ntk(problem: Problem, net: Net, batches: Iterator[Points], rate: float) -> Steps:
    """Weights from the traces of the terms' kernels, now and then, and Adam."""
    weights, steps = torch.ones(()), itertools.count()

    def backward(squares: Tensor, points: Points) -> None:
        nonlocal weights
        if next(steps) % KEPT == 0:
            weights = ntk_weights(problem, net, mf.parameters(net), points)
        (weights * (squares @ points.member)).sum().backward()

    return _by_adam(problem, net, batches, rate, backward)


def ntk_weights(problem: Problem, net: Net, params: Params, points: Points) -> Tensor:
    """Of the terms, by the means over their points of ‖∇r‖², as the losses are means."""
    norms = mf.sample_norms(functools.partial(problem.residuals, net), params, points)[1]
    trace = norms.square() @ points.member
    present = torch.ones_like(trace, dtype=torch.bool)
    share = torch.ones_like(trace) / len(trace)
    geometry = mf.Geometry(torch.zeros_like(trace), None, share, present, {"trace": trace})
    return mf.physics.ntk().update(geometry, ())[0]


def _identity(points: Points) -> Tensor:
    return torch.eye(len(points.x), dtype=points.x.dtype, device=points.x.device)


def _newton(
    momentum: bool, problem: Problem, net: Net, batches: Iterator[Points], damping: float
) -> Steps:
    """Gauss-Newton on the residuals, the best of some lengths of its step; SPRING's momentum."""
    residuals = functools.partial(problem.residuals, net)
    rule = mf.physics.gauss_newton(damping, momentum=momentum)
    probe = mf.jacobian(weightings=_identity)
    carried = mf.sgd(1.0, momentum=MOMENTUM if momentum else None)
    step = mf.descend(residuals, rule, probe, carried, metric=momentum)
    first = next(batches)
    lengths = 0.5 ** torch.arange(LENGTHS, dtype=first.x.dtype, device=first.x.device)

    def objective(params: Params, points: Points) -> Tensor:
        return residuals(params, points).square().sum()

    state = step.init(mf.parameters(net), first)
    for points in itertools.chain([first], batches):
        before = state.params
        state, _ = step.update(state, points)
        whole = {name: before[name] - leaf for name, leaf in state.params.items()}
        after = mf.physics.line_search(objective, before, whole, points, lengths).params
        state = state._replace(params=after)
        yield after


RATES = (1e-3, 3e-3, 1e-2)
DAMPINGS = (1e-10, 1e-8, 1e-6)


def _with_adam(way: Way) -> Method:
    return Method(way, "rate", RATES)


METHODS: dict[str, Method] = {
    "Adam": _with_adam(_by_adam), "L-BFGS": Method(_lbfgs, "first length", (0.25, 0.5, 1.0)),
    "ConFIG": _with_adam(functools.partial(_balanced, mf.config)),
    "MGDA": _with_adam(functools.partial(_balanced, mf.mgda)), "NTK weights": _with_adam(_ntk),
    "GradNorm": _with_adam(functools.partial(_balanced, functools.partial(mf.gradnorm, 0.12))),
    "Gauss-Newton": Method(functools.partial(_newton, False), "damping", DAMPINGS),
    "SPRING": Method(functools.partial(_newton, True), "damping", DAMPINGS),
}  # fmt: skip
"""Rules before Adam weigh the terms; L-BFGS and Gauss-Newton take their sum."""
