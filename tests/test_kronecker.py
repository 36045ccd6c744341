"""`metric=` for SOAP and Shampoo of pytorch_optimizer, against their real steps.

Without that package the tests run on the same algorithms written out below, under its names and
with the state of its version 4.1.0.
"""

import copy
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import mtlfunc as mf
from mtlfunc.gradients import layerwise
from mtlfunc.types import Metric, Params

F64 = torch.float64
X, Y = (mf.random.normal(mf.random.key(k), s, F64) for k, s in ((1, (40, 6)), (2, (40, 3))))


class LiteralSOAP(torch.optim.Optimizer):
    """Adam in the eigenbases of Shampoo's statistics (Vyas et al. 2024, algorithm 3)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.95, 0.95),
                 weight_decay: float = 0.01, precondition_frequency: int = 10,
                 correct_bias: bool = True, eps: float = 1e-8, **_: Any) -> None:  # fmt: skip
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps,
             "period": precondition_frequency, "correct_bias": correct_bias},
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            step, rate = group["step"] - 1, group["lr"]
            for p in group["params"]:
                state, g = self.state[p], p.grad
                if not state:
                    state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                    state["GG"] = [torch.zeros(n, n).to(p) for n in p.shape if p.ndim > 1] or [[]]
                    self.learn(state, g, second)
                    state["Q"] = [
                        x if len(x) == 0 else torch.linalg.eigh(x)[1] for x in state["GG"]
                    ]
                if not step:
                    continue
                state["exp_avg"].lerp_(g, 1 - first)
                state["exp_avg_sq"].lerp_(self.turned(g, state["Q"]).square(), 1 - second)
                size = rate
                if group["correct_bias"]:
                    size *= (1 - second**step) ** 0.5 / (1 - first**step)
                inner = self.turned(state["exp_avg"], state["Q"])
                inner = inner / (state["exp_avg_sq"].sqrt() + group["eps"])
                back = [x if len(x) == 0 else x.T for x in state["Q"]]
                p.sub_(size * self.turned(inner, back))
                p.mul_(1 - rate * group["weight_decay"])
                self.learn(state, g, second)
                if step % group["period"] == 0:
                    state["Q"] = [
                        x if len(x) == 0 else torch.linalg.qr(x @ q)[0]
                        for x, q in zip(state["GG"], state["Q"], strict=True)
                    ]

    @staticmethod
    def turned(g: Tensor, bases: list[Any]) -> Tensor:
        return g if len(bases) == 1 else bases[0].T @ g @ bases[1]

    @staticmethod
    def learn(state: dict[str, Any], g: Tensor, share: float) -> None:
        if g.ndim == 2:
            state["GG"][0].lerp_(g @ g.T, 1 - share)
            state["GG"][1].lerp_(g.T @ g, 1 - share)


class LiteralShampoo(torch.optim.Optimizer):
    """Gupta et al. 2018, algorithm 1, with roots at every k-th step alone."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
                 weight_decouple: bool = False,
                 preconditioning_compute_steps: int = 1) -> None:  # fmt: skip
        self.period = preconditioning_compute_steps
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
             "weight_decouple": weight_decouple, "fixed_decay": False},
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state, g, rate = self.state[p], p.grad.clone(), group["lr"]
                if not state:
                    state["momentum_buffer"] = g.clone()
                    for axis, n in enumerate(p.shape):
                        state[f"pre_cond_{axis}"] = 1e-6 * torch.eye(n).to(p)
                        state[f"inv_pre_cond_{axis}"] = torch.zeros(n, n).to(p)
                g = torch.lerp(g, state["momentum_buffer"], group["momentum"])
                if group["weight_decouple"]:
                    p.mul_(1 - rate * group["weight_decay"])
                else:
                    g = g + group["weight_decay"] * p
                seen, move = g, g
                for axis in range(p.ndim):
                    unfolded = seen.movedim(axis, 0).flatten(1) if p.ndim > 1 else seen[:, None]
                    state[f"pre_cond_{axis}"] += unfolded @ unfolded.T
                    if group["step"] % self.period == 0:
                        values, vectors = torch.linalg.eigh(state[f"pre_cond_{axis}"])
                        root = (vectors * values ** (-0.5 / p.ndim)) @ vectors.T
                        state[f"inv_pre_cond_{axis}"] = root
                    root = state[f"inv_pre_cond_{axis}"]
                    move = root @ move if axis == 0 else move @ root
                state["momentum_buffer"] = move
                p.sub_(rate * move)


if find_spec("pytorch_optimizer"):
    from pytorch_optimizer import SOAP, Shampoo  # pyright: ignore[reportMissingImports]
else:
    SOAP, Shampoo = LiteralSOAP, LiteralShampoo
    for kind, module in ((SOAP, "soap"), (Shampoo, "shampoo")):
        kind.__module__ = f"pytorch_optimizer.optimizer.{module}"
        kind.__qualname__ = kind.__name__ = kind.__name__.removeprefix("Literal")

# What P is made of stands still: β₂ = 1 - 2^-50 in the step, which computes no root and no basis.
FROZEN: dict[str, Any] = {
    "soap": lambda p: SOAP(p, lr=1e-2, weight_decay=0.1, precondition_frequency=4),
    "soap uncorrected": lambda p: SOAP(p, lr=1e-2, betas=(0.0, 0.9), correct_bias=False),
    "shampoo": lambda p: Shampoo(p, lr=1e-2, preconditioning_compute_steps=4),
    "shampoo momentum": lambda p: Shampoo(
        p, lr=1e-2, momentum=0.9, weight_decay=0.1, preconditioning_compute_steps=4
    ),
    "shampoo decoupled": lambda p: Shampoo(
        *(p, 1e-2), weight_decay=0.1, weight_decouple=True, preconditioning_compute_steps=4
    ),
}


def network() -> nn.Module:
    """One output that three tasks want to be three different functions; with biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(F64)


def losses_at(net: nn.Module, params: Params | None = None) -> list[Tensor]:
    out = net(X) if params is None else functional_call(net, params, (X,))
    wish = Y * torch.tensor([1.0, 3.0, 0.5], dtype=F64)
    return list((out - wish).square().mean(0).unbind())


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    first, second, *others = net.parameters()
    return [{"params": [first, second]}, {"params": others, "lr": 3e-3}]


def walk(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(losses_at(net)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def rows_at(net: nn.Module) -> Params:
    params = mf.parameters(net)
    return mf.task_gradients(lambda p, b: torch.stack(losses_at(net, p)), params, ())[1]


@pytest.mark.parametrize("walked", [5, 6])
@pytest.mark.parametrize("name", FROZEN)
def test_rates_are_those_of_the_real_step(name, walked):
    """Rates of real steps on copies are affine in the weights, r = J c + G w: four steps give J c
    and every column of G.
    """
    net: Any = network()
    optimizer = FROZEN[name](groups_of(net))
    walk(net, optimizer, walked)
    for group in optimizer.param_groups:
        if "betas" in group:  # and so many steps that their correction is not rounding
            group["betas"], group["step"] = (group["betas"][0], 1 - 2.0**-50), walked + 2**50
    rows, before = rows_at(net), mf.parameters(net)

    def fall(weights: Tensor) -> Tensor:
        other, state = copy.deepcopy((net, optimizer.state_dict()))
        mine = FROZEN[name](groups_of(other))
        mine.load_state_dict(state)
        grads = {n: torch.tensordot(weights, x, 1) for n, x in rows.items()}
        mf.assign_gradients(other, grads)
        mine.step()
        after = mf.parameters(other)
        return sum(
            (x.flatten(1) @ (before[n] - after[n]).flatten() for n, x in rows.items()),
            torch.zeros(3, dtype=F64),
        )

    rest = fall(torch.zeros(3, dtype=F64))
    known = torch.stack([fall(w) - rest for w in torch.eye(3, dtype=F64)], 1)
    for rule in (mf.mgda(), mf.safe(mf.mean())):
        balancer = mf.Balancer(net, rule, metric=optimizer)
        with balancer:
            losses = losses_at(net)
        info = balancer.backward(losses)
        size = known.abs().max()
        assert (info.gramian - known).abs().max() <= 1e-7 * size
        assert (info.rates - fall(info.weights)).abs().max() <= 1e-7 * size
        if rule.reads and "carried" in rule.reads:
            assert info.rates.min() >= -1e-7 * size
        optimizer.zero_grad()
    for key, leaf in net.named_parameters():  # as from a micro-batch before
        leaf.grad = rows[key][1].clone()
    with balancer:
        losses = losses_at(net)
    info = balancer.backward(losses)
    whole = info.weights + torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    assert (info.rates - rest - known @ whole).abs().max() <= 1e-7 * known.abs().max()


def test_before_it_knows_a_scale_it_promises_nothing():
    net: Any = network()
    optimizer = SOAP(groups_of(net), lr=1e-2)
    balancer = mf.Balancer(net, mf.mean(), metric=optimizer)
    with balancer:
        losses = losses_at(net)
    info = balancer.backward(losses)
    assert not info.rates.any()
    before = net[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(before, net[0].weight)  # SOAP's first step only looks


def test_convolutions_have_a_factor_for_each_axis():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = nn.Sequential(nn.Conv2d(2, 3, (3, 2)), nn.Flatten(), nn.Linear(18, 2)).to(F64)
    inputs = mf.random.normal(mf.random.key(3), (5, 2, 4, 4), F64)
    factors = tuple(
        x @ x.T
        for x in (mf.random.normal(mf.random.key(n), (n, n), F64) for n in net[0].weight.shape)
    )
    optimizer = Shampoo(net.parameters(), lr=0.1)
    for leaf in net.parameters():
        optimizer.state[leaf] = {
            f"inv_pre_cond_{i}": torch.eye(n, dtype=F64) for i, n in enumerate(leaf.shape)
        }
    for i, factor in enumerate(factors):
        optimizer.state[net[0].weight][f"inv_pre_cond_{i}"] = factor
    balancer = mf.Balancer(net, mf.mean(), "0.weight", metric=optimizer)
    losses = list(net(inputs).square().mean(0).unbind())
    grads = [torch.autograd.grad(x, net[0].weight, retain_graph=True)[0] for x in losses]
    turned = [torch.einsum("oiab,oO,iI,aA,bB->OIAB", g, *factors) for g in grads]
    known = 0.1 * torch.stack([torch.stack([(g * p).sum() for p in turned]) for g in grads])
    torch.testing.assert_close(balancer.backward(losses).gramian, known)


def test_what_is_wrong_is_said():
    net: Any = network()

    class Mine(SOAP):  # pyright: ignore[reportGeneralTypeIssues]
        pass

    with pytest.raises(ValueError, match="there is none of Mine"):
        mf.Balancer(net, mf.mgda(), metric=Mine(groups_of(net), lr=0.1))
    optimizer = SOAP(groups_of(net), lr=0.1)
    optimizer.param_groups[1]["normalize_gradient"] = True
    with pytest.raises(ValueError, match="SOAP's step is not read with normalize_gradient"):
        mf.Balancer(net, mf.mgda(), metric=optimizer)
    optimizer = Shampoo(groups_of(net), lr=0.1)
    optimizer.state[net[0].weight] = {"statistics": []}
    balancer = mf.Balancer(net, mf.mgda(), metric=optimizer)
    with pytest.raises(ValueError, match="has no inv_pre_cond_0, inv_pre_cond_1"):
        balancer.backward(losses_at(net))
    optimizer.state[net[0].weight] = {"inv_pre_cond_0": torch.eye(8), "inv_pre_cond_1": X[:6]}
    optimizer.state[net[0].weight]["pre_cond_0"] = torch.eye(6)
    with pytest.raises(ValueError, match=r"state's pre_cond_0 of 0.weight is \[6, 6\]"):
        balancer.backward(losses_at(net))
    optimizer.state[net[0].weight].pop("pre_cond_0")
    optimizer.param_groups[0]["momentum"] = 0.9  # of a buffer that the first step did not make
    with pytest.raises(ValueError, match="has no momentum_buffer"):
        balancer.backward(losses_at(net))


@pytest.mark.parametrize(("name", "walked"), [("soap", 1), ("shampoo decoupled", 2)])
def test_decay_is_not_counted_before_a_scale_is_known(name, walked):
    """No gradient could make up for it: `safe` has nothing to choose from, and leaves the step."""
    net: Any = network()
    optimizer = FROZEN[name](groups_of(net))
    walk(net, optimizer, walked)
    balancer = mf.Balancer(net, mf.safe(mf.mgda()), metric=optimizer)
    with balancer:
        losses = losses_at(net)
    info = balancer.backward(losses)
    assert not info.gramian.any()
    assert not info.rates.any()


def test_decay_is_counted_in_the_directions_of_soap_that_have_a_scale():
    """Of a matrix whose gradients so far had one direction of its basis."""
    net: Any = nn.Linear(3, 2, bias=False).to(F64)
    optimizer = SOAP(net.parameters(), lr=0.1, betas=(0.0, 0.9), weight_decay=0.5)
    turned = [torch.linalg.qr(mf.random.normal(mf.random.key(n), (n, n), F64))[0] for n in (2, 3)]
    square = torch.zeros(2, 3, dtype=F64)
    square[1, 2] = 4.0
    optimizer.state[net.weight] = {"Q": turned, "exp_avg": 0 * square, "exp_avg_sq": square}
    optimizer.param_groups[0]["step"] = 1
    balancer = mf.Balancer(net, mf.mgda(), metric=optimizer)
    losses = [net.weight.sum(), net.weight.square().sum()]
    grads = torch.stack([torch.ones_like(net.weight), 2 * net.weight]).detach()
    seen = torch.outer(turned[0][:, 1], turned[1][:, 2])
    along = (grads * seen).sum((-2, -1))
    info = balancer.backward(losses)
    decay = 0.1 * 0.5 * (net.weight.detach() * seen).sum() * along
    torch.testing.assert_close(info.rates, info.gramian @ info.weights + decay)


# How a matrix w [20, 24] may be read, and whether its part of the Gramian then needs no rows.
TASKS, SAMPLES = 4, 3
READS: dict[str, tuple[Any, bool]] = {
    "linear": (lambda w, x, y: nn.functional.linear(x, w), True),
    "turned": (lambda w, x, y: y @ w, True),
    "from the left": (lambda w, x, y: (w @ x.mT).mT, True),
    "at tokens": (lambda w, x, y: nn.functional.linear(x.reshape(3, 1, 24).tanh(), w)[:, 0], True),
    "twice": (lambda w, x, y: (x @ w.mT + (2 * x).tanh() @ w.mT).sin(), True),
    "both ways": (lambda w, x, y: (x @ w.mT).tanh() @ w, False),
    "in pieces": (lambda w, x, y: torch.cat([x @ part.mT for part in w.chunk(2)], 1), False),
    "by index": (lambda w, x, y: w[torch.tensor([0, 3, 3])], False),
    "by itself": (lambda w, x, y: w.square()[:3] + x, False),
}
NORMAL = partial(mf.random.normal, dtype=F64)


def factors_of(kind: str, *sizes: int) -> tuple[Tensor | None, ...]:
    """Positive semidefinite of rank 5, or any matrices; or the identity along the first axis."""
    found = []
    for i, n in enumerate(sizes):
        x = NORMAL(mf.random.key(10 + i), (n, n if kind == "any" else 5))
        found.append(x if kind == "any" else x @ x.mT)
    return (None, *found[1:]) if kind == "one" else tuple(found)


class Counted(TorchDispatchMode):
    """The entries of the largest tensor that an operation makes, and operations of products."""

    entries = flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for x in tree_leaves(out):
            self.entries = max(self.entries, x.numel() if isinstance(x, Tensor) else 0)
        return out


def in_metric(losses_fn: Any, params: Params, metric: Metric, engine: Any = "auto") -> Any:
    """J P Jᵀ and J c, as a step without a combination has them."""
    run = mf.Run(losses_fn, params)
    run.metric, run.combines = lambda names: metric, False
    extra = mf.jacobian(engine=engine).update(run, (), ())[0].geometry
    return extra.gramian, extra.extra["carried"]


def problem(read: Any, params: Params, shift: Any = 0.0) -> Tensor:
    """Losses [task] of a matrix that is read in some way, with a bias and a diagonal beside it."""
    x, y = (NORMAL(mf.random.key(k), (SAMPLES, n)) for k, n in ((4, 24), (5, 20)))
    out = read(params["w"], x + shift, y + shift).tanh()
    wish = NORMAL(mf.random.key(6), (TASKS, *out.shape))
    scaled = out * params["scale"][: out.shape[1]] + params["bias"].sum()
    return (scaled - wish).square().mean((1, 2))


PROBLEM = {n: NORMAL(mf.random.key(k), s) / 4
           for n, k, s in (("w", 7, (20, 24)), ("scale", 8, (24,)), ("bias", 9, (3,)))}  # fmt: skip


def metric_with(kind: str) -> Metric:
    """Factors along the axes of the matrix and the bias, a diagonal for the scale; some c."""
    scale = {
        "w": torch.tensor(0.3, dtype=F64), "scale": PROBLEM["scale"].square(),
        "bias": torch.tensor(2.0, dtype=F64),
    }  # fmt: skip
    carried = {n: PROBLEM[n].sin() for n in ("w", "scale")}
    turns = {"w": (factors_of(kind, 20, 24), ()), "bias": (factors_of("any", 3), ())}
    return Metric(scale, carried, turns)


@pytest.fixture
def asked(monkeypatch):
    """The graph is asked who reads the leaves of however small a network."""
    for name in ("FEW_PARAMETERS", "GROUP"):
        monkeypatch.setattr(layerwise.plan, name, 0)


@pytest.mark.parametrize("kind", ["singular", "any", "one"])
@pytest.mark.parametrize("name", READS)
def test_factors_along_the_axes_are_their_kronecker_product(name, kind, asked):
    """P written out as a matrix, and rows by torch.autograd."""
    read, metric = READS[name][0], metric_with(kind)
    assert metric.turns is not None
    params = {n: x.clone().requires_grad_() for n, x in PROBLEM.items()}
    each = [torch.autograd.grad(x, list(params.values()), retain_graph=True)
            for x in problem(read, params)]  # fmt: skip
    rows = {
        n: torch.stack(x).flatten(1) for n, x in zip(params, zip(*each, strict=True), strict=True)
    }
    first, second = (torch.eye(n, dtype=F64) if f is None else f
                     for n, f in zip((20, 24), metric.turns["w"][0], strict=True))  # fmt: skip
    (other,) = metric.turns["bias"][0]
    assert other is not None
    whole = {
        "w": 0.3 * torch.kron(first.mT.contiguous(), second.mT.contiguous()),
        "scale": metric.scale["scale"].diag(),
        "bias": 2.0 * other.mT,
    }
    known = torch.stack([x @ whole[n] @ x.mT for n, x in rows.items()]).sum(0)
    known = 0.5 * (known + known.mT)
    along = torch.stack([rows[n] @ c.flatten() for n, c in metric.carried.items()]).sum(0)
    with Counted() as seen:
        gramian, carried = in_metric(lambda p, _: problem(read, p), PROBLEM, metric)
    torch.testing.assert_close(gramian, known, rtol=1e-10, atol=1e-10 * float(known.abs().max()))
    torch.testing.assert_close(carried, along, rtol=1e-10, atol=1e-10 * float(along.abs().max()))
    assert (seen.entries < TASKS * PROBLEM["w"].numel()) == READS[name][1]


def test_factors_compose_with_transforms(asked):
    """Nested vmap, and derivatives in the parameters, the factors and c, against rows."""
    read = READS["linear"][0]

    def answer(engine: Any, params: Params, shift: Tensor, size: Tensor) -> Tensor:
        metric = metric_with("singular")
        assert metric.turns is not None
        (first, second), _ = metric.turns["w"]
        assert first is not None
        metric = metric._replace(
            carried={n: size * x for n, x in metric.carried.items()},
            turns=metric.turns | {"w": ((first * size.cos(), second), ())},
        )
        gramian, carried = in_metric(lambda p, _: problem(read, p, shift), params, metric, engine)
        return torch.cat([gramian.flatten(), carried])

    shifts, sizes = (NORMAL(mf.random.key(k), (n,)) for k, n in ((1, 2), (2, 3)))
    for engine in ("auto", "rows"):
        nested = vmap(vmap(partial(answer, engine, PROBLEM), (None, 0)), (0, None))(shifts, sizes)
        loop = [[answer("rows", PROBLEM, a, b) for b in sizes] for a in shifts]
        torch.testing.assert_close(nested, torch.stack([torch.stack(x) for x in loop]))
    found, known = (
        grad(lambda p, a, b, e=engine: answer(e, p, a, b).sin().sum(), (0, 1, 2))(
            PROBLEM, shifts[0], sizes[0]
        )
        for engine in ("auto", "rows")
    )
    torch.testing.assert_close(found, known)


def test_shampoo_costs_few_more_products_than_the_plain_gramian():
    """Three layers of 512 units, 4 tasks, 128 samples: operations in place of time."""
    width, samples, tasks = 512, 128, 4
    net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(3)))
    optimizer = Shampoo(net.parameters(), lr=0.1)
    for leaf in net.parameters():
        optimizer.state[leaf] = {f"inv_pre_cond_{i}": torch.eye(width) for i in (0, 1)}
    x, wish = torch.ones(samples, width), torch.ones(tasks, samples, width)
    flops = []
    for metric in (None, optimizer):
        balancer = mf.Balancer(net, mf.mean(), metric=metric)
        net.zero_grad()
        losses = list((net(x) - wish).square().mean((1, 2)).unbind())
        with Counted() as seen:
            balancer.backward(losses)
        flops.append(seen.flops)
        assert seen.entries < tasks * width**2
    # inputs by one factor, the deltas of each task by the other
    assert flops[1] - flops[0] == 3 * (tasks + 1) * 2 * samples * width**2
    assert flops[1] < 2 * flops[0]
