"""Random stock loops, drawn by a seed, beside plain ones of one backward pass a task."""

# pyright: reportArgumentType=false

import random
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtlfunc as mf
from mtlfunc.gradients.layerwise import plan
from tests.support.every import few
from tests.support.oracles import near, rows_by_name
from tests.support.programs import draws

WIDTH, SAMPLES = 6, 5
RULES = {
    "mgda": mf.mgda, "upgrad": mf.upgrad, "cagrad": lambda: mf.cagrad(0.4),
    "aligned_mtl": mf.aligned_mtl, "imtl_g": mf.imtl_g, "mean": mf.mean,
    "momentum": lambda: mf.momentum(mf.mgda(), 0.5),
}  # fmt: skip
HOOKS = {
    "": None, "a factor": lambda grad: 3 * grad, "a clip": lambda grad: grad.clamp(-0.01, 0.01),
    "a turn": lambda grad: grad.flip(0), "a copy": lambda grad: grad.clone(),
}  # fmt: skip


class Scale(nn.Module):
    """A parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        return x * self.size


class Mix(nn.Module):
    """A product of activations, and one weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.tanh(self.line(x)) * F.linear(x, self.line.weight)


class Steps(nn.Module):
    """A recurrent layer over the features."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(1, WIDTH, batch_first=True)

    def forward(self, x):
        return self.cell(x[..., None])[0][:, -1]


class Waves(nn.Module):
    """A convolution over the features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x[:, None]).mean(1)


LAYERS = [
    lambda: nn.Linear(WIDTH, WIDTH), lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.LayerNorm(WIDTH), lambda: nn.BatchNorm1d(WIDTH),
    lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH),
    lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), lambda: nn.PReLU(), Scale, Mix,
    Steps, Waves,
]  # fmt: skip
BENDS = [torch.tanh, F.gelu, F.silu, torch.sigmoid, torch.sin, lambda x: x]


class Net(nn.Module):
    """A trunk of drawn layers, some skipped over, some checkpointed; one or two heads read it."""

    def __init__(self, draw, tasks):
        super().__init__()
        self.hooks = draw.choice([["", ""]] * 3 + [[draw.choice(list(HOOKS)) for _ in range(2)]])
        self.hooked = draw.randint(1, 3)
        # one with a matrix, so that no gradient is zero
        some = [draw.choice(LAYERS)() for _ in range(draw.randint(1, 3))]
        made = [nn.Linear(WIDTH, WIDTH), *some]
        if draw.random() < 0.2:
            made.append(made[0])  # tied
        self.trunk = nn.ModuleList(made)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(tasks))
        self.bends = [draw.choice(BENDS) for _ in made]
        self.skips = [draw.random() < 0.3 for _ in made]
        self.saves = [draw.random() < 0.1 and not isinstance(x, nn.BatchNorm1d) for x in made]

    def layer(self, i, x):
        part = self.trunk[i]
        if isinstance(part, nn.Bilinear):
            return part(x, x)
        if isinstance(part, nn.MultiheadAttention):
            return part(x[None], x[None], x[None])[0][0]
        return part(x)

    def forward(self, x):
        each = zip(self.bends, self.skips, self.saves, strict=True)
        for i, (bend, skip, saved) in enumerate(each):
            y = checkpoint(self.layer, i, x, use_reentrant=False) if saved else self.layer(i, x)
            x = bend(y) + x if skip else bend(y)
            if i + 1 == self.hooked and HOOKS[self.hooks[0]]:
                x.register_hook(HOOKS[self.hooks[0]])
        if HOOKS[self.hooks[1]]:
            edit = HOOKS[self.hooks[1]]

            def edited(given, _, edit=edit):
                return tuple(g if g is None else edit(g) for g in given)

            x.grad_fn.register_hook(edited)
        return [head(x) for head in self.heads]


def losses_of(kind, net, batch):
    """One per task: squared errors, absolute, cross-entropy; the first may have weight decay."""
    x, y = batch
    found = []
    for t, out in enumerate(net(x)):
        form = kind[t]
        if form == "square":
            one = (out - y).square().mean()
        elif form == "entropy":
            one = F.cross_entropy(out, y.argmax(-1))
        else:
            one = F.smooth_l1_loss(out, y) + 0.1 * out.square().sum()
        found.append(one)
    roots = kind[-2]
    if roots == "a sum":  # of all, beside them
        found[-1] = sum(found)
    elif roots == "one twice":
        found[-1] = found[0]
    elif roots == "one of another":
        found[-1] = found[0].tanh() - found[-1]
    if kind[-1] == "decay":
        found[0] = found[0] + 0.01 * sum(p.square().sum() for p in net.trunk.parameters())
    return found


def plain(net, losses, shared, present):
    """{name: [task, *shape]}, rows by one pass per task, zeros of absent tasks; and their G."""
    leaves = {n: p for n, p in net.named_parameters() if p.requires_grad}
    matrix = rows_by_name(losses, leaves)
    if present is not None:
        matrix = {n: x * present.view(-1, *[1] * (x.ndim - 1)) for n, x in matrix.items()}
    flat = torch.cat([matrix[n].flatten(1) for n in leaves if n.startswith(shared)], 1)
    return matrix, flat @ flat.mT


FORMS = {
    "list": list, "tuple": tuple, "stack": torch.stack,
    "dict": lambda x: {f"t{i}": one for i, one in enumerate(x)},
}  # fmt: skip


def check_gradients(net, matrix, before, weights, told):
    """`.grad` is what it was `before` and the tasks' rows, with weights (trunk, heads)."""
    for n, row in matrix.items():
        wanted = torch.tensordot(weights[not n.startswith("trunk")], row, 1)
        wanted = wanted if before[n] is None else wanted + before[n]
        found = net.get_parameter(n).grad
        assert found is not None or not row.any(), told
        if found is not None:
            close(found, wanted, f"{told}, {n}", 1e-9)


def program(seed, monkeypatch):
    """One loop of a few steps, in both ways; how many steps."""
    draw, points = random.Random(seed), draws(seed)
    tasks = draw.randint(2, 5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(draw, tasks).double()
    if draw.random() < 0.5:  # small networks stand for large ones
        monkeypatch.setattr(plan, "GROUP", 0.0)
        monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    if draw.random() < 0.3:
        next(p for n, p in net.named_parameters() if n.endswith("bias")).requires_grad_(False)
    kind = [draw.choice(["square", "entropy", "smooth"]) for _ in range(tasks)]
    kind.append(draw.choice([""] * 4 + ["a sum", "one twice", "one of another"]))
    kind.append(draw.choice(["", "decay"]))
    shape, name = draw.choice(["list", "dict", "tuple", "stack"]), draw.choice(list(RULES))
    heads, reduction = draw.choice(["plain", "own", "weighted"]), draw.choice(["mean", "sum"])
    options = {
        "heads": heads,
        "engine": draw.choice(["auto", "auto", "rows", "layerwise"]),
        "chunk_size": draw.choice([None, None, 1, 2]),
    }
    absent = draw.random() < 0.2
    accumulate = draw.random() < 0.2
    told = f"seed {seed}: {name}, {tasks} tasks, {shape}, {options}, {reduction}, {kind}"
    told = f"{told}, {net.hooks}"
    probe = mf.jacobian("trunk.*", **options)
    balancer = mf.Balancer(net, RULES[name](), probe, reduction=reduction)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    steps = draw.choice([1, 2, 3, 11])
    for step in range(steps):
        batch = points(SAMPLES, WIDTH), points(SAMPLES, 2)
        twin = deepcopy(net)
        before = {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
        reference = losses_of(kind, twin, batch)
        present = None
        if absent and step:
            present = torch.tensor([t != step % tasks for t in range(tasks)])
        matrix, gramian = plain(twin, reference, "trunk", present)
        given = FORMS[shape](losses_of(kind, net, batch))
        if step and draw.random() < 0.2:  # as after an interruption
            saved = deepcopy(balancer.state_dict())
            balancer = mf.Balancer(net, RULES[name](), probe, reduction=reduction)
            balancer.load_state_dict(saved)
        if draw.random() < 0.2:
            weights, asked = balancer.weigh(given, present=present)
            close(asked.gramian, gramian, told, 1e-9)
            assert torch.equal(weights, asked.weights), told
            del weights, asked
        info = balancer.backward(given, present=present)
        close(info.gramian, gramian, told, 1e-9)
        sound = kind[-2] == "" and name not in {"mean", "momentum"}  # one answer, without a state
        if sound and present is None:
            factor = tasks if reduction == "sum" else 1
            close(info.weights, factor * mf.weights(RULES[name](), gramian), told, 1e-5)
        count = tasks if present is None else int(present.sum())
        factor = count if reduction == "sum" else 1
        even = torch.full_like(info.weights, factor * (1.0 if heads == "own" else 1 / count))
        own = info.weights if heads == "weighted" else even
        check_gradients(net, matrix, before, (info.weights, own), f"{told}, step {step}")
        for (n, mine), theirs in zip(net.named_buffers(), twin.buffers(), strict=True):
            assert torch.equal(mine, theirs), f"{told}, {n}: the forward ran twice"
        if not accumulate:
            optimizer.step()
            optimizer.zero_grad()
    return steps


def close(found, wanted, told, tolerance):
    scale = max(1e-3, float(wanted.detach().abs().max()))
    near(found / scale, wanted / scale, 0, tolerance, msg=lambda text: f"{told}: {text}")


PARTS = [range(50 * part, 50 * part + 50) for part in range(20)]
PARTS = [range(16), range(16, 50), *PARTS[1:]]


@pytest.mark.parametrize("seeds", few(PARTS, lambda x: 0 in x), ids=lambda x: f"{x.start}")
def test_a_stock_loop_equals_the_plain_one(seeds, monkeypatch):
    for seed in seeds:
        with monkeypatch.context() as patch:
            assert program(seed, patch)
