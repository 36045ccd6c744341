"""Every rule with a state, saved here and resumed in a process of its own: the trajectory is the
one that was never interrupted.
"""

import subprocess
import sys
from pathlib import Path

import torch

from tests.registry import RULES
from tests.strategies import gramian
from tests.test_rules import trajectory

ROOT = Path(__file__).parent.parent
COUNT, BEFORE, AFTER = 4, 3, 4

RESUME = f"""
import sys, torch
from tests.registry import RULES
from tests.strategies import gramian
from tests.test_rules import trajectory

states = torch.load(sys.argv[1], weights_only=False)
G = gramian("gaussian", {COUNT})
weights = {{name: trajectory(RULES[name].make(), G, steps={AFTER}, start={BEFORE}, state=state)[0] for name, state in states.items()}}
torch.save(weights, sys.argv[2])
"""


def test_stateful_rules_resume_in_a_fresh_process(tmp_path):
    G = gramian("gaussian", COUNT)
    states, expected = {}, {}
    for name, case in RULES.items():
        state = trajectory(case.make(), G, steps=BEFORE, key=7)[1]
        if state != ():
            states[name] = state
            expected[name] = trajectory(case.make(), G, steps=BEFORE + AFTER, key=7)[0][BEFORE:]
    assert {"pcgrad", "gradnorm"} <= set(states)
    torch.save(states, tmp_path / "states.pt")
    subprocess.run(
        [sys.executable, "-c", RESUME, str(tmp_path / "states.pt"), str(tmp_path / "weights.pt")],
        cwd=ROOT,
        check=True,
    )
    resumed = torch.load(tmp_path / "weights.pt")
    for name in states:
        assert torch.equal(resumed[name], expected[name]), name
