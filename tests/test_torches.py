"""What stands in for a private name of torch's gives the same numbers; see `.ci/versions`."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.core import hooks, internals
from mtlfunc.core.transforms import all_present
from mtlfunc.gradients import safe_ops
from mtlfunc.gradients.layerwise import nodes, uses
from mtlfunc.types import Params
from tests.support import python
from tests.support.oracles import F64, rows_by_name, rows_of


@pytest.fixture
def no_answer_about_hooks(monkeypatch):
    """Torch before 2.10."""
    monkeypatch.setattr(hooks, "tells_hooks", False)
    monkeypatch.setattr("mtlfunc.gradients.layerwise.graph.hooks.is_hooked", lambda _: False)
    monkeypatch.setattr("mtlfunc.gradients.layerwise.uses.is_hooked", lambda _: False)


def network(checkpointed: bool = False) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.norm = nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            def hidden(x: Tensor) -> Tensor:
                return self.norm(self.first(x)).tanh()

            seen = checkpoint(hidden, x, use_reentrant=False) if checkpointed else hidden(x)
            assert isinstance(seen, Tensor)
            return self.last(seen)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().to(F64)


X = mf.random.normal(mf.random.key(0), (5, 3), F64)


def losses_of(net: nn.Module) -> list[Tensor]:
    return [*net(X).square().mean(0)]


def rows_by_a_loop(net: nn.Module) -> list[Tensor]:
    """Of each parameter [task, *shape]."""
    return [*rows_by_name(losses_of(net), dict(net.named_parameters())).values()]


def same(found: Iterable[Tensor | None], wanted: Iterable[Tensor]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(x is not None and torch.allclose(x, y, 1e-12, 1e-14) for x, y in pairs)


def balanced(net: nn.Module) -> bool:
    """Whether a backward by the mean leaves the mean of the rows."""
    mf.Balancer(net, mf.mean()).backward(losses_of(net))
    return same((x.grad for x in net.parameters()), (x.mean(0) for x in rows_by_a_loop(net)))


def gramian_of(net: nn.Module) -> Tensor:
    flat = rows_of(losses_of(net), net.parameters())
    return flat @ flat.mT


def pure(net: nn.Module) -> Callable[[Params, Tensor], Tensor]:
    return lambda p, x: functional_call(net, p, (x,)).square().mean(0)


def test_a_torch_that_is_too_old_is_refused_in_a_sentence():
    code = "import torch; torch.__version__ = '2.5.1+cu124'; import mtlfunc"
    done = python("-c", code, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: mtlfunc needs torch 2.6 or later, but this is torch 2.5.1+cu124"
    )


def test_what_is_gone_is_listed(monkeypatch):
    monkeypatch.setattr(internals, "GONE", [])
    assert internals.find("torch._foreach_copy_", None) is torch._foreach_copy_
    assert internals.find("torch._C._no_such_name.inside", 3) == 3
    assert internals.GONE == ["torch._C._no_such_name.inside"]


@pytest.mark.parametrize(
    "name", ["layerwise.graph.internals.autograd_engine", "backward.undefined_grad"]
)
def test_plain_passes_and_graphs_that_cannot_be_freed(name, monkeypatch):
    monkeypatch.setattr(f"mtlfunc.gradients.{name}", internals.ENGINE if "engine" in name else None)
    assert balanced(network())


@pytest.mark.parametrize(("mask", "causal"), [(None, 0), (None, 1), ("bool", 0), ("float", 0)])
@pytest.mark.parametrize("gqa", [False, True])
def test_attention_written_out(mask, causal, gqa):
    def normal(i, *shape):
        return mf.random.normal(mf.random.key(i), shape, F64)

    q, k = normal(0, 2, 4, 5, 3), normal(1, 2, 2 if gqa else 4, 5, 3)
    v = normal(2, *k.shape)
    given = {None: None, "float": normal(3, 5, 5), "bool": normal(3, 5, 5) > -1}[mask]
    if given is not None:
        given[..., 1, :] = False if mask == "bool" else -torch.inf  # a query that sees nothing
    options = {"is_causal": bool(causal), "scale": 0.3, "enable_gqa": gqa}
    want = F.scaled_dot_product_attention(q, k, v, given, **options)
    found = safe_ops.WRITTEN[F.scaled_dot_product_attention](q, k, v, given, **options)
    assert torch.allclose(found, want)


@pytest.mark.parametrize("norm", [F.batch_norm, F.instance_norm])
def test_written_norms_move_running_statistics(norm):
    x, mean, var = torch.arange(24.0).reshape(3, 2, 4).sin(), torch.zeros(2, 2), torch.ones(2, 2)
    want = norm(x, mean[0], var[0], None, None, True, 0.3)
    found = safe_ops.WRITTEN[norm](x, mean[1], var[1], None, None, True, 0.3)
    pairs = (want, found), mean, var
    assert all(torch.allclose(one, other, atol=1e-6) and one.any() for one, other in pairs)


def test_small_stand_ins(monkeypatch):
    parts = [torch.ones(2, 2), torch.zeros(3)]
    places = [torch.empty(2, 2), torch.empty(3)]
    internals.COPY(places, parts)
    assert all(map(torch.equal, places, parts))
    ad = SimpleNamespace(dual_level=torch.autograd.forward_ad.dual_level)  # and no _current_level
    with monkeypatch.context() as patch:
        patch.setattr(internals, "torch", SimpleNamespace(autograd=SimpleNamespace(forward_ad=ad)))
        assert internals.forward_level() == -1
        with torch.autograd.forward_ad.dual_level():
            assert internals.forward_level() == 0


@pytest.mark.usefixtures("no_answer_about_hooks")
def test_a_checkpoint_is_found_by_what_it_runs_again():
    net = network(checkpointed=True)
    with pytest.raises(RuntimeError, match="checkpoint"):
        mf.task_gradients(pure(net), mf.parameters(net), X)
    for _ in range(2):
        net.zero_grad()
        assert balanced(net)
    plain = network()
    rows = mf.task_gradients(pure(plain), mf.parameters(plain), X)[1]
    assert same(rows.values(), rows_by_a_loop(plain))


@pytest.mark.usefixtures("no_answer_about_hooks")
def test_what_was_offloaded_is_read_through_its_hook():
    net = network()
    brought: list[int] = []

    def back(x: Tensor) -> Tensor:
        brought.append(1)
        return x.clone()

    def losses(p: Params, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), back):
            return pure(net)(p, x)

    found = mf.task_gramian(losses, mf.parameters(net), X, engine="layerwise")[1]
    assert torch.allclose(found, gramian_of(net))
    assert brought


def test_without_an_optimizer_of_this_name_none_is_taken(monkeypatch):
    monkeypatch.setattr("mtlfunc.muon._gradients.Muon", None)  # torch before 2.9
    net = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Muon, got SGD"):
        mf.muon.gradients(optimizer, net, {"weight": torch.ones(2, 2, 2)})


def test_a_mask_is_read_inside_a_level():
    seen: list[bool] = []

    def f(x: Tensor) -> Tensor:
        seen.extend([all_present(torch.tensor([True, True])), all_present(torch.tensor([False]))])
        return x

    grad(f)(torch.ones(()))
    assert seen == [True, False]


@pytest.mark.parametrize("part", ["read", "rule"])
def test_a_name_that_nodes_lack_in_the_middle_of_a_run(part, monkeypatch):
    net, name = network(), "AddmmBackward0" if part == "read" else "NativeGroupNormBackward0"
    params, known = mf.parameters(net), nodes.NODES[name]

    def samples(p: Params, x: Tensor) -> Tensor:
        return functional_call(net, p, (x,)).square().sum(1)

    wanted = mf.sample_gramian(samples, params, X)[1]
    read = {i: lambda operand: operand.node._saved_no_more for i in known.read}
    broken = (
        known._replace(read=read),
        known._replace(rule=lambda step, _: step.node._saved_no_more),
    )
    monkeypatch.setitem(nodes.NODES, name, broken[part == "rule"])
    monkeypatch.setattr(uses, "WARNED", set())

    def check() -> list[str]:
        found = mf.task_gramian(pure(net), params, X, engine="layerwise")[1]
        assert torch.allclose(found, gramian_of(net))
        assert torch.allclose(mf.sample_gramian(samples, params, X)[1], wanted)
        return [layer.note for layer in mf.explain_gramian(samples, params, X, samples=True).layers]

    with pytest.warns(RuntimeWarning, match=f"'{name}' object has no attribute") as caught:
        notes = [*check(), *check()]
    assert len(caught) == 1
    assert any("no attribute" in note for note in notes) == (part == "read")


WARNS = partial(pytest.warns, UserWarning, match="performance drop")
REFUSED = partial(pytest.raises, RuntimeError, match="samples_at_once=1")


@pytest.mark.parametrize(
    ("layer", "so"),
    [
        (nn.LSTM(8, 8, batch_first=True), WARNS),
        (nn.LSTM(8, 8, batch_first=True).double(), REFUSED),
        (nn.GRU(8, 8, batch_first=True), REFUSED),
        (nn.RNN(8, 8, batch_first=True), REFUSED),
        (nn.EmbeddingBag(9, 8), WARNS),
    ],
    ids=lambda x: str(x) if isinstance(x, nn.Module) else "so",
)
@pytest.mark.skipif(
    "2.13" not in torch.__version__ or sys.platform != "linux", reason="the page: torch 2.13"
)
def test_where_torch_warns_of_a_loop(layer, so):
    """As docs/limits.md says; the tests' warnings are errors."""
    x = torch.arange(20).reshape(4, 5) % 8
    x = x if isinstance(layer, nn.EmbeddingBag) else F.one_hot(x, 8).to(next(layer.parameters()))

    def losses_fn(params: Params, batch: Tensor) -> Tensor:
        y = functional_call(layer, params, (batch,))
        return (y[0] if isinstance(y, tuple) else y).square().flatten(0, -2).mean(0)

    params = mf.parameters(layer)
    mf.task_gradients(losses_fn, params, x)
    mf.task_gramian(losses_fn, params, x)
    mf.sample_gradients(losses_fn, params, x, samples_at_once=1)
    with so():
        mf.sample_gradients(losses_fn, params, x)
