"""The layerwise engine against loops of single passes, everywhere, and what is refused."""

# pyright: reportArgumentType=false

import gc
import weakref
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from mtlfunc.core.internals import tells_hooks
from mtlfunc.gradients import backward, by_samples
from mtlfunc.gradients import run as forwards
from mtlfunc.gradients.layerwise import formulas, plan
from tests.support.architectures import NAMES, SAMPLES, TASKS, Architecture, build
from tests.support.oracles import F64, SLOPES, agree, check_slope, literal, near


@pytest.fixture(autouse=True)
def _attention_that_batches():
    # the others warn that their backward is looped over the rows
    with sdpa_kernel(SDPBackend.MATH):
        yield


def by_rows(rows):
    """The Gramian of stacked rows, in float64."""
    matrix = torch.cat([row.flatten(1) for row in rows.values()], 1).double()
    return matrix @ matrix.mT


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_rows_and_gramian_of_tasks(name, chunk_size):
    net = build(name)
    asked = net.tasks, net.params, net.batch
    losses, gramian = mf.task_gramian(*asked, engine="layerwise", chunk_size=chunk_size)
    expected, rows = mf.task_gradients(*asked)
    known = literal(*asked)
    near(losses, expected, 1e-14)
    agree(by_rows(rows), known @ known.mT, 1e-12)
    agree(gramian, known @ known.mT, 1e-12)
    assert torch.equal(gramian, gramian.mT)


@pytest.mark.parametrize("form", ["kernel", "gemm", "as planned"])
@pytest.mark.parametrize("name", NAMES)
def test_gramian_of_samples_in_every_form(name, form, monkeypatch):
    original, net = formulas.costs, build(name)

    def forced(*args, **kwargs):
        found = original(*args, **kwargs)
        return {form: found[form]} if form in found else {"gemm": found["gemm"]}

    if form != "as planned":
        monkeypatch.setattr(plan, "costs", forced)
    known = literal(net.samples, net.params, net.batch)
    engine = "layerwise" if form == "as planned" else "auto"
    losses, gramian = mf.sample_gramian(net.samples, net.params, net.batch, engine=engine)
    agree(gramian, known @ known.mT, 1e-12)
    if form == "as planned":
        expected, rows = mf.sample_gradients(net.tasks, net.params, net.batch)
        near(losses, expected, 1e-12, 1e-13)
        rows = by_rows({name: row.flatten(0, 1) for name, row in rows.items()})
        agree(rows, known @ known.mT, 1e-12)


@pytest.mark.parametrize("way", ["auto", "rows", "pairs", "no pairs"])
@pytest.mark.parametrize("name", NAMES)
def test_lengths(name, way, monkeypatch):
    """From pairs of a sample's positions and from rows, whatever is cheaper."""
    net = build(name)
    if "pairs" in way:
        monkeypatch.setattr(formulas, "rows_are_cheaper", lambda *_: way == "no pairs")
    else:
        for module in (by_samples, plan):
            monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)  # several chunks where no tap serves
    engine = "rows" if way == "rows" else "auto"
    losses, lengths = mf.sample_norms(net.samples, net.params, net.batch, engine=engine)
    near(losses, net.samples(net.params, net.batch), 1e-12, 1e-13)
    known = literal(net.samples, net.params, net.batch).norm(dim=1).reshape(SAMPLES, TASKS)
    near(lengths, known, 1e-12)
    one = mf.sample_norms(lambda p, b: net.samples(p, b)[:, 1], net.params, net.batch)[1]
    near(one, known[:, 1], 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(name):
    net = build(name)
    tasks = mf.task_gramian(net.tasks, net.params, net.batch, engine="rows")[1]
    samples = mf.sample_gramian(net.samples, net.params, net.batch, engine="rows")[1]
    params = {key: leaf.float() for key, leaf in net.params.items()}
    batch = tuple(x.float() if x.is_floating_point() else x for x in net.batch)
    single = Architecture(net.module.float(), batch)
    for dtype in (None, F64):
        given: Any = {"params": params, "batch": batch, "gramian_dtype": dtype}
        gramian = mf.task_gramian(single.tasks, **given, engine="layerwise")[1]
        by_sample = mf.sample_gramian(single.samples, **given, engine="layerwise")[1]
        lengths = mf.sample_norms(single.samples, **given)[1]
        assert {x.dtype for x in (gramian, by_sample, lengths)} == {dtype or torch.float32}
        agree(gramian.double(), tasks, 1e-5)
        agree(by_sample.double(), samples, 1e-5)
        near(lengths.flatten(), by_sample.diagonal().sqrt(), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_taps_serve_all_leaves_but_those_listed(name):
    net = build(name)
    for samples, f in ((False, net.tasks), (True, net.samples)):
        layers = mf.explain_gramian(f, net.params, net.batch, samples=samples).layers
        assert tuple(layer.name for layer in layers if layer.op == "?") == net.untapped
        assert {layer.name.split("[")[0] for layer in layers} == set(net.params)


# Transforms.
MLP = build("mlp")


@pytest.mark.parametrize(
    "name", ["mlp", "convolutions", "transformer", "recurrent_cell", "tied_embedding"]
)
def test_vmapped_over_parameters_equals_loop(name):
    net = build(name)
    params = {key: torch.stack([leaf, 1.5 * leaf, leaf.cos()]) for key, leaf in net.params.items()}
    for measure in (
        lambda p: mf.task_gramian(net.tasks, p, net.batch, engine="layerwise")[1],
        lambda p: mf.sample_gramian(net.samples, p, net.batch, engine="layerwise")[1],
    ):
        together = vmap(measure)(params)
        nested = vmap(vmap(measure))({key: leaf[None] for key, leaf in params.items()})[0]
        for i in range(3):
            alone = measure({key: leaf[i] for key, leaf in params.items()})
            agree(together[i], alone, 1e-11)
            agree(nested[i], alone, 1e-11)


@pytest.mark.parametrize(
    "layer",
    [nn.Tanh(), nn.LayerNorm(16), nn.GroupNorm(2, 16), nn.BatchNorm1d(16).eval()],
    ids=lambda layer: type(layer).__name__,
)
def test_autocast_accumulates_in_single_precision(layer):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, TASKS))
    params, x = mf.parameters(net), torch.randn(7, 8)

    def losses(params, x, half=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = functional_call(net, params, x)
        return out.float().square()

    def tasks(params, x, half=True):
        return losses(params, x, half).mean(0)

    for measure, f in ((mf.task_gramian, tasks), (mf.sample_gramian, losses)):
        got = measure(f, params, x, engine="layerwise")[1]
        rows = measure(f, params, x, engine="rows")[1]
        exact = measure(partial(f, half=False), params, x, engine="rows")[1]
        assert got.dtype == rows.dtype == torch.float32
        # one forward in bfloat16; the products of the engine are not rounded to it once more, and a
        # norm's own are in another order
        most = (1.05 if isinstance(layer, nn.Tanh) else 1.5) * float((rows - exact).norm())
        assert float((got - exact).norm()) <= most <= 0.05 * float(exact.norm())


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["layer", "batch"])
@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("measure", ["task", "sample"])
def test_hypergradients_through_norms_equal_differences(kind, engine, measure, where):
    """torch's batched backward of these norms is wrong when differentiated again by a number."""
    norm = nn.LayerNorm(6) if kind == "layer" else nn.BatchNorm1d(6, track_running_stats=False)
    net = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, TASKS)).double()
    params, x = mf.parameters(net), torch.randn(SAMPLES, 4, dtype=F64)
    if kind == "batch" and measure == "sample":
        engine = "rows"  # the samples mix

    def squared(scale):
        def samples(p, b):
            if where == "after":
                return (functional_call(net, p, b).square() * scale).sin()
            return functional_call(net, p, b * scale + scale**2 * b**2).square()

        if measure == "sample":
            return mf.sample_gramian(samples, params, x, engine=engine)[1].square().sum()
        found = mf.task_gramian(lambda p, b: samples(p, b).mean(0), params, x, engine=engine)
        return found[1].square().sum()

    def recorded(scale):
        scale = scale if scale.requires_grad else scale.clone().requires_grad_()
        return torch.autograd.grad(squared(scale), scale, create_graph=True)[0]

    check_slope(squared, 1.3, *SLOPES)
    if kind == "layer":
        check_slope(grad(squared), 1.3, "grad")
        check_slope(recorded, 1.3, "closure")


def _contrastive(params, x):
    z = functional_call(MLP.module, params, x)
    return F.cross_entropy(z @ z.mT, torch.arange(len(z)), reduction="none")


def _swapped(params, x):
    return functional_call(MLP.module, params, x).square().sum(1)[torch.tensor([1, 0, 2, 3, 4])]


def test_losses_that_mix_samples_are_refused():
    for losses, said in ((_contrastive, "mm"), (_swapped, "index, of which nothing")):
        with pytest.raises(ValueError, match=f"samples mix in {said}"):
            mf.sample_gramian(losses, MLP.params, MLP.batch[0])
        found = mf.sample_gramian(losses, MLP.params, MLP.batch[0], engine="rows")[1]
        assert found.isfinite().all()


def test_circular_padding_is_refused():
    """It is written into pieces of a tensor, of which the graph does not say where."""
    torch.manual_seed(0)
    circular = nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular")
    net = nn.Sequential(nn.Conv1d(2, 3, 3), circular, nn.Flatten()).double()
    x = torch.randn(5, 2, 7, dtype=F64)

    def samples(p, x):
        return functional_call(net, p, x).square().sum(1)

    params = mf.parameters(net)
    with pytest.raises(ValueError, match=r"samples mix in a write into a piece.*engine=\"rows\""):
        mf.sample_gramian(samples, params, x)
    _, rows = mf.task_gradients(samples, params, x)
    agree(mf.sample_gramian(samples, params, x, engine="rows")[1], by_rows(rows), 1e-12)


READERS = {
    f"{name}, {engine}": lambda p, x, f=f, engine=engine: f(MLP.samples, p, (x,), engine=engine)[1]
    for name, f in (("samples", mf.sample_gramian), ("lengths", mf.sample_norms))
    for engine in ("auto", "rows")
}


def known(name: str, p: Any, x: Tensor) -> Tensor:
    """By a loop of torch.func's gradients, whose batched layer norm is wrong at second order."""
    count = TASKS * len(x)
    each = [grad(lambda p, i=i: MLP.samples(p, (x,)).flatten()[i])(p) for i in range(count)]
    rows = torch.stack([torch.cat([leaf.flatten() for leaf in g.values()]) for g in each])
    return rows.norm(dim=1).reshape(len(x), TASKS) if "lengths" in name else rows @ rows.mT


@pytest.mark.parametrize("name", READERS)
def test_vmap_and_nested_vmap(name):
    params = {key: torch.stack([leaf, 1.5 * leaf]) for key, leaf in MLP.params.items()}
    x = torch.stack([MLP.batch[0], MLP.batch[0] - 1, 2 * MLP.batch[0]])
    read = READERS[name]
    got = vmap(vmap(read, (None, 0)), (0, None))(params, x)
    for i in range(2):
        alone = {key: leaf[i] for key, leaf in params.items()}
        for j in range(3):
            near(got[i, j], read(alone, x[j]), 1e-11, 1e-12)


@pytest.mark.parametrize("name", READERS)
def test_nan_of_a_sample_stays_in_its_rows(name):
    x = MLP.batch[0].clone()
    x[2] = torch.nan
    got, plain = READERS[name](MLP.params, x), READERS[name](MLP.params, MLP.batch[0])
    kept = torch.arange(SAMPLES) != 2
    if "samples" in name:
        kept = kept.repeat_interleave(TASKS)
        assert got[:, ~kept].isnan().all()
        got, plain = got[:, kept], plain[:, kept]
    assert got[~kept].isnan().all()
    if "auto" in name:  # batched passes multiply NaN by zero
        near(got[kept], plain[kept])


@pytest.mark.parametrize("name", READERS)
def test_derivatives(name):
    """In both modes, of second order, too; of a batch that requires grad by itself."""
    x = MLP.batch[0]
    weigh = torch.linspace(-1, 1, READERS[name](MLP.params, x).numel(), dtype=F64)

    def total(read):
        return lambda p, x: read(p, x).flatten() @ weigh

    ours, theirs = total(READERS[name]), total(lambda p, x: known(name, p, x))
    for argument in range(2):
        found, wanted = (grad(f, argument)(MLP.params, x) for f in (ours, theirs))
        near(found, wanted, 1e-9, 1e-10)
    along = torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)
    forward = [jvp(lambda x, f=f: f(MLP.params, x), (x,), (along,))[1] for f in (ours, theirs)]
    torch.testing.assert_close(*forward, rtol=1e-9, atol=1e-10)
    leaf = x.clone().requires_grad_()
    (closed,) = torch.autograd.grad(ours(MLP.params, leaf), leaf)
    near(closed, grad(theirs, 1)(MLP.params, x), 1e-9, 1e-10)
    # The Hessian along a direction, by central differences: their error is h² ~ 1e-10 times third
    # derivatives, and rounding over h.
    h = 1e-5
    second = grad(lambda x: (grad(ours, 1)(MLP.params, x) * along).sum())(x)
    ends = [grad(theirs, 1)(MLP.params, x + s * h * along) for s in (1, -1)]
    near(second, (ends[0] - ends[1]) / (2 * h), 0, 1e-6 * float(second.abs().amax()))


def test_derivative_of_a_length_zero_is_zero():
    def squares(params, x):
        return (x @ params["w"]).square()

    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    _, lengths = mf.sample_norms(squares, {"w": torch.ones(2)}, x)
    assert lengths[0] == 0
    slope = grad(lambda w: mf.sample_norms(squares, {"w": w}, x)[1].sum())(torch.ones(2))
    assert slope.isfinite().all()


@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_what_is_saved_elsewhere(engine):
    """Taken on plain leaves, where no tap holds what it frees; refused under a transform."""
    net = build("mlp")

    def losses(params, batch):
        with torch.autograd.graph.save_on_cpu():
            return functional_call(net.module, params, (batch[0],)).mean(0)

    _, expected = mf.task_gramian(
        lambda p, b: functional_call(net.module, p, (b[0],)).mean(0), net.params, net.batch
    )
    got = mf.task_gramian(losses, net.params, net.batch, engine=engine)[1]
    torch.testing.assert_close(got, expected)
    said = mf.explain_gramian(losses, net.params, net.batch)
    if tells_hooks:
        assert {layer.form for layer in said.layers} == {"rows"}
        weights = [layer for layer in said.layers if layer.name.endswith("weight")]
        assert weights
        assert all("checkpointing" in layer.note for layer in weights)
    scaled = vmap(lambda s: mf.task_gramian(lambda p, b: s * losses(p, b), net.params, net.batch))
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        scaled(torch.ones(2, dtype=F64))


def test_input_overwritten_after_the_call():
    """Autograd refuses what a layer read and is gone, and so does the engine."""
    weight, x = torch.randn(3, 4, dtype=F64), torch.randn(SAMPLES, 4, dtype=F64)

    def losses(params, x):
        x = x.clone()
        out = F.linear(x, params["w"])
        x.zero_()
        return out.square().mean(0)

    for engine in ("layerwise", "rows"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            mf.task_gramian(losses, {"w": weight}, x, engine=engine)


# Separate losses: T heads, not T².
def _decoders(form):
    torch.manual_seed(0)
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 30)) for _ in range(4)
    )
    net = nn.ModuleDict({"trunk": nn.Linear(6, 8), "heads": heads}).double()
    entered = [0] * 4

    def losses(params, x):
        z = torch.tanh(F.linear(x, params["trunk.weight"], params["trunk.bias"]))
        found = []
        for task, head in enumerate(heads):
            own = {name: params[f"heads.{task}.{name}"] for name, _ in head.named_parameters()}
            out = functional_call(head, own, z)
            # a hook without a handle: one that is seen changes the passes
            out._backward_hooks = OrderedDict(
                count=lambda grad, task=task: entered.__setitem__(task, entered[task] + 1)
            )
            out.grad_fn._register_hook_dict(out)
            found.append(out.square().mean())
        return tuple(found) if form == "tuple" else torch.stack(found)

    return losses, mf.parameters(net), torch.randn(5, 6, dtype=F64), entered


@pytest.mark.parametrize("form", ["tuple", "stacked"])
@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_every_head_is_entered_once_for_the_rows(form, engine, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    losses, params, x, entered = _decoders(form)
    expected = mf.task_gramian(losses, params, x, shared="trunk.*", engine="rows")[1]
    entered[:] = [0] * 4
    got = mf.task_gramian(losses, params, x, shared="trunk.*", engine=engine)[1]
    assert entered == [1] * 4
    agree(got, expected, 1e-12)


@pytest.mark.parametrize("form", ["tuple", "stacked"])
@pytest.mark.parametrize(
    "given", [{}, {"heads": "own"}, {"heads": "weighted"}, {"mix": mf.subset(2)}]
)
def test_a_step_gives_the_same_gradient_by_every_engine(form, given, monkeypatch):
    monkeypatch.setattr(plan, "FEW_PARAMETERS", 0)
    losses, params, x, entered = _decoders(form)
    answers = []
    for engine in ("rows", "auto", "layerwise"):
        balance = mf.balance(losses, mf.cagrad(0.4), mf.jacobian("trunk.*", engine=engine, **given))
        state = balance.init(params, x, key=0)
        entered[:] = [0] * 4
        grads, _, info = balance.update(params, x, state)
        answers.append((grads, info))
        if engine != "rows":
            # once for the rows and the heads' own gradient, once for the combination where rows
            # were not kept
            assert max(entered) <= 2
    for grads, info in answers[1:]:
        torch.testing.assert_close(info.gramian, answers[0][1].gramian, rtol=1e-11, atol=1e-16)
        for name, value in grads.items():
            torch.testing.assert_close(value, answers[0][0][name], rtol=1e-9, atol=1e-14)


def test_watching_is_left_out_for_few_parameters(monkeypatch):
    monkeypatch.setattr(forwards, "read_uses", None)
    mf.task_gramian(MLP.tasks, MLP.params, MLP.batch)


def test_explanation_is_a_table_with_every_leaf():
    net = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 40))
    losses = lambda p, x: functional_call(net, p, x).square().mean(0)  # noqa: E731
    table = mf.explain_gramian(losses, mf.parameters(net), torch.randn(16, 200))
    assert table.rows == 40
    assert [layer.form for layer in table.layers] == ["kernel", "rows", "kernel", "rows"]
    assert all(f"\n{layer.name} " in str(table) for layer in table.layers)
    chosen = table.layers[0]
    # (XXᵀ: 16²·200) + (KΔ: 40·16²·300) + (⟨Δ, KΔ⟩: 40²·16·300) multiplications, two operations each
    products = 16**2 * 200 + 40 * 16**2 * 300 + 40**2 * 16 * 300
    assert chosen.gflop["kernel"] == pytest.approx(2e-9 * products)


@pytest.mark.parametrize("tasks", [1, 2])
def test_sample_noise_is_that_of_the_sample_gradients(tasks):
    _, rows = mf.sample_gradients(lambda p, b: MLP.tasks(p, b)[:tasks], MLP.params, MLP.batch)
    matrix = torch.cat([row.flatten(2) for row in rows.values()], 2)  # [sample, task, parameter]
    _, gramian = mf.sample_gramian(lambda p, b: MLP.samples(p, b)[:, :tasks], MLP.params, MLP.batch)
    got = mf.diagnostics.sample_noise(gramian, tasks)
    same = torch.linspace(-1.7, 1.3, 7).repeat(5 * tasks, 1)
    same = same * torch.linspace(0.1, 1, 200)[:, None, None]
    assert (vmap(lambda g: mf.diagnostics.sample_noise(g, tasks).noise)(same @ same.mT) >= 0).all()
    for task in range(tasks):
        noise = torch.cov(matrix[:, task].mT).trace()
        signal = matrix[:, task].mean(0).square().sum() - noise / SAMPLES
        near(got.noise[task], noise, 1e-9)
        near(got.signal[task], signal, 1e-9, 1e-12)
        near(got.ratio[task], signal / noise, 1e-9, 1e-12)
        for other in range(tasks):
            pairs = [(b, c) for b in range(SAMPLES) for c in range(SAMPLES) if b != c]
            count = sum(float(matrix[b, task] @ matrix[c, other]) < 0 for b, c in pairs)
            assert float(got.conflicts[task, other]) == pytest.approx(count / len(pairs))


@pytest.mark.parametrize("tasks", [2, 4, 40])
@pytest.mark.parametrize("engine", ["rows", "layerwise"])
def test_long_leaves_are_summed_without_losing_digits(tasks, engine):
    """Entries of one sign: a single float32 sum over two million of them is off by 1e-3."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = torch.rand(tasks, 2_000_003 // tasks)
    _, gramian = mf.task_gramian(
        lambda p, b: F.linear(p["w"], b), {"w": torch.zeros(rows.shape[1])}, rows, engine=engine
    )
    agree(gramian.double(), rows.double() @ rows.double().mT, 2e-6)


@pytest.mark.parametrize("engine", ["rows", "layerwise"])
def test_graphs_are_freed_without_the_garbage_collector(engine):
    gc.collect()
    gc.disable()
    try:
        made = weakref.WeakSet()
        original = backward.Backward.__init__

        def watched(self, *args):
            original(self, *args)
            made.add(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backward.Backward, "__init__", watched)
            mf.task_gramian(MLP.tasks, MLP.params, MLP.batch, engine=engine)
            mf.sample_gramian(MLP.samples, MLP.params, MLP.batch, engine=engine)
        assert not made
    finally:
        gc.enable()


def test_no_row_is_formed(monkeypatch, formed):
    net = nn.Sequential(nn.Linear(600, 400), nn.Tanh(), nn.Linear(400, 4)).double()
    monkeypatch.setattr(formulas.Deltas, "rows", None)  # is not called

    def samples(p, x):
        return functional_call(net, p, x).square()

    x = torch.randn(6, 600, dtype=F64)
    params = mf.parameters(net)
    mf.task_gramian(lambda p, x: samples(p, x).mean(0), params, x)
    assert formed
    mf.sample_norms(lambda p, x: samples(p, x).sum(1), params, x)
    assert (400, 600) not in formed
    assert (4, 400) not in formed
