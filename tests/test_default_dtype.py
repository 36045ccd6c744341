"""Answers hang on no default dtype, and a trunk and its heads may have two: by autograd's loop."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import mtlfunc as mf
from mtlfunc import diagnostics, physics, solvers
from tests.support.every import every
from tests.support.oracles import rows_of
from tests.support.problems import BATCH, PARAMS, opaque
from tests.support.registry import PROBES, PROBLEMS, RULES, SOLVERS
from tests.support.rules import geometry

JACOBIANS = (
    [[1.0, 2.0, 0.5, 0.1], [-1.5, 1.0, 0.3, 0.7], [0.2, -2.0, 1.0, 3.0]],
    [[0.0, 0.0], [1.0, 0.3], [0.0, 0.0]],
    [[0.0, 0.0]] * 3,
    [[1.0, 1.0, 3.0], [-1.0, -1.0, -3.0], [0.3, 0.1, 0.2]],
)


def of_rule(name, dtype):
    rule, some = inspect.unwrap(RULES[name].make)(), torch.tensor([True, False, True])
    for J, absent in zip(JACOBIANS, (False, True, False, True), strict=True):
        present = some if absent and RULES[name].masks else some | True
        rows = torch.tensor(J, dtype=dtype) * present[:, None]
        told = geometry(rows @ rows.mT, (rows[:, 0].abs() + 1) * present)
        told = told._replace(present=present, preference=present.to(dtype) / present.sum())
        state = rule.init(told.losses + 1, mf.random.key(0))
        for _ in range(2):
            weights, state = rule.update(told, state)
            yield weights, state


def of_solver(name, dtype):
    for J in JACOBIANS:
        rows = torch.tensor(J, dtype=dtype)
        for problem in SOLVERS[name].problems:
            posed = PROBLEMS[problem](rows @ rows.mT)
            found = SOLVERS[name].make()(posed)
            yield found, solvers.certify(posed, found.weights)


def of_probe(make, dtype, rule=mf.mean):
    params, batch = (tree_map(lambda x: x.to(dtype), x) for x in (PARAMS, BATCH))
    batch = (batch, batch) if make is mf.double_sampling else batch
    step = mf.descend(opaque, rule(), make(), mf.adam(0.1))
    state = step.init(params, batch, key=0)
    for _ in range(2):
        state, info = step.update(state, batch)
        yield state, mf.log_dict(info)


def of_functions(_, dtype):
    entries, key = torch.arange(18, dtype=dtype), mf.random.key(0)
    params, x = {"w": entries[:6].sin().reshape(2, 3)}, entries[8:16].cos().reshape(4, 2)

    def u(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x @ p["w"]).sum(1)

    def halves(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
        return tuple(u(p, x).square().unflatten(0, (2, 2)).mean(1))

    for engine in ("rows", "layerwise"):
        yield mf.sample_norms(u, params, x, engine=engine)
        yield mf.task_gramian(u, params, x, engine=engine, weightings=x.mT / 3)
    yield mf.sample_gradients(u, params, x), mf.task_gradients(halves, params, x)
    G = mf.sample_gramian(lambda p, x: torch.tanh(x @ p["w"]).square(), params, x)[1]
    for one in (G, 0 * G):
        yield diagnostics.conflict(one, 3), diagnostics.running_conflict(None, one, 3)
        yield diagnostics.sample_noise(one, 3), diagnostics.noise_scale(one, tasks=3, size=7)
        yield diagnostics.cosines(one), diagnostics.stationarity(one)
    yield diagnostics.curvature(halves, params, x, lr=0.1)
    yield diagnostics.predicted_change(halves, params, {"w": params["w"] * 0.9}, x)
    yield diagnostics.delta_m({"a": 0.6}, {"a": 0.7}, {"a": True})
    yield physics.laplacian(u, params, x), physics.directional(u, params, x, x[0], 3)
    yield physics.line_search(lambda p, x: u(p, x).sum(), params, params, x, x[:, 0])
    probe = physics.kernel_traces([lambda p, x: u(p, x)[:2], u], mf.losses_only())
    step = mf.balance(halves, physics.ntk(), probe)
    yield step.update(params, x, step.init(params, x))[0]
    step = mf.descend(halves, physics.gauss_newton(0.1), mf.jacobian(), mf.sgd(0.3, 0.9))
    _, info = step.update(step.init(params, x), x)
    yield physics.newton_error(info, 0.1), mf.testing.jacobian("gaussian", 3, dtype=dtype)
    for draw in (mf.random.uniform, mf.random.normal):
        yield draw(key, (3,), dtype), draw(key, (3,)), mf.random.permutation(key, 5)
    rows, net = {"weight": entries[:12].reshape(3, 2, 2).sin()}, torch.nn.Linear(2, 2, bias=False)
    net.weight = torch.nn.Parameter(rows["weight"][0])
    optimizer = torch.optim.Muon([net.weight])
    yield mf.muon.nuclear(rows), mf.muon.gradients(optimizer, net, rows, weights=x[:3, 0])
    present = torch.tensor([True, False])
    losses = u({"w": net.weight}, x[:2]) * present
    yield mf.Balancer(net, mf.mgda()).backward(losses, present=present), net.weight.grad


MORE = {
    "subset": (lambda: mf.jacobian(mix=mf.subset(2)), mf.mgda),
    "graddrop": (lambda: mf.jacobian(mask=mf.graddrop(0.1)), mf.mean),
    "double_sampling": (mf.double_sampling, mf.modo),
    "moving_average": (mf.moving_average, mf.moco),
    "excess_risk": (mf.excess_risk, mf.excess_mtl),
    "second_evaluation": (lambda: mf.second_evaluation(mf.losses_only()), mf.famo),
}
CALLS = {
    **{f"rule {name}": (of_rule, name) for name in RULES if "cvx" not in name},
    **{f"solver {name}": (of_solver, name) for name in SOLVERS if name != "cvx"},
    **{f"probe {name}": (of_probe, case.make) for name, case in PROBES.items()},
    **{name: (of_probe, make, rule) for name, (make, rule) in MORE.items()},
    "functions": (of_functions, None),
}


@pytest.fixture
def defaults():
    """Sets one, and takes it back after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", CALLS)
def test_answers_hang_on_no_default_dtype(name, defaults):
    call, what, *rest = CALLS[name]
    for dtype, default in ((torch.float64, torch.bfloat16), (torch.float32, torch.float64)):
        answers = []
        for each in (torch.float32, default):
            defaults(each)
            answers.append(tree_leaves([*call(what, dtype, *rest)]))
        for one, other in zip(*answers, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


LOW, SINGLE = torch.bfloat16, torch.float32
X, MATRIX = torch.linspace(-1, 1, 64).reshape(16, 4), torch.linspace(0, 1, 48).reshape(3, 16)


class Net(nn.Module):
    def __init__(self, trunk, heads):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)).to(trunk)
        self.heads = nn.Linear(8, 3).to(heads)

    def forward(self, x):
        z = self.trunk(x.to(self.trunk[0].weight.dtype))
        return self.heads(z.to(self.heads.weight.dtype)).square()


@every("dtypes", [(LOW, SINGLE), (SINGLE, LOW), (SINGLE, torch.float16)])
@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("shared", ["trunk.*", "*"])
def test_every_gradient_has_its_parameters_dtype(shared, engine, dtypes):
    net, matrix = Net(*dtypes), MATRIX.to(dtypes[1])
    named = {n: p for n, p in net.named_parameters() if shared == "*" or n.startswith("trunk")}
    means = net(X).mean(0)
    for losses, known, given in (
        (net(X).mean(0), means, {}),
        ([*net(X).mean(0)], means, {}),
        ([lambda t=t: net(X)[:, t].mean() for t in range(3)], means, {}),
        (net(X).sum(1), matrix @ net(X).sum(1), {"weightings": matrix}),
    ):
        rows = rows_of([*known], named.values()).double()
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian(shared, engine=engine))
        info = balancer.backward(losses, **given)  # pyright: ignore
        assert info.gramian.dtype == SINGLE
        # the two graphs round alike, but for sums in another order
        slack, gramian = 16 * max(torch.finfo(x).eps for x in dtypes), rows @ rows.mT
        assert (info.gramian.double() - gramian).abs().max() <= slack * gramian.diagonal().max()
        found = torch.cat([p.grad.double().flatten() for p in named.values()])  # pyright: ignore
        assert (found - info.weights.double() @ rows).abs().max() <= slack * rows.abs().max()
        assert all(p.grad.dtype == p.dtype for p in net.parameters())  # pyright: ignore
        net.zero_grad()


def test_float64_next_to_others_is_refused():
    with pytest.raises(ValueError, match=r"^params: 'trunk.0.weight' is .* to one dtype"):
        mf.Balancer(Net(SINGLE, torch.float64), mf.mgda())
