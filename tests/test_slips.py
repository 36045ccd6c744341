"""The commonest slips, without enforced annotations: errors with argument and cure."""
# pyright: reportArgumentType=false, reportCallIssue=false

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import mtlfunc as mf
from mtlfunc.types import BalanceState, TrainState
from tests.support.problems import BATCH, PARAMS, SHARED, TASKS, decode, encode, net, vector

TORCH = "optimizer: got torch.optim.Adam, which moves parameters in place"
LOOP = r"mtlfunc\.balance, mtlfunc\.assign_gradients and optimizer\.step\(\)"
ADAM, KEY, ONES = torch.optim.Adam(net.parameters()), mf.random.key(0), {"x": torch.ones(2)}
RULE, PROBE, SGD = mf.mgda(), mf.jacobian(SHARED), mf.sgd(0.1)
BY = mf.jacobian(weightings=lambda batch: torch.eye(TASKS))
PLAIN = mf.descend(vector, RULE, PROBE, SGD)
LEARNING = mf.descend(vector, mf.gradnorm(0.5), PROBE, mf.adam(0.1))
TWO = mf.descend(lambda p, b: vector(p, b)[:2], mf.gradnorm(0.5), PROBE, mf.adam(0.1))


def started(rule=RULE, probe=PROBE, losses_fn=vector, params=PARAMS, batch=BATCH, **options):
    balance = mf.balance(losses_fn, rule, probe, **options)
    return balance, balance.init(params, batch)


def stepped(*args, params=PARAMS, batch=BATCH, **options):
    balance, state = started(*args, params=params, batch=batch, **options)
    return balance.update(params, batch, state)


def begun(step=PLAIN):
    return step.init(PARAMS, BATCH)


def altered(**parts):
    return LEARNING.update(begun(LEARNING)._replace(**parts), BATCH)


OTHERS = begun(TWO).balance._replace(tasks=((),) * 3)


def with_aux(aux):
    return lambda params, batch: (vector(params, batch), aux)


PARTS = {
    "a list for a module": (lambda: mf.Balancer([net], RULE), r"module: .*ModuleDict"),
    "a probe not called": (lambda: mf.balance(vector, RULE, mf.jacobian), "probe:"),
    "an optimizer not called": (lambda: mf.descend(vector, RULE, PROBE, mf.adam), "optimizer:"),
    "a glob for a probe": (lambda: mf.balance(vector, RULE, "trunk.*"), "probe: .* got 'trunk"),
    "rule and probe swapped": (lambda: mf.balance(vector, PROBE, RULE), "rule: .*[Pp]robe.*order"),
    "probe and optimizer swapped": (lambda: mf.descend(vector, RULE, SGD, PROBE), "probe:"),
    "torch's optimizer": (lambda: mf.descend(vector, RULE, PROBE, ADAM), f"{TORCH}.*{LOOP}"),
    "torch's class": (lambda: mf.descend(vector, RULE, PROBE, torch.optim.Adam), TORCH),
    "a rule of no functions": (lambda: mf.balance(vector, mf.Rule(None, None), PROBE), "rule:"),
    "the module for its losses": (lambda: mf.balance(net, RULE, PROBE), "losses_fn:"),
    "losses for losses_fn": (lambda: mf.balance(torch.ones(3), RULE, PROBE), "losses_fn:"),
    "losses_fn of parameters": (lambda: mf.balance(lambda params: 0, RULE, PROBE), "losses_fn:"),
    "a probe of a probe not called": (lambda: mf.second_evaluation(mf.jacobian), "probe:"),
    "a rule evaluated twice": (lambda: mf.second_evaluation(mf.famo()), "probe: .*got a rule"),
    "a mask not called": (lambda: mf.jacobian(mask=mf.graddrop), r"mask: .*mtlfunc\.graddrop\(\)"),
    "a mask's name": (lambda: mf.jacobian(mask="graddrop"), r"mask: .* of \(key, rows\), got '"),
    "a mix not called": (lambda: mf.jacobian(mix=mf.subset), "mix: .* but subset takes"),
    "a number for a mix": (lambda: mf.jacobian(mix=2), r"mix: expected a function of \(key, coun"),
    "an optimizer that was made": (lambda: mf.famo(optimizer=SGD), r"optimizer: .*, not called"),
    "a list for orders": (lambda: mf.pcgrad([[0, 1], [1, 0]]), r"orders: .*torch\.as_tensor"),
    "a list for others": (lambda: mf.pareto_mtl(others=[[0, 1]]), r"others: .*torch\.as_tensor"),
    "a list for z": (lambda: started(mf.pbi(reference=[0.0] * TASKS)), r"reference: .*\.as_tensor"),
    "a mask for present": (lambda: mf.losses_only(present=torch.ones(TASKS) > 0), "present:"),
    "a rate of nothing": (lambda: mf.moving_average(rate=lambda: 0.1), "rate:"),
    "a module for encode": (lambda: mf.representation(net.trunk, decode), "encode:"),
    "decode without parameters": (lambda: mf.representation(encode, lambda z, batch: z), "decode:"),
    "one beta": (lambda: mf.adam(1e-3, betas=0.9), r"betas: expected a pair.* got 0\.9"),
    "text in aux": (lambda: started(losses_fn=with_aux({"name": "x"}), has_aux=True), "losses_fn:"),
    "aux of samples": (lambda: started(RULE, BY, with_aux(0), has_aux=True), "fn: aux holds 0"),
    "no state": (lambda: started()[0].update(PARAMS, BATCH, None), "state:"),
    "parameters for a state": (lambda: PLAIN.update(PARAMS, BATCH), "state: .* type dict; start"),
    "state and info": (lambda: PLAIN.update(PLAIN.update(begun(), BATCH), BATCH), "state:"),
    "a step's state": (lambda: started()[0].update(PARAMS, BATCH, begun()), "state:"),
    "a balance's state in a step": (lambda: PLAIN.update(started()[1], BATCH), "state:"),
    "batch and state swapped": (lambda: PLAIN.update(BATCH, begun()), "state:"),
    "a module for parameters": (lambda: started()[0].update(net, BATCH, started()[1]), "params:"),
}

VALUES = {
    "a fraction for a task": (lambda: mf.pcd(primary=1.0), "primary: expected a whole number"),
    "a number for warmup": (lambda: mf.stch(1.0, warmup=5), "warmup: expected .* got 5"),
    "lengths of a product of two batches": (
        lambda: started(mf.normalize(mf.modo()), mf.double_sampling()),
        "no probe measures both.*by='loss'"),
    "a state of another rule": (lambda: LEARNING.update(begun(), BATCH), "state:"),
    "a state of a rule with memory": (lambda: PLAIN.update(begun(LEARNING), BATCH), "state:"),
    "a state of other tasks": (lambda: LEARNING.update(begun(TWO), BATCH), "losses_fn:"),
    "a rule's state of other tasks": (lambda: altered(balance=OTHERS), "state:"),
    "a state made by hand": (
        lambda: LEARNING.update(TrainState(PARAMS, BalanceState((), (), ()), ()), BATCH), "state:"),
    "a state of another optimizer": (lambda: altered(optimizer=()), "state:"),
    "an optimizer's state of other parameters": (
        lambda: mf.sgd(0.1, 0.9).update(PARAMS, {"x": torch.ones(2)}, PARAMS), "state:"),
    "an optimizer's state of other shapes": (
        lambda: mf.adam(0.1).update(ONES, mf.adam(0.1).init({"x": torch.ones(1)}), ONES), "state:"),
    "weights of another shape": (lambda: stepped(mf.stateless(lambda gramian: gramian)), "rule:"),
    "weights in a list": (lambda: stepped(mf.stateless(lambda G: [1.0, 2.0, 3.0])), "rule:"),
    "a mix without preference": (
        lambda: started(probe=mf.jacobian(SHARED, mix=lambda key, count: torch.eye(2))), "mix:"),
    "a mask that drops a leaf": (
        lambda: stepped(probe=mf.jacobian(SHARED, mask=lambda k, rows: dict([*rows.items()][1:]))),
        "mask:"),
    "a detached representation": (
        lambda: started(probe=mf.representation(lambda p, b: encode(p, b).detach(), decode)),
        "encode:"),
}  # fmt: skip


def probing(change):
    """A probe whose answer is changed on its way."""
    return PROBE._replace(update=lambda *given: (change(PROBE.update(*given)[0]), ()))


PARTS |= {  # of probes
    "a probe without an answer": (
        lambda: stepped(probe=PROBE._replace(update=lambda *_: None)), "probe: .* got NoneType"),
    "geometry for an answer": (lambda: stepped(probe=probing(lambda x: x[1])), "probe: .*Geometry"),
    "losses alone": (
        lambda: started(probe=PROBE._replace(init=lambda *_: torch.ones(3))),
        "probe: .*got Tensor"),
    "a number for a probe's state": (
        lambda: started(probe=PROBE._replace(init=lambda *given: (PROBE.init(*given)[0], 0.5))),
        "probe: state .* float"),
    "a list for measures": (
        lambda: mf.balance(vector, RULE, PROBE._replace(measures=["gramian"])),
        r"probe: measures is \['gramian'\]"),
    "a probe of names": (lambda: started(probe=mf.jacobian(lambda _: PROBE)), "shared: .*Probes"),
}  # fmt: skip
VALUES |= {
    "a Gramian of two tasks": (lambda: stepped(
        probe=probing(lambda x: x._replace(geometry=x[1]._replace(gramian=torch.eye(2))))),
        r"\[2, 2\] beside 3 loss"),
    "no first leaf": (lambda: stepped(
        probe=probing(lambda x: x._replace(combine=lambda w: dict([*x[2](w).items()][1:])))),
        r"no gradient.*heads=run\.heads"),
}  # fmt: skip
PAIR = r"rule: expected \(weights, state\) from update, got Tensor"
FORGETFUL = RULE._replace(update=lambda geometry, state: torch.ones(2))
PARTS |= {  # of notebooks
    "weights without a state": (lambda: mf.weights(FORGETFUL, torch.eye(2)), PAIR),
    "a direction without a state": (lambda: mf.aggregate(FORGETFUL, torch.eye(2)), PAIR),
    "a portrait without a state": (lambda: mf.plot.portrait(FORGETFUL, cells=(2, 2)), PAIR),
    "a rule for a function": (lambda: mf.stateless(RULE), "stateless:"),
    "a tuple for a step's report": (lambda: mf.log_dict(stepped()), "info:"),
    "parameters of parameters": (lambda: mf.parameters(PARAMS), "module:"),
    "a stack of parameters": (lambda: mf.stack([PARAMS, PARAMS]), "module:"),
    "whole normal numbers": (lambda: mf.random.normal(KEY, (2,), torch.int64), "dtype:"),
    "numbers of no dtype": (lambda: mf.random.uniform(KEY, (2,), None), "dtype:"),
    "a figure for axes": (lambda: mf.plot.heatmap(torch.eye(2), Figure()), "ax:"),
}


@pytest.mark.parametrize("slip", PARTS | VALUES)
def test_a_slip_is_named(slip):
    call, message = (PARTS | VALUES)[slip]
    with pytest.raises(ValueError if slip in VALUES else TypeError, match=message):
        call()


@pytest.mark.parametrize("draw", [mf.random.normal, mf.random.uniform])
def test_one_number_is_a_shape_also_under_vmap(draw):
    together = torch.func.vmap(lambda key: draw(key, 3))(torch.arange(2))
    assert torch.equal(together, torch.stack([draw(mf.random.key(k), 3) for k in range(2)]))


def test_an_error_of_a_rule_is_its_own_where_its_state_is_not_to_blame():
    def broken(geometry, state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stepped(mf.Rule(lambda losses, key: {"x": losses}, broken))


def test_what_has_the_shape_of_a_part_is_one():
    class Half(nn.Module):
        def init(self, params):
            return ()

        def update(self, grads, state, params):
            return {name: leaf - 0.5 * grads[name] for name, leaf in params.items()}, ()

    class Losses(nn.Module):
        def forward(self, params, batch):
            return vector(params, batch)

    class Mean:  # it does not say what it reads
        def init(self, losses, key):
            return ()

        def update(self, geometry, state):
            return geometry.preference, state

    for rule in (Mean(), mf.momentum(Mean()), mf.normalize(Mean(), "loss")):
        assert stepped(rule, probe=mf.losses_only())[2].weights.shape == (3,)

    steps = [mf.descend(f, RULE, PROBE, o) for f, o in ((Losses(), Half()), (vector, mf.sgd(0.5)))]
    ends = [step.update(step.init(PARAMS, BATCH), BATCH)[0].params for step in steps]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in PARAMS)


def test_a_batch_that_is_two_batches_gets_a_hint():
    with pytest.raises(ValueError, match="too many values") as error:
        started(mf.modo(), mf.double_sampling(SHARED))
    assert "each entry of the batch is a batch of its own" in error.value.__notes__[0]


def test_diagnostics_of_something_else():
    diagnostics, G = mf.diagnostics, torch.eye(12)
    for tasks in (2.0, "2", None):
        for call in (
            lambda tasks: diagnostics.conflict(G, tasks),
            lambda tasks: diagnostics.running_conflict(None, G, tasks),
            lambda tasks: diagnostics.sample_noise(G, tasks),
            lambda tasks: diagnostics.noise_scale(G, tasks=tasks),
        ):
            with pytest.raises(ValueError, match=rf"tasks={tasks!r}: .* an integer"):
                call(tasks)
    found, state = diagnostics.running_conflict(None, G, 2)
    for other in (found, (found, state), tuple(state), G, 0):
        with pytest.raises(TypeError, match="state: expected None or the last call's"):
            diagnostics.running_conflict(other, G, 2)


@pytest.mark.parametrize("given", [PROBE, RULE, SGD])
def test_a_part_of_a_step_in_place_of_a_choice_of_parameters(given):
    for probe in (mf.jacobian, mf.moving_average, mf.excess_risk):
        with pytest.raises(TypeError, match=r"^shared: expected a glob .*, got (Probe|Rule|Opt)"):
            started(probe=probe(given))


def test_gradients_and_gramians_of_a_module_itself():
    module = nn.Linear(2, 1)
    params, x = mf.parameters(module), torch.ones(3, 2)
    for measure in (mf.sample_gramian, mf.sample_norms, mf.task_gramian, mf.task_gradients):
        with pytest.raises(TypeError, match=r"^losses_fn: got the module Linear itself; write"):
            measure(module, params, x)
    both = {"samples": True, "weightings": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"^samples: not with weightings="):
        mf.explain_gramian(lambda p, x: (x @ p["weight"].mT)[:, 0], params, x, **both)
