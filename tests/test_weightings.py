"""Tasks that are weightings of samples: exact against a literal loop, one backward pass a task."""

import os
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

import mtlfunc as mf
from mtlfunc.core import VERSION
from mtlfunc.gradients import operator as engine
from mtlfunc.gradients.by_samples import BySamples
from mtlfunc.gradients.layerwise import formulas, plan
from tests.support.every import every, in_turn
from tests.support.oracles import near, rows_of

RTOL = 1e-10  # sums of a few hundred float64 numbers, over the largest of what is compared


class Block(nn.Module):
    def __init__(self, width, fused):
        super().__init__()
        self.norm, self.fused = nn.LayerNorm(width), fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            hidden = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
            y = (q @ k.mT / 4).masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.back(F.gelu(self.wide(x)))


class GPT(nn.Module):
    """Its table of positions has no axis for samples."""

    def __init__(self, width=24, length=8, *, tied=False, fused=False, rank=0):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(Block(width, fused), Block(width, fused))
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        if rank:
            self.requires_grad_(False)
            for block in self.blocks:
                block.qkv, block.wide = Adapter(block.qkv, rank), Adapter(block.wide, rank)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.blocks(x))


class Adapter(nn.Module):
    """LoRA, whose second factor is zero at first."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def likelihoods(net):
    def losses(params, batch):
        scores = functional_call(net, params, (batch["x"][:, :-1],))
        return -scores.log_softmax(-1).gather(-1, batch["x"][:, 1:, None]).sum((1, 2))

    return losses


def errors(net):
    return lambda params, batch: functional_call(net, params, (batch["x"],)).square().sum(1)


def gpt(**given):
    net = GPT(**given)
    return net, likelihoods(net), torch.randint(11, (4, 9))  # 8 positions, a multiple of 4


def dense():
    net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, 5))
    return net, errors(net), torch.randn(7, 6)


def convolutions():
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return net, errors(net), torch.randn(5, 2, 8, 8)


def parts():
    net, losses, x = dense()

    def both(params, batch):
        one = losses(params, batch)
        return torch.stack([one, one.sin()], 1)

    return net, both, x


class Rolled(nn.Module):
    """Whose samples are not proved apart by the graph."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.last(self.first(x).roll(3, -1).tanh())


def rolled():
    net = Rolled()
    return net, errors(net), torch.randn(7, 6)


CASES = {
    "dense": dense, "convolutions": convolutions, "two parts": parts, "rolled": rolled,
    "gpt": gpt, "gpt, fused attention": lambda: gpt(fused=True),
    "gpt, tied": lambda: gpt(tied=True), "gpt, adapters": lambda: gpt(rank=2),
}  # fmt: skip


def make(name, tasks, seed=0):
    torch.manual_seed(seed)
    net, losses, x = CASES[name]()
    params, batch = mf.parameters(net.double()), {"x": x.double() if x.is_floating_point() else x}
    shape = losses(params, batch).shape
    return net, params, losses, batch | {"A": torch.randn(tasks, *shape, dtype=torch.float64)}


def loop(losses_fn, params, batch):
    """Losses [task] and rows [task, width], one backward pass a task."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    entries = losses_fn(leaves, batch)
    losses = [(row * entries).sum() for row in batch["A"]]
    return torch.stack(losses).detach(), rows_of(losses, leaves.values())


def close(found, wanted, what="", scale=None):
    scale = float((wanted if scale is None else scale).abs().max())
    near(found, wanted, 0, RTOL * scale, msg=lambda text: f"{what}: {text}")


def tree_close(found, wanted, what=""):
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        close(found[name], leaf, f"{what} {name}")


@pytest.fixture(autouse=True)
def small_networks_stand_for_large_ones(monkeypatch):
    monkeypatch.setattr(plan, "GROUP", 0.0)
    monkeypatch.setattr(plan, "BY_SAMPLE", 1.0)


@pytest.fixture
def passes(monkeypatch):
    """Whether each linearisation took one pass for all tasks."""
    seen, real = [], engine.TaskJacobian._opened

    def spy(jacobian, *given):
        found = real(jacobian, *given)
        if jacobian.weightings:
            seen.append(isinstance(found, BySamples))
        return found

    monkeypatch.setattr(engine.TaskJacobian, "_opened", spy)
    return seen


def tasks_of(losses_fn):
    """The same tasks as separate losses, which no weighting knows."""
    return lambda params, batch: tuple((row * losses_fn(params, batch)).sum() for row in batch["A"])


def step_of(losses, rule, **options):
    return mf.balance(losses, rule, mf.jacobian(weightings=lambda batch: batch["A"], **options))


@pytest.mark.parametrize("tasks", [2, 5, 20])
@pytest.mark.parametrize("name", CASES)
def test_gramian_equals_a_loop(name, tasks, passes):
    _, params, losses, batch = make(name, tasks)
    wanted, jacobian = loop(losses, params, batch)
    for way in ("auto", "layerwise", "rows"):
        found, gramian = mf.task_gramian(losses, params, batch, weightings=batch["A"], engine=way)
        close(found, wanted, f"{name} {way}")
        close(gramian, jacobian @ jacobian.T, f"{name} {way}")
    assert passes[1:] == [True, False]


def test_a_mask_edits_the_rows_of_weightings(passes):
    _, params, losses, batch = make("gpt, tied", 6)
    mask = mf.graddrop()
    step = step_of(losses, mf.mgda(), mask=mask)
    other = mf.balance(tasks_of(losses), mf.mgda(), mf.jacobian(mask=mask, engine="rows"))
    grads, _, info = step.update(params, batch, step.init(params, batch))
    wanted, _, told = other.update(params, batch, other.init(params, batch))
    assert passes == [True]
    close(info.gramian, told.gramian)
    tree_close(grads, wanted)


@pytest.mark.parametrize(
    ("name", "rule"), in_turn(["dense", "gpt", "convolutions"], [mf.mean, mf.mgda, mf.upgrad], 1)
)
@every("rule")
def test_derivatives_of_a_step(name, rule, passes):
    """First and second order, in parameters and weightings, against a step on as many losses."""
    _, params, losses, batch = make(name, 3)
    ours = step_of(losses, rule(), engine="layerwise")
    other = mf.balance(
        lambda params, batch: batch["A"] @ losses(params, batch), rule(), mf.jacobian(engine="rows")
    )
    state = ours.init(params, batch)
    along = {leaf: torch.randn_like(x) for leaf, x in params.items()}

    def outer(step):
        def f(params, matrix):
            grads, _, info = step.update(params, batch | {"A": matrix}, state)
            return sum((x.sin() * x).sum() for x in grads.values()) + info.gramian.sum().tanh()

        return f

    def first(step):
        return grad(outer(step), (0, 1))(params, batch["A"])

    def second(step):
        return jvp(lambda p: grad(outer(step))(p, batch["A"]), (params,), (along,))[1]

    (found, in_matrix), (wanted, wanted_matrix) = first(ours), first(other)
    tree_close(found, wanted, name)
    close(in_matrix, wanted_matrix, name)
    tree_close(second(ours), second(other), name)
    assert all(passes)


def test_derivatives_where_leaves_require_grad():
    _, params, losses, batch = make("gpt", 3)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    step = step_of(losses, mf.mgda(), engine="layerwise")
    state = step.init(params, batch)

    def square(params):
        grads = step.update(params, batch, state)[0]
        return torch.stack([x.square().sum() for x in grads.values()]).sum()

    found = torch.autograd.grad(square(leaves), list(leaves.values()))
    tree_close(dict(zip(leaves, found, strict=True)), grad(square)(params))


@pytest.mark.parametrize("name", ["dense", "gpt", "gpt, tied", "convolutions", "rolled"])
def test_vmapped_equals_its_loop(name, passes):
    _, params, losses, batch = make(name, 3)
    many = {leaf: torch.stack([x, 1.5 * x, x + 0.1]) for leaf, x in params.items()}
    matrices = torch.randn(2, *batch["A"].shape, dtype=torch.float64)
    step = step_of(losses, mf.mgda(), engine="layerwise")
    state = step.init(params, batch)

    def update(params, matrix):
        grads, _, info = step.update(params, batch | {"A": matrix}, state)
        return grads, info.gramian

    grads, gramians = vmap(vmap(update, (None, 0)), (0, None))(many, matrices)
    assert passes == [True]
    for i, j in product(range(3), range(2)):
        wanted, gramian = update({leaf: x[i] for leaf, x in many.items()}, matrices[j])
        close(gramians[i, j], gramian, name)
        tree_close({leaf: x[i, j] for leaf, x in grads.items()}, wanted, name)


@pytest.mark.skipif(VERSION < (2, 10) or "MTLFUNC_TYPES" in os.environ, reason="union types")
def test_compiled_equals_eager():
    _, params, losses, batch = make("dense", 3)
    step = step_of(losses, mf.mgda())
    state = step.init(params, batch)
    torch.compiler.reset()
    compiled = torch.compile(step.update, backend="eager", fullgraph=True)
    tree_close(compiled(params, batch, state)[0], step.update(params, batch, state)[0])


@pytest.mark.parametrize("name", CASES)
def test_live_equals_pure(name, passes):
    net, _, losses, batch = make(name, 6)
    rule = mf.upgrad()
    balancer = mf.Balancer(net, rule, mf.jacobian(engine="layerwise"))
    step = step_of(losses, rule, engine="layerwise")
    state = step.init(mf.parameters(net), batch)
    for count in (len(batch["x"]), 3, len(batch["x"])):
        part = {"x": batch["x"][:count], "A": batch["A"][:, :count]}
        leaves = {n: leaf for n, leaf in net.named_parameters() if leaf.requires_grad}
        entries = losses(leaves, part)
        weights, _ = balancer.weigh(entries, weightings=part["A"])
        measured = balancer.measure(entries, weightings=part["A"])
        info = balancer.backward(entries, weightings=part["A"])
        grads, state, told = step.update(mf.parameters(net), part, state)
        for found in (info, measured):
            close(found.gramian, told.gramian, name)
            close(found.losses, told.losses, name)
        _, jacobian = loop(losses, mf.parameters(net), part)
        # where there are more tasks than samples their direction is determined, not the weights
        close(weights @ jacobian, info.weights @ jacobian, name, jacobian)
        flat = torch.cat([leaf.grad.flatten() for leaf in leaves.values()])
        close(flat, info.weights @ jacobian, name, jacobian)
        flat = torch.cat([grads[leaf].flatten() for leaf in leaves])
        close(flat, told.weights @ jacobian, name, jacobian)
        with torch.no_grad():
            for leaf in leaves.values():
                leaf.sub_(0.01 * leaf.grad / leaf.grad.norm().clamp_min(1e-3))
                leaf.grad = None
    assert all(passes[4:])  # the first block does not record biases


def test_explanation_says_form_and_cost():
    net, params, losses, batch = make("gpt", 20)
    told = mf.explain_gramian(losses, params, batch, weightings=batch["A"])
    assert {layer.form for layer in told.layers} == {"mixed"}  # no wider products than float64's
    net, batch["A"] = net.float(), batch["A"].float()
    params = mf.parameters(net)
    told = mf.explain_gramian(losses, params, batch, weightings=batch["A"])
    assert (told.rows, {layer.form for layer in told.layers} & {"rows"}) == (20, set())
    assert told.passes.startswith("1 backward pass(es) for all tasks")
    assert all(layer.gflop[layer.form] == min(layer.gflop.values()) for layer in told.layers)
    few = mf.explain_gramian(losses, params, batch, weightings=batch["A"][:1])
    assert few.passes == "one backward pass a task"


def test_mixed_rows_are_made_without_those_of_samples(monkeypatch):
    """Of a dense layer with few positions, and of a table, whose rows have all its entries."""

    def refuse(*_):
        raise AssertionError("rows of samples")

    monkeypatch.setattr(formulas.Deltas, "_some_rows_of", refuse)
    shapes = {"table": (50, 16), "w": (7, 16)}
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    index, weights = torch.randint(50, (6, 2)), torch.randn(3, 6, 2, dtype=torch.float64)

    def losses(params, index):  # [sample, part]
        x = F.embedding(index, params["table"]) @ params["w"].mT
        return torch.stack([x.sin().sum((1, 2)), x.square().sum((1, 2))], 1)

    def tasks(params, index):
        return (weights * losses(params, index)).sum((1, 2))

    _, gramian = mf.task_gramian(losses, params, index, weightings=weights, engine="layerwise")
    close(gramian, mf.task_gramian(tasks, params, index, engine="rows")[1])


@pytest.mark.parametrize("fused", [False, True])
def test_per_sample_gramian_with_a_table_of_positions(fused):
    """8 positions, which is a multiple of the 4 samples."""
    _, params, losses, batch = make("gpt, fused attention" if fused else "gpt", 2)
    _, jacobian = loop(losses, params, batch | {"A": torch.eye(4, dtype=torch.float64)})
    close(mf.sample_gramian(losses, params, batch)[1], jacobian @ jacobian.T)
    close(mf.sample_norms(losses, params, batch)[1], jacobian.norm(dim=1))
    told = mf.explain_gramian(losses, params, batch, samples=True)
    assert {layer.name: layer.form for layer in told.layers}["places.weight"] != "rows"


def test_refusals():
    _, params, losses, batch = make("dense", 3)
    matrix = batch["A"]

    def gramian(matrix, f=losses, **given):
        return mf.task_gramian(f, params, batch, weightings=matrix, **given)

    for bad, error, words in (
        (matrix[:, :5], ValueError, r"expected \[task, 7\].*got \[3, 5\]"),
        (matrix[0], ValueError, r"expected \[task, sample\]"),
        (matrix[:, :0], ValueError, "that has none takes one, of weight 0"),
        (matrix > 0, TypeError, r"a mask becomes one by \.to"),
        (matrix.to_sparse(), TypeError, r"a sparse tensor by \.to_dense\(\)"),
        (matrix.float(), ValueError, r"convert them by weightings\.to\(losses\)"),
        (torch.full_like(matrix, torch.nan), ValueError, "weightings: NaN"),
    ):
        with pytest.raises(error, match=words):
            gramian(bad)
    for form in (torch.mean, list):
        with pytest.raises(ValueError, match="weightings= make tasks of the losses of samples"):
            gramian(matrix, lambda p, b, form=form: form(losses(p, b)))
    with pytest.raises(ValueError, match="multiply the mixture into them"):
        mf.jacobian(weightings=lambda b: b["A"], mix=mf.subset(2))
    step = step_of(losses, mf.mgda())
    state = step.init(params, batch)
    with pytest.raises(ValueError, match="3 tasks at init, 2 at this step"):
        step.update(params, batch | {"A": matrix[:2]}, state)


def test_refusals_of_a_balancer():
    net, _, losses, batch = make("dense", 3)
    entries, matrix = losses(dict(net.named_parameters()), batch), batch["A"]
    balancer = mf.Balancer(net, mf.mgda())
    with pytest.raises(ValueError, match=r"go with mtlfunc\.jacobian"):
        mf.Balancer(net, mf.mean(), None).backward(entries, weightings=matrix)
    own = mf.Balancer(net, mf.mgda(), mf.jacobian(weightings=lambda b: b))
    with pytest.raises(ValueError, match="leave it out of the probe"):
        own.backward(entries, weightings=matrix)
    info = balancer.backward(entries, weightings=matrix.requires_grad_(), retain_graph=True)
    assert not any(x.requires_grad for x in (info.losses, info.weights, info.gramian))
    with pytest.raises(ValueError, match="3 tasks at the first step, 2 at this step"):
        balancer.backward(entries, weightings=matrix[:2])


def test_where_samples_mix_auto_takes_one_pass_a_task(passes, monkeypatch):
    split, real = [], engine.split
    monkeypatch.setattr(engine, "split", lambda *a, **k: split.append(0) or real(*a, **k))
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(256, track_running_stats=False)
    net = nn.Sequential(nn.Linear(64, 256), norm, nn.ReLU(), nn.Linear(256, 1)).double()
    losses, x, matrix = errors(net), torch.randn(32, 64).double(), torch.randn(9, 32).double()
    batch = {"x": x, "A": matrix}
    _, jacobian = loop(losses, mf.parameters(net), batch)

    def gramian(a, **options):
        return mf.task_gramian(losses, mf.parameters(net), batch, weightings=a, **options)[1]

    for _ in range(2):
        close(gramian(matrix), jacobian @ jacobian.T)
    assert (len(split), passes) == (0, [False, False])
    close(vmap(gramian)(torch.stack([matrix, 2 * matrix]))[1], 4 * jacobian @ jacobian.T)
    eye = torch.eye(len(x), dtype=torch.float64)
    _, samples = loop(losses, mf.parameters(net), {"x": x, "A": eye})
    slope = grad(lambda a: gramian(a, engine="layerwise").sum())(matrix)
    close(slope, 2 * (matrix.sum(0) @ samples @ samples.T).expand(9, -1))


def test_a_leaf_in_no_known_call_and_half_of_one_in_some(passes):
    _, params, losses, batch = make("dense", 4)
    params |= {"odd": torch.ones(7, dtype=torch.float64), "cut": torch.eye(6, dtype=torch.float64)}
    params |= {"void": torch.ones(0, 6, dtype=torch.float64)}

    def shifted(params, batch):
        half = batch["x"] @ params["cut"].chunk(2)[1].mT
        none = batch["x"] @ params["void"].mT @ params["void"]
        return losses(params, batch) * params["odd"].cumsum(0) + (half + none[:, :3]).sin().sum(1)

    _, jacobian = loop(shifted, params, batch)
    step = step_of(shifted, mf.mean(), engine="layerwise")
    grads, _, info = step.update(params, batch, step.init(params, batch))
    assert passes == [True]
    close(info.gramian, jacobian @ jacobian.T)
    close(torch.cat([grads[name].flatten() for name in params]), jacobian.mean(0))
    kept = mf.task_jacobian(shifted, params, batch, weightings=batch["A"], engine="layerwise")
    close(torch.cat([row.flatten(1) for row in kept.rows().values()], 1), jacobian)


def test_centred_weightings_keep_their_digits():
    """Differences of samples whose gradients are nearly equal, in float32 against float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 200), nn.Tanh(), nn.Linear(200, 4))
    x = 1 + 0.1 * torch.randn(16, 20)
    matrix = torch.randn(6, 16)
    matrix = matrix - matrix.mean(1, keepdim=True)
    losses, params = errors(net), mf.parameters(net)
    exact = {name: leaf.double() for name, leaf in params.items()}
    _, jacobian = loop(losses, exact, {"x": x.double(), "A": matrix.double()})
    wanted = jacobian @ jacobian.T
    # rounding of the deltas and inputs, 2⁻²⁴ each, over the Gramian of the samples themselves
    ones = {"x": x.double(), "A": torch.ones(1, 16, dtype=torch.float64) / 16}
    common = float(loop(losses, exact, ones)[1].square().sum())
    slack = 1e-5 * (common + float(wanted.abs().max()))
    for way in ("layerwise", "rows"):
        found = mf.task_gramian(losses, params, {"x": x}, weightings=matrix, engine=way)[1]
        assert (found.double() - wanted).abs().max() < slack, way
