"""Forwards that are no longer watched, after some that were all rows: the numbers stay right.

The references: a literal loop of `torch.autograd.grad`, `engine="rows"`, and a step that knows
nothing of the steps before.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise import Handles, Tapped, idle, plan

F64 = torch.float64
MANY, FEW = 40, 2  # samples: rows are cheapest, or layers
STREAK = 3


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    monkeypatch.setattr(idle, "STREAK", STREAK)
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, width=16, tasks=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
        self.saving = False

    def forward(self, x):
        z = checkpoint(self.trunk, x, use_reentrant=False) if self.saving else self.trunk(x)
        return tuple((head(z) - k).square().mean() for k, head in enumerate(self.heads))


def batch(count, seed=0, width=16):
    return torch.randn(count, width, dtype=F64, generator=torch.Generator().manual_seed(seed))


def compare(info, net, losses, shared):
    """One step's Gramian and `.grad` against a loop over the losses of another forward."""
    leaves = {name: leaf for name, leaf in net.named_parameters() if leaf.requires_grad}
    rows = [
        torch.autograd.grad(x, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for x in losses
    ]
    names = list(leaves)
    trunk = [i for i, name in enumerate(names) if name.startswith(shared)]
    matrix = torch.stack([torch.cat([row[i].flatten() for i in trunk]) for row in rows])
    torch.testing.assert_close(info.gramian, matrix @ matrix.T, rtol=1e-10, atol=1e-12)
    for i, name in enumerate(names):
        weights = info.weights if i in trunk else torch.full_like(info.weights, 1 / len(rows))
        expected = sum(w * row[i] for w, row in zip(weights, rows, strict=True))
        torch.testing.assert_close(leaves[name].grad, expected, rtol=1e-10, atol=1e-12)


def live(net, balancer, x, shared="trunk"):
    """One step that is right; whether its forward was watched."""
    net.zero_grad()
    with balancer:
        losses = net(x)
    (mode,) = balancer._seen.done
    assert type(mode) in (Tapped, Handles)
    compare(balancer.backward(losses), net, net(x), shared)
    return type(mode) is Tapped


def seen(net, balancer, counts):
    return "".join(
        "w" if live(net, balancer, batch(count, seed)) else "-" for seed, count in enumerate(counts)
    )


def test_forwards_that_were_all_rows_are_no_longer_watched():
    net = Net().double()
    assert seen(net, mf.Balancer(net, mf.mgda(), "trunk.*"), [MANY] * 6) == "www---"
    assert seen(net, mf.Balancer(net, mf.mgda(), "trunk.*"), [FEW] * 6) == "wwwwww"
    layers = mf.Balancer(net, mf.mgda(), "trunk.*", engine="layerwise")
    assert seen(net, layers, [MANY] * 6) == "wwwwww"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # another kind is met without being watched, and the next ones are watched
        ([MANY] * 4 + [FEW] * 2 + [MANY] * 5, "www--wwww--"),
        # such as the last, smaller batch of an epoch
        ([MANY] * 4 + [30] + [MANY] * 4, "www--www-"),
        ([MANY, FEW] * 5, "w" * 10),
        ([MANY, 30] * 5, "www-------"),  # both all rows
        (range(30, 40), "www-www-ww"),  # never the same twice
    ],
)
def test_other_kinds_of_forwards(counts, expected):
    net = Net().double()
    assert seen(net, mf.Balancer(net, mf.mgda(), "trunk.*"), counts) == expected


def idle_balancer(net, shared="trunk.*", **options):
    balancer = mf.Balancer(net, mf.mgda(), shared, **options)
    assert seen(net, balancer, [MANY] * 4) == "www-"
    return balancer


def test_a_network_that_changes():
    net = Net().double()
    balancer, x = idle_balancer(net), batch(MANY, 9)
    net.trunk.append(nn.Tanh())
    assert not live(net, balancer, x)
    assert live(net, balancer, x)  # it was of another kind
    net.trunk[0].requires_grad_(False)
    assert live(net, balancer, x)
    assert live(net, balancer, x)
    net.trunk[0].requires_grad_(True)
    net.trunk[2].weight = net.trunk[0].weight  # tied
    for _ in range(STREAK + 2):
        live(net, balancer, x)
    net.heads[0] = net.heads[1]  # a head of two losses
    for _ in range(STREAK + 2):
        live(net, balancer, x)


def test_hooks_and_checkpoints_that_come_later():
    net = Net().double()
    balancer, x = idle_balancer(net), batch(MANY, 9)
    hooks = [
        net.trunk[2].register_full_backward_hook(lambda module, up, down: (2 * up[0],)),
        net.trunk[1].register_forward_hook(
            lambda _, x, out: [out.register_hook(lambda g: 3 * g)][1:] or None
        ),
    ]
    for _ in range(2):
        live(net, balancer, x)
    for hook in hooks:
        hook.remove()
    live(net, balancer, x)
    net.saving = True
    for _ in range(2):
        live(net, balancer, x)


def test_losses_as_a_vector_and_no_block():
    net = Net().double()
    balancer, x = idle_balancer(net), batch(MANY, 9)
    for _ in range(3):
        net.zero_grad()
        with balancer:
            losses = torch.stack(net(x))
        compare(balancer.backward(losses), net, net(x), "trunk")
    assert type(balancer._seen.done[0]) is Tapped  # a vector is of another kind
    net.zero_grad()
    compare(balancer.backward(net(x)), net, net(x), "trunk")


def test_what_fails_or_only_measures_leaves_no_trace():
    net = Net().double()
    balancer, x = idle_balancer(net), batch(FEW)
    before = balancer.state_dict()
    with balancer:
        losses = net(x)
    balancer.measure(losses)
    with pytest.raises(ValueError, match="NaN"):
        balancer.backward(tuple(loss * torch.nan for loss in losses))
    assert str(balancer.state_dict()) == str(before)
    balancer.weigh(losses)
    assert str(balancer.state_dict()) != str(before)


def test_resuming_is_bit_exact_where_kinds_change(tmp_path):
    counts = [MANY] * 4 + [FEW] * 2 + [MANY] * 5
    net = Net().float()
    twin, balancer = copy.deepcopy(net), mf.Balancer(net, mf.mgda(), "trunk.*")

    def step(net, balancer, seed):
        net.zero_grad()
        with balancer:
            losses = net(batch(counts[seed], seed).float())
        balancer.backward(losses)
        with torch.no_grad():
            for leaf in net.parameters():
                leaf.sub_(0.1 * leaf.grad)

    for seed in range(len(counts)):
        other = mf.Balancer(twin, mf.mgda(), "trunk.*")  # resumes at every step
        torch.save(balancer.state_dict(), tmp_path / "state")
        other.load_state_dict(torch.load(tmp_path / "state"))
        step(net, balancer, seed)
        step(twin, other, seed)
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
    state = balancer.state_dict()
    with pytest.raises(ValueError, match="state_dict: expected what"):
        balancer.load_state_dict(state | {"idle": None})
    del state["idle"]  # of an earlier version
    balancer.load_state_dict(state)
    assert balancer.state_dict()["idle"] == {"kinds": [], "streak": 0}


def pure(net, options, losses_fn=None):
    def losses(params, batch):
        return functional_call(net, params, (batch,))

    step = mf.balance(losses_fn or losses, mf.mgda(), mf.jacobian("trunk.*", **options))
    return step, step.init(mf.parameters(net), batch(MANY).to(net.heads[0].bias))


def watching(monkeypatch):
    """A list that grows by one with every forward that is watched."""
    made = []

    class Counted(Tapped):
        def __init__(self, *given, **more):
            made.append(self)
            super().__init__(*given, **more)

    monkeypatch.setattr("mtlfunc.gradients.linearize.Tapped", Counted)
    return made


def same(got, expected):
    for one, other in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert torch.equal(one, other)


def answer(step, state, net, x):
    grads, _, info = step.update(mf.parameters(net), x, state)
    return grads, info.gramian, info.weights, info.losses


@pytest.mark.parametrize("recorded", [True, False])
def test_the_pure_step_gives_the_same_bits(recorded, monkeypatch):
    made, net = watching(monkeypatch), Net().float()
    (step, state), (rows, _) = pure(net, {}), pure(net, {"engine": "rows"})
    counts = [MANY] * 4 + [FEW] + [MANY] + [30] * 4
    for seed, count in enumerate(counts):
        fresh, _ = pure(net, {})
        x, before = batch(count, seed).float(), len(made)
        with torch.set_grad_enabled(recorded):
            got = answer(step, state, net, x)
            watched = len(made) - before
            same(got, answer(fresh, state, net, x))
            if count != FEW:
                same(got, answer(rows, state, net, x))
        # shapes are known before the forward: those of few samples are watched at once
        assert watched == (seed < STREAK or seed == 4 or 6 <= seed < 6 + STREAK)


def test_a_pure_step_of_another_structure_on_the_same_shapes(monkeypatch):
    made, net, deep = watching(monkeypatch), Net().double(), [False]

    def losses(params, x):
        z = functional_call(net.trunk, {k[6:]: v for k, v in params.items() if "trunk" in k}, x)
        if deep[0]:
            z = (z + 0.1).tanh() @ params["trunk.2.weight"]
        heads = [(params[f"heads.{t}.weight"], params[f"heads.{t}.bias"]) for t in range(3)]
        return tuple((z @ w.T + b).square().mean() for w, b in heads)

    (step, state), (rows, _) = pure(net, {}, losses), pure(net, {"engine": "rows"}, losses)

    def one(x):
        before = len(made)
        for got, expected in zip(
            answer(step, state, net, x), answer(rows, state, net, x), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        return len(made) > before

    x = batch(MANY)
    assert [one(x) for _ in range(5)] == [True] * STREAK + [False] * 2
    deep[0] = True
    assert [one(x) for _ in range(3)] == [False, True, True]


def test_transforms_after_plain_steps():
    """vmap, vmap of vmap and derivatives of a step that has stopped watching."""
    net = Net().double()
    step, state = pure(net, {})
    params = mf.parameters(net)
    xs = torch.stack([torch.stack([batch(MANY, 2 * i + j) for j in range(2)]) for i in range(2)])
    for _ in range(STREAK + 1):
        step.update(params, xs[0, 0], state)

    def gramian(x):
        return step.update(params, x, state)[2].gramian

    loop = torch.stack([torch.stack([gramian(x) for x in row]) for row in xs])
    torch.testing.assert_close(vmap(vmap(gramian))(xs), loop, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        vmap(grad(lambda x: gramian(x).sum()))(xs[0]),
        torch.stack([grad(lambda x: gramian(x).sum())(x) for x in xs[0]]),
        rtol=1e-8,
        atol=1e-12,
    )
    x = xs[0, 0].clone().requires_grad_()
    (plain,) = torch.autograd.grad(gramian(x).sum(), x)
    torch.testing.assert_close(grad(lambda x: gramian(x).sum())(xs[0, 0]), plain)


def test_what_tells_batches_apart():
    assert idle.shapes_of({}, [1.0, None, object()]) == idle.shapes_of({}, [2.0, None, object()])
    assert idle.shapes_of({}, [1, "a"]) != idle.shapes_of({}, [2, "a"])
    assert idle.shapes_of({}, batch(2)) != idle.shapes_of({}, batch(2).float())
