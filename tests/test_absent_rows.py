"""A row of zeros of weightings= is an absent task, as `present` says of plain losses."""

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


def by_sample(params, batch):
    return batch["x"] @ params["w"]


def by_task(params, batch):
    return batch["A"] @ by_sample(params, batch)


def probe(**options):
    given = {name: lambda batch, name=name: batch[name] for name in ("A", "here")}
    return mf.jacobian(engine="rows", **{option: given[x] for option, x in options.items()})


def batch_of(here, zeros=True):
    return {"x": X, "A": A * here[:, None] if zeros else A, "here": here}


def pure(losses, rule, which, zeros):
    """All that five steps leave, or the error."""
    step, found = mf.balance(losses, rule, which), []
    state = step.init(PARAMS, batch_of(ALL), key=3)
    for here in STEPS:
        grads, state, info = step.update(PARAMS, batch_of(here, zeros), state)
        found.append((info.weights, info.gramian, info.losses * here, grads, state.rule))
    return tree_leaves(found)


def live(rule, *, zeros):
    """The same of a stock loop; `.grad` of a batch in which nothing is present stays None."""
    net, found = nn.ParameterDict(PARAMS), []
    balancer = mf.Balancer(net, rule, probe(), key=3)
    for here in STEPS:
        batch = batch_of(here, zeros)
        more = {} if zeros else {"present": here.tolist()}
        info = balancer.backward(by_sample(net, batch), weightings=batch["A"], **more)
        grad = torch.zeros_like(PARAMS["w"]) if net["w"].grad is None else net["w"].grad
        assert (net["w"].grad is None) == (not here.any())
        state = [x for _, x in balancer.state_dict()["state"]]
        found.append((info.weights, info.gramian, info.losses, grad, state))
        net["w"].grad = None
    return tree_leaves(found)


@every("name", [name for name in RULES if "cvx" not in name])
def test_every_rule_steps_and_remembers_as_with_present(name):
    rule = RULES[name].make()
    both = probe(weightings="A", present="here")
    ways = {
        "zeros": lambda: pure(by_sample, rule, probe(weightings="A"), zeros=True),
        "present": lambda: pure(by_sample, rule, both, zeros=False),
        "live": lambda: live(rule, zeros=True),
        "live, present": lambda: live(rule, zeros=False),
    }

    def known():
        return pure(by_task, rule, probe(present="here"), zeros=False)

    if name in REFUSED:
        for way in (known, *ways.values()):
            with pytest.raises(ValueError, match="absent"):
                way()
        return
    wanted = known()
    for way, call in ways.items():
        found = call()
        assert len(found) == len(wanted), way
        assert all(map(torch.equal, found, wanted)), way


@pytest.mark.parametrize("rule", [mf.mean, mf.mgda, mf.upgrad, lambda: mf.uw(0.1), mf.pcgrad])
def test_a_vmap_over_weightings_is_its_loop(rule):
    """In some lanes a row is zero, in one all are."""
    lanes = torch.stack([ALL, SOME, ~SOME, ~ALL])
    options = {"weightings": "A"}, {"weightings": "A", "present": "here"}
    for zeros, given in ((True, options[0]), (False, options[1])):
        step = mf.balance(by_sample, rule(), probe(**given))
        state = step.init(PARAMS, batch_of(ALL), key=3)

        def weights(here, step=step, state=state, zeros=zeros):
            return step.update(PARAMS, batch_of(here, zeros), state)[::2]

        found, wanted = vmap(weights)(lanes), [weights(here) for here in lanes]
        for lane, one in enumerate(wanted):
            for x, y in zip(tree_leaves(found), tree_leaves(one), strict=True):
                torch.testing.assert_close(x[lane], y, rtol=1e-12, atol=1e-13)


def test_compiled_steps_are_eager_ones():
    step = mf.balance(by_sample, mf.mgda(), probe(weightings="A"))
    state = step.init(PARAMS, batch_of(ALL))
    torch.compiler.reset()
    run = torch.compile(lambda b: step.update(PARAMS, b, state)[2][:3], backend="eager")
    for here in STEPS:
        wanted = step.update(PARAMS, batch_of(here), state)[2][:3]
        for x, y in zip(run(batch_of(here)), wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_labels_of_another_number_of_tasks_are_refused():
    net, batch = nn.ParameterDict(PARAMS), batch_of(ALL)
    words = "^present: 2 entries, and weightings= has 3 rows, the tasks; give one entry for every"
    with pytest.raises(ValueError, match=words):
        mf.Balancer(net, mf.mgda()).backward(
            by_sample(net, batch), weightings=A, present=[True, True]
        )
    step = mf.balance(by_sample, mf.mgda(), probe(weightings="A", present="here"))
    with pytest.raises(ValueError, match=words):
        step.init(PARAMS, batch | {"here": ALL[:2]})
