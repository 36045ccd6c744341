"""The time of one step of a stock loop, in units of the plain mean-loss step.

    python -m experiments.benchmarks.steps [--networks mlp ...] [--seconds S]

Writes steps.json and steps.md. Every contender makes the losses and leaves a gradient in `.grad`;
the optimizer's own step is the same for all and is left out. All take turns, so that what else the
machine does hits them alike; medians of the processor's time on one thread. Peers: the shortest
loop (one `backward()` per task, `.grad` of the trunk read into rows, MGDA's weights by our solver,
the combination written into `.grad`); a loop in the style of LibMTL (one `backward()` per task,
`.grad` copied into rows of a matrix, weights by Frank-Wolfe; LibMTL is not run itself: it needs
torchvision, and its weightings a trainer); and TorchJD where it is installed, its `mtl_backward` on
the heads' input, or `backward` where there are no heads. The rule is MGDA on the trunk throughout.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

import mtlfunc as mf
from experiments.benchmarks.measuring import Call, by_name
from experiments.benchmarks.networks import Physics, Shared, convolutions, dense, resnet18
from experiments.benchmarks.record import Row, markdown, units
from experiments.benchmarks.runner import Axis, command

Net = Shared | Physics


class Case(NamedTuple):
    make: Callable[[], tuple[Net, Tensor]]
    what: str


def _lenet() -> tuple[Shared, Tensor]:
    trunk = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2),
        nn.ReLU(), nn.Flatten(), nn.Linear(320, 50), nn.ReLU(),
    )  # fmt: skip
    return Shared(trunk, 50, 2), torch.randn(64, 1, 28, 28)


def _transformer() -> tuple[Shared, Tensor]:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    return Shared(nn.TransformerEncoder(layer, 2), 64, 3), torch.randn(16, 32, 64)


def _images(trunk: nn.Module, width: int, tasks: int, *, dense: bool = False) -> Any:
    return Shared(trunk, width, tasks, dense=dense), torch.randn(8, 3, 32, 32)


CASES = {
    "mlp": Case(
        lambda: (Shared(dense(16, 64, 64, last=True), 64, 3), torch.randn(64, 16)),
        "MLP 16-64-64, 3 tasks, batch 64",
    ),
    "lenet": Case(_lenet, "LeNet, 2 tasks, batch 64"),
    "convolutions": Case(
        lambda: _images(convolutions(3, 16, 32, 32), 32, 3),
        "convolutions with batch norm, 3 tasks, batch 8",
    ),
    "segnet": Case(
        lambda: _images(convolutions(3, 16, 32), 32, 3, dense=True),
        "convolutions, a dense decoder a task, batch norm, 3 tasks, batch 8",
    ),
    "transformer": Case(_transformer, "transformer, 3 tasks, 16 × 32 tokens"),
    "gru": Case(
        lambda: (Shared(nn.GRU(32, 64, batch_first=True), 64, 3), torch.randn(16, 20, 32)),
        "GRU 32-64, 3 tasks, batch 16 × 20 steps",
    ),
    **{
        name: Case(
            lambda tasks=tasks: _images(resnet18(64), 64, tasks),
            f"ResNet-18, {tasks} tasks, batch 8",
        )
        for name, tasks in (("resnet-2", 2), ("resnet-3", 3), ("resnet", 10), ("resnet-40", 40))
    },
    "pinn": Case(lambda: (Physics(), torch.rand(256, 1)), "PINN 1-64-64-1, 2 tasks, 256 points"),
}
LONG = 4e-3  # seconds of a plain step, from which `mf.Balancer` has the stricter bar
PEERS = ("shortest loop", "LibMTL-style", "TorchJD")
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


def write(direction: Tensor, leaves: Sequence[Tensor]) -> None:
    """Parts of a vector into `.grad`."""
    for part, leaf in zip(direction.split([x.numel() for x in leaves]), leaves, strict=True):
        leaf.grad = part.view_as(leaf)


def libmtl_style(net: Net, x: Tensor) -> None:
    """One `backward()` a task, `.grad` of the trunk copied into a matrix, and Frank-Wolfe."""
    net.zero_grad()
    losses, trunk = net(x), list(net.trunk.parameters())
    sizes = [leaf.numel() for leaf in trunk]
    matrix = x.new_zeros(len(losses), sum(sizes))
    for task, (row, loss) in enumerate(zip(matrix, losses, strict=True)):
        loss.backward(retain_graph=task + 1 < len(losses))
        for part, leaf in zip(row.split(sizes), trunk, strict=True):
            if leaf.grad is not None:
                part.copy_(leaf.grad.flatten())
                leaf.grad.zero_()
    direction = frank_wolfe(matrix @ matrix.T) @ matrix
    for part, leaf in zip(direction.split(sizes), trunk, strict=True):
        leaf.grad = part.view_as(leaf).clone()


def shortest_loop(net: Net, x: Tensor) -> None:
    """What people write: the heads' gradients add up over the passes that make the rows."""
    trunk = list(net.trunk.parameters())
    net.zero_grad()
    losses, rows = net(x), []
    for loss in losses:
        loss.backward(retain_graph=loss is not losses[-1])
        row = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in trunk]
        rows.append(torch.cat([grad.flatten() for grad in row]))
        for leaf in trunk:
            leaf.grad = None
    jacobian = torch.stack(rows)
    write(mf.weights(mf.mgda(), jacobian @ jacobian.T) @ jacobian, trunk)


def losses_of(net: Net) -> Callable[[dict[str, Tensor], Tensor], tuple[Tensor, ...]]:
    """As a function of parameters and batch."""
    return lambda params, x: tuple(functional_call(net, params, (x,)))


def contenders(net: Net, x: Tensor) -> dict[str, Call]:
    """Every way to one step; each starts from no gradients."""

    def plain() -> None:
        net.zero_grad()
        torch.stack(net(x)).mean().backward()

    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")

    def live() -> None:
        net.zero_grad()
        losses = net(x)
        balancer.backward(losses)

    step = mf.balance(losses_of(net), mf.mgda(), mf.jacobian("trunk.*"))
    state = step.init(mf.parameters(net), x)

    def pure() -> None:
        mf.assign_gradients(net, step.update(mf.parameters(net), x, state)[0])

    found: dict[str, Call] = {
        "plain": plain, "shortest loop": partial(shortest_loop, net, x),
        "LibMTL-style": partial(libmtl_style, net, x), "mf.Balancer": live, "mf.balance": pure,
    }  # fmt: skip
    try:
        return found | {"TorchJD": torchjd_step(net, x)}
    except ImportError:
        return found


def torchjd_step(net: Net, x: Tensor) -> Call:
    """A step of TorchJD's, if it is installed."""
    from torchjd.aggregation import MGDA
    from torchjd.autojac import backward, jac_to_grad, mtl_backward

    aggregator = MGDA()

    def peer() -> None:
        net.zero_grad()
        handles = RemovableHandle.next_id
        if isinstance(net, Shared):
            z = net.features(x)
            mtl_backward(net.above(z), features=z)
        else:
            backward(net(x))
        jac_to_grad(net.trunk.parameters(), aggregator)
        # it hooks its aggregator for a moment; a balancer next to it would look out for hooks
        RemovableHandle.next_id = handles

    return peer


def measure(given: Namespace, network: str) -> list[Row]:
    """Median seconds of every contender that runs."""
    torch.manual_seed(0)
    calls = contenders(*CASES[network].make())
    return [{"seconds": by_name(calls, given.seconds)}]


def table(rows: list[Row], line: str) -> str:
    """Ratios to the plain step, a network a line; `line` says how they were taken."""
    names, lines = [*PEERS, *OURS], []
    for row in rows:
        plain = f"{1e3 * row['seconds']['plain']:.3g}"
        ratios = [*units(row["seconds"], names), f"{_over_shortest(row):.2f}", f"{_bar(row):.2f}"]
        lines.append([CASES[row["network"]].what, plain, *ratios])
    heads = ["network", "mean-loss step, ms", *names, f"mf.Balancer / {PEERS[0]}", "bar"]
    return markdown(line, heads, lines)


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
    over = [(_brief(row), _over_shortest(row), _bar(row)) for row in rows]
    return [f"{what} ({ratio:.2f})" for what, ratio, bar in over if ratio > bar]


def _bar(row: Row) -> float:
    """Of `mf.Balancer` against the shortest loop."""
    return 1.10 if row["seconds"]["plain"] >= LONG else 1.45


def _over_shortest(row: Row) -> float:
    return row["seconds"]["mf.Balancer"] / row["seconds"][PEERS[0]]


def _brief(row: Row) -> str:
    return CASES[row["network"]].what.split(", batch")[0]


AXES = {"network": Axis("networks", list(CASES))}
SECONDS = 10.0, "for all contenders of a network"
main = command("steps", __doc__, AXES, measure, table, seconds=SECONDS)

if __name__ == "__main__":
    main()
