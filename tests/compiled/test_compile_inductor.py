"""The default backend's code, which has traps of its own: few positions are unrolled or folded."""

import re

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc import random
from mtlfunc.types import Geometry
from tests.support.every import few
from tests.support.families import gramian
from tests.support.registry import RULES

# torch's own lowering of an index
pytestmark = pytest.mark.filterwarnings("ignore:`torch._prims_common.check`:FutureWarning")

SEEDS = torch.tensor([0, 2**40, -3])
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DRAWS = {
    "keys": lambda key, n: (random.fold_in(key, n), random.fold_in(key, -n),
        random.fold_in(key, key), random.draw(random.draw(random.stream(key))[1])),
    "uniform": lambda key, n: [random.uniform(key, (n,), dtype) for dtype in DTYPES],
    "normal": lambda key, n: [*(random.normal(key, (n,), dtype) for dtype in DTYPES),
        random.normal(key, (n, 2), torch.float64)],
    "permutation": lambda key, n: random.permutation(key, n),
    "permutations": lambda key, n: random.permutation(key, n, rows=n),
    # a key that the compiler knows
    "constant": lambda key, n: (key + 1, random.permutation(random.key(0), n, rows=n)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def compiled(function):
    return torch.compile(function, fullgraph=True)


def expect_close(got, expected, rtol):
    for x, y in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert x.dtype == y.dtype
        # bits of keys, orders and uniform numbers; a compiled erfinv is another polynomial
        torch.testing.assert_close(x, y, rtol=rtol if x.is_floating_point() else 0, atol=0)


CASES = [f"{name} {n} {how}" for name in DRAWS for n in (1, 2, 3, 33) for how in ("alone", "vmap")]
# the first three failed: a loop that ended early, an index out of bounds, a wrong order
FEW = ("permutations 3 alone", "permutations 2 vmap", "constant 2 alone", "normal 3 vmap")


@pytest.mark.parametrize("case", few(CASES, lambda case: case in FEW))
def test_random_numbers_are_the_same_in_generated_code(case):
    name, length, how = case.split()
    n = int(length)

    def draw(seed):
        return DRAWS[name](random.key(seed), n)

    seeds = SEEDS
    draw, seeds = (vmap(draw), seeds) if how == "vmap" else (draw, seeds[1])
    expect_close(compiled(draw)(seeds), draw(seeds), rtol=1e-12)


def weigh_by_all(rules, tasks, batch=None):
    """One function of all rules, two updates each, and its arguments: a compilation for all."""
    made = {name: RULES[name].make() for name in rules}
    G = torch.stack([gramian("gaussian", tasks, seed) for seed in range(batch or 1)])
    losses = 1 + torch.arange(tasks * len(G), dtype=torch.float64).reshape(len(G), tasks) / 7
    present, preference = torch.ones(tasks, dtype=torch.bool), torch.full((tasks,), 1 / tasks)

    def update(G, losses, states):
        found = {}
        for name, rule in made.items():
            geometry = Geometry(losses, G, preference.to(G), present, {})
            first, state = rule.update(geometry, states[name])
            found[name] = first, rule.update(geometry._replace(losses=0.9 * losses), state)
        return found

    def init(losses, key):
        return {name: rule.init(losses, key) for name, rule in made.items()}

    if batch is None:
        return update, (G[0], losses[0], init(losses[0], random.key(3)))
    return vmap(update), (G, losses, vmap(init)(losses, torch.arange(batch)))


def expect_same_weights(rules, tasks, batch=None):
    update, given = weigh_by_all(rules, tasks, batch)
    got, expected = compiled(update)(*given), update(*given)
    for name in rules:
        leaves = ([x.double() for x in tree_leaves(each[name])] for each in (got, expected))
        for x, y in zip(*leaves, strict=True):
            scale = float(y.abs().max()) if y.numel() else 0.0
            error = float((x - y).abs().max()) if y.numel() else 0.0
            assert error <= RULES[name].accuracy * scale, (name, x, y)


# code of thirty unrolled iterations takes minutes to compile; cvx refuses
COMPILED = [rule for rule in RULES if not any(x in rule for x in ("cvx", "frank", "projected"))]
RULE_CASES = [
    f"{rule}, {tasks}, {how}"
    for how in ("alone", "vmap")
    for rule in COMPILED
    for tasks in (1, 2, 3, 5)
]
FEW_RULES = ("mgda, 2, alone", "gradnorm, 2, vmap", "famo-full-batch, 2, alone")


def test_every_rule_is_compiled():
    names = {re.split("[-+]", rule)[0] for rule in COMPILED}
    assert {*mf.rules.__all__} - {"aggregate", "weights"} <= names


@pytest.mark.parametrize("case", few(RULE_CASES, lambda case: case in FEW_RULES))
def test_a_rule_gives_the_same_weights_in_generated_code(case):
    rule, tasks, how = case.split(", ")
    expect_same_weights([rule], int(tasks), batch=3 if how == "vmap" else None)


@pytest.mark.parametrize("tasks", few([1, 2, 3, 5], lambda tasks: tasks == 2))
def test_random_orders_are_the_same_in_generated_code_under_vmap(tasks):
    expect_same_weights(["pcgrad", "gradvac", "rlw"], tasks, batch=3)


@pytest.mark.parametrize("tasks", few([1, 2, 3, 5], lambda tasks: tasks == 2))
def test_a_step_of_gradient_surgery_compiles(tasks):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)

    def losses(params, x):
        return (x @ params["w"] - torch.arange(tasks)).square().mean(0)

    step = mf.descend(losses, mf.pcgrad(), mf.jacobian(), mf.sgd(0.1))
    params = {"w": torch.linspace(-1, 2, 3 * tasks, dtype=torch.float64).reshape(3, tasks)}
    state = step.init(params, x, key=3)
    expect_close(compiled(step.update)(state, x), step.update(state, x), rtol=1e-9)
