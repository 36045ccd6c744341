"""No step of a rule or a probe waits for a device on the host; a CUDA graph takes all of them."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import mtlfunc as mf
from tests.support.device import host_reads
from tests.support.problems import BATCH, PARAMS, opaque
from tests.support.registry import PROBES, RULES
from tests.support.rules import geometry
from tests.support.steps import STATEFUL


def reads_of_a_step(rule: mf.Rule, probe: mf.Probe, batch: object = BATCH) -> list[str]:
    params, batch, key = tree_map(
        lambda x: x.to("meta") if isinstance(x, Tensor) else x, (PARAMS, batch, mf.random.key(0))
    )
    step = mf.descend(opaque, rule, probe, mf.adam(0.02))
    return host_reads(lambda: step.update(step.init(params, batch, key=key), batch))


@pytest.mark.parametrize("name", [name for name in RULES if "cvx" not in name])
def test_the_rule_reads_nothing(name):
    rule, losses = RULES[name].make(), torch.ones(3, device="meta", dtype=torch.float64)
    key, given = mf.random.key(0).to("meta"), geometry(torch.diag(losses), losses)
    assert host_reads(lambda: rule.update(given, rule.init(losses, key))) == []


@pytest.mark.parametrize("name", PROBES)
def test_a_step_with_the_probe_reads_nothing(name):
    case = PROBES[name]
    assert reads_of_a_step(mf.mgda() if case.gramian else mf.mean(), case.make()) == []


@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_that_measures_more_reads_nothing(name):
    rule, probe, batch = STATEFUL[name]
    assert reads_of_a_step(rule(), probe(), batch) == []


X, CPU = torch.ones(3, 3, device="meta"), torch.ones(3)
SEEN = {
    "a number": lambda: X.sum().item(), "a condition": lambda: bool((X > 0).any()),
    "a list": lambda: X.tolist(), "a mask": lambda: X[X > 0],
    "a mask written to": lambda: X.clone().index_put_((X > 0,), X[0, 0]),
    "places": lambda: X.nonzero(), "equality": lambda: torch.equal(X, X),
    "a copy to the device": lambda: torch.eye(3).to(X),
    "a number to the device": lambda: torch.tensor(1.0, device=X.device),
    "a list to the device": lambda: X.new_tensor([1.0, 2.0]), "a list as index": lambda: X[[0, 1]],
    "a tensor of the CPU": lambda: X @ CPU, "a copy to the CPU": lambda: X.cpu(),
    "eigh": lambda: torch.linalg.eigh(X), "eigvalsh": lambda: torch.linalg.eigvalsh(X),
    "qr": lambda: torch.linalg.qr(X), "svd": lambda: torch.linalg.svd(X),
    "cholesky": lambda: torch.linalg.cholesky(X),
    "cholesky_solve": lambda: torch.cholesky_solve(X, X), "inv": lambda: torch.linalg.inv(X),
    "solve": lambda: torch.linalg.solve(X, X),
    "a large batch": lambda: torch.linalg.inv_ex(X.new_empty(2, 32, 32)),
    "under vmap": lambda: torch.func.vmap(lambda x: torch.linalg.eigh(x)[0])(X.expand(2, 3, 3)),
    "NumPy": lambda: X.numpy(),
    "a kernel for CPUs": lambda: torch.ops.mtlfunc.surgery(X, None, None, None, 1e-7),
}  # fmt: skip
ALLOWED = {
    "a kernel's argument": lambda: 2 * X * torch.tensor(2.0),
    "what is made there": lambda: X + torch.full_like(X, 2.0) + torch.eye(3, device=X.device),
    "a choice": lambda: torch.where(X > 0, X, 0.0),
    "places that are there": lambda: X.index_select(0, X[0].argmin(keepdim=True)),
    "sort": lambda: X.sort(-1),
    "triangular": lambda: torch.linalg.solve_triangular(X.expand(5, 3, 3), X[:, :1], upper=False),
    "cholesky_ex": lambda: torch.linalg.cholesky_ex(X.expand(5, 3, 3)),
    "a small batch": lambda: torch.linalg.inv_ex(X.expand(5, 3, 3)),
    "one large matrix": lambda: torch.linalg.inv_ex(X.new_empty(32, 32)),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_waits_is_seen(name):
    assert host_reads(SEEN[name])


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_graph_takes_is_not_blamed(name):
    assert host_reads(ALLOWED[name]) == []
