"""Losses in a dict are read by name, whatever their order at a step; tasks that come or go."""

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf
from tests.support.loops import rollout
from tests.support.oracles import same
from tests.support.problems import BATCH, PARAMS, decode, encode, named, nets, scalars, vector
from tests.support.steps import SHARED, STATEFUL, parts

ORDERS = ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0))
NAMES = ("task 0", "task 1", "task 2")


def reordered(losses, order):
    """The same losses by name, in another order."""
    return {f"task {task}": losses[f"task {task}"] for task in order}


class Shuffled:
    """`named`, in another order at each call after the first."""

    def __init__(self, losses_fn):
        self.losses_fn, self.calls = losses_fn, 0

    def __call__(self, *args):
        out = reordered(self.losses_fn(*args), ORDERS[self.calls % len(ORDERS)])
        self.calls += 1
        return out


def named_decode(params, z, batch):
    return {f"task {task}": loss for task, loss in enumerate(decode(params, z, batch).unbind())}


def some(batch):
    return torch.tensor([True, False, True])


def encoded(losses):
    return mf.representation(encode, losses(named_decode), shared=SHARED)


METHODS = {
    **{x: lambda losses, x=x: parts(x) for x in ("pcgrad", "gradnorm", *STATEFUL)},
    "present": lambda losses: (mf.mgda(), mf.jacobian(SHARED, present=some), BATCH),
    "losses only": lambda losses: (mf.stch(0.3), mf.losses_only(), BATCH),
    "representation": lambda losses: (mf.mgda(), encoded(losses), BATCH),
}


def run(name, wrap, params=PARAMS, steps=3, record=lambda _, info: info):
    rule, probe, batch = METHODS[name](wrap)
    step = mf.descend(wrap(named), rule, probe, mf.sgd(0.02))
    return rollout(step, step.init(params, batch, key=4), [batch] * steps, record)


@pytest.mark.parametrize("name", METHODS)
def test_a_dict_in_another_order_at_each_step_changes_nothing(name):
    orders = []  # stacked infos have that of the first
    got = run(name, Shuffled, record=lambda _, info: orders.append(tuple(info.tasks)) or info)
    same(got, run(name, lambda losses_fn: losses_fn), 1e-12, 1e-14)
    assert orders == [NAMES] * 3
    assert torch.equal(torch.stack(tuple(got[1].tasks.values()), -1), got[1].losses)
    assert got[0].balance.tasks == dict.fromkeys(NAMES, ())


@pytest.mark.parametrize("name", ["pcgrad", "representation", "famo"])
def test_names_pass_through_vmap(name):
    whole = vmap(lambda params: run(name, Shuffled, params))(mf.stack(nets))
    assert tuple(whole[1].tasks) == NAMES
    for i, module in enumerate(nets):
        alone = run(name, lambda losses_fn: losses_fn, mf.parameters(module))
        same(tree_map(lambda x, i=i: x[i], whole), alone, 1e-9, 1e-13)


def test_the_order_is_that_of_init_and_stays_so_through_a_file(tmp_path):
    forms = named, lambda params, batch: reordered(named(params, batch), (2, 1, 0))
    other, step = (mf.balance(losses, mf.mgda(), mf.jacobian(SHARED)) for losses in forms)
    torch.save(step.init(PARAMS, BATCH), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    for balance in (step, other):
        _, _, info = balance.update(PARAMS, BATCH, state)
        assert tuple(info.tasks) == NAMES[::-1]
        torch.testing.assert_close(info.losses, vector(PARAMS, BATCH).flip(0))


def test_names_come_with_aux_and_are_recorded():
    def with_aux(params, batch):
        losses = Shuffled(named)(params, batch)
        return losses, {"total": torch.stack(tuple(losses.values())).sum()}

    step = mf.descend(with_aux, mf.mgda(), mf.jacobian(SHARED), mf.sgd(0.02), has_aux=True)
    _, record = rollout(step, step.init(PARAMS, BATCH), [BATCH] * 3)
    assert {name: len(loss) for name, loss in record.tasks.items()} == dict.fromkeys(NAMES, 3)
    torch.testing.assert_close(torch.stack(tuple(record.tasks.values()), 1), record.losses)


def without(losses_fn, name):
    return lambda *args: {key: x for key, x in losses_fn(*args).items() if key != name}


CHANGES = {
    "missing": (named, without(named, "task 1"), "losses_fn: no loss at this step for 'task 1'"),
    "extra": (without(named, "task 1"), named, "losses_fn: 'task 1' is new at this step"),
    "renamed": (
        named,
        lambda p, b: {name.replace(" ", "_"): x for name, x in named(p, b).items()},
        "no loss at this step for 'task 0', 'task 1', 'task 2'",
    ),
    "shorter vector": (vector, lambda p, b: vector(p, b)[:2], "losses_fn:"),
    "longer tuple": (lambda p, b: scalars(p, b)[:2], scalars, "losses_fn:"),
    "names lost": (named, vector, "the losses were a dict at init and are without names"),
    "names gained": (vector, named, "the losses were without names at init and are a dict"),
}


@pytest.mark.parametrize("probe", [lambda: mf.jacobian(SHARED), mf.losses_only])
@pytest.mark.parametrize("change", CHANGES)
def test_tasks_that_come_or_go_are_named(change, probe):
    first, second, message = CHANGES[change]
    state = mf.balance(first, mf.mean(), probe()).init(PARAMS, BATCH)
    with pytest.raises(ValueError, match=message):
        mf.balance(second, mf.mean(), probe()).update(PARAMS, BATCH, state)


def test_tasks_that_come_or_go_between_the_batches_of_one_step_are_named():
    def losses(params, batch):
        return (without(named, "task 1") if len(batch[0]) < 8 else named)(params, batch)

    step = mf.balance(losses, mf.modo(), mf.double_sampling(SHARED))
    half = tuple(x[:4] for x in BATCH)
    with pytest.raises(ValueError, match="no loss at this step for 'task 1'"):
        step.init(PARAMS, (BATCH, half))


def test_decode_names_its_losses_only_where_losses_fn_does():
    probe = mf.representation(encode, named_decode, shared=SHARED)
    with pytest.raises(ValueError, match="decode returned a dict of losses, so losses_fn must"):
        mf.balance(vector, mf.mgda(), probe).init(PARAMS, BATCH)
    missing = mf.representation(encode, without(named_decode, "task 1"), shared=SHARED)
    with pytest.raises(ValueError, match="decode: no loss at this step for 'task 1'"):
        mf.balance(named, mf.mgda(), missing).init(PARAMS, BATCH)
