"""Indexing, shapes, and writing in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.operations.common import FLAGS, INDEX, SEQUENCE, X23, X33, constant, op

INDEXING = {
    "getitem": op(lambda x: x[1, :2], X23),
    "getitem index": op(lambda x: x[:, INDEX], X23),
    "getitem mask": op(lambda x: x[FLAGS], X23),
    "getitem twice": op(lambda x: x[torch.tensor([0, 1, 1]), torch.tensor([2, 2, 2])], X23),
    "gather": op(lambda x: torch.gather(x, 1, torch.tensor([[0, 2], [1, 1]])), X23),
    "take": op(lambda x: torch.take(x, torch.tensor([0, 4, 4])), X23),
    "index_select": op(lambda x: torch.index_select(x, 1, INDEX), X23),
    "masked_select": op(lambda x: torch.masked_select(x, FLAGS), X23),
    "masked_fill": op(lambda x: x.masked_fill(FLAGS, 2.0), X23),
    "masked_fill tensor": op(lambda x, v: torch.masked_fill(x, FLAGS, v), X23, ()),
    "masked_scatter": op(lambda x, y: torch.masked_scatter(x, FLAGS, y), X23, X23),
    "scatter": op(lambda x, y: torch.scatter(x, 1, torch.tensor([[0, 2], [1, 0]]), y), X23, (2, 2)),
    "scatter_add": op(lambda x, y: torch.scatter_add(x, 1, torch.tensor([[0, 0], [1, 0]]), y), X23,
        (2, 2)),
    **{
        f"scatter_reduce {how}": op(
            lambda x, y, how=how: torch.scatter_reduce(
                x, 1, torch.tensor([[0, 0], [1, 0]]), y, reduce=how
            ),
            X23, (2, 2),
        )
        for how in ("sum", "prod", "mean", "amax", "amin")
    },
    "scatter reduce multiply": op(
        lambda x: torch.scatter(x, 1, torch.tensor([[0, 2], [1, 0]]), 0.5), X23),
    "index_add": op(lambda x, y: torch.index_add(x, 1, INDEX, y), X23, (2, 2)),
    "index_add alpha": op(lambda x, y: x.index_add(0, torch.tensor([1, 1]), y, alpha=2), X23, X23),
    "index_copy": op(lambda x, y: torch.index_copy(x, 1, INDEX, y), X23, (2, 2)),
    **{
        f"index_copy {name}": op(lambda y, to=to: torch.index_copy(constant(4), 0, to, y), source)
        for name, to, source in (
            ("one number", torch.tensor([2]), ()),
            ("by one number", torch.tensor(2), ()),
            ("by a number", torch.tensor(2), (1,)),
        )
    },
    "index_add by a number": op(lambda x, y: x.index_add(1, torch.tensor(2), y), X23, (2, 1)),
    "index_select by a number": op(lambda x: x.index_select(1, torch.tensor(2)), X23),
    "index_fill": op(lambda x: torch.index_fill(x, 1, INDEX, 3.0), X23),
    "index_fill tensor": op(lambda x, v: torch.index_fill(x, 1, INDEX, v), X23, ()),
    "index_fill constant": op(
        lambda v: torch.index_fill(constant(2, 3), 1, torch.tensor([0, 2]), v), ()),
    "index_put": op(lambda x, y: torch.index_put(x, (torch.tensor([0, 1]), INDEX), y), X23, (2,)),
    "index_put accumulate": op(
        lambda x, y: torch.index_put(x, (torch.tensor([0, 0]), torch.tensor([1, 1])), y,
        accumulate=True), X23, (2,)),
    **{
        f"index_reduce {how}": op(
            lambda x, y, how=how: torch.index_reduce(x, 1, torch.tensor([0, 0]), y, how),
            X23, (2, 2), kind="positive",
        )
        for how in ("prod", "mean", "amax", "amin")
    },
    "put": op(lambda x, y: torch.put(x, torch.tensor([0, 4]), y), X23, (2,)),
    "select_scatter": op(lambda x, y: torch.select_scatter(x, y, 1, 0), X23, (2,)),
    "select_scatter method": op(lambda x, y: x.select_scatter(y, 0, 1), X33, (3,)),
    "slice_scatter": op(lambda x, y: torch.slice_scatter(x, y, 1, 1, 3), X23, (2, 2)),
    "diagonal_scatter": op(lambda x, y: torch.diagonal_scatter(x, y), X33, (3,)),
    "as_strided": op(lambda x: torch.as_strided(x, (2, 2), (1, 2)), X23),
    "as_strided_scatter": op(lambda x, y: torch.as_strided_scatter(x, y, (2, 2), (3, 1)), X23,
        (2, 2)),
    "diagonal": op(lambda x: torch.diagonal(x, 1), X33),
    "diag": op(torch.diag, (3,)),
    "diag matrix": op(torch.diag, X33),
    "diag_embed": op(lambda x: torch.diag_embed(x, 1), X23),
    "tril": op(torch.tril, X33),
    "triu": op(lambda x: torch.triu(x, 1), X33),
    "setitem": op(lambda x, y: _written(x, (slice(None), 1), y), X23, (2,)),
}  # fmt: skip


def _written(x: Tensor, where: Any, value: Tensor) -> Tensor:
    x = 1 * x + 0 * value.sum()
    x[where] = value
    return x


def _moved(x: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    x = 1 * x
    write(x)
    return x


def _in_place(method: str, *rest: Any) -> Callable[..., Tensor]:
    return lambda x, *others: getattr(1 * x, method)(*others, *rest)


SHAPES = {
    "reshape": op(lambda x: x.reshape(3, 2), X23),
    "permute": op(lambda x: x.permute(2, 0, 1), SEQUENCE),
    "transpose": op(lambda x: x.transpose(0, 1), X23),
    "squeeze": op(lambda x: x.unsqueeze(1).squeeze(1), X23),
    "expand": op(lambda x: x.unsqueeze(0).expand(2, 2, 3), X23),
    "repeat": op(lambda x: x.repeat(2, 1), X23),
    "roll": op(lambda x: torch.roll(x, 1, 1), X23),
    "flip": op(lambda x: torch.flip(x, (0, 1)), X23),
    "rot90": op(torch.rot90, X23),
    "cat": op(lambda a, b: torch.cat([a, b, a]), X23, X33),
    "stack": op(lambda a, b: torch.stack([a, b], 1), X23, X23),
    "unbind": op(lambda x: x.unbind(1)[1], X23),
    "split": op(lambda x: x.split([1, 2], 1)[1], X23),
    "chunk": op(lambda x: x.chunk(2, 1)[0], X23),
    "meshgrid": op(lambda a, b: torch.meshgrid(a, b, indexing="ij"), (2,), (3,)),
    "pad_sequence": op(lambda a, b: nn.utils.rnn.pad_sequence([a, b]), X23, X33),
    "fill diagonal": op(lambda x: (1 * x).fill_diagonal_(2.0), X33),
    **{
        name: op(_in_place(name), X23)
        for name in ("relu_", "sigmoid_", "tanh_", "exp_", "abs_", "neg_", "sin_", "cos_", "erf_")
    },
    **{
        name: op(_in_place(name), X23, X23)
        for name in ("add_", "mul_", "sub_", "div_", "copy_", "atan2_", "clamp_min_")
    },
    "cumsum_": op(_in_place("cumsum_", 0), X23),
    "clamp_": op(_in_place("clamp_", -0.5, 0.5), X23),
    "masked_fill_": op(_in_place("masked_fill_", FLAGS, 1.0), X23),
    "zero_ part": op(lambda x: _moved(x, lambda y: y[0].zero_()), X23),
    "addmm_": op(_in_place("addmm_"), (2, 2), X23, (3, 2)),
    "elu inplace": op(lambda x: F.elu(1 * x, inplace=True), X23),
    "leaky inplace": op(lambda x: F.leaky_relu(1 * x, 0.1, inplace=True), X23),
    "view write": op(lambda x, y: _moved(x, lambda z: z.view(-1)[1:3].mul_(y)), X23, (2,)),
}
