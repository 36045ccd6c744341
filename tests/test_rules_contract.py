"""What is a rule, and what a rule demands of its probe: errors that name the cure."""

import pytest
import torch

import mtlfunc as mf
from mtlfunc import rules
from mtlfunc.rules.common import as_rule, required_arguments, rule_from
from tests.problems import BATCH, PARAMS, vector

SLIPS = {
    "factory with arguments": (mf.cagrad, r"call it: mtlfunc\.cagrad\(\.\.\.\)"),
    "factory": (mf.mgda, r"call it: mtlfunc\.mgda\(\)"),
    "name": ("cagrad", r"pass mtlfunc\.cagrad\(\.\.\.\), not 'cagrad'"),
    "name without arguments": ("mgda", r"pass mtlfunc\.mgda\(\), not 'mgda'"),
    "probe": (mf.losses_only(), "rule and probe are swapped"),
    "torch optimizer": (torch.optim.SGD([torch.zeros(1)], lr=0.1), "an optimizer"),
    "torch optimizer class": (torch.optim.Adam, "an optimizer"),
    "optimizer": (mf.adam(1e-3), "an optimizer"),
    "function": (lambda gramian: gramian[0], r"wrap it: mtlfunc\.stateless\("),
    "function of two": (lambda gramian, losses: losses, r"wrap it: mtlfunc\.stateless\("),
    "lambda": (lambda: mf.mgda(), r"call it if it makes a rule"),
    "number": (0.4, "got float"),
    "none": (None, "got NoneType"),
}
PLACES = {
    "as_rule": as_rule,
    "weights": lambda rule: mf.weights(rule, torch.eye(2)),
    "aggregate": lambda rule: mf.aggregate(rule, torch.eye(2)),
    "every": lambda rule: mf.every(rule, 2),
    "momentum": lambda rule: mf.momentum(rule),
    "normalize": lambda rule: mf.normalize(rule),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slip", SLIPS)
def test_what_is_no_rule_is_an_error_that_names_the_cure(slip, place):
    value, cure = SLIPS[slip]
    with pytest.raises(TypeError, match=f"(?s)rule.*{cure}" if place == "as_rule" else None):
        PLACES[place](value)


@pytest.mark.parametrize("name", sorted(set(rules.__all__) - {"stateless", "weights", "aggregate"}))
def test_every_uncalled_rule_is_told_from_a_function(name):
    with pytest.raises(TypeError, match=rf"that makes rules; call it: mtlfunc\.{name}\("):
        as_rule(getattr(mf, name))


def test_rule_from_takes_factories_and_functions():
    G, losses = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 3.0])
    made = mf.mgda()
    assert rule_from(made) is made
    for value in (mf.mgda, lambda: mf.mgda()):
        assert torch.equal(mf.weights(rule_from(value), G), mf.weights(made, G))
    assert torch.equal(mf.weights(rule_from(lambda g: g.diagonal()), G), G.diagonal())
    assert torch.equal(mf.weights(rule_from(lambda g, l: l), G, losses), losses)
    with pytest.raises(TypeError, match=r"call it: mtlfunc\.cagrad\("):
        rule_from(mf.cagrad)
    with pytest.raises(TypeError, match=r"needs no arguments, so it was called, but it gave a int"):
        rule_from(lambda: 3)
    with pytest.raises(TypeError, match="rule and probe are swapped"):
        rule_from(mf.losses_only())


def test_required_arguments():
    assert required_arguments(lambda: 0) == 0
    assert required_arguments(lambda a, b, c=1: 0) == 2
    assert required_arguments(lambda *a: 0) == 1
    assert required_arguments(lambda a, *, b=1: 0) == 1
    assert required_arguments(torch.nn.Identity()) == 1


JACOBIAN, TRACKED = mf.jacobian("trunk.*"), mf.tracked("trunk.*")
TWO = mf.double_sampling("trunk.*")
WRONG = {
    "modo": (mf.modo(), (JACOBIAN, TRACKED, mf.log_losses(JACOBIAN)), "double_sampling"),
    "sdmgrad": (mf.sdmgrad(), (JACOBIAN, TRACKED), "double_sampling"),
    "moco": (mf.moco(), (JACOBIAN, TWO, mf.log_losses(JACOBIAN)), "tracked"),
    "db_mtl": (mf.db_mtl(), (JACOBIAN, TRACKED, mf.log_losses(JACOBIAN)), "log_losses"),
    "famo": (mf.famo(), (JACOBIAN, TRACKED), "second_evaluation"),
    "excess_mtl": (mf.excess_mtl(), (JACOBIAN, TRACKED), "excess_risk"),
}
RIGHT = {
    "modo": (mf.modo(), TWO),
    "sdmgrad": (mf.sdmgrad(), TWO),
    "moco": (mf.moco(), TRACKED),
    "moco by groups": (mf.moco(), mf.tracked("trunk.*", groups="layer")),
    "db_mtl": (mf.db_mtl(), mf.log_losses(TRACKED)),
    "normalize": (mf.normalize(mf.moco()), TRACKED),
}


def step(rule, probe):
    batch = (BATCH, BATCH, BATCH) if probe is TWO else BATCH
    balance = mf.balance(vector, rule, probe)
    return balance.update(PARAMS, batch, balance.init(PARAMS, batch))


@pytest.mark.parametrize("name", WRONG)
def test_rule_on_a_probe_that_does_not_measure_what_it_needs_names_the_probe(name):
    rule, probes, right = WRONG[name]
    for probe in probes:
        for made in (rule, mf.momentum(rule), mf.every(rule, 2)):
            with pytest.raises(ValueError, match=rf"{name} needs .* use mtlfunc\.{right}"):
                step(made, probe)


@pytest.mark.parametrize("name", RIGHT)
def test_rule_on_its_own_probe(name):
    rule, probe = RIGHT[name]
    assert all(bool(leaf.isfinite().all()) for leaf in step(rule, probe)[0].values())


@pytest.mark.parametrize("make", [mf.modo, mf.sdmgrad, mf.moco, mf.db_mtl])
def test_gramian_by_hand_stands_for_what_the_probe_measures(make):
    assert bool(mf.weights(make(), torch.eye(2)).isfinite().all())
    assert bool(mf.aggregate(make(), torch.eye(2)).isfinite().all())
