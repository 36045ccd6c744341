"""IMTL-G, ConFIG and Aligned-MTL with and without derivatives, and UPGrad's batch, in which
right-hand sides share a Gramian.
"""

import pytest
import torch
from torch.func import jvp, vmap

import mtlfunc as mf
from tests.support.families import FAMILIES, gramian
from tests.support.oracles import near
from tests.support.rules import SPECTRAL, updated

F64 = torch.float64
EPS = torch.finfo(F64).eps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_rules_give_the_same_where_something_differentiates(name, family):
    """To ε times the condition number of what is inverted, and within the noise of float32
    Gramians, too; finite derivatives along the Gramian itself.
    """
    make = SPECTRAL[name]
    for count in (1, 2, 3, 8, 20):
        for dtype in (F64, torch.float32):
            G = gramian(family, count).to(dtype)
            plain = updated(make(), G)
            carried, slope = jvp(lambda g: updated(make(), g), (G,), (G,))[:2]
            assert slope.isfinite().all()
            wide, length = G.double(), G.double().diagonal().sqrt()
            if name.startswith("aligned"):
                inverted = wide / length.max().where(length.max() > 0, 1.0) ** 2
            else:
                unit = torch.where(length > 0, 1 / length, 0.0)
                inverted = wide * unit * unit[:, None]
            values = torch.linalg.eigvalsh(inverted)
            kept = values[values > count**2 * torch.finfo(dtype).eps]
            condition = float(kept.max() / kept.min()) if len(kept) else 1.0
            error = (plain - carried).double()
            distance = float((error @ wide @ error).clamp_min(0).sqrt())
            # of the weights, at the end
            rounding = 8 * torch.finfo(dtype).eps if dtype != F64 else 0.0
            assert distance <= (16 * count * EPS * condition + rounding) * float(
                carried.double().abs() @ length
            )
            assert plain.dtype == carried.dtype == dtype


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_rules_give_nan_for_what_is_not_finite(name):
    for at in ((0, 0), (0, 2), (2, 0)):
        for bad in (float("nan"), float("inf"), -float("inf")):
            G = gramian("gaussian", 3).clone()
            G[at] = bad
            assert updated(SPECTRAL[name](), G).isnan().all()
            assert jvp(lambda g: updated(SPECTRAL[name](), g), (G,), (G,))[0].isnan().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [mf.upgrad, mf.dualproj])
def test_batch_that_shares_gramians_changes_only_the_order_of_a_sum(rule, family):
    """UPGrad's sum over tasks runs along the memory, and nesting lays that out anew."""
    made = rule()
    for count in (1, 2, 6):
        G = torch.stack([gramian(family, count, seed) for seed in range(4)])
        alone = torch.stack([updated(made, g) for g in G])
        rounding = count * EPS * float(alone.abs().sum(-1).max())
        batched = vmap(lambda g: updated(made, g))(G)
        near(batched, alone, 0, rounding)
        nested = vmap(vmap(lambda g: updated(made, g)))(torch.stack([G, G.flip(0)]))
        both = torch.stack([alone, alone.flip(0)])
        near(nested, both, 0, rounding)


def test_batch_over_gramians_and_preferences_in_either_order():
    G = torch.stack([gramian("gaussian", 5, seed) for seed in range(3)])
    p = torch.tensor(
        [[1.0, 2, 3, 4, 5], [1.0, 1, 1, 1, 1], [5.0, 0, 0, 0, 1], [0.0, 0, 1, 0, 0]], dtype=F64
    )

    def weights(g, p):
        return mf.weights(mf.upgrad(preference=p), g)

    expected = torch.stack([torch.stack([weights(g, q) for q in p]) for g in G])
    near(vmap(vmap(weights, (None, 0)), (0, None))(G, p), expected, 1e-13, 1e-15)
    near(vmap(vmap(weights, (0, None)), (None, 0))(G, p), expected.transpose(0, 1), 1e-13, 1e-15)
