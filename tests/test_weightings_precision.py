"""Products of weightings in every dtype; a device's path in half precision, on the CPU."""

import math
from collections import Counter
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import mtlfunc as mf
from common.memory import Alive
from experiments.benchmarks.networks import Llama, Size
from mtlfunc.core import tree
from tests.support.every import every, in_turn
from tests.support.oracles import rows_of

HALVES = (torch.bfloat16, torch.float16)


SIZE = Size(layers=2, width=64, wide=256, heads=4, groups=2, vocabulary=120)


class Watched(Alive):
    """Matrix products, their floating-point operations, and the bytes that are alive at once."""

    def __init__(self):
        super().__init__()
        self.products, self.flops = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            self.products[a.dtype, tuple(a.shape), tuple(b.shape)] += 1
            self.flops += 2 * math.prod(a.shape) * b.shape[-1]
        return out


def halves(a, b, dtype):
    """One kernel of a device: halves in, sums in float32, one tensor out."""
    return torch.from_numpy(a.float().numpy() @ b.float().numpy()).to(dtype)


@pytest.fixture
def device_path(monkeypatch):
    library = torch.library.Library("aten", "IMPL")
    library.impl("bmm.dtype", halves, "CPU")
    monkeypatch.setattr(tree, "accumulates_wide", lambda *factors: True)
    yield
    library._destroy()


def problem(dtype, tasks, samples=8, length=32, seed=0):
    torch.manual_seed(seed)
    net = Llama(SIZE).to(dtype)
    matrix = torch.randn(tasks, samples)
    return net, torch.randint(120, (samples, length + 1)), matrix - matrix.mean(1, keepdim=True)


def grad_of(leaf):
    return leaf.grad.flatten()


def exact_rows(net, x, matrix):
    wide = Llama(SIZE).double()
    wide.load_state_dict(net.state_dict())
    return rows_of(matrix.double() @ wide(x).double(), wide.parameters()).double()


def balanced(net, x, matrix, engine: Any = "layerwise", *, cast=False):
    """A step whose calls are all known by now."""
    balancer = mf.Balancer(net, mf.mean(), mf.jacobian(engine=engine))

    def step():
        net.zero_grad()
        with torch.autocast("cpu", HALVES[0], enabled=cast):
            losses = net(x)
        return balancer.backward(losses, weightings=matrix)

    for _ in range(2):
        step()
    return step


@pytest.mark.parametrize(("tasks", "cast"), [(2, False), (4, False), (16, False), (4, True)])
def test_what_a_language_model_costs(tasks, cast, device_path):
    """In bfloat16 no product is upcast, none is an outer product, and one pass is enough."""
    net, x, matrix = problem(torch.float32 if cast else torch.bfloat16, tasks)

    def plain():
        net.zero_grad()
        with torch.autocast("cpu", HALVES[0], enabled=cast):
            loss = net(x).mean()
        loss.backward()

    plain()
    step = balanced(net, x, matrix, cast=cast)
    net.zero_grad()
    with Watched() as single:
        plain()
    with Watched() as ours:
        step()
    assert ours.flops <= 1.5 * single.flops
    assert ours.peak <= 1.3 * single.peak  # the pass frees the graph on its way, as a plain one's
    assert all(a[-1] > 1 for _, a, _ in ours.products)
    wide = [(a, b) for dtype, a, b in ours.products if dtype not in HALVES]
    # of weightings with the samples' Gramian, and of the rows of norms, which work in float32, as
    # an embedding does under autocast
    norms = sum(leaf.numel() for leaf in net.parameters() if leaf.ndim == 1)
    assert cast or all(max(*a, *b) <= max(len(x), tasks, norms) for a, b in wide)
    assert sum(ours.products.values()) <= 3 * sum(single.products.values())


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_rows_in_half_precision_are_multiplied_as_they_are(engine, device_path):
    """Of two weightings, for which a pass each is the cheapest here."""
    net, x, matrix = problem(torch.bfloat16, 2)
    step = balanced(net, x, matrix, engine)
    with Watched() as ours:
        info = step()
    wide = [(a, b) for dtype, a, b in ours.products if dtype not in HALVES]
    assert all(max(*a, *b) <= len(x) for a, b in wide), wide
    exact, looped = exact_rows(net, x, matrix), rows_of(matrix @ net(x), net.parameters()).double()
    wanted = exact @ exact.T
    assert info.gramian.dtype == torch.float32
    assert (info.gramian - wanted).norm() <= 1.1 * (looped @ looped.T - wanted).norm()


def test_where_a_device_has_no_product_of_halves_to_float32(monkeypatch):
    """As torch's bgemm says: on ROCm, and of float16 where its sums may be in float16."""

    def wide(*dtypes):
        factors: Any = [SimpleNamespace(is_cuda=True, dtype=x, requires_grad=False) for x in dtypes]
        return tree.accumulates_wide(*factors)

    bfloat16, float16 = HALVES
    assert wide(bfloat16, bfloat16)
    assert wide(float16, float16)
    assert not wide(bfloat16, float16)
    with forward_ad.dual_level():
        assert not wide(bfloat16, bfloat16)
    switches = SimpleNamespace(matmul=SimpleNamespace(allow_fp16_accumulation=True))
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends, "cuda", switches)
        assert wide(bfloat16, bfloat16)
        assert not wide(float16, float16)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not wide(bfloat16, bfloat16)


@pytest.mark.parametrize(("dtype", "tasks"), in_turn(HALVES, [2, 6], 1))
@every("tasks")
def test_gramian_and_combination_are_as_good_as_a_loop(dtype, tasks, device_path):
    """Of centred weightings, against rows in float64, next to a loop of backward passes."""

    def off(x, wanted):
        return float((x - wanted).norm() / wanted.norm())

    ours, theirs = torch.zeros(2), torch.zeros(2)
    for seed in range(8):
        net, x, matrix = problem(dtype, tasks, seed=seed)
        exact = exact_rows(net, x, matrix)
        wanted = exact @ exact.T, exact.mean(0)
        info = balanced(net, x, matrix)()
        found = torch.cat([grad_of(leaf) for leaf in net.parameters()]).double()
        looped = rows_of(matrix @ net(x), net.parameters()).double()
        ours += torch.tensor([*map(off, (info.gramian.double(), found), wanted)])
        theirs += torch.tensor([*map(off, (looped @ looped.T, looped.mean(0)), wanted)])
    assert (ours <= 1.1 * theirs).all(), (ours, theirs)


def test_without_a_device_it_is_the_same():
    net, x, matrix = problem(torch.bfloat16, 5)
    exact = exact_rows(net, x, matrix)
    found = balanced(net, x, matrix)().gramian.double()
    looped = rows_of(matrix @ net(x), net.parameters()).double()
    wanted = exact @ exact.T
    assert (found - wanted).norm() <= 1.1 * (looped @ looped.T - wanted).norm()


def test_a_word_that_comes_often(device_path):
    """Its many deltas are not added one by one in half precision."""
    net, x, matrix = problem(torch.bfloat16, 3, length=600)
    x[:, 50:] = 7
    x = x[:2]
    exact = exact_rows(net, x, matrix[:, :2])
    balanced(net, x, matrix[:, :2])()
    at = net.tokens.weight.numel()
    found, wanted = grad_of(net.tokens.weight).double(), exact.mean(0)[:at]
    looped = rows_of(matrix[:, :2] @ net(x), net.parameters()).double().mean(0)[:at]
    assert (found - wanted).norm() <= 1.1 * (looped - wanted).norm()


def collapsed(dtype, spread, prompts, tasks, positions, seed):
    """Rewards of a policy whose answers to each prompt are nearly the same, centred by prompt."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 6)).double()
    x = torch.randn(prompts, positions, 10).double().repeat_interleave(16 // prompts, 0)
    x, net = (x + spread * torch.randn_like(x)).to(dtype), net.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    rewards = torch.randn(tasks, prompts, 16 // prompts, dtype=wide)
    return net, x, (rewards - rewards.mean(2, keepdim=True)).flatten(1)


def of_samples(net, x):
    return net(x).to(torch.promote_types(x.dtype, torch.float32)).square().sum((1, 2))


COLLAPSED = product((torch.float64, torch.float32, torch.bfloat16), (1, 3), (1, 4), (2, 5, 24))


@pytest.mark.parametrize(
    ("case", "spreads"), in_turn(COLLAPSED, enumerate((0.0, 1e-7, 1e-6, 1e-4, 1e-2, 1.0)), 2)
)
def test_nearly_identical_samples_cost_no_more_digits_than_a_loop(case, spreads, device_path):
    """What weightings cancel is not lost to the products of samples, and leaves a Gramian."""
    dtype, positions, prompts, tasks = case
    for seed, spread in spreads:
        net, x, matrix = collapsed(dtype, spread, prompts, tasks, positions, seed)
        looped = rows_of(matrix @ of_samples(net, x), net.parameters()).double()
        balancer = mf.Balancer(net, mf.upgrad(), mf.jacobian(engine="layerwise"))
        gramian = matrix
        for _ in range(2):  # UPGrad refuses what is no Gramian
            net.zero_grad()
            gramian = balancer.backward(of_samples(net, x), weightings=matrix).gramian.double()
        wide = net.double()
        exact = rows_of(matrix.double() @ of_samples(wide, x.double()), wide.parameters()).double()
        wanted = exact @ exact.T
        # rounding of a loop's sums, in the dtype of the sums, which it may not show
        samples = rows_of(of_samples(wide, x.double()), wide.parameters()).double().norm(dim=1)
        lost = 8 * torch.finfo(matrix.dtype).eps * (matrix.abs().double() @ samples).norm()
        least = lost * wanted.norm().sqrt() + lost.square()
        assert (gramian - wanted).norm() <= 2 * (looped @ looped.T - wanted).norm() + least
