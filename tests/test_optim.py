"""Optimizers beside torch.optim, and the way back to its loops."""

import gc

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from tests.support.oracles import same
from tests.support.problems import BATCH, PARAMS, SHARED, TrunkAndHeads, vector


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_exact_adam_is_scale_free(scale):
    optimizer = mf.adam(0.01, eps=0.0)
    params, gradient = {"x": torch.ones(3).double()}, torch.tensor([1.0, -3.0, 0.0]).double()
    plain, _ = optimizer.update({"x": gradient}, optimizer.init(params), params)
    scaled, _ = optimizer.update({"x": scale * gradient}, optimizer.init(params), params)
    torch.testing.assert_close(plain["x"], scaled["x"], rtol=1e-12, atol=0.0)
    assert plain["x"][2] == 1


def test_multiplicative_steps_by_a_factor():
    x, slope = torch.tensor([[1e-3, 2.0], [5.0, -1e-9]], dtype=torch.float64)
    moved, _ = mf.optim.multiplicative(0.1).update({"x": slope}, (), {"x": x})
    factor = torch.tensor([-0.1, 0.1], dtype=torch.float64).exp()
    torch.testing.assert_close(moved["x"], x * factor, rtol=1e-14, atol=0.0)


def test_stock_loop_equals_descend_and_keeps_no_graph():
    module = TrunkAndHeads(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    balance = mf.balance(vector, mf.cagrad(0.4), mf.jacobian(SHARED))
    state = balance.init(mf.parameters(module), BATCH)
    step = mf.descend(vector, mf.cagrad(0.4), mf.jacobian(SHARED), mf.adam(0.01))
    ours = step.init(PARAMS, BATCH)

    def live() -> tuple[int, int]:
        gc.collect()
        kinds = torch.Tensor, torch.nn.Parameter  # not what a compiled test left, without sizes
        tensors = [x for x in gc.get_objects() if type(x) in kinds]
        return len(tensors), sum(x.numel() for x in tensors)

    sizes = []
    for count in range(40):
        grads, state, info = balance.update(mf.parameters(module), BATCH, state)
        mf.assign_gradients(module, grads)
        optimizer.step()
        assert info.losses.grad_fn is None
        assert all(x.grad is not None and x.grad.grad_fn is None for x in module.parameters())
        if count < 20:
            ours, _ = step.update(ours, BATCH)
        if count == 19:
            same(mf.parameters(module), ours.params, 1e-9, 1e-12)
        if count % 20 == 19:
            sizes.append(live())
    assert len(set(sizes)) == 1


def test_parameters_share_storage_and_leave_frozen_ones_out():
    module = TrunkAndHeads(1)
    module.get_parameter("trunk.0.bias").requires_grad_(False)
    params = mf.parameters(module)
    assert "trunk.0.bias" not in params
    assert params["trunk.0.weight"].data_ptr() == module.get_parameter("trunk.0.weight").data_ptr()
    assert not params["trunk.0.weight"].requires_grad


def test_parameters_that_are_added_have_gradients_of_their_own():
    """Autograd has one tensor for both, which clipping in place would shrink twice."""
    net = nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(2)})
    step = mf.balance(lambda p, _: 3 * (p["a"] + p["b"]), mf.mean(), mf.losses_only())
    params = mf.parameters(net)
    mf.assign_gradients(net, step.update(params, (), step.init(params, ()))[0])
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    for leaf in net.values():
        torch.testing.assert_close(leaf.grad, torch.full((2,), 0.5))


def test_assign_gradients_clears_what_it_was_not_given_and_names_mismatches():
    module, turned = nn.Linear(3, 2), torch.arange(6.0).view(3, 2).mT
    module.bias.grad = torch.ones(2)
    mf.assign_gradients(module, {"weight": turned})
    assert module.bias.grad is None
    assert (found := module.weight.grad) is not None
    assert torch.equal(found, turned)
    assert found.is_contiguous(), "fused optimizers read it as their parameter"
    with pytest.raises(KeyError, match="no such parameter"):
        mf.assign_gradients(module, {"w": turned})
    with pytest.raises(ValueError, match=r"grads\['weight'\]: \[2\]"):
        mf.assign_gradients(module, {"weight": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_half_precision_parameters_train_as_in_float32(dtype, size):
    ours, ends = mf.adam(1e-2), []
    for kind in (dtype, torch.float32):
        params = {"x": torch.zeros(3, dtype=kind)}
        state = ours.init(params)
        for _ in range(6):
            params, state = ours.update({"x": torch.full((3,), size).to(dtype)}, state, params)
        assert params["x"].dtype == kind
        ends.append(params["x"].float())
    torch.testing.assert_close(*ends, rtol=6 * torch.finfo(dtype).eps, atol=0.0)
    with pytest.raises(ValueError, match="state: not this optimizer's"):
        ours.update({"x": torch.ones(3)}, state, {"x": torch.zeros(3).double()})


@pytest.mark.parametrize("make", [mf.sgd, mf.adam, mf.optim.multiplicative])
def test_gradients_are_of_the_parameters(make):
    optimizer, params = make(0.1), {"x": torch.ones(2)}
    for grads in ({}, {"x": torch.ones(())}, {"x": torch.ones(2, 2)}, params | {"y": params["x"]}):
        with pytest.raises(ValueError, match=r"grads: .*names and shapes"):
            optimizer.update(grads, optimizer.init(params), params)
    moved = optimizer.update({"x": torch.full((2,), torch.nan)}, optimizer.init(params), params)[0]
    assert moved["x"].isnan().all()


@pytest.mark.parametrize(
    "make",
    [mf.sgd, lambda lr: mf.sgd(lr, momentum=lr), mf.adam, mf.optim.multiplicative],
    ids=["sgd", "momentum", "adam", "multiplicative"],
)
def test_optimizers_and_metrics_keep_the_dtype_of_parameters(make):
    optimizer = make(torch.tensor(0.1, dtype=torch.float64))
    params = {"s": torch.tensor(0.5), "x": torch.ones(2)}
    moved, state = optimizer.update(params, optimizer.init(params), params)
    metric = optimizer.scales(state, moved) if optimizer.scales else ()
    leaves = [x for x in tree_leaves((moved, state, metric)) if x.is_floating_point()]
    assert all(leaf.dtype == torch.float32 for leaf in leaves)
