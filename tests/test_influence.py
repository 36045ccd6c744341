"""`diagnostics.influence` against real steps of the optimizer with a sample left out."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from mtlfunc.types import Params

F64 = torch.float64
COUNT = 12
X, Y, FAR_X, FAR_Y = (
    mf.random.normal(mf.random.key(k), shape, F64)
    for k, shape in enumerate(((COUNT, 5), (COUNT, 2), (9, 5), (9, 2)))
)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).to(F64)


def losses_of(net: nn.Module) -> Any:
    return lambda params, batch: (functional_call(net, params, (batch[0],)) - batch[1]).square()


def mean_of(net: nn.Module) -> Any:
    """A loss a sample."""
    return lambda params, batch: losses_of(net)(params, batch).mean(1)


def target_of(net: nn.Module) -> Any:
    return lambda params: losses_of(net)(params, (FAR_X, FAR_Y)).mean()


def make(kind: str, net: nn.Module) -> torch.optim.Optimizer:
    """The first layer's bias is not the optimizer's, and the last layer has another rate."""
    weight, _, *last = net.parameters()
    groups: Any = [{"params": [weight]}, {"params": last, "lr": 3e-3}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1)
    return torch.optim.AdamW(groups, lr=1e-2)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_leaving_a_sample_out_costs_its_influence(kind):
    """First-order falls of the target by real steps. Adam's mean of squares is held still by β₂ =
    1 - 2^-50, after so many steps that its correction is not rounding.
    """
    net = network()
    optimizer = make(kind, net)
    for _ in range(4):
        optimizer.zero_grad()
        losses_of(net)(dict(net.named_parameters()), (X, Y)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        if kind == "adamw":
            state["step"] = torch.tensor(2.0**50, dtype=F64)
    for group in optimizer.param_groups:
        if kind == "adamw":
            group["betas"] = (0.9, 1 - 2.0**-50)
    before = mf.parameters(net)
    rows = torch.func.jacrev(mean_of(net))(before, (X, Y))
    aim = torch.func.grad(target_of(net))(before)

    def fall(grads: Params) -> Tensor:
        other, state = copy.deepcopy((net, optimizer.state_dict()))
        mine = make(kind, other)
        mine.load_state_dict(state)
        mf.assign_gradients(other, grads)
        mine.step()
        after = mf.parameters(other)
        return torch.stack([(aim[n] * (x - after[n])).sum() for n, x in before.items()]).sum()

    whole = fall({name: x.mean(0) for name, x in rows.items()})
    truth = torch.stack(
        [whole - fall({n: x.mean(0) - x[i] / COUNT for n, x in rows.items()}) for i in range(COUNT)]
    )
    found = mf.diagnostics.influence(mean_of(net), net, (X, Y), target_of(net), optimizer)
    # a difference of steps of 1e-2: rounding is 1e-16/1e-2 of a parameter
    assert (found / COUNT - truth).abs().max() <= 1e-9 * truth.abs().max()
    several = mf.diagnostics.influence(losses_of(net), net, (X, Y), target_of(net), optimizer)
    torch.testing.assert_close(several.mean(1), found)


def test_what_is_wrong_is_said():
    net = nn.Linear(5, 2, bias=False).to(F64)
    muon, sgd = (kind(net.parameters(), lr=0.1) for kind in (torch.optim.Muon, torch.optim.SGD))
    with pytest.raises(ValueError, match="none of Muon"):
        mf.diagnostics.influence(losses_of(net), net, (X, Y), target_of(net), muon)
    far = mean_of(net)
    for wrong in (lambda x: x, lambda x: x.argmax()):  # a count has no gradient
        with pytest.raises(ValueError, match="target_fn: expected a 0-d tensor"):
            mf.diagnostics.influence(
                far, net, (X, Y), lambda p, wrong=wrong: wrong(far(p, (FAR_X, FAR_Y))), sgd
            )


@pytest.mark.parametrize("which", ["losses_fn", "target_fn"])
@pytest.mark.parametrize("kind", ["the module itself", "detached"])
def test_a_function_without_the_params_is_an_error(which, kind):
    """Not influences of 0."""
    net = network()

    def apart(params: Params, batch: Any) -> Tensor:
        if kind == "detached":
            return mean_of(net)({name: x.detach() for name, x in params.items()}, batch)
        return (net(batch[0]) - batch[1]).square().mean(1)

    losses = apart if which == "losses_fn" else mean_of(net)
    aims = apart if which == "target_fn" else mean_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"{which}: no loss depends on params.*that {which} is"):
        mf.diagnostics.influence(
            losses, net, (X, Y), lambda p: aims(p, (FAR_X, FAR_Y)).mean(), optimizer
        )


@pytest.mark.parametrize("which", ["of another module", "frozen"])
def test_an_optimizer_that_moves_nothing_is_an_error(which):
    net = network()
    optimizer = torch.optim.SGD((net if which == "frozen" else network()).parameters(), lr=0.1)
    net.requires_grad_(which != "frozen")
    with pytest.raises(ValueError, match="optimizer: it holds none of the module's parameters"):
        mf.diagnostics.influence(mean_of(net), net, (X, Y), target_of(net), optimizer)


@pytest.mark.parametrize("trains", [False, True])
def test_the_target_is_called_once_and_buffers_stay(trains):
    """Batch norm in train mode, in the target alone and in the losses, which is an error."""
    net = nn.Sequential(network(), nn.BatchNorm1d(2)).to(F64)
    before = {name: x.clone() for name, x in net.named_buffers()}
    optimizer, calls = torch.optim.SGD(net.parameters(), lr=0.1), []

    def target(params: Params) -> Tensor:
        calls.append(net.train())
        loss = target_of(net)(params)
        net.train(trains)
        return loss

    def check() -> None:
        found = mf.diagnostics.influence(mean_of(net), net, (X, Y), target, optimizer)
        torch.testing.assert_close(found, known)

    rows = torch.func.jacrev(mean_of(net.eval()))(mf.parameters(net), (X, Y))
    other = copy.deepcopy(net).train()
    aim = torch.autograd.grad((other(FAR_X) - FAR_Y).square().mean(), list(other.parameters()))
    parts = [0.1 * (rows[n] * g).flatten(1).sum(1) for n, g in zip(rows, aim, strict=True)]
    known = torch.stack(parts).sum(0)
    if trains:
        with pytest.raises(RuntimeError, match=r"module.eval\(\)"):
            check()
    else:
        check()
    assert len(calls) == 1
    assert all(torch.equal(x, before[name]) for name, x in net.named_buffers())


@pytest.mark.parametrize("kind", ["attention", "weight norm"])
def test_what_torch_has_no_forward_mode_of(kind):
    """Fast paths, fused attention and the fused weight norm are written out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "attention":
            net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).to(F64).eval()
        else:
            net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).to(F64)
    x = mf.random.normal(mf.random.key(9), (3, 5, 4), F64)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def losses(params: Params, batch: Tensor) -> Tensor:
        return functional_call(net, params, (batch,)).square().mean((1, 2))

    def aimed(params: Params) -> Tensor:
        return losses(params, 2 * x).mean()

    inside = mf.diagnostics.influence(losses, net, x, aimed, optimizer)
    params: Params = dict(net.named_parameters())
    mine = list(params.values())
    aim = torch.autograd.grad(aimed(params), mine)
    for loss, one in zip(losses(params, x), inside, strict=True):
        row = torch.autograd.grad(loss, mine, retain_graph=True)
        known = [1e-3 * (g * a).sum() for g, a in zip(row, aim, strict=True)]
        torch.testing.assert_close(one, torch.stack(known).sum())


def test_an_operation_without_forward_mode_is_named():
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def losses(params: Params, batch: Tensor) -> Tensor:
        scores, labels = batch @ params["weight"].T, torch.zeros(3, 1, dtype=torch.int64)
        return F.multilabel_margin_loss(scores, labels, reduction="none")

    with pytest.raises(RuntimeError, match="forward mode: write it with others"):
        mf.diagnostics.influence(
            losses, net, torch.ones(3, 2), lambda p: p["weight"].sum(), optimizer
        )


@pytest.mark.parametrize("made", [lambda x: (x[0, 0], x[1, 0]), lambda x: x.mean()])
def test_other_shapes_of_losses_are_refused(made):
    net = network()
    optimizer, losses = make("sgd", net), losses_of(net)
    with pytest.raises(ValueError, match=r"losses_fn: expected \[sample\] or \[sample, task\]"):
        mf.diagnostics.influence(
            lambda p, b: made(losses(p, b)), net, (X, Y), target_of(net), optimizer
        )


def test_a_target_that_cannot_be_run_is_named_as_the_target():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def fails(params):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "the user's own")

    def entries(params, x):
        return (x @ params["weight"].T)[:, 0]

    with pytest.raises(UnicodeDecodeError, match="the user's own"):
        mf.diagnostics.influence(entries, net, torch.ones(3, 2), fails, optimizer)
    with pytest.raises(RuntimeError, match="target_fn"), torch.autocast("cpu"):
        mf.diagnostics.influence(
            entries, net, torch.ones(3, 2), lambda p: p["weight"].sum(), optimizer
        )
