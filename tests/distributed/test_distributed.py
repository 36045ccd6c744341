"""Several processes step as one on the union; modules that belong to several are refused."""

# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import mtlfunc as mf
from tests.support import ROOT, python, ranks, ranks_unlike
from tests.support.problems import BATCH, PARAMS, TrunkAndHeads, decode, encode, vector
from tests.support.ranks import CHECKS, Checks, begin


@pytest.fixture
def group():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def losses_of(module):
    def losses(params, batch):
        x, y = batch
        outputs = torch.stack(functional_call(module, params, (x,)), 1)
        return (outputs - y).square().mean((0, 2))

    return losses


@pytest.mark.usefixtures("group")
def test_data_parallel_modules_are_refused():
    wrapped = DistributedDataParallel(TrunkAndHeads(0))
    with pytest.raises(NotImplementedError, match="module is wrapped in DistributedDataParallel"):
        mf.parameters(wrapped)
    with pytest.raises(NotImplementedError, match=r"module\.1 is wrapped in DistributedData"):
        mf.parameters(nn.Sequential(nn.Identity(), wrapped))
    with pytest.raises(NotImplementedError, match="module is wrapped in DataParallel"):
        mf.stack([nn.DataParallel(TrunkAndHeads(0))])


@pytest.mark.usefixtures("group")
def test_a_forward_of_a_data_parallel_module_is_refused():
    """With parameters by hand, which `mtlfunc.parameters` has not seen."""
    wrapped = DistributedDataParallel(TrunkAndHeads(0))
    params = {name: leaf.detach() for name, leaf in wrapped.named_parameters()}
    losses, message = losses_of(wrapped), "losses_fn calls a module wrapped in DistributedDataPara"
    shared = "module.trunk.*"
    for probe in (mf.jacobian(shared), mf.losses_only(), mf.moving_average(shared)):
        with pytest.raises(NotImplementedError, match=message):
            mf.balance(losses, mf.mean(), probe).init(params, BATCH)
    for call in (mf.task_gradients, mf.task_gramian):
        with pytest.raises(NotImplementedError, match=message):
            call(losses, params, BATCH)
    # what was watched for one call is not watched after it
    assert len(wrapped(BATCH[0])) == 3


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "fully_shard": (fully_shard, "FSDPModule: by fully_shard"),
    "fully_shard inside": (
        lambda net: nn.ModuleDict({"net": fully_shard(net)}),
        r"module\.net is wrapped in FSDPModule: by fully_shard",
    ),
    "FSDP1": (
        lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu")),
        "FullyShardedDataParallel:",
    ),
    "DataParallel": (nn.DataParallel, "DataParallel: each forward runs new copies"),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.filterwarnings("ignore:FSDP")
def test_modules_in_parts_are_refused_by_name_with_the_cure(kind):
    world = torch.distributed.group.WORLD
    wrap, words = WRAPPED[kind]
    wrapped: Any = wrap(TrunkAndHeads(0))
    words = f"{words}.*wrap it in DistributedDataParallel instead"
    params = {"x": torch.ones(2, dtype=torch.float64)}
    called = wrapped["net"] if isinstance(wrapped, nn.ModuleDict) else wrapped
    entries: dict[str, Callable[[], Any]] = {
        "parameters": lambda: mf.parameters(wrapped),
        "stack": lambda: mf.stack([wrapped]),
        "Balancer": lambda: mf.Balancer(wrapped, mf.mgda()),
        "Balancer with group=": lambda: mf.Balancer(wrapped, mf.mgda(), group=world),
    }
    for name, call in entries.items():
        with pytest.raises(NotImplementedError, match=words):
            pytest.fail(f"{name}: {call()}")

    def losses(params, batch):
        return torch.stack(called(batch[0])).mean() * params["x"]

    inner = words.rpartition("is wrapped in ")[2]
    for call in (mf.task_gradients, mf.task_gramian, mf.sample_gramian):
        with pytest.raises(NotImplementedError, match=f"losses_fn calls a .*{inner}"):
            call(losses, params, BATCH)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("placement", [Shard(0), Replicate(), Partial()])
def test_parameters_in_parts_are_refused(placement):
    mesh = init_device_mesh("cpu", (1,))
    params = {name: DTensor.from_local(x, mesh, [placement]) for name, x in PARAMS.items()}
    words = r"\['trunk\.0\.weight'\] is a DTensor .* by DistributedDataParallel and group="
    state = mf.balance(vector, mf.mgda(), mf.jacobian("trunk.*")).init(PARAMS, BATCH)
    for group in (None, torch.distributed.group.WORLD):
        step = mf.balance(vector, mf.mgda(), mf.jacobian("trunk.*", group=group))
        for call in (partial(step.init, params), partial(step.update, params, state=state)):
            with pytest.raises(NotImplementedError, match=words):
                call(batch=BATCH)
    for call in (mf.task_gradients, mf.sample_gradients, mf.task_gramian, mf.sample_gramian):
        with pytest.raises(NotImplementedError, match=words):
            call(vector, params, BATCH)
    with pytest.raises(NotImplementedError, match=r"module\['trunk\.0\.weight'\] is a DTensor"):
        mf.assign_gradients(fully_shard(TrunkAndHeads(0)), PARAMS)
    whole = {name: x.full_tensor() for name, x in params.items()}  # the cure
    assert mf.task_gradients(vector, whole, BATCH)[0].shape == (3,)


@pytest.mark.usefixtures("group")
def test_a_plain_module_beside_a_process_group_is_fine():
    step = mf.balance(vector, mf.mgda(), mf.jacobian("trunk.*"))
    grads, _, _ = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    assert set(grads) == set(PARAMS)


@pytest.mark.usefixtures("group")
def test_every_probe_takes_a_group_or_says_why_not():
    """One made of another has that one's."""
    world = torch.distributed.group.WORLD
    parts = {"subset", "graddrop", "Run"}  # of a probe
    of_one = {"second_evaluation": mf.second_evaluation, "kernel_traces": mf.physics.kernel_traces}
    for name in set(mf.probes.__all__) - parts - set(of_one):
        given = (encode, decode) if name == "representation" else ()
        assert getattr(mf, name)(*given, group=world).group is world, name
    assert mf.second_evaluation(mf.losses_only(group=world)).group is world
    with pytest.raises(ValueError, match=r"^probe: kernel_traces does not sum over processes"):
        mf.physics.kernel_traces([vector], mf.losses_only(group=world))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("rule", [mf.mgda, mf.pcgrad, partial(mf.gradnorm, 1.5)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_distributed_checkpoint_holds_the_rules_state(rule, whole, tmp_path):
    """A new balancer has no state yet, and loads it: by its `state_dict`, or given itself."""
    world, nets = torch.distributed.group.WORLD, [TrunkAndHeads(0), TrunkAndHeads(0)]
    old, new = (mf.Balancer(net, rule(), "trunk.*", group=world, key=5) for net in nets)

    def step(net, balancer):
        return balancer.measure(losses_of(net)(dict(net.named_parameters()), BATCH)).weights

    old.backward(losses_of(nets[0])(dict(nets[0].named_parameters()), BATCH))
    checkpoint.save({"balancer": old if whole else old.state_dict()}, checkpoint_id=tmp_path)
    loaded = {"balancer": new if whole else new.state_dict()}
    checkpoint.load(loaded, checkpoint_id=tmp_path)
    if not whole:
        new.load_state_dict(loaded["balancer"])  # pyright: ignore[reportArgumentType]
    assert new.state_dict()["started"]
    assert torch.equal(step(nets[1], new), step(*deepcopy((nets[0], old))))


def test_a_compiled_module_keeps_its_prefix():
    """`torch.compile` puts `_orig_mod.` before the names; the numbers are the same."""
    module = TrunkAndHeads(0)
    compiled = torch.compile(module, backend="eager")
    assert isinstance(compiled, nn.Module)
    expected = mf.balance(losses_of(module), mf.mgda(), mf.jacobian("trunk.*"))
    step = mf.balance(losses_of(compiled), mf.mgda(), mf.jacobian("_orig_mod.trunk.*"))
    plain, params = mf.parameters(module), mf.parameters(compiled)
    grads, _, _ = step.update(params, BATCH, step.init(params, BATCH))
    wanted, _, _ = expected.update(plain, BATCH, expected.init(plain, BATCH))
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[f"_orig_mod.{name}"], grad)


def launch(check: str | Checks, size: int, folder: Path) -> list[tuple[int | None, str]]:
    """(exit code, output) of ranks, forks of one process that has imported all, at these checks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "tests.support.ranks_unlike", "tests.support.ranks_preload"]
    )
    processes = [context.Process(target=begin, args=(check, k, size, folder)) for k in range(size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
    outputs = [(folder / f"{rank}.log").read_text() for rank in range(size)]
    found = [(one.exitcode, text) for one, text in zip(processes, outputs, strict=True)]
    crashed = any(code in (-signal.SIGABRT, -signal.SIGSEGV) for code, _ in found)
    # once a rank died of a corrupted heap, in torch's gather through gloo; it never came again
    if crashed and folder.name != "again":
        (folder / "again").mkdir()
        return launch(check, size, folder / "again")
    return found


GROUPS = {
    **{f"{size} on the union": (CHECKS[name], size) for name, size in (("two", 2), ("three", 3))},
    **{f"{size} unlike": (checks, size) for size, checks in ranks_unlike.CHECKS.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize(("checks", "size"), GROUPS.values(), ids=GROUPS)
def test_a_group_steps_as_one_process_on_the_union_or_names_what_differs(checks, size, tmp_path):
    """By `support/ranks.py` and `ranks_unlike.py`; in the end one rank dies."""
    dead = [9] if ranks.dies in checks else []
    found = launch(checks, size, tmp_path)
    outputs = [text for _, text in found]
    assert [code for code, _ in found] == [0] * (size - len(dead)) + dead, "\n".join(outputs)
    done = re.findall(r"^(\w+): ok$", outputs[0], re.MULTILINE)
    assert done + ["dies"] * len(dead) == [one.__name__ for one in checks]
    assert sum("ended with RuntimeError" in text for text in outputs) == len(dead) * (size - 1)


@pytest.mark.slow
def test_a_page_ends_as_one_process_on_the_union(tmp_path):
    """By the launcher that users have, through a checkpoint; the other page: support/ranks.py."""
    command = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ("experiments.examples.data_parallel", str(tmp_path))
    done = python(*command, env=env, timeout=300)
    found = re.search(r"from one process on the union: ([0-9.e+-]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 1e-5
    assert "resumed at step 4" in done.stdout
