"""Losses in a wrong form, and what is shared misspelled: the error names a cure, and that works."""

import pytest
import torch
from torch import nn

import mtlfunc as mf
from mtlfunc.core.tree import select

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def per_sample(net):
    return list(net(X).square().unbind(1))


def in_form(losses, form):
    return (
        dict(zip("abc", losses, strict=True))
        if form == "dict"
        else {"list": list, "tuple": tuple}[form](losses)
    )


@pytest.mark.parametrize(
    ("form", "named"), [("list", "task 2"), ("tuple", "task 2"), ("dict", "task 'c'")]
)
@pytest.mark.parametrize("at", ["balancer", "pure"])
def test_a_loss_of_shape_1_is_named(net, form, named, at):
    def losses(net, last):
        *others, c = [loss.mean() for loss in per_sample(net)]
        return in_form([*others, last(c)], form)

    def step(last):
        if at == "balancer":
            return mf.Balancer(net, mf.mgda()).backward(losses(net, last)).weights

        def losses_fn(params, batch):
            del batch
            held = torch.func.functional_call
            return losses(lambda x: held(net, params, (x,)), last)

        return mf.task_gramian(losses_fn, mf.parameters(net), X)[1]

    with pytest.raises(ValueError, match=rf"losses.*got \[1\] for {named}; .*\.mean\(\)$"):
        step(lambda c: c[None])
    torch.testing.assert_close(step(lambda c: c[None].mean()), step(lambda c: c))


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_losses_of_samples_are_said_to_want_a_mean(net, form):
    with pytest.raises(ValueError, match=r"losses: expected .* (vector|\[4\]).*\.mean\(\)"):
        mf.Balancer(net, mf.mgda()).backward(in_form(per_sample(net), form))
    got = mf.Balancer(net, mf.mgda()).backward(in_form([x.mean() for x in per_sample(net)], form))
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
