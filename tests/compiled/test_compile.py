"""torch.compile without graph breaks: vmapped steps, derivatives through them, the graph's size."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

import mtlfunc as mf
from tests.support.every import few
from tests.support.families import gramian
from tests.support.labels import MASKS, given, labelled
from tests.support.operations import DOUBLE
from tests.support.operations.losses import Losses, literal, stacked
from tests.support.oracles import same
from tests.support.problems import BATCH, PARAMS, named, net, nets, opaque
from tests.support.registry import RULES
from tests.support.rules import geometry
from tests.support.steps import METHODS, parts

# "aot_eager" traces, differentiates and functionalises as the default backend does, without
# generating code; the default is used where marked.
TRACED = {"fullgraph": True, "backend": "aot_eager"}
# Traces alone, for a third of the time: where another case hands the same operations on.
CAPTURED = {"fullgraph": True, "backend": "eager"}
KEY = mf.random.key(3)
HOW = pytest.mark.parametrize(
    "how",
    [CAPTURED, pytest.param(TRACED, marks=pytest.mark.exhaustive)],
    ids=["captured", "traced"],
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    # A second step must not compile again: what init returns looks, to the compiler, like what
    # update returns.
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def shared_as(which):
    return opaque, mf.mgda(), mf.jacobian(which), BATCH


LABELLED = (*BATCH, MASKS[0])
STEPS = {  # losses, rule, probe, batch
    **{x: lambda x=x: (opaque, *parts(x)) for x in METHODS},
    **{x: lambda x=x: (opaque, *parts(x)) for x in ("modo, three batches", "db_mtl", "excess_mtl")},
    "shared as a module": lambda: shared_as(net.trunk),
    "shared as parameters": lambda: shared_as([*net.trunk.parameters()]),
    "shared as globs": lambda: shared_as(["trunk.0.*", "trunk.2.*"]),
    "present, losses only": lambda: (
        labelled, mf.mean(), mf.losses_only(present=given), LABELLED),
    "present, tracked": lambda: (
        labelled, mf.moco(), mf.moving_average("trunk.*", present=given), LABELLED),
}  # fmt: skip


@HOW
@pytest.mark.parametrize("name", few(STEPS, lambda name: name in ("mgda-ub", "present, tracked")))
def test_vmapped_step_traces_as_one_graph(name, how):
    losses, rule, probe, batch = STEPS[name]()
    step = mf.descend(losses, rule, probe, mf.adam(0.02))
    everyone = (*batch[:2], MASKS[2]) if "present" in name else batch
    mf.parameters(net)  # whose parameters the choices are: stacked ones share their names
    state = vmap(lambda p, seed: step.init(p, everyone, key=seed))(mf.stack(nets), torch.arange(3))
    update = vmap(step.update, (0, None))
    compiled, expected, got = torch.compile(update, **how), (state,), (state,)
    for _ in range(2):
        expected, got = update(expected[0], batch), compiled(got[0], batch)
    same(got, expected, 1e-9, 1e-12)


@pytest.mark.parametrize("width", few([3, 100], lambda width: width == 3))
def test_rows_in_half_precision_are_one_graph(width):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2 * width)).bfloat16()
    x = torch.randn(8, 4, dtype=torch.bfloat16)

    def losses(params, x):
        return functional_call(net, params, (x,)).float().square().view(8, 2, -1).mean((0, 2))

    step = mf.balance(losses, mf.mgda(), mf.jacobian())
    params = mf.parameters(net)
    state = step.init(params, x)
    expected = step.update(params, x, state)
    same(torch.compile(step.update, **CAPTURED)(params, x, state), expected, 1e-9, 1e-12)
    assert expected[2].gramian.dtype == torch.float32


def together(names, join=torch.stack):
    """A rule that joins the weights of all these: one compilation for all."""
    made = [RULES[name].make() for name in names]

    def update(geometry, states):
        weights, states = zip(*map(lambda r, s: r.update(geometry, s), made, states), strict=True)
        return join(weights), states

    return mf.Rule(lambda losses, key: tuple(r.init(losses, key) for r in made), update)


SEVERAL = ("mgda", "pcgrad", "conicgrad")


@HOW
@pytest.mark.parametrize(
    "rules",
    few([SEVERAL, *((name,) for name in RULES if "cvx" not in name)], lambda names: len(names) > 1),
    ids=" ".join,
)
def test_a_step_with_the_rules_is_one_graph(rules, how):
    """Of one training state: a break would come while the pullback of the losses is alive."""
    rule = together(rules, lambda weights: torch.stack(weights).mean(0))
    step = mf.descend(opaque, rule, mf.jacobian("trunk.*"), mf.adam(0.02))
    state = step.init(PARAMS, BATCH, key=mf.random.key(3))
    compiled = torch.compile(step.update, **how)
    for _ in range(2):
        expected, following = step.update(state, BATCH), compiled(state, BATCH)
        same(following, expected, 1e-9, 1e-12)
        state = expected[0]


ITERATE = ("cvx", "frank", "projected", "1+")
# a rule's variants ("rule-variant") are made of operations that others hand on to be
# differentiated and functionalised; nash_mtl stands for all that iterate
ALONE = [name for name in RULES if not any(words in name for words in ITERATE)]
MANY = [name for name in ALONE if "-" not in name and name not in ("conicgrad", "fairgrad")]
CASES = [(MANY, CAPTURED)]
CASES += [([x], by) for x in ALONE for by in (CAPTURED, TRACED) if by is CAPTURED or "-" not in x]


def said(case):
    names, how = case
    return f"{names[0] if len(names) == 1 else 'many'}, {how['backend']}"


@pytest.mark.parametrize("case", few(CASES, lambda case: case[0] is MANY), ids=said)
def test_vmapped_rules_trace_as_one_graph(case):
    """Two updates of a batch of Gramians in a row, without a second compilation."""
    rules, how = case
    made = together(rules)
    G = torch.stack([gramian("gaussian", 3, seed) for seed in range(2)])
    losses = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.5, 0.5]], dtype=torch.float64)
    state = vmap(made.init)(losses, torch.arange(2))
    batched = vmap(lambda G, losses, state: made.update(geometry(G, losses), state))
    compiled = torch.compile(batched, **how)
    for _ in range(2):
        expected, following = batched(G, losses, state)
        same(compiled(G, losses, state), (expected, following), 1e-9, 1e-12)
        state, losses = following, losses * 0.9


@pytest.mark.exhaustive
def test_vmapped_step_compiles():
    """The default backend, with code generated, ten steps from three starts."""
    step = mf.descend(opaque, mf.cagrad(0.5), mf.jacobian(), mf.adam(1e-3))
    state = vmap(lambda p: step.init(p, BATCH))(mf.stack(nets))
    update = vmap(step.update, (0, None))
    compiled = torch.compile(update, fullgraph=True)
    expected, got = state, state
    for _ in range(10):
        expected, info = update(expected, BATCH)
        got, compiled_info = compiled(got, BATCH)
        same((got.params, compiled_info), (expected.params, info), 1e-9, 1e-12)


@HOW
def test_gradient_of_a_compiled_run_with_respect_to_c(how):
    def end(c):
        step = mf.descend(opaque, mf.cagrad(c), mf.jacobian("trunk.*"), mf.sgd(0.05))
        return opaque(step.update(step.init(PARAMS, BATCH), BATCH)[0].params, BATCH).sum()

    c = torch.tensor(0.4, dtype=torch.float64)
    same(torch.compile(grad(end), **how)(c), grad(end)(c), 1e-9, 1e-12)


@pytest.mark.parametrize("engine", few(["auto", "layerwise"], lambda name: name == "layerwise"))
def test_gramian_of_a_normalised_network_and_its_hypergradient(engine):
    """Batched backwards of a fused layer norm are wrong when they are differentiated again."""
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    params, x = mf.parameters(net), torch.linspace(-1, 2, 20, dtype=torch.float64).reshape(5, 4)

    def squared(scale):
        def losses(p, b):
            return functional_call(net, p, b * scale).square().mean(0)

        return mf.task_gramian(losses, params, x, engine=engine)[1].square().sum()

    at = torch.tensor(1.3, dtype=torch.float64)
    slope, value = torch.compile(grad_and_value(squared), **TRACED)(at)
    same(value, squared(at), 1e-9, 1e-12)
    same(slope, (squared(at + 1e-5) - squared(at - 1e-5)) / 2e-5, 1e-6, 1e-12)


@HOW
def test_named_tasks_trace_as_one_graph(how):
    """A dict of losses in another order than at init; names are structure, no graph breaks."""

    def backwards(params, batch):
        return dict(reversed(named(params, batch).items()))

    start = mf.descend(named, mf.gradnorm(0.5), mf.jacobian("trunk.*"), mf.sgd(0.02))
    step = mf.descend(backwards, mf.gradnorm(0.5), mf.jacobian("trunk.*"), mf.sgd(0.02))
    state = vmap(lambda p: start.init(p, BATCH))(mf.stack(nets))
    update = vmap(step.update, (0, None))
    compiled = torch.compile(update, **how)
    got, _ = compiled(state, BATCH)
    expected, _ = update(state, BATCH)
    got, info = compiled(got, BATCH)
    expected, plain = update(expected, BATCH)
    same((got, info), (expected, plain), 1e-9, 1e-12)
    assert tuple(info.tasks) == ("task 0", "task 1", "task 2")


@HOW
def test_a_whole_run_with_its_init_traces_as_one_graph(how):
    def run(params):
        step = mf.descend(named, mf.mgda(mf.solvers.faces()), mf.jacobian("trunk.*"), mf.sgd(0.02))
        return step.update(step.init(params, BATCH), BATCH)[0].params

    same(torch.compile(run, **how)(PARAMS), run(PARAMS), 1e-9, 1e-12)


# How large a graph is: what a rule adds to it, and what it does not.
def graph_of(rule: mf.Rule) -> Counter[str]:
    """What the graph of one update calls, of three tasks."""
    losses, calls = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), Counter[str]()
    given = geometry(gramian("gaussian", 3), losses)

    def counting(graph, inputs):
        calls.update(str(node.target) for node in graph.graph.nodes if "call" in node.op)
        return graph.forward

    torch.compiler.reset()
    torch.compile(rule.update, fullgraph=True, backend=counting)(given, rule.init(losses, KEY))
    return calls


def test_a_random_order_is_no_sort():
    """Which not every Triton can fuse with the numbers that are sorted."""
    for rule in (mf.pcgrad(), mf.gradvac(0.3)):
        calls = graph_of(rule)
        assert any("scatter" in name for name in calls)
        assert not any("sort" in name for name in calls)


def test_exact_weights_are_one_operator_of_the_graph():
    """Less than half of what the formulas of every face come to."""
    rules = mf.mean(), mf.cagrad(0.5), mf.cagrad(0.5, solver=mf.solvers.faces())
    mean, exact, formulas = map(graph_of, rules)
    assert [sum("active_set" in name for name in calls) for calls in (mean, exact)] == [0, 1]
    added = exact.total() - mean.total()
    assert added > 0
    assert 2 * added < formulas.total() - mean.total()


# Operations that torch differentiates wrongly: hypergradients of two networks.
OPERATIONS = (
    "layer_norm native", "batch_norm F", "instance_norm F", "prelu channels", "attention", "cdist",
    "cholesky_inverse upper", "weight_norm",
)  # fmt: skip
SOME = ("layer_norm native", "cdist", "cholesky_inverse upper")  # one of a kind


@pytest.mark.parametrize("transform", few(["grad of vmap", "vmap of grad"], lambda t: t[0] == "g"))
@pytest.mark.parametrize(
    "names",
    few([SOME, OPERATIONS[:4], OPERATIONS[4:]], lambda names: names == SOME),
    ids=lambda names: f"{names[0]}…{names[-1]}",
)
def test_compiled_hypergradients(names, transform):
    losses, u = Losses(names, 2), torch.tensor(0.2, dtype=DOUBLE)
    at = torch.full((len(names),), 0.3, dtype=DOUBLE)
    networks = [losses.params(i) for i in range(2)]
    every = stacked(networks)

    def parts(params, s):
        return losses.parts(mf.task_gradients(losses, params, (s, u))[1])

    def slopes(params):
        return grad(lambda s: parts(params, s).sum())(at)

    def together(s):
        return vmap(lambda params: parts(params, s))(every).sum()

    h = 1e-3
    a, b, d, e = (
        torch.stack([losses.parts(literal(losses, one, (at + k * h, u))) for one in networks])
        for k in (-2, -1, 1, 2)
    )
    expected = (8 * (d - b) - (e - a)) / (12 * h)
    close: dict[str, Any] = {"rtol": 2e-6, "atol": 1e-9}
    if transform == "vmap of grad":
        torch.testing.assert_close(torch.compile(vmap(slopes), **TRACED)(every), expected, **close)
    else:
        found = torch.compile(grad(together), **TRACED)(at)
        torch.testing.assert_close(found, expected.sum(0), **close)
