"""The compiled kernels of IMTL-G, ConFIG and Aligned-MTL against the same rules in torch, and
UPGrad's batch, in which right-hand sides share a Gramian.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from mtlfunc.rules._kernels.equiangular import solve
from mtlfunc.types import Geometry
from tests.strategies import FAMILIES, gramian

F64 = torch.float64
EPS = torch.finfo(F64).eps
KERNELS = {
    "imtl_g": (mf.imtl_g, "_equiangular"),
    "config": (mf.config, "_equiangular"),
    "aligned_mtl": (mf.aligned_mtl, "aligned_mtl"),
    "aligned_mtl-median": (lambda: mf.aligned_mtl(scale="median"), "aligned_mtl"),
    "aligned_mtl-rmse": (lambda: mf.aligned_mtl(scale="rmse"), "aligned_mtl"),
}


def updated(rule: mf.Rule, G: Tensor) -> Tensor:
    losses = torch.ones_like(G[0])
    return rule.update(
        Geometry(losses, G, losses / len(G), torch.ones(len(G), dtype=torch.bool), {}),
        rule.init(losses, mf.random.key(0)),
    )[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_gives_the_direction_of_the_torch_path(name, family, monkeypatch):
    """To ε times the condition number of what is inverted, and within the noise of float32
    Gramians, too.
    """
    make, module = KERNELS[name]
    for count in (1, 2, 3, 8, 20):
        for dtype in (F64, torch.float32):
            G = gramian(family, count).to(dtype)
            compiled = updated(make(), G)
            with monkeypatch.context() as patch:
                patch.setattr(
                    import_module(f"mtlfunc.rules.{module}"), "can_look", lambda *values: False
                )
                in_torch = updated(make(), G)
            wide, length = G.double(), G.double().diagonal().sqrt()
            if name.startswith("aligned"):
                inverted = wide / length.max().where(length.max() > 0, 1.0) ** 2
            else:
                unit = torch.where(length > 0, 1 / length, 0.0)
                inverted = wide * unit * unit[:, None]
            values = torch.linalg.eigvalsh(inverted)
            kept = values[values > count**2 * torch.finfo(dtype).eps]
            condition = float(kept.max() / kept.min()) if len(kept) else 1.0
            error = (compiled - in_torch).double()
            distance = float((error @ wide @ error).clamp_min(0).sqrt())
            # of the weights, at the end
            rounding = 8 * torch.finfo(dtype).eps if dtype != F64 else 0.0
            assert distance <= (16 * count * EPS * condition + rounding) * float(
                in_torch.double().abs() @ length
            )
            assert compiled.dtype == in_torch.dtype == dtype


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_leaves_what_is_not_finite(name):
    for at in ((0, 0), (0, 2), (2, 0)):
        for bad in (float("nan"), float("inf"), -float("inf")):
            G = gramian("gaussian", 3).clone()
            G[at] = bad
            assert updated(KERNELS[name][0](), G).isnan().all()


def test_equiangular_kernel_answers_only_where_it_proves_that_no_eigenvalue_is_small():
    for family in FAMILIES:
        for count in (2, 3, 8, 20):
            G = gramian(family, count)
            unit = torch.where(G.diagonal() > 0, G.diagonal().rsqrt(), 0.0)
            smallest = float(torch.linalg.eigvalsh(G * unit * unit[:, None])[0])
            noise = count**2 * EPS
            answered = solve(G.numpy(), np.ones(count), noise, np.empty(count), np.empty(count))
            assert answered <= (smallest > 0.5 * noise)
            # the trace of the inverse is at most T/smallest
            assert answered or smallest <= 2 * count * noise


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [mf.upgrad, mf.dualproj])
def test_batch_that_shares_gramians_changes_no_bit(rule, family):
    made = rule()
    for count in (1, 2, 6):
        G = torch.stack([gramian(family, count, seed) for seed in range(4)])
        alone = torch.stack([updated(made, g) for g in G])
        assert torch.equal(vmap(lambda g: updated(made, g))(G), alone)
        nested = vmap(vmap(lambda g: updated(made, g)))(torch.stack([G, G.flip(0)]))
        assert torch.equal(nested, torch.stack([alone, alone.flip(0)]))


def test_batch_over_gramians_and_preferences_in_either_order():
    G = torch.stack([gramian("gaussian", 5, seed) for seed in range(3)])
    p = torch.tensor(
        [[1.0, 2, 3, 4, 5], [1.0, 1, 1, 1, 1], [5.0, 0, 0, 0, 1], [0.0, 0, 1, 0, 0]], dtype=F64
    )

    def weights(g, p):
        return mf.weights(mf.upgrad(p), g)

    expected = torch.stack([torch.stack([weights(g, q) for q in p]) for g in G])
    torch.testing.assert_close(
        vmap(vmap(weights, (None, 0)), (0, None))(G, p), expected, rtol=1e-13, atol=1e-15
    )
    torch.testing.assert_close(
        vmap(vmap(weights, (0, None)), (None, 0))(G, p),
        expected.transpose(0, 1),
        rtol=1e-13,
        atol=1e-15,
    )
