"""The layerwise engine against rows that autograd made, on every architecture, under every
transform; and what it refuses.
"""

import gc
import weakref
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtlfunc as mf
from mtlfunc.core.internals import tells_hooks
from mtlfunc.gradients import backward
from mtlfunc.gradients import run as forwards
from mtlfunc.gradients.layerwise import plan
from tests.support.architectures import NAMES, SAMPLES, TASKS, Architecture, build
from tests.support.oracles import SLOPES, agree, check_slope


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
def test_task_gramian_equals_rows(name, chunk_size):
    net = build(name)
    losses, gramian = mf.task_gramian(
        net.tasks, net.params, net.batch, engine="layerwise", chunk_size=chunk_size
    )
    expected, rows = mf.task_gradients(net.tasks, net.params, net.batch)
    torch.testing.assert_close(losses, expected, rtol=1e-14, atol=0)
    agree(gramian, by_rows(rows), 1e-12)
    assert torch.equal(gramian, gramian.mT)


@pytest.mark.parametrize("name", NAMES)
def test_sample_gramian_equals_rows(name):
    net = build(name)
    losses, gramian = mf.sample_gramian(net.samples, net.params, net.batch, engine="layerwise")
    expected, rows = mf.sample_gradients(net.tasks, net.params, net.batch)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-13)
    agree(gramian, by_rows({name: row.flatten(0, 1) for name, row in rows.items()}), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(name):
    net = build(name)
    params = {key: leaf.float() for key, leaf in net.params.items()}
    batch = tuple(x.float() if x.is_floating_point() else x for x in net.batch)
    module = net.module.float()
    single = Architecture(module, batch)
    _, gramian = mf.task_gramian(single.tasks, params, batch, engine="layerwise")
    _, by_sample = mf.sample_gramian(single.samples, params, batch, engine="layerwise")
    _, wide = mf.task_gramian(
        single.tasks, params, batch, engine="layerwise", gramian_dtype=torch.float64
    )
    net.module.double()
    assert gramian.dtype == by_sample.dtype == torch.float32
    assert wide.dtype == torch.float64
    agree(
        gramian.double(), mf.task_gramian(net.tasks, net.params, net.batch, engine="rows")[1], 1e-5
    )
    agree(wide, mf.task_gramian(net.tasks, net.params, net.batch, engine="rows")[1], 1e-5)
    agree(
        by_sample.double(),
        mf.sample_gramian(net.samples, net.params, net.batch, engine="rows")[1],
        1e-5,
    )


@pytest.mark.parametrize("name", NAMES)
def test_taps_serve_all_leaves_but_those_listed(name):
    net = build(name)
    for samples in (False, True):
        layers = mf.explain_gramian(
            net.samples if samples else net.tasks, net.params, net.batch, samples=samples
        ).layers
        assert tuple(layer.name for layer in layers if layer.op == "?") == net.untapped
        assert {layer.name.split("[")[0] for layer in layers} == set(net.params)


# Transforms.
MLP = build("mlp")


def _mlp_losses(params, batch, scale=1.0):
    return functional_call(MLP.module, params, (batch[0] * scale,)).square()


def _task_measure(scale, engine):
    def tasks(params, batch):
        return _mlp_losses(params, batch, scale).mean(0)

    return mf.task_gramian(tasks, MLP.params, MLP.batch, engine=engine)[1].square().sum()


def _sample_measure(scale, engine):
    samples = partial(_mlp_losses, scale=scale)
    return mf.sample_gramian(samples, MLP.params, MLP.batch, engine=engine)[1].square().sum()


WAYS = SLOPES | {
    "twice": lambda f, at: grad(grad(f))(at),
    "lanes": lambda f, at: vmap(grad(f))(torch.stack([at, at / 2])),
}


@pytest.mark.parametrize("measure", [_task_measure, _sample_measure])
@pytest.mark.parametrize("way", WAYS)
def test_hypergradients_equal_those_through_rows(measure, way):
    at = torch.tensor(1.3, dtype=torch.float64)
    got, expected = (
        WAYS[way](partial(measure, engine=engine), at) for engine in ("layerwise", "rows")
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    assert bool((got != 0).all())


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


def test_a_vmap_inside_losses_fn_is_read_as_what_it_computes():
    net = build("mlp")

    def losses(params, batch):
        return vmap(lambda x: functional_call(net.module, params, (x,)))(batch[0])

    layers = mf.explain_gramian(losses, net.params, net.batch, samples=True).layers
    assert not any(layer.op == "?" for layer in layers)
    got, expected = (
        mf.sample_gramian(losses, net.params, net.batch, engine=engine)[1]
        for engine in ("layerwise", "rows")
    )
    agree(got, expected, 1e-12)


def test_autocast_accumulates_in_single_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, TASKS))
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
        assert got.dtype == torch.float32
        # Both see one forward in bfloat16; the products of the engine are not rounded to it once
        # more.
        assert (
            float((got - exact).norm())
            <= 1.05 * float((rows - exact).norm())
            <= 0.05 * float(exact.norm())
        )


def _batch_norm():
    net = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(6, TASKS),
    ).double()
    return net, mf.parameters(net), torch.randn(SAMPLES, 4, dtype=torch.float64)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["layer", "batch"])
@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("measure", ["task", "sample"])
def test_hypergradients_through_norms_equal_differences(kind, engine, measure, where):
    """torch's batched backward of these norms is wrong when it is differentiated again, by a number
    that enters before the norm or after it, in a transform or a closure.
    """
    net, params, x = _batch_norm()
    if kind == "layer":
        net[1] = nn.LayerNorm(6).double()
        params = mf.parameters(net)
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

    check_slope(squared, 1.3, "grad", "vmap", "grad(vmap)", "closure")
    if kind == "layer":
        check_slope(grad(squared), 1.3, "grad")
        check_slope(recorded, 1.3, "closure")


def _contrastive(params, x):
    z = functional_call(MLP.module, params, x)
    return F.cross_entropy(z @ z.mT, torch.arange(len(z)), reduction="none")


def _swapped(params, x):
    return functional_call(MLP.module, params, x).square().sum(1)[torch.tensor([1, 0, 2, 3, 4])]


def test_losses_that_mix_samples_are_refused():
    mlp = build("mlp")
    for losses, said in ((_contrastive, "mm"), (_swapped, "index, of which nothing")):
        with pytest.raises(ValueError, match=f"samples mix in {said}"):
            mf.sample_gramian(losses, mlp.params, mlp.batch[0])
        assert (
            mf.sample_gramian(losses, mlp.params, mlp.batch[0], engine="rows")[1].isfinite().all()
        )


def test_circular_padding_is_refused():
    """It is written into pieces of a tensor, of which the graph does not say where."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()
    ).double()
    x = torch.randn(5, 2, 7, dtype=torch.float64)

    def samples(p, x):
        return functional_call(net, p, x).square().sum(1)

    params = mf.parameters(net)
    with pytest.raises(ValueError, match=r"samples mix in a write into a piece.*engine=\"rows\""):
        mf.sample_gramian(samples, params, x)
    _, rows = mf.task_gradients(samples, params, x)
    agree(mf.sample_gramian(samples, params, x, engine="rows")[1], by_rows(rows), 1e-12)


def test_nan_in_a_sample_is_nan_in_its_rows_of_the_gramian():
    net = build("mlp")
    x = net.batch[0].clone()
    x[2] = float("nan")
    _, gramian = mf.sample_gramian(net.samples, net.params, (x,))
    broken = torch.arange(SAMPLES * TASKS) // TASKS == 2
    assert gramian[broken].isnan().all()
    assert gramian[:, broken].isnan().all()
    kept = ~broken
    plain = mf.sample_gramian(net.samples, net.params, net.batch)[1]
    torch.testing.assert_close(gramian[kept][:, kept], plain[kept][:, kept])


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
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        vmap(lambda s: mf.task_gramian(lambda p, b: s * losses(p, b), net.params, net.batch))(
            torch.ones(2, dtype=net.batch[0].dtype)
        )


def test_input_overwritten_after_the_call():
    """What a layer read is gone: autograd refuses, and so does the engine, rather than use what is
    there now.
    """
    weight = torch.randn(3, 4, dtype=torch.float64)

    def losses(params, x):
        x = x.clone()
        out = F.linear(x, params["w"])
        x.zero_()
        return out.square().mean(0)

    for engine in ("layerwise", "rows"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            mf.task_gramian(
                losses, {"w": weight}, torch.randn(SAMPLES, 4, dtype=torch.float64), engine=engine
            )


# Separate losses: T heads, not T².
def _decoders(form):
    torch.manual_seed(0)
    trunk, heads = (
        nn.Linear(6, 8),
        nn.ModuleList(
            nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 30)) for _ in range(4)
        ),
    )
    net = nn.ModuleDict({"trunk": trunk, "heads": heads}).double()
    entered = [0] * 4

    def losses(params, x):
        z = torch.tanh(
            functional_call(
                trunk, {name: params[f"trunk.{name}"] for name in ("weight", "bias")}, x
            )
        )
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

    return losses, mf.parameters(net), torch.randn(5, 6, dtype=torch.float64), entered


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
        probe = mf.jacobian("trunk.*", engine=engine, **given)
        balance = mf.balance(losses, mf.cagrad(0.4), probe)
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


def test_mask_needs_rows():
    with pytest.raises(ValueError, match="mask"):
        mf.jacobian(mask=lambda key, rows: rows, engine="layerwise")


def test_watching_is_left_out_for_few_parameters(monkeypatch):
    net = build("mlp")
    monkeypatch.setattr(forwards, "read_uses", None)
    mf.task_gramian(net.tasks, net.params, net.batch)


def test_explanation_is_a_table_with_every_leaf():
    net = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 40))
    table = mf.explain_gramian(
        lambda p, x: functional_call(net, p, x).square().mean(0),
        mf.parameters(net),
        torch.randn(16, 200),
    )
    assert table.rows == 40
    assert [layer.form for layer in table.layers] == ["kernel", "rows", "kernel", "rows"]
    assert all(f"\n{layer.name} " in str(table) for layer in table.layers)
    chosen = table.layers[0]
    # (XXᵀ: 16²·200) + (KΔ: 40·16²·300) + (⟨Δ, KΔ⟩: 40²·16·300) multiplications, two operations each
    assert chosen.gflop["kernel"] == pytest.approx(
        2e-9 * (16**2 * 200 + 40 * 16**2 * 300 + 40**2 * 16 * 300)
    )


@pytest.mark.parametrize("tasks", [1, 2])
def test_sample_noise_is_that_of_the_sample_gradients(tasks):
    net = build("mlp")
    _, rows = mf.sample_gradients(lambda p, b: net.tasks(p, b)[:tasks], net.params, net.batch)
    matrix = torch.cat([row.flatten(2) for row in rows.values()], 2)  # [sample, task, parameter]
    _, gramian = mf.sample_gramian(lambda p, b: net.samples(p, b)[:, :tasks], net.params, net.batch)
    got = mf.diagnostics.sample_noise(gramian, tasks)
    same = (
        torch.linspace(-1.7, 1.3, 7).repeat(5 * tasks, 1)
        * torch.linspace(0.1, 1, 200)[:, None, None]
    )
    assert (vmap(lambda g: mf.diagnostics.sample_noise(g, tasks).noise)(same @ same.mT) >= 0).all()
    for task in range(tasks):
        covariance = torch.cov(matrix[:, task].mT)
        noise = covariance.trace()
        signal = matrix[:, task].mean(0).square().sum() - noise / SAMPLES
        torch.testing.assert_close(got.noise[task], noise, rtol=1e-9, atol=0)
        torch.testing.assert_close(got.signal[task], signal, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got.ratio[task], signal / noise, rtol=1e-9, atol=1e-12)
        for other in range(tasks):
            pairs = [(b, c) for b in range(SAMPLES) for c in range(SAMPLES) if b != c]
            share = sum(float(matrix[b, task] @ matrix[c, other]) < 0 for b, c in pairs) / len(
                pairs
            )
            assert float(got.conflicts[task, other]) == pytest.approx(share)


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
