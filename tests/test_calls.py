"""Parts of a method are data, compared, written and pickled as a call, and shown on one screen."""

import copy
import gc
import inspect
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

import mtlfunc as mf
from mtlfunc import solvers
from mtlfunc.calls import Made, call_of, constructor
from mtlfunc.core import optim
from mtlfunc.types import Info, Solution
from tests.support import python, registry
from tests.support.loops import rollout
from tests.support.problems import BATCH, PARAMS, decode, encode, net, vector
from tests.support.registry import PROBES, RULES, SOLVERS, on_gramian


def residuals(params, batch):
    return vector(params, batch)


PARTS: dict[str, Callable[[], Any]] = {
    # RULES keeps what is made
    name: getattr(case.make, "__wrapped__", case.make) if table is RULES else case.make
    for table in (RULES, PROBES, SOLVERS)
    for name, case in table.items()
    if call_of(case.make())
} | {
    **{name: getattr(mf, name) for name in ("famo", "excess_mtl", "modo", "moco", "sdmgrad")},
    **{name: getattr(mf, name) for name in ("db_mtl", "double_sampling", "excess_risk")},
    **{"graddrop": mf.graddrop, "ntk": mf.physics.ntk},
    "align": lambda: mf.align(0.3),
    "gauss_newton-momentum": lambda: mf.physics.gauss_newton(0.1, momentum=True),
    "safe": lambda: mf.safe(mf.mgda()),
    "cagrad-preference": lambda: mf.cagrad(0.4, preference=torch.tensor([0.3, 0.7])),
    "cagrad-tensor": lambda: mf.cagrad(torch.tensor(0.4)),
    "moving_average": lambda: mf.moving_average("trunk.*", rate=0.3),
    "kernel_traces": lambda: mf.physics.kernel_traces([residuals], mf.losses_only()),
    "second_evaluation": lambda: mf.second_evaluation(mf.losses_only()),
    "subset": lambda: mf.subset(2),
    **{"sgd": lambda: mf.sgd(0.1), "sgd-momentum": lambda: mf.sgd(0.1, 0.9)},
    "adam": lambda: mf.adam(0.1, (0.8, 0.9)),
    "multiplicative": lambda: optim.multiplicative(0.1),
    "balance": lambda: mf.balance(vector, mf.mgda(), mf.jacobian("trunk.*")),
    "descend": lambda: mf.descend(vector, mf.uw(0.1), mf.jacobian(), mf.adam(0.1)),
}
NAMES = {"mf": mf, "torch": torch, "decode": decode, "encode": encode, "vector": vector}
NAMES |= {"residuals": residuals} | {k: x for k, x in vars(registry).items() if k.startswith("_")}


def by_hand(part: Any) -> bool:
    """Whether a lambda is among the arguments, which neither pickle nor `repr` can name."""
    call = call_of(part)
    return call is not None and "<lambda>" in repr(call)


WHOLE = [name for name, make in PARTS.items() if not by_hand(make())]


def test_every_constructor_is_here():
    made = {call.make for make in PARTS.values() if (call := call_of(make()))}
    rooms = (mf, solvers, optim, mf.physics)
    public = [getattr(room, name) for room in rooms for name in room.__all__]
    constructors = {
        f
        for f in public
        if inspect.isfunction(f)
        and getattr(given := inspect.signature(f).return_annotation, "__name__", str(given))
        in ("Rule", "Probe", "Optimizer", "Solver", "Balance", "Step", "EditRows", "Mix")
    }
    assert len(constructors) > 50
    assert constructors <= made, constructors - made
    assert len(WHOLE) == len(PARTS) - 1  # a lambda of stateless


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_is_data(name):
    part, again = PARTS[name](), PARTS[name]()
    assert part == again
    assert hash(part) == hash(again)
    assert part is not again
    assert copy.deepcopy(part) == part
    assert eval(repr(part), dict(NAMES)) == part
    assert pickle.loads(pickle.dumps(part)) == part


def test_parts_of_other_arguments_differ():
    parts = [PARTS[name]() for name in WHOLE]
    assert len(set(parts)) == len(parts)
    assert mf.mgda() == mf.mgda(None) == mf.mgda(solver=None)
    p = torch.tensor([0.3, 0.7])
    assert mf.mean(preference=p) == mf.mean(preference=p.clone())
    assert mf.mean(preference=p) != mf.mean(preference=p.double())
    assert mf.mean(preference=p) != mf.mean(preference=p.flip(0))
    assert mf.cagrad(1) != mf.cagrad(True) != mf.cagrad(1.0)
    f = lambda gramian: gramian.diagonal()  # noqa: E731
    assert mf.stateless(f) == mf.stateless(f)
    assert repr(mf.stateless(torch.Tensor.diagonal)) == "mf.stateless(diagonal)"
    assert mf.stateless(f) != mf.stateless(lambda gramian: gramian.diagonal())


def test_another_process_gets_the_same_parts():
    gramian = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.2], [0.5, 0.2, 1.0]]).double()
    rules = [PARTS[name]() for name in WHOLE if isinstance(PARTS[name](), mf.Rule)]
    known = {"gramian", "present", "preference"}
    rules = [x for x in rules if x.reads is not None and x.reads <= known and "0.3" not in repr(x)]
    assert len(rules) > 25
    code = """import pickle, sys, mtlfunc as mf
rules, gramian, rest = pickle.load(sys.stdin.buffer)
found = [mf.weights(rule, gramian) for rule in rules]
pickle.dump((found, [repr(x) for x in rest]), sys.stdout.buffer)"""
    parts = [PARTS[name]() for name in WHOLE]
    done = python("-c", code, input=pickle.dumps((rules, gramian, parts)), text=False)
    found, shown = pickle.loads(done.stdout)
    assert shown == list(map(repr, parts))
    for rule, weights in zip(rules, found, strict=True):
        assert torch.equal(weights, mf.weights(rule, gramian)), rule


def test_a_lambda_cannot_be_pickled():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(mf.stateless(lambda gramian: gramian.diagonal()))


def test_a_replaced_field_is_another_part():
    rule = mf.modo(lr=0.3)
    other = on_gramian(rule)
    assert other != rule
    assert call_of(other) is None
    assert pickle.loads(pickle.dumps(other)) == other
    assert eval(repr(other), {"mf": mf, "Rule": mf.Rule}) == other
    assert other._replace(reads=rule.reads) == rule


def test_a_tree_of_parts_is_mapped_as_before():
    rule = mf.cagrad(0.4)
    leaves, spec = pytree.tree_flatten(rule)
    assert [type(x) for x in leaves] == [Made, Made, frozenset, str]
    assert pytree.tree_unflatten(leaves, spec) == rule
    gramian = torch.eye(2)
    both = vmap(lambda c: mf.weights(mf.cagrad(c), gramian))(torch.tensor([0.1, 0.4]))
    assert torch.allclose(both[1], mf.weights(rule, gramian))


def test_arguments_of_any_kind_are_written_and_compared():
    @constructor
    def holding(x):
        return lambda: x

    entries = np.array([0.5, 0.5])
    assert holding(entries) == holding(entries)
    assert holding(entries) != holding(entries.copy())
    assert mf.cagrad(np.float64(0.4)) == mf.cagrad(np.float64(0.4))
    once = mf.jacobian(name for name in ("a.*", "b.*"))
    assert repr(once) == "mf.jacobian(<generator>)"
    assert once != mf.jacobian(name for name in ("a.*", "b.*"))


def test_arguments_are_freed_with_their_part():
    """Without the garbage collector: they may hold a graph, or a level of a transform."""
    gc.collect()
    gc.disable()
    try:
        for make in (mf.mean, mf.upgrad):
            argument = torch.ones(3) / 3
            held, part = weakref.ref(argument), make(preference=argument)
            del argument, part
            assert held() is None
    finally:
        gc.enable()


def fits(x) -> str:
    text = repr(x)
    assert len(text.splitlines()) <= 24  # lines of a terminal
    assert max(map(len, text.splitlines())) <= 240
    assert " at 0x" not in text
    return text


@pytest.mark.parametrize("name", [*RULES, *PROBES])
def test_rules_and_probes_are_a_line(name):
    begins = r"mf\.[\w.]+\(|Rule\(init=" if name in RULES else rf"mf\.{name.split('-')[0]}\("
    assert re.match(begins, fits((RULES | PROBES)[name].make()))


def test_steps_states_and_what_they_report_are_one_screen():
    probe = mf.jacobian("trunk.*")
    step = mf.descend(vector, mf.gradnorm(1.5), probe, mf.adam(1e-3))
    state = step.init(PARAMS, BATCH)
    state, info = step.update(state, BATCH)
    assert "losses    [" not in fits(info)
    assert "weights  [" in fits(info)
    assert "trunk.0.weight [6, 4]" in fits(state)
    balance = mf.balance(vector, mf.mgda(), probe)
    assert "mf.balance(vector, mf.mgda(), mf.jacobian(" in fits(balance)
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
    assert isinstance(pytree.tree_map(lambda x: x + 0, together), Solution)
    assert grad(lambda g: solve(g).value)(batch[0]).shape == (3, 3)
    assert torch.equal(pickle.loads(pickle.dumps(together)).gap, together.gap)
