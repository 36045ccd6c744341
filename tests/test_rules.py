"""Every rule of the table under the invariances that it promises."""

import inspect
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

import mtlfunc as mf
from mtlfunc.solvers.problems import resolution
from mtlfunc.types import Geometry
from tests.support.every import every, in_turn
from tests.support.families import FAMILIES, REGULAR, gramian, jacobian
from tests.support.loops import reloaded
from tests.support.oracles import EPS, near, same
from tests.support.registry import RULES
from tests.support.rules import F64, geometry, losses_of, trajectory, with_absent

DETERMINISTIC = [name for name, case in RULES.items() if not case.random]
READS_GRAMIAN = [name for name, case in RULES.items() if case.reads_gramian]


# right angles tie Frank–Wolfe's argmin
SYMMETRIC = [name for name in DETERMINISTIC if RULES[name].symmetric]
DRAWN = [("gaussian", 2), ("hull", 5), ("hull", 2), ("gaussian", 5)]


@pytest.mark.parametrize(("rule", "drawn"), in_turn(SYMMETRIC, DRAWN, 2))
@every("drawn")
def test_rule_permutation_equivariant(rule, drawn):
    (family, count), case = drawn, RULES[rule]
    G, losses, made = gramian(family, count), losses_of(count), case.make()
    order = torch.from_numpy(np.random.default_rng(count).permutation(count))

    def weights(G, losses):
        state = made.init(losses, mf.random.key(0))
        first, state = made.update(geometry(G, losses), state)
        second, _ = made.update(geometry(2 * G, losses**0.5), state)
        return torch.stack([first, second])

    turned = weights(G[order][:, order], losses[order])
    near(turned, weights(G, losses)[:, order], case.accuracy, case.accuracy)


HOMOGENEOUS = [name for name, case in RULES.items() if case.homogeneous]


@pytest.mark.parametrize(("rule", "family"), in_turn(HOMOGENEOUS, FAMILIES, 4))
@every("family")
def test_rule_scale_by_powers_of_two_changes_no_bit(rule, family):
    """J times 2^±33, about 1e±10, leaves the weights as they were: no absolute epsilon."""
    G = gramian(family, 3)
    one, _ = trajectory(RULES[rule].make(), G)
    for factor in (2.0**66, 2.0**-66):
        assert torch.equal(one, trajectory(RULES[rule].make(), G * factor)[0])


@pytest.mark.parametrize("rule", [name for name, case in RULES.items() if not case.homogeneous])
def test_rules_with_a_unit_are_the_exceptions(rule):
    """A plain step on w has the gradients' unit: these rules really are not homogeneous."""
    unit = ("gradnorm-sgd", "modo", "moco", "nash_mtl", "fairgrad", "align", "align-mean")
    unit += ("gauss_newton",)
    assert rule.removesuffix("-momentum") in unit
    G = gramian("gaussian", 3)
    found, scaled = (trajectory(RULES[rule].make(), x)[0] for x in (G, 100 * G))
    assert not torch.allclose(found, scaled)


@pytest.mark.parametrize("rule", RULES)
@every("count", [1, 2, 4])
def test_rule_vmapped_equals_loop(rule, count):
    """Over Gramians and keys together; of two tasks one inside the other."""
    case, keys = RULES[rule], torch.tensor([3, 1])
    G = torch.stack([gramian("gaussian", count, seed) for seed in range(2)])

    def run(g, k):
        return trajectory(case.make(), g, key=k)

    nested = vmap(vmap(run, (None, 0)), (0, None)) if count == 2 else vmap(run)
    together = nested(G, keys)
    for i, j in product(range(2), range(2)) if count == 2 else ((0, 0), (1, 1)):
        at = (i, j) if count == 2 else i
        near(tree_map(lambda leaf, at=at: leaf[at], together), run(G[i], keys[j]), 1e-9, 1e-12)


@pytest.mark.parametrize("rule", [name for name, case in RULES.items() if case.smooth])
def test_rule_derivatives_equal_central_differences(rule):
    """grad, jvp, vmap(grad) through three steps in the Jacobian; fourth differences, h = 1e-4."""
    case = RULES[rule]
    smooth = RULES[rule.removesuffix("-cvx")]
    rng = np.random.default_rng(0)
    probe = torch.from_numpy(rng.standard_normal((3, 3)))

    def value(J, case=case):
        return (probe * trajectory(case.make(), J @ J.mT, key=5)[0]).sum()

    examples = torch.stack([jacobian("gaussian", 3, seed, width=4) for seed in range(2)])
    gradients = vmap(grad(value))(examples)
    h = 1e-4
    for number, (J, batched) in enumerate(zip(examples, gradients, strict=True)):
        direction = torch.from_numpy(rng.standard_normal(J.shape))
        direction, gradient = direction / direction.norm(), grad(value)(J)
        near(batched, gradient, 1e-9 if case.accuracy < 1e-6 else 1e-4, max(1e-10, case.accuracy))
        if number:
            continue
        a, b, c, d = (value(J + k * h * direction, smooth) for k in (-2, -1, 1, 2))
        difference = (8 * (c - b) - (d - a)) / (12 * h)
        # Truncation h⁴, 1e-16, times fifth derivatives, and rounding over h: of ε in most rules,
        # of the solver's resolution 2⁻⁴⁰ in those that project on a cone, 1e-8.
        tolerance = max(1e-7, 10 * case.accuracy) * (1 + float(gradient.norm()))
        assert abs(float((gradient * direction).sum() - difference)) <= tolerance
        assert abs(float(jvp(value, (J,), (direction,))[1] - difference)) <= tolerance


@pytest.mark.parametrize("rule", RULES)
def test_rule_state_saved_and_loaded_resumes(rule):
    G = gramian("gaussian", 4)
    made = RULES[rule].make()
    whole, _ = trajectory(made, G, steps=5, key=11)
    begun, state = trajectory(made, G, steps=2, key=11)
    assert all(isinstance(x, torch.Tensor) and x.is_contiguous() for x in tree_leaves(state))
    loaded = reloaded(state)
    assert type(loaded) is type(state)
    resumed, _ = trajectory(inspect.unwrap(RULES[rule].make)(), G, steps=3, start=2, state=loaded)
    assert torch.equal(torch.cat([begun, resumed]), whole)


@pytest.mark.parametrize("rule", RULES)
def test_rule_pure(rule):
    """The same answer twice; inputs, states and torch's generator are left alone."""
    made, losses, G = RULES[rule].make(), losses_of(4), gramian("gaussian", 4)
    state = trajectory(made, G)[1]
    geo = geometry(G, losses)
    before = tree_map(torch.clone, (tuple(geo[:4]), state))
    generator = torch.get_rng_state()
    first, first_state = made.update(geo, state)
    second, second_state = made.update(geo, state)
    assert torch.equal(first, second)
    same(first_state, second_state)
    same(before, (tuple(geo[:4]), state))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("rule", RULES)
@every("count", [1, 2, 4])
def test_rule_weights_sum_by_the_scale_contract(rule, count):
    case = RULES[rule]
    if case.shared_sum is None:
        pytest.skip("no promise")
    made, losses = case.make(), torch.full((count,), 2.0, dtype=F64)
    state = made.init(losses, mf.random.key(0))
    for _ in range(3):
        weights, state = made.update(geometry(gramian("identical", count), losses), state)
        assert float(weights.sum()) == pytest.approx(
            case.shared_sum, abs=max(1e-12, case.accuracy * 1e-3)
        )


@pytest.mark.parametrize(("rule", "drawn"), in_turn(RULES, product(FAMILIES, (1, 2, 5)), 11))
@every("drawn")
def test_rule_weights_finite_and_convex(rule, drawn):
    (family, count), case = drawn, RULES[rule]
    weights, state = trajectory(case.make(), gramian(family, count))
    assert all(leaf.isfinite().all() for leaf in tree_leaves((weights, state)))
    if case.convex:
        assert (weights >= 0).all()
        near(weights.sum(-1), torch.ones(3, dtype=F64), 0, 1e-12)
    # a single task of a stationary family has J = 0: no length to share out
    if count == 1 and case.shared_sum is not None and jacobian(family, 1).any():
        total = torch.full((3,), case.shared_sum, dtype=F64)
        near(weights.sum(-1), total, max(1e-12, case.accuracy))


@pytest.mark.parametrize("rule", RULES)
@every("dtype", [torch.float64, torch.float32])
def test_rule_extreme_norms_finite(rule, dtype):
    """Norms 1e-30, 1 and 1e30, together and alone; in float32 1e±12, whose squares fit."""
    end = 1e30 if dtype == F64 else 1e12
    J = jacobian("gaussian", 3)
    for norms in ([1 / end, 1.0, end], [end] * 3, [1 / end] * 3, [0.0, 1.0, end]):
        rows = J * torch.tensor(norms, dtype=F64)[:, None]
        weights, state = trajectory(RULES[rule].make(), (rows @ rows.mT).to(dtype))
        assert weights.dtype == dtype
        assert all(leaf.isfinite().all() for leaf in tree_leaves((weights, state)))


@pytest.mark.parametrize("rule", RULES)
@every("family", REGULAR)
def test_rule_float32_equals_float64(rule, family):
    """Of a Gramian accumulated in float64, to 1e-5 in well conditioned problems."""
    case = RULES[rule]
    J, losses = jacobian(family, 3).float(), losses_of(3).float()
    narrow = mf.aggregate(case.make(), J, losses, key=2)
    wide = mf.aggregate(case.make(), J.double(), losses.double(), key=2)
    assert narrow.dtype == torch.float32
    assert (narrow.double() - wide).norm() <= 1e-5 * wide.norm()


@pytest.mark.parametrize("rule", READS_GRAMIAN)
def test_rule_nan_raises_alone_and_stays_nan_under_vmap(rule):
    case = RULES[rule]
    G = torch.stack([gramian("gaussian", 3, seed) for seed in range(2)])
    G[0, 0, 2] = G[0, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"gramian: NaN or infinite entries in rows \[0, 2\]"):
        mf.weights(case.make(), G[0], losses_of(3))
    together = vmap(lambda g: mf.weights(case.make(), g, losses_of(3)))(G)
    if not rule.startswith("stateless"):  # not one plausible number
        assert together[0].isnan().all()
    elif rule != "stateless-losses":  # its function reads losses alone
        assert together[0].isnan().any()
    near(together[1], mf.weights(case.make(), G[1], losses_of(3)), 1e-9, 1e-12)


MASKED = [name for name, case in RULES.items() if case.masks]


@pytest.mark.parametrize(
    ("rule", "family"), in_turn(MASKED, ["gaussian", "spread", "duplicates"], 1)
)
@every("family")
def test_rule_on_present_tasks_alone(rule, family):
    """Absent tasks get 0, the others what they would alone; with nobody there it stays."""
    case = RULES[rule]
    J, losses = jacobian(family, 5, 3), losses_of(5)
    masks = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0] * 5]) > 0
    batched = vmap(lambda present: with_absent(case.make(), J, losses, present))(masks)
    for present, together in zip(masks, batched, strict=True):
        weights = with_absent(case.make(), J, losses, present)
        assert bool((weights[:, ~present] == 0).all())
        lengths = J[present].norm(dim=1)
        magnitude = (weights[:, present].abs() @ lengths).amax()
        # A product of matrices and one of a batch of them round G differently, by Tε‖g_s‖‖g_t‖,
        # and where some gradients are the same one the face of the dual cone is solved with pivots
        # of δ: the multipliers, |G| Σ v_s‖g_s‖ over δ, share that among the copies. d does not see
        # it: along a direction of length s in units of ‖g_t‖ it moves by s/(s² + δ) <= 1/(2√δ).
        noise = len(J) * EPS * magnitude if rule == "upgrad" and family == "duplicates" else 0.0
        delta = resolution(len(J), EPS)
        apart = 1e-12 + float(noise / delta / lengths.amin()) if present.any() else 1e-12
        # A cone's face may hold either of two copies: their weights count together.
        copies = (J[:, None] == J).all(-1).to(J) if rule == "conicgrad" else torch.eye(len(J)).to(J)
        near(together @ copies, weights @ copies, 1e-9, apart)
        near(together @ J, weights @ J, 1e-9, 1e-12 + float(noise) / delta**0.5 / 2)
        if present.any():
            alone = with_absent(case.make(), J[present], losses[present], present[present])
            tolerance = case.accuracy * float((alone.abs() @ J[present].norm(dim=1)).max())
            near(weights @ J, alone @ J[present], 0, tolerance)


def test_rules_that_cannot_do_without_a_task_say_so():
    present, solve = torch.tensor([True, False, True]), lambda G: torch.linalg.solve(G, G[0])
    J = jacobian("gaussian", 3) * present[:, None]
    for rule in (name for name in RULES if name.startswith("stateless")):
        for made in (RULES[rule].make(), mf.stateless(solve)):
            with pytest.raises(ValueError, match=r"needs every task .* tasks \[1\] are absent"):
                with_absent(made, J, losses_of(3), present)
        given = partial(with_absent, RULES[rule].make(), J, losses_of(3))
        assert vmap(given)(present[None]).isnan().all()


@pytest.mark.parametrize("rule", RULES)
def test_rule_without_gramian_says_which_probe(rule):
    case = RULES[rule]
    made, losses = case.make(), losses_of(3)
    bare = geometry(torch.zeros(0, 0, dtype=F64), losses)._replace(gramian=None)
    state = made.init(losses, mf.random.key(0))
    if not case.reads_gramian:
        assert made.update(bare, state)[0].isfinite().all()
        return
    with pytest.raises(ValueError, match=r"needs the Gramian, .* measures none; use mtlfunc.jacob"):
        made.update(bare, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_weights_of_another_dtype_make_a_direction(dtype):
    rule, rows = mf.stateless(lambda gramian: torch.ones(2, dtype=dtype)), gramian("gaussian", 2)
    near(mf.aggregate(rule, rows), rows.sum(0))


def test_stateless_counts_arguments():
    with pytest.raises(TypeError, match=r"stateless: expected f.*losses first"):
        mf.stateless(lambda losses, gramian: losses)  # it would be given the Gramian
    G, rule = gramian("gaussian", 2), mf.stateless(lambda gramian, tau=2.0: tau * gramian[0])
    assert torch.equal(mf.weights(rule, G), 2 * G[0])


@pytest.mark.parametrize("rule", [x for x in DETERMINISTIC if not x.startswith("gradnorm")])
def test_rule_equivariant_to_rotations_and_padding(rule):
    """Only inner products enter: A(JQ) = A(J)Q, and zero columns change nothing."""
    case, J = RULES[rule], jacobian("gaussian", 4)
    square = np.random.default_rng(0).standard_normal((J.shape[1], J.shape[1]))
    Q = torch.linalg.qr(torch.from_numpy(square))[0]
    d = mf.aggregate(case.make(), J, losses_of(4))
    near(mf.aggregate(case.make(), J @ Q, losses_of(4)), d @ Q, 0, case.accuracy * float(J.norm()))
    padded = mf.aggregate(case.make(), torch.cat([J, torch.zeros_like(J)], 1), losses_of(4))
    noise = max(1e-12, case.accuracy * 1e-3) * float(J.norm())
    near(padded, torch.cat([d, torch.zeros_like(d)]), 0, noise)


def test_ends_of_preferences_and_dtypes():
    p, losses = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    given = Geometry(losses, torch.eye(3) + 0.2, torch.ones(3) / 3, losses > 1.5, {})
    summed = mf.cagrad(0.4, rescale="1+lambda", preference=p)
    for rule in (mf.cagrad(0.4, preference=p), summed, mf.conicgrad(0.5, preference=p)):
        assert not rule.update(given, rule.init(losses, mf.random.key(0)))[0].any()
    tiny = mf.mean(preference=torch.tensor([1e-60, 3e-60], dtype=torch.float64))
    assert mf.weights(tiny, torch.eye(2)).tolist() == [0.25, 0.75]
    half = mf.weights(mf.imtl_g(), torch.diag(torch.tensor([1.0, 4.0])).half())
    torch.testing.assert_close(half, torch.tensor([2 / 3, 1 / 3]).half())
    with pytest.raises(ValueError, match=r"others: .*finite"):
        mf.pareto_mtl(others=torch.tensor([[1.0, 0.0], [0.0, torch.inf]]))
    lengths, total = torch.tensor([1e-4, 1e-4, 2e-4]).half(), torch.tensor(1.2e-4).half()
    assert 0.6 < mf.diagnostics.noise_scale(lengths, total) < 0.8
