"""The metric of an optimizer against the steps that it takes, and against plain rows."""

import copy
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from mtlfunc.core import optim
from mtlfunc.training._metric import metric_of
from mtlfunc.types import Metric, Optimizer
from tests.support.every import few
from tests.support.loops import rollout
from tests.support.oracles import F64, check_slope, literal_metric, near
from tests.support.problems import BATCH, PARAMS, TASKS, TRUNK, TrunkAndHeads, flatten, literal_rows
from tests.support.problems import scalars as losses_of

# every parameter is shared in some tests, so that rates are those of the whole step
pytestmark = pytest.mark.filterwarnings("ignore:shared. only one task depends")
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p),
    "sgd momentum": lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd nesterov": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p),
    "adam betas": lambda p: torch.optim.Adam(p, betas=(0.0, 0.99), eps=1e-3),
    "adam amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "adam tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, weight_decay=0.1),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.8),
}


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    """Two learning rates in the trunk, a third one for the heads."""
    rates = {"trunk.0": 1e-2, "trunk.2": 3e-3, "heads": 1e-3}
    return [
        {"params": [x for name, x in net.named_parameters() if name.startswith(part)], "lr": rate}
        for part, rate in rates.items()
    ]


def losses_at(net: nn.Module, batch: Any) -> list[torch.Tensor]:
    x, y = batch
    return [(out - y[:, task]).square().mean() for task, out in enumerate(net(x))]


def batch_of(step: int) -> Any:
    generator = torch.Generator().manual_seed(step)
    return tuple(x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in BATCH)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gramian_and_rates_in_the_metric_at_ten_steps(name):
    """G = J P Jᵀ with rows by torch.autograd.grad; for SGD the rates are those of the real step."""
    net = TrunkAndHeads(0)
    optimizer = OPTIMIZERS[name](groups_of(net))
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*", metric=optimizer)
    leaves = dict(net.named_parameters())
    for step in range(10):
        batch = batch_of(step)
        params = {key: leaf.detach().clone() for key, leaf in leaves.items()}
        _, rows = literal_rows(params, batch, TRUNK)
        scale = flatten({key: literal_metric(optimizer, leaves[key]) for key in TRUNK})
        carried = flatten(metric_of(optimizer, dict(leaves.items()), TRUNK).carried)
        info = balancer.backward(losses_at(net, batch))
        known = (rows * scale) @ rows.mT
        case = f"{name}, step {step}"
        size = float(known.abs().max())
        near(info.gramian, known, 0, 1e-8 * size, msg=case)
        near(info.rates, known @ info.weights + rows @ carried, 0, 1e-8 * size, msg=case)
        near(info.weights, mf.weights(mf.mgda(), known), 1e-6, 1e-8, msg=case)
        optimizer.step()
        if name.startswith("sgd"):
            moved = flatten({key: leaves[key].detach() - params[key] for key in TRUNK})
            near(info.rates, -rows @ moved, 1e-8, 1e-10, msg=case)
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_real_step_is_the_predicted_where_the_mean_of_squares_stands_still(name):
    """A gradient of ±√v̂ in every coordinate leaves v̂ as it is: then the step is -(c + P·g)."""
    generator = torch.Generator().manual_seed(0)
    leaf = nn.Parameter(torch.randn(40, generator=generator, dtype=F64))
    optimizer = OPTIMIZERS[name]([{"params": [leaf], "lr": 1e-2}])
    for _ in range(7):
        leaf.grad = torch.randn(40, generator=generator, dtype=F64)
        optimizer.step()
    group, state = optimizer.param_groups[0], optimizer.state[leaf]
    g = torch.randn(40, generator=generator, dtype=F64)
    if "square_avg" in state:
        g = g.sign() * state["square_avg"].sqrt()
        if group["centered"]:  # of which the mean must stand still, too: its square is all there is
            state["grad_avg"], state["square_avg"] = g.clone(), 2 * g.square()
            group["alpha"] = 1.0
    elif "exp_avg_sq" in state:
        t = float(state["step"])
        if group.get("amsgrad"):
            # the largest so far, larger than what comes, whose correction would still move
            state["max_exp_avg_sq"] = 100 * state["exp_avg_sq"]
            state["step"] += 1e6
            t = float(state["step"])
        else:
            g = g.sign() * (state["exp_avg_sq"] / (1 - group["betas"][1] ** t)).sqrt()
    if name != "adamw":
        g = g - group["weight_decay"] * leaf.detach()
    leaf.grad = None
    scale, carried = metric_of(optimizer, {"x": leaf}, ("x",))
    before = leaf.detach().clone()
    leaf.grad = g
    optimizer.step()
    near(leaf.detach() - before, -(carried["x"] + scale["x"] * g), 1e-9, 1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("before", [0.0, 0.9])
@pytest.mark.parametrize("damped", [{"dampening": 0.3}, {"nesterov": True}])
def test_momentum_that_a_schedule_sets(momentum, before, damped):
    """SGD's real step, whatever the momentum was when its buffer was made."""
    generator = torch.Generator().manual_seed(0)
    leaf = nn.Parameter(torch.randn(6, generator=generator, dtype=F64))
    optimizer = torch.optim.SGD([leaf], lr=0.1, momentum=0.9, weight_decay=0.2, **damped)
    optimizer.param_groups[0]["momentum"] = before
    for _ in range(3):
        leaf.grad = torch.randn(6, generator=generator, dtype=F64)
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = momentum
    leaf.grad = None
    metric = metric_of(optimizer, {"x": leaf}, ("x",))
    start, leaf.grad = leaf.detach().clone(), torch.randn(6, generator=generator, dtype=F64)
    expected = metric.carried["x"] + metric.scale["x"] * leaf.grad
    optimizer.step()
    near(start - leaf.detach(), expected, 1e-12, 1e-14)


def test_pure_optimizers_are_those_of_torch():
    """Their steps and what they say of them; a coordinate has no gradient at first."""
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (optim.adam(1e-2), lambda p: torch.optim.Adam(p, lr=1e-2)),
        (optim.adam(1e-2, (0.0, 0.9), 1e-3), lambda p: torch.optim.Adam(p, 1e-2, (0.0, 0.9), 1e-3)),
        (optim.sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (optim.sgd(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, 0.8)),
    ]
    for ours, make in pairs:
        leaf = nn.Parameter(torch.randn(6, generator=generator, dtype=F64))
        params = {"x": leaf.detach().clone()}
        optimizer, state = make([leaf]), ours.init(params)
        for step in range(10):
            assert ours.scales is not None
            leaf.grad = None
            near(ours.scales(state, params), metric_of(optimizer, {"x": leaf}, ("x",))[:2])
            leaf.grad = torch.randn(6, generator=generator, dtype=F64)
            leaf.grad[2] *= step > 3
            params, state = ours.update({"x": leaf.grad.clone()}, state, params)
            optimizer.step()
            near(params["x"], leaf.detach(), 1e-10, 1e-13)


def test_a_coordinate_without_gradient_so_far_does_not_count():
    leaf = nn.Parameter(torch.ones(2, dtype=F64))
    for make in (torch.optim.AdamW, torch.optim.RMSprop):
        optimizer = make([leaf], lr=0.1)
        leaf.grad = torch.tensor([1.0, 0.0], dtype=F64)
        optimizer.step()
        leaf.grad = None
        scale, carried = metric_of(optimizer, {"x": leaf}, ("x",))
        assert scale["x"][0] > 0
        assert scale["x"][1] == carried["x"][1] == 0, make.__name__


def fixed(scale: dict[str, torch.Tensor], carried: dict[str, torch.Tensor]) -> Optimizer:
    """An optimizer whose step is -(c + P·g) for ever."""

    def update(grads, state, params):
        return {n: params[n] - carried[n] - scale[n] * grads[n] for n in params}, ()

    return Optimizer(lambda params: (), update, lambda state, params: (scale, carried))


generator = torch.Generator().manual_seed(3)
SCALE = {
    n: 10 ** (torch.rand(x.shape, generator=generator).double() - 2) for n, x in PARAMS.items()
}
CARRIED = {n: 1e-2 * torch.randn(x.shape, generator=generator).double() for n, x in PARAMS.items()}


def in_units(params: Any, batch: Any) -> Any:
    """The losses in coordinates φ = θ/√P, in which the metric is the identity."""
    return losses_of({n: SCALE[n].sqrt() * x for n, x in params.items()}, batch)


UNITS = {n: x / SCALE[n].sqrt() for n, x in PARAMS.items()}


@pytest.mark.parametrize(
    "probe",
    [
        mf.jacobian("trunk.*"), mf.jacobian("trunk.*", engine="rows", chunk_size=1),
        mf.jacobian("trunk.*", mix=mf.subset(2)), mf.second_evaluation(mf.jacobian("trunk.*")),
        mf.jacobian("trunk.*", present=lambda batch: torch.tensor([True, False, True])),
        mf.moving_average("trunk.*", rate=0.5), mf.excess_risk("trunk.*", heads="plain"),
        mf.double_sampling("trunk.*"),
    ],
)  # fmt: skip
def test_every_probe_measures_as_in_coordinates_where_the_metric_is_the_identity(probe):
    twice = "cross_gramian" in probe.measures
    rule, batch = (mf.modo(), (BATCH, batch_of(1))) if twice else (mf.cagrad(0.4), BATCH)
    step = mf.descend(losses_of, rule, probe, fixed(SCALE, CARRIED), metric=True)
    plain = mf.balance(in_units, rule, probe)
    _, info = step.update(step.init(PARAMS, batch), batch)
    _, _, known = plain.update(UNITS, batch, plain.init(UNITS, batch))
    near(info.gramian, known.gramian)
    near(info.weights, known.weights)
    if twice:
        rows = [literal_rows(PARAMS, one, TRUNK)[1] for one in batch]
        carried = 0.5 * (rows[0] + rows[1]) @ flatten(CARRIED, TRUNK)
        near(info.rates, known.gramian @ info.weights + carried)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("present", [None, torch.tensor([True, False, True])])
def test_rates_are_the_falls_of_the_real_step(reduction, present):
    """Of SGD with momentum, all parameters shared, whether the step is of the mean or the sum."""
    given = None if present is None else lambda batch: present
    for rule in (mf.mean(), mf.safe(mf.mgda())):
        step = mf.descend(
            losses_of, rule, mf.jacobian(present=given), optim.sgd(1e-2, 0.9),
            reduction=reduction, metric=True,
        )  # fmt: skip
        state = step.init(PARAMS, BATCH)
        for i in range(4):
            batch = batch_of(i)
            after, info = step.update(state, batch)
            change = mf.diagnostics.predicted_change(losses_of, state.params, after.params, batch)
            kept = torch.ones(TASKS, dtype=torch.bool) if present is None else present
            near(info.rates, -change.predicted.where(kept, 0.0), 1e-8, 1e-10)
            if rule.update.__qualname__.startswith("safe"):
                assert info.rates.min() > -1e-9 * info.rates.abs().max()
            state = after


def test_a_step_of_the_sum_is_one_of_the_mean_at_a_longer_rate():
    """With what momentum carries along, where `safe` turns the step."""
    params, losses = conflicting(0)
    given, turned = (losses, mf.safe(mf.mgda()), mf.jacobian()), 0
    of_sum = mf.descend(*given, optim.sgd(1e-2, 0.9), reduction="sum", metric=True)
    of_mean = mf.descend(*given, optim.sgd(3e-2, 0.9), metric=True)
    state, other = of_sum.init(params, ()), of_mean.init(params, ())
    for _ in range(20):
        state, info = of_sum.update(state, ())
        other, known = of_mean.update(other, ())
        near(info.weights, 3 * known.weights, 1e-7, 1e-9)
        turned += int((known.weights - mf.weights(mf.mgda(), known.gramian)).norm() > 1e-3)
    near(flatten(state.params), flatten(other.params), 1e-7, 1e-9)
    assert turned


@pytest.mark.parametrize("linear", [True, False])  # Adam's v has the new gradient
def test_gradients_that_wait_are_counted(linear):
    """Two micro-batches: the second's rates, by every call, are those of the step with both."""
    net = TrunkAndHeads(0)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    optimizer = sgd if linear else torch.optim.Adam(net.parameters(), lr=1e-2)
    balancer = mf.Balancer(net, mf.safe(mf.mean() if linear else mf.mgda()), metric=optimizer)
    for _ in range(3):
        balancer.backward(losses_at(net, batch_of(0)))
        measured = balancer.measure(losses_at(net, batch_of(1)))
        weights, weighed = balancer.weigh(losses_at(net, batch_of(1)))
        info = balancer.backward(losses_at(net, batch_of(1)))
        for other in (measured, weighed):
            near((other.gramian, other.rates), (info.gramian, info.rates))
        near(weights, info.weights)
        before = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        after = {name: leaf.detach() for name, leaf in net.named_parameters()}
        change = mf.diagnostics.predicted_change(losses_of, before, after, batch_of(1))
        if linear:
            near(info.rates, -change.predicted, 1e-8, 1e-10)
            assert info.rates.min() > -1e-9


def test_vmapped_is_the_loop():
    def run(rate, batch):
        optimizer, probe = optim.adam(rate), mf.jacobian("trunk.*")
        step = mf.descend(losses_of, mf.safe(mf.mgda()), probe, optimizer, metric=True)
        state, infos = rollout(step, step.init(PARAMS, batch), [batch] * 3)
        return infos.gramian[-1], infos.rates[-1], state.params["trunk.0.weight"]

    rates = torch.tensor([1e-3, 1e-2], dtype=F64)
    batches = tuple(torch.stack(x) for x in zip(batch_of(0), batch_of(1), strict=True))
    together = vmap(run)(rates, batches)
    nested = vmap(vmap(run, (None, 0)), (0, None))(rates, batches)
    for i, j in itertools.product(range(2), repeat=2):
        alone = run(rates[i], tuple(x[j] for x in batches))
        near(tuple(x[i, j] for x in nested), alone)
        if i == j:
            near(tuple(x[i] for x in together), alone)


def test_derivative_by_the_learning_rate():
    """Through P, too: of the first step's Gramian, where only P depends on the rate."""

    def first(rate, steps=1):
        step = mf.descend(
            losses_of, mf.mgda(), mf.jacobian("trunk.*"), optim.adam(rate), metric=True
        )
        _, infos = rollout(step, step.init(PARAMS, BATCH), [BATCH] * steps)
        return infos.gramian[-1].sum() + infos.rates[-1].sum()

    for steps in (1, 3):
        check_slope(partial(first, steps=steps), 1e-2, "grad", rtol=1e-5, h=1e-6)


@pytest.mark.parametrize("rule", few([mf.mgda, mf.upgrad], lambda rule: rule is mf.mgda))
def test_no_loss_rises_by_adam_without_momentum(rule):
    """Conflicting tasks: on G many real steps raise a loss to first order, on G_P almost none."""
    losses, starts = conflicting(0)[1], [conflicting(seed)[0] for seed in range(4)]
    params = {name: torch.stack([x[name] for x in starts]) for name in starts[0]}

    def share_of_rises(metric: bool) -> float:
        optimizer = optim.adam(3e-3, betas=(0.0, 0.999))
        step = mf.descend(losses, rule(), mf.jacobian(), optimizer, metric=metric)
        state, risen = vmap(lambda x: step.init(x, ()))(params), []
        for _ in range(60):
            after, _ = vmap(lambda x: step.update(x, ()))(state)
            change = vmap(lambda x, y: mf.diagnostics.predicted_change(losses, x, y, ()))
            risen.append((change(state.params, after.params).predicted > 0).any(-1))
            state = after
        return torch.stack(risen[9:]).double().mean().item()

    assert share_of_rises(True) <= 0.05
    assert share_of_rises(False) > 0.2


def conflicting(seed: int) -> tuple[Any, Any]:
    """One output that three tasks want to be three different functions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        x, wish = torch.randn(64, 8).double(), torch.randn(8, 3).double()
    y = (x @ wish / 8**0.5).tanh() * torch.tensor([1.0, 3.0, 0.5])
    return mf.parameters(net), lambda p, _: (functional_call(net, p, (x,)) - y).square().mean(0)


def test_what_it_refuses():
    net = TrunkAndHeads(0)
    leaves = list(net.parameters())
    for make, words in {
        lambda: type("Muon", (torch.optim.Optimizer,), {})(leaves, {}): "Muon: it orthogonalizes",
        lambda: torch.optim.Rprop(leaves): "Rprop: it steps by the gradient's sign",
        lambda: torch.optim.Adamax(leaves): "Adamax: it takes the larger",
        lambda: torch.optim.NAdam(leaves): "NAdam: it is not one whose step is known here; known",
        lambda: type("Mine", (torch.optim.Adam,), {})(leaves): "Mine: a subclass may step other",
        lambda: type("SOAP", (torch.optim.Optimizer,), {})(leaves, {}): "SOAP: it multiplies a",
        lambda: type("Shampoo", (torch.optim.Optimizer,), {})(leaves, {}): "Shampoo: it multiplies",
        lambda: torch.optim.Adam(leaves, maximize=True): "the optimizer maximizes",
    }.items():
        with pytest.raises(ValueError, match=f"metric: .*{words}"):
            mf.Balancer(net, mf.mgda(), metric=make())
    half = mf.Balancer(net, mf.mgda(), metric=torch.optim.Adam(leaves[:2]))
    with pytest.raises(ValueError, match=r"metric: the optimizer does not hold trunk\.2\.weight"):
        half.backward(losses_at(net, BATCH))
    optimizer, layerwise = torch.optim.Adam(leaves), mf.jacobian("trunk.*", engine="layerwise")
    with pytest.raises(ValueError, match="metric: this probe does not measure"):
        mf.Balancer(net, mf.mean(), None, metric=optimizer)
    with pytest.raises(ValueError, match='engine="layerwise" makes no rows, and a metric'):
        mf.Balancer(net, mf.mgda(), layerwise, metric=optimizer).backward(losses_at(net, BATCH))
    with pytest.raises(ValueError, match="metric: this optimizer has none"):
        mf.descend(losses_of, mf.mean(), mf.jacobian(), optim.multiplicative(0.1), metric=True)
    with pytest.raises(ValueError, match="metric: this probe does not measure"):
        mf.descend(losses_of, mf.mean(), mf.losses_only(), optim.adam(0.1), metric=True)


def test_adamw_decays_apart_where_its_groups_do_not_say_so():
    """As those of torch 2.6: c = lr·decay·x, without a momentum."""
    leaf = nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
    optimizer = torch.optim.AdamW([leaf], lr=0.1, betas=(0.0, 0.9), weight_decay=0.5)
    leaf.grad = torch.tensor([3.0, 4.0], dtype=F64)
    optimizer.step()
    optimizer.param_groups[0].pop("decoupled_weight_decay", None)
    leaf.grad = None
    near(metric_of(optimizer, {"x": leaf}, ("x",)).carried["x"], 0.05 * leaf.detach(), 1e-12, 0)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_state_of_another_shape_is_refused(key):
    """The formulas would broadcast it, and promise another step."""
    leaf = nn.Parameter(torch.ones(3, 2, dtype=F64))
    optimizer = torch.optim.Adam([leaf])
    leaf.sum().backward()
    optimizer.step()
    optimizer.state[leaf][key] = optimizer.state[leaf][key][:1]
    with pytest.raises(ValueError, match=f"state's {key} of x "):
        metric_of(optimizer, {"x": leaf}, ("x",))


def test_a_copy_of_a_balancer_has_a_copy_of_the_optimizer():
    net = TrunkAndHeads(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    holder = {"net": net, "optimizer": optimizer}
    holder["balancer"] = mf.Balancer(net, mf.mgda(), metric=optimizer)
    other = copy.deepcopy(holder)
    info = other["balancer"].backward(losses_at(other["net"], BATCH))
    other["optimizer"].step()
    assert info.gramian.isfinite().all()
    assert not optimizer.state
    assert isinstance(metric_of(optimizer, dict(net.named_parameters()), TRUNK), Metric)


@pytest.mark.parametrize("kind", ["sgd momentum", "adam"])
def test_a_parameter_that_no_loss_reads_has_no_part_in_the_metric(kind):
    torch.manual_seed(0)
    both = nn.ModuleDict({"net": nn.Linear(5, 3), "idle": nn.Linear(4, 4)}).double()
    alone, x = copy.deepcopy(both["net"]), torch.randn(8, 5, dtype=F64)
    infos = []
    for module, net in ((both, both["net"]), (alone, alone)):
        optimizer = OPTIMIZERS[kind](module.parameters())
        balancer = mf.Balancer(module, mf.mgda(), metric=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            infos.append(balancer.backward(net(x).square().mean(0)))
            optimizer.step()
    for one, other in zip(infos[:3], infos[3:], strict=True):
        near((one.gramian, one.rates), (other.gramian, other.rates))
