"""The active-set solver inside torch.compile: one graph, and the derivatives of eager mode."""

from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from mtlfunc.solvers import active_set, auto, cagrad, dual_cone, min_norm

# traces, differentiates and functionalises as the default does, without generating code
TRACED: dict[str, Any] = {"fullgraph": True, "backend": "aot_eager"}
PROBLEMS = {
    "min_norm": min_norm,
    "cagrad": lambda g: cagrad(g, 0.6),
    "dual_cone": lambda g: dual_cone(g, torch.linspace(1, 0.1, len(g)).to(g)),
}


def gramians(batch, count):
    rows = torch.randn(
        batch, count, 3 * count, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    rows[:, 0] -= 0.8 * rows[:, 1]
    return rows @ rows.mT


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("make", [active_set, auto])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_compiled_equals_eager(problem, make, count):
    solve, g = make(), gramians(4, count)

    def loss(g):
        answer = solve(problem(g))
        return (answer.weights * torch.arange(count)).sum() + answer.value

    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
    expected = grad(loss)(g[0])
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(
        torch.compile(lambda g: solve(problem(g)).weights, **TRACED)(g[0]),
        solve(problem(g[0])).weights,
        **close,
    )
    torch.testing.assert_close(torch.compile(grad(loss), **TRACED)(g[0]), expected, **close)
    torch.testing.assert_close(
        torch.compile(vmap(grad(loss)), **TRACED)(g),
        torch.stack([grad(loss)(x) for x in g]),
        **close,
    )
    leaf = g[0].clone().requires_grad_()
    torch.compile(loss, **TRACED)(leaf).backward()
    torch.testing.assert_close(leaf.grad, expected, **close)


# Raised inside torch.
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning", "ignore:.torch._prims_common.check:FutureWarning"
)
def test_compiled_by_the_default_backend():
    solve, g = active_set(), gramians(4, 5)
    f = vmap(grad(lambda g: solve(cagrad(g, 0.6)).weights[0]))
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(g), f(g), rtol=1e-9, atol=1e-11)


def test_what_is_no_problem_is_named():
    with pytest.raises(TypeError, match="problem: expected min_norm"):
        active_set()(torch.eye(2))
    with pytest.raises(TypeError, match=r"gramian: expected a floating dtype, got torch.int64"):
        min_norm(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gramian: expected a square matrix"):
        min_norm(torch.zeros(0, 0))
