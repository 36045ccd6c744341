"""A torch newer than those tested: planted faults are found, slower ways taken, and said once."""

import re
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.analysis import trial
from mtlfunc.core import hooks, internals
from mtlfunc.gradients import backward
from mtlfunc.gradients.layerwise import nodes, uses
from tests.support import python
from tests.support.every import few
from tests.support.oracles import F64, rows_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(7, 8), nn.Conv1d(8, 6, 1)
        self.middle, self.last = nn.Linear(12, 24, bias=False), nn.Linear(24, 2)
        self.norm, self.scale = nn.GroupNorm(3, 6), nn.Parameter(torch.ones(24))
        for i, x in enumerate(self.to(F64).parameters()):
            nn.init.normal_(x, 0.5, 0.4, torch.Generator().manual_seed(i))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.table(x).mT)).flatten(1)
        return self.last(torch.tanh(self.middle(x)) * self.scale).square()


X = torch.tensor([[0, 1], [4, 6], [2, 2]])


def answers_are_right() -> None:
    net = Net()
    params, leaves = mf.parameters(net), list(net.parameters())

    def samples(p: Any, x: Tensor) -> Tensor:
        return functional_call(net, p, (x,))

    def tasks(p: Any, x: Tensor) -> Tensor:
        return samples(p, x).mean(0)

    def product(losses: Tensor) -> Tensor:
        rows = rows_of(losses.flatten(), leaves)
        return rows @ rows.mT

    for engine in ("layerwise", "auto", "rows"):
        found = mf.task_gramian(tasks, params, X, engine=engine)[1]
        torch.testing.assert_close(found, product(net(X).mean(0)))
    found = mf.task_gramian(lambda p, x: tuple(tasks(p, x)), params, X, engine="layerwise")[1]
    torch.testing.assert_close(found, product(net(X).mean(0)))
    torch.testing.assert_close(mf.sample_gramian(samples, params, X)[1], product(net(X)))
    squares = mf.sample_norms(samples, params, X)[1].square().flatten()
    torch.testing.assert_close(squares, product(net(X)).diagonal())
    mix = torch.linspace(-1, 1, 24, dtype=F64).reshape(4, 3, 2)
    found = mf.task_gramian(samples, params, X, weightings=mix, engine="layerwise")[1]
    torch.testing.assert_close(found, mix.flatten(1) @ product(net(X)) @ mix.flatten(1).mT)
    balancer = mf.Balancer(net, mf.mean())
    for _ in range(2):  # a hook that comes between doubles what passes it
        net.zero_grad()
        hidden = net.norm(net.first(net.table(X).mT)).flatten(1)
        hidden.register_hook(lambda x: 2 * x)
        losses = net.last(torch.tanh(net.middle(hidden)) * net.scale).square().mean(0)
        mean = rows_of(losses, leaves).mean(0)
        balancer.backward(losses)
        found = torch.cat([x.grad.flatten() for x in leaves if x.grad is not None])
        torch.testing.assert_close(found, mean)


def plant(name: str, wrong: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """As if torch had another one, wherever the package has it."""

    def put(patch: pytest.MonkeyPatch) -> None:
        old = getattr(internals, name)
        for key, module in list(sys.modules.items()):
            if key.startswith("mtlfunc") and vars(module).get(name) is old:
                patch.setattr(module, name, wrong)

    return put


def change(node: str, **others: Callable[[nodes.Facts], Any]) -> Callable[[Any], None]:
    """As if a node's values had another meaning, or other names."""
    facts = nodes.NODES[f"{node}Backward0"]
    other = facts._replace(**{field: make(facts) for field, make in others.items()})
    return lambda patch: patch.setitem(nodes.NODES, f"{node}Backward0", other)


def doubled(facts: nodes.Facts) -> Any:
    def twice(use: uses.Use) -> uses.Use:
        return use._replace(varied=lambda delta: 2 * use.varied(delta))

    return {i: lambda operand, read=read: twice(read(operand)) for i, read in facts.read.items()}


def unnamed(facts: nodes.Facts) -> Any:
    return {i: lambda operand: operand.node._saved_no_more for i in facts.read}


def engine(answer: Callable[[Any], Any]) -> Any:
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        return answer(internals.ENGINE.run_backward(*args, **kwargs))

    return SimpleNamespace(run_backward=run_backward)


def refuse(*_: Any, **__: Any) -> Any:
    raise TypeError("this takes other arguments now")


def wrong_vmap(f: Any, **_: Any) -> Any:
    return lambda xs: tuple(torch.stack(y) * 2 for y in zip(*map(f, xs), strict=True))


NORMS = "NativeGroupNorm", "NativeLayerNorm", "NativeBatchNorm"
FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "nothing": lambda patch: None,
    "an engine of other numbers": plant(
        "autograd_engine", engine(lambda found: [None if x is None else 2 * x for x in found])
    ),
    "no engine": plant("autograd_engine", SimpleNamespace()),
    "a graph that cannot be freed": plant("undefined_grad", refuse),
    "nodes without numbers": plant("nodes_made", lambda: 0),
    "numbers that raise": plant("nodes_made", refuse),
    "hooks without numbers": lambda patch: patch.setattr(
        hooks, "RemovableHandle", SimpleNamespace(next_id=0)
    ),
    "batches of other numbers": lambda patch: patch.setattr(backward, "vmap", wrong_vmap),
    "batches refused": lambda patch: patch.setattr(backward, "vmap", lambda *_, **__: refuse),
    **{
        f"other values of {name}": change(name, read=doubled)
        for name in ("Embedding", "Convolution", "Mm", "Addmm", "Mul", *NORMS)
    },
    **{
        f"a name of {name} gone": change(name, read=unnamed)
        for name in ("Embedding", "Addmm", "NativeGroupNorm")
    },
    "names that tell samples gone": change(
        "NativeGroupNorm", rule=lambda _: lambda step, *_: step.node._saved_no_more
    ),
    "samples in another order": change(
        "Convolution", rule=lambda facts: lambda *a: np.flip(cast("Any", facts.rule)(*a), 0)
    ),
    "a name that is looked up gone": lambda patch: patch.setattr(
        internals, "GONE", ["torch._foreach_copy_"]
    ),
}


ALIKE = re.compile("of (Conv|Mm|Mul|NativeL|NativeB|.*(Embed|Norm).* gone)")


@pytest.mark.parametrize("fault", few(FAULTS, lambda fault: not ALIKE.search(fault)))
def test_a_fault_is_found_and_numbers_are_right(fault, monkeypatch):
    if fault == "numbers that raise" and not internals.tells_hooks:
        pytest.skip("what is tried is newer, and says which hooks bring tensors back")
    monkeypatch.setattr(internals.Trust, "private", True)
    monkeypatch.setattr(uses, "WARNED", set())
    FAULTS[fault](monkeypatch)
    with warnings.catch_warnings(record=True, action="always") as caught:
        trial.try_torch()
        answers_are_right()
        answers_are_right()
    said = [str(x.message) for x in caught if x.category is RuntimeWarning]
    if fault == "nothing":
        assert not said
        return
    (message,) = said
    assert f"torch {torch.__version__}" in message
    assert message.endswith("foreach_copy_ is gone" if "looked up" in fault else "slower and right")


def test_what_no_way_mends_is_said(monkeypatch):
    monkeypatch.setattr(internals.Trust, "private", True)
    monkeypatch.setattr(trial, "task_gramian", refuse)
    with pytest.warns(RuntimeWarning, match="TypeError: this takes.*numbers may be wrong"):
        trial.try_torch()


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["", "torch.func.grad", "torch.no_grad()"])
def test_a_newer_torch_is_tried_when_it_is_imported(inside):
    """Inside a transform of torch.func, too, where there are other numbers."""
    code = """
import sys, torch
torch.__version__ = "9.9.0"
def load(x):
    import mtlfunc.core.internals
    return x
INSIDE(load)(torch.ones(()))
print("mtlfunc.analysis.trial" in sys.modules)
""".replace("INSIDE", inside)
    done = python("-W", "always", "-c", code)
    assert done.stdout.split() == ["True"]
    assert ("slower and right" in done.stderr) == ("func" in inside)


def test_where_torch_was_tested_nothing_is_tried():
    code = "import sys, mtlfunc; print('mtlfunc.analysis.trial' in sys.modules)"
    assert python("-c", code).stdout.split() == ["False"]
