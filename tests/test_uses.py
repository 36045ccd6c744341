"""Operations that read a leaf, alone and in random programs: layerwise as a literal loop."""

import ast
import random
import re
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import mtlfunc as mf
from mtlfunc.gradients.layerwise import nodes
from tests.support import ROOT
from tests.support.every import few
from tests.support.oracles import literal
from tests.support.programs import AWAY, F64, READS, Program, close, draws

draw = draws(0)
N, A, O = 4, 40, 30  # many inputs, so that pairs of positions are cheaper than rows


def _both_ways(p, x):
    hidden = torch.addmm(p["b"], x, p["w"]).tanh()
    return torch.addmm(p["b"], hidden, p["w"].T).tanh().square().sum(1)


BIASES = {
    "products with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], alpha=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "bias with a factor": (
        lambda p, x: torch.addmm(p["b"], x, p["w"], beta=2).square().sum(1),
        {"b": draw(O), "w": draw(A, O)},
    ),
    "one bias of several products": (
        lambda p, x: torch.baddbmm(p["b"], x.expand(3, -1, -1), p["w"]).square().sum((0, 2)),
        {"b": draw(O), "w": draw(3, A, O)},
    ),
    "a weight and its transpose": (_both_ways, {"b": draw(A), "w": 0.1 * draw(A, A)}),
    "a bias by position": (
        lambda p, x: torch.addmm(p["b"], x, p["w"]).view(2, 2, O).square().sum((1, 2)),
        {"b": draw(N, O), "w": draw(A, O)},
    ),
    "a number that no axis of a layer counts": (
        lambda p, x: (F.linear(x, p["w"]) * p["b"]).square().sum(1),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a number in a mean": (
        lambda p, x: F.linear(x, p["w"]).square().sum(1) * p["b"].exp(),
        {"b": draw(), "w": draw(O, A)},
    ),
    "a mask of bytes": (
        lambda p, x: (x @ p["w"])[:, :5] @ p["b"][torch.ones(5, dtype=torch.uint8)].sum(1),
        {"b": draw(5, 3), "w": draw(A, O)},
    ),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", BIASES)
def test_a_leaf_and_the_products_that_it_is_added_to(name):
    losses, params = BIASES[name]
    rows = literal(losses, params, X)
    close(mf.sample_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)
    close(mf.sample_norms(losses, params, X, engine="layerwise")[1], rows.norm(dim=1))
    close(mf.task_gramian(losses, params, X, engine="layerwise")[1], rows @ rows.mT)


X = draw(N, A)


class Trunk(nn.Module):
    """Two layers, of which the user calls each."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(A, 5, dtype=F64), nn.Linear(5, 2, dtype=F64)


def test_a_hook_of_another_thread_is_seen(monkeypatch):
    """It changes what a layer hands on, which its deltas do not show."""
    found = []
    for apart in (False, True):
        net = Trunk()
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("*", engine="layerwise"))
        hidden = net.first(X)
        hidden.grad_fn.register_hook(lambda xs, _: tuple(x if x is None else 3 * x for x in xs))
        losses = tuple(net.last(hidden.tanh()).square().mean(0))

        def backward(balancer=balancer, losses=losses):
            found.append(balancer.backward(losses).gramian)

        if apart:
            thread = threading.Thread(target=backward)
            thread.start()
            thread.join()
        else:
            backward()
    close(found[1], found[0])


def _flat(leaves):
    return torch.cat([leaf.flatten() for leaf in leaves])


def check(program):
    """How many answers were compared: samples may be refused where axes are of one length."""
    params, x, checked = program.leaves, program.x, 0
    rows, tasks = (literal(losses, params, x) for losses in (program.samples, program.tasks))
    weightings = draws(1)(2, len(x))
    ask = {"params": params, "batch": x, "engine": "layerwise"}
    for losses in (program.tasks, lambda p, x: tuple(program.tasks(p, x))):
        close(mf.task_gramian(losses, **ask)[1], tasks @ tasks.mT, 1e-8)
        checked += 1
    by_sample = {
        lambda: mf.sample_gramian(program.samples, **ask)[1]: rows @ rows.mT,
        lambda: mf.sample_norms(program.samples, **ask)[1]: rows.norm(dim=1),
        lambda: mf.task_gramian(program.samples, **ask)[1]: rows @ rows.mT,
        lambda: mf.task_gramian(program.samples, **ask, weightings=weightings)[1]: (
            weightings @ rows @ rows.mT @ weightings.mT
        ),
    }
    for answer, expected in by_sample.items():
        try:
            got = answer()
        except ValueError as error:
            if "samples mix" not in str(error):
                raise
            continue
        close(got, expected, 1e-8)
        checked += 1
    return checked


def check_steps(program):
    """Balanced gradients of functions and of losses that exist, vmap, and gradients of Gramians."""
    params, x = program.leaves, program.x
    rule = mf.cagrad(0.4)

    def balanced(engine):
        step = mf.balance(program.tasks, rule, mf.jacobian(engine=engine))
        return _flat(step.update(params, x, step.init(params, x, key=0))[0].values())

    def live(engine, separate):
        module = nn.ParameterDict({name: nn.Parameter(leaf) for name, leaf in params.items()})
        balancer = mf.Balancer(module, rule, mf.jacobian(engine=engine))
        losses = program.tasks(module, x)
        balancer.backward(tuple(losses) if separate else losses)
        return _flat(leaf.grad for leaf in module.values())

    def hypergradient(engine):
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        gramian = mf.task_gramian(program.tasks, leaves, x, engine=engine)[1]
        value = (gramian * draws(2)(3, 3)).sum()
        first = torch.autograd.grad(value, [*leaves.values()], create_graph=True)
        return _flat(torch.autograd.grad(_flat(first).square().sum(), [*leaves.values()]))

    def scaled(engine):
        def gramian(scale):
            scaled = {name: scale * leaf for name, leaf in params.items()}
            return mf.task_gramian(program.tasks, scaled, x, engine=engine)[1]

        return vmap(gramian)(torch.tensor([1.0, 0.7], dtype=F64))

    expected = balanced("rows")
    close(balanced("layerwise"), expected, 1e-6)
    for separate in (False, True):
        close(live("layerwise", separate), expected, 1e-6)
    close(scaled("layerwise"), scaled("rows"), 1e-8)
    close(hypergradient("layerwise"), hypergradient("rows"), 1e-6)


@pytest.mark.parametrize("name", READS)
def test_every_operation_alone(name):
    assert max([check(Program([READS[name]], samples, seed=3)) for samples in (4, 5)]) == 6


def drawn(seed):
    pick = random.Random(seed)
    reads = [READS[name] for name in pick.choices(sorted(READS), k=pick.randint(2, 4))]
    return Program(reads, pick.randint(1, 5), seed)


@pytest.mark.parametrize("seed", few([*range(8), *range(100, 200)], lambda seed: seed < 8))
def test_random_programs(seed):
    assert check(drawn(seed)) >= 2
    check_steps(drawn(seed))


def test_inputs_that_are_taken_away_between_layers():
    away = AWAY["saved elsewhere"]
    assert check(Program([READS["linear"], away, READS["right"]], 5, seed=0)) == 6


CURVATURES = {
    "hessian": hessian,
    "reverse twice": lambda u: jacrev(jacrev(u)),
    "forward twice": lambda u: jacfwd(jacfwd(u)),
    "forward over reverse, one direction": lambda u: (
        lambda x: jvp(grad(u), (x,), (torch.ones_like(x),))[1].diag()
    ),
}


@pytest.mark.parametrize("way", CURVATURES)
def test_derivatives_by_transforms_read_weights_and_biases(way):
    """Forward mode multiplies a linear layer's bias by 1."""
    params = {"w": draw(A, 2), "b": draw(A), "v": draw(O, A), "c": draw(O), "last": draw(1, O)}

    def u(params, x):
        hidden = F.linear(x, params["w"], params["b"]).tanh()
        return (F.linear(hidden, params["v"], params["c"]).tanh() @ params["last"].mT).sum()

    def residuals(params, x):
        return vmap(CURVATURES[way](partial(u, params)))(x).diagonal(dim1=1, dim2=2).sum(1)

    x = draw(N, 2)
    told = mf.explain_gramian(residuals, params, x, samples=True)
    assert told.passes.startswith("1 backward pass(es)")
    assert all(layer.gflop for layer in told.layers)  # none by rows
    _, gramian = mf.sample_gramian(residuals, params, x)
    close(gramian, mf.sample_gramian(residuals, params, x, engine="rows")[1])


def test_every_node_that_is_named_is_in_the_one_table():
    """Wherever the gradients name one; and torch has every node of the table."""
    made = set(dir(torch._C._functions))  # pyright: ignore[reportAttributeAccessIssue]
    named, parts = set[str](), {x.split("Backward")[0] for x in made}
    for path in (ROOT / "mtlfunc" / "gradients").rglob("*.py"):
        if path.name != "nodes.py":
            tree = ast.parse(path.read_text())
            texts = [x.value for x in ast.walk(tree) if type(x) is ast.Constant]
            named |= {y for x in texts if type(x) is str for y in re.findall(r"\w+Backward\d", x)}
            named |= {x for x in texts if x in parts}
    assert "StackBackward0" in named
    assert named <= nodes.NODES.keys()
    assert {x for x in nodes.NODES if "*" not in x and "::" not in x} <= made
    beginnings = {x for names in nodes.BEGINNINGS.values() for x in names}
    assert not {x for x in beginnings if not any(name.startswith(x) for name in made)}
