"""CUDA graphs of steps, bit for bit and after every fault; `test_capture.py` has a CPU's."""

import gc

import pytest
import torch
from torch.utils._pytree import tree_map

import mtlfunc as mf
from tests.support.loops import trained
from tests.support.oracles import same
from tests.support.problems import BATCH, PARAMS, named, net, nets, opaque
from tests.support.recorders import captured_lanes, captured_run
from tests.support.registry import RULES
from tests.support.steps import BATCHES, METHODS, SHARED, STATEFUL, parts, step_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CAPTURED = [name for name in RULES if not name.endswith("-cvx")]


@pytest.fixture(autouse=True, scope="module")
def _modules_on_the_device():
    if torch.cuda.is_available():
        net.cuda()
        yield
        net.cpu()
        gc.collect()
    else:
        yield


def cuda(tree):
    return tree_map(lambda x: x.cuda() if isinstance(x, torch.Tensor) else x, tree)


def assert_same_run(step, batches):
    """Several captured updates over changing batches are the plain ones, bit for bit."""
    captured_run(step, step.init(cuda(PARAMS), batches[0]), batches, 6, same)


@pytest.mark.parametrize("name", CAPTURED)
def test_every_rule_captured_is_the_plain_one_on_cuda(name):
    step = mf.descend(opaque, RULES[name].make(), mf.jacobian(SHARED), mf.adam(0.01))
    assert_same_run(step, cuda(BATCHES))


@pytest.mark.parametrize("name", [*METHODS, *STATEFUL])
def test_every_probe_captured_is_the_plain_one_on_cuda(name):
    with torch.device("cuda"):  # a rule may hold tensors
        rule, probe, batch = parts(name)
    step = mf.descend(opaque, rule, probe, mf.sgd(0.01, momentum=0.9))
    assert_same_run(step, [cuda(tree_map(lambda x, k=k: x * k, batch)) for k in (1.0, 0.9, 1.1)])


@pytest.mark.parametrize("name", ["mgda", "cagrad", "pcgrad", "gradnorm"])
def test_lanes_captured_are_a_loop_of_runs_on_cuda(name):
    captured_lanes(name, cuda(mf.stack(nets)), cuda(BATCH), same, 1e-7, 1e-9)


def test_balance_captured_is_the_plain_one_on_cuda():
    step = mf.balance(named, mf.cagrad(0.4), mf.jacobian(SHARED), reduction="sum")
    captured, params, batches = mf.capture(step), cuda(PARAMS), cuda(BATCHES)
    plain = replayed = step.init(params, batches[0])
    for k in range(6):
        one = step.update(params, batches[k % 3], plain)
        other = captured.update(params, batches[k % 3], replayed)
        same(one, other)
        plain, replayed = one[1], other[1]
        params = {name: leaf - 0.02 * one[0][name] for name, leaf in params.items()}


def test_dropout_draws_what_it_draws_without_on_cuda():
    def losses(params, batch):
        x, y = batch
        return opaque(params, (torch.nn.functional.dropout(x, 0.5), y))

    step = mf.descend(losses, mf.mgda(), mf.jacobian(SHARED), mf.adam(0.01))
    batch, seen = cuda(BATCH), []
    for one in (step, mf.capture(step)):
        with torch.random.fork_rng([0]):
            torch.manual_seed(3)
            state = step.init(cuda(PARAMS), batch)
            seen.append([])
            for _ in range(5):
                state, info = one.update(state, batch)
                seen[-1].append(info.losses)
    same(*seen)


def test_a_replay_takes_no_new_memory_on_cuda():
    step, batch = step_of("mgda"), cuda(BATCH)
    captured = mf.capture(step)
    state, info = captured.update(trained(captured, [batch] * 3, cuda(PARAMS)), batch)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        state, info = captured.update(state, batch)
    assert torch.cuda.memory_allocated() <= before
    assert info.losses.isfinite().all()


def test_a_recording_that_is_pushed_out_gives_its_memory_back_on_cuda():
    weight = torch.zeros(2**20, device="cuda")

    def losses(params, batch):
        return torch.stack([(params["x"] * b).tanh().mean() for b in batch.mean(1)])

    step = mf.descend(losses, mf.mgda(), mf.jacobian(), mf.adam(0.1))
    captured, reserved = mf.capture(step, graphs=2), []
    for size in range(1, 8):
        batch = torch.ones(2, size, device="cuda")
        trained(captured, [batch] * 3, {"x": weight})
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[2], reserved
    del captured
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved[0], reserved


FAULTS = {
    "item": (lambda found: found * found.detach()[0].item(), "_local_scalar_dense.*host"),
    "float": (lambda found: found / float(found.detach().sum()), "_local_scalar_dense.*host"),
    "if": (lambda found: found if found.detach()[0] > 0 else -found, "host"),
    "print": (lambda found: (print(found.detach()), found)[1], "print.*go on without"),
    "numpy": (lambda found: found * found.detach().cpu().numpy().sum(), "copies between devices"),
    "mask": (lambda found: found + found[found.detach() > 0].sum(), "boolean index"),
    "nonzero": (lambda found: found * found.detach().nonzero().shape[0], "nonzero.*host"),
    "moved": (lambda found: torch.eye(3, dtype=found.dtype).to(found) @ found, "copies between"),
    "eigh": (
        lambda found: found + torch.linalg.eigvalsh(
        found.detach().outer(found.detach())).sum() * 0, "eigh"),
    "synchronize": (lambda found: (torch.cuda.synchronize(), found)[1],
        "synchronize.*go on without"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_captured_is_named_and_leaves_the_device_whole_cuda(name, capsys):
    edit, message = FAULTS[name]
    losses, batch = lambda params, batch: edit(opaque(params, batch)), cuda(BATCH)
    step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.1))
    state = step.init(cuda(PARAMS), batch)
    before = tree_map(torch.clone, state)
    captured = mf.capture(step)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            captured.update(state, batch)
    same(state, before)
    step.update(state, batch)
    torch.cuda.synchronize()
    assert not torch.cuda.is_current_stream_capturing()
    assert_same_run(step_of("mgda"), cuda(BATCHES))


def test_inside_another_graph_it_is_the_step_on_cuda():
    step, batch = step_of("mean"), cuda(BATCH)
    captured = mf.capture(step)
    state = trained(captured, [batch], cuda(PARAMS))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        found = captured.update(state, batch)
    graph.replay()
    same(found, captured.update(state, batch))


def test_too_little_memory_is_said_and_the_state_goes_on_cuda():
    def losses(params, batch):
        return torch.stack([(params["x"] * b).sum() for b in batch])

    step = mf.descend(losses, mf.mean(), mf.losses_only(), mf.sgd(0.1))
    batch = torch.ones(2, device="cuda")
    state = step.init({"x": torch.zeros(2**24, device="cuda")}, batch)
    step.update(state, batch)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step.update(state, batch)
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = (torch.cuda.max_memory_reserved() + 2**24) / total
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(allowed)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="capture: too little memory"):
            mf.capture(step).update(state, batch)
        gc.collect()
        torch.cuda.empty_cache()
        assert not state.params["x"].any()
        after, _ = step.update(state, batch)
        assert after.params["x"].all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del after
    captured = mf.capture(step)
    for _ in range(3):
        state, _ = captured.update(state, batch)
    assert state.params["x"].all()


def test_another_stream_replays_the_same_cuda():
    step, batches = step_of("mgda"), cuda(BATCHES)
    captured = mf.capture(step)
    state = plain = step.init(cuda(PARAMS), batches[0])
    stream = torch.cuda.Stream()
    for k in range(6):
        plain, _ = step.update(plain, batches[k % 3])
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream if k % 2 else torch.cuda.current_stream()):
            state, _ = captured.update(state, batches[k % 3])
        torch.cuda.current_stream().wait_stream(stream)
    same(plain, state)
