"""The active-set solver inside torch.compile: one graph, and the derivatives of eager mode."""

from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from mtlfunc.solvers import active_set, auto, cagrad, dual_cone, min_norm
from tests.support.every import few

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


def compiled_equals_eager(problem, solve, count, transforms):
    """Weights, and derivatives of weights and value, of compiled transforms."""
    g, probe = gramians(4, count), torch.arange(count)

    def loss(g):
        answer = solve(problem(g))
        return (answer.weights * probe).sum() + answer.value, answer.weights

    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
    of_one = grad(loss, has_aux=True)
    each = [of_one(x) for x in g]
    expected = each[0][0]
    assert expected.abs().max() > 1e-6
    if "grad" in transforms:
        torch.testing.assert_close(torch.compile(of_one, **TRACED)(g[0]), each[0], **close)
    if "vmap" in transforms:
        stacked = tuple(torch.stack(x) for x in zip(*each, strict=True))
        torch.testing.assert_close(torch.compile(vmap(of_one), **TRACED)(g), stacked, **close)
    if "backward" in transforms:
        leaf = g[0].clone().requires_grad_()
        torch.compile(loss, **TRACED)(leaf)[0].backward()
        torch.testing.assert_close(leaf.grad, expected, **close)


@pytest.mark.parametrize("problem", few(PROBLEMS, lambda name: name == "dual_cone"))
def test_compiled_active_set_equals_eager(problem):
    problem = PROBLEMS[problem]
    compiled_equals_eager(problem, active_set(), 5, ("grad", "vmap", "backward"))
    compiled_equals_eager(problem, active_set(), 2, ("vmap",))  # the same graph, other sizes


@pytest.mark.parametrize("problem", few(PROBLEMS, lambda name: name == "cagrad"))
def test_compiled_auto_equals_eager(problem):
    """The closed form of two tasks, which eager mode leaves to the kernel."""
    compiled_equals_eager(PROBLEMS[problem], auto(), 2, ("vmap", "backward"))


def test_compiled_auto_on_many_tasks_equals_eager():
    """The active set again: one problem shows that it gets there."""
    compiled_equals_eager(min_norm, auto(), 5, ("vmap",))


# Raised inside torch.
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning", "ignore:.torch._prims_common.check:FutureWarning"
)
def test_compiled_by_the_default_backend():
    solve, g = active_set(), gramians(4, 5)
    f = vmap(grad(lambda g: solve(cagrad(g, 0.6)).weights[0]))
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(g), f(g), rtol=1e-9, atol=1e-11)
