"""What the tables of operations are made of: inputs, and functions as entries; float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DOUBLE = torch.float64


class Operation(NamedTuple):
    """`call(*inputs)` is a tensor or a tuple of tensors; every input is differentiated."""

    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def _input(shape: tuple[int, ...], seed: int, kind: str) -> Tensor:
    """`any` numbers, `positive` ones, `unit` ones within (-1, 1), or an invertible `matrix`."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator, dtype=DOUBLE)
    if kind == "positive":
        return 0.5 + uniform
    if kind == "unit":
        return 1.6 * uniform - 0.8
    normal = torch.randn(shape, generator=generator, dtype=DOUBLE)
    if kind == "matrix" and shape[-2:-1] == shape[-1:]:
        return normal + 2 * torch.eye(*shape[-2:], dtype=DOUBLE)
    return normal


def op(call: Callable[..., Any], *shapes: tuple[int, ...], kind: str = "any") -> Operation:
    return Operation(call, tuple(_input(shape, 7 + i, kind) for i, shape in enumerate(shapes)))


def constant(*shape: int) -> Tensor:
    return torch.cos(1 + torch.arange(math.prod(shape), dtype=DOUBLE) * 1.7).reshape(shape)


def spd(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-1], dtype=x.dtype)


def symmetric(x: Tensor) -> Tensor:
    return x + x.mT + 3 * torch.diag(torch.arange(x.shape[-1], dtype=x.dtype))


def complexes(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(0) * 0.5 + 0.2)


INDEX = torch.tensor([2, 0])
LABELS = torch.tensor([0, 2])
STATS = (torch.tensor([0.1, -0.2, 0.3], dtype=DOUBLE), torch.tensor([0.9, 1.1, 1.3], dtype=DOUBLE))
FLAGS = torch.tensor([[True, False, True], [False, True, True]])
X23 = (2, 3)
X33 = (3, 3)
SEQUENCE, IMAGE, VOLUME = (2, 3, 4), (2, 3, 4, 4), (1, 2, 3, 3, 3)


def each(*names: str, kind: str = "any", shape: tuple[int, ...] = X23) -> dict[str, Operation]:
    """Functions of one tensor by name: of torch, torch.nn.functional, torch.special, or methods."""
    found = {}
    for name in names:
        call = next(
            getattr(where, name)
            for where in (torch, F, torch.special, Tensor)
            if hasattr(where, name)
        )
        found[name] = op(call, shape, kind=kind)
    return found
