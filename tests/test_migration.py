"""The rows of docs/from/torchjd.md and docs/from/libmtl.md, read from the pages: theirs and ours.

LibMTL owns its loop and is no dependency. Its formulas are written out here from the files of
LibMTL/weighting at commit 4336804; where they are TorchJD's, TorchJD answers.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import importlib
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from tests.support import ROOT
from tests.support.families import REGULAR, jacobian

A = pytest.importorskip("torchjd.aggregation")
S = pytest.importorskip("torchjd.scalarization")
F64, P, LR = torch.float64, 6, 0.025
SCOPE: dict[str, Any] = vars(A) | vars(S) | {
    "mf": mf, "T": 3, "f": 0, "n": 1, "k": 1, "c": 0.4, "alpha": 2.0, "mu": 0.6, "penalty": 0.5,
    "theta": 5.0, "lr": LR, "epoch": 1, "first": 1, "then": 1, "torch": torch,
    "w": torch.tensor([0.5, 0.3, 0.2], dtype=F64), "rule": mf.aligned_mtl(),
    "weighting": A.AlignedMTLWeighting(),
}  # fmt: skip
PURE = (ROOT / "docs/how-to/pure-recipes.md").read_text(encoding="utf-8")
exec(
    PURE[PURE.index("def trimmed_mean") : PURE.index("balance = mf.balance(losses, mf.mean")], SCOPE
)
# two tasks where a random order decides, or one is exact; Krum needs more than three
TASKS = {"PCGrad": 2, "GradVac": 2, "MGDA": 2, 'mgda_gn="l2"': 2, "Krum": 7}


def drawn(seed: int, tasks: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Gradients and losses of four steps."""
    draw = torch.Generator().manual_seed(seed)
    matrices = [jacobian(REGULAR[seed % 3], tasks, seed + i, width=P + 2) for i in range(4)]
    return [(J, 0.5 + torch.rand(tasks, generator=draw, dtype=F64)) for J in matrices]


def after(losses: Tensor) -> Tensor:
    """The same losses after a step."""
    return losses * torch.tensor([0.9, 0.7, 1.1], dtype=F64)


def ours(rule, steps, probe="*", log=False, **options) -> Tensor:
    net, found = nn.Module(), []
    net.x = nn.Parameter(torch.zeros(P + 2, dtype=F64))
    balancer = mf.Balancer(net, rule, probe, **options)
    for J, L in steps:
        net.zero_grad()
        losses = L + J @ net.x
        balancer.backward(losses.log() if log else losses)
        if probe is None:
            balancer.observe(after(L))
        found.append(net.x.grad)
    return torch.stack(found)


def several(J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients in three batches."""
    return J, J + 0.1 * J.flip(1), J + 0.1


def sampled(rule, steps, probe) -> Tensor:
    balance, found = mf.balance(lambda p, J: 1 + J @ p["x"], rule, probe), []
    params = {"x": torch.zeros(P + 2, dtype=F64)}
    state = balance.init(params, several(steps[0][0]))
    for J, _ in steps:
        grads, state, _ = balance.update(params, several(J), state)
        found.append(grads["x"])
    return torch.stack(found)


def by(make, factor=1.0):
    """The directions of TorchJD's aggregator, weighting or scalarizer, times a factor."""

    def run(steps):
        peer = make().double()
        adam = torch.optim.Adam([*peer.parameters(), torch.zeros(1)], LR)
        for J, L in steps:
            if isinstance(peer, S.Scalarizer):
                x = L.clone().requires_grad_()
                peer(x).backward()
                yield factor * x.grad @ J
                if isinstance(peer, S.FAMO):
                    peer.update(after(L))
                getattr(peer, "step", adam.step)()
                adam.zero_grad()
            elif isinstance(peer, A.Aggregator):
                yield factor * peer(J)
            else:
                two = isinstance(peer, A.MoDoWeighting | A.SDMGradWeighting)
                first, second, third = several(J) if two else (J, J, J)
                yield peer(first @ second.mT) @ third

    return run


def learned(start, weights, objective, rests=0):
    """Adam learns s, one number for each task."""

    def run(steps):
        s = torch.full((3,), start, dtype=F64, requires_grad=True)
        adam = torch.optim.Adam([s], LR)
        for step, (J, L) in enumerate(steps):
            yield weights(s.detach(), J)
            if step >= rests:
                (s.grad,) = torch.autograd.grad(objective(s, J, L, steps[0][1]), s)
                adam.step()

    return run


def gradnorm(s, J, L, start):
    rate, lengths = L / start, 3 * torch.softmax(s, 0) * J.norm(dim=1)
    target = (lengths.mean() * (rate / rate.mean()) ** SCOPE["alpha"]).detach()
    return (lengths - target).abs().sum()


def stch(steps):
    for step, (J, L) in enumerate(steps):
        x, mu, nadir = L.clone().requires_grad_(), SCOPE["mu"], steps[1][1]  # the second step's
        smooth = 3 * mu * torch.logsumexp((x / nadir).log() / mu, 0)
        (x.log().sum() if step < 2 else smooth).backward()
        yield x.grad @ J


def mgda(steps, norms=lambda J: 1.0):
    """Of two, where an end of the segment is 0.999."""
    for J, _ in steps:
        g, h = rows = J / norms(J)
        weight = float((h @ (h - g)) / (g - h).square().sum())
        weight = 0.001 if weight <= 0 else 0.999 if weight >= 1 else weight
        yield torch.tensor([weight, 1 - weight], dtype=F64) @ rows


def excess(steps):
    squares, weights, first = 0.0, torch.ones(3, dtype=F64), None
    for J, _ in steps:
        squares = squares + J.square()
        risk = (J.square() / squares.sqrt().where(squares > 0, 1.0)).sum(1)
        weights = weights if first is None else weights * torch.exp(0.01 * risk / first)
        first = risk if first is None else first
        weights = 3 * weights / weights.sum()
        yield weights @ J


def db_mtl(steps):
    kept = 0.0
    for J, L in steps:
        kept = 0.1 * J / L[:, None] + 0.9 * kept
        yield (kept.norm(dim=1).amax() / kept.norm(dim=1)) @ kept


LIBMTL = {
    "EW": by(A.Sum), "PCGrad": by(A.PCGrad), "GradVac": by(A.GradVac),
    "DWA": by(S.DWA), "GLS": by(S.GeometricMean), "RLW": by(A.Random), "STCH": stch,
    "FairGrad": by(partial(A.FairGrad, SCOPE["alpha"])), "FAMO": by(partial(S.FAMO, 3)),
    "Aligned_MTL": by(A.AlignedMTL, 3), "CAGrad": by(partial(A.CAGrad, 0.4), 1 / 1.16),
    "UW": learned(-0.5, lambda s, J: 0.5 / s.exp() @ J,
                  lambda s, J, L, *_: 0.5 * (L / s.exp() + s).sum()),
    "IMTL": learned(0.0, lambda s, J: A.IMTLG()(s.exp()[:, None] * J),
                    lambda s, J, L, *_: (s.exp() * L - s).sum()),
    "GradNorm": learned(1.0, lambda s, J: 3 * torch.softmax(s, 0) @ J, gradnorm, 1),
    "MGDA": mgda, 'mgda_gn="l2"': partial(mgda, norms=lambda J: J.norm(dim=1, keepdim=True)),
    # Gα = 1/α, whose direction is cut to the length 1
    "Nash_MTL": lambda steps: (A.FairGrad(1.0)(J) / 3**0.5 for J, _ in steps),
    "UPGrad": by(A.UPGrad), "ExcessMTL": excess, "DB_MTL": db_mtl,
    "MoDo": by(A.MoDoWeighting), "SDMGrad": by(partial(A.SDMGradWeighting, lr=5.0)),
}  # fmt: skip


def table(page: str, section: str) -> list[list[str]]:
    text = (ROOT / "docs/from" / page).read_text(encoding="utf-8")
    lines = text[text.index(f"## {section}\n") :].split("\n## ")[0].splitlines()
    return [line[2:-2].split(" | ") for line in lines if line.startswith("| ")][1:]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def pairs():
    """Theirs, the cell of ours, and which of its rules."""
    for left, right in [*table("torchjd.md", "Rules"), *table("libmtl.md", "Names")]:
        named = [x for x in spans(left) if "(" in x or x in LIBMTL]
        assert named or "](../how-to/" in right, f"a row without a test: {left}"
        named = named[-1:] if 'mgda_gn="l2"' in named else named
        yield from ((x, right, i) for i, x in enumerate(named))


def both(left: str, right: str, which: int, seed: int, key: int = 0) -> tuple[Tensor, Tensor]:
    """The directions of ours and of theirs [step, parameter]."""
    steps = drawn(seed, TASKS.get(re.split(r"\(|Weighting", left)[0], 3))
    rules, options = [], {"log": "log losses" in right}
    length = re.search(r"`([^`]+)` times as long", right)
    for span in spans(right):
        if span.startswith(("reduction=", "probe=")):
            options |= eval(f"dict({span})")
        elif re.match(r"mf\.\w+\(", span):
            value = eval(span, SCOPE)
            options |= {} if isinstance(value, mf.Rule) else {"probe": value}
            rules += [value] if isinstance(value, mf.Rule) else []
    torch.manual_seed(key)
    theirs = torch.stack([*(LIBMTL.get(left) or by(lambda: eval(left, SCOPE)))(steps)])
    if "mf.double_sampling()" in right:
        return sampled(rules[which], steps, options["probe"]), theirs
    scopes = [SCOPE | {"norms": J.norm(dim=1)} for J, _ in steps]
    longer = [float(eval(length[1], x)) if length else 1.0 for x in scopes]
    found = ours(rules[which], steps, key=key, **options)
    return found / torch.tensor(longer, dtype=F64)[:, None], theirs


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize(("left", "right", "which"), [*pairs()])
def test_a_row_of_rules(left, right, which):
    if left.startswith("NashMTL"):
        pytest.importorskip("ecos")
    if "random numbers" in right:  # the means of 200; a factor T would be 2
        draws = [both(left, right, which, 0, key) for key in range(200)]
        found, theirs = (torch.stack([x[0] for x in y]).mean(0) for y in zip(*draws, strict=True))
        assert (found - theirs).norm() <= 0.25 * theirs.norm()
        return
    gap = []
    for seed in range(3):
        found, theirs = both(left, right, which, seed)
        gap.append((found - theirs).norm(dim=1) / theirs.norm(dim=1))
    gap = torch.stack(gap)
    if "first step" in right:
        assert gap[:, 0].amax() <= 1e-6
        assert gap[:, 1:].amax() >= 1e-3
    elif "not a replacement" in right:
        assert gap.amax() >= 0.1
    elif "converges" in right or "cases" in right:
        assert (gap <= 1e-6).double().mean() >= 0.7
    else:
        near = re.search(r", to ([\d.e-]+\d)", right)
        assert gap.amax() <= (float(near[1]) if near else 1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(P, 4), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x):
        return torch.cat([head(z) for z in [self.trunk(x)] for head in self.heads], 1)


def executed(cell: str) -> Tensor:
    """The gradients that the calls of a cell leave, or what they answer, in a row per task."""
    torch.manual_seed(0)
    net, x, value = Net().double(), torch.randn(8, P, dtype=F64), None
    autojac, autogram = (importlib.import_module(f"torchjd.{x}") for x in ("autojac", "autogram"))
    if "engine" in cell or "part" in cell:  # which hooks what it is given
        modules = [net.trunk] if "part" in cell else [net.trunk, *net.heads]
        engine = part = autogram.Engine(*modules, batch_dim=None if "part" in cell else 0)
    features = net.trunk(x)
    squares = [head(features).square() for head in net.heads]
    losses, each = [y.mean() for y in squares], torch.cat(squares, 1).mean(1)
    losses = losses if "mtl_backward" in cell else torch.stack(losses)
    scope = SCOPE | vars(autojac) | vars(importlib.import_module("torchjd.linalg")) | locals()
    scope |= {"matrix": (matrix := drawn(0)[0][0]), "gramian": matrix @ matrix.mT, "batch": x}
    scope |= {"leaves": [*net.parameters()], "shared": [*net.trunk.parameters()]}
    scope |= {"scalarizer": S.GeometricMean(), "aggregator": A.AlignedMTL()}
    scope |= {"params": mf.parameters(net), "each_fn": lambda p, b: squared(net, p, b).mean(1)}
    scope |= {"losses_fn": lambda p, b: squared(net, p, b).mean(0)}
    for span in (x for x in spans(cell) if "(" in x):
        value = eval(span, scope)
    if written := [x.grad.flatten() for x in net.parameters() if x.grad is not None]:
        return torch.cat(written)
    value = [*value.values()] if isinstance(value, dict) else value
    return value if isinstance(value, Tensor) else torch.cat([x.flatten(1) for x in value], 1)


def squared(net, params, batch):
    return functional_call(net, params, (batch,)).square()


@pytest.mark.filterwarnings("ignore:shared. only one task")
@pytest.mark.parametrize("row", table("torchjd.md", "Calls"), ids=lambda row: row[0])
def test_a_row_of_calls(row):
    left, right = row
    if "mf." not in right:
        assert "](../how-to/recipes.md#" in right, "a row without a test"
    else:
        torch.testing.assert_close(executed(right), executed(left), rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_what_is_different_from_torchjd():
    wrong, failed, g = [0, 0], [], torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    for seed in range(500):
        J = jacobian("gaussian", 7, seed, width=5)
        scores = torch.cdist(J, J).square().sort(1).values[:, 1:4].sum(1)  # of 7 - 2 - 2
        found = mf.weights(mf.krum(2), J @ J.mT), A.KrumWeighting(2)(J @ J.mT)
        wrong = [n + int(x.argmax() != scores.argmin()) for n, x in zip(wrong, found, strict=True)]
    assert wrong[0] == 0
    assert 15 <= wrong[1] <= 60
    torch.testing.assert_close(A.IMTLG()(torch.stack([g, -2 * g])), -5 * g)
    assert mf.aggregate(mf.imtl_g(), torch.stack([g, -2 * g])).norm() <= 1e-9
    J = jacobian("gaussian", 3)
    for short in (J * torch.tensor([[0.0], [1.0], [1.0]]), 1e-6 * J):
        assert A.CAGrad(0.4)(short).norm() == 0
        assert mf.aggregate(mf.cagrad(0.4), short).norm() > 0
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(P, P), nn.Tanh(), nn.Linear(P, P)), torch.randn(8, P)
    net[2].weight = net[0].weight
    y = net(x).square().mean(1)
    grads = [torch.autograd.grad(z, [*net.parameters()], retain_graph=True) for z in y]
    rows = torch.stack([torch.cat([x.flatten() for x in row]) for row in grads])
    engine = importlib.import_module("torchjd.autogram").Engine(net, batch_dim=0)
    off = engine.compute_gramian(net(x).square().mean(1)) - rows @ rows.mT
    assert 0.1 <= off.norm() / (rows @ rows.mT).norm() <= 0.25
    pytest.importorskip("ecos")
    for seed in range(100):
        J = jacobian("gaussian", 3, seed, width=P)
        d = A.NashMTL(3)(J)
        if (d - mf.aggregate(mf.nash_mtl(max_norm=1.0), J)).norm() > 1e-2:
            failed.append((J @ d).amin() < 0)
    assert 1 <= len(failed) <= 20
    assert all(failed)
