"""Counter-based keys: the same numbers alone and batched, and statistics of a random stream."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from mtlfunc.core import random

SEED = 20


def kolmogorov_smirnov(sample, cdf):
    """sup |F_n - F|·√n; above 1.95 with probability 1e-3 if the sample is right."""
    x = np.sort(cdf(np.asarray(sample, dtype=np.float64)))
    n = len(x)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max((steps[1:] - x).max(), (x - steps[:-1]).max())


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: random.uniform(k, (3, 4)), lambda k: random.normal(k, (5,), torch.float64),
        lambda k: random.permutation(k, 6), lambda k: random.permutation(k, 4, rows=3),
        lambda k: random.fold_in(k, 7), lambda k: random.fold_in(random.fold_in(k, 1), k),
        lambda k: random.draw(random.draw(random.stream(k))[1])[0],
    ],
)  # fmt: skip
def test_draws_vmapped_equal_loop(draw):
    seeds = torch.tensor([0, 1, -5, 2**40])
    together = vmap(lambda seed: draw(random.key(seed)))(seeds)
    assert torch.equal(together, torch.stack([draw(random.key(seed)) for seed in seeds]))
    assert torch.equal(together, torch.stack([draw(random.key(int(seed))) for seed in seeds]))
    assert torch.equal(together[None], vmap(vmap(lambda seed: draw(random.key(seed))))(seeds[None]))


def both(draw, *given):
    """What `draw` gives, the same where the compiled functions may not stand in."""
    fast = draw(*given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "_is_plain", lambda *numbers: False)
        slow = draw(*given)
    for one, other in zip(tree_leaves(fast), tree_leaves(slow), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    return fast


EDGES = [0, 1, -1, 7, -7, 2**40, 2**63 - 1, -(2**63)]
KEYS = [*EDGES, *np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40).tolist()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_compiled_numbers_equal_torchs_in_every_bit(dtype):
    shapes = [(), (1,), (2,), (7,), (33,), (128,), (3, 5), (2, 3, 4), (4, 0)]
    for draw in (random.uniform, random.normal):
        for key, shape in product(KEYS, shapes):
            found = both(draw, random.key(key), shape, dtype)
            assert (found.dtype, found.shape) == (dtype, shape)
        both(draw, random.key(SEED), (10_007,), dtype)  # for every path of a vectorised erfinv


def test_numbers_are_the_same_in_every_process():
    """Those of key 0, as splitmix64 in Python's whole numbers gives them."""
    assert int(random.draw(random.stream(random.key(0)))[0]) == 7450421197402424322
    first, second = random.uniform(random.key(0), (2,), torch.float64).tolist()
    assert (first, second) == (0.6524484863740322, 0.7012121095215252)


def test_compiled_keys_and_permutations_equal_torchs():
    for key in KEYS:
        root = random.key(key)
        others = (torch.tensor(-3, dtype=torch.int32), torch.tensor(True))
        for data in (*EDGES, *map(torch.tensor, EDGES), *others):
            folded = both(random.fold_in, root, data)
            assert (folded.dtype, folded.shape) == (torch.int64, ())
        for n, rows in ((1, None), (6, None), (5, 3), (130, None)):
            both(random.permutation, root, n, rows)
        for drawn in (0, 1, 10**6):
            _, after = both(random.draw, random.Stream(root, torch.tensor(drawn)))
            assert after.drawn.dtype == torch.int64
            assert torch.equal(after.key, root)


def test_compiled_numbers_only_for_what_can_be_read():
    """Tracers, transforms and keys that are no 64-bit integer on a CPU take torch's path."""
    key, seen = random.key(3), []
    assert random._is_plain(key)
    assert random._is_plain(key, -5)
    vmap(lambda k: seen.append(random._is_plain(k)) or k)(torch.arange(2))
    wrong = (torch.arange(2), torch.tensor(3, dtype=torch.int32), torch.tensor(3, device="meta"))
    seen += [random._is_plain(k) for k in (2**63, 1.0, True, *wrong)]
    with FakeTensorMode():
        seen.append(random._is_plain(key))
    assert seen == [False] * len(seen)
    with torch.no_grad():
        traced = make_fx(lambda key: random.uniform(key, (3,)))(key)
    other = random.key(4)
    assert torch.equal(traced(other), random.uniform(other, (3,)))  # the key was not burnt in


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_uniform_distribution(dtype):
    n = 100_000
    u = random.uniform(random.key(SEED), (n,), dtype)
    assert u.dtype == dtype
    assert (u >= 0).all()
    assert (u < 1).all()
    if dtype == torch.float16:  # 2048 values: too coarse for the statistics below
        assert abs(u.double().mean() + 2**-12 - 1 / 2) < 4 / math.sqrt(12 * n)
        return
    x = u.double()
    assert abs(x.mean() - 1 / 2) < 4 / math.sqrt(12 * n)  # four standard errors
    assert abs((x**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)
    assert kolmogorov_smirnov(x, lambda v: v) < 1.95
    lag = (x[1:] - 0.5) @ (x[:-1] - 0.5) / (n - 1) * 12
    assert abs(lag) < 4 / math.sqrt(n)


def test_normal_distribution():
    n = 100_000
    x = random.normal(random.key(SEED), (n,), torch.float64)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    cdf = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))
    assert kolmogorov_smirnov(x, cdf) < 1.95


def test_bits_are_fair():
    """Every one of the 53 bits of a float64 draw is 1 half of the time."""
    n = 40_000
    bits = (random.uniform(random.key(SEED), (n,), torch.float64) * 2**53).to(torch.int64)
    share = torch.stack([((bits >> i) & 1).double().mean() for i in range(53)])
    # the largest of 53: 4.5 standard errors
    assert (share - 0.5).abs().max() < 4.5 / (2 * math.sqrt(n))


@pytest.mark.parametrize("how", ["keys", "rows", "stream"])
def test_permutation_uniform(how):
    """Chi-square of all 24 orders, with 23 degrees of freedom: above 49.7 once in 1,000."""
    n = 12_000
    key = random.key(SEED)
    if how == "keys":
        orders = vmap(lambda i: random.permutation(random.fold_in(key, i), 4))(torch.arange(n))
    elif how == "rows":
        orders = random.permutation(key, 4, rows=n)
    else:
        drawn = vmap(lambda i: random.draw(random.Stream(key, i))[0])(torch.arange(n))
        orders = vmap(lambda key: random.permutation(key, 4))(drawn)
    assert torch.equal(orders.sort(-1).values, torch.arange(4).expand(n, 4))
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(-1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 24
    assert float(((counts - n / 24) ** 2 / (n / 24)).sum()) < 49.7


def test_fold_in_gives_independent_keys():
    key = random.key(SEED)
    assert len(vmap(lambda i: random.fold_in(key, i))(torch.arange(5000)).unique()) == 5000
    n = 50_000
    one, two = (random.uniform(random.fold_in(key, i), (n,), torch.float64) - 0.5 for i in (0, 1))
    assert abs(one @ two / n * 12) < 4 / math.sqrt(n)
    # Neighbouring seeds, and a seed folded with itself against its neighbour's.
    three = random.uniform(random.key(SEED + 1), (n,), torch.float64) - 0.5
    base = random.uniform(key, (n,), torch.float64) - 0.5
    assert abs(base @ three / n * 12) < 4 / math.sqrt(n)
    grid = torch.stack([random.fold_in(random.key(a), b) for a in range(40) for b in range(40)])
    assert len(grid.unique()) == 1600


def test_integers_of_other_dtypes_are_seeds_and_data_but_no_keys():
    for seed in (0, 3, -7):
        for dtype in (torch.int32, torch.int64, torch.int16):
            key, data = random.key(torch.tensor(seed, dtype=dtype)), torch.tensor(seed).to(dtype)
            assert key.dtype == torch.int64
            assert torch.equal(key, random.key(seed))
            assert torch.equal(random.fold_in(key, seed), random.fold_in(key, data))
    for wrong in (torch.tensor(3, dtype=torch.int32), torch.arange(3), 3.5, True):
        with pytest.raises(TypeError, match=r"key: .*mtlfunc.random.key\(seed\)"):
            random.uniform(wrong)  # pyright: ignore


def test_draws_are_exported_under_a_vmap():
    """As `paper_repro` compiles its steps; one key is a constant of the program."""
    # which refuses a Triton that is newer than it, as torch 2.6 does those of today
    pytest.importorskip("torch._inductor.runtime.hints", exc_type=ImportError)

    def draw(seed):
        folded = random.fold_in(random.key(seed), random.key(3))
        return random.permutation(folded, 3, rows=3) + random.permutation(random.key(0), 3)

    seeds = torch.tensor([0, 2**40, -3])
    graph = torch._dynamo.export(vmap(draw), aten_graph=True)(seeds).graph_module
    assert torch.equal(graph(seeds), vmap(draw)(seeds))
