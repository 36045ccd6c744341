"""Probes with a memory or several batches, and their rules: against loops."""

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.probes.common import check_options
from mtlfunc.rules.common import gramian_of
from tests.support.families import gramian
from tests.support.loops import trained
from tests.support.oracles import bisected, check_slope, near
from tests.support.problems import (
    BATCH,
    FORMS,
    HEADS,
    PARAMS,
    TASKS,
    TRUNK,
    flatten,
    literal_rows,
    nets,
    opaque,
    vector,
)
from tests.support.rules import F64, geometry
from tests.support.steps import BATCHES, PAIR, SHARED, run
from tests.support.steps import STATEFUL as METHODS


# Against the methods' loops
def moved(params, direction, heads, lr):
    """Parameters after one plain step along flat directions on the trunk and on the heads."""
    flat = torch.cat([direction, heads]).split([params[name].numel() for name in (*TRUNK, *HEADS)])
    steps = dict(zip((*TRUNK, *HEADS), flat, strict=True))
    return {name: leaf - lr * steps[name].reshape(leaf.shape) for name, leaf in params.items()}


@pytest.mark.parametrize("batches", [PAIR, BATCHES], ids=["two", "three"])
@pytest.mark.parametrize("form", FORMS)
def test_modo_equals_its_loop(batches, form):
    lr, gamma, rho = 0.1, 0.05, 0.1
    step = mf.descend(FORMS[form], mf.modo(gamma, rho), mf.double_sampling(SHARED), mf.sgd(lr))
    state = step.init(PARAMS, batches)
    params, w = PARAMS, torch.full((TASKS,), 1 / TASKS, dtype=F64)
    for _ in range(4):
        rows = [literal_rows(params, batch, TRUNK)[1] for batch in batches]
        heads = [literal_rows(params, batch, HEADS)[1].mean(0) for batch in batches]
        losses = [literal_rows(params, batch, TRUNK)[0] for batch in batches]
        w = bisected(w - gamma * (rows[0] @ (rows[1].T @ w) + rho * w))
        used = slice(2) if len(batches) == 2 else slice(2, 3)  # both, or the third alone
        used = [torch.stack(x[used]).mean(0) for x in (rows, heads, losses)]
        params = moved(params, w @ used[0], used[1], lr)
        state, info = step.update(state, batches)
        near(info.gramian, rows[0] @ rows[1].T, 1e-9, 1e-13)
        assert not torch.allclose(info.gramian, info.gramian.T)
        near(info.weights, w, 1e-9, 1e-12)
        near(info.losses, used[2], 1e-10)
        near(flatten(state.params), flatten(params), 1e-9, 1e-12)


@pytest.mark.parametrize("eta", [0.3, 0.01])
def test_sdmgrad_equals_its_loop(eta):
    """The official inner loop by SGD on two batches, the step on a third; λ counts at small η."""
    lr, strength, momentum = 0.1, 0.3, 0.5
    rule = mf.sdmgrad(strength, eta, momentum, 20)
    step = mf.descend(vector, rule, mf.double_sampling(SHARED, heads="weighted"), mf.sgd(lr))
    state = step.init(PARAMS, BATCHES)
    params, w = PARAMS, torch.full((TASKS,), 1 / TASKS, dtype=F64)
    for _ in range(3):
        rows = [literal_rows(params, batch, TRUNK)[1] for batch in BATCHES]
        cross = rows[0] @ rows[1].T
        cross = cross / cross.diagonal().clamp_min(0).sqrt().mean() ** 2
        leaf = w.clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], eta, momentum)
        for _ in range(20):
            leaf.grad = cross @ leaf.detach() + strength * cross.mean(1)
            optimizer.step()
            leaf.data = bisected(leaf.data)
        w = leaf.detach()
        used = (w + strength / TASKS) / (1 + strength)
        heads = literal_rows(params, BATCHES[2], HEADS)[1]
        params = moved(params, used @ rows[2], used @ heads, lr)
        state, info = step.update(state, BATCHES)
        near(info.weights, used, 1e-8, 1e-11)
        near(flatten(state.params), flatten(params), 1e-8, 1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_moco_equals_its_loop(form):
    lr, beta, gamma, rho = 0.1, 0.5, 0.05, 0.1
    probe = mf.moving_average(SHARED, rate=lambda k: beta / k**0.5)
    step = mf.descend(FORMS[form], mf.moco(gamma, rho, decay=0.5), probe, mf.sgd(lr))
    state = step.init(PARAMS, BATCH)
    params, w, tracked = PARAMS, torch.full((TASKS,), 1 / TASKS, dtype=F64), 0.0
    for k in range(1, 5):
        rows, heads = literal_rows(params, BATCH, TRUNK)[1], literal_rows(params, BATCH, HEADS)[1]
        tracked = tracked - beta / k**0.5 * (tracked - rows)
        w = bisected(w - gamma / k**0.5 * (tracked @ (tracked.T @ w) + rho * w))
        params = moved(params, w @ tracked, heads.mean(0), lr)
        state, info = step.update(state, BATCH)
        near(info.gramian, tracked @ tracked.T, 1e-9, 1e-13)
        near(info.weights, w, 1e-9, 1e-12)
        near(flatten(state.params), flatten(params), 1e-9, 1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("form", FORMS)
def test_db_mtl_equals_its_loop(form, eps):
    lr, beta = 0.1, 0.9
    probe = mf.moving_average(SHARED, rate=lambda k: 1 - beta / k**0.5, corrected=True)

    def logs(params, batch):
        found = FORMS[form](params, batch)
        several = found.values() if isinstance(found, dict) else found
        return (torch.stack(tuple(several)) + eps).log()

    step = mf.descend(logs, mf.db_mtl(), probe, mf.sgd(lr))
    state = step.init(PARAMS, BATCH)
    params, average, missing = PARAMS, 0.0, 1.0
    for k in range(1, 5):
        losses = literal_rows(params, BATCH, TRUNK)[0]
        each = (literal_rows(params, BATCH, names)[1] for names in (TRUNK, HEADS))
        rows, heads = (x / (losses + eps)[:, None] for x in each)
        decay = beta / k**0.5
        average, missing = decay * average + (1 - decay) * rows, missing * decay
        corrected = average / (1 - missing)
        length = corrected.norm(dim=1)
        direction = (length.max() * corrected / length[:, None]).mean(0)
        params = moved(params, direction, heads.mean(0), lr)
        state, info = step.update(state, BATCH)
        near(info.weights, length.max() / length / TASKS, 1e-9)
        near(info.losses, (losses + eps).log(), 1e-10, 1e-14)
        near(flatten(state.params), flatten(params), 1e-9, 1e-12)
        # nothing is averaged yet
        near(corrected[0], rows[0], 1e-9) if k == 1 else None


@pytest.mark.parametrize("form", FORMS)
def test_excess_mtl_equals_its_loop(form):
    lr, eta = 0.1, 0.3
    step = mf.descend(FORMS[form], mf.excess_mtl(eta), mf.excess_risk(SHARED), mf.sgd(lr))
    state = step.init(PARAMS, BATCH)
    params, w, squares, first = PARAMS, torch.full((TASKS,), 1 / TASKS, dtype=F64), 0.0, None
    for _ in range(4):
        rows, heads = literal_rows(params, BATCH, TRUNK)[1], literal_rows(params, BATCH, HEADS)[1]
        squares = squares + rows**2
        risk = (rows**2 / squares.sqrt()).sum(1)
        first = risk if first is None else first
        w = w * torch.exp(eta * risk / first)
        w = w / w.sum()
        params = moved(params, w @ rows, w @ heads, lr)
        state, info = step.update(state, BATCH)
        near(info.weights, w, 1e-9)
        near(flatten(state.params), flatten(params), 1e-9, 1e-12)


# What the methods are for
def test_double_sampling_is_unbiased_and_one_batch_is_not():
    """Over all pairs of samples, the mean Gramian is that of the mean gradients."""
    probe, one, run = mf.double_sampling(SHARED), mf.jacobian(SHARED), mf.Run.of(opaque, PARAMS)
    samples = tuple(x[:, None] for x in BATCH)
    _, state = probe.init(run, (BATCH, BATCH), mf.random.key(0))

    def cross(i, j):
        batches = tuple(tuple(x.index_select(0, k[None])[0] for x in samples) for k in (i, j))
        return gramian_of(probe.update(run, batches, state)[0].geometry)

    mean = vmap(cross)(*torch.cartesian_prod(torch.arange(8), torch.arange(8)).T).mean(0)
    rows = literal_rows(PARAMS, BATCH, TRUNK)[1]
    near(mean, rows @ rows.T, 1e-10, 1e-13)
    alone = vmap(lambda x, y: gramian_of(one.update(run, (x, y), ())[0].geometry))(*samples)
    excess = torch.linalg.eigvalsh(alone.mean(0) - mean)
    assert float(excess[0]) > 0.01 * float(mean.trace())


@pytest.mark.parametrize("factor", [2.0**20, 1e-6, 1e8])
def test_db_mtl_and_excess_mtl_forget_units(factor):
    """Losses in other units, all alike or (DB-MTL) each in its own, have the same weights."""
    units = torch.tensor([1.0, factor, factor**0.5], dtype=F64)
    for name, *both in (
        ("excess_mtl", opaque, lambda p, b: factor * opaque(p, b)),
        ("db_mtl", lambda p, b: opaque(p, b).log(), lambda p, b: (units * opaque(p, b)).log()),
    ):
        rule, probe, batch = METHODS[name]
        results = []
        for losses in both:
            step = mf.balance(losses, rule(), probe())
            _, state, _ = step.update(PARAMS, batch, step.init(PARAMS, batch))
            grads, _, info = step.update(PARAMS, batch, state)
            results.append((info.weights, flatten(grads)))
        unit = factor if name == "excess_mtl" else 1.0
        near(results[1][0], results[0][0], 1e-10)
        near(results[1][1], results[0][1] * unit, 1e-9, 1e-12 * unit)


def test_first_excess_that_is_zero_is_not_divided_by():
    step = mf.balance(lambda p, b: b @ p["x"], mf.excess_mtl(0.5), mf.excess_risk())
    params, rows = {"x": torch.zeros(3, dtype=F64)}, torch.eye(3, dtype=F64)[:2]
    state = step.init(params, rows)
    _, state, info = step.update(params, rows * torch.tensor([[1.0], [0.0]], dtype=F64), state)
    assert float(info.weights[0]) > 0.5
    before = info.weights
    _, state, info = step.update(params, rows, state)
    ratio = before * torch.exp(0.5 * torch.tensor([2**-0.5, 1.0], dtype=F64))
    near(info.weights, ratio / ratio.sum(), 1e-12)


@pytest.mark.parametrize("rule", [mf.modo, mf.moco, mf.sdmgrad])
def test_weights_stay_on_the_simplex_at_any_length(rule):
    """Beside lengths of 1e30 the simplex's 1 is not lost; absent tasks keep their weights."""
    made, ones = rule(), torch.ones(3, dtype=F64)
    seen, state = geometry(gramian("gaussian", 3), ones), made.init(ones, mf.random.key(0))
    state = made.update(seen._replace(present=torch.arange(3) != 1), state)[1]
    assert state.weights.tolist()[1] == 1 / 3
    assert float(state.weights.sum()) == pytest.approx(1.0, rel=1e-12)
    for G in (gramian("gaussian", 3), 1e60 * gramian("gaussian", 3, 1), 1e-60 * gramian("hull", 3)):
        weights, state = made.update(geometry(G, ones), state)
        assert bool((weights >= 0).all())
        assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)


# Transforms
@pytest.mark.parametrize("name", METHODS)
def test_gradient_of_a_run_through_the_losses(name):
    """The hyper-parameter bends one loss, so that logarithms see it, too."""

    def end(power):
        def losses(params, batch):
            out = opaque(params, batch)
            return out ** torch.stack([torch.ones_like(power), power, torch.ones_like(power)])

        return vector(run(name, PARAMS, 0, 0.05, 3, losses)[0].params, BATCH).sum()

    check_slope(end, 1.2, "grad", "jvp", rtol=1e-5, least=1e-6)


@pytest.mark.parametrize(
    ("rule", "probe", "batch"),
    [
        (mf.modo, lambda x: mf.double_sampling(SHARED), BATCHES),
        (mf.sdmgrad, lambda x: mf.double_sampling(SHARED), BATCHES),
        (mf.moco, lambda x: mf.moving_average(SHARED, rate=x), BATCH),
        (mf.excess_mtl, lambda x: mf.excess_risk(SHARED), BATCH),
        (lambda x: mf.db_mtl(), lambda x: mf.moving_average(SHARED, rate=x), BATCH),
        (mf.famo, lambda x: mf.second_evaluation(mf.losses_only()), BATCH),
    ],
    ids=["modo", "sdmgrad", "moco", "excess_mtl", "db_mtl", "famo"],
)
def test_gradient_of_a_run_with_respect_to_the_hyper_parameter(rule, probe, batch):
    def end(x):
        step = mf.descend(opaque, rule(x), probe(x), mf.sgd(0.05))
        return vector(trained(step, [batch] * 3).params, BATCH).sum()

    check_slope(end, 0.3, "grad", "vmap", least=1e-3)


def test_aux_of_every_batch_and_of_the_logarithms():
    def with_aux(params, batch):
        return vector(params, batch), {"total": vector(params, batch).sum()}

    balance = mf.balance(with_aux, mf.modo(), mf.double_sampling(SHARED), has_aux=True)
    _, _, info = balance.update(PARAMS, BATCHES, balance.init(PARAMS, BATCHES))
    near([aux["total"] for aux in info.aux], [vector(PARAMS, b).sum() for b in BATCHES])
    balance = mf.balance(vector, mf.modo(), mf.double_sampling(SHARED))
    assert balance.update(PARAMS, PAIR, balance.init(PARAMS, PAIR))[2].aux == ()


# Errors
def test_errors_name_the_argument():
    balance = mf.balance(opaque, mf.modo(), mf.double_sampling(SHARED))
    with pytest.raises(TypeError, match="batch:"):
        balance.init(PARAMS, torch.ones(2))
    with pytest.raises(TypeError, match="got 4 entries"):
        balance.init(PARAMS, (BATCH,) * 4)


STATES = {
    "none": (lambda: mf.jacobian(SHARED), mf.mgda),
    "a stream": (lambda: mf.jacobian(SHARED, mix=mf.subset(2)), mf.mgda),
    "rows": (lambda: mf.moving_average(SHARED), mf.mgda),
    "rows of other leaves": (lambda: mf.moving_average("trunk.0.*"), mf.mgda),
    "squares": (lambda: mf.excess_risk(SHARED), mf.excess_mtl),
    "squares of other leaves": (lambda: mf.excess_risk("trunk.0.*"), mf.excess_mtl),
    "a batch": (lambda: mf.second_evaluation(mf.jacobian(SHARED)), mf.famo),
    "no rows": (mf.losses_only, mf.mean),
}
SAME = {frozenset({"none", "no rows"})}  # neither remembers anything


@pytest.mark.parametrize("of", STATES)
@pytest.mark.parametrize("to", STATES)
def test_a_state_of_another_probe_is_named(of, to):
    state = mf.balance(vector, STATES[of][1](), STATES[of][0]()).init(PARAMS, BATCH)
    # the rule's part is the right one
    balance = mf.balance(vector, STATES[to][1](), STATES[to][0]())
    state = state._replace(rule=balance.init(PARAMS, BATCH).rule)
    if of == to or {of, to} in SAME:
        balance.update(PARAMS, BATCH, state)
        return
    with pytest.raises(ValueError, match="state: its probe's part is not what this step's probe"):
        balance.update(PARAMS, BATCH, state)


def test_a_task_more_in_remembered_rows_is_named():
    two = mf.balance(lambda p, b: vector(p, b)[:2], mf.mgda(), mf.moving_average(SHARED))
    three = mf.balance(vector, mf.mgda(), mf.moving_average(SHARED))
    state = two.init(PARAMS, BATCH)
    with pytest.raises(ValueError, match="losses_fn: 2 losses at init, 3 at this step"):
        three.update(PARAMS, BATCH, state)
    with pytest.raises(ValueError, match="state: its probe's part"):
        three.update(PARAMS, BATCH, state._replace(tasks=((),) * 3))


def test_excess_risk_of_scalar_parameters():
    """g²/√(Σ g²) of two steps, by hand; these leaves have no axis but the task's."""
    probe, params = mf.excess_risk(), {"x": torch.tensor(1.0, dtype=F64)}
    run = mf.Run.of(lambda p, b: b * p["x"], params)
    _, state = probe.init(run, BATCH[0][0, :2], mf.random.key(0))
    for batch, expected in (([3.0, -4.0], [3.0, 4.0]), ([4.0, 3.0], [16 / 5, 9 / 5])):
        measured, state = probe.update(run, torch.tensor(batch, dtype=F64), state)
        near(measured.geometry.extra["excess_risk"], torch.tensor(expected, dtype=F64), 1e-15)


def test_an_iterator_of_parameters_is_read_once_and_for_all():
    net, fixed = nets[0], lambda which: check_options(which).shared
    assert all(fixed(which) is which for which in (SHARED, str.islower, net.trunk[0].weight))
    assert fixed(net.trunk) == (net.trunk,)
    assert fixed(net.trunk.parameters()) == (*net.trunk.parameters(),)
    assert fixed(name for name in ("a", "b")) == ("a", "b") == fixed(["a", "b"])
