"""A row of zeros of weightings= is an absent task, as `present` says of plain losses."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from tests.support.every import every
from tests.support.registry import RULES

F64 = torch.float64
# whole numbers, so that losses, rows and Gramians are exact whichever way they are made
X = torch.tensor([[1, 2, 0, 1], [3, 1, 1, 0], [0, 1, 2, 5], [2, 0, 1, 1], [1, 1, 4, 0]], dtype=F64)
A = torch.tensor([[1, 0, 1, 0, 2], [0, 1, 0, 1, 0], [2, 0, 0, 1, 1]], dtype=F64)
PARAMS = {"w": torch.tensor([1, 2, 1, 3], dtype=F64)}
ALL, SOME = torch.tensor([True, True, True]), torch.tensor([True, False, True])
STEPS = ALL, SOME, SOME, ~ALL, ALL
REFUSED = {"stch-warmup", "stateless", "stateless-losses"}  # which say that a task is absent
ZEROS = {"weightings": lambda batch: batch["A"] * batch["here"][:, None]}
HERE = {"present": lambda batch: batch["here"]}
BOTH = {"weightings": lambda batch: batch["A"], **HERE}


def by_sample(params, batch):
    return batch["x"] @ params["w"]


def batch_of(here):
    return {"x": X, "A": A, "here": here}


def pure(rule, losses=by_sample, **options):
    """All that five steps leave, or the error."""
    step, found = mf.balance(losses, rule, mf.jacobian(engine="rows", **options)), []
    state = step.init(PARAMS, batch_of(ALL), key=3)
    for here in STEPS:
        grads, state, info = step.update(PARAMS, batch_of(here), state)
        found.append((info.weights, info.gramian, info.losses * here, grads, state.rule))
    return tree_leaves(found)


def live(rule, labels):
    """The same of a stock loop; `.grad` of a batch in which nothing is present stays None."""
    net, found = nn.ParameterDict(PARAMS), []
    balancer = mf.Balancer(net, rule, mf.jacobian(engine="rows"), key=3)
    for here in STEPS:
        rows = {"weightings": A, "present": here.tolist()}
        rows = rows if labels else {"weightings": ZEROS["weightings"](batch_of(here))}
        info = balancer.backward(by_sample(net, batch_of(here)), **rows)
        assert (net["w"].grad is None) == (not here.any())
        grad = torch.zeros_like(PARAMS["w"]) if net["w"].grad is None else net["w"].grad
        state = [x for _, x in balancer.state_dict()["state"]]
        found.append((info.weights, info.gramian, info.losses, grad, state))
        net["w"].grad = None
    return tree_leaves(found)


@every("name", [name for name in RULES if "-" not in name or name in REFUSED])
def test_every_rule_steps_and_remembers_as_with_present(name):
    rule = RULES[name].make()
    ways = (
        lambda: pure(rule, lambda params, batch: A @ by_sample(params, batch), **HERE),
        *(lambda: pure(rule, **ZEROS), lambda: pure(rule, **BOTH)),
        *(lambda: live(rule, False), lambda: live(rule, True)),
    )
    if name in REFUSED:
        for way in ways:
            with pytest.raises(ValueError, match="absent"):
                way()
        return
    known, *others = [way() for way in ways]
    assert all(all(map(torch.equal, found, known)) for found in others)


@pytest.mark.parametrize("rule", [mf.mean, mf.mgda, mf.upgrad, lambda: mf.uw(0.1), mf.pcgrad])
@pytest.mark.parametrize("options", [ZEROS, BOTH])
def test_mapped_and_compiled_steps_are_their_loops(options, rule):
    step = mf.balance(by_sample, rule(), mf.jacobian(engine="rows", **options))
    state, lanes = step.init(PARAMS, batch_of(ALL), key=3), torch.stack([ALL, SOME, ~SOME, ~ALL])

    def stepped(here):
        return tree_leaves(step.update(PARAMS, batch_of(here), state)[::2])

    torch.compiler.reset()
    ways = [vmap(stepped)(lanes)]
    if rule is mf.mgda and options is ZEROS:
        compiled = torch.compile(stepped, backend="eager")
        ways.append([torch.stack(x) for x in zip(*map(compiled, lanes), strict=True)])
    wanted = [torch.stack(x) for x in zip(*map(stepped, lanes), strict=True)]
    for found in ways:
        torch.testing.assert_close(list(found), wanted, rtol=1e-12, atol=1e-13)


def test_labels_of_another_number_of_tasks_are_refused():
    words = "^present: expected one entry per task, 3, got 2"
    probe: Any = mf.jacobian(**BOTH)  # pyright: ignore
    net, step = nn.ParameterDict(PARAMS), mf.balance(by_sample, mf.mgda(), probe)
    with pytest.raises(ValueError, match=words):
        mf.Balancer(net, mf.mgda()).backward(X @ net["w"], weightings=A, present=[True, True])
    with pytest.raises(ValueError, match=words):
        step.init(PARAMS, batch_of(ALL[:2]))
