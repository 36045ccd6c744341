"""The memory of captured steps, by a recorder that runs again where a graph would be replayed:
what is copied, what stays, what is overwritten, and what is refused. `tests/test_capture_cuda.py`
has the graphs themselves.
"""

import gc
import itertools
import os
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

import mtlfunc as mf
from mtlfunc.training import _recorder
from mtlfunc.types import BalanceState, TrainState
from tests.support.problems import BATCH, PARAMS, TASKS, named, nets, opaque
from tests.support.recorders import Rerun, Watched
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


def assert_same_run(step, batches, state=None, steps=5):
    captured = mf.capture(step)
    state = step.init(PARAMS, batches[0]) if state is None else state
    plain = replayed = state
    for batch in itertools.islice(itertools.cycle(batches), steps):
        plain, info = step.update(plain, batch)
        replayed, seen = captured.update(replayed, batch)
        assert equal((plain, info), (replayed, seen))
        assert type(seen) is mf.Info
        assert type(replayed) is TrainState
    return replayed


def decay() -> mf.Step:
    """x halves at every step, towards the batch; its losses read both."""

    def update(state, batch):
        x = state.params["x"]
        moved = {"x": (x + batch) / 2}
        nothing = torch.zeros(0)
        info = mf.Info((x - batch).abs(), nothing, nothing, nothing, (), {})
        return TrainState(moved, state.balance, state.optimizer), info

    return mf.Step(
        lambda params, batch, key=0: TrainState(params, BalanceState((), (), ()), ()), update
    )


X = torch.tensor([8.0, 16.0])
ZERO = torch.zeros(2)


def started(step=None):
    """A captured step, and a state that it returned from its own memory."""
    captured = mf.capture(step or decay())
    state = captured.init({"x": X}, ZERO)
    for _ in range(2):
        state, _ = captured.update(state, ZERO)
    return captured, state


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_captured_steps_are_the_plain_ones(made, name):
    rule, probe, batch = parts(name)
    step = mf.descend(opaque, rule, probe, mf.adam(0.01))
    assert_same_run(step, [batch, tree_map(lambda x: 0.9 * x, batch)])
    assert made[0].calls == ["warm up", "record", "record", *["replay"] * 4]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RULES)
def test_every_rule_captured_is_the_plain_one(made, name):
    step = mf.descend(opaque, RULES[name].make(), mf.jacobian("trunk.*"), mf.adam(0.01))
    assert_same_run(step, BATCHES)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "gradnorm"])
def test_lanes_are_a_loop(made, name):
    step, params, keys = step_of(name), mf.stack(nets), torch.arange(3)
    state = vmap(step.init, (0, None, 0))(params, BATCH, keys)
    ends = assert_same_run(step._replace(update=vmap(step.update, (0, None))), [BATCH], state)
    captured = mf.capture(step)
    for lane in range(3):
        own = step.init({k: x[lane] for k, x in params.items()}, BATCH, keys[lane])
        for _ in range(5):
            own, _ = captured.update(own, BATCH)
        for leaf, alone in own.params.items():
            torch.testing.assert_close(ends.params[leaf][lane], alone, rtol=1e-9, atol=1e-11)


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
    """The last value and the one before change places at every step."""

    def update(state, batch):
        a, b = state.optimizer
        after = TrainState(state.params, state.balance, (b, a + batch))
        return after, mf.Info(a, a, a, a, (), {})

    step = decay()._replace(update=update)
    state = TrainState({"x": X}, BalanceState((), (), ()), (X, 2 * X))
    assert_same_run(step, [ZERO + 1, ZERO + 2], state, steps=7)


# ---- addresses and states ------------------------------------------------------------------------


def test_a_state_that_nobody_has_is_handed_out_again(made):
    """Its tensors are made once; one who keeps a part of a state gets other tensors."""
    step = step_of("mgda")
    captured = mf.capture(step)
    state = captured.init(PARAMS, BATCH)
    seen = []
    for _ in range(8):
        state, _ = captured.update(state, BATCH)
        seen.append((id(state), id(state.params), id(state.params["trunk.0.bias"])))
    assert len(set(seen[1:])) == 2
    for part in (
        lambda state: state,
        lambda state: state.params,
        lambda state: state.optimizer,
        lambda state: state.params["trunk.0.bias"],
        lambda state: weakref.ref(state.params["trunk.0.bias"]),
    ):
        kept = part(state)
        for _ in range(3):
            state, _ = captured.update(state, BATCH)
        leaves = tree_leaves(kept() if isinstance(kept, weakref.ref) else kept)
        assert all(leaf is None or "overwritten" in repr(leaf) for leaf in leaves)
    plain = step.init(PARAMS, BATCH)
    for _ in range(23):
        plain, _ = step.update(plain, BATCH)
    assert equal(state, plain)


def test_the_given_state_stays_and_older_ones_say_that_they_are_gone(made):
    captured, a = started()
    value = a.params["x"].clone()
    b, _ = captured.update(a, ZERO)
    assert torch.equal(a.params["x"], value)
    again, _ = captured.update(a, ZERO)
    assert torch.equal(again.params["x"], value / 2)
    with pytest.raises(RuntimeError, match="overwritten"):
        b.params["x"].sum()
    c, _ = captured.update(again, ZERO)
    assert torch.equal(c.params["x"], value / 4)
    x = a.params["x"]
    for read in (
        lambda: x + 1,
        lambda: torch.stack([X, x]),
        lambda: x[0],
        lambda: x.data.sum(),
        lambda: x.clone(),
        lambda: x.numpy(),
        lambda: x.tolist(),
        lambda: float(x[0]),
        lambda: X.copy_(x),
    ):
        with pytest.raises(RuntimeError, match=r"clone what you need .*capture once for each run"):
            read()
    assert (x.shape, x.dtype) == (value.shape, value.dtype)
    assert "overwritten" in repr(x)
    assert "overwritten" in repr({"state": x})


def test_a_stale_state_is_refused_by_name(made):
    captured, a = started()
    b, _ = captured.update(a, ZERO)
    c, _ = captured.update(b, ZERO)
    with pytest.raises(RuntimeError, match=r"state\.params\['x'\].*overwritten"):
        captured.update(a, ZERO)
    for stale in (TrainState({"x": a.params["x"].data}, *c[1:]), a):
        with pytest.raises(RuntimeError, match="overwritten"):
            captured.update(stale, ZERO)
    d, _ = captured.update(c, ZERO)
    assert torch.equal(d.params["x"], X / 32)


def test_a_state_from_elsewhere_is_copied_in(made):
    captured, _ = started()
    start = captured.init({"x": X}, ZERO)
    for _ in range(3):
        found = captured.update(start, ZERO)[0].params["x"]
        assert torch.equal(found, X / 2)
        assert torch.equal(start.params["x"], X)
        del found
    after, _ = captured.update(start, ZERO)
    saved = tree_map(torch.clone, after)
    for _ in range(3):
        after, _ = captured.update(after, ZERO)
    again, _ = captured.update(saved, ZERO)
    assert torch.equal(again.params["x"], X / 4)
    assert torch.equal(saved.params["x"], X / 2)


def in_place(state):
    state.params["trunk.0.bias"].mul_(0.5)
    return state


def other_memory(state):
    bias = state.params["trunk.0.bias"]
    bias.data = bias * 0.5
    return state


def in_its_dict(state):
    state.params["trunk.0.bias"] = state.params["trunk.0.bias"] * 0.5
    return state


def with_params(edit):
    return lambda state: state._replace(params=state.params | edit(state.params))


EDITS = {
    "one replaced": with_params(lambda p: {"trunk.0.weight": p["trunk.0.weight"] * 0.5}),
    "all replaced": with_params(lambda p: {name: leaf / 2 for name, leaf in p.items()}),
    "itself": with_params(lambda p: {name: leaf.detach() for name, leaf in p.items()}),
    "exchanged": with_params(
        lambda p: {f"heads.{i}.bias": p[f"heads.{1 - i}.bias"] for i in range(2)}
    ),
    "one twice": with_params(lambda p: {"heads.0.bias": p["heads.2.bias"]}),
    "in place": in_place,
    "turned": lambda state: (state.params["trunk.0.weight"].t_().t_(), state)[1],
    "another memory": other_memory,
    "in its dict": in_its_dict,
}


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


@pytest.mark.parametrize(
    "make", [lambda x: x.detach(), lambda x: x[1:], nn.Parameter], ids=["alias", "slice", "module"]
)
def test_a_view_in_use_is_not_overwritten(made, monkeypatch, make):
    monkeypatch.setattr(gc, "collect", lambda: 0)
    captured, a = started()
    value = a.params["x"].clone()
    view = make(a.params["x"])
    b, _ = captured.update(a, ZERO)
    with pytest.raises(RuntimeError, match=r"state\.params\['x'\]: a view .* clone it"):
        captured.update(b, ZERO)
    assert torch.equal(view, value[-len(view) :])
    del view
    c, _ = captured.update(b, ZERO)
    assert torch.equal(c.params["x"], value / 4)


def test_a_view_that_waits_to_be_collected_is_not_in_use(made):
    captured, a = started()
    cycle = [a.params["x"].detach()]
    cycle.append(cycle)
    del cycle
    for _ in range(2):
        a, _ = captured.update(a, ZERO)


def test_a_derivative_that_needs_what_was_overwritten_is_refused(made, monkeypatch):
    """Also where autograd does not see the writing, as in a graph."""
    record = Rerun.record
    monkeypatch.setattr(Rerun, "record", lambda *given: (record(*given)[0], lambda: None))
    captured, a = started()
    scale = torch.ones(2, requires_grad=True)
    loss = (scale * a.params["x"]).sum()
    for _ in range(2):
        a, _ = captured.update(a, ZERO)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_a_derivative_through_what_was_overwritten_is_refused(made):
    captured, a = started()
    loss = a.params["x"].requires_grad_().square().sum()
    state = TrainState({"x": a.params["x"].detach()}, *a[1:])
    for _ in range(2):
        state, _ = captured.update(state, ZERO)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


# ---- kinds and eviction --------------------------------------------------------------------------


def test_each_kind_has_a_recording_and_the_oldest_is_freed(made):
    captured = mf.capture(step_of("mean"), graphs=2)
    state = captured.init(PARAMS, BATCH)
    sizes = (8, 4, 8, 2, 8, 4)
    plain = state
    for size in sizes:
        batch = tuple(x[:size] for x in BATCH)
        state, _ = captured.update(state, batch)
        plain, _ = step_of("mean").update(plain, batch)
        assert equal(state, plain)
    assert [each.calls.count("record") for each in made] == [2, 2, 2, 2]  # 8, 4, 2 and 4 again
    assert [each.freed for each in made] == [False, True, True, False]
    assert [each.calls.count("replay") for each in made] == [2, 0, 0, 0]


def test_recordings_of_one_state_share_its_memory(made):
    wide = torch.zeros(3, 2)
    step = decay()

    def update(state, batch):
        return step.update(state, batch if batch.ndim == 1 else batch.sum(0))

    captured = mf.capture(step._replace(update=update))
    state = captured.init({"x": X}, ZERO)
    seen = set()
    for k in range(9):
        state, _ = captured.update(state, wide if k % 3 == 2 else ZERO)
        if k > 2:
            seen.add(state.params["x"].data_ptr())
    assert torch.equal(state.params["x"], X / 2**9)
    assert len(seen) == 2


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
    batches = [
        {"to": ZERO, "how": how, "twice": twice}
        for how in ("abs", "square")
        for twice in (True, False)
    ]
    assert_same_run(step, batches, step.init({"x": X}, batches[0]), steps=9)
    assert len(made) == 4


# ---- where the step runs by itself ---------------------------------------------------------------


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
        torch.testing.assert_close(replayed, plain, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(tuple(seen), tuple(info), rtol=1e-12, atol=1e-14)


# ---- bad input -----------------------------------------------------------------------------------

BAD = {
    "a number": ({"to": ZERO, "n": 3}, TypeError, r"batch\['n'\]: expected a tensor, got int"),
    "an object": ({"to": ZERO, "n": object()}, TypeError, r"batch\['n'\].*object.*plain tensors"),
    "an array": ({"to": ZERO.numpy()}, TypeError, r"batch\['to'\].*ndarray"),
    "elsewhere": ({"to": ZERO.to("meta")}, ValueError, r"batch\['to'\] is on meta.*\.to\(device\)"),
    "sparse": ({"to": ZERO.to_sparse()}, TypeError, r"batch\['to'\].*to_dense"),
    "differentiated": (
        {"to": ZERO.clone().requires_grad_()},
        ValueError,
        r"batch\['to'\] requires grad.*detach",
    ),
}


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
    """A graph knows addresses alone: of the caller's tensors, and of none of its own."""
    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Watched)
    step, scale, shift = decay(), torch.tensor(2.0), torch.tensor(1.0)
    view, sparse = torch.stack([scale, shift])[1:], torch.eye(2).to_sparse()

    def update(state, batch):
        return step.update(state, sparse @ batch * 3 * scale.detach() + view.square())

    captured = mf.capture(step._replace(update=update))
    state = captured.init({"x": X}, ZERO)
    for _ in range(4):
        state, _ = captured.update(state, ZERO)
    held = [*made[-1].reads.values()]
    dense = {x.untyped_storage().data_ptr() for x in held if not x.is_sparse}
    assert dense >= {x.untyped_storage().data_ptr() for x in (scale, view)}
    ours = [leaf.untyped_storage().data_ptr() for leaf in tree_leaves(state)]
    assert not dense & {*ours, ZERO.data_ptr()}
    assert any(x is sparse for x in held)


def test_a_state_that_changes_its_form_is_refused(made):
    step = decay()

    def grows(state, batch):
        moved, info = step.update(state, batch)
        return moved._replace(params={"x": torch.cat([moved.params["x"], batch])}), info

    def renames(state, batch):
        moved, info = step.update(state, batch)
        return moved._replace(optimizer={"y": batch}), info

    for update, message in (
        (grows, r"state\.params\['x'\] was .*\[2\].* is .*\[4\]"),
        (renames, "structure"),
    ):
        captured = mf.capture(step._replace(update=update))
        with pytest.raises(ValueError, match=f"state after an update.*{message}"):
            captured.update(captured.init({"x": X}, ZERO), ZERO)


def test_a_number_in_the_answer_is_refused(made):
    step = decay()

    def update(state, batch):
        moved, info = step.update(state, batch)
        return moved, info._replace(aux={"count": 3})

    captured = mf.capture(step._replace(update=update))
    with pytest.raises(TypeError, match=r"\.aux\['count'\]: expected a tensor, got int"):
        captured.update(captured.init({"x": X}, ZERO), ZERO)


def test_inside_another_recording_it_is_refused(made):
    inner, state = started()
    step = decay()

    def update(state, batch):
        return step.update(inner.update(state, batch)[0], batch)

    outer = mf.capture(step._replace(update=update))
    with pytest.raises(RuntimeError, match="inside another recording"):
        outer.update(state, ZERO)
    after, _ = inner.update(state, ZERO)
    assert torch.equal(after.params["x"], X / 8)


def test_two_threads_do_not_run_one_step(made):
    step, entered, go = decay(), threading.Event(), threading.Event()

    def update(state, batch):
        entered.set()
        go.wait(20)
        return step.update(state, batch)

    captured = mf.capture(step._replace(update=update))
    state = captured.init({"x": X}, ZERO)
    other = threading.Thread(target=lambda: captured.update(state, ZERO))
    other.start()
    assert entered.wait(20)
    with pytest.raises(RuntimeError, match="another thread"):
        captured.update(state, ZERO)
    go.set()
    other.join()
    captured.update(state, ZERO)


def test_too_little_memory_says_what_to_do(made, monkeypatch):
    step = decay()
    captured, state = started(
        step._replace(update=lambda s, b: step.update(s, b if b.ndim == 1 else b[0]))
    )

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
