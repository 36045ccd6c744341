"""Which files of the package a live loss enters in one `Balancer.backward`, and how often it comes
back to a file that it had left.
A profiler's hook sees every call of the second step. A call counts if a loss is among its
arguments: the losses as the user holds them, one of them, a tensor computed from them directly
(their vector) or anything that holds one of these, up to six deep: lists, tuples, dicts, partials,
methods, what a function closes over, and objects of the package. A stay is a run of such calls in
one file; a return is a stay in a file that had one before.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

import mtlfunc as mf

ROOT = Path(mf.__file__).parent
FORMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "a list": list,
    "a dict": lambda losses: {f"task {k}": loss for k, loss in enumerate(losses)},
}
DEEPEST = 6


def parts(value: Any) -> Iterable[Any]:
    """What a value holds."""
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    ours = type(value).__module__.startswith("mtlfunc.") and not isinstance(value, type)
    return vars(value).values() if ours and hasattr(value, "__dict__") else ()


def holds_a_loss(value: Any, nodes: Collection[Any], deep: int = 0) -> bool:
    """Whether it is or holds a tensor that one of these nodes made, or made from what one made."""
    if isinstance(value, Tensor):
        made = value.grad_fn
        return made is not None and (
            made in nodes or any(node in nodes for node, _ in made.next_functions)
        )
    return deep < DEEPEST and any(holds_a_loss(x, nodes, deep + 1) for x in parts(value))


def given(frame: FrameType) -> list[Any]:
    """The arguments of a call that begins."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *args, **kwargs
    return [frame.f_locals.get(name) for name in code.co_varnames[:count]]


def stays(form: Callable[[list[Tensor]], Any] = list) -> list[tuple[str, int]]:
    """(file, calls) of every stay, in order, at the second step of a small network."""
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(200, 200), nn.ReLU()), nn.ModuleList()
    heads.extend(nn.Linear(200, 1) for _ in range(3))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads})
    balancer = mf.Balancer(net, mf.mgda(), shared="trunk.*")
    entered: list[str] = []
    nodes: set[Any] = set()  # of the losses, which live as long as it does

    def see(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or ROOT not in path.parents or frame.f_code.co_name.startswith("<"):
            return
        if any(holds_a_loss(x, nodes) for x in given(frame)):
            entered.append(path.relative_to(ROOT).with_suffix("").as_posix())

    for step in range(2):
        z = trunk(torch.randn(8, 200))
        losses = [head(z).square().mean() for head in heads]
        nodes.update(loss.grad_fn for loss in losses)
        held = form(losses)
        if step:
            sys.setprofile(see)
        try:
            balancer.backward(held)
        finally:
            sys.setprofile(None)
    return [(name, len(list(calls))) for name, calls in groupby(entered)]
