"""A newer torch than CI tests is tried at import; if it differs, rows are made one by one."""

from typing import Any
from warnings import warn

import torch
import torch.nn.functional as F

from ..core import checks, hooks, internals, transforms
from ..gradients import sample_gramian, task_gradients, task_gramian
from ..gradients.layerwise import graph
from ..rules import mean
from ..training import Balancer


def samples(p: Any, x: torch.Tensor) -> torch.Tensor:
    """A layer of every kind, one of them called twice, and a parameter in two pieces."""
    x = F.conv1d(F.embedding(x, p["table"]), p["kernel"], p["bias"])
    x = F.layer_norm(F.group_norm(x, 2, p["scale"], p["shift"]), (4,), p["normed"])
    x = F.batch_norm(x, waves(6), waves(6).square(), p["batch"], p["moved"])
    x = F.linear(x.flatten(1), p["first"], p["added"]).tanh() * p["factor"]
    one, other = p["pieces"].chunk(2)
    x = F.linear(F.linear(x, p["shared"]).sigmoid(), p["shared"]) @ one.mT + x @ other
    return x.unflatten(1, (3, 2)).permute(0, 2, 1).square().sum(2)


def waves(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float64).flatten().cumsum(0).sin().reshape(shape)


def answers() -> Any:
    """Pairs: what is found in some way, and what `torch.autograd.grad` of single scalars says."""
    shapes = dict.fromkeys(("bias", "scale", "shift", "batch", "moved", "added", "factor"), (6,))
    shapes |= {"kernel": (6, 4, 3), "normed": (4,), "first": (6, 24), "table": (5, 6)}
    shapes |= {"shared": (6, 6), "pieces": (12, 6)}
    module = torch.nn.ParameterDict({name: waves(*shape) for name, shape in shapes.items()})
    live, leaves, x = dict(module.items()), list(module.values()), torch.arange(8).view(2, 4) % 5
    p = {name: leaf.detach() for name, leaf in live.items()}
    tasks: Any = lambda p, x: samples(p, x).mean(0)  # noqa: E731

    def by_scalars(losses: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
        each = [torch.autograd.grad(y, leaves, retain_graph=True) for y in losses.flatten()]
        rows = [*map(torch.stack, zip(*each, strict=True))]
        return rows, sum(x.flatten(1) @ x.flatten(1).mT for x in rows)

    y, handles = 2 * live["factor"], hooks.Handles()
    y.register_hook(lambda _: None)  # pyright: ignore
    yield (graph._NUMBER(y.grad_fn) < handles.since, handles.hooked), (True, True)
    (rows, gramian), (_, of_samples) = map(by_scalars, (tasks(live, x), samples(live, x)))
    yield from zip(task_gradients(tasks, p, x)[1].values(), rows, strict=True)
    for losses in (tasks, lambda p, x: list(tasks(p, x))):
        yield task_gramian(losses, p, x, engine="layerwise")[1], gramian
    yield from ((sample_gramian(samples, each, x)[1], of_samples) for each in (p, live))
    Balancer(module, mean()).backward(tasks(live, x))
    yield from ((y.grad, row.mean(0)) for y, row in zip(leaves, rows, strict=True))
    trace = lambda s: task_gramian(lambda p, x: s * tasks(p, x), p, x)[1].trace()  # noqa: E731
    yield torch.func.vmap(torch.func.grad(trace))(waves(3)), 2 * waves(3) * gramian.trace()


def wrong() -> str:
    """What is wrong with the first wrong answer."""
    try:
        with transforms.enable_grad():
            torch.testing.assert_close(*zip(*answers(), strict=True), rtol=1e-9, atol=1e-12)
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


def try_torch() -> None:
    """Warn if this torch differs; if numbers do, its private parts are trusted no more."""
    differs = [f"{name} is gone" for name in internals.GONE]
    inside = "it is imported inside a transform" * transforms.inside_transform()
    if found := inside or wrong():
        internals.Trust.private = False
        right = "rows are made one by one: slower and right"
        differs = [found, right if inside or not wrong() else "numbers may be wrong"]
    if differs:
        said = f"torch {torch.__version__} is newer than those tested, and differs: "
        warn(said + "; ".join(differs), RuntimeWarning, checks.user_level())
