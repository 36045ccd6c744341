"""torch.compile without graph breaks: choices of parameters, partial labels, groups, memories."""

import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from tests.support.every import few
from tests.support.labels import MASKS, given, labelled
from tests.support.oracles import same
from tests.support.problems import BATCH, net, nets, opaque
from tests.support.steps import STATEFUL as METHODS

TRACED = {"fullgraph": True, "backend": "aot_eager"}
CAPTURED = {"fullgraph": True, "backend": "eager"}  # traces alone
SHARED = "trunk.*"
CASES = {name: (opaque, *METHODS[name]) for name in ("modo, three batches", "db_mtl", "excess_mtl")}
CASES |= {
    "shared as a module": (opaque, mf.mgda, lambda: mf.jacobian(net.trunk), BATCH),
    "shared as parameters": (
        opaque,
        mf.mgda,
        lambda: mf.jacobian([*net.trunk.parameters()]),
        BATCH,
    ),
    "shared as globs": (opaque, mf.mgda, lambda: mf.jacobian(["trunk.0.*", "trunk.2.*"]), BATCH),
    "present, losses only": (
        labelled,
        mf.mean,
        lambda: mf.losses_only(present=given),
        (*BATCH, MASKS[0]),
    ),
    "present, tracked": (
        labelled,
        mf.moco,
        lambda: mf.moving_average(SHARED, present=given),
        (*BATCH, MASKS[0]),
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.parametrize("name", few(CASES, lambda name: "present" in name or "modo" in name))
def test_vmapped_step_traces_as_one_graph(name):
    """Two steps by one compilation."""
    losses, rule, probe, batch = CASES[name]
    step = mf.descend(losses, rule(), probe(), mf.sgd(0.05))
    everyone = (*batch[:2], MASKS[2]) if "present" in name else batch
    mf.parameters(net)  # whose parameters the choices are: stacked ones share their names
    state = vmap(lambda params, seed: step.init(params, everyone, key=seed))(
        mf.stack(nets), torch.arange(3)
    )
    update = vmap(step.update, (0, None))
    # another way to say "trunk.*" hands on the operations that this hands on
    compiled = torch.compile(update, **(CAPTURED if "shared as" in name else TRACED))
    expected, got = state, state
    for _ in range(2):
        expected, _ = update(expected, batch)
        got, _ = compiled(got, batch)
    same(got, expected, 1e-9, 1e-12)
