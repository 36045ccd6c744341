"""Solvers inside torch.compile: one graph, and the derivatives of eager mode."""

from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from mtlfunc import solvers
from mtlfunc.solvers import active_set, auto, cagrad, dual_cone, min_norm
from tests.support.every import few
from tests.support.oracles import near

# traces, differentiates and functionalises as the default does, without generating code
TRACED: dict[str, Any] = {"fullgraph": True, "backend": "aot_eager"}
PROBLEMS = {
    "min_norm": min_norm,
    "cagrad": lambda g: cagrad(g, 0.6),
    "dual_cone": lambda g: dual_cone(g, torch.linspace(1, 0.1, len(g)).to(g)),
}


def gramians(batch, count):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, count, 3 * count, generator=draw, dtype=torch.float64)
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

    of_one = grad(loss, has_aux=True)
    each = [of_one(x) for x in g]
    expected = each[0][0]
    assert expected.abs().max() > 1e-6
    if "grad" in transforms:
        near(torch.compile(of_one, **TRACED)(g[0]), each[0], 1e-9, 1e-12)
    if "vmap" in transforms:
        stacked = tuple(torch.stack(x) for x in zip(*each, strict=True))
        near(torch.compile(vmap(of_one), **TRACED)(g), stacked, 1e-9, 1e-12)
    if "backward" in transforms:
        leaf = g[0].clone().requires_grad_()
        torch.compile(loss, **TRACED)(leaf)[0].backward()
        near(leaf.grad, expected, 1e-9, 1e-12)


EVERY = ("grad", "vmap", "backward")


@pytest.mark.parametrize("problem", few(PROBLEMS, lambda name: name == "dual_cone"))
@pytest.mark.parametrize("ways", few([("vmap", "backward"), EVERY], lambda ways: ways != EVERY))
def test_compiled_active_set_equals_eager(problem, ways):
    problem = PROBLEMS[problem]
    compiled_equals_eager(problem, active_set(), 5, ways)
    if ways == EVERY:
        compiled_equals_eager(problem, active_set(), 2, ("vmap",))  # the same graph, other sizes


@pytest.mark.parametrize("problem", few(PROBLEMS, lambda name: name == "cagrad"))
@pytest.mark.parametrize("ways", few([("vmap",), EVERY], lambda ways: ways != EVERY))
def test_compiled_auto_equals_eager(problem, ways):
    """The closed form of two tasks, which eager mode leaves to the kernel."""
    compiled_equals_eager(PROBLEMS[problem], auto(), 2, ways)


def test_compiled_auto_on_many_tasks_equals_eager():
    compiled_equals_eager(min_norm, auto(), 5, ("vmap",))


PLAIN = {  # of torch's own operations
    "faces": solvers.faces(),
    "projected_gradient": solvers.projected_gradient(3),
    "frank_wolfe": solvers.frank_wolfe(3, "pairwise"),
}
CASES = [(x, y) for x in PLAIN for y in PROBLEMS if (x, y) != ("frank_wolfe", "dual_cone")]
FEW = [
    ("faces", "dual_cone", "backward"),
    ("projected_gradient", "dual_cone", "vmap"),
    ("frank_wolfe", "min_norm", "grad"),
]


@pytest.mark.parametrize(
    "case", few([*FEW, *((*x, *EVERY) for x in CASES)], lambda case: case in FEW), ids=" ".join
)
def test_compiled_plain_solvers_equal_eager(case):
    compiled_equals_eager(PROBLEMS[case[1]], PLAIN[case[0]], 3, case[2:])


def test_cvx_says_that_it_cannot_be_compiled():
    with pytest.raises(Exception, match=r"cvx cannot run inside torch\.compile"):
        torch.compile(lambda g: solvers.cvx()(min_norm(g)).weights, **TRACED)(gramians(1, 3)[0])


# Raised inside torch.
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning", "ignore:.torch._prims_common.check:FutureWarning"
)
def test_compiled_by_the_default_backend():
    solve, g = active_set(), gramians(4, 5)
    f = vmap(grad(lambda g: solve(cagrad(g, 0.6)).weights[0]))
    near(torch.compile(f, fullgraph=True)(g), f(g), 1e-9, 1e-11)
