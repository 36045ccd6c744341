"""Captured steps, by a recorder that runs again: what is copied, kept and refused."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

import mtlfunc as mf
from mtlfunc.training import _recorder
from mtlfunc.types import BalanceState, TrainState
from tests.support.loops import reloaded, trained
from tests.support.oracles import near
from tests.support.problems import BATCH, PARAMS, TASKS, named, nets, opaque
from tests.support.recorders import Rerun, Watched, captured_lanes, captured_run
from tests.support.registry import RULES
from tests.support.steps import BATCHES, METHODS, STATEFUL, parts, step_of


@pytest.fixture
def made(monkeypatch):
    """Capture on the CPU; the recorders that were made since."""
    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Rerun)
    monkeypatch.setattr(Rerun, "made", [])
    return Rerun.made


def equal(one, other) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def expect_equal(one, other):
    assert equal(one, other)


def assert_same_run(step, batches, state=None, steps=5):
    state = step.init(PARAMS, batches[0]) if state is None else state
    captured_run(step, state, batches, steps, expect_equal)


def decay() -> mf.Step:
    """x halves at every step, towards the batch; its losses read both."""

    def update(state, batch):
        x, nothing = state.params["x"], torch.zeros(0)
        info = mf.Info((x - batch).abs(), nothing, nothing, nothing, (), {})
        return state._replace(params={"x": (x + batch) / 2}), info

    empty = BalanceState((), (), ())
    return mf.Step(lambda params, batch, key=0: TrainState(params, empty, ()), update)


X = torch.tensor([8.0, 16.0])
ZERO = torch.zeros(2)


def started(step=None):
    """A captured step, and a state that a replay returned."""
    captured = mf.capture(step or decay())
    return captured, trained(captured, [ZERO] * 2, {"x": X})


@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_captured_steps_are_the_plain_ones(made, name):
    rule, probe, batch = parts(name)
    step = mf.descend(opaque, rule, probe, mf.adam(0.01))
    assert_same_run(step, [batch, tree_map(lambda x: 0.9 * x, batch)])
    assert made[0].calls == ["warm up", "record", *["replay"] * 4]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RULES)
def test_every_rule_captured_is_the_plain_one(made, name):
    step = mf.descend(opaque, RULES[name].make(), mf.jacobian("trunk.*"), mf.adam(0.01))
    assert_same_run(step, BATCHES)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "gradnorm"])
def test_lanes_are_a_loop(made, name):
    captured_lanes(name, mf.stack(nets), BATCH, expect_equal, 1e-9, 1e-11)


def test_balance_copies_its_gradients(made):
    step = mf.balance(named, mf.cagrad(0.4), mf.jacobian("trunk.*"))
    captured, params = mf.capture(step), PARAMS
    plain = replayed = step.init(params, BATCH)
    kept = []
    for batch in BATCHES * 2:
        grads, plain, info = step.update(params, batch, plain)
        copies, replayed, seen = captured.update(params, state=replayed, batch=batch)
        assert equal((grads, plain, info), (copies, replayed, seen))
        assert type(replayed) is BalanceState
        assert list(seen.tasks) == [f"task {t}" for t in range(TASKS)]
        kept.append(((grads, info), (copies, seen)))
        params = {name: leaf - 0.02 * grads[name] for name, leaf in params.items()}
    assert all(equal(one, other) for one, other in kept)


def test_aux_and_what_passes_through(made):
    """Buffers in aux, answers that are an argument or a constant, and large ones."""
    large = torch.arange(4096.0).reshape(2, 2048)

    def losses(params, batch):
        found = (params["x"] - batch).square()
        aux = {"mean": params["x"].mean(), "given": batch, "own": params["x"]}
        return found, aux | {"large": large * params["x"][:, None], "fixed": large, "two": (batch,)}

    step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.25), has_aux=True)
    captured = mf.capture(step)
    plain = replayed = step.init({"x": X}, ZERO)
    kept = []
    for k in range(6):
        plain, one = step.update(plain, torch.full((2,), float(k)))
        replayed, other = captured.update(replayed, torch.full((2,), float(k)))
        kept.append((one, other))
    assert all(equal(one, other) for one, other in kept)


def test_a_state_whose_parts_move_on(made):
    def update(state, batch):
        a, b = state.optimizer
        after = TrainState(state.params, state.balance, (b, a + batch))
        return after, mf.Info(a, a, a, a, (), {})

    step = decay()._replace(update=update)
    state = TrainState({"x": X}, BalanceState((), (), ()), (X, 2 * X))
    assert_same_run(step, [ZERO + 1, ZERO + 2], state, steps=7)


def test_a_state_serves_again_and_older_ones_stay(made):
    step, (captured, a) = decay(), started()
    b, info = captured.update(a, ZERO)
    other = captured.init({"x": 3 * X}, ZERO)
    kept = [(a, X / 4), (b, X / 8), (other, 3 * X)]
    for k in range(1, 4):
        other, _ = captured.update(other, ZERO)
        b, _ = captured.update(b, ZERO)
        kept += [(other, 3 * X / 2**k), (b, X / 2 ** (k + 3))]
    assert equal(captured.update(a, ZERO), step.update(a, ZERO))
    assert torch.equal(info.losses, X / 4)
    assert all(torch.equal(state.params["x"], value) for state, value in kept)


@pytest.mark.parametrize("name", ["mgda", "gradnorm"])
def test_a_saved_state_goes_on(made, name):
    step = step_of(name)
    captured = mf.capture(step)
    state = trained(captured, BATCHES)
    saved = iter(reloaded(tree_leaves(state)))
    loaded = tree_map(lambda _: next(saved), state)
    after = captured.update(state, BATCH)
    for start in (state, tree_map(torch.clone, state), loaded):
        assert equal(captured.update(start, BATCH), after)
        assert equal(step.update(start, BATCH), after)
        assert equal(mf.capture(step).update(start, BATCH), after)


def test_each_tensor_of_an_answer_has_a_memory_of_its_own(made):
    captured = mf.capture(step_of("cagrad"))
    state = captured.init(PARAMS, BATCH)
    found = list(BATCH)
    for _ in range(3):
        state, info = captured.update(state, BATCH)
        found += tree_leaves((state, info))[:: 1 if made[0].calls[-1] == "replay" else 99]
    assert {*map(type, found)} == {torch.Tensor}
    assert all(x._base is None for x in found)
    assert len({x.untyped_storage()._cdata for x in found}) == len(found)


@pytest.mark.parametrize(
    "make", [lambda x: x.detach(), lambda x: x[1:], nn.Parameter], ids=["alias", "slice", "module"]
)
def test_a_view_of_an_older_state_stays(made, make):
    captured, a = started()
    view = make(a.params["x"])
    value = view.clone()
    for _ in range(3):
        a, _ = captured.update(a, ZERO)
    assert torch.equal(view, value)
    assert torch.equal(a.params["x"], X / 32)


def test_a_derivative_with_an_older_state(made):
    captured, a = started()
    x = a.params["x"].requires_grad_()
    loss = x.square().sum()
    state = TrainState({"x": x.detach()}, *a[1:])
    for _ in range(2):
        state, _ = captured.update(state, ZERO)
    (slope,) = torch.autograd.grad(loss, x)
    assert torch.equal(slope, X / 2)


def in_place(state):
    state.params["trunk.0.bias"].mul_(0.5)
    return state


def in_its_dict(state):
    state.params["trunk.0.bias"] = state.params["trunk.0.bias"] * 0.5
    return state


def with_params(edit):
    return lambda state: state._replace(params=state.params | edit(state.params))


EDITS = {
    "all replaced": with_params(lambda p: {name: leaf / 2 for name, leaf in p.items()}),
    "exchanged": with_params(
        lambda p: {f"heads.{i}.bias": p[f"heads.{1 - i}.bias"] for i in range(2)}),
    "one twice": with_params(lambda p: {"heads.0.bias": p["heads.2.bias"]}),
    "in place": in_place,
    "in its dict": in_its_dict,
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_state_that_was_edited(made, name):
    step = step_of("cagrad")
    captured = mf.capture(step)
    plain = replayed = step.init(PARAMS, BATCH)
    for k in range(8):
        plain, info = step.update(plain, BATCHES[k % 3])
        replayed, seen = captured.update(replayed, BATCHES[k % 3])
        assert equal((plain, info), (replayed, seen)), k
        if k % 3:
            plain, replayed = EDITS[name](plain), EDITS[name](replayed)


def test_the_parts_of_two_states(made):
    captured, a = started()
    b, _ = captured.update(a, ZERO)
    mixed = TrainState({"x": a.params["x"]}, *b[1:])
    assert torch.equal(captured.update(mixed, ZERO)[0].params["x"], X / 8)


def test_an_error_in_a_replay_leaves_the_states(made):
    step, broken = decay(), []

    def update(state, batch):
        after = step.update(state, batch)
        if broken:
            raise RuntimeError("the device is gone")
        return after

    captured, a = started(step._replace(update=update))
    broken.append(True)
    with pytest.raises(RuntimeError, match="the device is gone"):
        captured.update(a, ZERO)
    assert torch.equal(a.params["x"], X / 4)
    broken.clear()
    assert torch.equal(captured.update(a, ZERO)[0].params["x"], X / 8)


def test_each_kind_has_a_recording_and_the_oldest_is_freed(made):
    captured = mf.capture(step_of("mean"), graphs=2)
    state = captured.init(PARAMS, BATCH)
    plain = state
    for size in (8, 4, 8, 2, 8, 4):
        batch = tuple(x[:size] for x in BATCH)
        state, _ = captured.update(state, batch)
        plain, _ = step_of("mean").update(plain, batch)
        assert equal(state, plain)
    assert [each.calls.count("record") for each in made] == [1, 1, 1, 1]  # 8, 4, 2 and 4 again
    assert [each.freed for each in made] == [False, True, True, False]
    assert [each.calls.count("replay") for each in made] == [2, 0, 0, 0]


def test_dtypes_and_structures_are_kinds(made):
    captured = mf.capture(decay())
    for x in (X, X.double(), X[:1], X.double()):
        state = captured.init({"x": x}, torch.zeros_like(x))
        state, _ = captured.update(state, torch.zeros_like(x))
        assert torch.equal(state.params["x"], x / 2)
    assert len(made) == 3


def test_bools_and_strings_of_a_batch_are_kinds(made):
    def losses(params, batch):
        x = params["x"] - batch["to"]
        return x.abs() if batch["how"] == "abs" else x.square() * (2 if batch["twice"] else 1)

    step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.1))
    kinds = product(("abs", "square"), (True, False))
    batches = [{"to": ZERO, "how": how, "twice": twice} for how, twice in kinds]
    assert_same_run(step, batches, step.init({"x": X}, batches[0]), steps=9)
    assert len(made) == 4


def test_without_a_device_it_is_the_step():
    step = step_of("mgda")
    captured = mf.capture(step)
    state = captured.init(PARAMS, BATCH)
    assert equal(captured.update(state, BATCH), step.update(state, BATCH))
    assert captured.init is step.init


def test_transforms_see_the_plain_step(made):
    step = mf.capture(decay())
    state = step.init({"x": X}, ZERO)

    def after(x):
        return step.update(state._replace(params={"x": x}), ZERO)[0].params["x"].sum()

    assert torch.equal(grad(after)(X), torch.full((2,), 0.5))
    assert torch.equal(vmap(after)(torch.stack([X, 3 * X])), torch.tensor([12.0, 36.0]))
    assert not made


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(made, mode):
    step = step_of("mgda")
    captured = mf.capture(step)
    plain = replayed = step.init(PARAMS, BATCH)
    for k in range(6):
        plain, info = step.update(plain, BATCHES[k % 3])
        with mode() if k % 3 else torch.enable_grad():
            replayed, seen = captured.update(replayed, BATCHES[k % 3])
        # inference mode has other kernels on some processors, which round in another order
        near((replayed, tuple(seen)), (plain, tuple(info)), 1e-12, 1e-14)


BAD = {
    "a number": ({"to": ZERO, "n": 3}, TypeError, r"batch\['n'\]: expected a tensor, got int"),
    "an object": ({"to": ZERO, "n": object()}, TypeError, r"batch\['n'\].*object.*plain tensors"),
    "an array": ({"to": ZERO.numpy()}, TypeError, r"batch\['to'\].*ndarray"),
    "elsewhere": ({"to": ZERO.to("meta")}, ValueError, r"batch\['to'\] is on meta.*\.to\(device\)"),
    "sparse": ({"to": ZERO.to_sparse()}, TypeError, r"batch\['to'\].*to_dense"),
    "differentiated": ({"to": ZERO.clone().requires_grad_()}, ValueError,
        r"batch\['to'\] requires grad.*detach"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_batch_that_no_graph_can_hold_is_refused(made, what):
    batch, kind, message = BAD[what]
    step = decay()
    captured = mf.capture(step._replace(update=lambda s, b: step.update(s, b["to"])))
    state = captured.init({"x": X}, ZERO)
    for _ in range(2):
        with pytest.raises(kind, match=message):
            captured.update(state, batch)
        state, _ = captured.update(state, {"to": ZERO})
    assert torch.equal(state.params["x"], X / 4)


FAULTS = {
    "item": (lambda x: x * x[0].item(), "_local_scalar_dense.*on the host"),
    "if": (lambda x: x if x[0] > 1e9 else -x, "on the host"),
    "mask": (lambda x: x + x[x > 0].sum(), "boolean index"),
    "bytes": (lambda x: x + x[(x > 0).byte()].sum(), "boolean index"),
    "nonzero": (lambda x: x * x.nonzero().shape[0], "nonzero.*on the host"),
    "moved": (lambda x: x + x.to("meta").numel(), "copies between devices"),
    "repeats": (lambda x: x.repeat_interleave(torch.arange(2)), "repeat_interleave.*output_size"),
    "eigh": (lambda x: x + torch.linalg.eigh(x.outer(x)).eigenvalues, "_linalg_eigh.*wait"),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_recorded_is_named(made, monkeypatch, capsys, name):
    edit, message = FAULTS[name]
    step = decay()

    def update(state, batch):
        moved, info = step.update(state, batch)
        return moved, info._replace(losses=edit(info.losses))

    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Watched)
    captured = mf.capture(step._replace(update=update))
    state = captured.init({"x": X}, ZERO)
    where = "" if "MTLFUNC_TYPES" in os.environ else "test_capture.py.*"  # else it is the enforcer
    with pytest.raises(RuntimeError, match=f"capture: .*{where}{message}.* go on without capture"):
        captured.update(state, ZERO)
    assert torch.equal(state.params["x"], X)
    assert made[-1].freed


def test_what_a_step_takes_from_elsewhere_stays_alive(made, monkeypatch):
    """A graph knows addresses alone."""
    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Watched)
    step, scale, shift = decay(), torch.tensor(2.0), torch.tensor(1.0)
    view, sparse = torch.stack([scale, shift])[1:], torch.eye(2).to_sparse()

    def update(state, batch):
        return step.update(state, sparse @ batch * 3 * scale.detach() + view.square())

    captured = mf.capture(step._replace(update=update))
    trained(captured, [ZERO] * 4, {"x": X})
    held = [*made[-1].reads.values()]
    dense = {x.untyped_storage().data_ptr() for x in held if not x.is_sparse}
    assert dense >= {x.untyped_storage().data_ptr() for x in (scale, view)}
    assert any(x is sparse for x in held)


def test_a_state_that_changes_its_form_is_a_kind(made):
    step = decay()

    def update(state, batch):
        x = state.params["x"]
        moved, info = step.update(state, batch.expand_as(x))
        return moved._replace(params={"x": torch.cat([x, x[:1]])[:4]}, optimizer={"y": batch}), info

    state = step.init({"x": X}, ZERO)
    assert_same_run(step._replace(update=update), [ZERO[:1], ZERO[:1] + 1], state, steps=9)
    assert len(made) == 3


WRONG = {
    "a number": (3, TypeError, "expected a tensor, got int.*make it a tensor"),
    "an object": (object(), TypeError, "object.*plain tensors"),
    "elsewhere": (ZERO.to("meta"), ValueError, "is on meta"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_no_replay_could_repeat_is_refused(made, what):
    value, kind, message = WRONG[what]
    step = decay()

    def update(state, batch):
        moved, info = step.update(state, batch)
        return moved, info._replace(aux={"own": value})

    captured = mf.capture(step._replace(update=update))
    with pytest.raises(kind, match=rf"info\.aux\['own'\].*{message}"):
        captured.update(captured.init({"x": X}, ZERO), ZERO)


def test_inside_another_recording_it_is_the_step(made):
    inner, state = started()
    step = decay()

    def update(state, batch):
        return step.update(inner.update(state, batch)[0], batch)

    outer = mf.capture(step._replace(update=update))
    for k in range(1, 4):
        state, _ = outer.update(state, ZERO)
        assert torch.equal(state.params["x"], X / 4 ** (k + 1))
    assert [each.calls.count("replay") for each in made] == [2, 2]


def test_two_threads_take_turns(made):
    step, entered, go = decay(), threading.Event(), threading.Event()

    def update(state, batch):
        entered.set()
        assert go.wait(20)
        return step.update(state, batch)

    captured = mf.capture(step._replace(update=update))

    def run(scale):
        return trained(captured, [ZERO] * 3, {"x": scale * X}).params["x"]

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(run, scale) for scale in (1, 3)]
        assert entered.wait(20)
        go.set()
    assert equal([x.result() for x in found], [X / 8, 3 * X / 8])


def test_too_little_memory_says_what_to_do(made, monkeypatch):
    step = decay()
    captured, state = started(step._replace(update=lambda s, b: step.update(s, b.flatten())))

    def record(self, run):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(Rerun, "record", record)
    with pytest.raises(torch.OutOfMemoryError, match=r"graphs=1.*goes on.*20 GiB"):
        captured.update(state, torch.zeros(1, 2))
    assert made[-1].freed
    after, _ = captured.update(state, ZERO)
    assert torch.equal(after.params["x"], X / 8)


def test_a_function_in_place_of_a_step_is_refused():
    # the second where annotations are enforced, which refuse it first
    with pytest.raises(TypeError, match=r"step: .*_replace\(update=function\)|parameter 'step'"):
        mf.capture(lambda state, batch: None)  # pyright: ignore
