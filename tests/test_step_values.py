"""What is wrong with losses, gradients and batches, where it can be seen."""

import pytest
import torch
from torch.func import functional_call, vmap

import mtlfunc as mf
from tests.support.loops import trained
from tests.support.oracles import check_slope, near
from tests.support.problems import (
    BATCH,
    FORMS,
    PARAMS,
    TASKS,
    TRUNK,
    decode,
    encode,
    flatten,
    net,
    opaque,
    vector,
)
from tests.support.rules import geometry
from tests.support.steps import METHODS, SHARED, STATEFUL, parts


def test_task_without_shared_parameter_is_named():
    for form in ("tuple", "vector", "opaque"):

        def detached(params, batch, form=form):
            losses = FORMS[form](params, batch)
            own = params["heads.1.bias"].square().sum()
            if form == "opaque":
                return torch.where(torch.arange(TASKS) == 1, own, losses)
            found = losses[0], own, losses[2]
            return found if form == "tuple" else torch.stack(found)

        with pytest.raises(ValueError, match=r"shared: the losses of tasks \[1\]"):
            mf.descend(detached, mf.mgda(), mf.jacobian(SHARED), mf.sgd(0.1)).init(PARAMS, BATCH)


def test_relu_written_with_where_is_not_mistaken_for_independence():
    def losses(params, batch):
        z = batch[0] @ params["trunk.0.weight"].T
        return torch.where(z > 0, z, 0.0).sum(0)[:2]

    mf.descend(losses, mf.mean(), mf.jacobian("trunk.0.weight"), mf.sgd(0.1)).init(PARAMS, BATCH)


@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_nan_is_an_error_outside_and_nan_inside_transforms(name):
    params = PARAMS | {"trunk.2.weight": torch.full_like(PARAMS["trunk.2.weight"], float("nan"))}
    rule, probe, batch = parts(name)
    step = mf.descend(opaque, rule, probe, mf.adam(0.02))
    if name in METHODS:
        with pytest.raises(ValueError, match="losses: NaN or infinite"):
            step.init(params, batch)
    state = step.init(PARAMS, batch)
    with pytest.raises(ValueError, match="losses: NaN or infinite"):
        step.update(state._replace(params=params), batch)

    def both(scale):
        broken = {leaf: p * scale if leaf == "trunk.2.weight" else p for leaf, p in PARAMS.items()}
        return step.update(step.init(broken, batch), batch)

    out, info = vmap(both)(torch.tensor([1.0, float("nan")], dtype=torch.float64))
    assert all(bool(leaf[0].isfinite().all()) for leaf in out.params.values())
    leaves = [x for n, x in out.params.items() if name in METHODS or n in TRUNK]
    assert not any(bool(leaf[1].isfinite().any()) for leaf in leaves if leaf.numel())
    # these weights do not depend on this step's gradients
    if name not in ("mean", "mean, losses only", "static weights", "mean, masked", "gradnorm"):
        weights = info.weights[1, :-1] if name == "align" else info.weights[1]  # a target's is 0
        assert bool(weights.isnan().all())


def test_infinite_gradient_of_finite_loss_is_an_error():
    def losses(params, batch):
        return torch.stack([params["x"].sqrt().sum(), 2 * params["x"].sqrt().sum()])

    step = mf.descend(losses, mf.mgda(), mf.jacobian(), mf.sgd(0.1))
    params = {"x": torch.zeros(2, dtype=torch.float64)}
    state = step.init(params, ())
    with pytest.raises(ValueError, match=r"gradients .*\[0, 1\]"):
        step.update(state, ())


def test_representation_checks_its_parts():
    for losses, shared, words in (
        (lambda p, b: 2 * vector(p, b), SHARED, "must be the same function"),
        (vector, "trunk.2.*", r"encode uses trunk\.0\.weight, trunk\.0\.bias"),
    ):
        step = mf.balance(losses, mf.mgda(), mf.representation(encode, decode, shared=shared))
        with pytest.raises(ValueError, match=words):
            step.init(PARAMS, BATCH)


def test_representation_of_a_dict():
    def two(params, batch):
        z = encode(params, batch)
        return {"left": z[:, :2], "right": z[:, 2:]}

    def joined(params, z, batch):
        return decode(params, torch.cat([z["left"], z["right"]], 1), batch)

    step = mf.balance(vector, mf.mgda(), mf.representation(two, joined, shared=SHARED))
    grads, _, _ = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    plain = mf.balance(vector, mf.mgda(), mf.representation(encode, decode, shared=SHARED))
    expected, _, _ = plain.update(PARAMS, BATCH, plain.init(PARAMS, BATCH))
    near(flatten(grads), flatten(expected), 1e-12, 1e-14)
    # whose gradient would count in the Gramian, though no trunk moves it
    skip = mf.representation(lambda p, b: two(p, b) | {"x": b[0]}, joined, shared=SHARED)
    with pytest.raises(ValueError, match="encode: z x depends on no parameter"):
        mf.balance(vector, mf.mgda(), skip).init(PARAMS, BATCH)


def test_representation_with_dropout_begins_in_eval_mode():
    layer = torch.nn.Dropout(0.5)

    def drawn(params, batch):
        return layer(encode(params, batch))

    probe = mf.representation(drawn, decode, shared=SHARED)
    step = mf.balance(lambda p, b: decode(p, drawn(p, b), b), mf.mgda(), probe)
    with pytest.raises(ValueError, match=r"call module\.eval\(\) before"):
        step.init(PARAMS, BATCH)
    layer.eval()
    state = step.init(PARAMS, BATCH)
    layer.train()
    assert step.update(PARAMS, BATCH, state)[2].weights.sum() == pytest.approx(1)


def test_autocast_around_a_step_is_refused_and_inside_works():
    params = {name: leaf.float() for name, leaf in PARAMS.items()}
    batch = tuple(x.float() for x in BATCH)

    def inside(params, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return opaque(params, batch).float()

    step = mf.descend(inside, mf.mgda(), mf.jacobian(SHARED), mf.adam(0.01))
    state = step.init(params, batch)
    _, info = step.update(state, batch)
    assert info.gramian.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        step.update(state, batch)


def test_learned_mix_is_differentiated():
    def end(scale):
        def mix(key, count):
            matrix = torch.eye(count, dtype=torch.float64)[:2] * scale
            return matrix, torch.full((2,), 0.5, dtype=torch.float64)

        probe = mf.jacobian(SHARED, mix=mix, heads="weighted")
        step = mf.descend(vector, mf.mean(), probe, mf.sgd(0.1))
        return vector(trained(step, [BATCH]).params, BATCH).sum()

    check_slope(end, 1.1, "closure", "grad")


@pytest.mark.parametrize(
    "probe",
    [mf.jacobian(SHARED), mf.losses_only(), mf.jacobian(SHARED, heads="weighted")],
    ids=["shared", "losses only", "weighted"],
)
def test_infinite_gradient_outside_the_measured_leaves_is_an_error(probe):
    params = PARAMS | {"heads.0.bias": torch.zeros_like(PARAMS["heads.0.bias"])}

    def losses(params, batch):
        return opaque(params, batch) + params["heads.0.bias"].sqrt().sum()

    step = mf.descend(losses, mf.mean(), probe, mf.sgd(0.1))
    state = step.init(params, BATCH)
    with pytest.raises(ValueError, match=r"gradient of 'heads\.0\.bias': NaN or infinite"):
        step.update(state, BATCH)


def test_two_unreduced_losses_are_not_taken_for_losses_and_aux():
    def forgotten(params, batch):
        x, y = batch
        first, second, _ = functional_call(net, params, (x,))
        return (first - y[:, 0]).square().mean(1), (second - y[:, 1]).square().mean(1)

    for call in (mf.task_gradients, mf.task_gramian):
        with pytest.raises(ValueError, match="got a pair of which the first is not a scalar"):
            call(forgotten, PARAMS, BATCH)
    with pytest.raises(ValueError, match="or, if these are two losses, reduce each"):
        mf.descend(forgotten, mf.mean(), mf.losses_only(), mf.sgd(0.1)).init(PARAMS, BATCH)


def test_gradnorm_refuses_losses_that_fall_below_zero():
    rule = mf.gradnorm(0.5)
    state = rule.init(torch.ones(2), mf.random.key(0))
    G, losses = torch.diag(torch.tensor([1.0, 9.0])), torch.tensor([-1e-6, 2.0])
    with pytest.raises(ValueError, match="need losses >= 0"):
        rule.update(geometry(G, losses), state)
    # Under a transform the next weights are NaN.
    _, following = vmap(lambda losses: rule.update(geometry(G, losses), state))(losses[None])
    assert bool(following.weights.isnan().all())


def test_negative_radius_under_vmap_gives_nan():
    gramian, radii = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([0.4, -0.4])
    weights = vmap(lambda c: mf.solvers.auto()(mf.solvers.cagrad(gramian, c)).weights)(radii)
    assert bool(weights[0].isfinite().all())
    assert bool(weights[1].isnan().all())


def test_batch_of_another_dtype_or_device_is_explained():
    step = mf.descend(opaque, mf.mgda(), mf.jacobian(SHARED), mf.sgd(0.1))
    for batch in (tuple(x.float() for x in BATCH), tuple(x.to("meta") for x in BATCH)):
        with pytest.raises(RuntimeError, match=r"losses_fn mixes dtypes or .*; convert the batch"):
            step.init(PARAMS, batch)
