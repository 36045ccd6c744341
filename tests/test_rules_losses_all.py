"""What every rule from the losses alone promises, its bad input, and edits of coordinates."""

from functools import partial

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc.core.checks import init_rule
from tests.support.losses import F64, RULES, SERIES, geometry, weights_of
from tests.support.networks import gradient_rows
from tests.support.oracles import near
from tests.support.problems import (
    BATCH,
    PARAMS,
    SHARED,
    TRUNK,
    flatten,
    nets,
    opaque,
    scalars,
    vector,
)


@pytest.mark.parametrize("name", ["dwa", "gls", "famo", "pbi"])
def test_a_common_factor_of_the_losses_changes_no_bit(name):
    one, _ = weights_of(RULES[name](), SERIES)
    for factor in (2.0**66, 2.0**-66):
        assert torch.equal(one, weights_of(RULES[name](), SERIES * factor)[0])
    for factor in (1e-30, 1e30):
        near(weights_of(RULES[name](), SERIES * factor)[0], one, 1e-10)


def test_stch_scales_with_mu_and_with_warmup_as_the_inverse_of_the_losses():
    assert weights_of(mf.stch(1e-3), torch.tensor([[200.0, 100.0]]).half())[0].tolist() == [[1, 0]]
    some, here = torch.tensor([[0.0, -300, -301]]).half(), torch.tensor([[False, True, True]])
    assert weights_of(mf.stch(1e-3), some, here)[0].tolist() == [[0, 1, 0]]
    one, _ = weights_of(mf.stch(0.3), SERIES)
    logs, _ = weights_of(RULES["stch-warmup"](), SERIES)
    for factor in (2.0**66, 2.0**-66):
        assert torch.equal(one, weights_of(mf.stch(0.3 * factor), SERIES * factor)[0])
        assert torch.equal(logs / factor, weights_of(RULES["stch-warmup"](), SERIES * factor)[0])


@pytest.mark.parametrize("name", RULES)
def test_uniform_preference_is_the_default_and_a_factor_does_not_count(name):
    one, even = weights_of(RULES[name](), SERIES)[0], torch.full((4,), 3.0, dtype=F64)
    near(weights_of(RULES[name](preference=even), SERIES)[0], one, 1e-12)
    with pytest.raises(ValueError, match=r"preference: .*entries >= 0"):
        weights_of(RULES[name](preference=-torch.ones(4, dtype=F64)), SERIES)
    with pytest.raises(ValueError, match=r"preference: expected shape \[4\]"):
        weights_of(RULES[name](preference=torch.ones(3, dtype=F64)), SERIES)
    if name in ("cosmos", "pbi"):  # a task of preference 0 still pulls the losses off the ray
        return
    # A task of preference 0 has weight 0, and the others are weighed as without it (STCH keeps its
    # exponential in the sum).
    p = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=F64)
    got, _ = weights_of(RULES[name](preference=p), SERIES)
    near(weights_of(RULES[name](), SERIES, preference=p)[0], got, 1e-12)  # the geometry's, too
    p = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)
    got, _ = weights_of(RULES[name](preference=p), SERIES)
    assert not got[:, 1].any()
    if not name.startswith("stch"):
        keep = torch.tensor([0, 2, 3])
        near(got[:, keep], weights_of(RULES[name](), SERIES[:, keep])[0], 1e-12)


PRESENT = torch.rand(12, 4, generator=torch.Generator().manual_seed(1)) < 0.7
PRESENT[3] = False  # a batch without any label
PRESENT[:, 3] = False  # a task that never has one


@pytest.mark.parametrize("present", [None, PRESENT], ids=["everybody", "some"])
@pytest.mark.parametrize("name", RULES)
def test_derivatives_with_respect_to_the_losses_equal_central_differences(name, present):
    probe = torch.linspace(-1, 2, 32, dtype=F64).reshape(8, 4)

    def value(series):
        return (probe * weights_of(RULES[name](), series, present)[0]).sum()

    at, h = SERIES[:8], 1e-6
    direction = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=F64) * at
    difference = (value(at + h * direction) - value(at - h * direction)) / (2 * h)
    assert abs(difference) > 1e-4
    near((grad(value)(at) * direction).sum(), difference, 1e-6, 1e-8)
    near(jvp(value, (at,), (direction,))[1], difference, 1e-6, 1e-8)
    near(vmap(grad(value))(torch.stack([at, 2 * at]))[0], grad(value)(at), 1e-9, 1e-12)


@pytest.mark.parametrize("name", RULES)
def test_state_of_an_absent_task_does_not_move(name):
    """Absent tasks weigh 0; one that is never there might as well not be."""
    present, rule = PRESENT, RULES[name]()
    state = rule.init(SERIES[0], mf.random.key(0))
    for losses, here in zip(SERIES, present, strict=True):
        weights, following = rule.update(geometry(losses, here), state)
        assert not weights[~here].any()
        last = getattr(following, "last", ())  # FAMO's
        for new, old in zip(tree_leaves(following), tree_leaves(state), strict=True):
            # at an epoch's end dwa's running sums start anew for all
            if name != "dwa" and new.ndim and not any(new is leaf for leaf in last):
                assert torch.equal(new[~here], old[~here])
        state = following
    some = weights_of(rule, SERIES, present)[0]
    near(some[:, :3], weights_of(rule, SERIES[:, :3], present[:, :3])[0], 1e-12)
    masks = torch.stack([present, torch.ones_like(present)])
    batched = vmap(lambda here: weights_of(rule, SERIES, here)[0])(masks)
    near(batched, torch.stack([some, weights_of(rule, SERIES)[0]]), 1e-12, 1e-15)


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_a_task_that_comes_late_learns_as_if_alone(dtype):
    rule, losses = mf.uw(1e-3), torch.tensor([1.0, 6.0], dtype=dtype)
    alone = torch.zeros((), dtype=F64, requires_grad=True)
    adam, state = torch.optim.Adam([alone], 1e-3), init_rule(rule, losses, mf.random.key(0))
    for here in [False] * 10 + [True] * 1500:
        state = rule.update(geometry(losses, torch.tensor([True, here])), state)[1]
        alone.grad = 0.5 - 3.0 * torch.exp(-alone.detach()) if here else None
        adam.step()
    near(state.s[1].to(F64), alone.detach(), 1e-9 if dtype == F64 else 1e-3)


def test_grids_of_hyper_parameters_are_one_vmap():
    grid = torch.tensor([0.05, 0.5], dtype=F64)
    famo = partial(mf.famo, full_batch=True)
    dwa, decays = partial(mf.dwa, 2), lambda decay: famo(decay=decay)
    for make in (mf.uw, mf.imtl_l, dwa, mf.stch, mf.cosmos, mf.pbi, famo, decays):
        together = vmap(lambda value, make=make: weights_of(make(value), SERIES)[0])(grid)
        for i, value in enumerate(grid):
            near(together[i], weights_of(make(float(value)), SERIES)[0], 1e-12, 1e-300)


@pytest.mark.parametrize("name", RULES)
def test_nan_losses_give_nan_weights(name):
    broken = SERIES[:3].clone()
    broken[2, 1] = float("nan")
    got = vmap(lambda series: weights_of(RULES[name](), series)[0])(broken[None])[0]
    assert got[2].isnan().all()
    assert got[:2].isfinite().all()


NEGATIVE = [(name, -1.0) for name in ("gls", "stch-warmup", "famo", "dwa")]


@pytest.mark.parametrize(("name", "bad"), [*NEGATIVE, *((name, 0.0) for name, _ in NEGATIVE[:3])])
def test_losses_that_are_not_positive_raise_alone_and_are_nan_under_vmap(name, bad):
    broken = SERIES.clone()
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=r"losses: .* need losses >"):
        weights_of(RULES[name](), broken)
    got = vmap(lambda series: weights_of(RULES[name](), series)[0])(torch.stack([broken, SERIES]))
    assert got[0, 2 * 2 if name == "dwa" else 1 :].isnan().any(-1).any()
    near(got[1], weights_of(RULES[name](), SERIES)[0], 1e-12)
    # An absent task's loss is 0 and none of anybody's business.
    others = torch.tensor([[True, True, False, True]] * 12)
    assert weights_of(RULES[name](), broken, others)[0].isfinite().all()


def test_dwa_of_a_solved_task_raises():
    solved = SERIES.clone()
    solved[:2, 1] = 0.0
    with pytest.raises(ValueError, match=r"dwa divides .* those of tasks \[1\] are 0"):
        weights_of(mf.dwa(2), solved)
    got = vmap(lambda series: weights_of(mf.dwa(2), series)[0])(solved[None])[0]
    assert got[4:6].isnan().all()  # the epoch whose ratios divide by that mean


def test_second_evaluation_says_what_it_cannot_take():
    def step_of(probe):
        return mf.balance(lambda p, b: vector(p, b[:2]), mf.famo(), mf.second_evaluation(probe))

    step = step_of(mf.jacobian(SHARED, mix=mf.subset(2))._replace(mixes=False))
    with pytest.raises(ValueError, match=r"probe: .* take a probe of one batch without mix="):
        step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    with pytest.raises(TypeError, match=r"batch: second_evaluation keeps it .* got str"):
        step_of(mf.losses_only()).init(PARAMS, (*BATCH, "name"))


def rows(count=5, width=40):
    """A Jacobian with zeros, ties, and coordinates in which all agree."""
    J = torch.randn(count, width, generator=torch.Generator().manual_seed(count), dtype=F64)
    J[:, 0], J[:, 1], J[:, 2] = 0.0, J[:, 1].abs(), -J[:, 2].abs()
    J[0, 3] = 0.0
    J[:, 4] = 1.0
    return J


def uniform(key, width):
    """The numbers that a mask draws for the first leaf."""
    return mf.random.uniform(mf.random.fold_in(key, 0), (width,), F64)


def test_graddrop_does_not_depend_on_the_order_of_the_parameters():
    generator = torch.Generator().manual_seed(5)
    shapes = {"b": (4, 3), "a": (7,), "c.weight": (2, 2), "c.bias": ()}
    rows = {name: torch.randn(3, *s, generator=generator) for name, s in shapes.items()}
    for seed in range(3):
        expected = mf.graddrop(0.1)(mf.random.key(seed), rows)
        for order in (sorted(rows), sorted(rows, reverse=True)):
            edited = mf.graddrop(0.1)(mf.random.key(seed), {name: rows[name] for name in order})
            assert list(edited) == order
            assert all(torch.equal(edited[name], expected[name]) for name in rows)


@pytest.mark.parametrize("leak", [0.0, torch.tensor([0.0, 0.3, 1.0, 0.5, 0.0], dtype=F64)])
@pytest.mark.parametrize("f", [None, lambda p: p**2 * (3 - 2 * p)])
def test_graddrop_equals_the_algorithm_coordinate_by_coordinate(leak, f):
    J, key = rows(), mf.random.key(7)
    edited = mf.graddrop(leak, f)(key, {"x": J.reshape(5, 8, 5), "y": J})
    for p, u in enumerate(uniform(key, 40).tolist()):
        column = J[:, p].tolist()
        size = sum(abs(g) for g in column)
        purity = 0.5 * (1 + sum(column) / size) if size else 0.5
        purity = purity if f is None else f(purity)
        kept = [g if (purity > u and g > 0) or (purity < u and g < 0) else 0.0 for g in column]
        wanted = leak * J[:, p] + (1 - leak) * torch.tensor(kept, dtype=F64)
        near(edited["x"].reshape(5, 40)[:, p], wanted, 1e-13)
    # every leaf draws numbers of its own
    assert not torch.equal(edited["x"].reshape(5, 40), edited["y"])


def test_masks_in_a_step_edit_the_shared_rows_and_vmap():
    mask = mf.graddrop(0.2)
    step = mf.balance(opaque, mf.mean(), mf.jacobian(SHARED, mask=mask))

    def once(params, seed):
        return step.update(params, BATCH, step.init(params, BATCH, key=seed))

    grads, _, info = once(PARAMS, 3)
    key = mf.random.fold_in(mf.random.draw(step.init(PARAMS, BATCH, key=3).probe)[0], 1)
    rows = gradient_rows(scalars, PARAMS, BATCH, TRUNK)
    edited = torch.cat([leaf.flatten(1) for leaf in mask(key, rows).values()], 1)
    near(flatten(grads, TRUNK), edited.mean(0), 1e-10, 1e-13)
    near(info.gramian, edited @ edited.mT, 1e-10, 1e-13)
    together, _, _ = vmap(once)(mf.stack(nets), torch.arange(len(nets)))
    for i, module in enumerate(nets):
        alone, _, _ = once(mf.parameters(module), i)
        near(flatten({n: leaf[i] for n, leaf in together.items()}), flatten(alone), 1e-9, 1e-12)


ONES = torch.ones(3, dtype=F64)
RAY = lambda preference: mf.pareto_mtl(preference)  # noqa: E731


@pytest.mark.parametrize("make", [mf.mean, mf.nash_mtl, mf.gls, mf.config, mf.db_mtl, RAY])
def test_bad_preference_is_nan_where_it_cannot_be_seen(make):
    bad = torch.tensor([[1.0, -1.0, 1.0], [torch.nan, 1.0, 1.0], [0.0, 0.0, 0.0]]).to(ONES)
    w = vmap(lambda p: mf.weights(make(preference=p), ONES.diag(), ONES))(torch.stack([*bad, ONES]))
    assert w.isnan().all(1).tolist() == [True, True, True, False]
    assert bool(w[3].isfinite().all())


def test_tracking_rates_are_at_most_one():
    """Above 2 the tracked gradients grow without bound."""
    tracked = mf.moving_average("trunk.*", rate=lambda k: 3 * k)
    step = mf.balance(scalars, mf.mean(), tracked)
    with pytest.raises(ValueError, match="rate:"):
        step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))


def test_stch_says_whose_losses_were_never_averaged():
    """Of a task absent from all averaging steps, rather than blame the data."""
    rule = mf.stch(0.3, warmup=(0, 1))
    state = rule.init(ONES, mf.random.key(0))
    _, state = rule.update(geometry(ONES, torch.tensor([True, True, False])), state)
    with pytest.raises(ValueError, match=r"warmup: tasks \[2\] were absent"):
        rule.update(geometry(ONES), state)
