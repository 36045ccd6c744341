"""A torch newer than those that CI tests: what differs is found at the first use, a slower way is
taken, the numbers are right, and one warning says why. Faults are planted, each in a process.
"""

import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import mtlfunc as mf
from mtlfunc.core import hooks, internals
from mtlfunc.gradients import backward, run
from mtlfunc.gradients.layerwise import nodes, uses
from tests.support import python
from tests.support.every import few

F64 = torch.float64


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.norm = (
            nn.Embedding(7, 8),
            nn.Conv1d(8, 6, 1),
            nn.GroupNorm(3, 6),
        )
        self.middle, self.last = nn.Linear(12, 24, bias=False), nn.Linear(24, 2)
        self.scale = nn.Parameter(torch.ones(24))
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

    def rows_of(losses: Tensor) -> list[Tensor]:
        every = [torch.autograd.grad(y, leaves, retain_graph=True) for y in losses.flatten()]
        return [torch.stack(found) for found in zip(*every, strict=True)]

    def product(losses: Tensor) -> Tensor:
        flat = torch.cat([row.flatten(1) for row in rows_of(losses)], 1)
        return flat @ flat.mT

    for engine in ("layerwise", "auto", "rows"):
        found = mf.task_gramian(tasks, params, X, engine=engine)[1]
        torch.testing.assert_close(found, product(net(X).mean(0)))
    found = mf.task_gramian(lambda p, x: tuple(tasks(p, x)), params, X, engine="layerwise")[1]
    torch.testing.assert_close(found, product(net(X).mean(0)))
    torch.testing.assert_close(mf.sample_gramian(samples, params, X)[1], product(net(X)))
    torch.testing.assert_close(
        mf.sample_norms(samples, params, X)[1].square().flatten(), product(net(X)).diagonal()
    )
    mix = torch.linspace(-1, 1, 24, dtype=F64).reshape(4, 3, 2)
    found = mf.task_gramian(samples, params, X, weightings=mix, engine="layerwise")[1]
    torch.testing.assert_close(found, mix.flatten(1) @ product(net(X)) @ mix.flatten(1).mT)
    balancer = mf.Balancer(net, mf.mean())
    for _ in range(2):  # a hook that comes between doubles what passes it
        net.zero_grad()
        hidden = net.norm(net.first(net.table(X).mT)).flatten(1)
        hidden.register_hook(lambda x: 2 * x)
        losses = net.last(torch.tanh(net.middle(hidden)) * net.scale).square().mean(0)
        rows = [row.mean(0) for row in rows_of(losses)]
        balancer.backward(losses)
        torch.testing.assert_close([x.grad for x in leaves], rows)


def plant(name: str, wrong: Any) -> None:
    """As if torch had another one, wherever the package has it."""
    old = getattr(internals, name)
    for key, module in list(sys.modules.items()):
        if key.startswith("mtlfunc") and vars(module).get(name) is old:
            setattr(module, name, wrong)


def change(node: str, changed: Callable[[uses.Use], uses.Use]) -> None:
    """As if a node's values had another meaning."""
    facts = nodes.NODES[node]
    read = {
        i: (lambda operand, reader=reader: changed(reader(operand)))
        for i, reader in facts.read.items()
    }
    nodes.NODES[node] = facts._replace(read=read)


def doubled(use: uses.Use) -> uses.Use:
    return use._replace(varied=lambda delta: 2 * use.varied(delta))


def gone(node: str) -> None:
    facts = nodes.NODES[node]
    read = {i: (lambda operand: operand.node._saved_no_more) for i in facts.read}
    nodes.NODES[node] = facts._replace(read=read)


def engine(answer: Callable[[Any], Any]) -> Any:
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        return answer(internals.ENGINE.run_backward(*args, **kwargs))

    return SimpleNamespace(run_backward=run_backward)


def refuse(*_: Any, **__: Any) -> Any:
    raise TypeError("this takes other arguments now")


def wrong_vmap(f: Any, **_: Any) -> Any:
    return lambda xs: tuple(torch.stack(y) * 2 for y in zip(*map(f, xs), strict=True))


def other_rule(node: str) -> None:
    facts = nodes.NODES[node]
    nodes.NODES[node] = facts._replace(rule=lambda step, *_: step.node._saved_no_more)


def turned(node: str) -> None:
    facts = nodes.NODES[node]
    assert facts.rule is not None
    nodes.NODES[node] = facts._replace(rule=lambda *a, f=facts.rule: np.flip(f(*a), 0))


def first_inside_a_transform() -> None:
    """And at once by two threads, of which neither waits for ever."""

    def total(s: Tensor) -> Tensor:
        params = {"w": torch.eye(2)}
        return mf.task_gramian(lambda p, x: (s * x @ p["w"]).mean(0), params, X.float())[1].sum()

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(vmap(grad(total)), [torch.ones(2), torch.ones(2)]))
    assert bool((found[0] == found[1]).all())


NORMS = "NativeGroupNorm", "NativeLayerNorm", "NativeBatchNorm"
FAULTS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "nothing, first inside a transform": first_inside_a_transform,
    "an engine of other numbers": lambda: plant(
        "autograd_engine", engine(lambda found: [None if x is None else 2 * x for x in found])
    ),
    "no engine": lambda: plant("autograd_engine", SimpleNamespace()),
    "a graph that cannot be freed": lambda: plant("undefined_grad", refuse),
    "nodes without numbers": lambda: plant("nodes_made", lambda: 0),
    "numbers that raise": lambda: plant("nodes_made", refuse),
    "hooks without numbers": lambda: setattr(hooks.Handles, "hooked", property(lambda _: False)),
    "modes unseen": lambda: plant("is_traced", lambda: 0),
    "saved tensors without their hook": lambda: setattr(hooks, "is_hooked", lambda _: False),
    "batches of other numbers": lambda: setattr(backward, "vmap", wrong_vmap),
    "batches refused": lambda: setattr(backward, "vmap", lambda *_, **__: refuse),
    **{
        f"other values of {name}": partial(change, f"{name}Backward0", doubled)
        for name in ("Embedding", "Convolution", "Mm", "Addmm", "Mul", *NORMS)
    },
    **{
        f"a name of {name} gone": partial(gone, f"{name}Backward0")
        for name in ("Embedding", "Addmm", "NativeGroupNorm")
    },
    "names that tell samples gone": lambda: other_rule("NativeGroupNormBackward0"),
    "samples in another order": lambda: turned("ConvolutionBackward0"),
    "a name that is looked up gone": lambda: internals.GONE.append("torch._foreach_copy_"),
}


def outcome(fault: str) -> list[str]:
    """What is said, once, where a fault is planted; raises if a number is wrong."""
    FAULTS[fault]()
    with warnings.catch_warnings(record=True, action="always") as caught:
        answers_are_right()
        answers_are_right()
    return [str(x.message) for x in caught if x.category is RuntimeWarning]


def main() -> None:
    """Faults by names, each in a child of a process that takes its torch for one of tomorrow."""
    vmap(grad(torch.sin))(torch.ones(2))  # imported once for all children
    for fault in sys.argv[1:]:
        if not os.fork():
            try:
                said = outcome(fault)
            except BaseException as error:
                said = [f"failed: {type(error).__name__}: {error}"]
            print(json.dumps([fault, said]), flush=True)
            os._exit(0)
        os.wait()


@pytest.fixture(scope="module")
def said(request) -> dict[str, list[str]]:
    code = "import torch; torch.__version__ = '9.9.0'; from tests import test_trial as t; t.main()"
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    faults = [x.params["fault"] for x in chosen if x and x.params.get("fault") in FAULTS]
    return dict(map(json.loads, python("-c", code, *faults).stdout.splitlines()))


ALIKE = re.compile("of (Conv|Mm|Mul|NativeL|NativeB|.*(Embed|Norm).* gone)")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("fault", few(FAULTS, lambda fault: not ALIKE.search(fault)))
def test_a_fault_is_found_and_numbers_are_right(fault, said):
    if fault == "saved tensors without their hook" and not internals.tells_hooks:
        pytest.skip("torch before 2.10 does not tell")
    if fault.startswith("nothing"):
        assert not said[fault]
        return
    (message,) = said[fault]
    assert "torch 9.9.0" in message
    assert message.endswith("foreach_copy_ is gone" if "looked up" in fault else "slower and right")


def test_where_torch_was_tested_nothing_is_tried():
    importlib.import_module("mtlfunc.analysis.trial")  # as a test of every module does
    assert run.observe.__module__ == run.live.__module__ == run.__name__
