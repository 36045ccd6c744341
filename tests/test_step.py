"""Steps and whole training runs: against literal loops of the papers' algorithms, under transforms,
and beside torch.optim.
"""

import gc
import itertools
import os
import signal
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc.types import Geometry, Rows, TrainState
from tests.problems import (
    BATCH,
    FORMS,
    HEADS,
    PARAMS,
    TASKS,
    TRUNK,
    TrunkAndHeads,
    decode,
    encode,
    flatten,
    literal_rows,
    named_tuples,
    net,
    nets,
    opaque,
    vector,
)

SHARED = "trunk.*"
ORDERS = torch.tensor([[1, 2, 0], [0, 2, 1], [2, 1, 0]])


def keep_positive(key: torch.Tensor, rows: Rows) -> Rows:
    """A random coordinate-wise edit, to test masks with."""
    return {
        name: row * (mf.random.uniform(key, tuple(row.shape[1:]), row.dtype) > 0.3)
        for name, row in rows.items()
    }


METHODS = {
    "mean": lambda: (mf.mean(), mf.jacobian(SHARED)),
    "mean, losses only": lambda: (mf.mean(), mf.losses_only()),
    "mean, masked": lambda: (mf.mean(), mf.jacobian(SHARED, mask=keep_positive)),
    "static weights": lambda: (
        mf.mean(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)),
        mf.losses_only(),
    ),
    "gradnorm": lambda: (
        mf.gradnorm(0.12, 0.025),
        mf.jacobian(SHARED, measure="trunk.2.*", heads="weighted"),
    ),
    "mgda": lambda: (mf.mgda(), mf.jacobian(SHARED)),
    "mgda-ub": lambda: (mf.mgda(), mf.representation(encode, decode, shared=SHARED)),
    "pcgrad": lambda: (mf.pcgrad(), mf.jacobian(SHARED, heads="own")),
    "cagrad": lambda: (mf.cagrad(0.4), mf.jacobian(SHARED, chunk_size=2)),
    "cagrad-fast": lambda: (mf.cagrad(0.4), mf.jacobian(SHARED, mix=mf.subset(2))),
    "stateless": lambda: (
        mf.stateless(lambda gramian, losses: torch.softmax(losses / gramian.diagonal(), -1)),
        mf.jacobian(SHARED),
    ),
}


def step_of(name: str, lr: float | torch.Tensor = 0.02) -> mf.Step:
    rule, probe = METHODS[name]()
    return mf.descend(opaque, rule, mf.adam(lr), probe)


def run(name: str, params, seed, lr, steps: int = 4):
    step = step_of(name, lr)
    state = step.init(params, BATCH, key=seed)
    infos = []
    for _ in range(steps):
        state, info = step.update(state, BATCH)
        infos.append(info)
    return state, infos


# Transforms


@pytest.mark.parametrize("name", METHODS)
def test_run_vmapped_nested_equals_loop(name):
    lrs = torch.tensor([0.01, 0.05], dtype=torch.float64)
    seeds = torch.arange(len(nets))
    whole = vmap(vmap(partial(run, name), (None, None, 0)), (0, 0, None))(
        mf.stack(nets), seeds, lrs
    )
    for i, module in enumerate(nets):
        for j, lr in enumerate(lrs):
            alone = run(name, mf.parameters(module), i, lr)
            for got, expected in zip(tree_leaves(whole), tree_leaves(alone), strict=True):
                torch.testing.assert_close(got[i, j], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["cagrad", "cagrad-fast"])
def test_grad_of_a_training_run_with_respect_to_c(name):
    def end(c):
        probe = METHODS[name]()[1]
        step = mf.descend(opaque, mf.cagrad(c), mf.sgd(0.05), probe)
        state = step.init(PARAMS, BATCH, key=3)
        for _ in range(4):
            state, _ = step.update(state, BATCH)
        return opaque(state.params, BATCH).sum()

    c, h = torch.tensor(0.4, dtype=torch.float64), 1e-5
    difference = (end(c + h) - end(c - h)) / (2 * h)
    assert abs(difference) > 1e-6  # there is something to find
    torch.testing.assert_close(grad(end)(c), difference, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(
        jvp(end, (c,), (torch.ones_like(c),))[1], difference, rtol=1e-6, atol=0.0
    )
    torch.testing.assert_close(
        vmap(grad(end))(torch.stack([c, c / 2]))[0], difference, rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize("heads", ["plain", "weighted"])
@pytest.mark.parametrize("probe", ["jacobian", "representation", "losses_only"])
def test_weights_that_require_grad_by_themselves_are_differentiated(probe, heads):
    """Plain autograd with respect to static weights, which no loss depends on."""

    def end(first):
        rule = mf.mean(torch.stack([first, torch.ones_like(first), torch.ones_like(first)]))
        probes = {
            "jacobian": mf.jacobian(SHARED, heads=heads),
            "representation": mf.representation(encode, decode),
            "losses_only": mf.losses_only(),
        }
        step = mf.descend(vector, rule, mf.sgd(0.1), probes[probe])
        return vector(step.update(step.init(PARAMS, BATCH), BATCH)[0].params, BATCH).sum()

    at, h = torch.tensor(1.2, dtype=torch.float64), 1e-5
    leaf = at.clone().requires_grad_()
    difference = (end(at + h) - end(at - h)) / (2 * h)
    torch.testing.assert_close(
        torch.autograd.grad(end(leaf), leaf)[0], difference, rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["mean", "mean, losses only", "gradnorm", "mgda", "mgda-ub", "pcgrad", "cagrad"]
)
def test_grad_of_a_training_run_through_losses_fn(name, form):
    """The hyper-parameter weighs one loss, and enters nowhere else."""

    def end(scale):
        def losses(params, batch):
            out = FORMS[form](params, batch)
            if isinstance(out, dict):
                return {key: loss * (scale if key == "task 1" else 1) for key, loss in out.items()}
            if isinstance(out, tuple):
                return tuple(loss * (scale if task == 1 else 1) for task, loss in enumerate(out))
            return out * torch.stack([torch.ones_like(scale), scale, torch.ones_like(scale)])

        def decoded(params, z, batch):
            return decode(params, z, batch) * torch.stack(
                [torch.ones_like(scale), scale, torch.ones_like(scale)]
            )

        rule, probe = METHODS[name]()
        step = mf.descend(
            losses,
            rule,
            mf.sgd(0.05),
            mf.representation(encode, decoded, shared=SHARED) if name == "mgda-ub" else probe,
        )
        state = step.init(PARAMS, BATCH)
        for _ in range(3):
            state, _ = step.update(state, BATCH)
        return vector(state.params, BATCH).sum()

    at, h = torch.tensor(1.2, dtype=torch.float64), 1e-5
    difference = (end(at + h) - end(at - h)) / (2 * h)
    assert abs(difference) > 1e-6
    torch.testing.assert_close(grad(end)(at), difference, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(
        jvp(end, (at,), (torch.ones_like(at),))[1], difference, rtol=1e-5, atol=0.0
    )
    leaf = at.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(end(leaf), leaf)[0], difference, rtol=1e-5, atol=0.0
    )


# Scale and heads


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "probe",
    {
        "shared": lambda: mf.jacobian(SHARED),
        "all": lambda: mf.jacobian(lambda name: True),
        "measure": lambda: mf.jacobian(SHARED, measure="trunk.0.*"),
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
    for leaf in PARAMS:
        torch.testing.assert_close(grads[leaf], factor * expected[leaf], rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(info.losses, vector(PARAMS, BATCH), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", ["plain", "own", "weighted"])
def test_heads_get_what_was_asked_for(heads, form):
    weights = torch.tensor([0.2, 1.5, 0.4], dtype=torch.float64)
    balance = mf.balance(
        FORMS[form], mf.stateless(lambda gramian: weights), mf.jacobian(SHARED, heads=heads)
    )
    grads, _, _ = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
    _, on_heads = literal_rows(PARAMS, BATCH, HEADS)
    _, on_trunk = literal_rows(PARAMS, BATCH, TRUNK)
    expected = {
        "plain": torch.full_like(weights, 1 / TASKS),
        "own": torch.ones_like(weights),
        "weighted": weights,
    }[heads] @ on_heads
    torch.testing.assert_close(flatten(grads, HEADS), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(flatten(grads, TRUNK), weights @ on_trunk, rtol=1e-12, atol=1e-14)


def test_mask_edits_rows_before_they_are_measured_and_combined():
    def first_coordinate_off(key, rows):
        return {name: row.index_fill(1, torch.tensor([0]), 0.0) for name, row in rows.items()}

    balance = mf.balance(
        opaque, mf.mean(), mf.jacobian(SHARED, mask=first_coordinate_off, heads="weighted")
    )
    grads, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
    _, rows = mf.task_gradients(opaque, PARAMS, BATCH)
    edited = {
        name: row.index_fill(1, torch.tensor([0]), 0.0)
        for name, row in rows.items()
        if name in TRUNK
    }
    jacobian = torch.cat([row.flatten(1) for row in edited.values()], 1)
    torch.testing.assert_close(info.gramian, jacobian @ jacobian.T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(flatten(grads, TRUNK), jacobian.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        flatten(grads, HEADS), literal_rows(PARAMS, BATCH, HEADS)[1].mean(0), rtol=1e-12, atol=1e-14
    )


def test_representation_measures_at_z_and_pulls_back_once():
    balance = mf.balance(vector, mf.mgda(), mf.representation(encode, decode, shared=SHARED))
    grads, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
    z = encode(PARAMS, BATCH).requires_grad_()
    rows = torch.stack(
        [
            torch.autograd.grad(loss, z, retain_graph=True)[0].flatten()
            for loss in decode(PARAMS, z, BATCH)
        ]
    )
    torch.testing.assert_close(info.gramian, rows @ rows.T, rtol=1e-12, atol=1e-14)
    _, on_trunk = literal_rows(PARAMS, BATCH, TRUNK)
    _, on_heads = literal_rows(PARAMS, BATCH, HEADS)
    torch.testing.assert_close(
        flatten(grads, TRUNK), info.weights @ on_trunk, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(flatten(grads, HEADS), on_heads.mean(0), rtol=1e-12, atol=1e-14)


def test_subset_rows_average_to_the_mean_and_vary():
    seen = set()
    for seed in range(20):
        matrix, preference = mf.subset(3)(mf.random.key(seed), 5)
        torch.testing.assert_close(
            preference @ matrix, torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-15, atol=1e-16
        )
        assert matrix.shape == (3, 5)
        torch.testing.assert_close(
            matrix.sum(-1), torch.ones(3, dtype=torch.float64), rtol=1e-15, atol=0.0
        )
        assert sorted((matrix > 0).sum(-1).tolist()) == [1, 1, 3]
        seen.add(tuple(matrix[:2].argmax(-1).tolist()))
    assert len(seen) > 8
    assert torch.equal(
        mf.subset(1)(mf.random.key(0), 4)[0], torch.full((1, 4), 0.25, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="subset: n = 4 rows, but there are only 3 tasks"):
        mf.subset(4)(mf.random.key(0), 3)


def test_update_runs_one_forward_and_init_at_most_two():
    for name, make in METHODS.items():
        calls = 0

        def counted(params, batch):
            nonlocal calls
            calls += 1
            return opaque(params, batch)

        rule, probe = make()
        if name == "mgda-ub":
            continue  # counts encode, not losses_fn
        balance = mf.balance(counted, rule, probe)
        state = balance.init(PARAMS, BATCH)
        # The second forward of init, with NaN in the trunk, finds tasks that do not depend on it.
        assert calls <= 2
        calls = 0
        balance.update(PARAMS, BATCH, state)
        assert calls == 1, name


# Against the papers' algorithms, literally, on concatenated vectors


def literal_pcgrad(rows: np.ndarray) -> np.ndarray:
    edited = []
    for i in range(len(rows)):
        p = rows[i].copy()
        for j in ORDERS[i].tolist():
            if j != i and p @ rows[j] < 0:
                p -= (p @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        edited.append(p)
    return np.mean(edited, 0)


def literal_mgda(rows: np.ndarray) -> np.ndarray:
    """Frank–Wolfe with away steps on vectors, to a duality gap at rounding."""
    w = np.full(len(rows), 1 / len(rows))
    for _ in range(20_000):
        d = w @ rows
        rates = rows @ d
        toward, away = rates.argmin(), np.where(w > 0, rates, -np.inf).argmax()
        if d @ d - rates[toward] < 1e-15 * (rows**2).sum():
            break
        direction = np.zeros_like(w)
        direction[toward], direction[away] = 1, -1
        slope = direction @ rows
        w = w + min(w[away], -(d @ slope) / (slope @ slope)) * direction
    return w @ rows


def literal_cagrad(rows: np.ndarray, c: float = 0.4) -> np.ndarray:
    """The primal as the paper writes it, over d itself, by a conic solver."""
    g0 = rows.mean(0)
    d, worst = cp.Variable(rows.shape[1]), cp.Variable()
    constraints = [rows @ d >= worst, cp.norm(d - g0) <= c * np.linalg.norm(g0)]
    cp.Problem(cp.Maximize(worst), constraints).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    assert d.value is not None
    return np.asarray(d.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rule", "literal", "rtol"),
    [
        (lambda: mf.pcgrad(ORDERS), literal_pcgrad, 1e-10),
        (mf.mgda, literal_mgda, 1e-6),  # the literal loop's gap of 1e-15 bounds d by its root
        # Clarabel's primal d is good to the root of 1e-11
        (lambda: mf.cagrad(0.4), literal_cagrad, 1e-4),
    ],
    ids=["pcgrad", "mgda", "cagrad"],
)
def test_descend_equals_literal_loop(rule, literal, rtol, form):
    lr = 0.1
    step = mf.descend(FORMS[form], rule(), mf.sgd(lr), mf.jacobian(SHARED))
    state = step.init(PARAMS, BATCH)
    params = {name: leaf.clone() for name, leaf in PARAMS.items()}
    for _ in range(3):
        before = flatten(state.params, TRUNK)
        state, _ = step.update(state, BATCH)
        _, rows = literal_rows(params, BATCH, TRUNK)
        direction = torch.from_numpy(literal(rows.numpy()))
        moved = (before - flatten(state.params, TRUNK)) / lr
        torch.testing.assert_close(moved, direction, rtol=0.0, atol=rtol * float(rows.norm()))
        params = state.params


def test_gradnorm_equals_literal_double_backward_loop():
    """Algorithm 1 of Chen et al.: L_grad by autograd through the norms, the target held constant,
    Adam on w, renormalisation.
    """
    alpha, lr = 0.8, 0.05
    step = mf.descend(
        vector,
        mf.gradnorm(alpha, lr),
        mf.sgd(0.1),
        mf.jacobian(SHARED, measure="trunk.2.*", heads="weighted"),
        reduction="sum",
    )
    state = step.init(PARAMS, BATCH)

    leaves = {name: leaf.clone().requires_grad_() for name, leaf in PARAMS.items()}
    w = torch.ones(TASKS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr, eps=0.0)
    initial = vector(leaves, BATCH).detach()
    for _ in range(6):
        losses = vector(leaves, BATCH)
        last = [leaves["trunk.2.weight"], leaves["trunk.2.bias"]]
        norms = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(
                            w[i] * losses[i], last, create_graph=True, retain_graph=True
                        )
                    ]
                ).norm()
                for i in range(TASKS)
            ]
        )
        ratio = (losses / initial).detach()
        target = (norms.mean() * (ratio / ratio.mean()) ** alpha).detach()
        (w_grad,) = torch.autograd.grad((norms - target).abs().sum(), w, retain_graph=True)
        model_grads = torch.autograd.grad((w.detach() * losses).sum(), list(leaves.values()))
        used = w.detach().clone()
        w.grad = w_grad
        optimizer.step()
        with torch.no_grad():
            w.clamp_(min=1e-3).mul_(TASKS / w.sum())
            for leaf, g in zip(leaves.values(), model_grads, strict=True):
                leaf.sub_(0.1 * g)
        state, info = step.update(state, BATCH)
        torch.testing.assert_close(TASKS * info.weights, used, rtol=1e-9, atol=0.0)
        for name in PARAMS:
            torch.testing.assert_close(
                state.params[name], leaves[name].detach(), rtol=1e-9, atol=1e-12
            )


# Optimizers and torch.optim


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mf.sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (mf.sgd(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (mf.adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
        (mf.adam(0.01, (0.8, 0.9), 1e-3), lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.9), 1e-3)),
    ],
    ids=["sgd", "momentum", "adam", "adam with betas"],
)
def test_optimizers_equal_torch_optim(ours, theirs):
    params = {name: leaf.clone() for name, leaf in PARAMS.items()}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in PARAMS.items()}
    optimizer, state = theirs(list(leaves.values())), ours.init(params)
    for _ in range(5):
        grads = grad(lambda p: vector(p, BATCH).mean())(params)
        params, state = ours.update(grads, state, params)
        optimizer.zero_grad()
        vector(leaves, BATCH).mean().backward()
        optimizer.step()
    for name in params:
        torch.testing.assert_close(params[name], leaves[name].detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_exact_adam_is_scale_free(scale):
    optimizer = mf.optim.exact_adam(0.01)
    params = {"x": torch.ones(3, dtype=torch.float64)}
    gradient = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64)
    plain, _ = optimizer.update({"x": gradient}, optimizer.init(params), params)
    scaled, _ = optimizer.update({"x": scale * gradient}, optimizer.init(params), params)
    torch.testing.assert_close(plain["x"], scaled["x"], rtol=1e-12, atol=0.0)
    assert plain["x"][2] == 1


def test_log_space_keeps_positive_and_multiplicative_steps_by_a_factor():
    params = {"x": torch.tensor([1e-3, 2.0], dtype=torch.float64)}
    moved, _ = mf.optim.multiplicative(0.1).update(
        {"x": torch.tensor([5.0, -1e-9], dtype=torch.float64)}, (), params
    )
    torch.testing.assert_close(
        moved["x"],
        params["x"] * torch.exp(torch.tensor([-0.1, 0.1], dtype=torch.float64)),
        rtol=1e-14,
        atol=0.0,
    )
    optimizer = mf.optim.log_space(mf.sgd(0.1))
    moved, _ = optimizer.update(
        {"x": torch.tensor([5.0, -1.0], dtype=torch.float64)}, optimizer.init(params), params
    )
    expected = torch.exp(
        params["x"].log() - 0.1 * params["x"] * torch.tensor([5.0, -1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(moved["x"], expected, rtol=1e-14, atol=0.0)


def test_stock_loop_equals_descend_and_keeps_no_graph():
    module = TrunkAndHeads(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    balance = mf.balance(vector, mf.cagrad(0.4), mf.jacobian(SHARED))
    state = balance.init(mf.parameters(module), BATCH)
    step = mf.descend(vector, mf.cagrad(0.4), mf.adam(0.01), mf.jacobian(SHARED))
    ours = step.init(PARAMS, BATCH)

    def live() -> tuple[int, int]:
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        return len(tensors), sum(x.numel() for x in tensors)

    sizes = []
    for count in range(200):
        grads, state, info = balance.update(mf.parameters(module), BATCH, state)
        mf.assign_gradients(module, grads)
        optimizer.step()
        assert info.losses.grad_fn is None
        assert all(
            leaf.grad is not None and leaf.grad.grad_fn is None for leaf in module.parameters()
        )
        if count < 20:
            ours, _ = step.update(ours, BATCH)
        if count == 19:
            for name, leaf in module.named_parameters():
                torch.testing.assert_close(leaf.detach(), ours.params[name], rtol=1e-9, atol=1e-12)
        if count % 50 == 49:
            sizes.append(live())
    assert len(set(sizes)) == 1


def test_parameters_share_storage_and_leave_frozen_ones_out():
    module = TrunkAndHeads(1)
    module.get_parameter("trunk.0.bias").requires_grad_(False)
    params = mf.parameters(module)
    assert "trunk.0.bias" not in params
    assert params["trunk.0.weight"].data_ptr() == module.get_parameter("trunk.0.weight").data_ptr()
    assert not params["trunk.0.weight"].requires_grad


def test_assign_gradients_clears_what_it_was_not_given_and_names_mismatches():
    module = nn.Linear(2, 1)
    module.bias.grad = torch.ones(1)
    mf.assign_gradients(module, {"weight": torch.ones(1, 2)})
    assert module.bias.grad is None
    with pytest.raises(KeyError, match="no such parameter"):
        mf.assign_gradients(module, {"w": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"grads\['weight'\]: \[2\]"):
        mf.assign_gradients(module, {"weight": torch.ones(2)})


def test_stack_refuses_other_shapes():
    with pytest.raises(ValueError, match="modules: names or shapes"):
        mf.stack([nn.Linear(2, 1), nn.Linear(3, 1)])
    with pytest.raises(ValueError, match="at least one"):
        mf.stack([])


# State


@pytest.mark.parametrize("name", METHODS)
def test_state_resumes_to_the_same_trajectory(name, tmp_path):
    step = step_of(name)
    state = step.init(PARAMS, BATCH, key=11)
    for _ in range(2):
        state, _ = step.update(state, BATCH)
    torch.save(state, tmp_path / "state.pt")
    with torch.serialization.safe_globals(list(named_tuples(state))):
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    for _ in range(2):
        state, _ = step.update(state, BATCH)
        loaded, _ = step_of(name).update(loaded, BATCH)
    for a, b in zip(tree_leaves(state), tree_leaves(loaded), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_states_hold_tensors_only_and_runs_are_pure(name):
    before = [x.clone() for x in (*PARAMS.values(), *BATCH)]
    torch.manual_seed(0)
    global_before = torch.get_rng_state()
    first, second = run(name, PARAMS, 5, 0.02), run(name, PARAMS, 5, 0.02)
    leaves = tree_leaves(first)
    assert all(
        isinstance(x, torch.Tensor) and x.is_contiguous()
        for x in tree_leaves(step_of(name).init(PARAMS, BATCH))
    )
    for a, b in zip(leaves, tree_leaves(second), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(before, (*PARAMS.values(), *BATCH), strict=True))
    assert torch.equal(global_before, torch.get_rng_state())


def test_keys_decide_what_random_rules_do():
    weights = [run("pcgrad", PARAMS, seed, 0.02)[1][0].weights for seed in range(6)]
    # Seeds draw orders, and some orders differ on these conflicting tasks.
    assert len({tuple(w.tolist()) for w in weights}) >= 1
    masks = [
        flatten(run("mean, masked", PARAMS, seed, 0.02, steps=1)[0].params) for seed in range(3)
    ]
    assert not torch.equal(masks[0], masks[1])
    state = step_of("mean, masked").init(PARAMS, BATCH, key=1)
    assert int(state.balance.probe.drawn) == 0


# Rollout


def test_rollout_records_and_equals_loop():
    step = step_of("cagrad")
    state = step.init(PARAMS, BATCH)
    end, record = mf.rollout(step, state, [BATCH] * 7, every=3)
    assert record.losses.shape == (3, TASKS)
    assert record.gramian.shape == (3, TASKS, TASKS)
    loop = []
    for _ in range(7):
        state, info = step.update(state, BATCH)
        loop.append(info.losses)
    torch.testing.assert_close(record.losses, torch.stack(loop[::3]), rtol=0.0, atol=0.0)
    assert all(torch.equal(end.params[name], state.params[name]) for name in PARAMS)


def test_rollout_custom_record_and_iterators():
    step = step_of("mean")
    state = step.init(PARAMS, BATCH)
    _, norms = mf.rollout(
        step,
        state,
        itertools.repeat(BATCH, 4),
        record=lambda state, info: {"norm": state.params["trunk.0.bias"].norm()},
    )
    assert norms["norm"].shape == (4,)
    same, nothing = mf.rollout(step, state, [])
    assert same is state
    assert nothing is None
    with pytest.raises(ValueError, match="every"):
        mf.rollout(step, state, [], every=0)


def test_rollout_under_vmap_shows_no_bar(capsys):
    def whole(params, seed):
        step = step_of("pcgrad")
        return mf.rollout(step, step.init(params, BATCH, key=seed), [BATCH] * 3)[1].losses

    losses = vmap(whole)(mf.stack(nets), torch.arange(3))
    assert losses.shape == (3, 3, TASKS)
    assert capsys.readouterr().err == ""


def test_rollout_shows_progress(capsys):
    step = step_of("mean")
    mf.rollout(step, step.init(PARAMS, BATCH), [BATCH] * 2)
    assert "steps" in capsys.readouterr().err


def test_rollout_interrupted_keeps_what_was_computed():
    # a process started in the background ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def batches():
        for count in itertools.count():
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield BATCH

    step = step_of("mean")
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            mf.rollout(step, step.init(PARAMS, BATCH), batches())
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(stop.value, mf.Interrupted)
    assert isinstance(stop.value.state, TrainState)
    assert stop.value.record.losses.shape[0] == 3


# aux, batch norm


def test_aux_is_handed_on():
    def with_aux(params, batch):
        losses = vector(params, batch)
        return losses, {"total": losses.sum()}

    for probe in (mf.jacobian(SHARED), mf.losses_only()):
        balance = mf.balance(with_aux, mf.mean(), probe, has_aux=True)
        _, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
        torch.testing.assert_close(info.aux["total"], vector(PARAMS, BATCH).sum())
    balance = mf.balance(vector, mf.mean(), mf.jacobian(SHARED))
    assert balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))[2].aux == ()


def test_train_mode_batch_norm_is_refused_with_the_pattern_that_works():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    x, y = BATCH[0], BATCH[1][:, 0]

    def captured(params, batch):
        return (functional_call(module, params, (batch[0],)) - batch[1]).square().mean(0)

    step = mf.descend(captured, mf.mgda(), mf.sgd(0.1), mf.jacobian("0.*"))
    with pytest.raises(RuntimeError, match=r"batch-norm layer in train mode.*has_aux=True"):
        step.init(mf.parameters(module), (x, y))

    def threaded(params, batch):
        x, y, buffers = batch
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        losses = (functional_call(module, (params, buffers), (x,)) - y).square().mean(0)
        return losses, buffers

    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    step = mf.descend(threaded, mf.mgda(), mf.sgd(0.1), mf.jacobian("0.*"), has_aux=True)
    state = step.init(mf.parameters(module), (x, y, buffers))
    for _ in range(3):
        state, info = step.update(state, (x, y, buffers))
        buffers = info.aux
    assert int(buffers["1.num_batches_tracked"]) == 3
    stacked = {name: torch.stack([buffer, buffer]) for name, buffer in module.named_buffers()}
    both = vmap(
        lambda params, buffers: (
            step.update(step.init(params, (x, y, buffers)), (x, y, buffers))[1].aux
        )
    )
    assert both(mf.stack([module, module]), stacked)["1.running_mean"].shape == (2, 5)


# What only shows in values


def test_task_without_shared_parameter_is_named():
    for form in ("tuple", "vector", "opaque"):

        def detached(params, batch, form=form):
            losses = FORMS[form](params, batch)
            own = params["heads.1.bias"].square().sum()
            if isinstance(losses, tuple):
                return losses[0], own, losses[2]
            return (
                torch.stack([losses[0], own, losses[2]])
                if form == "vector"
                else torch.where(torch.arange(TASKS) == 1, own, losses)
            )

        with pytest.raises(ValueError, match=r"shared: the losses of tasks \[1\]"):
            mf.descend(detached, mf.mgda(), mf.sgd(0.1), mf.jacobian(SHARED)).init(PARAMS, BATCH)


def test_relu_written_with_where_is_not_mistaken_for_independence():
    def losses(params, batch):
        z = batch[0] @ params["trunk.0.weight"].T
        return torch.where(z > 0, z, 0.0).sum(0)[:2]

    mf.descend(losses, mf.mean(), mf.sgd(0.1), mf.jacobian("trunk.0.weight")).init(PARAMS, BATCH)


def test_private_leaf_among_shared_ones_gets_a_hint():
    with pytest.warns(UserWarning, match=r"only one task depends on heads\.0\.weight"):
        mf.descend(FORMS["tuple"], mf.mgda(), mf.sgd(0.1), mf.jacobian()).init(PARAMS, BATCH)


@pytest.mark.parametrize("name", METHODS)
def test_nan_is_an_error_outside_and_nan_inside_transforms(name):
    params = PARAMS | {"trunk.2.weight": torch.full_like(PARAMS["trunk.2.weight"], float("nan"))}
    step = step_of(name)
    with pytest.raises(ValueError, match="losses: NaN or infinite"):
        step.init(params, BATCH)
    state = step.init(PARAMS, BATCH)
    with pytest.raises(ValueError, match="losses: NaN or infinite"):
        step.update(state._replace(params=params), BATCH)

    def both(scale):
        broken = {leaf: p * scale if leaf == "trunk.2.weight" else p for leaf, p in PARAMS.items()}
        return step.update(step.init(broken, BATCH), BATCH)

    out, info = vmap(both)(torch.tensor([1.0, float("nan")], dtype=torch.float64))
    assert all(bool(leaf[0].isfinite().all()) for leaf in out.params.values())
    assert not any(bool(leaf[1].isfinite().any()) for leaf in out.params.values() if leaf.numel())
    # these weights do not depend on this step's gradients
    if name not in ("mean", "mean, losses only", "static weights", "mean, masked", "gradnorm"):
        assert bool(info.weights[1].isnan().all())


def test_infinite_gradient_of_finite_loss_is_an_error():
    def losses(params, batch):
        return torch.stack([params["x"].sqrt().sum(), 2 * params["x"].sqrt().sum()])

    step = mf.descend(losses, mf.mgda(), mf.sgd(0.1), mf.jacobian())
    params = {"x": torch.zeros(2, dtype=torch.float64)}
    state = step.init(params, ())
    with pytest.raises(ValueError, match=r"gradients .*\[0, 1\]"):
        step.update(state, ())


def test_rule_that_needs_a_gramian_says_which_probe():
    for rule in (
        mf.mgda(),
        mf.pcgrad(),
        mf.cagrad(0.5),
        mf.gradnorm(0.5),
        mf.stateless(lambda gramian: gramian.diagonal()),
    ):
        step = mf.descend(vector, rule, mf.sgd(0.1), mf.losses_only())
        state = step.init(PARAMS, BATCH)
        with pytest.raises(ValueError, match=r"needs the Gramian.*mtlfunc\.jacobian"):
            step.update(state, BATCH)


def test_geometry_of_a_mix_has_rows_not_tasks():
    probe = mf.jacobian(SHARED, mix=mf.subset(2))
    losses, state = probe.init(vector, PARAMS, BATCH, mf.random.key(0))
    assert losses.shape == (2,)
    measured, _ = probe.update(vector, PARAMS, BATCH, state)
    assert isinstance(measured.geometry, Geometry)
    assert measured.losses.shape == (TASKS,)
    assert measured.geometry.gramian.shape == (2, 2)
    torch.testing.assert_close(
        measured.geometry.preference, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    )
    assert bool(measured.geometry.present.all())


def test_representation_checks_its_parts():
    step = mf.descend(
        lambda p, b: 2 * vector(p, b),
        mf.mgda(),
        mf.sgd(0.1),
        mf.representation(encode, decode, shared=SHARED),
    )
    with pytest.raises(ValueError, match="must be the same function"):
        step.init(PARAMS, BATCH)
    step = mf.descend(
        vector, mf.mgda(), mf.sgd(0.1), mf.representation(encode, decode, shared="trunk.2.*")
    )
    with pytest.raises(ValueError, match=r"encode uses trunk\.0\.weight, trunk\.0\.bias"):
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
    torch.testing.assert_close(flatten(grads), flatten(expected), rtol=1e-12, atol=1e-14)


def test_module_is_untouched():
    assert all(leaf.grad is None for leaf in net.parameters())


def test_half_precision_parameters_train_as_in_torch_optim():
    params = {"x": torch.zeros(3, dtype=torch.bfloat16)}
    leaf = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    ours, theirs = mf.adam(1e-2), torch.optim.Adam([leaf], 1e-2)
    state = ours.init(params)
    for _ in range(6):
        params, state = ours.update({"x": torch.ones(3, dtype=torch.bfloat16)}, state, params)
        leaf.grad = torch.ones_like(leaf)
        theirs.step()
    assert params["x"].dtype == torch.bfloat16
    # Six roundings of a number near .06 to 8 bits.
    torch.testing.assert_close(params["x"], leaf.detach(), rtol=6 * 2.0**-8, atol=0.0)


@pytest.mark.parametrize(
    "make",
    [mf.sgd, lambda lr: mf.sgd(lr, momentum=lr), mf.adam, mf.optim.multiplicative],
    ids=["sgd", "momentum", "adam", "multiplicative"],
)
def test_optimizers_keep_the_dtype_of_parameters(make):
    optimizer = make(torch.tensor(0.1, dtype=torch.float64))
    params = {"s": torch.tensor(0.5), "x": torch.ones(2)}
    moved, _ = optimizer.update(params, optimizer.init(params), params)
    assert all(leaf.dtype == torch.float32 for leaf in moved.values())


def test_scalar_parameters_have_rows():
    def losses(params, batch):
        return params["s"] ** 2, params["s"]  # the second loss is the leaf itself

    step = mf.descend(losses, mf.mgda(), mf.sgd(0.1), mf.jacobian())
    _, info = step.update(step.init({"s": torch.tensor(0.5, dtype=torch.float64)}, ()), ())
    torch.testing.assert_close(info.gramian, torch.ones(2, 2, dtype=torch.float64))


def test_autocast_around_a_step_is_refused_and_inside_works():
    params = {name: leaf.float() for name, leaf in PARAMS.items()}
    batch = tuple(x.float() for x in BATCH)

    def inside(params, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return opaque(params, batch).float()

    step = mf.descend(inside, mf.mgda(), mf.adam(0.01), mf.jacobian(SHARED))
    state = step.init(params, batch)
    _, info = step.update(state, batch)
    assert info.gramian.dtype == torch.float32
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="autocast is active around the step"),
    ):
        step.update(state, batch)


def test_learned_mix_is_differentiated():
    def end(scale):
        def mix(key, count):
            matrix = torch.eye(count, dtype=torch.float64)[:2] * scale
            return matrix, torch.full((2,), 0.5, dtype=torch.float64)

        step = mf.descend(
            vector, mf.mean(), mf.sgd(0.1), mf.jacobian(SHARED, mix=mix, heads="weighted")
        )
        return vector(step.update(step.init(PARAMS, BATCH), BATCH)[0].params, BATCH).sum()

    at, h = torch.tensor(1.1, dtype=torch.float64), 1e-5
    difference = (end(at + h) - end(at - h)) / (2 * h)
    leaf = at.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(end(leaf), leaf)[0], difference, rtol=1e-6, atol=0.0
    )
    torch.testing.assert_close(grad(end)(at), difference, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    "probe",
    [mf.jacobian(SHARED), mf.losses_only(), mf.jacobian("*", measure=SHARED)],
    ids=["shared", "losses only", "measure"],
)
def test_infinite_gradient_outside_the_measured_leaves_is_an_error(probe):
    params = PARAMS | {"heads.0.bias": torch.zeros_like(PARAMS["heads.0.bias"])}

    def losses(params, batch):
        return opaque(params, batch) + params["heads.0.bias"].sqrt().sum()

    step = mf.descend(losses, mf.mean(), mf.sgd(0.1), probe)
    state = step.init(params, BATCH)
    with pytest.raises(ValueError, match=r"gradient of 'heads\.0\.bias': NaN or infinite"):
        step.update(state, BATCH)


def test_detached_losses_are_refused():
    step = mf.descend(
        lambda p, b: opaque(p, b).detach(), mf.mgda(), mf.sgd(0.1), mf.jacobian(SHARED)
    )
    with pytest.raises(ValueError, match=r"no loss depends on params.*neither detach"):
        step.init(PARAMS, BATCH)


def test_two_unreduced_losses_are_not_taken_for_losses_and_aux():
    def forgotten(params, batch):
        x, y = batch
        first, second, _ = functional_call(net, params, (x,))
        return (first - y[:, 0]).square().mean(1), (second - y[:, 1]).square().mean(1)

    for call in (mf.task_gradients, mf.task_gramian):
        with pytest.raises(ValueError, match="got a pair of which the first is not a scalar"):
            call(forgotten, PARAMS, BATCH)
    with pytest.raises(ValueError, match="or, if these are two losses, reduce each"):
        mf.descend(forgotten, mf.mean(), mf.sgd(0.1), mf.losses_only()).init(PARAMS, BATCH)


def test_gradnorm_refuses_losses_that_fall_below_zero():
    rule = mf.gradnorm(0.5)
    state = rule.init(torch.ones(2), mf.random.key(0))
    geometry = Geometry(
        torch.tensor([-1e-6, 2.0]),
        torch.diag(torch.tensor([1.0, 9.0])),
        torch.full((2,), 0.5),
        torch.ones(2, dtype=torch.bool),
        {},
    )
    with pytest.raises(ValueError, match="need losses >= 0"):
        rule.update(geometry, state)
    # Under a transform the next weights are NaN.
    _, following = vmap(
        lambda scale: rule.update(geometry._replace(losses=geometry.losses * scale), state)
    )(torch.ones(1))
    assert bool(following.weights.isnan().all())


def test_negative_radius_under_vmap_gives_nan():
    gramian = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    weights = vmap(lambda c: mf.solvers.auto()(mf.solvers.cagrad(gramian, c)).weights)(
        torch.tensor([0.4, -0.4])
    )
    assert bool(weights[0].isfinite().all())
    assert bool(weights[1].isnan().all())


def test_batch_of_another_dtype_or_device_is_explained():
    step = mf.descend(opaque, mf.mgda(), mf.sgd(0.1), mf.jacobian(SHARED))
    for batch in (tuple(x.float() for x in BATCH), tuple(x.to("meta") for x in BATCH)):
        with pytest.raises(
            RuntimeError,
            match=r"losses_fn mixes dtypes or devices: params are torch\.float64 on cpu; convert "
            r"the batch",
        ):
            step.init(PARAMS, batch)
