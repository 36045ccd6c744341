"""The Triton kernel against the CPU kernel: compiled where there is a GPU, elsewhere Triton's
interpreter runs it on small instances (`TRITON_INTERPRET`, of `conftest.py`), most of them under
`exhaustive`. It compiles for a Hopper GPU anywhere.
"""

import os
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap

from tests.support import python
from tests.support.bounds import clear_length, dot, lengths, optimal
from tests.support.every import few, in_turn
from tests.support.families import FAMILIES, gramian, jacobians
from tests.support.oracles import near

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from mtlfunc.solvers import active_set, auto, cagrad, dual_cone, min_norm  # noqa: E402
from mtlfunc.solvers._kernels import active_set_batch as cpu  # noqa: E402
from mtlfunc.solvers._kernels import active_set_gpu as gpu  # noqa: E402
from mtlfunc.types import Solution  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
SIZES = (2, 3, 8, 32, 64, 128) if CUDA else (3, 8)
KINDS = ("min_norm", "cagrad", "dual_cone")
F64, EPS = torch.float64, torch.finfo(torch.float64).eps
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a GPU")
# the interpreter takes a tenth of a second per problem
one_kind = pytest.mark.parametrize("kind", few(KINDS, lambda kind: CUDA or kind == "min_norm"))
only_compiled = pytest.mark.exhaustive if not CUDA else lambda test: test


def inputs(kind, count, batch=1, c=0.6) -> tuple[Any, Any]:
    """The vector and the radius that the kernels take."""
    if kind == "min_norm":
        return None, None
    if kind == "cagrad":
        return torch.full((1, count), 1 / count, dtype=F64), torch.full((1,), c, dtype=F64)
    draw = torch.Generator().manual_seed(count)
    return torch.rand(batch, count, generator=draw, dtype=F64), None


def both(g, vector=None, c=None, eps=EPS):
    """(report, support, info) of the Triton kernel and of the CPU kernel, on the CPU."""
    arrays = [None if x is None else x.double().numpy() for x in (vector, c)]
    tensors = [None if x is None else x.to(DEVICE) for x in (vector, c)]
    theirs = cpu.solve(g.double().numpy(), arrays[0], arrays[1], eps, 1)
    ours = gpu.solve(g.to(DEVICE), tensors[0], tensors[1], eps)
    return [x.cpu() for x in ours], [torch.from_numpy(x) for x in theirs]


@contextmanager
def waits_refused():
    """A read of the device by the host is an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype: once a process
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_solved(kind, g, c=0.6):
    """Feasible, optimal by its own certificate, and the CPU kernel's direction and value."""
    count = g.shape[-1]
    vector, c = inputs(kind, count, len(g), c)
    (report, support, info), (other, _, other_info) = both(g, vector, c)
    n = lengths(g)
    weights, dual, rates = report[:, : 3 * count].split(count, 1)
    value, gap = report[:, -2], report[:, -1]
    size, largest, centre = dot(n, weights.abs()), n.amax(-1), g.mean((-2, -1)).clamp_min(0).sqrt()
    noise = 1e-14 * count * float((largest * size).amax())
    near(rates, torch.einsum("bij,bj->bi", g, weights), 0, noise)
    assert ((dual > 0) == support[:, 0]).all()
    assert (info[:, 0] < 4 * count + 20 if kind != "cagrad" else info[:, 0] < 12 * count + 60).all()
    # with the ball, where g₀ is known beyond rounding
    ordinary = (centre > 1e-6 * largest) | torch.tensor(kind != "cagrad")
    answer = Solution(weights, dual, rates, value, gap, info[:, 0])
    assert optimal(kind, g, answer, vector, c)[ordinary].all()
    difference = weights - other[:, :count]
    apart = torch.einsum("bi,bij,bj->b", difference, g, difference).clamp_min(0).sqrt()
    if kind != "cagrad":
        assert (apart <= 1e-6 * size).all()  # of min_norm ‖d - d*‖² is at most the gap
        scale = size * (largest if kind == "min_norm" else size)
    else:
        clear, scale = clear_length(g, dual), largest * centre * (1 + c)
        assert (apart <= 1e-4 * centre * (1 + c))[ordinary & clear].all()
        # With c = 1 the projection on the dual cone can lie just on the ball's boundary. And near
        # Pareto stationarity, but not at it (2⁻²⁰, halved for rounding), the better of two branches
        # is taken, while an error ε·spread² of ‖g_w‖² moves the rates of one by
        # ε·(spread/length)²·c‖g₀‖, up to 1e-3 of it. In both cases either branch is right.
        length = torch.einsum("bi,bij,bj->b", dual, g, dual).clamp_min(0).sqrt()
        told = ordinary & (clear | (length < 2.0**-21 * dot(n, dual)))
        if float(c) != 1:
            assert torch.equal(info[:, 1][told], other_info[:, 1][told])
    assert ((value - other[:, -2]).abs() <= gap + other[:, -1] + 1e-12 * scale).all()


SCALED = [(name, 10.0 ** (5 * number % 21 - 10)) for number, name in enumerate(FAMILIES)]


@pytest.mark.parametrize(("kind", "families"), in_turn(KINDS, SCALED, len(SCALED) if CUDA else 5))
@pytest.mark.parametrize("count", few(SIZES, lambda count: CUDA or count == 3))
def test_agrees_with_the_cpu_kernel_on_the_hard_families(kind, families, count):
    if not families:
        pytest.skip("all are in the other case")
    seeds = range(64 if CUDA else 1)
    g = torch.stack([gramian(x, count, seed, scale=y) for x, y in families for seed in seeds])
    assert_solved(kind, g)


@only_compiled
@settings(max_examples=25)
@given(rows=jacobians(most=6), kind=st.sampled_from(KINDS), c=st.sampled_from([0.1, 0.8, 1.0, 3.0]))
def test_agrees_with_the_cpu_kernel_at_any_scale(rows, kind, c):
    g = (rows @ rows.mT)[None]
    assert_solved(kind, 0.5 * (g + g.mT), c)


@only_compiled
def test_rows_of_very_different_scale_and_ties():
    random = np.random.default_rng(0)
    for _ in range(200 if CUDA else 12):
        rows = random.integers(-2, 3, size=(6, random.integers(1, 6)))
        rows = rows * 10.0 ** random.integers(-6, 7, size=(6, 1))
        g = torch.tensor(rows @ rows.T)[None]
        for kind in ("min_norm", "dual_cone"):
            assert_solved(kind, g)


def test_what_a_batch_shares_is_given_once():
    g = torch.stack([gramian("gaussian", 3, seed) for seed in range(2)])
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.tensor([0.2, 2.0], dtype=torch.float64)
    g, weights, c = (x.to(DEVICE) for x in (g, weights, c))
    for arrays in (
        (g[:1], weights, None),
        (g, weights[:1], None),
        (g[:1], weights[:1], c),
        (g, weights, c[:1]),
    ):
        together = gpu.solve(*arrays, EPS)
        for i in range(2):
            one = [x if x is None else x[i % len(x)][None] for x in arrays]
            alone = gpu.solve(*one, EPS)  # pyright: ignore[reportArgumentType, reportCallIssue]
            for batched, single in zip(together, alone, strict=True):
                assert torch.equal(batched[i], single[0])
    assert [x.shape for x in gpu.solve(g[:0], None, None, EPS)] == [(0, 11), (0, 2, 3), (0, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_unsound_input_gives_nan_and_says_why(kind):
    good = gramian("gaussian", 3, 0)
    nan, infinite, indefinite, negative = good.clone(), good.clone(), good.clone(), -good
    nan[0, 1] = nan[1, 0] = float("nan")
    infinite[2, 2] = float("inf")
    indefinite[0, 1] = indefinite[1, 0] = 3 * good.diagonal().amax()
    g = torch.stack([nan, infinite, indefinite, negative, good])
    vector, c = inputs(kind, 3, 5)
    (report, support, info), (other, other_support, other_info) = both(g, vector, c)
    assert torch.equal(info[:, 1], torch.tensor([0, 0, -1, -1, 0]))
    assert torch.equal(info[:, 1], other_info[:, 1])
    assert torch.equal(report.isnan(), other.isnan())
    assert report[:4].isnan().all()
    assert torch.equal(support, other_support)
    if vector is not None:
        vector = vector.clone()
        vector[0, 1] = float("nan")
        (report, _, info), (_, _, other_info) = both(good[None], vector[:1], c)
        assert report.isnan().all()
        assert torch.equal(info, other_info)
    if c is not None:
        assert vector is not None
        nothing = torch.tensor([float("nan")], dtype=torch.float64)
        assert both(good[None], vector[:1], nothing)[0][0].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_nothing_at_all_and_zero_rows(kind):
    for g in (
        torch.tensor([[4.0]]),
        torch.zeros(1, 1),
        torch.zeros(3, 3),
        torch.diag(torch.tensor([0.0, 1.0, 4.0])),
        torch.diag(torch.tensor([0.0, 0.0, 4.0])),
    ):
        found = both(g.double()[None], *inputs(kind, g.shape[-1]))
        (report, support, info), (other, other_support, other_info) = found
        near(report, other, 1e-14, 1e-15)
        assert torch.equal(support, other_support)
        assert torch.equal(info[:, 1], other_info[:, 1])


def test_radius_zero_is_the_mean_gradient():
    ours, theirs = both(gramian("antiparallel", 4, 1)[None], *inputs("cagrad", 4, c=0.0))
    near(ours[0], theirs[0], 1e-13, 1e-14)


@one_kind
def test_float32_gramians_are_read_as_they_are(kind):
    names = ("gaussian", "duplicates", "pareto_stationary")
    g, eps = torch.stack([gramian(x, 5, 2).float() for x in names]), torch.finfo(torch.float32).eps
    vector, c = (None if x is None else x.float() for x in inputs(kind, 5, 3))
    (report, _, info), (other, _, other_info) = both(g, vector, c, eps)
    scale = g.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    assert ((report - other)[:, -2:].abs() <= 1e-6 * scale).all()
    assert torch.equal(info[:, 1], other_info[:, 1])


@one_kind
def test_ends_without_any_noise_threshold(kind):
    """With ε below the arithmetic's own the loop may turn, but it ends, with an honest gap."""
    names = ("duplicates", "identical", "integer_ties", "pareto_stationary")
    g = torch.stack([gramian(name, 5, 3) for name in names])
    vector, c = inputs(kind, 5, 4)
    (report, _, info), _ = both(g, vector, c, 2.0**-58)
    assert (info[:, 0] <= 3 * (20 * 5 + 100)).all()
    n = lengths(g)
    assert (report[:, -1] <= 1e-6 * n.amax(-1) * (n * report[:, :5].abs()).sum(-1)).all()


PROBLEMS = {
    "min_norm": min_norm,
    "cagrad": lambda g: cagrad(g, g.new_full((), 0.6)),
    "dual_cone": lambda g: dual_cone(g, torch.ones_like(g[0])),
}


@needs_gpu
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("make", [active_set, auto])
def test_the_public_call_on_a_gpu(problem, make):
    solve = make()
    g = torch.stack([gramian("gaussian", 8, seed) for seed in range(6)])
    expected = vmap(lambda g: solve(problem(g)).weights)(g)
    on_gpu = g.cuda()
    near(vmap(lambda g: solve(problem(g)).weights)(on_gpu).cpu(), expected, 1e-10, 1e-12)
    nested = vmap(vmap(lambda g: solve(problem(g)).weights))(on_gpu.reshape(2, 3, 8, 8))
    near(nested.cpu().reshape(6, 8), expected, 1e-10, 1e-12)

    def loss(g):
        return (solve(problem(g)).weights * torch.arange(8, device=g.device)).sum()

    slopes = vmap(grad(loss))(g)
    compiled = torch.compile(vmap(grad(loss)), fullgraph=True, backend="aot_eager")
    for found in (vmap(grad(loss)), compiled):
        near(found(on_gpu).cpu(), slopes, 1e-8, 1e-10)
    for found in (grad(loss), jacrev(loss)):
        near(found(on_gpu[0]).cpu(), slopes[0], 1e-8, 1e-10)


@one_kind
def test_gradients_that_nearly_depend_on_each_other(kind):
    """Distances from 1e-8 to 1e-5: pivots between rounding and 1e-10; the root has three digits."""
    random, problems = np.random.default_rng(0), []
    for apart in (3e-9, 1e-8, 1e-7, 1e-6, 1e-5) * 20:
        base = random.normal(size=(4, 20))
        rows = np.concatenate([base, -base[:2], base[1:3]]) + apart * random.normal(size=(8, 20))
        rows *= 10.0 ** random.uniform(-3, 0, size=(8, 1))
        problems.append(torch.tensor(rows @ rows.T)[None])
    for g in problems if CUDA else [*problems[1:4], problems[27]]:
        assert_solved(kind, g)


@needs_gpu
def test_more_tasks_than_the_kernel_holds_go_by_the_cpu():
    g = gramian("gaussian", 130, 0)
    found = active_set()(min_norm(g.cuda())).weights.cpu()
    near(found, active_set()(min_norm(g)).weights, 1e-10, 1e-12)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_thousand_problems_in_one_launch(kind):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(16384, 8, 20, generator=draw, dtype=torch.float64)
    g = rows @ rows.mT
    assert_solved(kind, 0.5 * (g + g.mT))


@needs_gpu
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("make", [active_set, auto])
def test_a_cuda_graph_replays_on_new_gramians(problem, make):
    solve = make()
    first, second = (
        torch.stack([gramian("spread", 8, seed + start) for seed in range(64)]).cuda()
        for start in (0, 64)
    )
    fixed = first.clone()
    f = vmap(lambda g: solve(problem(g)).weights)
    f(fixed)  # compiles
    with waits_refused():
        f(fixed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        f(fixed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = f(fixed)
    fixed.copy_(second)
    graph.replay()
    assert torch.equal(answer, f(second))


@pytest.mark.slow
@pytest.mark.parametrize("cases", few(["0", "4"], lambda count: count == "0"))
def test_compiles_for_hopper(cases, tmp_path):
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    python("-m", "tests.support.hopper", cases, env=env)
