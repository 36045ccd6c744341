"""States saved here and resumed in a process of their own, which knows `mtlfunc` alone."""

import sys

import torch
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from tests.support import python
from tests.support.problems import BATCH, PARAMS, decode, encode, named

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
