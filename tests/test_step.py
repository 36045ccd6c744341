"""Steps and whole runs: against literal loops of the papers' algorithms, and under transforms."""

import copy
from itertools import product
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

import mtlfunc as mf
from tests.support.every import every, in_turn
from tests.support.loops import reloaded, trained
from tests.support.oracles import check_slope, near, rows_of, same
from tests.support.problems import (
    BATCH,
    FORMS,
    HEADS,
    PARAMS,
    TASKS,
    TRUNK,
    decode,
    encode,
    flatten,
    literal_rows,
    nets,
    opaque,
    vector,
)
from tests.support.steps import METHODS, SHARED, STATEFUL, parts, run, step_of


def of_one(scale):
    """A factor of the second loss."""
    return torch.stack([torch.ones_like(scale), scale, torch.ones_like(scale)])


# Transforms
@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_run_vmapped_nested_equals_loop(name):
    lrs = torch.tensor([0.01, 0.05], dtype=torch.float64)
    few, steps = nets[:2], 3 if name in METHODS else 2
    over = vmap(vmap(lambda p, s, lr: run(name, p, s, lr, steps), (None, None, 0)), (0, 0, None))
    whole = over(mf.stack(few), torch.arange(len(few)), lrs)
    for (i, module), (j, lr) in product(enumerate(few), enumerate(lrs)):
        alone = run(name, mf.parameters(module), i, lr, steps)
        same(tree_map(lambda x, i=i, j=j: x[i, j], whole), alone, 1e-9, 1e-13)


@pytest.mark.parametrize("name", ["cagrad", "cagrad-fast"])
def test_grad_of_a_training_run_with_respect_to_c(name):
    def end(c):
        step = mf.descend(opaque, mf.cagrad(c), METHODS[name]()[1], mf.sgd(0.05))
        return opaque(trained(step, [BATCH] * 4, key=3).params, BATCH).sum()

    check_slope(end, 0.4, "grad", "jvp", "vmap", least=1e-6)


@pytest.mark.parametrize(
    "probe",
    [
        *(mf.jacobian(SHARED, heads=heads) for heads in ("plain", "weighted")),
        *(mf.losses_only(), mf.representation(encode, decode)),
    ],
)
def test_weights_that_require_grad_by_themselves_are_differentiated(probe):
    """Plain autograd with respect to static weights, which no loss depends on."""

    def end(first):
        rule = mf.mean(preference=torch.stack([first, *torch.ones(2, dtype=first.dtype)]))
        step = mf.descend(vector, rule, probe, mf.sgd(0.1))
        return vector(trained(step, [BATCH]).params, BATCH).sum()

    check_slope(end, 1.2, "closure")


@pytest.mark.parametrize(
    ("name", "form"),
    in_turn(
        ["mean", "mean, losses only", "gradnorm", "mgda", "mgda-ub", "pcgrad", "cagrad"], FORMS, 2
    ),
)
@every("form")
def test_grad_of_a_training_run_through_losses_fn(name, form):
    def end(scale):
        def losses(params, batch):
            out = FORMS[form](params, batch)
            if isinstance(out, dict):
                return {key: loss * (scale if key == "task 1" else 1) for key, loss in out.items()}
            if isinstance(out, tuple):
                return tuple(loss * (scale if task == 1 else 1) for task, loss in enumerate(out))
            return out * of_one(scale)

        def decoded(params, z, batch):
            return decode(params, z, batch) * of_one(scale)

        rule, probe = METHODS[name]()
        if name == "mgda-ub":
            probe = mf.representation(encode, decoded, shared=SHARED)
        step = mf.descend(losses, rule, probe, mf.sgd(0.05))
        return vector(trained(step, [BATCH] * 2).params, BATCH).sum()

    check_slope(end, 1.2, "grad", "jvp", "dual", "closure", rtol=1e-5, least=1e-6)


# Scale and heads
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "probe",
    {
        "shared": lambda: mf.jacobian(SHARED),
        "all": lambda: mf.jacobian(lambda name: True),
        "weighted heads": lambda: mf.jacobian(SHARED, heads="weighted"),
        "chunks": lambda: mf.jacobian(SHARED, chunk_size=1),
        "mix": lambda: mf.jacobian(SHARED, mix=mf.subset(2)),
        "mix, weighted heads": lambda: mf.jacobian(SHARED, mix=mf.subset(2), heads="weighted"),
        "losses only": mf.losses_only,
        "representation": lambda: mf.representation(encode, decode, shared=SHARED),
        "representation, everything shared": lambda: mf.representation(encode, decode),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.filterwarnings("ignore:shared. only one task:UserWarning")
def test_mean_gives_the_gradient_of_the_mean_loss(probe, form, reduction):
    balance = mf.balance(FORMS[form], mf.mean(), probe[1](), reduction=reduction)
    grads, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH, key=5))
    expected = grad(lambda p: vector(p, BATCH).mean())(PARAMS)
    factor = 1 if reduction == "mean" else TASKS
    assert list(grads) == list(PARAMS)
    near(flatten(grads), factor * flatten(expected), 1e-11, 1e-14)
    near(info.losses, vector(PARAMS, BATCH), 1e-13)


def test_representation_measures_at_z_and_pulls_back_once():
    balance = mf.balance(vector, mf.mgda(), mf.representation(encode, decode, shared=SHARED))
    grads, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
    z = encode(PARAMS, BATCH).requires_grad_()
    rows = rows_of(decode(PARAMS, z, BATCH), [z])
    near(info.gramian, rows @ rows.T, 1e-12, 1e-14)
    _, on_trunk = literal_rows(PARAMS, BATCH, TRUNK)
    _, on_heads = literal_rows(PARAMS, BATCH, HEADS)
    near(flatten(grads, TRUNK), info.weights @ on_trunk, 1e-12, 1e-14)
    near(flatten(grads, HEADS), on_heads.sum(0), 1e-12, 1e-14)


def test_subset_rows_average_to_the_mean_and_vary():
    seen = set()
    for seed in range(20):
        matrix, preference = mf.subset(3)(mf.random.key(seed), 5)
        near(preference @ matrix, torch.full((5,), 0.2, dtype=torch.float64), 1e-15, 1e-16)
        assert matrix.shape == (3, 5)
        near(matrix.sum(-1), torch.ones(3, dtype=torch.float64), 1e-15)
        assert sorted((matrix > 0).sum(-1).tolist()) == [1, 1, 3]
        seen.add(tuple(matrix[:2].argmax(-1).tolist()))
    assert len(seen) > 8
    assert mf.subset(1)(mf.random.key(0), 4)[0].tolist() == [[0.25] * 4]
    with pytest.raises(ValueError, match="subset: n = 4 rows, but there are only 3 tasks"):
        mf.subset(4)(mf.random.key(0), 3)


def test_update_runs_one_forward_and_init_at_most_two():
    """But for the loss after the step that FAMO asks for at the next."""
    for name in (*METHODS.keys() - {"mgda-ub"}, "famo"):  # the first counts encode
        counted = Mock(side_effect=opaque)
        balance = mf.balance(counted, *parts(name)[:2])
        state = balance.init(PARAMS, BATCH)
        # The second forward of init, with NaN in the trunk, finds tasks that do not depend on it.
        assert counted.call_count <= 2
        counted.reset_mock()
        balance.update(PARAMS, BATCH, state)
        assert counted.call_count == 1 + (name == "famo"), name


# State
@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_state_resumes_to_the_same_trajectory(name):
    (rule, probe, batch), optimizer = parts(name), mf.adam(0.02)
    step = mf.descend(opaque, rule, probe, optimizer)
    before = tree_map(torch.clone, (PARAMS, batch, torch.get_rng_state()))
    state = trained(step, [batch] * 2, key=11)
    assert all(isinstance(x, torch.Tensor) and x.is_contiguous() for x in tree_leaves(state))
    loaded = reloaded(state)
    again = mf.descend(opaque, *parts(name)[:2], optimizer)
    for _ in range(2):
        state, _ = step.update(state, batch)
        loaded, _ = again.update(loaded, batch)
    same(state, loaded)
    same(before, (PARAMS, batch, torch.get_rng_state()))


def test_keys_decide_what_random_rules_do():
    masks = [flatten(run("mean, masked", PARAMS, k, 0.02, 1)[0].params) for k in range(3)]
    assert not torch.equal(masks[0], masks[1])
    assert int(step_of("mean, masked").init(PARAMS, BATCH, key=1).balance.probe.drawn) == 0


# aux, batch norm
def test_aux_is_handed_on():
    def with_aux(params, batch):
        losses = vector(params, batch)
        return losses, {"total": losses.sum()}

    for probe in (mf.jacobian(SHARED), mf.losses_only()):
        balance = mf.balance(with_aux, mf.mean(), probe, has_aux=True)
        _, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
        near(info.aux["total"], vector(PARAMS, BATCH).sum())
    balance = mf.balance(vector, mf.mean(), mf.jacobian(SHARED))
    assert balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))[2].aux == ()


def test_train_mode_batch_norm():
    """Statistics move once a step, not at init; a transform refuses, and names the pattern."""
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    x, y = BATCH[0], BATCH[1][:, 0]

    def captured(params, batch):
        return (functional_call(module, params, (batch[0],)) - batch[1]).square().mean(0)

    step = mf.descend(captured, mf.mgda(), mf.jacobian("0.*"), mf.sgd(0.1))
    begun = vmap(lambda seed: step.init(mf.parameters(module), (x, y), seed).balance.rule)
    with pytest.raises(RuntimeError, match=r"batch-norm layer in train mode.*has_aux=True"):
        begun(torch.arange(2))
    stock = copy.deepcopy(module)
    state = step.init(mf.parameters(module), (x, y))
    same([*module.buffers()], [*stock.buffers()])
    state, _ = step.update(state, (x, y))
    stock(x)
    same([*module.buffers()], [*stock.buffers()])
    for buffer in module.buffers():
        buffer.zero_()

    def threaded(params, batch):
        x, y, buffers = batch
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        losses = (functional_call(module, (params, buffers), (x,)) - y).square().mean(0)
        return losses, buffers

    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    step = mf.descend(threaded, mf.mgda(), mf.jacobian("0.*"), mf.sgd(0.1), has_aux=True)
    state = step.init(mf.parameters(module), (x, y, buffers))
    for _ in range(3):
        state, info = step.update(state, (x, y, buffers))
        buffers = info.aux
    assert int(buffers["1.num_batches_tracked"]) == 3
    stacked = {name: torch.stack([buffer, buffer]) for name, buffer in module.named_buffers()}

    def moved(params, buffers):
        return step.update(step.init(params, (x, y, buffers)), (x, y, buffers))[1].aux

    both = vmap(moved)(mf.stack([module, module]), stacked)
    assert both["1.running_mean"].shape == (2, 5)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("probe", [mf.losses_only, mf.jacobian])
def test_a_group_norm_whose_channels_come_last_is_vmapped(probe, lanes: int) -> None:
    """An unrecorded backward asks for a memory format, which a batched tensor does not tell."""

    def losses(params, x):
        h = (x.flatten(2).mT @ params["in"]).mT.unflatten(2, x.shape[2:])
        y = nn.functional.silu(nn.functional.group_norm(h, 2)).flatten(2).mT @ params["out"]
        return y.square().mean((0, 1))

    generator = torch.Generator().manual_seed(0)
    shapes = {"in": (3, 4), "out": (4, 2), "x": (2, 3, 5, 5)}
    params = {
        name: torch.randn(lanes, *shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    x = params.pop("x")
    step = mf.balance(losses, mf.mean(), probe())
    found = vmap(lambda params, x: step.update(params, x, step.init(params, x))[0])(params, x)
    for i in range(lanes):
        one, mine = ({name: leaf[i] for name, leaf in tree.items()} for tree in (params, found))
        near(mine, grad(lambda params, x: losses(params, x).mean())(one, x[i]), 1e-12, 1e-14)
