"""What is a rule, and what a rule demands of its probe: errors that name the cure."""

import pytest
import torch

import mtlfunc as mf
from mtlfunc import rules
from mtlfunc.core.expect import expect_rule
from mtlfunc.rules.common import required_arguments
from tests.problems import BATCH, PARAMS, vector

SLIPS = {
    "factory with arguments": (mf.cagrad, r"function cagrad itself; call it, cagrad\(\.\.\.\)"),
    "factory": (mf.mgda, r"function mgda itself; call it, mgda\("),
    "name": ("cagrad", r"such as mtlfunc\.cagrad\(0\.4\), not a name"),
    "probe": (mf.losses_only(), "got a probe; the order is"),
    "torch optimizer": (torch.optim.SGD([torch.zeros(1)], lr=0.1), r"got torch\.optim\.SGD"),
    "torch optimizer class": (torch.optim.Adam, r"got torch\.optim\.Adam"),
    "optimizer": (mf.adam(1e-3), "got an optimizer; the order is"),
    "function": (lambda gramian: gramian[0], r"mtlfunc\.stateless\(f\)"),
    "number": (0.4, "got an object of type float"),
    "none": (None, "got None"),
}
PLACES = {
    "weights": lambda rule: mf.weights(rule, torch.eye(2)),
    "aggregate": lambda rule: mf.aggregate(rule, torch.eye(2)),
    "every": lambda rule: mf.every(rule, 2),
    "momentum": lambda rule: mf.momentum(rule),
    "normalize": lambda rule: mf.normalize(rule),
    "balance": lambda rule: mf.balance(vector, rule, mf.jacobian()),
}


def test_what_is_no_rule_is_an_error_that_names_the_cure():
    for value, cure in SLIPS.values():
        with pytest.raises(TypeError, match=f"(?s)rule.*{cure}"):
            expect_rule(value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slip", SLIPS)
def test_every_place_that_takes_a_rule_refuses_what_is_none(slip, place):
    with pytest.raises(TypeError):  # by the annotation where these are enforced, else by the check
        PLACES[place](SLIPS[slip][0])


@pytest.mark.parametrize("name", sorted(set(rules.__all__) - {"stateless", "weights", "aggregate"}))
def test_every_uncalled_rule_is_told_from_a_function(name):
    with pytest.raises(TypeError, match=rf"got the function {name} itself; call it, {name}\("):
        expect_rule(getattr(mf, name))


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
