"""Other libraries' modules by a `Balancer`: as a loop of autograd has them, or refused."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlfunc as mf
from tests.support.oracles import F64, rows_of

X = torch.randn(7, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 4])


def trunk() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()


def head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def compiled(by: Callable[..., Any], module: nn.Module, *given: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return by(module, *given)


def script(module: nn.Module) -> Any:
    return compiled(torch.jit.script, module)


class Clusters(nn.Module):
    """One sample is in the second cluster: torch writes its loss by a 0-d index."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.last = nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6], 1.0).double()

    def forward(self, x: Tensor) -> Tensor:
        out = -self.last(self.trunk(x), LABELS).output
        return torch.stack([out[:3], out[1:4], out[4:]], 1)


class Wrapped(nn.Module):
    """As Lightning Fabric's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_module(x)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "scripted trunk": lambda: nn.Sequential(script(trunk()), head()),
    "frozen scripted trunk": lambda: nn.Sequential(script(trunk().requires_grad_(False)), head()),
    "traced trunk": lambda: nn.Sequential(compiled(torch.jit.trace, trunk(), X), head()),
    "scripted head": lambda: nn.Sequential(trunk(), script(head())),
    "all scripted": lambda: script(nn.Sequential(trunk(), head())),
    "clusters": Clusters,
    "Fabric": lambda: Wrapped(nn.Sequential(trunk(), head())),
    "compiled inside Fabric": lambda: Wrapped(
        torch.compile(nn.Sequential(trunk(), head()), backend="eager")  # pyright: ignore
    ),
}


@pytest.mark.parametrize("form", [list, lambda losses: losses], ids=["list", "vector"])
@pytest.mark.parametrize("name", MODULES)
def test_gramian_and_gradient_are_those_of_a_loop(name: str, form: Callable[[Tensor], Any]) -> None:
    if name == "compiled inside Fabric":
        # which refuses a Triton that is newer than it, as torch 2.6 does those of today
        pytest.importorskip("torch._inductor.runtime.hints", exc_type=ImportError)
    net = MODULES[name]()
    balancer = mf.Balancer(net, mf.mgda())
    leaves = [leaf for leaf in net.parameters() if leaf.requires_grad]
    for _ in range(2):
        net.zero_grad()
        losses = (net(X) - 1).square().mean(0)
        info = balancer.backward(form(losses))
        rows = rows_of((net(X) - 1).square().mean(0), leaves)
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        found = torch.cat([grad.flatten() for grad in grads])
        torch.testing.assert_close(info.gramian, rows @ rows.mT)
        torch.testing.assert_close(found, info.weights @ rows)


def test_names_are_those_inside_fabric() -> None:
    net = nn.Sequential(trunk(), head())
    plain = mf.Balancer(net, mf.mgda(), "0.*")
    wrapped = mf.Balancer(Wrapped(net), mf.mgda(), "0.*")
    losses = (net(X) - 1).square().mean(0)
    torch.testing.assert_close(plain.measure(losses).gramian, wrapped.measure(losses).gramian)


def once(net: nn.Module) -> nn.Module:
    """As Opacus: what a layer saw is taken from a list when its gradient comes."""
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    net.register_full_backward_hook(lambda *_: [seen.pop()].clear())  # pyright: ignore
    return net


def kept(net: nn.Module) -> nn.Module:
    """As BackPACK: what a layer saw is deleted when its gradient came."""
    net.register_forward_hook(lambda module, inputs, out: setattr(module, "output", out.detach()))
    net.register_full_backward_hook(lambda module, *_: delattr(module, "output"))
    return net


def forbidden(net: nn.Module) -> nn.Module:
    """As Fabric in mixed precision."""

    def refuse(_: Tensor) -> None:
        raise RuntimeError("... requires you to call `fabric.backward(loss)` instead of ...")

    net.register_forward_hook(lambda module, inputs, out: out.register_hook(refuse) and None)
    return net


@pytest.mark.parametrize("method", ["backward", "weigh", "measure"])
@pytest.mark.parametrize("form", [list, lambda losses: losses], ids=["list", "vector"])
@pytest.mark.parametrize(
    ("hooked", "words"),
    [
        (once, r"disable_hooks\(\)"),
        (kept, r"leave the `with backpack"),
        (forbidden, r"fabric\.autocast\(\): out = wrapped\.module"),
    ],
)
def test_hooks_that_allow_one_pass_are_named_with_a_cure(
    hooked: Any, form: Any, words: str, method: str
) -> None:
    net = nn.Sequential(trunk(), hooked(head()))
    balancer = mf.Balancer(net, mf.mgda())
    losses = net(X).square().mean(0)
    with pytest.raises(RuntimeError, match=words):
        getattr(balancer, method)(form(losses))
    assert all(leaf.grad is None for leaf in net.parameters())
