"""A pass that is not a step changes nothing of the user's: `init` of pure steps."""

import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from mtlfunc.gradients.levels import without_trace

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


class Base(nn.Module):
    """Two losses of a trunk and a statistic, which each module below keeps in its own way."""

    centre: torch.Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.register_buffer("centre", torch.zeros(4))

    def see(self, h):
        raise NotImplementedError

    def forward(self, x):
        h = self.trunk(x)
        self.see(h.detach())
        return [h.square().mean(), (h - self.centre - 1).square().mean()]


class Buffer(Base):
    def see(self, h):
        self.centre = 0.9 * self.centre + 0.1 * h.mean(0)


class InPlace(Base):
    def see(self, h):
        self.centre.mul_(0.9).add_(0.1 * h.mean(0))


class Both(Base):
    def see(self, h):
        self.centre.mul_(0.5)
        self.centre = self.centre + h.mean(0)
        self.centre.add_(1.0)


class Attribute(Base):
    def __init__(self):
        super().__init__()
        self.kept = torch.ones(4)

    def see(self, h):
        self.kept = self.kept + h.mean(0)
        self.cached = h


class Twice(Buffer):
    """Is called twice a pass."""


class Child(Base):
    def __init__(self):
        super().__init__()
        self.child = Buffer()

    def see(self, h):
        self.child.centre = h.mean(0)
        self.child(torch.ones(2, 3))


class Hooked(Base):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, *_: setattr(module, "centre", self.centre + 1))
        self.trunk.register_forward_hook(lambda m, _, out: setattr(m, "last", out.detach()))

    def see(self, h):
        pass


class WeightNorm(Buffer):
    def __init__(self):
        super().__init__()
        self.trunk = nn.utils.weight_norm(self.trunk)


class Fails(Buffer):
    """Refuses NaN, after the statistic was changed."""

    def forward(self, x):
        losses = super().forward(x)
        if self.centre.isnan().any():
            raise ArithmeticError("NaN")
        return losses


MODULES = [Buffer, InPlace, Both, Attribute, Twice, Child, Hooked, WeightNorm, Fails]
FORMS = {"list": list, "dict": lambda x: dict(enumerate_names(x)), "tensor": torch.stack}
PROBES = {
    "jacobian": mf.jacobian,
    "losses": mf.losses_only,
    "moving average": mf.moving_average,
    "second evaluation": lambda: mf.second_evaluation(mf.jacobian()),
}


def enumerate_names(losses):
    return ((f"task{i}", loss) for i, loss in enumerate(losses))


def state_of(net):
    """Every tensor of every part, by place: values, and the object it is."""
    places = {}
    for path, part in net.named_modules():
        for place in (vars(part), part._buffers, part._parameters):
            for name, x in place.items():
                if isinstance(x, torch.Tensor):
                    places[path, name] = (x, x.detach().clone())
    return places


def same(net, before):
    after = state_of(net)
    assert after.keys() == before.keys()
    for key, (tensor, value) in before.items():
        assert after[key][0] is tensor, key
        assert torch.equal(after[key][1], value), key


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("kind", MODULES)
def test_init_leaves_no_trace(kind, probe, form):
    net, x = kind(), torch.randn(5, 3)
    params = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}

    def losses(params, x):
        out = FORMS[form](functional_call(net, params, (x,)))
        if kind is Twice:
            functional_call(net, params, (x,))
        return out

    step = mf.descend(losses, mf.mean(), PROBES[probe](), mf.sgd(0.1))
    before, twin = state_of(net), kind()
    state = step.init(params, x)
    same(net, before)
    assert "cached" not in vars(net)
    # and a step moves it as one call of the module does, in probes that evaluate once
    if probe in ("jacobian", "losses") and kind not in (Hooked, Fails, Twice):
        step.update(state, x)
        functional_call(twin, params, (x,))
        assert torch.equal(net.centre, twin.centre)


@pytest.mark.parametrize("kind", [Buffer, Both, InPlace])
def test_buffers_that_functional_call_exchanges_come_back(kind):
    net, x = kind(), torch.randn(5, 3)
    params = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}
    given = {"centre": torch.full((4,), 7.0)}
    before = state_of(net)

    def losses(params, batch):
        buffers = {name: leaf.clone() for name, leaf in batch[1].items()}
        return torch.stack(functional_call(net, params | buffers, (batch[0],)))

    mf.descend(losses, mf.mean(), mf.jacobian(), mf.sgd(0.1)).init(params, (x, given))
    same(net, before)
    assert torch.equal(given["centre"], torch.full((4,), 7.0))


def test_nothing_of_a_level_stays_in_a_module():
    """Under vmap torch lets a module keep a tensor of the transform, which is dead afterwards."""
    net, x = Buffer(), torch.randn(5, 3)
    params = {name: leaf.detach().expand(2, *leaf.shape) for name, leaf in net.named_parameters()}
    before = state_of(net)
    step = mf.descend(
        lambda params, x: torch.stack(functional_call(net, params, (x,))),
        mf.mean(),
        mf.jacobian(),
        mf.sgd(0.1),
    )
    vmap(lambda params: step.init(params, x).params)(params)
    same(net, before)


def test_the_hooks_are_gone_and_another_thread_is_left_alone():
    net, next_one, other, x = Buffer(), Buffer(), Buffer(), torch.ones(2, 3)
    count = len(torch.nn.modules.module._global_forward_pre_hooks)
    with without_trace(dict(net.named_parameters())):
        thread = threading.Thread(target=other, args=(x,))
        thread.start()
        thread.join()
        next_one(net(x)[0].expand(2, 3))
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == count
    assert not net._forward_hooks
    assert other.centre.any()
    assert not net.centre.any()
    assert not next_one.centre.any()
