"""The time of the Gramian and combined gradient of K weightings of samples, in plain steps.

    python -m experiments.benchmarks.weightings [--networks mlp ...] [--tasks K ...] [--seconds S]

Writes weightings.json and weightings.md. A plain step is one forward pass and one `backward()` of
the samples' mean loss. Every contender makes the losses, the Gramian of K tasks A ℓ with normal
random A, and leaves their combination by fixed weights in `.grad`; no solver is timed. All take
turns, so that what else the machine does hits them alike; smallest of the processor's times on one
thread. Peers: K passes, a loop of `torch.autograd.grad` whose rows are multiplied and combined; and
TorchJD where it is installed, its Gramian without rows and one more `backward()`.
"""

import copy
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks.measuring import Call, by_name
from experiments.benchmarks.record import Row, markdown, units
from experiments.benchmarks.runner import Axis, command
from experiments.benchmarks.steps import write
from mtlfunc.types import Balance

VOCABULARY = 64


class Squares(nn.Module):
    """Squared errors of samples."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean(1)


def dense(*widths: int) -> Squares:
    """Linear layers."""
    pairs = pairwise(widths)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
    return Squares(nn.Sequential(*layers[:-1]))


def convolutions() -> Squares:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip
    return Squares(net)


class Adapted(nn.Module):
    """A frozen linear layer and a trained product of low rank."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Block(nn.Module):
    """Attention and two dense layers, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.back(F.gelu(self.wide(self.between(x))))


def log_loss(scores: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of each sequence, in float32 at least."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return F.cross_entropy(scores.to(wide).mT, tokens[:, 1:], reduction="none").sum(1)


class GPT(nn.Module):
    """Negative log-likelihoods of sequences, by a transformer with a table of positions."""

    def __init__(
        self,
        layers: int,
        width: int,
        length: int,
        rank: int = 0,
        heads: int = 4,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.tokens, self.places = (nn.Embedding(n, width) for n in (vocabulary, length))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if rank:
            self.requires_grad_(False)
            for block in self.blocks:
                for name, layer in list(block.named_children()):
                    if isinstance(layer, nn.Linear):
                        setattr(block, name, Adapted(layer, rank))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        x = self.tokens(tokens[:, :-1]) + self.places(places)
        return log_loss(self.head(self.last(self.blocks(x))), tokens)


def _tokens(count: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (count, length + 1))


class Case(NamedTuple):
    make: Callable[[], tuple[nn.Module, Tensor]]
    what: str
    bars: dict[int, float]  # for K tasks, plain steps at most


CASES = {
    "mlp": Case(
        lambda: (dense(512, 512, 512, 512), torch.randn(128, 512)),
        "MLP 3 × 512, 128 samples",
        {64: 3.0},
    ),
    "convolutions": Case(
        lambda: (convolutions(), torch.randn(32, 3, 32, 32)), "convolutions, 32 images", {}
    ),
    "gpt": Case(
        lambda: (GPT(3, 128, 64), _tokens(24, 64)),
        "GPT, 3 layers, width 128, 24 × 64 tokens",
        {64: 3.0},
    ),
    "lora": Case(
        lambda: (GPT(3, 128, 64, rank=8), _tokens(24, 64)),
        "the same, adapters of rank 8 alone",
        {16: 1.6},
    ),
}
LEAST = 1.1  # at K = 2, times K passes
LOOP, OURS = "K passes", ("mf.Balancer", "mf.balance")
NAMES = (LOOP, "TorchJD", *OURS)


def pure_step(net: nn.Module, matrix: Tensor) -> Balance:
    """Gradients of the mean of the tasks `matrix @ losses`, and their Gramian, as a function."""
    return mf.balance(
        lambda params, batch: functional_call(net, params, (batch,)),
        mf.mean(),
        mf.jacobian(weightings=lambda batch: matrix),
    )


def contenders(net: nn.Module, x: Tensor, tasks: int) -> dict[str, Call]:
    """A plain step, and every way to a Gramian and a combination; each starts without gradients."""
    leaves = [leaf for leaf in net.parameters() if leaf.requires_grad]
    matrix = torch.randn(tasks, len(x), device=x.device)
    weights = torch.full((tasks,), 1 / tasks, device=x.device)

    def plain() -> None:
        net.zero_grad()
        net(x).mean().backward()

    def loop() -> None:
        net.zero_grad()
        rows = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in matrix @ net(x)]
        jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
        gramian = jacobian @ jacobian.T
        write(weights.to(gramian) @ jacobian, leaves)

    @cache  # at the first step: a Balancer takes TorchJD's hooks, if they come later, for its own
    def balancer() -> mf.Balancer:
        return mf.Balancer(net, mf.mean())

    def live() -> None:
        net.zero_grad()
        balancer().backward(net(x), weightings=matrix)

    step = pure_step(net, matrix)
    state = step.init(mf.parameters(net), x)

    def pure() -> None:
        mf.assign_gradients(net, step.update(mf.parameters(net), x, state)[0])

    found: dict[str, Call] = {"plain": plain, LOOP: loop, "mf.Balancer": live, "mf.balance": pure}
    try:
        from torchjd.autogram import Engine
    except ImportError:
        return found
    engine = Engine(apart := copy.deepcopy(net), batch_dim=None)  # its hooks stay on the modules

    def peer() -> None:
        apart.zero_grad()
        losses = matrix @ apart(x)
        engine.compute_gramian(losses)
        (weights @ losses).backward()

    return found | {"TorchJD": peer}


def measure(given: Namespace, network: str, tasks: int) -> list[Row]:
    """Smallest seconds of every contender that runs."""
    torch.manual_seed(0)
    calls = contenders(*CASES[network].make(), tasks)
    return [{"seconds": by_name(calls, given.seconds, given.clock, min, least=5)}]


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain step, a network and K a line; `line` says how they were taken."""
    lines = []
    for row in rows:
        seconds, bar = row["seconds"], bar_of(row)
        cells = [CASES[row["network"]].what, str(row["tasks"]), f"{1e3 * seconds['plain']:.3g}"]
        lines.append([*cells, *units(seconds, NAMES), f"{bar:.2f}" if bar else "–"])
    return markdown(line, ["network", "K", "plain step, ms", *NAMES, "bar"], lines)


def bar_of(row: Row) -> float | None:
    """Plain steps that ours may take at most, where there is a bar."""
    if row["tasks"] == 2:
        return LEAST * row["seconds"][LOOP] / row["seconds"]["plain"]
    return CASES[row["network"]].bars.get(row["tasks"])


def missed(rows: list[Row]) -> list[str]:
    """Where one of ours is above its bar."""
    return [
        f"{row['network']}, K = {row['tasks']}: {name}"
        for row in rows
        for name in OURS
        if (bar := bar_of(row)) and row["seconds"][name] > bar * row["seconds"]["plain"]
    ]


AXES = {
    "network": Axis("networks", list(CASES)),
    "tasks": Axis("tasks", [2, 4, 16, 64], at_least(1)),
}
main = command("weightings", __doc__, AXES, measure, table, seconds=8.0)

if __name__ == "__main__":
    main()
