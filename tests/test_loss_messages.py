"""Losses in a wrong form or without a graph, and what is shared misspelled: errors with cures."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.core.tree import select
from tests.support.balancers import untouched
from tests.support.every import every
from tests.support.problems import BATCH, PARAMS, TASKS, TrunkAndHeads

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def per_sample(net):
    return list(net(X).square().unbind(1))


def by_name(losses):
    return dict(zip("abc", losses, strict=True))


@pytest.mark.parametrize(
    ("form", "named"), [(list, "task 2"), (tuple, "task 2"), (by_name, "task 'c'")]
)
@pytest.mark.parametrize("at", ["balancer", "pure"])
def test_a_loss_of_shape_1_is_named(net, form, named, at):
    def losses(net, last):
        *others, c = [loss.mean() for loss in per_sample(net)]
        return form([*others, last(c)])

    def step(last):
        if at == "balancer":
            return mf.Balancer(net, mf.mgda()).backward(losses(net, last)).weights

        def losses_fn(params, _):
            return losses(lambda x: functional_call(net, params, (x,)), last)

        return mf.task_gramian(losses_fn, mf.parameters(net), X)[1]

    with pytest.raises(ValueError, match=rf"losses.*got \[1\] for {named}; .*\.mean\(\)$"):
        step(lambda c: c[None])
    torch.testing.assert_close(step(lambda c: c[None].mean()), step(lambda c: c))


@pytest.mark.parametrize("form", [list, tuple, by_name])
def test_losses_of_samples_are_said_to_want_a_mean(net, form):
    with pytest.raises(ValueError, match=r"losses: expected .* (vector|\[4\]).*\.mean\(\)"):
        mf.Balancer(net, mf.mgda()).backward(form(per_sample(net)))
    got = mf.Balancer(net, mf.mgda()).backward(form([x.mean() for x in per_sample(net)]))
    vector = mf.Balancer(net, mf.mgda()).backward(torch.stack(per_sample(net)).mean(1))
    torch.testing.assert_close(got.weights, vector.weights)


def test_logarithms_of_negative_losses_are_said_to_want_a_shift(net):
    balancer = mf.Balancer(net, mf.db_mtl(), mf.moving_average(rate=0.5))

    def losses(shift):
        return (torch.stack(per_sample(net)).mean(1) - 10 + shift).log()

    with pytest.raises(ValueError, match=r"losses: NaN .*\[0, 1, 2\].*; shift losses above 0"):
        balancer.backward(losses(0))
    assert bool(balancer.backward(losses(11)).weights.isfinite().all())


@pytest.mark.parametrize("name", ["[CLS]", "a[0]", "[!x]-[1]"])
@pytest.mark.parametrize("several", [False, True])
def test_a_bracket_in_a_name_is_said_to_want_escaping(name, several):
    module = nn.ModuleDict({name: nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    glob = f"{name}.*"
    with pytest.raises(ValueError, match=r"matches no parameter .*as \[ begins a set") as error:
        mf.Balancer(module, mf.mgda(), [glob, "head.bias"] if several else glob)
    cure = str(error.value).partition("use '")[2].partition("', as")[0]
    assert select(dict(module.named_parameters()), cure) == (f"{name}.weight", f"{name}.bias")
    mf.Balancer(module, mf.mgda(), [cure, "head.bias"] if several else cure)


# Losses without a graph, at every step; and those of a vector that read nothing shared.
FORMS = {
    "list": list,
    "dict": by_name,
    "stack": torch.stack,
    "functions": lambda losses: [lambda x=x: x for x in losses],
}
PROBES = {
    "losses alone": (mf.losses_only, lambda: mf.uw(0.1)),
    "rows": (lambda: mf.jacobian("trunk.*"), mf.mgda),
    "averages": (lambda: mf.moving_average("trunk.*"), mf.moco),
}


def losses_of(net, gone=None):
    """By passes of their own; the loss of `gone` is a constant."""
    found = [(net(BATCH[0])[t] - BATCH[1][:, t]).square().mean() for t in range(TASKS)]
    return [x.detach() if t == gone else x for t, x in enumerate(found)]


@every("step", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_loss_without_graph_is_refused_at_every_step(probe, form, step):
    net, make = TrunkAndHeads(0), FORMS[form]
    balancer = mf.Balancer(net, PROBES[probe][1](), PROBES[probe][0]())
    for _ in range(step):
        balancer.backward(make(losses_of(net)))
    words = r"^losses: no graph for task ('b'|1), as after"
    with untouched(net, balancer), pytest.raises(ValueError, match=words):
        balancer.backward(make(losses_of(net, gone=1)))
    balancer.backward(make(losses_of(net, gone=1)), present=[True, False, True])
    nobody = [x.detach() for x in losses_of(net)]
    assert not balancer.backward(make(nobody), present=[False] * TASKS).weights.any()


def test_so_it_is_in_a_pure_step():
    net = TrunkAndHeads(0)

    def losses(params, gone):
        return tuple(losses_of(lambda x: functional_call(net, params, (x,)), gone))

    step = mf.balance(losses, mf.mgda(), mf.jacobian("trunk.*"))
    with pytest.raises(ValueError, match=r"^losses: no graph for task 2,"):
        step.update(PARAMS, 2, step.init(PARAMS, None))
