"""A torch newer than those that CI tests is tried at its first use: what leans on torch's private
parts has to give what `torch.autograd.grad` of single scalars gives, or rows are made one by one.
The doors are `observe` and `live`: derivatives begin there, and nothing holds a lock.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, get_ident
from typing import Any
from warnings import warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, vmap

from ..core import hooks, internals
from ..core.checks import user_level
from ..gradients import run, sample_gramian, task_gradients, task_gramian
from ..gradients.layerwise import graph, owners
from ..rules import mean
from ..training import Balancer

NAME = f"torch {torch.__version__}"
UNREAD = f"{NAME} has other graphs than those that are read"
PLAIN: list[tuple[Any, str, Any]] = [
    (graph, "read_uses", lambda _, leaves: graph.Reading({}, dict.fromkeys(leaves, UNREAD))),
    (owners, "entry_layouts", lambda *_, **__: ()),
    (internals, "autograd_engine", internals.ENGINE),
    (internals, "undefined_grad", None),
    (internals, "is_traced", lambda: 1),
    (graph.Graph, "can_batch", False),
    (hooks.Handles, "hooked", property(lambda _: True)),
    (internals, "nodes_made", lambda: 2**62),
]
"""Rows one by one: where a name is that may be wrong, and what stands in for it."""
SAVED: list[tuple[Any, str, Any]] = [
    (internals, "tells_hooks", False),
    (hooks, "is_hooked", lambda _: False),
]
"""What stands in where torch does not tell of hooks on saved tensors."""


def samples(p: Any, x: Tensor) -> Tensor:
    """A layer of every kind, one of them called twice, and a parameter in two pieces."""
    x = F.conv1d(F.embedding(x, p["table"]), p["kernel"], p["bias"])
    x = F.layer_norm(F.group_norm(x, 2, p["scale"], p["shift"]), (4,), p["normed"])
    x = F.batch_norm(x, waves(4), waves(4).square(), p["batch"], p["moved"])
    x = F.linear(x.flatten(1), p["first"], p["added"]).tanh() * p["factor"]
    one, other = p["pieces"].chunk(2)
    x = F.linear(F.linear(x, p["shared"]).sigmoid(), p["shared"]) @ one.mT + x @ other
    return x.unflatten(1, (3, 2)).permute(0, 2, 1).square().sum(2)


def waves(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64).flatten().cumsum(0).sin().reshape(shape)


def answers() -> Iterator[tuple[Any, Any]]:
    """What is found in some way, and what it should be."""
    shapes = dict.fromkeys(("bias", "scale", "shift", "normed", "batch", "moved"), (4,))
    shapes |= {"kernel": (4, 4, 3), "first": (6, 16), "added": (6,), "factor": (6,)}
    shapes |= {"table": (5, 6), "shared": (6, 6), "pieces": (12, 6)}
    module = nn.ParameterDict({name: waves(*shape) for name, shape in shapes.items()})
    live, leaves, x = dict(module.items()), list(module.values()), torch.arange(8).view(2, 4) % 5
    p = {name: leaf.detach() for name, leaf in live.items()}
    tasks: Any = lambda p, x: samples(p, x).mean(0)  # noqa: E731

    def rows_of(losses: Tensor) -> list[Tensor]:
        each = [torch.autograd.grad(y, leaves, retain_graph=True) for y in losses.flatten()]
        return [torch.stack(found) for found in zip(*each, strict=True)]

    def product(losses: Tensor) -> Tensor:
        flat = torch.cat([row.flatten(1) for row in rows_of(losses)], 1)
        return flat @ flat.mT

    y, handles = 2 * live["factor"], hooks.Handles()
    yield graph._NUMBER(y.grad_fn) < handles.since, True
    y.register_hook(lambda _: None)  # pyright: ignore
    yield handles.hooked, True
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        node: Any = y.square().grad_fn
    told, tells = hooks.has_saved_hooks([node]), internals.tells_hooks
    found = told, hooks.is_hooked(node._raw_saved_self), hooks.has_saved_hooks([(y * y).grad_fn])
    yield found, (tells, tells, False)
    with internals.TorchDispatchMode():
        traced = bool(internals.is_traced())
    yield traced, True
    rows = rows_of(tasks(live, x))
    yield from zip(task_gradients(tasks, p, x)[1].values(), rows, strict=True)
    for losses in (tasks, lambda p, x: list(tasks(p, x))):
        yield task_gramian(losses, p, x, engine="layerwise")[1], product(tasks(live, x))
    for given in (p, live):
        yield sample_gramian(samples, given, x)[1], product(samples(live, x))
    Balancer(module, mean()).backward(tasks(live, x))
    yield from ((y.grad, row.mean(0)) for y, row in zip(leaves, rows, strict=True))
    trace = lambda s: task_gramian(lambda p, x: s * tasks(p, x), p, x)[1].trace()  # noqa: E731
    yield vmap(grad(trace))(waves(3)), 2 * waves(3) * product(tasks(live, x)).trace()


def wrong() -> str:
    """What is wrong with the first wrong answer."""
    try:
        for pair in answers():
            found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in pair)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, 1e-9, 1e-12):
                return "other numbers"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def attempt() -> str:
    """What was wrong, and whether rows one by one are right; empty where nothing was."""
    INSIDE.add(get_ident())
    if not (why := wrong()):
        return ", ".join(f"{name} is gone" for name in internals.GONE)
    for ways in (PLAIN, SAVED):
        for way in ways:
            stand_in(*way)
        if not wrong():
            return f"{why}; rows are made one by one: slower and right"
    return f"{why}; numbers may be wrong"


def stand_in(home: Any, name: str, new: Any) -> None:
    """Put this wherever the package has what `home` has of that name."""
    old, none = vars(home)[name], object()
    for key, place in [("mtlfunc", home), *sys.modules.items()]:
        if key.startswith("mtlfunc") and vars(place).get(name, none) is old:
            setattr(place, name, new)


LOCK, INSIDE, DONE = Lock(), set[int](), list[bool]()


def behind_door(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not (DONE or torch.compiler.is_compiling() or get_ident() in INSIDE):
            with LOCK, ThreadPoolExecutor(1) as thread:  # where no mode or transform is active
                found = "" if DONE else thread.submit(attempt).result()
                DONE.append(True)
            if found:
                told = f"{NAME} is newer than those tested, and differs: {found}"
                warn(told, RuntimeWarning, user_level())
        return function(*args, **kwargs)

    return call


def at_the_doors() -> None:
    """Try this torch at the next derivative."""
    for name in ("observe", "live"):
        stand_in(run, name, behind_door(getattr(run, name)))
