"""Gradients and Gramians of tasks and samples, of tied parameters too, against a loop."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.core import tree
from mtlfunc.core.transforms import lanes
from mtlfunc.core.tree import select
from mtlfunc.gradients import backward
from tests.support.functions import custom
from tests.support.memory import Largest
from tests.support.oracles import literal, rows_of, same
from tests.support.problems import (
    BATCH,
    FORMS,
    PARAMS,
    TASKS,
    TRUNK,
    below,
    flatten,
    literal_rows,
    net,
    nets,
    opaque,
    scalars,
    vector,
)

close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)


def _matrix(rows):
    """[task, parameter]"""
    return torch.cat([row.flatten(1) for row in rows.values()], 1)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_task_gradients_equal_loop_of_autograd(form, chunk_size):
    before = flatten(PARAMS).clone()
    losses, rows = mf.task_gradients(FORMS[form], PARAMS, BATCH, chunk_size=chunk_size)
    expected_losses, jacobian = literal_rows(PARAMS, BATCH, tuple(PARAMS))
    close(losses, expected_losses)
    assert list(rows) == list(PARAMS)
    close(_matrix(rows), jacobian)
    assert all(x.grad_fn is None and not x.requires_grad for x in (losses, *rows.values()))
    assert torch.equal(before, flatten(PARAMS))
    assert not any(leaf.requires_grad for leaf in PARAMS.values())


@pytest.mark.parametrize("samples_at_once", [None, 3])
def test_sample_gradients_equal_loop(samples_at_once):
    losses, rows = mf.sample_gradients(vector, PARAMS, BATCH, samples_at_once=samples_at_once)
    assert losses.shape == (8, TASKS)
    for sample in range(8):
        alone = tuple(x[sample : sample + 1] for x in BATCH)
        expected, jacobian = literal_rows(PARAMS, alone, tuple(PARAMS))
        close(losses[sample], expected)
        close(_matrix({name: row[sample] for name, row in rows.items()}), jacobian)


@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_chunked_gramian_takes_one_pass_a_task(engine, size, monkeypatch):
    """Each batched pass stands for `size` of them, and no row is differentiated again."""
    seen, original = [], backward.run_backward

    def counted(*args, **options):
        seen.append(lanes())
        return original(*args, **options)

    monkeypatch.setattr(backward, "run_backward", counted)
    mf.task_gramian(opaque, PARAMS, BATCH, shared="trunk.*", engine=engine, chunk_size=size)
    count = len(opaque(PARAMS, BATCH))
    assert sum(seen) == count
    assert max(seen) == min(size, count)


# Which parameters.
class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh())
        self.neck = torch.nn.Linear(6, 5)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(5, 2) for _ in range(2))


SELECTED = {
    "module": lambda m: m.trunk, "its parameters": lambda m: m.trunk.parameters(),
    "a list of its parameters": lambda m: list(m.trunk.parameters()), "a glob": lambda m: "trunk.*",
    "globs": lambda m: ["trunk.0.weight", "trunk.*"],
    "a tuple": lambda m: (m.trunk[0].bias, "trunk.0.w*"),
}  # fmt: skip


@pytest.mark.parametrize("how", SELECTED)
def test_select_takes_modules_parameters_and_lists(how):
    module = Named()
    params, expected = mf.parameters(module), ("trunk.0.weight", "trunk.0.bias")
    assert select(params, SELECTED[how](module)) == expected
    # a step makes new tensors of the old names, and so does a population
    moved = {name: leaf + 1 for name, leaf in params.items()}
    assert select(moved, SELECTED[how](module)) == expected
    assert select(mf.stack([module, Named()]), SELECTED[how](module)) == expected
    vmap(lambda p: torch.zeros(len(select(p, SELECTED[how](module)))))(mf.stack([module]))


def test_select_finds_a_part_in_the_whole_network():
    """Of another dict by storage; of a whole dict, also moved; and of two heads of one shape."""
    module = Named()
    params = {f"net/{name}": leaf.detach() for name, leaf in module.named_parameters()}
    assert select(params, module.neck) == ("net/neck.weight", "net/neck.bias")
    assert select(mf.parameters(module), module.heads[1]) == ("heads.1.weight", "heads.1.bias")
    trunk = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    mf.parameters(trunk)
    params = mf.parameters(torch.nn.Sequential(trunk, torch.nn.Linear(2, 2)))
    for moved in (params, {name: leaf + 1 for name, leaf in params.items()}):
        assert select(moved, trunk[1]) == ("0.1.weight", "0.1.bias")


def test_select_says_what_was_wrong():
    module = Named()
    params = mf.parameters(module)
    for which, error, message in (
        (["trunk.*", "body.*"], ValueError, "shared="),
        ("trunk", ValueError, "shared="),
        ([], ValueError, "at least one glob"),
        ((x for x in ()), ValueError, "empty after its first use"),
        (Named().trunk, ValueError, "of this Sequential is not in params.*mtlfunc.parameters"),
        (module.trunk[1], ValueError, "this Tanh has no parameters"),
        (lambda name: False, ValueError, "predicate accepts no parameter"),
    ):
        with pytest.raises(error, match=message):
            select(params, which)
    module.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen.*requires_grad=False.*not in params"):
        select(mf.parameters(module), module.trunk)
    names = r"no parameter; there are: neck\.weight.*frozen .*\(requires_grad_\(True\) makes them"
    for which in ("trunk.*", lambda name: name.startswith("trunk"), ["heads.*", "trunk.0.*"]):
        with pytest.raises(ValueError, match=f"shared.* {names}"):
            select(mf.parameters(module), which)
    # half frozen: the rest is meant
    module.trunk[0].bias.requires_grad_(True)
    assert select(mf.parameters(module), module.trunk) == ("trunk.0.bias",)


def test_globs_are_constants_to_the_compiler():
    """As the public decorator makes them, which would import the compiler."""

    def f():
        pass

    torch.compiler.assume_constant_result(f)
    marks = [name for name in vars(f) if name.startswith("_dynamo")]
    assert marks == [name for name in vars(tree._match_names) if name.startswith("_dynamo")]


# What torch.func does not take, and what would be wrong.
@pytest.mark.parametrize("engine", ["rows", "layerwise"])
@pytest.mark.parametrize("form", ["vector", "tuple", "dict"])
def test_losses_that_ignore_the_parameters_are_refused(form, engine):
    closure = {name: leaf.clone().requires_grad_() for name, leaf in PARAMS.items()}
    for given in (PARAMS, closure):
        for call in (
            lambda f: mf.task_gradients(f, PARAMS, BATCH),
            lambda f: mf.task_gramian(f, PARAMS, BATCH, engine=engine),
            lambda f: vmap(lambda p: mf.task_gramian(f, p, BATCH)[1])(mf.stack(nets)),
        ):
            with pytest.raises(ValueError, match=r"no loss depends on params.*functional_call"):
                call(lambda p, b, given=given: FORMS[form](given, b))
    with pytest.raises(ValueError, match=r"no loss depends on params"):
        mf.sample_gramian(lambda p, b: vector(PARAMS, b), PARAMS, BATCH, engine=engine)


@pytest.mark.parametrize("probe", [mf.losses_only, partial(mf.jacobian, "trunk.*")])
def test_a_step_of_losses_that_ignore_the_parameters_is_refused(probe):
    step = mf.balance(lambda p, b: vector(PARAMS, b), mf.mean(), probe())
    with pytest.raises(ValueError, match=r"no loss depends on params.*functional_call"):
        step.init(PARAMS, BATCH)


def test_losses_of_which_one_ignores_the_parameters_are_taken():
    one = torch.ones((), dtype=torch.float64)
    rows = mf.task_gradients(lambda p, b: torch.stack([scalars(p, b)[0], one]), PARAMS, BATCH)[1]
    assert not _matrix(rows)[1].any()


CALLS = {
    "task_gradients": lambda f: mf.task_gradients(f, PARAMS, BATCH)[1],
    "task_gramian": lambda f: mf.task_gramian(f, PARAMS, BATCH)[1],
    "layerwise": lambda f: mf.task_gramian(f, PARAMS, BATCH, engine="layerwise")[1],
    "sample_gradients": lambda f: mf.sample_gradients(f, PARAMS, BATCH)[1],
    "sample_gramian": lambda f: mf.sample_gramian(f, PARAMS, BATCH)[1],
    "sample rows": lambda f: mf.sample_gramian(f, PARAMS, BATCH, engine="rows")[1],
}


def _losses_of(name):
    def per_sample(params, batch):
        outputs = torch.stack(functional_call(net, params, (batch[0],)), 1)
        return (outputs - batch[1]).square().mean(2)

    return per_sample if name in ("sample_gramian", "sample rows") else vector


def test_sample_gramian_of_what_is_shared():
    losses_fn = _losses_of("sample_gramian")
    losses, gramian = mf.sample_gramian(losses_fn, PARAMS, BATCH, shared="trunk.*")
    expected, rows = mf.sample_gradients(vector, PARAMS, BATCH)
    jacobian = torch.cat([rows[name].flatten(2) for name in TRUNK], 2).flatten(0, 1)
    close(losses, expected)
    close(gramian, jacobian @ jacobian.T)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_around_a_call_is_refused(name):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        CALLS[name](_losses_of(name))


@pytest.mark.parametrize("call", [mf.task_gramian, mf.task_gradients, mf.sample_gradients])
def test_weights_that_torch_keeps_for_other_parameters_are_refused(call):
    layer, x = parametrizations.weight_norm(nn.Linear(3, 2)).double(), torch.ones(4, 3).double()
    params = mf.parameters(layer)

    def losses(params, x):
        return functional_call(layer, params, x).square().mean(0)

    with parametrize.cached(), pytest.raises(RuntimeError, match="around the call"):
        call(losses, params, x)
    inside, expected = parametrize.cached()(losses), call(losses, params, x)
    for _ in range(2):
        close(call(inside, params, x), expected)
    with parametrize.cached():
        CALLS["task_gramian"](vector)


def _step(probe, losses_fn):
    step = mf.balance(losses_fn, mf.mean(), probe)
    return step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))[0]


PROBES = {
    "losses_only": partial(_step, mf.losses_only()),
    "jacobian": partial(_step, mf.jacobian("trunk.*")),
    "jacobian, layerwise": partial(_step, mf.jacobian("trunk.*", engine="layerwise")),
}


@pytest.mark.parametrize("name", [*CALLS, *PROBES])
def test_inference_mode_changes_nothing(name):
    call = (CALLS | PROBES)[name]
    expected = call(_losses_of(name))
    with torch.inference_mode():
        got = call(_losses_of(name))
    same(got, expected, 1e-12, 1e-14)


def _old_style(losses):
    return 0.5 * custom(lambda ctx, x: 2 * x, lambda ctx, grad: 2 * grad)(losses)


def _retained(losses):
    losses = losses * 1
    losses.retain_grad()
    return losses


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("what", [_old_style, _retained])
def test_functions_with_ctx_and_retained_gradients(name, what):
    plain = _losses_of(name)
    if name == "sample_gramian" and what is _old_style:  # the graph shows nothing of its samples
        with pytest.raises(ValueError, match="samples mix in Custom, of which nothing is known"):
            CALLS[name](lambda p, b: what(plain(p, b)))
    elif name != "sample_gradients":  # a vmap over samples
        close(CALLS[name](lambda p, b: what(plain(p, b))), CALLS[name](plain))
    cure = r"without ctx.*setup_context" if what is _old_style else r"retain_grad.*aux"
    with pytest.raises(RuntimeError, match=cure):
        vmap(lambda s: CALLS[name](lambda p, b: what(s * plain(p, b))))(torch.ones(2).double())


@pytest.mark.parametrize("kind", ["hook", "pre_hook"])
def test_backward_hooks_of_modules(kind):
    """The hooks see plain gradients, one row at a time; refused with a cure under a transform."""
    module, seen, x = torch.nn.Linear(4, 2).double(), [], BATCH[0]

    def losses(params, batch):
        return functional_call(module, params, (params["weight"].mean() * batch,)).mean(0)

    expected = literal(losses, mf.parameters(module), x)
    register = getattr(module, f"register_full_backward_{kind}")
    register(lambda module, *grads: seen.append(grads[-1][0].tolist()))
    close(_matrix(mf.task_gradients(losses, mf.parameters(module), x)[1]), expected)
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match=r"setup_context.*full backward hook"):
        vmap(lambda x: mf.task_gradients(losses, mf.parameters(module), x))(torch.stack([x, x]))


def test_packed_sequences():
    lstm = torch.nn.LSTM(4, 3, batch_first=True).double()
    x, lengths = BATCH[0].view(2, 4, 4), torch.tensor([2, 3])

    def losses(params, x):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, True, False)
        return functional_call(lstm, params, (packed,))[0].data.mean(0)

    rows = mf.task_gradients(losses, mf.parameters(lstm), x)[1]
    close(_matrix(rows), literal(losses, mf.parameters(lstm), x))
    one = torch.ones((), dtype=x.dtype)
    with pytest.raises(RuntimeError, match=r"pack_padded_sequence.*mask"):
        grad(lambda s: mf.task_gramian(losses, mf.parameters(lstm), s * x)[1].sum())(one)


UNBATCHED = {
    "nn.RNN": lambda m, p, x: functional_call(m[0], below(p, "0."), (x,))[0].mean((0, 1)),
    "nn.GRU": lambda m, p, x: functional_call(m[1], below(p, "1."), (x,))[0].mean((0, 1)),
    "a branch": lambda m, p, x: p["2.weight"].sum(0) * (2 if x.sum() > 0 else x.mean()),
    "item": lambda m, p, x: p["2.weight"].sum(0) * x.mean().item(),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_sample_gradients_of_what_vmap_cannot_batch(name):
    recurrent = [kind(4, 3, batch_first=True) for kind in (torch.nn.RNN, torch.nn.GRU)]
    modules = torch.nn.ModuleList([*recurrent, torch.nn.Linear(3, 2)]).double()
    params, x = mf.parameters(modules), BATCH[0].view(2, 4, 4)

    def losses(p, x):
        return UNBATCHED[name](modules, p, x)

    with pytest.raises(RuntimeError, match="samples_at_once=1"):
        mf.sample_gradients(losses, params, x)
    got = mf.sample_gradients(losses, params, x, samples_at_once=1)
    for sample in range(2):
        alone = mf.task_gradients(losses, params, x[sample : sample + 1])
        same(tree_map(lambda x, at=sample: x[at], got), alone, 1e-12, 1e-14)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.BatchNorm1d(5, track_running_stats=False)])
def test_losses_fn_runs_once_where_a_closure_requires_grad(norm, where):
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), norm, torch.nn.Linear(5, 3)).double()
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    runs = 0

    def losses(params, x):
        nonlocal runs
        runs += 1
        x = x * scale + scale**2 * x**2 if where == "before" else x
        out = functional_call(module, params, (x,)).square().mean(0)
        return out if where == "before" else (out * scale).sin()

    for call in (
        partial(mf.task_gradients, losses),
        partial(mf.task_gramian, losses),
        partial(mf.task_gramian, losses, engine="layerwise"),
    ):
        runs = 0
        assert call(mf.parameters(module), BATCH[0])[0].requires_grad
        assert runs == 1


def read_by_few(params, x):
    """Losses of samples by the first leaf alone."""
    return torch.tanh(x @ params["w"].mT).square().mean(1)


@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
def test_a_leaf_that_no_loss_reads_has_no_rows(engine):
    """They would be of 1e10 numbers each."""
    params = {"u": torch.zeros(()).expand(100_000, 100_000), "w": torch.randn(30, 5)}
    only, x = {"w": params["w"]}, torch.randn(16, 5)
    for weightings in (None, torch.randn(4, 16)):
        found, wanted = (
            mf.task_gramian(read_by_few, each, x, engine=engine, weightings=weightings)
            for each in (params, only)
        )
        torch.testing.assert_close(found, wanted)
    if engine != "rows":
        for call in (mf.sample_gramian, mf.sample_norms):
            found, wanted = (call(read_by_few, each, x, engine=engine) for each in (params, only))
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
@pytest.mark.parametrize(
    "given",
    [{}, {"heads": "own"}, {"mix": mf.subset(2)}, {"weightings": lambda x: x.mT.contiguous()}],
)
def test_a_step_makes_no_rows_of_a_leaf_that_no_loss_reads(given, engine):
    params = {"u": torch.randn(100, 100), "w": torch.randn(30, 5), "head": torch.randn(50, 50)}
    params |= {"numbu": torch.ones(()), "number": torch.ones(())}
    only, x = {"w": params["w"]}, torch.randn(16, 5)
    found = []
    for each in (params, only):
        step = mf.balance(read_by_few, mf.mgda(), mf.jacobian("*[uw]", engine=engine, **given))
        state = step.init(each, x, key=1)
        with Largest() as largest:
            grads, _, info = step.update(each, x, state)
        assert largest.most <= 10_000  # one gradient
        assert list(grads) == list(each)
        found.append((grads["w"], info.gramian, info.weights))
        assert not any(grads[name].any() for name in grads if name != "w")
    torch.testing.assert_close(*found)


def gramian_of(losses, params, x, shared):
    return mf.task_gramian(losses, params, x, shared=shared)[1]


class Tied(nn.Module):
    """A trunk whose weight is also the heads', which `first` may register before it."""

    trunk: nn.Linear
    head: nn.Linear

    def __init__(self, first, whole=False):
        super().__init__()
        made = {"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 4)}
        for name in (first, *made):
            setattr(self, name, made[name])
        if whole:  # one module of two names
            setattr(self, first, getattr(self, {"trunk": "head", "head": "trunk"}[first]))
        else:
            self.trunk.weight = self.head.weight
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)))


def made(first, whole=False) -> Any:
    torch.manual_seed(0)
    net, x = Tied(first, whole), torch.randn(5, 4, dtype=torch.float64)
    return net, lambda params, x: functional_call(net, params, (x,)).square().mean(0), x


@pytest.mark.parametrize("first", ["trunk", "head"])
def test_a_tied_parameter_is_chosen_by_its_first_name_or_its_module(first):
    net, losses, x = made(first)
    params = mf.parameters(net)
    expected = gramian_of(losses, params, x, net.trunk)
    moved = {name: leaf.clone() for name, leaf in params.items()}
    names = [f"{first}.weight", "trunk.bias"]
    for some in (params, moved):
        for which in (names, names.__contains__, net.trunk):
            torch.testing.assert_close(gramian_of(losses, some, x, which), expected)
    found = vmap(lambda p: gramian_of(losses, p, x, names))(mf.stack([net, net]))[1]
    torch.testing.assert_close(found, expected)
    for which in (names, net.trunk):
        step = mf.balance(losses, mf.mgda(), mf.jacobian(which))
        _, _, info = step.update(moved, x, step.init(moved, x))
        torch.testing.assert_close(info.gramian, expected)
        info = mf.Balancer(net, mf.mgda(), shared=which).measure(net(x).square().mean(0))
        torch.testing.assert_close(info.gramian, expected)


def test_a_module_of_two_names_keeps_its_parameters():
    net, losses, x = made("head", whole=True)
    weight = net.head.weight
    with pytest.raises(ValueError, match="head is registered again as trunk"):
        losses(mf.parameters(net), x)
    assert net.head.weight is weight
    rows = rows_of(net(x).square().mean(0), list(net.parameters()))
    for which in ("head.*", net.trunk, net.head):
        info = mf.Balancer(net, mf.mgda(), shared=which).measure(net(x).square().mean(0))
        torch.testing.assert_close(info.gramian, rows @ rows.mT)
    with pytest.raises(ValueError, match=r"'trunk\.\*' matches no parameter.*first name alone"):
        mf.Balancer(net, mf.mgda(), shared="trunk.*")
