"""Rules from the losses alone, against literal loops of the papers and libraries in use."""

import math
from itertools import product

import pytest
import torch
from torch.func import grad

import mtlfunc as mf
from mtlfunc.core import optim
from mtlfunc.training._balance import Reduction
from tests.support.loops import rollout, trained
from tests.support.losses import F64, SERIES, _generator, weights_of
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, SHARED, TASKS, flatten, scalars, vector


def batches(count):
    """Batches of different samples and sizes."""
    shapes = (((5 + i % 3, 4), (5 + i % 3, TASKS, 2)) for i in range(count))
    return [tuple(torch.randn(s, generator=_generator, dtype=F64) for s in two) for two in shapes]


BATCHES = batches(10)
UNEQUAL = torch.tensor([0.1, 0.2, 0.6, 0.1], dtype=F64)
IDEAL = torch.tensor([0.01, 0.02, 0.0, -1.0], dtype=F64)


def train(rule, probe, data, params=PARAMS, lr=0.05, reduction: Reduction = "sum"):
    """Parameters after each batch."""
    step = mf.descend(vector, rule, probe, mf.sgd(lr), reduction=reduction)
    start = step.init(params, data[0])
    return rollout(step, start, data, lambda state, _: flatten(state.params))[1]


def literal(loss_of, data, more=(), after=None, lr=0.05):
    """By autograd: SGD descends `loss_of(losses)` in the network, what `after` steps in `more`."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in PARAMS.items()}
    kept = []
    for batch in data:
        losses = vector(leaves, batch)
        grads = torch.autograd.grad(loss_of(losses), [*leaves.values(), *more])
        with torch.no_grad():
            for leaf, g in zip(leaves.values(), grads, strict=False):
                leaf.sub_(lr * g)
        for x, g in zip(more, grads[len(leaves) :], strict=True):
            x.grad = g
        if after is not None:
            after(losses.detach(), vector(leaves, batch).detach())
        kept.append(flatten({name: leaf.detach() for name, leaf in leaves.items()}))
    return torch.stack(kept)


PROBES = {"losses only": mf.losses_only, "jacobian": lambda: mf.jacobian(SHARED, heads="weighted")}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ["uw", "imtl_l"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(optim.adam, torch.optim.Adam), (optim.sgd, torch.optim.SGD)],
    ids=["adam", "sgd"],
)
def test_learned_scales_equal_autograd_of_the_objective(name, probe, ours, theirs):
    s = torch.zeros(TASKS, dtype=F64, requires_grad=True)
    optimizer = theirs([s], lr=0.1)
    objective = {
        "uw": lambda losses: (0.5 * torch.exp(-s) * losses + 0.5 * s).sum(),
        "imtl_l": lambda losses: (s.exp() * losses - s).sum(),
    }[name]
    expected = literal(objective, BATCHES, [s], lambda before, now: optimizer.step())
    got = train(getattr(mf, name)(0.1, optimizer=ours), PROBES[probe](), BATCHES)
    near(got, expected, 1e-10, 1e-12)
    assert s.detach().abs().min() > 1e-3  # it moved, and by far more than the tolerance


def test_learned_scales_rest_where_the_docstrings_say():
    losses = torch.tensor([0.01, 1.0, 50.0], dtype=F64)
    for rule, rest in (
        (mf.uw(0.5, optimizer=optim.sgd, initial=-0.5), 1 / (2 * losses) / 3),
        (mf.imtl_l(0.5, optimizer=optim.sgd), 1 / losses / 3),
    ):
        weights, _ = weights_of(rule, losses.expand(300, 3))
        near(weights[-1], rest, 1e-6)
    first = weights_of(mf.uw(0.1, initial=-0.5), losses[None])[0][0]
    near(first, torch.full((3,), 0.5 * math.exp(0.5) / 3, dtype=F64))


def test_dwa_equals_its_formula():
    """λ = T·softmax(L̄_{k-1}/L̄_{k-2}/τ), ones in the first two epochs."""
    k, tau = 3, 1.5
    got, _ = weights_of(mf.dwa(k, tau), SERIES)
    means = SERIES.reshape(-1, k, 4).mean(1)
    for step, weights in enumerate(got):
        epoch, expected = step // k, torch.full((4,), 0.25, dtype=F64)
        if epoch > 1:
            expected = torch.softmax(means[epoch - 1] / means[epoch - 2] / tau, -1)
        near(weights, expected, 1e-13)
    assert (got[-1] - 0.25).abs().max() > 0.05


def test_dwa_means_over_the_steps_in_which_a_task_was_present():
    present = torch.ones(12, 4, dtype=torch.bool)
    present[[1, 4, 8], 0] = False  # task 0 misses a step of an epoch of three
    present[3:6, 2] = False  # task 2 misses the whole second epoch
    got, state = weights_of(mf.dwa(3), SERIES, present)
    sums, counts = (x.reshape(-1, 3, 4).sum(1) for x in (SERIES * present, present))
    masked = sums / counts.clamp_min(1)
    rates = torch.stack([masked[2] / masked[1], masked[3] / masked[2]])
    # over its own last two epochs
    rates[:, 2] = torch.stack([masked[2, 2] / masked[0, 2], masked[3, 2] / masked[2, 2]])
    near(got[9], torch.softmax(rates[0] / 2, -1), 1e-13)
    near(state.rate, rates[1], 1e-13)


def test_dwa_goes_on_from_a_state_of_longer_epochs():
    _, state = weights_of(mf.dwa(6), SERIES[:5])
    shorter = mf.dwa(2)._replace(init=lambda *_: state)
    got, _ = weights_of(shorter, SERIES[5:])  # epochs of six steps, two, two
    near(got[:3], torch.full((3, 4), 0.25, dtype=F64), 1e-13)
    near(got[3], torch.softmax(SERIES[6:8].mean(0) / SERIES[:6].mean(0) / 2, -1), 1e-13)


@pytest.mark.parametrize("preference", [None, torch.tensor([1.0, 2.0, 0.0, 5.0], dtype=F64)])
def test_gls_equals_autograd_of_the_geometric_mean(preference):
    share = torch.ones(4, dtype=F64) if preference is None else preference
    exponents = share / share.sum()
    for losses in SERIES:
        expected = grad(lambda x: torch.prod(x**exponents))(losses)
        near(weights_of(mf.gls(preference=preference), losses[None])[0][0], expected, 1e-12)
        less = losses - losses.amin()  # one is 0
        rule = mf.gls(preference=preference, eps=losses.amin())
        near(weights_of(rule, less[None])[0][0], expected, 1e-9)


def test_gls_where_the_product_leaves_the_range_of_floats():
    losses = torch.logspace(3, 5, 128, dtype=torch.float32)
    assert losses.prod().isinf()
    expected = grad(lambda x: x.log().mean().exp())(losses.double())
    near(weights_of(mf.gls(), losses[None])[0][0].double(), expected, 1e-4)
    for scale in (1e-30, 1e30):
        near(weights_of(mf.gls(), losses[None] * scale)[0][0].double(), expected, 1e-4)


@pytest.mark.parametrize("mu", [0.01, 0.5, 3.0])
def test_stch_equals_autograd_and_torchjd(mu):
    for p, z in product((None, UNEQUAL), (None, IDEAL)):
        share = torch.full((4,), 0.25, dtype=F64) if p is None else p
        ideal = torch.zeros(4, dtype=F64) if z is None else z

        def objective(x, share=share, ideal=ideal):
            return mu * torch.logsumexp(share * (x - ideal) / mu, -1)

        theirs = pytest.importorskip("torchjd.scalarization").STCH(mu, p, z)
        for losses in SERIES[:4]:
            got = weights_of(mf.stch(mu, preference=p, reference=z), losses[None])[0][0]
            near(got, 4 * grad(objective)(losses), 1e-12, 1e-300)
            near(got, 4 * grad(theirs)(losses), 1e-12, 1e-300)


def test_stch_between_the_maximum_and_the_mean():
    """μ to 0: the worst p_t(L_t - z_t) alone; μ to ∞: the preference."""
    for losses in SERIES:
        worst = UNEQUAL * (torch.arange(4) == (UNEQUAL * losses).argmax())
        near(weights_of(mf.stch(1e-9, preference=UNEQUAL), losses[None])[0][0], 4 * worst, 1e-12)
        near(weights_of(mf.stch(1e9, preference=UNEQUAL), losses[None])[0][0], UNEQUAL, 1e-6)


@pytest.mark.parametrize("p", [torch.full_like(UNEQUAL, 0.25), UNEQUAL], ids=["equal", "unequal"])
def test_cosmos_and_pbi_equal_autograd(p):
    size = p.norm()

    def intersection(x):
        along = (x - IDEAL) @ p / size
        return size * (along + 5 * (x - IDEAL - along * p / size).norm())

    for losses in SERIES[:5]:
        got = weights_of(mf.cosmos(0.7, preference=p), losses[None])[0][0]
        near(got, grad(lambda x: p @ x - 0.7 * (p @ x) / (size * x.norm()))(losses), 1e-10, 1e-12)
        near(got @ losses, p @ losses)
        got = weights_of(mf.pbi(preference=p, reference=IDEAL), losses[None])[0][0]
        near(got, grad(intersection)(losses), 1e-10, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_on_the_ray_cosmos_and_pbi_are_the_weighted_sum(dtype):
    p = UNEQUAL.to(dtype)
    for scale in (1e-25, 1.0, 3e7, 1e25):
        losses = (p * scale)[None]
        near(weights_of(mf.pbi(preference=p), losses)[0][0], p / p.sum())
        # Its penalty has the losses' unit.
        found = weights_of(mf.cosmos(scale, preference=p), losses)[0][0]
        near(found, p / p.sum(), 0, 8 * torch.finfo(dtype).eps)
    for low in (torch.bfloat16, torch.float16):  # on the ray but for rounding, and beside it
        near(weights_of(mf.pbi(preference=p), p[None].to(low))[0][0], (p / p.sum()).to(low))
        losses = torch.tensor([[1, 1.04, 1.08, 1.12, 1.16]], dtype=low)
        wanted = weights_of(mf.pbi(), losses.to(dtype))[0]
        near(weights_of(mf.pbi(), losses)[0], wanted.to(low), 4 * torch.finfo(low).eps)
    for rule in (mf.pbi(preference=p), mf.cosmos(1.0, preference=p)):
        near(weights_of(rule, torch.zeros(1, 4, dtype=dtype))[0][0], p / p.sum())


def literal_famo(data, decay, eps):
    """The official class but for eps and clipping: w by torch's Adam, after the network's step."""
    w = torch.zeros(TASKS, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.025, weight_decay=decay)

    def loss_of(losses):
        z = torch.softmax(w, -1).detach()
        above = losses + eps
        return (above.log() * z / (z / above).sum().detach()).sum()

    def after(before, now):
        fall = (before + eps).log() - (now + eps).log()
        w.grad = torch.autograd.grad(torch.softmax(w, -1), w, grad_outputs=fall)[0]
        optimizer.step()

    return literal(loss_of, data, after=after), w.detach()


@pytest.mark.parametrize(("decay", "eps"), [(1e-3, 0.0), (0.5, 0.0), (1e-3, 0.5)])
@pytest.mark.parametrize("probe", PROBES)
def test_famo_equals_the_official_algorithm_for_ten_steps(probe, decay, eps):
    expected, w = literal_famo(BATCHES, decay, eps)
    rule = mf.famo(decay=decay, eps=eps)
    got = train(rule, mf.second_evaluation(PROBES[probe]()), BATCHES, reduction="mean")
    near(got, expected, 1e-10, 1e-12)
    assert (w - w.mean()).abs().max() > 1e-3  # it moved, and by far more than the tolerance
    # The test can tell: the next batch in place of the same one gives something else.
    other = mf.famo(decay=decay, full_batch=True)
    other = train(other, PROBES[probe](), BATCHES, reduction="mean")
    assert (other[-1] - expected[-1]).abs().max() > 1e-5


def test_famo_of_a_full_batch_needs_no_second_forward():
    data = [BATCH] * 6
    got = train(mf.famo(full_batch=True), mf.losses_only(), data, reduction="mean")
    expected = train(mf.famo(), mf.second_evaluation(mf.losses_only()), data, reduction="mean")
    near(got, expected, 1e-12, 1e-14)


def test_famo_with_lower_bounds_weighs_by_the_distance_from_them():
    lower = torch.tensor([0.01, -1.0, 0.0, 0.0], dtype=F64)
    with pytest.raises(ValueError, match="or pass eps=1e-8 where one may be 0"):
        weights_of(mf.famo(full_batch=True), 0 * SERIES)
    assert weights_of(mf.famo(full_batch=True, eps=1e-8), 0 * SERIES)[0].isfinite().all()
    got, _ = weights_of(mf.famo(full_batch=True, lower=lower), SERIES)
    expected, _ = weights_of(mf.famo(full_batch=True), SERIES - lower)
    near(got, expected, 1e-12)


def test_second_evaluation_copies_the_batch_and_takes_any_tree_of_tensors():
    def losses(params, batch):
        return vector(params, (batch["x"][0], batch["y"]))

    step = mf.descend(losses, mf.famo(), mf.second_evaluation(mf.losses_only()), mf.sgd(0.1))
    buffer = {"x": (BATCH[0].clone(),), "y": BATCH[1].clone()}
    state, _ = step.update(step.init(PARAMS, buffer), buffer)
    expected, _ = step.update(state, {"x": (2 * BATCH[0],), "y": BATCH[1]})
    buffer["x"][0].mul_(2)  # a loader that fills the same buffers again
    got, _ = step.update(state, buffer)
    assert torch.equal(got.balance.rule.logits, expected.balance.rule.logits)
    assert bool(got.balance.rule.logits.any())


def test_famo_with_absent_tasks_is_famo_on_the_others():
    """Task 1 has no labels, and a loss that is NaN; the others train as if alone."""
    known = torch.tensor([1.0, torch.nan, 1.0])[:, None]
    broken = [(x, y * known) for x, y in BATCHES[:6]]

    def alone(params, batch):
        first, _, last = scalars(params, batch)
        return first, last

    def present(batch):
        return ~batch[1].isnan().any(-1).any(0)

    def end(losses_fn, probe):
        step = mf.descend(losses_fn, mf.famo(), mf.second_evaluation(probe), mf.sgd(0.05))
        state = trained(step, broken)
        return flatten(state.params), state.balance.rule.logits

    with_absent, logits = end(scalars, mf.losses_only(present=present))
    expected, others = end(alone, mf.losses_only())
    near(with_absent, expected, 1e-10, 1e-13)
    near(logits[[0, 2]], others, 1e-10, 1e-13)
    assert float(logits[1]) == 0


def test_famo_of_tasks_that_are_absent_from_some_batches():
    """The official loop over those in the last batch; torch's Adam skips who has no gradient."""
    target = torch.arange(1.0, 4.0, dtype=F64)
    losses = lambda params, present: (params["x"] - target).square() + 1  # noqa: E731
    probe = mf.second_evaluation(mf.losses_only(present=lambda present: present))
    step, params = mf.balance(losses, mf.famo(0.5), probe), {"x": 0 * target}
    w = [torch.zeros((), dtype=F64, requires_grad=True) for _ in target]
    adam = torch.optim.Adam(w, lr=0.5, weight_decay=1e-3)
    state = step.init(params, every := target > 0)
    for here in (every, target != 2, every, target < 3, every):
        before, z = losses(params, here), torch.stack(w).where(here, -torch.inf).softmax(0)
        grads, state, info = step.update(params, here, state)
        share = z.detach() / before
        near(info.weights, share / share.sum(), 1e-12)
        params = {"x": params["x"] - 0.1 * grads["x"]}
        fall = (before / losses(params, here)).log()
        for each, slope in zip(w, torch.autograd.grad((z * fall).sum(), w), strict=True):
            each.grad = slope
        for each in [each for each, known in zip(w, here, strict=True) if not known]:
            each.grad = None
        adam.step()
