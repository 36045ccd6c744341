"""What a notebook or a terminal shows fits on one screen, and named tuples stay what they are."""

import pickle
import re
from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.types import Info, Solution
from tests.support.loops import rollout
from tests.support.problems import BATCH, PARAMS, net, vector
from tests.support.registry import PROBES, RULES

SCREEN = 24  # lines of a terminal


def fits(x) -> str:
    text = repr(x)
    assert len(text.splitlines()) <= SCREEN
    assert max(map(len, text.splitlines())) <= 240
    assert " at 0x" not in text
    return text


@pytest.mark.parametrize("name", RULES)
def test_rule_is_a_line(name):
    assert re.match(r"mf\.[\w.]+\(|Rule\(init=", fits(RULES[name].make()))


@pytest.mark.parametrize("name", PROBES)
def test_probe_is_a_line(name):
    assert fits(PROBES[name].make()).startswith(f"mf.{name.split('-')[0]}(")


def test_steps_states_and_what_they_report_are_one_screen():
    probe = mf.jacobian("trunk.*")
    step = mf.descend(vector, mf.gradnorm(1.5), probe, mf.adam(1e-3))
    state = step.init(PARAMS, BATCH)
    state, info = step.update(state, BATCH)
    assert "losses    [" not in fits(info)
    assert "weights  [" in fits(info)
    assert "trunk.0.weight [6, 4]" in fits(state)
    assert "mf.balance(vector, mf.mgda(), mf.jacobian(" in fits(
        mf.balance(vector, mf.mgda(), probe)
    )
    fits(step)
    record = rollout(step, step.init(PARAMS, BATCH), [BATCH] * 20, record=lambda _, i: i)[1]
    assert "[20, 3] float64" in fits(record)
    balancer = mf.Balancer(net, mf.mgda(), "trunk.*")
    assert repr(balancer).startswith("Balancer of TrunkAndHeads: mf.mgda()")


def test_losses_by_name_are_numbers_and_empty_fields_are_left_out():
    x = torch.tensor([0.25, 2.0])
    info: Any = Info(x, torch.zeros(0, 0), x, x, (), {"left": x[0], "right": x[1]})
    assert "tasks    {2: left 0.25, right 2}" in repr(info)
    assert "aux" not in repr(info)


def test_solutions_still_pass_through_transforms():
    seen = []

    def solve(gramian):
        found = mf.solvers.auto()(mf.solvers.min_norm(gramian))
        seen.append(repr(found))
        return found

    batch = torch.stack([torch.eye(3), 2 * torch.eye(3)])
    together = vmap(solve)(batch)
    assert isinstance(together, Solution)
    assert together.weights.shape == (2, 3)
    assert "[3] float32" in seen[0]  # nothing to read there
    assert isinstance(tree_map(lambda x: x + 0, together), Solution)
    assert grad(lambda g: solve(g).value)(batch[0]).shape == (3, 3)
    assert torch.equal(pickle.loads(pickle.dumps(together)).gap, together.gap)
