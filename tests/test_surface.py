"""What users build on changes on purpose alone: names, parameters, defaults, fields, states."""

import pytest
import torch
from torch import nn

import mtlfunc as mf
from tests.support import surface


def test_the_surface_is_the_one_that_is_written_down():
    """After a change on purpose: `python -m tests.support.surface`, and a line in CHANGELOG.md."""
    assert surface.described() == surface.SURFACE.read_text().splitlines()


def stepped(**state):
    """A balancer after one step, and its state with some entries replaced."""
    torch.manual_seed(0)
    net = nn.Linear(4, 2).double()
    balancer = mf.Balancer(net, mf.momentum(mf.mgda(), 0.5))
    balancer.backward(net(torch.ones(3, 4, dtype=torch.float64)).square().mean(0))
    return net, balancer, balancer.state_dict() | state


def test_states_say_their_version():
    net, balancer, state = stepped()
    assert state["version"] == 1
    fresh = mf.Balancer(net, mf.momentum(mf.mgda(), 0.5))
    fresh.load_state_dict(state)
    losses = net(torch.eye(4, dtype=torch.float64)).square().mean(0)
    expected = balancer.backward(losses, retain_graph=True).weights
    torch.testing.assert_close(fresh.backward(losses).weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize("version", [2, "1", 0, True, None])
def test_a_state_of_another_version_is_refused(version):
    _, balancer, state = stepped(version=version)
    with pytest.raises(ValueError, match=r"state_dict: .*version .* this mtlfunc"):
        balancer.load_state_dict(state)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("version", x) for x in (1.0, None, [1], torch.ones(2, dtype=torch.int64))),
        *(("started", x) for x in (1, "yes", None, False, torch.ones(()))),
        *(("count", x) for x in (-2, 0, 2.0, True, "2", None)),
        *(("names", x) for x in (["a", "a"], ["a"], ["a", "b", "c"], "ab", ["a", {}], None)),
        *(("state", x) for x in ([("[0]", 1.0)], [("a", torch.ones(2))] * 2, [1], "ab", None)),
    ],
)
def test_a_state_that_is_not_one_is_refused(key, value, fresh):
    """By its key, and the balancer goes on as if it had not been given."""
    net, balancer, state = stepped(tasks={"count": 2, "names": []})
    if fresh:
        balancer = mf.Balancer(net, mf.momentum(mf.mgda(), 0.5))
    before = balancer.state_dict()
    if key in ("count", "names"):
        state["tasks"][key] = value
    else:
        state[key] = value
    with pytest.raises(ValueError, match=rf"^state_dict: .*'?{key}\b"):
        balancer.load_state_dict(state)
    after = balancer.state_dict()
    assert {**after, "state": None} == {**before, "state": None}
    assert [name for name, _ in after["state"]] == [name for name, _ in before["state"]]
    for (_, new), (_, old) in zip(after["state"], before["state"], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
