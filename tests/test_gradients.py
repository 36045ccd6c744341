"""Per-task and per-sample gradients and their Gramians against a literal loop of
torch.autograd.grad.
"""

import weakref
from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

import mtlfunc as mf
from mtlfunc.gradients import passes as backward
from tests.problems import (
    BATCH,
    FORMS,
    PARAMS,
    TASKS,
    TRUNK,
    flatten,
    literal_rows,
    net,
    nets,
    opaque,
    scalars,
    vector,
)

close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_task_gradients_equal_loop_of_autograd(form, chunk_size):
    losses, rows = mf.task_gradients(FORMS[form], PARAMS, BATCH, chunk_size=chunk_size)
    expected_losses, jacobian = literal_rows(PARAMS, BATCH, tuple(PARAMS))
    close(losses, expected_losses)
    assert list(rows) == list(PARAMS)
    close(torch.cat([row.flatten(1) for row in rows.values()], 1), jacobian)


@pytest.mark.parametrize("form", FORMS)
def test_task_gradients_keep_no_graph(form):
    losses, rows = mf.task_gradients(FORMS[form], PARAMS, BATCH)
    assert all(x.grad_fn is None and not x.requires_grad for x in (losses, *rows.values()))


@pytest.mark.parametrize("form", FORMS)
def test_task_gradients_vmapped_equal_loop(form):
    stacked = mf.stack(nets)
    batches = tuple(torch.stack([x, 2 * x]) for x in BATCH)
    _, rows = vmap(vmap(lambda p, b: mf.task_gradients(FORMS[form], p, b), (None, 0)), (0, None))(
        stacked, batches
    )
    for i, module in enumerate(nets):
        for j in range(2):
            _, alone = mf.task_gradients(
                FORMS[form], mf.parameters(module), tuple(x[j] for x in batches)
            )
            for name in rows:
                torch.testing.assert_close(rows[name][i, j], alone[name], rtol=1e-9, atol=1e-14)


def test_task_gradients_run_one_forward():
    calls = 0

    def counted(params, batch):
        nonlocal calls
        calls += 1
        return vector(params, batch)

    mf.task_gradients(counted, PARAMS, BATCH)
    assert calls == 1


def test_task_gradients_separate_scalars_do_not_touch_other_heads():
    passes = [0] * TASKS

    def count(task, gradient):
        passes[task] += 1

    def counting(params, batch):
        losses = []
        for task, loss in enumerate(scalars(params, batch)):
            loss.register_hook(partial(count, task))
            losses.append(loss)
        return tuple(losses)

    mf.task_gradients(counting, PARAMS, BATCH)
    assert passes == [1] * TASKS  # T, not T², heads were entered


# The hyper-parameter enters through losses_fn alone: a backward pass run without recording it would
# give 0 here.
def _squared_rows(scale, form):
    def scaled(params, batch):
        out = FORMS[form](params, batch)
        if isinstance(out, dict):
            return {name: loss * scale**2 for name, loss in out.items()}
        return tuple(loss * scale**2 for loss in out) if isinstance(out, tuple) else out * scale**2

    _, rows = mf.task_gradients(scaled, PARAMS, BATCH)
    return torch.stack([(row**2).sum() for row in rows.values()]).sum()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "way",
    ["grad", "vmap(grad)", "grad(vmap)", "jvp", "autograd", "autograd under vmap", "second order"],
)
def test_hypergradient_inside_losses_fn(form, way):
    at = torch.tensor(1.3, dtype=torch.float64)
    value = _squared_rows(torch.tensor(1.0, dtype=torch.float64), form)
    expected = 4 * value * at**3  # the squared rows scale with scale⁴
    if way == "grad":
        got = grad(_squared_rows)(at, form)
    elif way == "vmap(grad)":
        got = vmap(grad(lambda s: _squared_rows(s, form)))(torch.stack([at, at / 2]))[0]
    elif way == "grad(vmap)":
        got = grad(
            lambda s: vmap(lambda a: _squared_rows(s * a, form))(
                torch.ones(2, dtype=torch.float64)
            ).mean()
        )(at)
    elif way == "jvp":
        got = jvp(lambda s: _squared_rows(s, form), (at,), (torch.ones_like(at),))[1]
    elif way == "autograd":
        leaf = at.clone().requires_grad_()
        (got,) = torch.autograd.grad(_squared_rows(leaf, form), leaf)
    elif way == "autograd under vmap":
        leaf = at.clone().requires_grad_()
        (got,) = torch.autograd.grad(
            vmap(lambda a: _squared_rows(leaf * a, form))(
                torch.ones(2, dtype=torch.float64)
            ).mean(),
            leaf,
        )
    else:
        got, expected = grad(grad(_squared_rows))(at, form), 12 * value * at**2
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0.0)


def test_sample_gradients_equal_loop():
    losses, rows = mf.sample_gradients(vector, PARAMS, BATCH)
    assert losses.shape == (8, TASKS)
    for sample in range(8):
        expected, jacobian = literal_rows(
            PARAMS, tuple(x[sample : sample + 1] for x in BATCH), tuple(PARAMS)
        )
        close(losses[sample], expected)
        close(torch.cat([row[sample].flatten(1) for row in rows.values()], 1), jacobian)


def test_sample_gradients_average_to_task_gradients():
    _, per_sample = mf.sample_gradients(vector, PARAMS, BATCH, chunk_size=3)
    _, rows = mf.task_gradients(vector, PARAMS, BATCH)
    for name in rows:
        close(per_sample[name].mean(0), rows[name])


def test_sample_gradients_need_one_sample_axis():
    with pytest.raises(ValueError, match=r"batch: .*first axis"):
        mf.sample_gradients(vector, PARAMS, (BATCH[0], BATCH[1][:3]))


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_task_gramian_equals_rows(form, chunk_size):
    losses, gramian = mf.task_gramian(
        FORMS[form], PARAMS, BATCH, shared="trunk.*", chunk_size=chunk_size
    )
    expected, jacobian = literal_rows(PARAMS, BATCH, TRUNK)
    close(losses, expected)
    torch.testing.assert_close(gramian, jacobian @ jacobian.T, rtol=1e-12, atol=1e-14)


def test_task_gramian_float64_accumulation_of_float32_rows():
    params = {"w": torch.full((10_000,), 0.1)}
    x = torch.linspace(0.5, 1.5, 10_000)

    def losses(p, batch):
        return torch.stack([(p["w"] * x).sum(), (p["w"] * (1 - 1e-4 * x)).sum()])

    _, gramian = mf.task_gramian(losses, params, (), gramian_dtype=torch.float64)
    _, rows = mf.task_gradients(losses, params, ())
    exact = rows["w"].double() @ rows["w"].double().T
    assert gramian.dtype == torch.float64
    torch.testing.assert_close(gramian, exact, rtol=1e-14, atol=0.0)


def test_half_precision_rows_are_accumulated_in_float32():
    params = {name: leaf.bfloat16() for name, leaf in PARAMS.items()}
    _, gramian = mf.task_gramian(vector, params, tuple(x.bfloat16() for x in BATCH))
    assert gramian.dtype == torch.float32


def test_sample_gramian_equals_sample_gradients():
    x, y = BATCH

    def per_sample(params, batch):
        outputs = torch.stack(functional_call(net, params, (batch[0],)), 1)
        return (outputs - batch[1]).square().mean(2)

    losses, gramian = mf.sample_gramian(per_sample, PARAMS, (x, y), shared="trunk.*")
    expected, rows = mf.sample_gradients(vector, PARAMS, BATCH)
    jacobian = torch.cat([rows[name].flatten(2) for name in TRUNK], 2).flatten(0, 1)
    close(losses, expected)
    torch.testing.assert_close(gramian, jacobian @ jacobian.T, rtol=1e-12, atol=1e-14)


def test_predicate_selects_like_a_glob():
    by_glob = mf.task_gramian(opaque, PARAMS, BATCH, shared="trunk.*")[1]
    by_predicate = mf.task_gramian(
        opaque, PARAMS, BATCH, shared=lambda name: name.startswith("trunk")
    )[1]
    torch.testing.assert_close(by_glob, by_predicate, rtol=0.0, atol=0.0)


def test_inputs_are_not_changed():
    before = flatten(PARAMS).clone()
    mf.task_gradients(vector, PARAMS, BATCH)
    assert torch.equal(before, flatten(PARAMS))
    assert not any(leaf.requires_grad for leaf in PARAMS.values())


def test_chunked_gramian_holds_two_chunks_of_rows(monkeypatch):
    alive, peak = weakref.WeakSet(), 0
    original = backward.Passes.__call__

    def watched(self, *args, **kwargs):
        nonlocal peak
        found = original(self, *args, **kwargs)
        alive.add(found.rows["trunk.0.weight"])
        peak = max(peak, len(alive))
        return found

    monkeypatch.setattr(backward.Passes, "__call__", watched)
    mf.task_gramian(opaque, PARAMS, BATCH, shared="trunk.*", engine="rows", chunk_size=1)
    assert peak == 2
