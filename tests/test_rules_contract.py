"""What is a rule, and what a rule demands of its probe: errors that name the cure."""

import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc import rules
from mtlfunc.core.expect import expect_rule, rule_name
from mtlfunc.rules.common import as_rule, may_read
from mtlfunc.types import GRAMIANS, Geometry
from tests.support.families import jacobian
from tests.support.problems import BATCH, F64, PARAMS, vector
from tests.support.registry import PROBES, RULES

SLIPS = {
    "factory with arguments": (mf.cagrad, r"function cagrad itself; call it, cagrad\(\.\.\.\)"),
    "factory": (mf.mgda, r"function mgda itself; call it, mgda\("),
    "name": ("cagrad", r"such as mtlfunc\.cagrad\(0\.4\), got 'cagrad'"),
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


UNCALLED = {
    **{x: getattr(mf, x) for x in set(rules.__all__) - {"stateless", "weights", "aggregate"}},
    "gauss_newton": mf.physics.gauss_newton,
    "ntk": mf.physics.ntk,
}


@pytest.mark.parametrize("name", sorted(UNCALLED))
def test_every_uncalled_rule_is_told_from_a_function(name):
    with pytest.raises(TypeError, match=rf"got the function {name} itself; call it, {name}\("):
        expect_rule(UNCALLED[name])


ODD = {
    "no function": (0.4, "function of the Gramian .*, got float"),
    "makes none": (lambda: 0.4, "gave a float and not a mtlfunc.Rule"),
    "needs arguments": (mf.cagrad, r"cagrad makes rules .*; pass the rule, cagrad\(\.\.\.\)"),
    "three arguments": (lambda a, b, c: a, "stateless: expected f"),
}


@pytest.mark.parametrize("odd", ODD)
def test_as_rule_refuses_what_makes_no_rule(odd):
    value, words = ODD[odd]
    with pytest.raises(TypeError, match=words):
        as_rule(value)


# What a rule reads

FIELDS = ("losses", "gramian", "preference", "present")
PROBED = ("modo", "moco", "sdmgrad", "db_mtl", "famo", "excess_mtl")
SPECIAL = {f"{name} on a probe": getattr(mf, name) for name in PROBED} | {
    "align on a probe": lambda: mf.align(0.3),
    "ntk on a probe": mf.physics.ntk,
    "align normalised": lambda: mf.normalize(mf.align(0.3)),
    "moco normalised": lambda: mf.normalize(mf.moco()),
    "normalize-loss of mean": lambda: mf.normalize(mf.mean(), "loss"),
    "safe of mgda": lambda: mf.safe(mf.mgda(), 0.1),
    "momentum of uw": lambda: mf.momentum(mf.uw(0.1)),
}
OWN = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
SPECIAL |= {
    f"{name} with a preference": lambda make=make: make(preference=OWN)
    for name, make in {
        **{x: getattr(mf, x) for x in ("mean", "pcgrad", "famo", "config", "sdmgrad", "db_mtl")},
        "cagrad": lambda preference: mf.cagrad(0.4, preference=preference),
        "uw": lambda preference: mf.uw(0.1, preference=preference),
        "dwa": lambda preference: mf.dwa(1, preference=preference),
        "epo": lambda preference: mf.epo(preference),
        "align": lambda preference: mf.align(0.3, "mean", preference=preference),
    }.items()
}
READERS = {name: case.make for name, case in RULES.items()} | SPECIAL


def test_every_rule_is_asked_what_it_reads():
    assert {*UNCALLED, "stateless"} <= {rule_name(make()) for make in READERS.values()}


def seen(seed: int) -> Geometry:
    """A geometry in which all values differ, and one task of four batches is absent."""
    rows, tasks = jacobian("gaussian", 3, seed), torch.arange(3, dtype=F64)
    losses = 1 + ((seed + 1) * (tasks + 1) * 0.37) % 1
    present = torch.tensor([True, True, seed % 4 != 3])
    preference = (1 + ((seed + 2) * (tasks + 3) * 0.61) % 1) * present
    extra = {
        "last_losses": losses * (1.1 + tasks / 10),
        "last_losses_now": losses * (1 - tasks / 20),
        "last_present": torch.ones(3, dtype=torch.bool),
        "excess_risk": 2 + losses.flip(0),
        "trace": rows.square().sum(1),
        "carried": rows @ (0.3 * rows[0] - 0.7 * rows[1]),
    }
    return Geometry(losses, rows @ rows.mT, preference / preference.sum(), present, extra)


def answers(rule: mf.Rule, change: Callable[[Geometry], Geometry]) -> list[torch.Tensor]:
    """The weights of five updates on changed geometries; an error ends them."""
    given, found = [change(seen(seed)) for seed in range(5)], []
    try:
        state = rule.init(given[0].losses, mf.random.key(0))
        for geometry in given:
            weights, state = rule.update(geometry, state)
            found.append(weights)
    except ValueError:
        pass
    return found


def other(field: str, value: torch.Tensor) -> torch.Tensor:
    """Another value for a field, which is possible."""
    if field in ("present", "last_present"):
        return torch.tensor([False, True, True]) & value
    scale = torch.tensor([0.1, 30.0, 1.0], dtype=F64)
    if field == "gramian":
        return scale[:, None] * value * scale
    return scale * value.flip(0)


def nan(field: str, value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("nan"))


def changed(geometry: Geometry, names: list[str], change: Callable[..., torch.Tensor]) -> Geometry:
    """With these fields changed."""
    known = geometry._asdict() | geometry.extra
    new = {name: change(name, known[name]) for name in names}
    own = {name: new.pop(name) for name in names if name in FIELDS}
    return geometry._replace(**own, extra=geometry.extra | new)


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


@pytest.mark.parametrize("name", READERS)
def test_what_a_rule_says_that_it_reads_is_what_it_reads(name):
    """NaN or another value in a field that it does not name changes no bit; else one changes it."""
    rule = READERS[name]()
    assert rule.reads is not None
    plain, fields = answers(rule, lambda geometry: geometry), (*FIELDS, *seen(0).extra)
    assert plain
    unread = [field for field in fields if not may_read(rule, field)]
    for field in (field for field in fields if may_read(rule, field)):
        moved = answers(rule, lambda g, f=field: changed(g, [f], other))
        assert not same(plain, moved), field
    spoilt = [field for field in unread if "present" not in field]
    assert same(plain, answers(rule, lambda g: changed(g, unread, other))), unread
    assert same(plain, answers(rule, lambda g: changed(g, spoilt, nan))), spoilt
    assert rule.reads <= {*fields, *GRAMIANS}


def test_wrappers_of_a_rule_that_says_nothing_say_nothing():
    silent = mf.mgda()._replace(reads=None)
    assert mf.momentum(silent).reads is mf.normalize(silent).reads is None
    assert mf.balance(vector, mf.normalize(silent, "loss"), mf.losses_only())


def test_a_rule_that_says_nothing_is_not_refused_and_says_itself_what_it_misses():
    step = mf.balance(vector, mf.mgda()._replace(reads=None), mf.losses_only())
    with pytest.raises(ValueError, match=r"gramian: .* the probe measures none; use mtlfunc\.jac"):
        step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))


def test_a_geometry_without_a_gramian_goes_through_vmap():
    rule, (losses, _, share, present, _) = mf.gls(), seen(0)
    many = torch.stack([losses, losses.flip(0), 2 + losses])

    def weigh(geometry: Geometry) -> torch.Tensor:
        return rule.update(geometry, ())[0]

    alone = torch.stack([weigh(Geometry(x, None, share, present, {})) for x in many])
    closed = vmap(lambda x: weigh(Geometry(x, None, share, present, {})))(many)
    dims = cast(Any, Geometry(0, None, None, None, {}))  # pyright: ignore[reportArgumentType]
    passed = vmap(weigh, (dims,))(Geometry(many, None, share, present, {}))
    torch.testing.assert_close(closed, alone, rtol=1e-14, atol=0)
    torch.testing.assert_close(passed, alone, rtol=1e-14, atol=0)


def test_one_shot_calls_run_a_rule_once():
    calls = []

    def update(geometry, state):
        calls.append(geometry)
        return geometry.preference, state

    rule = mf.Rule(lambda losses, key: (), update, frozenset({"preference"}))
    mf.weights(rule, torch.eye(2))
    mf.aggregate(rule, torch.eye(2))
    assert len(calls) == 2
    with pytest.raises(ValueError, match=r"losses: .* may read the losses; pass losses=.* reads="):
        mf.weights(rule._replace(reads=None), torch.eye(2))
    mf.weights(rule._replace(reads=None), torch.eye(2), torch.ones(2))
    assert len(calls) == 3
    rows, beyond = torch.tensor([[6e4], [1e-5]]).half(), torch.tensor([1e-7, 1e5])
    assert float(mf.aggregate(mf.stateless(lambda _: beyond), rows)) == pytest.approx(1.0, 0.01)


def test_one_shot_calls_refuse_a_rule_that_reads_what_a_probe_alone_measures():
    for make, cure in ((mf.famo, r"second_evaluation\("), (mf.excess_mtl, r"excess_risk\(")):
        with pytest.raises(ValueError, match=rf"{make.__name__} reads '.* use .*mtlfunc\.{cure}"):
            mf.weights(make(), torch.eye(2), torch.ones(2))
        with pytest.raises(ValueError, match=rf"{make.__name__} reads '.* use .*mtlfunc\.{cure}"):
            mf.plot.simplex(torch.eye(3), make())


# What a probe measures

JACOBIAN, TRACKED = mf.jacobian("trunk.*"), mf.moving_average("trunk.*")
TWO = mf.double_sampling("trunk.*")
WRONG = {
    "modo": (mf.modo(), (JACOBIAN, TRACKED), "double_sampling"),
    "sdmgrad": (mf.sdmgrad(), (JACOBIAN, TRACKED), "double_sampling"),
    "moco": (mf.moco(), (JACOBIAN, TWO), "moving_average"),
    "db_mtl": (mf.db_mtl(), (JACOBIAN, TWO), "moving_average"),
    "famo": (mf.famo(), (JACOBIAN, TRACKED), "second_evaluation"),
    "excess_mtl": (mf.excess_mtl(), (JACOBIAN, TRACKED), "excess_risk"),
    # J₁J₂ᵀ is not symmetric, and a rule would read it as if it were
    "config": (mf.config(), (TWO,), "jacobian"),
}
PROBED = {name: case.make for name, case in PROBES.items()} | {
    "tracked": lambda: TRACKED,
    "two batches": lambda: TWO,
    "excess risk": lambda: mf.excess_risk("trunk.*"),
    "second evaluation": lambda: mf.second_evaluation(mf.losses_only()),
    "second evaluation of rows": lambda: mf.second_evaluation(mf.excess_risk("trunk.*")),
}


@pytest.mark.parametrize("name", PROBED)
def test_what_a_probe_says_that_it_measures_is_what_the_geometry_holds(name):
    probe = PROBED[name]()
    assert probe.measures is not None
    other = tuple(leaf.flip(0) * 1.5 if leaf.is_floating_point() else leaf for leaf in BATCH)
    batch = (BATCH, other) if "cross_gramian" in probe.measures else BATCH
    run = mf.Run.of(vector, PARAMS)
    _, state = probe.init(run, batch, mf.random.key(0))
    geometry = probe.update(run, batch, state)[0].geometry
    kinds = probe.measures & GRAMIANS
    assert set(geometry.extra) == probe.measures - GRAMIANS
    assert (geometry.gramian is not None) == bool(kinds)
    if geometry.gramian is not None:
        assert geometry.gramian.isfinite().all()
        apart = (geometry.gramian - geometry.gramian.mT).norm() > 1e-12 * geometry.gramian.norm()
        assert bool(apart) is ("gramian" not in kinds)


def step(rule, probe):
    batch = (BATCH, BATCH, BATCH) if probe.measures == TWO.measures else BATCH
    balance = mf.balance(vector, rule, probe)
    return balance.update(PARAMS, batch, balance.init(PARAMS, batch))


@pytest.mark.parametrize("name", WRONG)
def test_rule_on_a_probe_that_does_not_measure_what_it_needs_names_the_probe(name):
    rule, probes, right = WRONG[name]
    for probe in probes:
        for made in (rule, mf.momentum(rule)):
            called = rule_name(made)
            words = rf"rule: {called} reads '.*, but the probe .*; use (mtlfunc\..*{right}.*) as"
            with pytest.raises(ValueError, match=words) as error:
                mf.balance(vector, made, probe)
            cure = re.search(words, str(error.value))
            assert cure
            call = cure[1].replace("batch: ...", "batch: aim(params)").replace("...", "'trunk.*'")
            step(made, eval(call, {"mtlfunc": mf, "aim": lambda params: vector(params, BATCH)[0]}))


@pytest.mark.parametrize("make", [mf.modo, mf.sdmgrad, mf.moco, mf.db_mtl])
def test_gramian_by_hand_stands_for_what_the_probe_measures(make):
    assert bool(mf.weights(make(), torch.eye(2)).isfinite().all())
    assert bool(mf.aggregate(make(), torch.eye(2)).isfinite().all())
