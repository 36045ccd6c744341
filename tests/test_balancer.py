"""The balancer of a stock loop: the numbers of `mf.balance`, its states, and its errors."""

import os
import warnings
from functools import partial
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.balancers import untouched
from tests.support.functions import custom
from tests.support.loops import reloaded
from tests.support.oracles import rows_by_name
from tests.support.problems import F64, TrunkAndHeads
from tests.support.registry import RULES


def scalars(outputs, y):
    return [(out - y).square().mean() * (1 + k) for k, out in enumerate(outputs)]


FORMS = {
    "vector": lambda outputs, y: (torch.stack(outputs) - y).square().mean((1, 2)),
    "stacked": lambda outputs, y: torch.stack(scalars(outputs, y)),
    "tuple": lambda outputs, y: tuple(scalars(outputs, y)),
    "list": scalars,
    "dict": lambda outputs, y: dict(zip("abc", scalars(outputs, y), strict=True)),
}


@pytest.fixture
def net():
    return TrunkAndHeads(0)


def batches(count=2):
    draw = partial(torch.randn, dtype=F64, generator=torch.Generator().manual_seed(1))
    return [(draw(5, 4), draw(5, 2)) for _ in range(count)]


((X, Y),) = batches(1)


def pure(net, rule, probe, form="stacked", key=3, steps=2, **options):
    """Gradients of the pure step, batch by batch."""
    step = mf.balance(
        lambda p, b: FORMS[form](functional_call(net, p, (b[0],)), b[1]), rule, probe, **options
    )
    params, found = mf.parameters(net), []
    state = step.init(params, batches()[0], key=key)
    for batch in batches(steps):
        grads, state, info = step.update(params, batch, state)
        found.append((grads, info))
    return found


def live(net, balancer, form="stacked", steps=2):
    found = []
    for x, y in batches(steps):
        net.zero_grad()
        info = balancer.backward(FORMS[form](net(x), y))
        found.append(({name: leaf.grad for name, leaf in net.named_parameters()}, info))
    return found


def agree(got, expected, rtol=1e-10):
    for (grads, info), (others, other) in zip(got, expected, strict=True):
        for name, grad in others.items():
            scale = float(grad.abs().max())
            assert float((grads[name] - grad).abs().max()) <= rtol * max(scale, 1e-3), name
        torch.testing.assert_close(info.weights, other.weights, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(info.gramian, other.gramian, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(info.losses, other.losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_as_in_the_pure_step(name, net):
    make = RULES[name].make
    expected = pure(net, make(), mf.jacobian("trunk.*"))
    agree(live(net, mf.Balancer(net, make(), "trunk.*", key=3)), expected)


OPTIONS = {
    "plain": {}, "own heads": {"heads": "own"}, "weighted heads": {"heads": "weighted"},
    "rows": {"engine": "rows"}, "layerwise": {"engine": "layerwise"}, "chunks": {"chunk_size": 2},
    "loop": {"chunk_size": 1},
}  # fmt: skip


@pytest.mark.parametrize("few", [0, plan.FEW_PARAMETERS])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_as_in_the_pure_step(option, form, few, net, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", few)
    options = OPTIONS[option]
    other = "tuple" if form == "list" else form
    expected = pure(net, mf.cagrad(0.4), mf.jacobian("trunk.*", **options), other)
    balancer = mf.Balancer(net, mf.cagrad(0.4), mf.jacobian("trunk.*", **options), key=3)
    agree(live(net, balancer, form), expected)


@pytest.mark.parametrize("make", [lambda: mf.uw(0.1), lambda: mf.dwa(2), mf.gls])
def test_losses_alone(make, net):
    expected = pure(net, make(), mf.losses_only(), reduction="sum")
    agree(live(net, mf.Balancer(net, make(), None, reduction="sum")), expected)


def test_a_rule_that_reads_what_is_not_measured_is_refused_in_a_balancers_words(net):
    words = r"mgda reads 'gramian', but .* losses alone; .*shared='\*'"
    with pytest.raises(ValueError, match=words):
        mf.Balancer(net, mf.mgda(), None)
    cures = {"modo": "double_sampling", "moco": "moving_average", "db_mtl": "moving_average"}
    for name, probe in (cures | {"excess_mtl": "excess_risk"}).items():
        for shared in (None, "*"):
            with pytest.raises(ValueError, match=rf"{name} reads .*Balancer\(.*{probe}\("):
                mf.Balancer(net, getattr(mf, name)(), shared)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("here", [None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("make", [mf.mean, mf.mgda, mf.upgrad, lambda: mf.momentum(mf.mgda(), 0.6)])
def test_info_says_what_was_applied(make, here, reduction, net):
    """Weights of the losses in the step, and their falls, of every way to make one, by autograd."""
    leaves = dict(net.trunk.named_parameters(prefix="trunk"))
    rows = rows_by_name(scalars(net(X), Y), leaves)
    present = {} if here is None else {"present": here}

    def check(info, grads):
        for name, row in rows.items():
            own = torch.tensordot(info.weights, row, 1)
            torch.testing.assert_close(grads[name], own, rtol=1e-9, atol=1e-13)
        falls = torch.stack([(grads[n] * row).flatten(1).sum(1) for n, row in rows.items()]).sum(0)
        kept = torch.ones(3, dtype=torch.bool) if here is None else here
        torch.testing.assert_close(info.rates, falls.where(kept, 0.0), rtol=1e-9, atol=1e-13)

    balancer = mf.Balancer(net, make(), "trunk.*", reduction=reduction)
    measured = balancer.measure(scalars(net(X), Y), **present)
    other = mf.Balancer(net, make(), "trunk.*", reduction=reduction)
    weights, weighed = other.weigh(scalars(net(X), Y), **present)
    info = balancer.backward(scalars(net(X), Y), **present)
    check(info, {name: leaf.grad for name, leaf in leaves.items()})
    for each in (measured, weighed):
        torch.testing.assert_close(each.weights, info.weights, rtol=1e-12, atol=0)
        torch.testing.assert_close(each.rates, info.rates, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weights, info.weights, rtol=1e-12, atol=0)

    def losses(params, batch):
        return torch.stack(scalars(functional_call(net, params, (batch[0],)), batch[1]))

    probe = mf.jacobian("trunk.*", present=None if here is None else lambda batch: here)
    step = mf.balance(losses, make(), probe, reduction=reduction)
    params = mf.parameters(net)
    grads, _, info = step.update(params, (X, Y), step.init(params, (X, Y)))
    check(info, grads)
    moving = mf.descend(losses, make(), probe, mf.sgd(0.5), reduction=reduction)
    after, info = moving.update(moving.init(params, (X, Y)), (X, Y))
    check(info, {name: 2 * (params[name] - after.params[name]) for name in leaves})


def test_weigh_and_measure(net):
    """`weigh` moves the rule's state, `measure` nothing; neither touches gradients or graph."""
    balancer, other = (mf.Balancer(net, mf.gradnorm(1.5), "trunk.*") for _ in range(2))
    losses = scalars(net(X), Y)
    before = balancer.state_dict()
    info = balancer.measure(losses)
    assert balancer.state_dict() == before
    weights, again = balancer.weigh(losses)
    torch.testing.assert_close(weights, info.weights, rtol=0, atol=0)
    assert all(leaf.grad is None for leaf in net.parameters())
    moved = balancer.state_dict()
    assert moved["started"]
    assert any(leaf.ndim for leaf in dict(moved["state"]).values())
    (weights * torch.stack(losses)).sum().backward()  # the graph is there
    weighted = [leaf.grad.clone() for leaf in net.parameters()]
    net.zero_grad()
    whole = mf.Balancer(net, mf.gradnorm(1.5), mf.jacobian("trunk.*", heads="weighted"))
    whole.backward(scalars(net(X), Y))
    for grad, leaf in zip(weighted, net.parameters(), strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-12, atol=1e-14)
    doubled = mf.Balancer(net, mf.mean(), "trunk.*", reduction="sum")
    torch.testing.assert_close(doubled.weigh(scalars(net(X), Y))[0], torch.ones(3, dtype=F64))
    assert other.measure(scalars(net(X), Y)).weights.shape == again.weights.shape
    with pytest.raises(ValueError, match=r"mix=.*use backward"):
        mf.Balancer(net, mf.mgda(), mf.jacobian(mix=mf.subset(3))).weigh(scalars(net(X), Y))


def test_weights_are_in_the_order_of_the_losses(net):
    """Of a dict as it is given; what is reported is in the order of the first step."""
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    first = dict(zip("abc", scalars(net(X), Y), strict=True))
    weights, info = balancer.weigh(first)
    assert torch.equal(weights, info.weights)
    assert weights.data_ptr() != info.weights.data_ptr()
    assert len(set(weights.tolist())) == 3
    again, same = balancer.weigh({name: first[name] for name in "cab"})
    assert torch.equal(again, weights[[2, 0, 1]])
    assert torch.equal(same.weights, weights)
    assert list(same.tasks) == list("abc")
    moved, _ = balancer.weigh(MappingProxyType({name: first[name] for name in "bca"}))
    assert torch.equal(moved, weights[[1, 2, 0]])
    # of several batches that of the first
    several = [dict(zip("abc", scalars(net(a), b), strict=True)) for a, b in batches(2)]
    balancer = mf.Balancer(net, mf.modo(), mf.double_sampling("trunk.*"))
    balancer.weigh(tuple(several))
    expected = balancer.measure(tuple(several)).weights
    other, _ = balancer.weigh(({name: several[0][name] for name in "cab"}, several[1]))
    assert len(set(expected.tolist())) == 3
    assert torch.equal(other, expected[[2, 0, 1]])


@pytest.mark.parametrize(
    "make", [partial(mf.gradnorm, 1.5), mf.pcgrad, lambda: mf.momentum(mf.mgda(), 0.6)]
)
def test_resuming_is_bit_exact(make, net):
    """From a file, before and after a first step."""
    whole = live(net, mf.Balancer(net, make(), "trunk.*", key=5), "dict", steps=3)
    first = mf.Balancer(net, make(), "trunk.*", key=5)
    live(net, first, "dict", steps=1)
    saved = reloaded(first.state_dict())
    fresh, started = (mf.Balancer(net, make(), "trunk.*", key=9) for _ in range(2))
    live(net, started, "dict", steps=2)
    for balancer in (fresh, started):
        balancer.load_state_dict(saved)
        assert balancer.state_dict()["tasks"] == saved["tasks"]
        for (x, y), (grads, info) in list(zip(batches(3), whole, strict=True))[1:]:
            net.zero_grad()
            got = balancer.backward(FORMS["dict"](net(x), y))
            assert torch.equal(got.weights, info.weights)
            assert torch.equal(net.trunk[0].weight.grad, grads["trunk.0.weight"])


def test_resuming_where_a_task_is_absent(net):
    """A rule that needs the first losses does not start anew on those of a batch without labels."""
    present = torch.tensor([True, False, True])
    whole, fresh = (mf.Balancer(net, mf.gradnorm(1.5), "trunk.*") for _ in range(2))
    x, y = batches(1)[0]
    whole.backward(scalars(net(x), y))
    fresh.load_state_dict(whole.state_dict())
    found = [one.backward(scalars(net(x), y), present=present) for one in (whole, fresh)]
    assert torch.equal(found[0].weights, found[1].weights)
    with pytest.raises(ValueError, match="0 where a task is absent"):
        mf.Balancer(net, mf.gradnorm(1.5), "trunk.*").backward(scalars(net(x), y), present=present)


def test_states_of_others_are_refused(net):
    balancer = mf.Balancer(net, mf.gradnorm(1.5), "trunk.*")
    balancer.backward(FORMS["dict"](net(X), Y))
    saved = balancer.state_dict()
    for empty in ({}, {"rule": {}}):
        with pytest.raises(ValueError, match=r"state_dict: expected what Balancer\.state_dict"):
            balancer.load_state_dict(empty)
    stateless = mf.Balancer(net, mf.mgda(), "trunk.*")
    stateless.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"another rule or number of tasks"):
        stateless.backward(FORMS["dict"](net(X), Y))
    two = mf.Balancer(net, mf.gradnorm(1.5), "trunk.*")
    two.backward(scalars(net(X), Y)[:2])
    with pytest.raises(ValueError, match=r"'a', 'b', 'c', and this balancer of 2 tasks"):
        two.load_state_dict(saved)
    kept = two.state_dict()["state"]
    two.load_state_dict(two.state_dict())
    for (name, leaf), (other, one) in zip(kept, two.state_dict()["state"], strict=True):
        assert name == other
        assert torch.equal(leaf, one)


def test_tasks_are_read_by_name(net):
    balancer, sorted_ = (mf.Balancer(net, mf.mgda(), "trunk.*") for _ in range(2))
    losses = FORMS["dict"](net(X), Y)
    first = balancer.backward(losses, retain_graph=True)
    assert list(first.tasks) == ["a", "b", "c"]
    again = balancer.backward({name: losses[name] for name in "cab"}, retain_graph=True)
    assert list(again.tasks) == ["a", "b", "c"]
    assert torch.equal(again.weights, first.weights)
    with pytest.raises(ValueError, match=r"no loss at this step for 'b', which the first step saw"):
        balancer.backward({name: losses[name] for name in "ac"})
    with pytest.raises(ValueError, match=r"'d' is new"):
        balancer.backward(losses | {"d": losses["a"] * 2})
    with pytest.raises(ValueError, match=r"without names"):
        balancer.backward(tuple(losses.values()))
    assert sorted_.backward(losses).tasks.keys() == first.tasks.keys()


def _untouched(net, balancer, call, error, match):
    with untouched(net, balancer), pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("started", [False, True])
def test_bad_losses_are_errors_that_change_nothing(started, net):
    balancer = mf.Balancer(net, mf.gradnorm(1.5), "trunk.*")
    if started:
        balancer.backward(scalars(net(X), Y))
    good = scalars(net(X), Y)
    bad = partial(_untouched, net, balancer)
    with torch.no_grad():
        gone = scalars(net(X), Y)
    bad(lambda: balancer.backward(gone), ValueError, r"losses: they depend on no parameter")
    bad(lambda: balancer.backward(good[0]), ValueError, r"losses: .*losses\[None\]")
    bad(lambda: balancer.backward([good[0], X, good[1]]), ValueError, r"losses: .*scalar")
    nan = [good[0], good[1] * float("nan"), good[2]]
    bad(lambda: balancer.backward(nan), ValueError, r"losses: NaN.*\[1\].*present=")
    # sqrt has an infinite derivative at 0
    steep = [good[0], good[1] + (good[1] - good[1].detach()).sqrt(), good[2]]
    bad(lambda: balancer.backward(steep), ValueError, r"gradients .* entries \[1\]")
    fails = mf.mgda()._replace(update=lambda geometry, state: 1 / 0)
    fails = mf.Balancer(net, fails, "trunk.*")
    _untouched(net, fails, lambda: fails.backward(good), ZeroDivisionError, "division")
    apart = [good[0], good[1], net.heads[0].weight.square().sum()]
    if not started:
        bad(lambda: balancer.backward(apart), ValueError, r"tasks \[2\].*none of the shared")
    balancer.backward(good)  # its graph has survived all that


@pytest.mark.parametrize("engine", ["rows", "layerwise", None])
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_freed_unless_it_is_retained(form, engine, net):
    balancer = mf.Balancer(net, mf.gls(), None)  # the losses alone
    if engine is not None:
        balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("trunk.*", engine=engine))
    losses = FORMS[form](net(X), Y)
    balancer.backward(losses, retain_graph=True)
    once = [leaf.grad.clone() for leaf in net.parameters()]
    net.zero_grad()
    balancer.backward(losses)
    assert all(torch.equal(a, leaf.grad) for a, leaf in zip(once, net.parameters(), strict=True))
    _untouched(net, balancer, lambda: balancer.backward(losses), RuntimeError, "call the balancer")
    _gone(losses)


MEASURED = {
    **{"moving_average": mf.moving_average("trunk.*"), "excess_risk": mf.excess_risk("trunk.*")},
    "mix": mf.jacobian("trunk.*", mix=mf.subset(2)),
    "mask": mf.jacobian("trunk.*", mask=mf.graddrop()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("probe", MEASURED.values(), ids=MEASURED)
def test_the_graph_is_freed_whatever_is_measured(probe, form, net):
    balancer = mf.Balancer(net, mf.mgda(), probe)
    for x, y in batches(2):
        losses = FORMS[form](net(x), y)
        balancer.backward(losses)
        _gone(losses)


def _gone(losses):
    """The graph of every loss, every head's nodes among them."""
    several = list(losses.values()) if isinstance(losses, dict) else losses
    for loss in several if isinstance(losses, torch.Tensor) else torch.stack(list(several)):
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_freeing_runs_no_hook_and_no_custom_backward(net):
    seen = []

    twice = custom(
        lambda ctx, x: 2 * x, lambda ctx, grad: seen.append(grad.abs().sum().item()) or 2 * grad
    )
    balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("trunk.*", engine="rows"))
    losses = scalars([twice(out) for out in net(X)], Y)
    balancer.backward(losses)
    assert len(seen) == len(losses)
    assert all(seen)
    outs = net(X)
    outs[0].register_hook(lambda grad: seen.append(grad.abs().sum().item()))
    losses = scalars(outs, Y)
    balancer.backward(losses)
    assert all(seen)


def test_graphs_that_are_gone(net):
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    losses = scalars(net(X), Y)
    torch.stack(losses).sum().backward()
    _untouched(net, balancer, lambda: balancer.backward(losses), RuntimeError, "call the balancer")
    losses = scalars(net(X), Y)
    with torch.no_grad():
        for leaf in net.parameters():
            leaf.add_(1.0)
    _untouched(net, balancer, lambda: balancer.backward(losses), RuntimeError, "compute the losses")


def test_arguments_that_are_something_else(net):
    with pytest.raises(NotImplementedError, match=r"DataParallel.* copies .*\.module.*torchrun"):
        # it takes its module to the device
        mf.Balancer(nn.DataParallel(TrunkAndHeads(0)), mf.mgda())
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    losses = scalars(net(X), Y)
    with pytest.raises(RuntimeError, match=r"transforms.*mtlfunc.balance"):
        torch.func.vmap(lambda s: balancer.backward(losses).losses * s)(torch.ones(2))


@pytest.mark.skipif(
    "MTLFUNC_TYPES" in os.environ, reason="enforced annotations are frames between the lines"
)
def test_a_warning_names_the_users_line(net):
    with pytest.warns(UserWarning, match="only one task depends on") as found:
        mf.Balancer(net, mf.mgda()).backward(FORMS["dict"](net(X), Y))
    assert [one.filename for one in found] == [__file__]

    def pure(params, batch):
        return params["w"].sum() * params["a"].sum(), params["w"].sum() * params["b"].sum()

    params = {name: torch.ones(2, 2) for name in "wab"}
    parts = pure, mf.mgda(), mf.jacobian()
    for step in (mf.balance(*parts), mf.descend(*parts, mf.sgd(0.1))):
        with pytest.warns(UserWarning, match="only one task depends on") as found:
            step.init(params, ())
        assert [one.filename for one in found] == [__file__]


def test_labels_in_a_list_or_by_name(net):
    found = []
    for present in (
        torch.tensor([True, False, True]), [True, False, True], (True, False, True),
        {"c": True, "a": True, "b": False},
    ):  # fmt: skip
        out = torch.stack([x.square().mean() for x in net(batches()[0][0])])
        losses = dict(zip("abc", (out[0], torch.tensor(float("nan")), out[2]), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # in this first step b reads nothing
            info = mf.Balancer(net, mf.mgda(), "trunk.*").measure(losses, present=present)
        found.append(info.weights)
        assert torch.equal(info.weights, found[0])
        assert float(info.weights[1]) == 0
    losses = {name: out[t] for t, name in enumerate("abc")}
    for wrong, error, words in (
        ({"a": True}, ValueError, r"present: expected an entry for each of \['a', 'b', 'c'\]"),
        ([1.0, 0.0, 1.0], TypeError, "present: expected a boolean tensor"),
        ([True], ValueError, "present: expected one entry per task, 3, got 1"),
    ):
        with pytest.raises(error, match=words):
            mf.Balancer(net, mf.mgda(), "trunk.*").measure(losses, present=wrong)
    with pytest.raises(ValueError, match="losses without names take a list"):
        mf.Balancer(net, mf.mgda(), "trunk.*").measure(out, present={"a": True})
