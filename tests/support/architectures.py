"""Small networks of every kind for the layerwise engine; float64, losses [sample, task] by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

from mtlfunc.types import Params

SAMPLES, TASKS = 5, 3


class Architecture(NamedTuple):
    """A module and a batch; `module(*batch)` has shape [sample, task]."""

    module: nn.Module
    batch: tuple[Tensor, ...]
    untapped: tuple[str, ...] = ()  # leaves that have to be differentiated row by row

    @property
    def params(self) -> Params:
        return {name: leaf.detach() for name, leaf in self.module.named_parameters()}

    def samples(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        return functional_call(self.module, params, batch)

    def tasks(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        return self.samples(params, batch).mean(0)


class Calls(nn.Module):
    """A network written as a function of its own parameters."""

    def __init__(self, body: Callable[..., Tensor], **leaves: nn.Module | Tensor) -> None:
        super().__init__()
        self.body = body
        for name, leaf in leaves.items():
            setattr(self, name, nn.Parameter(leaf) if isinstance(leaf, Tensor) else leaf)

    def forward(self, *batch: Tensor) -> Tensor:
        return self.body(self, *batch)


def _mlp() -> Architecture:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 5, bias=False), nn.RMSNorm(5),
        nn.Tanh(), nn.Linear(5, TASKS),
    )  # fmt: skip
    return Architecture(net, (torch.randn(SAMPLES, 4),))


def _in_place() -> Architecture:
    def body(net: Any, x: Tensor) -> Tensor:
        hidden = net.first(x)
        hidden.relu_()
        hidden = net.second(hidden)
        hidden += 1
        hidden[:, 0].mul_(2)
        return net.last(hidden)

    return Architecture(
        Calls(body, first=nn.Linear(4, 6), second=nn.Linear(6, 5), last=nn.Linear(5, TASKS)),
        (torch.randn(SAMPLES, 4),),
    )


def _convolutions() -> Architecture:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4).eval(), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(1, 2), groups=2, bias=False),
        nn.GroupNorm(3, 6), nn.GELU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Conv2d(4, 2, 3, padding=(1, 0), padding_mode="reflect"), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2, TASKS),
    )  # fmt: skip
    return Architecture(net, (torch.randn(SAMPLES, 2, 6, 8),))


def _other_dimensions() -> Architecture:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.Tanh(),
        nn.ConvTranspose1d(4, 3, 2, stride=3, output_padding=2, dilation=3),
        nn.Unflatten(2, (3, 3, 3)),
        nn.Conv3d(3, 2, (1, 2, 3), stride=(1, 1, 2), padding=(0, 1, 0)),
        nn.ConvTranspose3d(2, 2, 2), nn.Flatten(), nn.Linear(80, TASKS),
    )  # fmt: skip
    return Architecture(net, (torch.randn(SAMPLES, 2, 8),))


class _Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.embed = nn.Embedding(7, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(4, 8) if batch_first else torch.randn(4, 1, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        width = None if batch_first else 6
        self.cross = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=width, vdim=width)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, TASKS)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        tokens, memory = (tokens, memory) if self.first else (tokens.mT, memory.transpose(0, 1))
        x = self.embed(tokens) + self.position
        x = x + self.attend(x, x, x, need_weights=False)[0] * self.scale
        x = self.norm(x + self.cross(x, memory, memory)[0])
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1 if self.first else 0))


def _transformer(batch_first: bool = True) -> Architecture:
    tokens, memory = torch.randint(0, 7, (SAMPLES, 4)), (SAMPLES, 3, 8 if batch_first else 6)
    return Architecture(_Attention(batch_first), (tokens, torch.randn(memory)))


def _transformer_sequence_first() -> Architecture:
    return _transformer(False)


def _tied_embedding() -> Architecture:
    def body(net: Any, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(net.mix(net.embed(tokens)))
        return F.log_softmax(F.linear(hidden, net.embed.weight), -1).mean(1)[:, :TASKS]

    return Architecture(
        Calls(body, embed=nn.Embedding(6, 4), mix=nn.Linear(4, 4)),
        (torch.randint(0, 6, (SAMPLES, 4)),),
    )


def _recurrent_cell() -> Architecture:
    def body(net: Any, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 5)
        for step in range(x.shape[1]):
            hidden = torch.tanh(net.read(x[:, step]) + net.carry(hidden))
        return net.head(hidden)

    carry = nn.Linear(5, 5, bias=False)
    net = Calls(body, read=nn.Linear(3, 5), carry=carry, head=nn.Linear(5, TASKS))
    return Architecture(net, (torch.randn(SAMPLES, 4, 3),))


def _decayed() -> Architecture:
    def body(net: Any, x: Tensor) -> Tensor:
        return net.last(torch.tanh(net.first(x))) + 0.1 * net.first.weight.square().sum()

    return Architecture(
        Calls(body, first=nn.Linear(4, 5), last=nn.Linear(5, TASKS)),
        (torch.randn(SAMPLES, 4),),
        ("first.weight",),
    )


def _products() -> Architecture:
    def body(net: Any, x: Tensor) -> Tensor:
        x = torch.tanh(x @ net.right)
        x = torch.tanh(torch.matmul(x, net.left.T) * net.scale - net.shift)
        x = torch.addmm(net.bias, x, net.addend)
        x = torch.einsum("bi,oi->bo", x, net.summed)
        blocks = torch.einsum("bgi,gio->bgo", x.unflatten(1, (2, 3)), net.blocks).flatten(1)
        low, high = net.whole.split([3, 3])
        first, second = blocks.split(3, 1)
        return torch.cat([first @ low, F.linear(second, high.mT)], 1) @ net.view[:, :TASKS]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape)

    net = Calls(
        body, right=leaf(4, 5), left=leaf(6, 5), scale=leaf(6), shift=leaf(1), addend=leaf(6, 6),
        bias=leaf(6), summed=leaf(6, 6), blocks=leaf(2, 3, 3), whole=leaf(6, 2), view=leaf(4, 5),
    )  # fmt: skip
    return Architecture(net, (torch.randn(SAMPLES, 4),), ("view",))


def _spelled() -> Architecture:
    """Reads that are no layer's: from the left, by index, piece by piece, mapped, broadcast."""

    def body(net: Any, x: Tensor) -> Tensor:
        kind = (x[:, 0] > 0).long()
        x = torch.tanh((net.left @ x.T).T + net.table[kind - 1])
        x = torch.cat([x, net.token.expand(len(x), -1)], 1)
        x = torch.tanh(torch.baddbmm(net.added, x.expand(2, -1, -1), net.batches).sum(0))
        x = torch.stack([x @ net.stack[i] for i in range(3)], 1) / 3
        x = torch.tanh(vmap(lambda row: F.linear(row, net.mapped))(x.flatten(0, 1)))
        rows = x.unflatten(0, (-1, 3)).flatten(1)
        scaled = net.picked.index_select(0, kind) * rows
        images = torch.stack(list(vmap(lambda row: F.conv1d(row[None], net.window))(rows)))
        parts = torch.cat([rows @ net.low[:5].T, (images[:, 0] @ net.vector)[:, None]], 1)
        return scaled[:, :TASKS] + parts[:, :TASKS] + net.over / parts[:, 3:]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape)

    net = Calls(
        body, left=leaf(6, 4), table=leaf(3, 6), token=leaf(1, 2), batches=leaf(2, 8, 4),
        added=leaf(2, 1, 4), stack=leaf(3, 4, 4), mapped=leaf(2, 4), picked=leaf(3, 6),
        window=leaf(1, 1, 3), vector=leaf(4), over=leaf(TASKS), low=leaf(7, 6),
    )  # fmt: skip
    return Architecture(net, (torch.randn(SAMPLES, 4),))


def _derivative() -> Architecture:
    """Losses that contain second derivatives read every weight several times."""

    def body(net: Any, x: Tensor) -> Tensor:
        def value(point: Tensor) -> Tensor:
            return net.last(torch.tanh(net.mid(torch.tanh(net.first(point)))))

        def residual(point: Tensor) -> Tensor:
            return hessian(value)(point).diagonal(0, 1, 2).sum(1) - value(point).square()

        return vmap(residual)(x)

    net = Calls(body, first=nn.Linear(2, 5), mid=nn.Linear(5, 5), last=nn.Linear(5, TASKS))
    return Architecture(net, (torch.randn(SAMPLES, 2),))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, padding=1)
        self.deep = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def head(task: int) -> nn.Module:
            up, out = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(6, 1 + task, 1)
            return nn.ModuleDict({"up": up, "out": out})

        self.heads: Any = nn.ModuleList(map(head, range(TASKS)))

    def forward(self, x: Tensor) -> Tensor:
        shallow = torch.relu(self.down(x))
        deep = torch.relu(self.deep(shallow))
        outs = [head["out"](torch.cat([shallow, head["up"](deep)], 1)) for head in self.heads]
        return torch.stack([out.square().mean((1, 2, 3)) for out in outs], 1)


def _unet() -> Architecture:
    return Architecture(_UNet(), (torch.randn(SAMPLES, 1, 4, 4),))


def _tokens_flattened() -> Architecture:
    """The samples are the slow index of one axis, then the fast one."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = torch.tanh(net.slow(x.flatten(0, 1))).unflatten(0, (len(x), -1))
        x = torch.tanh(net.fast(x.transpose(0, 1).flatten(0, 1))).unflatten(0, (-1, len(x)))
        return net.last(x.mean(0))

    return Architecture(
        Calls(body, slow=nn.Linear(3, 4), fast=nn.Linear(4, 4), last=nn.Linear(4, TASKS)),
        (torch.randn(SAMPLES, 4, 3),),
    )


def _unused() -> Architecture:
    def body(net: Any, x: Tensor) -> Tensor:
        net.idle(x)
        return net.last(x)

    return Architecture(
        Calls(body, idle=nn.Linear(4, 2), never=torch.randn(3), last=nn.Linear(4, TASKS)),
        (torch.randn(SAMPLES, 4),),
        ("never", "idle.weight", "idle.bias"),
    )


def build(name: str) -> Architecture:
    """The same network for the same name."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        made = _ALL[name]()
        batch = tuple(x.double() if x.is_floating_point() else x for x in made.batch)
        return made._replace(module=made.module.double(), batch=batch)


_ALL = {
    f.__name__.removeprefix("_"): f
    for f in (
        _mlp, _in_place, _convolutions, _other_dimensions, _transformer,
        _transformer_sequence_first, _tied_embedding, _recurrent_cell, _decayed, _products,
        _unet, _tokens_flattened, _unused, _spelled, _derivative,
    )
}  # fmt: skip
NAMES = tuple(_ALL)
