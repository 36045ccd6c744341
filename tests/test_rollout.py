"""Many steps in a row: the record, the bar, and what is kept when they end early."""

import itertools
import os
import signal
import sys

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from mtlfunc.types import BalanceState, TrainState
from tests.support.problems import (
    BATCH,
    PARAMS,
    TASKS,
    nets,
)
from tests.support.steps import step_of


def test_rollout_records_and_equals_loop():
    step = step_of("cagrad")
    state = step.init(PARAMS, BATCH)
    end, record = mf.rollout(step, state, [BATCH] * 7, every=3)
    assert record.losses.shape == (3, TASKS)
    assert record.gramian.shape == (3, TASKS, TASKS)
    loop = []
    for _ in range(7):
        state, info = step.update(state, BATCH)
        loop.append(info.losses)
    torch.testing.assert_close(record.losses, torch.stack(loop[::3]), rtol=0.0, atol=0.0)
    assert all(torch.equal(end.params[name], state.params[name]) for name in PARAMS)


def test_rollout_custom_record_and_iterators():
    step = step_of("mean")
    state = step.init(PARAMS, BATCH)
    _, norms = mf.rollout(
        step,
        state,
        itertools.repeat(BATCH, 4),
        record=lambda state, info: {"norm": state.params["trunk.0.bias"].norm()},
    )
    assert norms["norm"].shape == (4,)
    same, nothing = mf.rollout(step, state, [])
    assert same is state
    assert nothing is None
    with pytest.raises(ValueError, match="every"):
        mf.rollout(step, state, [], every=0)


def test_rollout_under_vmap_shows_no_bar(capsys):
    def whole(params, seed):
        step = step_of("pcgrad")
        return mf.rollout(step, step.init(params, BATCH, key=seed), [BATCH] * 3)[1].losses

    losses = vmap(whole)(mf.stack(nets), torch.arange(3))
    assert losses.shape == (3, 3, TASKS)
    assert capsys.readouterr().err == ""


def test_rollout_shows_progress(capsys):
    step = step_of("mean")
    mf.rollout(step, step.init(PARAMS, BATCH), [BATCH] * 2)
    assert "steps" in capsys.readouterr().err


def test_rollout_interrupted_keeps_what_was_computed():
    # a process started in the background ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def batches():
        for count in itertools.count():
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield BATCH

    step = step_of("mean")
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            mf.rollout(step, step.init(PARAMS, BATCH), batches())
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(stop.value, mf.Interrupted)
    assert isinstance(stop.value.state, TrainState)
    assert stop.value.record.losses.shape[0] == 3


@pytest.mark.parametrize(
    ("record", "dtype"),
    [
        (lambda state, info: float(info.losses.sum()), torch.float64),
        (lambda state, info: int(info.losses.argmax()), torch.int64),
        (lambda state, info: bool(info.losses[0] > 1), torch.bool),
        (lambda state, info: info.losses.sum().numpy(), torch.float64),
    ],
    ids=["float", "int", "bool", "numpy"],
)
def test_rollout_records_numbers(record, dtype):
    step = step_of("mean")
    state = step.init(PARAMS, BATCH)
    _, numbers = mf.rollout(step, state, [BATCH] * 3, record=record)
    _, infos = mf.rollout(step, state, [BATCH] * 3)
    assert numbers.dtype == dtype
    expected = [record(None, mf.Info(losses, *infos[1:])) for losses in infos.losses]
    assert numbers.tolist() == [x.item() if hasattr(x, "item") else x for x in expected]


def counting(steps: list[int]):
    """Batches that say how many were taken."""
    for count in range(5):
        steps.append(count)
        yield BATCH


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda state, info: None, "record: .*got None"),
        (lambda state, info: {"loss": info.losses, "name": "mean"}, "record: .*got str"),
        (lambda state, info: (info.losses, [None]), "record: .*got None"),
    ],
)
def test_rollout_names_a_record_that_cannot_be_stacked_at_the_first_step(record, message):
    step, taken = step_of("mean"), []
    with pytest.raises(TypeError, match=message):
        mf.rollout(step, step.init(PARAMS, BATCH), counting(taken), record=record)
    assert taken == [0]


FAILURES = {
    "a step": (lambda count: tuple(x * float("nan") for x in BATCH), None, ValueError),
    "the batches": (lambda count: 1 / 0, None, ZeroDivisionError),
    "the record's shape": (
        lambda count: BATCH,
        lambda state, info: info.losses[: 3 - (int(state.optimizer.steps) > 3)],
        ValueError,
    ),
    "the record's structure": (
        lambda count: BATCH,
        lambda state, info: (info.losses,) * (1 + (int(state.optimizer.steps) > 3)),
        ValueError,
    ),
    "the record's kind": (
        lambda count: BATCH,
        lambda state, info: [tuple, list][int(state.optimizer.steps) > 3]([info.losses]),
        ValueError,
    ),
    "Ctrl-C": (lambda count: signal.raise_signal(signal.SIGINT), None, KeyboardInterrupt),
    "Ctrl-C in the record": (
        lambda count: BATCH,
        lambda state, info: (
            signal.raise_signal(signal.SIGINT) if int(state.optimizer.steps) > 3 else info.losses
        ),
        KeyboardInterrupt,
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_rollout_that_fails_late_keeps_what_was_computed(what):
    bad, record, kind = FAILURES[what]
    step = step_of("mean")
    start = step.init(PARAMS, BATCH)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        batches = (BATCH if count < 3 else bad(count) for count in range(6))
        with pytest.raises(kind) as stop:
            mf.rollout(step, start, batches, record=record)
    finally:
        signal.signal(signal.SIGINT, before)
    expected, kept = mf.rollout(step, start, [BATCH] * 3, record=record)
    for a, b in zip(
        tree_leaves((stop.value.state, stop.value.record)),
        tree_leaves((expected, kept)),
        strict=True,
    ):
        assert torch.equal(a, b)
    # and goes on from there
    end, _ = mf.rollout(step, stop.value.state, [BATCH] * 2)
    whole, _ = mf.rollout(step, start, [BATCH] * 5)
    assert all(torch.equal(end.params[name], whole.params[name]) for name in PARAMS)


def test_rollout_interrupted_at_any_instruction_keeps_state_and_record_together():
    """Ctrl-C at any bytecode of `rollout`, by a tracer."""
    start = TrainState({"x": torch.zeros(())}, BalanceState((), (), ()), ())
    nothing = torch.zeros(0)

    def update(state, batch):
        moved = {"x": state.params["x"] + 1}
        return TrainState(moved, *state[1:]), mf.Info(moved["x"], nothing, nothing, nothing, (), {})

    step = mf.Step(lambda params, batch, key=0: start, update)

    def interrupted_at(place: int) -> mf.Interrupted | None:
        seen = 0

        def trace(frame, event, arg):
            nonlocal seen
            code = frame.f_code
            if code.co_name != "rollout" or not code.co_filename.endswith("_rollout.py"):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == place:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        try:
            sys.settrace(trace)
            mf.rollout(step, start, [()] * 3)
        except mf.Interrupted as stop:
            return stop
        except KeyboardInterrupt:  # before the first step or behind the last
            return None
        finally:
            sys.settrace(before)
        return None

    found = set()
    for place in range(1, 400, 3):
        stop = interrupted_at(place)
        if stop is None:
            continue
        done = 0 if stop.record is None else len(stop.record.losses)
        found.add(done)
        assert int(stop.state.params["x"]) == done
    assert found >= {0, 1, 2, 3}


def test_rollout_says_what_it_takes():
    step = step_of("mean")
    state = step.init(PARAMS, BATCH)
    with pytest.raises(TypeError, match=r"record: expected a function of \(state, info\), but"):
        mf.rollout(step, state, [], record=lambda info: info)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="too many values") as error:
        mf.rollout(step, state, BATCH)  # a batch where batches belong
    assert "yields one batch a step" in error.value.__notes__[0]
