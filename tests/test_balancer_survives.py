"""What stock loops hold, from checkpointing to hooks, beside a literal loop on a copy."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from mtlfunc.gradients.losses import parse_losses
from mtlfunc.gradients.run import live
from tests.support.functions import custom
from tests.support.oracles import F64, near, rows_of

X = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def small_networks_stand_for_large_ones(monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    torch.manual_seed(0)


def gradient(leaves):
    """[parameter]: what is in `.grad`, leaf by leaf."""
    return torch.cat([leaf.grad.flatten() for leaf in leaves])


def check(net, run, shared="*", rtol=1e-10, **options):
    """One step against the loop on a copy; what else a step changes, as one stock forward."""
    twin = copy.deepcopy(net)
    balancer = mf.Balancer(net, mf.cagrad(0.4), mf.jacobian(shared, **options))
    torch.manual_seed(3)
    info = balancer.backward(run(net))
    torch.manual_seed(3)
    leaves = [leaf for leaf in twin.parameters() if leaf.requires_grad]
    rows = rows_of(run(twin), leaves).double()
    gramian = (rows @ rows.T).to(info.gramian)
    near(info.gramian, gramian, rtol, rtol * float(gramian.max()))
    expected = info.weights.double() @ rows
    got = gradient([leaf for leaf in net.parameters() if leaf.requires_grad])
    near(got.double(), expected, rtol, rtol * float(expected.abs().max()))
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    return info


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.3), nn.Tanh())
        self.b, self.entered = nn.Linear(30, 3), 0

    def forward(self, x):
        def inside(x):
            self.entered += 1
            return self.a(x)

        return self.b(checkpoint(inside, x, use_reentrant=False))


@pytest.mark.parametrize("form", ["vector", "scalars"])
def test_activation_checkpointing(form):
    """The inside is run again by the passes, with its random numbers; no tap holds its inputs."""
    net = Checkpointed().double()

    def run(n):
        losses = n(X).square().mean(0)
        return losses if form == "vector" else tuple(losses)

    check(net, run, engine="layerwise")
    assert net.entered > 1
    forward = live(parse_losses(run(net)), dict(net.named_parameters()))
    assert set(forward.reading.uses) == {"a.0.bias", "b.weight", "b.bias"}


def test_compiled_module():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def run(n):
        return torch.compile(n, backend="aot_eager")(X).square().mean(0)

    check(net, run)
    compiled = torch.compile(net)  # its inductor donates the buffers of a graph
    assert isinstance(compiled, nn.Module)
    assert mf.Balancer(compiled, mf.mgda(), "0.*").measure(run(net)).gramian.shape == (3, 3)


def test_autocast_around_the_forward():
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

    def run(n):
        with torch.autocast("cpu", torch.bfloat16):
            return n(X.float()).float().square().mean(0)

    info = check(net, run, rtol=2e-2)
    assert info.gramian.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        again = mf.Balancer(net, mf.cagrad(0.4)).backward(run(net))
    near(again.gramian, info.gramian, 2e-2, 1e-3)


def test_float16_with_a_scaler():
    """Weights do not depend on the scale, and the scaled loss is stock in every way."""
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    found = []
    for scale in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        balancer = mf.Balancer(net, mf.cagrad(0.4))
        with torch.autocast("cpu", torch.float16):
            losses = list(net(X.float()).float().square().mean(0))
        weights, info = balancer.weigh(losses)
        assert info.gramian.dtype == torch.float32
        scaler.scale((weights * torch.stack(losses)).sum()).backward()
        scaler.unscale_(optimizer)
        found.append((weights, gradient(net.parameters())))
        optimizer.zero_grad()
    assert torch.equal(found[0][0], found[1][0])
    near(found[0][1], found[1][1], 1e-2, 1e-4)


def test_hooks_see_plain_gradients():
    first = nn.Linear(4, 8)
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(8, 3)).double()
    seen = []
    net[2].register_full_backward_hook(lambda m, i, o: seen.append(o[0].sum().item()))

    def listen(module, inputs, out):
        out.register_hook(lambda g: seen.append(g.sum().item()))

    first.register_forward_hook(listen)
    first.weight.register_post_accumulate_grad_hook(lambda p: seen.append("done"))

    def run(n):
        h = n[0](X)
        h.retain_grad()
        return n[2](n[1](h)).square().mean(0)

    mf.Balancer(net, mf.mgda()).backward(run(net))
    assert seen.count("done") == 1
    assert len(seen) >= 7
    net.zero_grad()
    first.weight.register_hook(lambda g: seen.append(g.sum().item()))
    mf.Balancer(net, mf.mgda()).backward(run(net))
    assert seen.count("done") == 2


LATE = {
    "tensor": lambda h: h.register_hook(lambda g: 0.1 * g),
    "node": lambda h: h.grad_fn.register_hook(
        lambda ins, outs: tuple(None if g is None else 0.1 * g for g in ins)),
    "node, before": lambda h: h.grad_fn.register_prehook(lambda outs: (0.1 * outs[0],)),
    "node below": lambda h: h.grad_fn.next_functions[-1][0].register_hook(
        lambda ins, outs: (0.1 * ins[0],)),
    "weight, before all": lambda h: None,
}  # fmt: skip


@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("hook", LATE)
def test_hooks_that_are_put_on_after_the_losses_or_on_one_leaf(hook, engine):
    first, last = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()
    if hook == "weight, before all":
        first.weight.register_hook(lambda g: 0.1 * g)
    balancer = mf.Balancer(nn.Sequential(first, last), mf.mgda(), mf.jacobian(engine=engine))
    h = first(X)
    losses = last(h.tanh()).square().mean(0)
    LATE[hook](h)
    rows = rows_of(losses, [*first.parameters(), *last.parameters()])
    near(balancer.backward(losses).gramian, rows @ rows.T)


@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
@pytest.mark.parametrize("form", [list, lambda x: torch.stack(list(x)), lambda x: x])
@pytest.mark.parametrize("where", ["outside", "inside", "loss"])
def test_a_retained_gradient_makes_no_number_wrong(where, form, engine):
    """It may hold all tasks' as a batched tensor afterwards, of losses of a vector."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).double()
    balancer = mf.Balancer(net, mf.mgda(), mf.jacobian(engine=engine))
    leaves = list(net.parameters())
    for _ in range(3):
        net.zero_grad()
        h = net[0](X.clone().requires_grad_())
        z = h.tanh()
        losses = net[1](z).square().mean(0)
        {"outside": h, "inside": z, "loss": losses}[where].retain_grad()
        rows = rows_of(losses, leaves)
        info = balancer.backward(form(losses))
        near(info.gramian, rows @ rows.T)
        near(gradient(leaves), info.weights @ rows)


@pytest.mark.parametrize("scalars", [True, False])
def test_one_pass_of_weighted_losses_shares_no_gradient(scalars):
    """Of a leaf and what retains its gradient, which the leaf's derivative is passed on from."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

    net = Sum()
    balancer = mf.Balancer(net, mf.gls(), None)
    for power in (2.0, None):  # without one, the weights themselves are the derivative
        net.zero_grad()
        h = net.x + 1.0
        h.retain_grad()
        losses = h if power is None else h**power
        info = balancer.backward(list(losses) if scalars else losses)
        expected = info.weights * (1 if power is None else 2 * (net.x.detach() + 1))
        near(net.x.grad, expected)
        assert net.x.grad is not None
        net.x.grad.zero_()
        near(h.grad, expected)
        assert info.weights.gt(0).all()


def test_derivatives_by_the_inputs():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def run(n):
        x = X.clone().requires_grad_()
        u = n(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)
        return {"inside": (ddu[:, 0] + u[:, 0]).square().mean(), "edge": u[:2].square().mean()}

    info = mf.Balancer(net, mf.cagrad(0.4)).backward(run(net))
    leaves = list(net.parameters())[:-1]
    near(gradient(leaves), info.weights @ rows_of(run(net).values(), leaves))


@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_losses_of_several_forwards(engine):
    net = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 1)).double()
    balancer = mf.Balancer(net, mf.cagrad(0.4), mf.jacobian(engine=engine))
    losses = [net(x).square().mean() for x in (X, 2 * X, 3 * X)]
    leaves = list(net.parameters())
    rows = rows_of(losses[:2], leaves)
    for _ in range(2):
        net.zero_grad()
        info = balancer.backward(losses[:2], retain_graph=True)
        near(info.gramian, rows @ rows.T)
        near(gradient(leaves), info.weights @ rows)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", [list, torch.stack])
def test_backward_where_gradients_are_disabled(mode, form):
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).double()
    leaves = list(net.parameters())
    balancer = mf.Balancer(net, mf.mgda(), "0.*")
    for _ in range(2):
        losses = form(list(net(X).square().mean(0)))
        rows = rows_of(losses, leaves)
        net.zero_grad()
        with mode():
            info = balancer.backward(losses)
        assert not any(x.is_inference() for leaf in leaves if (x := leaf.grad) is not None)
        size = sum(leaf.numel() for leaf in leaves[:2])
        expected = torch.cat([info.weights @ rows[:, :size], rows[:, size:].sum(0)])
        near(gradient(leaves), expected)


def test_parameters_that_change_names_or_go():
    """The same tensors elsewhere: `shared` means what the module holds now."""
    net = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)}).double()
    balancer = mf.Balancer(net, mf.mgda(), "a.*")

    def gramian():
        one, other = (net[name](X).square().sum() for name in ("a", "b"))
        losses = [one + other, one + 2 * other]
        rows = rows_of(losses, list(net["a"].parameters()))
        return balancer.measure(losses).gramian, rows @ rows.T

    near(*gramian())
    net["a"], net["b"] = net["b"], net["a"]
    near(*gramian())
    net["a"] = nn.Sequential(net["a"], nn.Identity())
    near(*gramian())


def test_gradients_that_a_backward_of_ones_own_keeps():
    x = torch.ones(3)
    dot = custom(lambda ctx, w: (w * x).sum(), lambda ctx, grad: x)
    net = nn.ParameterDict({"trunk": torch.randn(3), "head": torch.randn(3)})
    balancer = mf.Balancer(net, mf.mgda(), mf.jacobian("trunk", heads="own"))
    for _ in range(2):
        losses = [net["trunk"].square().sum() + dot(net["head"]), net["trunk"].sum()]
        balancer.backward(losses)
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(net["head"].grad, 2 * x)


def test_gradients_that_a_backward_of_ones_own_leaves_with_a_graph():
    half_square = custom(
        lambda ctx, w: ctx.save_for_backward(w) or w.square().sum() / 2,
        lambda ctx, grad: ctx.saved_tensors[0],  # one pass per loss, whose cotangent is 1
    )
    net = nn.ParameterDict({"w": torch.arange(1.0, 4.0)})
    balancer = mf.Balancer(net, mf.mgda())
    info = balancer.backward([half_square(net["w"]), net["w"].sum()])
    grad = net["w"].grad
    near(grad, info.weights[0] * net["w"].detach() + info.weights[1])
    assert not any(x.requires_grad for x in (grad, info.gramian, info.weights))


@pytest.mark.parametrize("rows", [False, True])
def test_sparse_gradients_are_an_error_with_a_cure(rows):
    net = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    balancer = mf.Balancer(net, mf.mean(), "*" if rows else None)
    for form in (tuple, torch.clone):  # a pass a task, and one for all
        losses = form(net(torch.arange(3)).square().mean(0))
        with pytest.raises(RuntimeError, match="sparse=False"):
            balancer.backward(losses)
    assert net[0].weight.grad is None
    step = mf.balance(
        lambda params, x: functional_call(net, params, (x,)).square().mean(0),
        mf.mean(),
        mf.jacobian() if rows else mf.losses_only(),
    )
    params = mf.parameters(net)
    with pytest.raises(RuntimeError, match="sparse=False"):
        step.update(params, torch.arange(3), step.init(params, torch.arange(3)))


def test_a_copy_goes_on_and_a_pickle_names_the_cure():
    net = nn.Linear(2, 2)
    balancer = mf.Balancer(net, mf.nash_mtl())
    balancer.backward(tuple(net(torch.eye(2)).square().mean(0)))
    assert str(copy.deepcopy(balancer).state_dict()) == str(balancer.state_dict())
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(balancer)


def test_gradients_share_no_memory():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.ones(3, dtype=F64)) for _ in range(2))

    net = Sums()
    for engine in ("rows", "layerwise"):
        net.zero_grad()
        balancer = mf.Balancer(net, mf.mean(), mf.jacobian(engine=engine))
        balancer.backward([(net.a + net.b).sum(), 2 * (net.a + net.b).sum()])
        a, b = (leaf.grad for leaf in net.parameters())
        assert a is not None
        assert b is not None
        a.zero_()
        assert bool((b == 1.5).all())
        assert b.is_contiguous()


def test_heads_of_several_losses_and_leaves_without_numbers():
    """What some losses share besides the trunk, and a leaf of no entries, against autograd."""
    torch.manual_seed(0)
    net = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("trunk", "both", "one", "none")})
    empty = nn.Parameter(torch.zeros(0, 2))
    net["trunk"].register_parameter("empty", empty)

    def losses():
        z = net["trunk"](torch.ones(4, 3).cumsum(0)) + empty.sum()
        h = net["both"](z).tanh()
        return [h.square().mean(), net["one"](h).cos().mean(), z.sin().mean()]

    info = mf.Balancer(net, mf.mgda(), "trunk.*").backward(losses())
    trunk = [leaf for name, leaf in net.named_parameters() if name.startswith("trunk")]
    jac = rows_of(losses(), trunk)
    near(info.gramian, jac @ jac.T)
    near(gradient([leaf for leaf in trunk if leaf.grad is not None]), info.weights @ jac)
    for name in ("both", "one"):
        leaves = list(net[name].parameters())
        grads = torch.autograd.grad(torch.stack(losses()).sum(), leaves)
        near([leaf.grad for leaf in leaves], list(grads))
    assert net["none"].weight.grad is None


@pytest.mark.parametrize("rule", [mf.moco(), mf.dwa(1)])
def test_whoever_writes_into_what_a_step_hands_out_changes_no_state(rule):
    net = nn.Linear(4, 3).double()
    one, other = (mf.Balancer(net, rule, mf.moving_average()) for _ in range(2))
    for _ in range(3):
        losses = net(X).square().mean(0)
        other.backward(losses, retain_graph=True)
        for handed in (*one.backward(losses)[:4], losses.detach()):
            handed.mul_(1 + torch.arange(len(handed)))
    losses = net(X).square().mean(0)
    near(one.measure(losses).weights, other.measure(losses).weights)


def test_a_solver_may_write_and_answer_weights_alone():
    G = torch.tensor([[1.0, 0.0], [0.0, 4.0]])

    take = mf.solvers.auto()
    solver = lambda p: take(p._replace(gramian=p.gramian.mul_(2))).weights  # noqa: E731
    for make in (mf.mgda, mf.pcd):
        near(mf.weights(make(solver=solver), G), mf.weights(make(), G))  # pyright: ignore
    assert G[1, 1] == 4
