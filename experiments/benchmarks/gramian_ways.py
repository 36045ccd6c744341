"""Every way to compute a Gramian of gradients, ours and the peers'."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap

import mtlfunc as mf
from experiments.benchmarks.measuring import Call
from experiments.benchmarks.networks import Problem


def losses_of(task: Problem) -> Callable[[mf.types.Params, Any], Any]:
    """The losses as a function of parameters and batch."""
    return lambda params, batch: functional_call(task.module, params, (batch,))


def vector(losses: Any) -> Tensor:
    """Losses as one tensor."""
    return losses if isinstance(losses, Tensor) else torch.stack(losses)


def gram(rows: Any) -> Tensor:
    """J Jᵀ from rows leaf by leaf."""
    return torch.stack([x.flatten(1) @ x.flatten(1).mT for x in rows]).sum(0)


def some_weights(count: int, like: Tensor) -> Tensor:
    """Weights of no solver, which would be timed too."""
    weights = torch.linspace(1, 2, count, dtype=like.dtype, device=like.device)
    return weights / weights.sum()


def leaves_of(task: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared parameters and heads, as autograd's leaves."""
    named = dict(task.module.named_parameters())
    prefix = task.shared.removesuffix("*")
    return {n: x for n, x in named.items() if n.startswith(prefix)}, {
        n: x for n, x in named.items() if not n.startswith(prefix)
    }


def mean_gradient(task: Problem) -> Call:
    """The least: one gradient of the mean loss."""
    shared, heads = leaves_of(task)
    leaves, f = shared | heads, losses_of(task)
    return lambda: torch.autograd.grad(vector(f(leaves, task.batch)).mean(), list(leaves.values()))


def loop(task: Problem, *, step: bool = False) -> Call:
    """autograd.grad of every loss; a step also takes the gradients of the tasks' own heads."""
    shared, heads = leaves_of(task)
    f = losses_of(task)

    def call() -> Any:
        losses = f(shared | heads, task.batch)
        count, rows, found = len(losses), [], {}
        for i in range(count):
            own = [n for n in heads if n.startswith(f"heads.{i}.")] if step else []
            grads = torch.autograd.grad(
                losses[i], [*shared.values(), *(heads[n] for n in own)], retain_graph=i + 1 < count
            )
            rows.append(grads[: len(shared)])
            found |= {n: x / count for n, x in zip(own, grads[len(shared) :], strict=True)}
        leaves = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        gramian = gram(leaves)
        if not step:
            return gramian
        weights = some_weights(count, gramian)
        return gramian, found | {
            n: torch.tensordot(weights, x, 1) for n, x in zip(shared, leaves, strict=True)
        }

    return call


def vmap_vjp(task: Problem) -> Call:
    """All rows at once, by plain torch.func."""
    shared, heads = leaves_of(task)
    fixed = {n: x.detach() for n, x in heads.items()}
    params, f = {n: x.detach() for n, x in shared.items()}, losses_of(task)

    def call() -> Tensor:
        losses, pull = vjp(lambda p: vector(f(p | fixed, task.batch)), params)[:2]
        with torch.no_grad():  # or the rows would keep a graph of their own
            units = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
            return gram(vmap(lambda v: tuple(pull(v)[0].values()))(units))

    return call


def vmap_grad(task: Problem) -> Call:
    """The rows of all samples, by plain torch.func."""
    params, f = mf.parameters(task.module), losses_of(task)
    one = grad(lambda p, sample: f(p, tuple(x[None] for x in sample))[0])
    return lambda: gram(vmap(one, (None, 0))(params, task.batch).values())


def autojac(task: Problem) -> Call:
    """TorchJD's rows."""
    from torchjd.autojac import jac  # a test dependency

    leaves = list(leaves_of(task)[0].values())
    return lambda: gram(jac(task.module(task.batch), leaves))


def autogram(task: Problem) -> Call:
    """TorchJD's Gramian without rows."""
    from torchjd.autogram import Engine  # a test dependency

    # its hooks stay on the modules
    apart = task.to(task.batch[0].device.type, next(task.module.parameters()).dtype)
    engine = Engine(apart.trunk, batch_dim=0 if task.per_sample else None)
    return lambda: engine.compute_gramian(vector(apart.module(apart.batch)))


def ours(task: Problem, engine: Any = "auto", *, stacked: bool = False) -> Call:
    """Our Gramian alone."""
    params, f = mf.parameters(task.module), losses_of(task)
    if task.per_sample:
        return lambda: mf.sample_gramian(f, params, task.batch, engine=engine)[1]
    g = (lambda p, b: vector(f(p, b))) if stacked else f
    return lambda: mf.task_gramian(g, params, task.batch, shared=task.shared, engine=engine)[1]


def our_step(task: Problem, *, stacked: bool = False) -> Call:
    """Our probe's Gramian and the gradient that weights combine."""
    params, f = mf.parameters(task.module), losses_of(task)
    g = (lambda p, b: vector(f(p, b))) if stacked else f
    probe = mf.jacobian(task.shared)
    _, state = probe.init(mf.Run(g, params), task.batch, torch.tensor(0))

    def call() -> tuple[Tensor, Any]:
        measured, _ = probe.update(mf.Run(g, params), task.batch, state)
        gramian = measured.geometry.gramian
        assert gramian is not None
        return gramian, measured.combine(some_weights(len(gramian), gramian))

    return call


def contenders(task: Problem) -> Iterator[tuple[str, str, Callable[[Problem], Call]]]:
    """(quantity, method, how to make it) of all that can do the problem."""
    yield "gradient", "mean gradient", mean_gradient
    yield "gramian", "loop", loop
    yield "gramian", "vmap(vjp)", vmap_vjp
    if task.per_sample:
        yield "gramian", "vmap(grad)", vmap_grad
    if importlib.util.find_spec("torchjd"):
        yield "gramian", "TorchJD autojac", autojac
        yield "gramian", "TorchJD autogram", autogram
    yield "gramian", "ours, auto", ours
    if not task.per_sample:
        yield "step", "loop", partial(loop, step=True)
        yield "step", "ours, auto", our_step
        if leaves_of(task)[1]:
            # separate losses: what becomes of them where they come stacked to one vector
            yield "gramian", "ours, auto, stacked", partial(ours, stacked=True)
            yield "step", "ours, auto, stacked", partial(our_step, stacked=True)
