"""Operations that torch differentiates wrongly, compiled: hypergradients of two networks."""

from typing import Any

import pytest
import torch
from torch.func import grad, vmap

import mtlfunc as mf
from tests.support.every import few
from tests.support.operations import DOUBLE
from tests.support.operations.losses import Losses, literal, stacked

TRACED = {"fullgraph": True, "backend": "aot_eager"}
NAMES = (
    "layer_norm native",
    "batch_norm F",
    "instance_norm F",
    "prelu channels",
    "attention",
    "cdist",
    "cholesky_inverse upper",
    "weight_norm",
)
FEW = ("layer_norm native", "cdist", "cholesky_inverse upper")  # one of a kind


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("transform", few(["grad of vmap", "vmap of grad"], lambda t: t[0] == "g"))
@pytest.mark.parametrize(
    "names",
    few([FEW, NAMES[:4], NAMES[4:]], lambda names: names == FEW),
    ids=lambda names: f"{names[0]}…{names[-1]}",
)
def test_compiled_hypergradients(names, transform):
    losses, u = Losses(names, 2), torch.tensor(0.2, dtype=DOUBLE)
    at = torch.full((len(names),), 0.3, dtype=DOUBLE)
    networks = [losses.params(i) for i in range(2)]
    every = stacked(networks)

    def parts(params, s):
        return losses.parts(mf.task_gradients(losses, params, (s, u))[1])

    def slopes(params):
        return grad(lambda s: parts(params, s).sum())(at)

    def together(s):
        return vmap(lambda params: parts(params, s))(every).sum()

    h = 1e-3
    a, b, d, e = (
        torch.stack([losses.parts(literal(losses, one, (at + k * h, u))) for one in networks])
        for k in (-2, -1, 1, 2)
    )
    expected = (8 * (d - b) - (e - a)) / (12 * h)
    close: dict[str, Any] = {"rtol": 2e-6, "atol": 1e-9}
    if transform == "vmap of grad":
        torch.testing.assert_close(torch.compile(vmap(slopes), **TRACED)(every), expected, **close)
    else:
        found = torch.compile(grad(together), **TRACED)(at)
        torch.testing.assert_close(found, expected.sum(0), **close)
