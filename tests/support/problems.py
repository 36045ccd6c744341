"""A small problem that the tests share: a trunk, three heads, the same losses in every form."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.types import Params
from tests.support.oracles import rows_of

F64 = torch.float64
SHARED = "trunk.*"

TASKS = 3


class TrunkAndHeads(nn.Module):
    def __init__(self, seed: int, tasks: int = TASKS) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in range(tasks))
        self.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


net = TrunkAndHeads(0)
nets = [TrunkAndHeads(seed) for seed in range(3)]
PARAMS = mf.parameters(net)
_generator = torch.Generator().manual_seed(7)
BATCH = (
    torch.randn(8, 4, generator=_generator, dtype=torch.float64),
    torch.randn(8, TASKS, 2, generator=_generator, dtype=torch.float64)
    * torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64)[:, None],
)


def scalars(params: Params, batch: Any) -> tuple[Tensor, ...]:
    x, y = batch
    outputs = functional_call(net, params, (x,))
    return tuple((out - y[:, task]).square().mean() for task, out in enumerate(outputs))


def named(params: Params, batch: Any) -> dict[str, Tensor]:
    return {f"task {task}": loss for task, loss in enumerate(scalars(params, batch))}


def vector(params: Params, batch: Any) -> Tensor:
    return torch.stack(scalars(params, batch))


def opaque(params: Params, batch: Any) -> Tensor:
    """The same vector by one reduction, so that the graph says nothing of single tasks."""
    x, y = batch
    return (torch.stack(functional_call(net, params, (x,)), 1) - y).square().mean((0, 2))


FORMS = {"vector": vector, "opaque": opaque, "tuple": scalars, "dict": named}


def below(params: Params, prefix: str) -> Params:
    """The leaves of a part, by their names in it."""
    return {k.removeprefix(prefix): x for k, x in params.items() if k.startswith(prefix)}


def encode(params: Params, batch: Any) -> Tensor:
    return functional_call(net.trunk, below(params, "trunk."), (batch[0],))


def decode(params: Params, z: Tensor, batch: Any) -> Tensor:
    losses = []
    for task, head in enumerate(net.heads):
        out = functional_call(head, below(params, f"heads.{task}."), (z,))
        losses.append((out - batch[1][:, task]).square().mean())
    return torch.stack(losses)


def literal_rows(params: Params, batch: Any, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Losses and the Jacobian [task, parameter] over the named leaves, by torch.autograd.grad."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    losses = scalars(leaves, batch)
    return torch.stack(losses).detach(), rows_of(losses, [leaves[name] for name in names])


def flatten(tree: Params, names: tuple[str, ...] | None = None) -> Tensor:
    return torch.cat([tree[name].flatten() for name in (names or tuple(tree))])


TRUNK = tuple(name for name in PARAMS if name.startswith("trunk."))
HEADS = tuple(name for name in PARAMS if name.startswith("heads."))


def named_tuples(state) -> set[Any]:
    """The named tuples in a state, which `torch.load` must know."""
    found = {type(state)} if hasattr(state, "_fields") else set()
    children = (
        state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    )
    return found.union(*(named_tuples(child) for child in children))
