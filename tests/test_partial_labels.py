"""Batches in which some tasks have no labels: the step is that on the present tasks alone."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf
from tests.support.labels import MASKS, given
from tests.support.labels import labelled as vector
from tests.support.loops import trained
from tests.support.oracles import check_slope, near, same
from tests.support.problems import (
    BATCH,
    FORMS,
    PARAMS,
    SHARED,
    TASKS,
    TRUNK,
    decode,
    encode,
    flatten,
    net,
    nets,
    scalars,
)
from tests.support.registry import on_gramian

SOME = MASKS[0]


def batch(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (*BATCH, mask)


def form(name: str, mask: torch.Tensor | None = None, absent: float = 3.0):
    """Losses of problems.py, an absent task's with another gradient; or the masked tasks' alone."""

    def losses(params, batch):
        every = enumerate(scalars(params, batch[:2]))
        every = [loss if batch[2][task] else absent * loss for task, loss in every]
        kept = [x for task, x in enumerate(every) if mask is None or mask[task]]
        if name == "dict":
            return {f"task {task}": loss for task, loss in enumerate(kept)}
        return tuple(kept) if name == "tuple" else torch.stack(kept)

    return losses


def masked(key, rows):
    return {n: r * (r.abs() > 0.01) for n, r in rows.items()}


PROBES = {
    "jacobian": partial(mf.jacobian, SHARED),
    "layerwise": partial(mf.jacobian, SHARED, engine="layerwise"),
    "rows": partial(mf.jacobian, SHARED, engine="rows", chunk_size=1),
    "own": partial(mf.jacobian, SHARED, heads="own"),
    "weighted": partial(mf.jacobian, SHARED, heads="weighted"),
    "masked": partial(mf.jacobian, SHARED, mask=masked),
    "losses only": mf.losses_only,
    "representation": partial(mf.representation, encode, decode, shared=SHARED),
    "tracked": partial(mf.moving_average, SHARED, rate=0.3, corrected=True),
    "excess": partial(mf.excess_risk, SHARED),
}
RULES = {
    "mean": mf.mean,
    "mgda": mf.mgda,
    "cagrad": lambda: mf.cagrad(0.4),
    "gradnorm": lambda: mf.gradnorm(0.5),
    "modo": lambda: on_gramian(mf.modo()),
    "db_mtl": lambda: on_gramian(mf.db_mtl()),
}
OF_PROBES = {"losses only": "mean", "excess": "excess_mtl"}
CASES = [("jacobian", rule) for rule in RULES]
CASES += [(probe, OF_PROBES.get(probe, "mgda")) for probe in PROBES if probe != "jacobian"]
CASES += [("tracked", "moco"), ("tracked", "db_mtl")]
RULES |= {"excess_mtl": mf.excess_mtl, "moco": mf.moco}


def alone(probe: str, name: str, mask: torch.Tensor) -> tuple[Any, mf.Probe]:
    """Losses and probe that never see the absent tasks."""
    if probe == "representation":
        others = mf.representation(encode, lambda p, z, b: decode(p, z, b)[mask], shared=SHARED)
        return (lambda p, b: vector(p, b)[mask]), others
    return form(name, mask), PROBES[probe]()


@pytest.mark.parametrize(("probe", "rule"), CASES)
def test_step_equals_the_step_on_present_tasks_alone(probe, rule):
    everybody = MASKS[2]
    for name, mask in (("tuple", MASKS[0]), ("vector", MASKS[0]), ("dict", MASKS[1])):
        reduction = "mean" if name == "dict" else "sum"
        every, kept = vector if probe == "representation" else form(name), PROBES[probe]
        through = mf.balance(every, RULES[rule](), kept(present=given), reduction=reduction)
        losses, without = alone(probe, name, mask)
        reference = mf.balance(losses, RULES[rule](), without, reduction=reduction)
        state = through.init(PARAMS, batch(everybody), key=3)
        expected_state = reference.init(PARAMS, batch(everybody), key=3)
        for _ in range(2):
            grads, state, info = through.update(PARAMS, batch(mask), state)
            expected, expected_state, its = reference.update(PARAMS, batch(mask), expected_state)
            assert bool((info.weights[..., ~mask] == 0).all())
            near(info.weights[..., mask], its.weights, 1e-9, 1e-12)
            near(flatten(grads), flatten(expected), 1e-9, 1e-13)
            if info.gramian.numel():
                absent = info.gramian[..., ~mask, :], info.gramian[..., ~mask]
                assert all(bool((x == 0).all()) for x in absent)


def rule_for(probe: str) -> mf.Rule:
    return {"losses only": mf.mean, "excess": mf.excess_mtl}.get(probe, mf.mgda)()


@pytest.mark.parametrize("probe", PROBES)
def test_nobody_present_is_a_zero_step(probe):
    for name in ("tuple", "vector"):
        losses = vector if probe == "representation" else form(name)
        probed = PROBES[probe](present=given)
        step = mf.descend(losses, rule_for(probe), probed, mf.sgd(0.1), reduction="sum")
        after, info = step.update(step.init(PARAMS, batch(MASKS[2])), batch(MASKS[3]))
        assert all(torch.equal(after.params[leaf], PARAMS[leaf]) for leaf in PARAMS)
        assert not info.weights.any()


@pytest.mark.parametrize("probe", PROBES)
def test_vmapped_over_masks_and_networks_equals_loop(probe):
    """Masks that are batched, and one that is common to the batch, which can be read there."""
    several = probe not in ("representation", "own", "weighted")
    for losses in (vector, lambda p, b: scalars(p, b[:2])) if several else (vector,):
        step = mf.descend(losses, rule_for(probe), PROBES[probe](present=given), mf.sgd(0.1))

        def run(params, mask, step=step):
            state, _ = step.update(step.init(params, batch(MASKS[2])), batch(mask))
            return step.update(state, batch(mask))

        together = vmap(run)(mf.stack([*nets, nets[0]]), MASKS)
        common = vmap(lambda params, run=run: run(params, SOME))(mf.stack(nets))
        for i, (module, mask) in enumerate(zip([*nets, nets[0]], MASKS, strict=True)):
            alone = run(mf.parameters(module), mask)
            same(tree_map(lambda x, i=i: x[i], together), alone, 1e-9, 1e-12)
        alone = run(mf.parameters(nets[1]), SOME)
        same(tree_map(lambda x: x[1], common), alone, 1e-9, 1e-12)


@pytest.mark.parametrize("probe", ["jacobian", "layerwise", "tracked", "losses only"])
def test_gradient_of_a_run_with_absent_tasks(probe):
    """With respect to a factor of one loss, which is absent at every second step."""
    rule = mf.mean if probe == "losses only" else lambda: mf.cagrad(0.4)

    def end(scale):
        def losses(params, batch):
            one = torch.ones_like(scale)
            return vector(params, batch) * torch.stack([one, scale, one])

        step = mf.descend(losses, rule(), PROBES[probe](present=given), mf.sgd(0.1))
        state = trained(step, [batch(mask) for mask in (MASKS[2], SOME, MASKS[2])])
        return vector(state.params, batch(SOME)).sum()

    check_slope(end, 1.2, "grad", "closure", least=1e-5)


# Losses that are NaN or infinite over nothing
def over_labels(kind: str):
    """Per-task losses over the labelled samples [sample, task]; "mean" divides without care."""

    def losses(params, batch):
        x, y, labelled = batch
        errors = (torch.stack(functional_call(net, params, (x,)), 1) - y).square().mean(2)
        counts = labelled.sum(0)
        if kind == "safe":
            return (errors * labelled).sum(0) / counts.clamp_min(1)
        if kind == "where":
            return errors.where(labelled, 0.0).sum(0) / counts
        pairs = zip(errors.unbind(1), labelled.unbind(1), counts, strict=True)
        means = [(error * here).sum() / count for error, here, count in pairs]
        return tuple(means) if kind == "separate" else torch.stack(means)

    return losses


def labelled(missing: int | None = 1) -> torch.Tensor:
    mask = torch.arange(8)[:, None] % 3 != torch.arange(TASKS)
    return mask if missing is None else mask & (torch.arange(TASKS) != missing)


def whole(batch: Any) -> torch.Tensor:
    return batch[2].any(0)


MISSING = torch.stack([labelled(), labelled(None)])
_SAFE = ("jacobian", "own", "weighted", "layerwise", "losses only")
NAN_SAFE = {name: PROBES[name](present=whole) for name in _SAFE}
NAN_SAFE |= {"tracked": mf.moving_average(SHARED, present=whole)}


@pytest.mark.parametrize("kind", ["separate", "where"])
@pytest.mark.parametrize("probe", NAN_SAFE)
def test_nan_of_an_absent_task_stays_out(probe, kind):
    """Of separate losses, and of labels picked by `where`: 0/0, whose derivative is 0."""
    data = (*BATCH, labelled())
    safe, bare = (
        mf.balance(over_labels(each), rule_for(probe), NAN_SAFE[probe]) for each in ("safe", kind)
    )
    expected, _, _ = safe.update(PARAMS, data, safe.init(PARAMS, data))
    state = bare.init(PARAMS, data)
    grads, _, info = bare.update(PARAMS, data, state)
    near(flatten(grads), flatten(expected), 1e-12, 1e-15)
    assert info.losses.isnan().tolist() == [False, True, False]  # shown as losses_fn gave it
    # over networks that share the batch
    both = vmap(lambda p: bare.update(p, data, bare.init(p, data))[0])(mf.stack(nets))
    near(both["trunk.0.bias"][0], grads["trunk.0.bias"], 1e-9, 1e-13)
    if kind == "where":  # whose labels may be batched, too
        together = vmap(lambda mask: bare.update(PARAMS, (*BATCH, mask), state)[0])(MISSING)
        near(flatten({n: g[0] for n, g in together.items()}), flatten(expected), 1e-10, 1e-13)


@pytest.mark.parametrize("probe", NAN_SAFE)
def test_nan_that_reaches_the_others_is_an_error_outside_and_nan_inside(probe):
    balance = mf.balance(over_labels("stacked"), rule_for(probe), NAN_SAFE[probe])
    data = (*BATCH, labelled())
    state = balance.init(PARAMS, data)
    with pytest.raises(ValueError, match="present:"):
        balance.update(PARAMS, data, state)
    together = vmap(lambda mask: balance.update(PARAMS, (*BATCH, mask), state)[0])(MISSING)
    assert bool(flatten({n: g[0] for n, g in together.items()}, TRUNK).isnan().all())
    assert bool(flatten({n: g[1] for n, g in together.items()}).isfinite().all())


def test_absent_at_init_is_no_error_unless_the_rule_needs_the_first_loss():
    """An absent loss may be NaN, or depend on nothing; GradNorm's first one must be there."""

    def losses(params, batch):
        first, _, third = scalars(params, batch[:2])
        return first, params["heads.1.bias"].sum() * float("nan"), third

    balance = mf.balance(losses, mf.mgda(), mf.jacobian(SHARED, present=given))
    grads, _, _ = balance.update(PARAMS, batch(SOME), balance.init(PARAMS, batch(SOME)))
    assert bool(flatten(grads).isfinite().all())
    assert not grads["heads.1.bias"].any()
    with pytest.raises(ValueError, match="losses: NaN or infinite"):
        balance.init(PARAMS, batch(MASKS[2]))
    balance = mf.balance(vector, mf.gradnorm(0.5), mf.jacobian(SHARED, present=given))
    with pytest.raises(ValueError, match=r"gradnorm: .*need initial losses > 0"):
        balance.init(PARAMS, batch(SOME))


def test_state_of_an_absent_task_stands_still():
    tracked = mf.moving_average(SHARED, rate=lambda k: 0.5 / k**0.5, present=given)
    balance = mf.balance(vector, mf.moco(), tracked)
    state = balance.init(PARAMS, batch(MASKS[2]))
    _, state, _ = balance.update(PARAMS, batch(MASKS[2]), state)
    _, after, info = balance.update(PARAMS, batch(SOME), state)
    assert not info.gramian[1].any(), "its row is there, and not shown"
    assert after.probe.steps.tolist() == [2, 1, 2]
    assert after.rule.weights[1] == state.rule.weights[1]
    last = torch.tensor([0.0, 1.0, 0.0])  # all of the weight is with the absent task
    geometry = mf.Geometry(torch.ones(3), torch.eye(3), torch.ones(3) / 3, SOME, {})
    for rule in (mf.moco(), mf.modo(), mf.sdmgrad()):
        kept = rule.init(torch.ones(3), mf.random.key(0))._replace(weights=last)
        near(rule.update(geometry, kept)[1].weights, last)
    for name in TRUNK:
        assert torch.equal(after.probe.rows[name][1], state.probe.rows[name][1])
        assert not torch.equal(after.probe.rows[name][0], state.probe.rows[name][0])
    probe, run = mf.second_evaluation(mf.losses_only(present=given)), mf.Run.of(vector, PARAMS)
    state = probe.update(run, batch(SOME), probe.init(run, batch(SOME), mf.random.key(0))[1])[1]
    now = probe.update(run, batch(SOME), state)[0].geometry.extra["last_losses_now"]
    near(now, vector(PARAMS, batch(SOME)).where(SOME, 0.0))


@pytest.mark.parametrize("name", FORMS)
def test_all_present_changes_no_bit(name):
    def losses(params, batch):
        return FORMS[name](params, batch[:2])

    everybody = batch(MASKS[2])
    for make in (partial(mf.jacobian, SHARED), mf.losses_only):
        steps = [mf.balance(losses, mf.mean(), make(present=x)) for x in (None, given)]
        one, other = (x.update(PARAMS, everybody, x.init(PARAMS, everybody))[0] for x in steps)
        assert torch.equal(flatten(one), flatten(other))


def test_errors_name_present():
    for present, kind, words in (
        (lambda b: b[2][:2], ValueError, "present: expected one entry per task, 3, got 2"),
        (lambda b: b[2].double(), TypeError, "present:"),
    ):
        step = mf.balance(vector, mf.mgda(), mf.jacobian(SHARED, present=present))
        with pytest.raises(kind, match=words):
            step.init(PARAMS, batch(SOME))
    with pytest.raises(ValueError, match="present: a row of mix= is a mixture"):
        mf.jacobian(SHARED, present=given, mix=mf.subset(2))
    net = torch.nn.Linear(2, 3)
    for named in (["a", "b", "c"], [True, None, True]):
        with pytest.raises(TypeError, match="present: got"):
            mf.Balancer(net, mf.mean()).backward(net(torch.ones(2)), present=named)


def test_derivatives_at_absent_losses_that_are_nan_are_those_of_the_present_ones():
    """Inside `torch.func.grad` the labels are wrapped, and were not read."""
    x, labelled = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    params = {"w": torch.tensor([1.0, 2.0]), "h": torch.tensor([1.0, 3.0])}

    def losses(params, labelled):
        errors = [(params["w"] * x * scale).square() for scale in params["h"]]
        return tuple((e * n).sum() / n.sum() for e, n in zip(errors, labelled, strict=True))

    probe = mf.jacobian("w", present=lambda labelled: labelled.sum(1) > 0)
    step = mf.balance(losses, mf.mgda(), probe)
    state = step.init(params, torch.ones(2, 2))

    def length(params):
        grads, _, info = step.update(params, labelled, state)
        return sum(leaf.square().sum() for leaf in grads.values()) + info.gramian.sum()

    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    outside = torch.autograd.grad(length(leaves), list(leaves.values()))
    near(list(torch.func.grad(length)(params).values()), list(outside))
    assert all(bool(leaf.isfinite().all()) for leaf in outside)
