"""The time of one step of a stock loop, in units of the plain mean-loss step.

    python -m experiments.benchmarks.steps [--networks mlp ...] [--seconds S] [--clock cpu]
    [--out DIR]

Writes steps.json and steps.md. Every contender makes the losses and leaves a gradient in `.grad`;
the optimizer's own step is the same for all and is left out. All take turns, so that what else the
machine does hits them alike; medians of the processor's time on one thread. Peers: a hand-written
loop (one `torch.autograd.grad` a task, MGDA's weights by our solver); a loop in the style of LibMTL
(one `backward()` a task, `.grad` copied into rows of a matrix, weights by Frank-Wolfe; LibMTL is
not run itself: it needs torchvision, and its weightings a trainer); and TorchJD where it is
installed, its `mtl_backward` on the heads' input, or `backward` where there are no heads. The rule
is MGDA on the trunk throughout.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from experiments.arguments import folder, positive
from experiments.benchmarks.measuring import CLOCK_HELP, CLOCKS, timed
from experiments.benchmarks.networks import resnet18
from experiments.benchmarks.record import Record, Row, settings

Call = Callable[[], object]


class Shared(nn.Module):
    """A trunk, and one head a task on its features: a linear one on their mean over positions, or
    a dense decoder of its own.
    """

    def __init__(self, trunk: nn.Module, width: int, tasks: int, *, dense: bool = False) -> None:
        super().__init__()
        self.trunk, self.dense = trunk, dense
        self.heads = nn.ModuleList(
            nn.Sequential(_convolutions((width, width, width)), nn.Conv2d(width, 1, 1))
            if dense
            else nn.Linear(width, 1)
            for _ in range(tasks)
        )

    def features(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        if self.dense or z.ndim == 2:
            return z
        return z.flatten(2).mean(2) if z.ndim == 4 else z.mean(1)

    def above(self, z: Tensor) -> list[Tensor]:
        """Losses of features."""
        return [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.above(self.features(x))


class Physics(nn.Module):
    """-u'' = f on [0, 1] with u = 0 at both ends: residual and boundary share all parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
        self.trunk, self.heads = nn.Sequential(*layers), nn.ModuleList()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        (du,) = torch.autograd.grad(self.trunk(x).sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        residual = ddu + math.pi**2 * (math.pi * x).sin()
        ends = self.trunk(torch.tensor([[0.0], [1.0]]))
        return [residual.square().mean(), ends.square().mean()]


Net = Shared | Physics


class Case(NamedTuple):
    make: Callable[[], tuple[Net, Tensor]]
    what: str
    bars: tuple[float | None, float | None]  # of the balancer and of the pure step


def _convolutions(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _lenet() -> tuple[Shared, Tensor]:
    trunk = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2),
        nn.ReLU(), nn.Flatten(), nn.Linear(320, 50), nn.ReLU(),
    )  # fmt: skip
    return Shared(trunk, 50, 2), torch.randn(64, 1, 28, 28)


def _mlp() -> tuple[Shared, Tensor]:
    trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return Shared(trunk, 64, 3), torch.randn(64, 16)


def _transformer() -> tuple[Shared, Tensor]:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    return Shared(nn.TransformerEncoder(layer, 2), 64, 3), torch.randn(16, 32, 64)


def _resnet() -> tuple[Shared, Tensor]:
    return Shared(resnet18(64), 64, 10), torch.randn(8, 3, 32, 32)


CASES = {
    "mlp": Case(_mlp, "MLP 16-64-64, 3 tasks, batch 64", (2.0, 2.6)),
    "lenet": Case(_lenet, "LeNet, 2 tasks, batch 64", (1.7, None)),
    "convolutions": Case(
        lambda: (Shared(_convolutions((3, 16, 32, 32)), 32, 3), torch.randn(8, 3, 32, 32)),
        "convolutions with batch norm, 3 tasks, batch 8",
        (None, None),
    ),
    "segnet": Case(
        lambda: (Shared(_convolutions((3, 16, 32)), 32, 3, dense=True), torch.randn(8, 3, 32, 32)),
        "convolutions, a dense decoder a task, batch norm, 3 tasks, batch 8",
        (1.5, None),
    ),
    "transformer": Case(_transformer, "transformer, 3 tasks, 16 × 32 tokens", (1.6, None)),
    "resnet": Case(_resnet, "ResNet-18, 10 tasks, batch 8", (5.5, None)),
    "pinn": Case(
        lambda: (Physics(), torch.rand(256, 1)), "PINN 1-64-64-1, 2 tasks, 256 points", (None, None)
    ),
}
PEERS = ("loop", "LibMTL-style", "TorchJD")
OURS = ("mf.balance", "mf.Balancer")


def frank_wolfe(gramian: Tensor, steps: int = 250, least: float = 1e-5) -> Tensor:
    """Algorithm 2 of Sener & Koltun 2018, until a step moves the weights by less than `least`."""
    w = torch.full_like(gramian[0], 1 / len(gramian))
    for _ in range(steps):
        rates = gramian @ w
        task = int(rates.argmin())
        square, lowest = w @ rates, rates[task]
        if square <= lowest:
            break
        step = ((square - lowest) / (square - 2 * lowest + gramian[task, task])).clamp(0, 1)
        moved = (1 - step) * w
        moved[task] += step
        if (moved - w).abs().sum() < least:
            break
        w = moved
    return w


def libmtl_style(net: Net, x: Tensor) -> None:
    """One `backward()` a task, `.grad` of the trunk copied into a matrix, and Frank-Wolfe."""
    net.zero_grad()
    losses, trunk = net(x), list(net.trunk.parameters())
    sizes = [leaf.numel() for leaf in trunk]
    matrix = torch.zeros(len(losses), sum(sizes))
    for task, (row, loss) in enumerate(zip(matrix, losses, strict=True)):
        loss.backward(retain_graph=task + 1 < len(losses))
        for part, leaf in zip(row.split(sizes), trunk, strict=True):
            if leaf.grad is not None:
                part.copy_(leaf.grad.flatten())
                leaf.grad.zero_()
    direction = frank_wolfe(matrix @ matrix.T) @ matrix
    for part, leaf in zip(direction.split(sizes), trunk, strict=True):
        leaf.grad = part.view_as(leaf).clone()


def contenders(net: Net, x: Tensor) -> dict[str, Call]:
    """Every way to one step; each starts from no gradients."""

    def plain() -> None:
        net.zero_grad()
        torch.stack(net(x)).mean().backward()

    trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())

    def loop() -> None:
        net.zero_grad()
        losses = net(x)
        rows = [
            torch.autograd.grad(loss, trunk, retain_graph=True, materialize_grads=True)
            for loss in losses
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        weights = mf.weights(mf.mgda(), jacobian @ jacobian.T)
        own = torch.autograd.grad(torch.stack(losses).mean(), heads) if heads else ()
        for leaf, grads in zip(trunk, zip(*rows, strict=True), strict=True):
            leaf.grad = torch.tensordot(weights, torch.stack(grads), 1)
        for leaf, grad in zip(heads, own, strict=True):
            leaf.grad = grad

    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")

    def live() -> None:
        net.zero_grad()
        with balancer:
            losses = net(x)
        balancer.backward(losses)

    step = mf.balance(
        lambda params, x: tuple(functional_call(net, params, (x,))),
        mf.mgda(),
        mf.jacobian("trunk.*"),
    )
    state = step.init(mf.parameters(net), x)

    def pure() -> None:
        mf.assign_gradients(net, step.update(mf.parameters(net), x, state)[0])

    found: dict[str, Call] = {
        "plain": plain, "loop": loop, "LibMTL-style": partial(libmtl_style, net, x),
        "mf.Balancer": live, "mf.balance": pure,
    }  # fmt: skip
    try:
        from torchjd.aggregation import MGDA
        from torchjd.autojac import backward, jac_to_grad, mtl_backward
    except ImportError:
        return found
    aggregator = MGDA()

    def peer() -> None:
        net.zero_grad()
        if isinstance(net, Shared):
            z = net.features(x)
            mtl_backward(net.above(z), features=z)
        else:
            backward(net(x))
        jac_to_grad(net.trunk.parameters(), aggregator)

    return found | {"TorchJD": peer}


def measure(case: Case, seconds: float, clock: str) -> dict[str, float]:
    """Median seconds of every contender that runs."""
    torch.manual_seed(0)
    net, x = case.make()
    calls = contenders(net, x)
    for name, call in list(calls.items()):
        try:
            for _ in range(3):
                call()
        except Exception as error:
            if name != "TorchJD":
                raise
            print(f"TorchJD left out: {error}")
            del calls[name]
    found: dict[str, list[float]] = {name: [] for name in calls}
    times = max(1, int(2e-3 / timed(calls["plain"], clock)))
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(found["plain"]) < 7:
        for name, call in calls.items():
            found[name].append(timed(call, clock, times=times))
    return {name: median(taken) for name, taken in found.items()}


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain step, a network a line; `line` says how they were taken."""
    names = [*PEERS, *OURS]
    lines = [f"{line}\n", "| network | mean-loss step, ms | " + " | ".join(names) + " | bar |"]
    lines.append("|---|" + "---|" * (len(names) + 2))
    for row in rows:
        seconds = row["seconds"]
        ratios = [
            f"{seconds[name] / seconds['plain']:.2f}" if name in seconds else "–" for name in names
        ]
        case = CASES[row["network"]]
        cells = [case.what, f"{1e3 * seconds['plain']:.3g}", *ratios, f"{case.bars[0] or '–'}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def behind(rows: list[Row]) -> list[str]:
    """Where a peer is faster than both of ours, which, and by how much."""
    found = []
    for row in rows:
        seconds = row["seconds"]
        peer, name = min((seconds[name], name) for name in PEERS if name in seconds)
        more = min(seconds[name] for name in OURS) - peer
        if more > 0:
            found.append(f"{_brief(row)} ({name}, by {1e3 * more:.1f} ms)")
    return found


def missed(rows: list[Row]) -> list[str]:
    """Where `mf.Balancer` is above its bar."""
    return [
        _brief(row)
        for row in rows
        if row["seconds"]["mf.Balancer"]
        > (CASES[row["network"]].bars[0] or math.inf) * row["seconds"]["plain"]
    ]


def _brief(row: Row) -> str:
    return CASES[row["network"]].what.split(", batch")[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seconds", type=positive, default=10.0, help="for every network")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help=CLOCK_HELP)
    parser.add_argument("--out", type=folder, default=Path("."), help="folder of the files")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = settings(clock=given.clock, seconds=given.seconds)
    record = Record(given.out / "steps.json", ("network",), chosen)
    for (name,) in record.missing((name,) for name in given.networks):
        record.keep({"network": name, "seconds": measure(CASES[name], given.seconds, given.clock)})
        print(table(record.here()[-1:], "").splitlines()[-1], flush=True)
        record.write_tables(given.out / "steps.md", table)


if __name__ == "__main__":
    main()
