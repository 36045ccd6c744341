"""The layerwise engine on calls that a hostile reader thought of."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from mtlfunc.gradients.layerwise.elementwise import group_norm
from mtlfunc.gradients.layerwise.uses import Operand, Part
from tests.support.oracles import agree, literal, near

X = torch.linspace(-1.5, 2, 30, dtype=torch.float64).sin().reshape(5, 6)
W = torch.linspace(-1.5, 2, 36, dtype=torch.float64).sin().reshape(6, 6)


def gramian_of(losses_fn, leaves):
    matrix = literal(lambda p, _: losses_fn(p), leaves, ())
    return matrix @ matrix.mT


TWICE_IN_ONE_CALL = {
    "linear(W, W)": lambda p: (
        F.linear(X, p["w"]).tanh().mean(0)[:3] + (F.linear(p["w"], p["w"])).square().sum()),
    "linear of two cuts": lambda p: F.linear(*p["w"].chunk(2)).sin().mean(0),
    "linear(W.T, W)": lambda p: F.linear(p["w"].T, p["w"]).square().mean(0)[:3],
    "addmm(W, x, W)": lambda p: torch.addmm(p["w"][:5], X, p["w"]).square().mean(0)[:3],
    "addmm(W, W, W)": lambda p: torch.addmm(p["w"], p["w"], p["w"]).square().mean(0)[:3],
    "einsum with a broadcast letter": lambda p: (
        torch.einsum("bi,oi->bo", X[:, :1], p["w"]).square().mean(0)[:3]),
    "einsum with a letter of length one in W": lambda p: (
        torch.einsum("bi,oi->bo", X, p["w"][:, :1] * 1 + 0 * p["w"][:, :1]).square().mean(0)[:3]),
    "cdist": lambda p: torch.cdist(F.linear(X, p["w"]), X).mean(1)[:3],
    # a batch of one pass would be as wrong through it as any other batch
    "cdist of one task": lambda p: torch.cdist(F.linear(X, p["w"]), X).mean()[None],
    "keyword spellings": lambda p: (
        (torch.mm(X, mat2=p["w"].transpose(dim0=0, dim1=1)) @ p["w"].chunk(chunks=2)[0].mT)
        .square()
        .mean(0)[:3]
    ),
    "hook on the leaf's transpose": lambda p: (X @ _hooked(p["w"].T)).square().mean(0)[:3],
}  # fmt: skip


def _hooked(x):
    x.register_hook(lambda grad: 3 * grad)
    return x


@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("name", TWICE_IN_ONE_CALL)
def test_task_gramian_of_awkward_calls(name, engine):
    f = TWICE_IN_ONE_CALL[name]

    def found(scale):
        return mf.task_gramian(lambda p, b: f(p), {"w": W * scale}, None, engine=engine)[1]

    got = found(1.0)
    agree(got, gramian_of(f, {"w": W}), 1e-12)
    agree(vmap(found)(torch.ones(2, dtype=W.dtype))[1], got, 1e-11)


def linear(p):
    return F.linear(X, p["w"], p["b"]).square().mean(1)


AWKWARD_SAMPLES = {
    "bias of length one": (lambda p: linear(p | {"b": p["b"][:1] * 1}), {"w": W, "b": W[0]}),
    "bias that is no vector": (linear, {"w": W, "b": X}),
    "bias of one number": (linear, {"w": W, "b": W[0, :1]}),
    "scale of one number": (lambda p: (X @ p["w"] * p["s"] + p["s"]).square().mean(1),
        {"w": W, "s": W[0, 0]}),
    "spectral scale": (lambda p: torch.fft.irfft(torch.fft.rfft(X) * p["b"], n=6).square().mean(1),
        {"b": W[0, :4]}),
    "cdist": (lambda p: torch.cdist(F.linear(X, p["w"]), X[:3]).mean(1), {"w": W}),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD_SAMPLES)
def test_sample_gramian_of_awkward_calls(name):
    f, leaves = AWKWARD_SAMPLES[name]
    if name == "cdist":  # of which the graph shows no more than that it was called
        with pytest.raises(ValueError, match="samples mix in cdist, of which"):
            mf.sample_gramian(lambda p, b: f(p), leaves, None)
    expected = gramian_of(f, leaves)
    for engine in ("rows",) if name == "cdist" else ("auto", "layerwise", "rows"):
        found = mf.sample_gramian(lambda p, b: f(p), leaves, None, engine=engine)[1]
        agree(found, expected, 1e-12)
        norms = mf.sample_norms(lambda p, b: f(p), leaves, None, engine=engine)[1]
        near(norms, expected.diagonal().sqrt(), 1e-12)


@pytest.mark.parametrize("to", [torch.tensor([2]), torch.tensor(2)])
def test_a_number_written_by_index_copy_is_differentiated_task_by_task(to):
    """torch's batched backward of it is wrong."""
    params = {"y": torch.tensor(0.3, dtype=torch.float64), "s": torch.tensor(0.7).double()}

    def losses(p, batch=None):
        z = torch.index_copy(torch.ones(4).double() * p["s"], 0, to, p["y"] * p["s"])
        return torch.stack([(z * torch.arange(4)).sum() ** 2, z.prod(), z.sum().sin()])

    expected = gramian_of(losses, params)
    near(mf.task_gramian(losses, params, None)[1], expected)
    module = nn.ParameterDict(params)
    near(mf.Balancer(module, mf.mgda()).backward(losses(module)).gramian, expected)


class Bare:
    """A node without what some versions of torch do not save."""

    def __init__(self, node, gone):
        self.node, self.gone = node, gone

    def __getattr__(self, name):
        if name == self.gone:
            raise AttributeError(name)
        return getattr(self.node, name)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2), (3, 4, 2, 1, 3)])
def test_group_norm_is_read_without_its_saved_eps(shape, eps):
    """Which torch 2.14 no longer keeps: normalised inputs come of the inverse deviations."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4, eps=eps, dtype=torch.float64)
    out = norm(torch.randn(shape, dtype=torch.float64))
    node = Bare(out.grad_fn, "_saved_eps")
    use = group_norm(Operand(Part("weight"), (4,), (), node, 1, out.grad_fn))
    delta = torch.randn(2, *shape, dtype=torch.float64)
    rows = use.fold(use.varied(delta).sum((1, 2))[:, 0, :, None])
    expected = [torch.autograd.grad(out, norm.weight, d, retain_graph=True)[0] for d in delta]
    near(rows, torch.stack(expected))


class Reads(nn.Module):
    """Something that reads parameters in a way of its own."""

    def __init__(self, read, *shapes):
        super().__init__()
        self.read = read
        self.held = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x):
        return self.read(x, *self.held)


def places(x):
    return (3 * x.detach()[:, 0].abs()).long().clamp(max=6)


EXPERTS = {
    "scale and shift": (lambda: Reads(lambda x, a, b: x * a + b, 5, 5), (5,)),
    "einsum": (lambda: Reads(lambda x, w: torch.einsum("ni,ij->nj", x, w), (5, 3)), (5,)),
    "rows by index": (lambda: Reads(lambda x, t: t[places(x)] * x[:, :1], (7, 3)), (5,)),
    "embedding": (
        lambda: Reads(lambda x, t: nn.functional.embedding(places(x), t) * x[:, :1], (7, 3)), (5,)),
    "bilinear": (lambda: Reads(lambda x, w: nn.functional.bilinear(x, x, w), (2, 5, 5)), (5,)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (5,)),
    "encoder": (lambda: nn.TransformerEncoderLayer(5, 1, 7, dropout=0.0, batch_first=True), (1, 5)),
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "conv": (lambda: nn.Conv1d(1, 2, 3), (1, 5)),
    "transposed conv": (lambda: nn.ConvTranspose1d(1, 2, 3), (1, 5)),
    "layer norm": (lambda: nn.LayerNorm(5), (5,)),
    "rms norm": (lambda: nn.RMSNorm(5), (5,)),
    "group norm": (lambda: nn.GroupNorm(1, 5), (5,)),
    "batch norm": (lambda: nn.BatchNorm1d(5).eval(), (5,)),
    "prelu": (lambda: nn.PReLU(5), (5,)),
    "images": (lambda: nn.Conv2d(1, 2, 1, padding=1), (1, 1, 5)),
    "positions": (lambda: nn.Linear(5, 3), (1, 5)),
    "two": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("expert", EXPERTS)
def test_an_expert_that_gets_no_sample(expert, taken):
    """Every reader with zero positions, and with one sample's, by every door."""
    torch.manual_seed(0)
    make, shape = EXPERTS[expert]
    net = nn.ModuleDict({"first": nn.Linear(5, 5), "expert": make()}).double()
    params, x = mf.parameters(net), torch.randn(6, 5, dtype=torch.float64)
    mask = torch.arange(6) < taken

    def each(params, x):
        z = functional_call(net["first"], {n[6:]: p for n, p in params.items() if "first" in n}, x)
        own = {n[7:]: p for n, p in params.items() if "expert" in n}
        found = functional_call(net["expert"], own, z.tanh()[mask].reshape(-1, *shape)).flatten(1)
        places, sums = mask.nonzero()[:, 0], found.sum(1, keepdim=True)
        added = torch.zeros(6, 1, dtype=x.dtype).index_add(0, places, sums)
        return (z + added).square().sum(1)

    def tasks(params, x):
        return each(params, x).unflatten(0, (2, 3)).mean(1)

    weightings = torch.rand(2, 6, dtype=torch.float64)
    doors = {
        "samples": partial(mf.sample_gramian, each, params, x),
        "norms": partial(mf.sample_norms, each, params, x),
        "weightings": partial(mf.task_gramian, each, params, x, weightings=weightings),
        "tasks": partial(mf.task_gramian, tasks, params, x),
    }
    for name, door in doors.items():
        try:
            found = door(engine="layerwise")[1]
        except ValueError as error:
            assert name in ("samples", "norms")
            assert 'engine="rows"' in str(error)  # noqa: PT017  the graph proves nothing
            continue
        near(found, door(engine="rows")[1])
    leaves = dict(net.named_parameters())
    for name, chosen in (("tasks", None), ("weightings", weightings)):
        losses = tasks(leaves, x) if chosen is None else each(leaves, x)
        info = mf.Balancer(net, mf.mgda()).backward(losses, weightings=chosen)
        near(info.gramian, doors[name](engine="rows")[1])
