"""`muon.gradients` against the real steps of `torch.optim.Muon` on copies.
torch's own orthogonalization is five Newton-Schulz steps in bfloat16. Where a test says exact, the
function that does this is replaced by the polar factor, and all else of the step is torch's.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.types import Change, Params, Rows
from tests.support.networks import perceptron

if not hasattr(torch.optim, "Muon"):
    pytest.skip("torch.optim.Muon came with torch 2.9", allow_module_level=True)

F64 = torch.float64
X, Y = (mf.random.normal(mf.random.key(k), s, F64) for k, s in ((1, (40, 6)), (2, (40, 3))))


def polar_factor(grad: Tensor, *_: Any) -> Tensor:
    u, _, v = torch.linalg.svd(grad, full_matrices=False)
    return u @ v


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", polar_factor)


def network() -> nn.Module:
    """One output that three tasks want to be three different functions."""
    return perceptron(6, 8, 5, 1, bias=False)


def losses_fn(net: nn.Module) -> Any:
    def losses(params: Params, batch: Any) -> Tensor:
        wish = Y * torch.tensor([1.0, 3.0, 0.5], dtype=F64)
        return (functional_call(net, params, (X,)) - wish).square().mean(0)

    return losses


def rows_at(net: nn.Module) -> Rows:
    return mf.task_gradients(losses_fn(net), mf.parameters(net), ())[1]


def walk(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps of the mean, so that there is momentum."""
    for _ in range(steps):
        optimizer.zero_grad()
        losses_fn(net)(dict(net.named_parameters()), ()).mean().backward()
        optimizer.step()


def change_of(net: nn.Module, optimizer: torch.optim.Muon, grads: Params) -> Change:
    """What the real step does to the losses, on copies."""
    other, state = copy.deepcopy((net, optimizer.state_dict()))
    mine = make(other, **{**optimizer.defaults, "lr": 0.0})
    mine.load_state_dict(state)
    before = {name: x.clone() for name, x in mf.parameters(other).items()}
    mf.assign_gradients(other, grads)
    mine.step()
    return mf.diagnostics.predicted_change(losses_fn(net), before, mf.parameters(other), ())


def make(net: nn.Module, **options: Any) -> torch.optim.Muon:
    """Two groups: the second has half the learning rate."""
    first, *others = net.parameters()
    rate = options.pop("lr")
    groups = [{"params": [first], "lr": rate}, {"params": others, "lr": rate / 2}]
    return torch.optim.Muon(groups, lr=rate, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no momentum": {"momentum": 0.0, "weight_decay": 0.0},
    "plain momentum": {"nesterov": False, "weight_decay": 0.3},
    "rms": {"adjust_lr_fn": "match_rms_adamw"},
}


@pytest.mark.parametrize("walked", [0, 5])
@pytest.mark.parametrize("options", OPTIONS)
def test_rates_are_those_of_the_real_step(exact, options, walked):
    """To first order to rounding; the losses themselves by as much as a step of 1e-8 is curved."""
    net = network()
    optimizer = make(net, lr=1e-3, **OPTIONS[options])
    walk(net, optimizer, walked)
    for group in optimizer.param_groups:
        group["lr"] *= 1e-5
    for weights in (None, torch.tensor([0.2, 0.5, 0.3], dtype=F64)):
        solution, grads = mf.muon.gradients(optimizer, net, rows_at(net), weights=weights)
        change = change_of(net, optimizer, grads)
        size = solution.rates.abs().max()
        # no step is better than the one whose momentum has been taken off
        assert weights is not None or solution.gap <= 1e-6 * size
        # θ moves by 1e-8 of 1e-1: rounding is 1e-16/1e-8
        assert (change.predicted + solution.rates).abs().max() <= 1e-7 * size
        assert (change.actual + solution.rates).abs().max() <= 1e-6 * size


def test_matrices_of_one_shape_have_the_rates_of_their_groups(exact):
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)).to(F64)
    with torch.no_grad():
        for leaf in net.parameters():
            leaf.copy_(torch.eye(6))
    rows = {name: (X.mT @ X + torch.eye(6))[None] for name, _ in net.named_parameters()}
    rates = zip(net.parameters(), (1.0, 0.1), strict=True)
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in rates]
    optimizer = torch.optim.Muon(groups, momentum=0.0, weight_decay=0.0)
    found = mf.muon.gradients(optimizer, net, rows, weights=torch.ones(1))[0]
    nuclear = float(torch.linalg.matrix_norm(rows["0.weight"][0], "nuc"))
    assert float(found.rates) == pytest.approx(1.1 * nuclear, rel=1e-9)


SIZES = [(1.0, 1.0, 1.0), (1.0, 10.0, 100.0), (1.0, 1e-2, 1e-4), (1.0, 1e3)]


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_promised_of_a_real_step_is_what_it_does(sizes):
    """Σ w g is nearly singular: five Newton-Schulz steps are not its polar factor."""
    count, kept = len(sizes), 0
    net = perceptron(6, 8, count, bias=False)

    def losses(params: Params, batch: Any) -> Tensor:
        apart = (functional_call(net, params, (X,)) - Y[:, :count]).square().mean(0)
        return torch.tensor(sizes, dtype=F64) * apart

    optimizer = torch.optim.Muon(net.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(10):
        rows = mf.task_gradients(losses, mf.parameters(net), ())[1]
        solution, grads = mf.muon.gradients(optimizer, net, rows)
        before = {name: x.clone() for name, x in mf.parameters(net).items()}
        mf.assign_gradients(net, grads)
        optimizer.step()
        fall = -mf.diagnostics.predicted_change(losses, before, mf.parameters(net), ()).predicted
        torch.testing.assert_close(solution.rates, fall, rtol=1e-6, atol=1e-9 * float(fall.max()))
        assert solution.value - fall.min() <= solution.gap + 1e-9 * solution.value
        kept += int(solution.rates.min() > 0)
    assert kept >= 3


def test_momentum_of_other_parameters_and_decay(exact):
    """What they do anyway is in the rates, and in the weights: none on a grid does better."""
    net, rate, last = network(), 1e-7, "4.weight"
    named = dict(net.named_parameters())
    others = [x for name, x in named.items() if name != last]
    muon = torch.optim.Muon(others, lr=rate, weight_decay=0.3)
    sgd = torch.optim.SGD([named[last]], lr=0.3 * rate, momentum=0.9)
    named[last].grad = mf.random.normal(mf.random.key(9), named[last].shape, F64)
    sgd.step()
    sgd.zero_grad()
    balancer = mf.Balancer(net, mf.mean(), mf.jacobian(last, heads="weighted"), metric=sgd)
    info = balancer.measure(losses_fn(net)(dict(net.named_parameters()), ()))
    carried = info.rates - info.gramian @ info.weights
    rows = rows_at(net)
    mine = {name: x for name, x in rows.items() if name != last}
    solution, grads = mf.muon.gradients(muon, net, mine, info.gramian, carried=carried)
    assert solution.gap <= 1e-6 * solution.value.abs()
    grid = torch.linspace(0, 1, 6, dtype=F64)
    tried = [
        mf.muon.gradients(
            muon, net, mine, info.gramian, carried=carried,
            weights=torch.cat([w, 1 - w.sum(0, keepdim=True)]),
        )[0].rates.min()
        for w in torch.cartesian_prod(grid, grid)
        if w.sum() <= 1
    ]  # fmt: skip
    assert max(tried) <= solution.rates.min() + solution.gap
    grads[last] = torch.tensordot(solution.weights, rows[last], 1)
    before = {name: x.clone() for name, x in mf.parameters(net).items()}
    mf.assign_gradients(net, grads)
    muon.step()
    sgd.step()
    change = mf.diagnostics.predicted_change(losses_fn(net), before, mf.parameters(net), ())
    assert (change.predicted + solution.rates).abs().max() <= 1e-7 * solution.rates.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_numbers_alone(dtype):
    """As in float64; float32 perturbs a polar factor by its share of the least singular value."""
    net = network().to(dtype)
    optimizer = make(net, lr=0.1, weight_decay=0.3)
    for x in net.parameters():
        x.grad = mf.random.normal(mf.random.key(x.numel()), x.shape, F64).to(dtype)
    optimizer.step()
    rows = {
        name: mf.random.normal(mf.random.key(i), (3, *x.shape), F64).to(dtype)
        for i, (name, x) in enumerate(mf.parameters(net).items())
    }
    wide = {name: x.double() for name, x in rows.items()}
    for weights in (torch.tensor([0.2, 0.5, 0.3], dtype=F64), None):
        found, grads = mf.muon.gradients(optimizer, net, rows, weights=weights)
        true, exact = mf.muon.gradients(optimizer, net, wide, weights=weights)
        assert {x.dtype for x in found[:5]} == {torch.float32}
        assert {x.dtype for x in grads.values()} == {dtype}
        mixed = [torch.tensordot(true.weights, x, 1) for x in wide.values()]
        singular = [torch.linalg.svdvals(x) for x in mixed]
        worst = max(float(s[0] / s[-1]) for s in singular)
        assert worst < 100
        near = 32 * torch.finfo(torch.float32).eps * worst * true.rates.abs().max()
        assert abs(found.value.double() - true.value) <= near
        if weights is None:
            assert found.gap <= near + true.gap
            continue
        assert (found.rates.double() - true.rates).abs().max() <= near
        assert abs(found.gap.double() - true.gap) <= near
        torch.testing.assert_close(grads, {name: x.to(dtype) for name, x in exact.items()})


def test_what_is_wrong_is_said():
    net: Any = network()
    optimizer, rows = make(net, lr=0.1), rows_at(net)

    class Mine(torch.optim.Muon):
        pass

    for wrong in (Mine(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.1)):
        with pytest.raises(TypeError, match=r"expected a torch.optim.Muon, got (Mine|SGD)"):
            mf.muon.gradients(wrong, net, rows)
    with pytest.raises(TypeError, match="rows: expected a non-empty dict"):
        mf.muon.gradients(optimizer, net, {})
    broken = make(net, lr=0.1)
    broken.state[net[0].weight]["momentum_buffer"] = torch.zeros(8, 3, dtype=F64)
    given: Any
    for given, words in (
        ({"rows": rows | {"bias": torch.zeros(3, 1, 5)}}, r"rows\['bias'\].*does not hold it"),
        ({"rows": rows | {"0.weight": torch.zeros(3, 6, 8)}}, r"rows\['0.weight'\].*do not fit"),
        ({"weights": torch.ones(2, dtype=F64)}, r"weights: expected shape \[3\]"),
        ({"carried": torch.zeros(1)}, r"carried: expected \[3\]"),
        ({"optimizer": make(net, lr=0.1, momentum=1.0)}, "momentum=1"),
        ({"optimizer": broken}, "momentum buffer"),
    ):
        with pytest.raises(ValueError, match=words):
            mf.muon.gradients(**{"optimizer": optimizer, "module": net, "rows": rows} | given)
    with pytest.raises(ValueError, match=r"muon\.gradients"):
        mf.Balancer(net, mf.mgda(), metric=optimizer)
