"""What parameters that are not shared get by default, beside a literal loop over all parameters."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtlfunc as mf
from tests.support import ROOT
from tests.support.oracles import rows_by_name

PAGE = (ROOT / "docs" / "methods" / "heads.md").read_text()
ROWS = re.findall(r"^\| (`[`\w. ]+`) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
DEFAULTS = {name: said for names, said in ROWS for name in re.findall(r"[\w.]+", names)}
LAST = "trunk.last.*"
X, Y = torch.randn(20, 4, generator=torch.manual_seed(0)), torch.tensor([0.5, -1.0, 3.0])
X, Y = X.double(), Y.double()
RAY = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MADE = {
    "mean": lambda: mf.mean(preference=RAY), "uw": lambda: mf.uw(0.1),
    "gradnorm": lambda: mf.gradnorm(1.5), "dwa": lambda: mf.dwa(1),
    "imtl_l": lambda: mf.imtl_l(0.1), "stch": lambda: mf.stch(0.3),
    "cosmos": lambda: mf.cosmos(0.3), "align": lambda: mf.align(0.3),
    "cagrad": lambda: mf.cagrad(0.4), "fairgrad": lambda: mf.fairgrad(2.0),
    "conicgrad": lambda: mf.conicgrad(0.5), "physics.ntk": mf.physics.ntk,
    "physics.gauss_newton": mf.physics.gauss_newton, "normalize": lambda: mf.normalize(mf.uw(0.1)),
    "momentum": lambda: mf.momentum(mf.mgda()), "safe": lambda: mf.safe(mf.uw(0.1)),
    "stateless": lambda: mf.stateless(lambda gramian: torch.softmax(gramian.diagonal(), -1)),
}  # fmt: skip
INNER = {"normalize": "weighted", "momentum": "own", "safe": "weighted"}
PROBES = {
    "modo": mf.double_sampling, "sdmgrad": mf.double_sampling,
    "moco": partial(mf.moving_average, rate=1.0), "db_mtl": partial(mf.moving_average, rate=1.0),
    "excess_mtl": mf.excess_risk, "famo": lambda shared: mf.second_evaluation(mf.jacobian(shared)),
    "physics.ntk": lambda shared: mf.physics.kernel_traces(
        [partial(residuals, t) for t in range(3)], mf.jacobian(shared)),
}  # fmt: skip


class Net(nn.Module):
    """A trunk in two parts, and heads of which each serves one task."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleDict({"first": nn.Linear(4, 5), "last": nn.Linear(5, 6)})
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))

    def forward(self, x):
        z = self.trunk["last"](self.trunk["first"](x).tanh()).tanh()
        return torch.cat([head(z) for head in self.heads], 1)


torch.manual_seed(2)
NET = Net().double()


def residuals(task, params, batch):
    return functional_call(NET, params, (X,))[:, task] - Y[task]


def losses_fn(params, batch):
    return (functional_call(NET, params, (X,)) - Y).square().mean(0)


def rows():
    """Every task's gradient in every parameter, one at a time."""
    return rows_by_name((NET(X) - Y).square().mean(0), dict(NET.named_parameters()))


def made(name):
    default = getattr(mf.physics if "." in name else mf, name.rpartition(".")[2])
    return MADE.get(name, default)()


def step(name, rule, make=None):
    """The gradient of a pure step, and its weights."""
    probe = (make or PROBES.get(name, mf.jacobian))(LAST)
    batch = ((), (), ()) if probe.measures and "cross_gramian" in probe.measures else ()
    pure = mf.balance(losses_fn, rule, probe)
    params = mf.parameters(NET)
    grads, _, info = pure.update(params, batch, pure.init(params, batch))
    return grads, info.weights


def live(rule, metric=None):
    """That of a balancer, whose tasks are means over losses of samples."""
    NET.zero_grad()
    balancer, means = mf.Balancer(NET, rule, LAST, metric=metric), torch.eye(3)[:, None] / len(X)
    info = balancer.backward((NET(X) - Y).square(), weightings=means.expand(-1, len(X), -1).to(X))
    return {name: x.grad for name, x in NET.named_parameters()}, info.weights


def expected(heads, weights):
    ones = torch.ones_like(weights)
    shares = {"weighted": weights, "own": ones, "plain": ones / 3}[heads]
    mine = {name: weights if name.startswith("trunk.last") else shares for name in rows()}
    return {name: torch.tensordot(mine[name], row, 1) for name, row in rows().items()}


def test_the_page_has_every_rule():
    inner = {"aggregate", "weights"}
    known = set(mf.rules.__all__) - inner | {"physics.ntk", "physics.gauss_newton"}
    assert set(DEFAULTS) == known
    assert len(known) == 39


@pytest.mark.parametrize("name", DEFAULTS)
def test_heads_get_what_the_page_says(name):
    rule = made(name)
    said = INNER.get(name) or re.findall(r'"(\w+)"', DEFAULTS[name])[-1]
    assert rule.heads == said
    if name == "safe":
        grads, weights = live(rule, torch.optim.SGD(NET.parameters(), 0.1, momentum=0.9))
    else:
        grads, weights = step(name, rule)
        if name not in PROBES:
            torch.testing.assert_close(live(rule), (grads, weights))
    assert (weights - 1 / 3).abs().max() > 1e-3 or name in AT_FIRST  # else the three are one
    torch.testing.assert_close(grads, expected(said, weights))


AT_FIRST = {"gradnorm", "dwa", "moco", "modo", "famo", "uw", "imtl_l", "normalize", "excess_mtl"}
"""Rules that may begin with equal weights."""

# from the losses [task] to the one loss that the paper descends, at its first step
ONE_LOSS = {
    "mean": lambda x: RAY @ x, "uw": lambda x: (0.5 * x).mean(), "gradnorm": torch.mean,
    "dwa": torch.mean, "imtl_l": torch.mean, "gls": lambda x: x.prod() ** (1 / 3),
    "stch": lambda x: 3 * 0.3 * torch.logsumexp(x / 3 / 0.3, 0),
    "cosmos": lambda x: x.mean() - 0.3 * x.sum() / x.norm() / math.sqrt(3),
    "pbi": lambda x: (x.sum() / 3**0.5 + 5 * (x - x.mean()).norm()) / 3**0.5,
    "famo": lambda x: x.log().sum() / (1 / x).sum().detach(),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_LOSS)
def test_a_rule_that_weighs_losses_descends_one_loss_in_all_parameters(name):
    params = {k: x.detach().requires_grad_() for k, x in NET.named_parameters()}
    loss = ONE_LOSS[name](losses_fn(params, ()))
    grads = dict(zip(params, torch.autograd.grad(loss, [*params.values()]), strict=True))
    torch.testing.assert_close(step(name, made(name))[0], grads)


@pytest.mark.parametrize("heads", ["plain", "own", "weighted"])
@pytest.mark.parametrize("name", ["uw", "mgda", "cagrad", "famo", "moco", "sdmgrad"])
def test_whoever_says_heads_gets_them(name, heads):
    make = {"famo": lambda x: mf.second_evaluation(mf.jacobian(x, heads=heads))}.get(
        name, partial(PROBES.get(name, mf.jacobian), heads=heads)
    )
    grads, weights = step(name, made(name), make)
    torch.testing.assert_close(grads, expected(heads, weights))


def encode(params, batch):
    first = {k[12:]: x for k, x in params.items() if "first" in k}
    return functional_call(NET.trunk["first"], first, X)


def decode(params, z, batch):
    last = {k[11:]: params[k] for k in params if "trunk.last" in k}
    z = functional_call(NET.trunk["last"], last, z.tanh()).tanh()
    out = [z @ params[f"heads.{t}.weight"].mT + params[f"heads.{t}.bias"] for t in range(3)]
    return (torch.cat(out, 1) - Y).square().mean(0)


@pytest.mark.parametrize("heads", [None, "plain", "own", "weighted"])
@pytest.mark.parametrize("name", ["mgda", "cosmos"])
def test_a_representation_asks_the_rule(name, heads):
    def make(shared):
        return mf.representation(encode, decode, shared="trunk.first.*", heads=heads)

    rule = made(name)
    grads, weights = step(name, rule, make)
    for_heads = expected(heads or rule.heads, weights)
    for leaf, grad in grads.items():
        trunk = torch.tensordot(weights, rows()[leaf], 1)
        in_trunk, last = "first" in leaf, "last" in leaf
        if not last:  # of `expected`, which takes it for the trunk
            torch.testing.assert_close(grad, trunk if in_trunk else for_heads[leaf])


def test_a_rule_of_ones_own():
    """Plain where it says nothing; a word that is none is refused; lanes are the loop."""
    own = mf.Rule(lambda losses, key: (), lambda geometry, state: (RAY.clone(), state), frozenset())
    torch.testing.assert_close(live(own)[0], expected("plain", RAY))
    torch.testing.assert_close(live(own._replace(heads="weighted"))[0], expected("weighted", RAY))
    for make in (live, partial(step, "mean")):
        with pytest.raises(ValueError, match=r"rule: heads='all': expected one of 'plain', 'own'"):
            make(own._replace(heads="all"))  # pyright: ignore
