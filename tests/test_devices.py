"""What a CUDA device computes is what the CPU computes; without one the CPU runs the checks."""

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from experiments.benchmarks.families import FAMILIES, gramians
from tests.support.loops import trained
from tests.support.networks import network
from tests.support.oracles import near
from tests.support.registry import PROBLEMS

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request):
    return request.param


@pytest.mark.parametrize("draw", [mf.random.uniform, mf.random.normal])
def test_random_numbers_are_the_same(device, draw):
    keys = torch.arange(5)
    here = vmap(lambda key: draw(key, (7,), torch.float64))(keys)
    there = vmap(lambda key: draw(key, (7,), torch.float64))(keys.to(device))
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), here, rtol=1e-14, atol=1e-14)


def test_random_permutations_are_the_same(device):
    there = mf.random.permutation(torch.tensor(3, device=device), 50)
    assert there.cpu().tolist() == mf.random.permutation(torch.tensor(3), 50).tolist()


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("tasks", [2, 5, 33])
def test_kernels_agree_on_hard_families(device, kind, tasks):
    """In the direction, up to the square root of what rounding leaves of the gap."""
    make, solve = PROBLEMS[kind], mf.solvers.active_set()
    for name in FAMILIES:
        g = gramians(name, tasks, 2, 0)
        here = vmap(lambda g: solve(make(g)).weights)(g)
        there = vmap(lambda g: solve(make(g)).weights)(g.to(device))
        assert there.device.type == device
        apart = there.cpu() - here
        off = torch.einsum("bi,bij,bj->b", apart, g, apart).clamp_min(0)
        size = g.diagonal(dim1=1, dim2=2).amax(-1).sqrt() * here.abs().sum(-1)
        assert float((off.sqrt() / size).amax()) < 1e-6, name


@pytest.mark.parametrize("kind", PROBLEMS)
def test_derivatives_of_solutions_agree(device, kind):
    g = gramians("gaussian", 4, 1, 1)[0] / 100
    along = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    solve = mf.solvers.active_set()

    def reads(g):
        return solve(PROBLEMS[kind](g)).weights @ along.to(g)

    near(grad(reads)(g.to(device)).cpu(), grad(reads)(g), 1e-8, 1e-10)


def problem(device):
    losses, params, batch = network()
    moved = {name: leaf.to(device) for name, leaf in params.items()}
    return losses, moved, tuple(x.to(device) for x in batch)


@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
def test_gramians_agree(device, engine):
    here, there = (
        mf.task_gramian(*problem(where), shared="trunk.*", engine=engine)[1]
        for where in ("cpu", device)
    )
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), here, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["mean", "mgda", "pcgrad", "cagrad", "upgrad", "imtl_g"])
def test_training_agrees(device, name):
    """Ten steps of two seeds side by side, from the same random numbers."""
    rule = mf.cagrad(0.4) if name == "cagrad" else getattr(mf, name)()
    ends = []
    for where in ("cpu", device):
        losses, params, batch = problem(where)
        step = mf.descend(losses, rule, mf.jacobian("trunk.*"), mf.adam(0.01))

        def train(key, step=step, params=params, batch=batch):
            return trained(step, [batch] * 10, params, key=key).params

        ends.append(vmap(train)(torch.arange(2, device=where)))
    for leaf, here in ends[0].items():
        there = ends[1][leaf]
        assert there.device.type == device
        torch.testing.assert_close(there.cpu(), here, rtol=1e-7, atol=1e-9)
