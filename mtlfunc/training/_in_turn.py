"""Losses as functions: each is called, differentiated and freed before the next is called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..core.tree import as_real, dot
from ..gradients.layerwise.graph import run_backward
from ..gradients.layerwise.plan import Wanted
from ..gradients.losses import Losses, Tasks
from ..gradients.operator import Measurement, TaskJacobian
from ..gradients.run import live
from ..processes import mask_of
from ..types import Params, Rows
from ._given import Functions, check_outside, no_autocast

REFUSED = "single memory location"
"""What torch says of writing into a tensor that is expanded."""

STEPS = "optimizer.step() inside a function"

DO_ELSE = (
    "let it return the loss with its graph, and do all else before or after the balancer's step"
)


class RowsInTurn(NamedTuple):
    """What is left of losses that were differentiated in turn."""

    losses: Any  # by name or in a list; instead of a graph each has a node that knows the gradient
    rows: Rows  # of the shared leaves, {name: [task, *shape]}
    others: list[Params]  # by task, the gradients of the other leaves that it reads

    def filled(
        self, found: Measurement, jacobian: TaskJacobian, wanted: Wanted, share: float | None
    ) -> Measurement:
        """What was found, with what is wanted of the rows, and the heads' gradient by `share`."""
        rows, others, gramian, heads = self.rows, self.others, None, {}
        if (scale := jacobian.scale) is not None:
            rows = {k: x * scale.to(x).reshape(-1, *[1] * (x.ndim - 1)) for k, x in rows.items()}
            others = [
                {k: x * s for k, x in of.items()} for s, of in zip(scale, others, strict=True)
            ]
        if wanted.gramian:
            gramian = dot(rows, rows, rows, wanted.dtype)
            gramian = (gramian + gramian.mT).mul_(0.5)
        if share is not None:
            for name in [name for name in jacobian.leaves if name not in rows]:
                zeros = torch.zeros_like(as_real(jacobian.leaves[name].detach()))
                total = sum([of[name] for of in others if name in of], zeros)
                heads[name] = share * total  # held by no one else
        return found._replace(rows=rows, gramian=gramian, heads=heads)


def differentiated_in_turn(
    functions: Functions, leaves: Params, shared: tuple[str, ...], tasks: Tasks,
    present: Tensor | None,
) -> RowsInTurn:  # fmt: skip
    """Call the functions of tasks with labels in turn; each has a row of the `shared` leaves."""
    named = isinstance(tasks, dict)
    mask = mask_of(present, len(tasks))
    here = [True] * len(tasks) if mask is None else mask.tolist()
    some = {name: as_real(leaves[name].detach()) for name in shared}
    rows = {name: x.new_zeros(len(tasks), *x.shape) for name, x in some.items()}
    losses: dict[Any, Tensor] = {}
    others: list[Params] = []
    with _watched(leaves) as check:
        for task, name in enumerate(tasks if named else functions):
            loss, grads = some[shared[0]].new_zeros(()), {}
            if here[task]:
                loss, grads = _differentiated(f"losses[{name!r}]", functions[name], leaves, check)
            for key in grads.keys() & rows.keys():
                grads[key] = rows[key][task].copy_(grads[key])
            others.append({key: x for key, x in grads.items() if key not in rows})
            if grads:
                loss = _Left.apply(loss, [*grads.values()], *[as_real(leaves[k]) for k in grads])
            losses[name] = loss
    return RowsInTurn(losses if named else [*losses.values()], rows, others)


class _Left(torch.autograd.Function):
    """A node instead of a graph that is gone."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, None, *[cotangents[0] * grad for grad in ctx.grads]


def _differentiated(
    label: str, function: Callable[[], Any], leaves: Params, check: Callable[..., None]
) -> tuple[Tensor, Params]:
    """A function's loss and its gradient in the leaves that it reads; its graph is freed."""
    try:
        loss = function()
    except Exception as error:
        check(label, str(error))
        error.add_note(f"{label}: the balancer called this function")
        raise
    check(label)
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        tensor = isinstance(loss, Tensor)
        found = f"{loss.dtype} {list(loss.shape)}" if tensor else type(loss).__name__
        raise ValueError(
            f"{label}: expected a function that returns one floating loss, a 0-d tensor with its "
            f"graph, got {found}; return the loss alone, reduced, for instance with .mean()"
        )
    if not loss.requires_grad:
        return loss.detach(), {}
    forward = live(Losses(loss[None], (loss,)), leaves)
    check_outside([forward], leaves)
    places = (*forward.places.values(), *forward.graph.asked)
    edge = forward.edges[0] if forward.edges else None
    assert edge is not None
    try:
        with no_autocast(leaves):
            found = run_backward(edge, loss.detach().new_ones(()), places, keep=False)
    except RuntimeError as error:
        check(label, str(error))
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            f"{label}: an earlier pass, another function's or its own, has freed parts of its "
            "graph; compute everything inside each function, or pass the losses themselves"
        ) from error
    check(label, "")
    pairs = zip(leaves, found, strict=False)
    return loss.detach(), {name: x.detach() for name, x in pairs if x is not None}


@contextmanager
def _watched(leaves: Params) -> Iterator[Callable[..., None]]:
    """What raises, with a label, where a function changed `.grad` or a parameter. `.grad` is put
    back: meanwhile it holds a mark, one number expanded, into which torch refuses to write.
    """
    held = [(x.grad, x.data, x._version, x.data_ptr()) for x in leaves.values()]
    marks = [x.detach().new_zeros(()).expand(x.shape) for x in leaves.values()]
    before = _sums(data := [each for _, each, *_ in held])

    def check(label: str, said: str | None = None) -> None:
        refused, steps = REFUSED in (said or ""), STEPS in (said or "")
        for (name, x), mark, (*_, version, place) in zip(leaves.items(), marks, held, strict=True):
            if steps or x._version != version or x.data_ptr() != place:
                what = f"writes into {name!r}, as optimizer.step() does"
            elif refused or x.grad is not mark or mark._version:
                what = "calls backward() itself, or zero_grad(), or a part of its graph does"
            elif not x.requires_grad:
                what = f"freezes {name!r}"
            else:
                continue
            raise RuntimeError(f"{label}: its function {what}; {DO_ELSE}")

    def step(optimizer: Optimizer, *_: Any) -> None:
        """Before the kernel runs, which may read marks as if they were whole."""
        own = set(map(id, leaves.values()))
        if any(id(x) in own for group in optimizer.param_groups for x in group["params"]):
            raise RuntimeError(STEPS)

    hook = register_optimizer_step_pre_hook(step)
    try:
        for x, mark in zip(leaves.values(), marks, strict=True):
            x.grad = mark
        yield check
        moved = (_sums(data) != before).tolist()
        for name in [name for name, found in zip(leaves, moved, strict=True) if found]:
            raise RuntimeError(f"losses: a function writes into {name!r} by its .data; {DO_ELSE}")
    finally:
        hook.remove()
        for x, (grad, data, *_) in zip(leaves.values(), held, strict=True):
            if x.data_ptr() != data.data_ptr() or x.dtype != data.dtype:
                x.data = data
            x.grad = grad


def _sums(data: list[Tensor]) -> Tensor:
    """Of every parameter's numbers, which tell of a write through .data that nothing undoes."""
    sums = [as_real(x).sum() for x in data]
    return torch.stack([x.to(sums[0].device) for x in sums]).nan_to_num()
