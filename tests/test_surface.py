"""What users build on changes on purpose alone: names, parameters, defaults, fields, states."""

import sys

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from tests.support import python, surface
from tests.support.problems import BATCH, PARAMS, decode, encode, named


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
    assert stepped()[2]["version"] == 1


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


# States saved here and resumed in a process of their own, which knows `mtlfunc` alone.
LOADED = """
import sys, torch, mtlfunc
from torch.utils._pytree import tree_leaves

states = torch.load(sys.argv[1])
print(*sorted(type(part).__name__ for state in states for part in (state, *state)), sep="\\n")
print(sum(float(leaf.double().sum()) for leaf in tree_leaves(states)))
"""


def test_training_states_load_in_a_fresh_process_by_default(tmp_path):
    """`torch.load` trusts no class it does not know: importing the package makes ours known."""
    methods = [
        (mf.gradnorm(0.5), mf.adam(0.1), mf.jacobian("trunk.*", mask=mf.graddrop())),
        (mf.famo(), mf.sgd(0.1, 0.9), mf.second_evaluation(mf.losses_only())),
        (mf.moco(), mf.sgd(0.1), mf.moving_average("trunk.*")),
        (mf.mgda(), mf.adam(0.1), mf.representation(encode, decode)),
    ]
    states = []
    for rule, optimizer, probe in methods:
        step = mf.descend(named, rule, probe, optimizer)
        state, info = step.update(step.init(PARAMS, BATCH), BATCH)
        states += [state, state.balance, info]
    solution = mf.solvers.active_set()(mf.solvers.min_norm(torch.eye(2)))
    torch.save([*states, solution], tmp_path / "states.pt")
    *kinds, total = python("-c", LOADED, str(tmp_path / "states.pt")).stdout.split()
    wanted = "AdamState BalanceState FAMOState GradNormState Info Solution MoCoState Stream"
    wanted += " SecondEvaluationState MovingAverageState TrainState"
    assert {*wanted.split()} <= {*kinds}
    expected = sum(float(leaf.double().sum()) for leaf in tree_leaves([*states, solution]))
    assert float(total) == expected


def test_every_state_of_the_package_is_known_to_torch_load():
    known = set(torch.serialization.get_safe_globals())
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("mtlfunc"):
            for name, kind in vars(module).items():
                if name.endswith("State") and hasattr(kind, "_fields"):
                    assert kind in known, name
