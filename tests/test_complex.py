"""Complex parameters against real twins: a leaf is two real ones, with torch's gradient."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import mtlfunc as mf
from tests.support.oracles import check_slope, near
from tests.support.problems import below

# the heads, which some tests share
pytestmark = pytest.mark.filterwarnings("ignore:shared. only one task depends on heads")

F64, C128 = torch.float64, torch.complex128


class Spectral(nn.Module):
    """A Fourier layer of one dimension; `twin` holds its weight as two real ones."""

    def __init__(self, width: int, modes: int, twin: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(width)
        weight = torch.randn(width, width, modes, dtype=C128, generator=draw) / width
        self.modes, self.twin = modes, twin
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if twin else weight)
        self.bias = nn.Parameter(torch.randn(width, 1, dtype=F64, generator=draw))

    def forward(self, x: Tensor) -> Tensor:  # [sample, width, point]
        weight = torch.view_as_complex(self.weight) if self.twin else self.weight
        z = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", z[..., : self.modes], weight)
        rest = z.new_zeros(*low.shape[:2], z.shape[-1] - self.modes)
        return torch.fft.irfft(torch.cat([low, rest], -1), n=x.shape[-1]) + self.bias


class Net(nn.Module):
    """A lift, a Fourier layer and a projection, then a complex head for each of three tasks."""

    def __init__(self, twin: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.twin = twin
        self.trunk = nn.ModuleDict(
            {"lift": nn.Conv1d(1, 4, 1), "fourier": Spectral(4, 3, twin), "act": nn.GELU()}
        ).double()
        with torch.no_grad():
            for leaf in self.trunk["lift"].parameters():
                leaf.copy_(torch.randn(leaf.shape, dtype=F64, generator=draw))
        heads = torch.randn(3, 4, dtype=C128, generator=draw)
        self.heads = nn.ParameterList(
            nn.Parameter(torch.view_as_real(x).clone() if twin else x.clone()) for x in heads
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        trunk = self.trunk
        z = torch.fft.rfft(trunk["act"](trunk["fourier"](trunk["lift"](x))))[..., 1]
        heads = [torch.view_as_complex(x) if self.twin else x for x in self.heads]
        return [(z @ head).abs() for head in heads]


BATCH = torch.randn(6, 1, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
FORMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "list": list,
    "dict": lambda losses: dict(zip("abc", losses, strict=True)),
    "vector": torch.stack,
}


def losses_of(net: nn.Module, params: dict[str, Tensor], x: Tensor, form: str) -> Any:
    found = functional_call(net, params, (x,))
    return FORMS[form]([(y - k).square().mean() for k, y in enumerate(found)])


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def same(found: dict[str, Tensor], twin: dict[str, Tensor]) -> None:
    assert found.keys() == twin.keys()
    for name, x in found.items():
        near(real(x), twin[name], 1e-9, 1e-12)


def pair() -> tuple[Net, Net]:
    return Net(twin=False), Net(twin=True)


@pytest.mark.parametrize("form", FORMS)
def test_gramian_and_rows_are_those_of_the_real_twin(form):
    found = []
    for net in pair():
        params = mf.parameters(net)

        def losses(params: Any, x: Tensor, net: nn.Module = net) -> Any:
            return losses_of(net, params, x, form)

        plain = [
            torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
            for loss in losses_of(net, dict(net.named_parameters()), BATCH, "list")
        ]
        values, rows = mf.task_gradients(losses, params, BATCH)
        for t, grads in enumerate(plain):  # torch's convention
            for row, leaf, x in zip(rows.values(), params.values(), grads, strict=True):
                near(row[t], torch.zeros_like(leaf) if x is None else x, 1e-9, 1e-12)
        ways = product(("*", "trunk.*"), ("auto", "rows", "layerwise"))
        G = [mf.task_gramian(losses, params, BATCH, shared=x, engine=y)[1] for x, y in ways]
        found.append((values, G, rows))
    (values, G, rows), (twin_values, twin_G, twin_rows) = found
    near(values, twin_values, 1e-12, 0)
    near(G, twin_G, 1e-9, 1e-12)
    same(rows, twin_rows)
    whole = torch.cat([real(x).flatten(1) for x in rows.values()], 1)
    near(G[0], whole @ whole.mT, 1e-9, 1e-12)  # Re⟨·,·⟩


def stock(net: Net, form: str, options: dict[str, Any], make: Any, metric: bool) -> list[Any]:
    optimizer = make(net.parameters())
    rule = mf.safe(mf.mgda()) if metric else mf.mgda()
    if options.get("shared", "*") is None:
        rule = mf.uw(0.1)
    balancer = mf.Balancer(net, rule, metric=optimizer if metric else None, **options)
    seen = []
    for _ in range(6):
        optimizer.zero_grad()
        if form == "functions":
            losses = [lambda k=k: (net(BATCH)[k] - k).square().mean() for k in range(3)]
        else:
            losses = FORMS[form]([(y - k).square().mean() for k, y in enumerate(net(BATCH))])
        info = balancer.backward(losses)
        grads = {name: x.grad.clone() for name, x in net.named_parameters() if x.grad is not None}
        seen.append((info.losses, info.gramian, info.weights, info.rates, grads))
        optimizer.step()
    seen.append((mf.parameters(net),))
    return seen


@pytest.mark.parametrize("form", [*FORMS, "functions"])
@pytest.mark.parametrize(
    ("options", "make", "metric"),
    [
        ({}, lambda x: torch.optim.Adam(x, 1e-2), False),
        ({"shared": "trunk.*"}, lambda x: torch.optim.SGD(x, 1e-2, momentum=0.9), False),
        ({"shared": None}, lambda x: torch.optim.AdamW(x, 1e-2), False),
        ({}, lambda x: torch.optim.Adam(x, 1e-3, weight_decay=0.1), True),
        ({}, lambda x: torch.optim.SGD(x, 1e-3, momentum=0.5, nesterov=True), True),
    ],
    ids=["all", "heads", "losses", "adam", "sgd"],
)
def test_stock_steps_are_those_of_the_real_twin(form, options, make, metric):
    runs = [stock(net, form, options, make, metric) for net in pair()]
    for (*one, mine), (*other, twins) in zip(*runs, strict=True):
        near(one, other, 1e-7, 1e-10)
        same(mine, twins)


def encode(net: Net, params: Any, x: Tensor) -> Tensor:
    for name, part in net.trunk.items():
        x = functional_call(part, below(params, f"trunk.{name}."), (x,))
    return x


def decode(net: Net, params: Any, z: Tensor, x: Tensor) -> list[Tensor]:
    z = torch.fft.rfft(z)[..., 1]
    heads = [params[f"heads.{k}"] for k in range(3)]
    heads = [torch.view_as_complex(x) if net.twin else x for x in heads]
    return [((z @ h).abs() - k).square().mean() for k, h in enumerate(heads)]


PROBES: dict[str, Callable[[Net], mf.Probe]] = {
    "rows": lambda net: mf.jacobian("trunk.*"),
    "own": lambda net: mf.jacobian("trunk.*", heads="own"),
    "weighted": lambda net: mf.jacobian("trunk.*", heads="weighted"),
    "mixed": lambda net: mf.jacobian("*", mix=mf.subset(2)),
    "memory": lambda net: mf.moving_average("trunk.*"),
    "mask": lambda net: mf.jacobian("trunk.*", mask=mf.graddrop()),
    "twice": lambda net: mf.second_evaluation(mf.jacobian("trunk.*")),
    "chunks": lambda net: mf.jacobian("*", chunk_size=1),
    "metric": lambda net: mf.jacobian(),
    "representation": lambda net: mf.representation(partial(encode, net), partial(decode, net),
        shared="trunk.*"),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", [mf.adam(1e-2), mf.sgd(1e-2, momentum=0.9)])
@pytest.mark.parametrize("probe", PROBES)
def test_pure_steps_are_those_of_the_real_twin(probe, optimizer):
    rules = {"memory": mf.moco, "metric": lambda: mf.safe(mf.mean())}
    runs = []
    for net in pair():
        step = mf.descend(
            lambda params, x, net=net: losses_of(net, params, x, "dict"),
            rules.get(probe, mf.mgda)(),
            PROBES[probe](net),
            optimizer,
            metric=probe == "metric",
        )
        state, seen = step.init(mf.parameters(net), BATCH, key=3), []
        for _ in range(6):
            state, info = step.update(state, BATCH)
            seen.append((info.losses, info.gramian, info.weights, info.rates))
        runs.append((seen, state.params))
    near(runs[0][0], runs[1][0], 1e-7, 1e-10)
    same(runs[0][1], runs[1][1])
    assert runs[0][1]["heads.0"].dtype == C128


def test_steps_map_and_differentiate_as_the_real_twin():
    runs = []
    for net in pair():
        step = mf.balance(
            lambda params, x, net=net: losses_of(net, params, x, "vector"),
            mf.cagrad(0.4), mf.jacobian("trunk.*"),
        )  # fmt: skip
        params = mf.parameters(net)

        def gradient(s: Tensor, step: Any = step, params: Any = params) -> Any:
            at = {name: s * x for name, x in params.items()}
            return step.update(at, BATCH, step.init(at, BATCH))[0]

        scales = torch.tensor([0.7, 1.0, 1.3], dtype=F64)
        many = vmap(gradient)(scales)
        for i, s in enumerate(scales):
            alone = gradient(s)
            for name, x in many.items():
                near(x[i], alone[name], 1e-9, 1e-12)

        def length(s: Tensor, gradient: Any = gradient) -> Tensor:
            return torch.stack([x.abs().square().sum() for x in gradient(s).values()]).sum()

        check_slope(length, 1.0, "grad")
        runs.append((many, grad(length)(scales[1])))
    same(runs[0][0], runs[1][0])
    near(runs[0][1], runs[1][1], 1e-8, 0)


def test_samples_and_diagnostics_are_those_of_the_real_twin():
    runs = []
    for net in pair():
        params = mf.parameters(net)

        def samples(params: Any, x: Tensor, net: nn.Module = net) -> Tensor:
            return torch.stack([y.square() for y in functional_call(net, params, (x,))], 1)

        def losses(params: Any, x: Tensor, samples: Any = samples) -> Tensor:
            return samples(params, x).mean(0)

        moved = {name: 0.9 * x for name, x in params.items()}
        change = mf.diagnostics.predicted_change(losses, params, moved, BATCH)
        runs.append([
            mf.sample_gramian(samples, params, BATCH, engine="rows")[1],
            mf.sample_norms(samples, params, BATCH, engine="rows")[1],
            mf.diagnostics.curvature(losses, params, BATCH, lr=1e-3),
            *change,
            *map(real, mf.sample_gradients(losses, params, BATCH)[1].values()),
        ])  # fmt: skip
    near(runs[0], runs[1], 1e-8, 1e-12)


def test_a_complex_number_alone_and_one_with_a_conjugate():
    def losses(params: Any, batch: Any) -> Tensor:
        return torch.stack([(params["z"] - 1j).abs().square(), params["z"].conj().real])

    for z in (torch.tensor(1 + 2j, dtype=C128), torch.tensor(1 - 2j, dtype=C128).conj()):
        assert mf.task_gradients(losses, {"z": z}, ())[1]["z"].tolist() == [2 + 2j, 1 + 0j]
        assert mf.task_gramian(losses, {"z": z}, ())[1].tolist() == [[8.0, 2.0], [2.0, 1.0]]
