"""TorchJD's properties of aggregators, restated from their definitions, on the rules that claim them.

With d = A(J): non-conflicting, J d >= 0; strongly stationary, d = 0 only where a combination of the
gradients with positive weights vanishes; permutation invariant, A(PJ) = A(J); linear under scaling,
A(diag(c) J) linear in c > 0. In float32 at TorchJD's tolerances, in float64 at 1e-9.
"""

import pytest
import torch

import mtlfunc as mf

SHAPES = [
    (1, 1, 1),
    (2, 3, 1),
    (2, 3, 2),
    (4, 3, 1),
    (4, 3, 2),
    (4, 3, 3),
    (5, 10, 5),
    (8, 5, 3),
    (8, 5, 5),
    (9, 11, 5),
    (9, 11, 9),
    (16, 8, 8),
    (20, 10, 5),
    (20, 10, 10),
]
"""(tasks, parameters, rank)."""
DTYPES = [torch.float32, torch.float64]
KINDS = ("normal", "strongly stationary", "weakly stationary")


def matrix(kind, count, width, rank, seed, dtype):
    """Random rows of one rank; of the stationary kinds Jᵀu = 0 for a random u > 0, or u >= 0 with
    zeros, half of the entries or more.
    """
    draw = torch.Generator().manual_seed(1000 * seed + 100 * count + 10 * width + rank)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    left = normal(count, count)
    if kind != "normal" and count > 1:
        u = normal(count).abs()
        if kind == "weakly stationary":
            u[torch.randperm(count, generator=draw)[: count // 2]] = 0
        rank = min(rank, count - 1)
        left[:, 0] = u
        left = torch.linalg.qr(left)[0][:, 1:]
    else:
        left = torch.linalg.qr(left)[0]
    right = torch.linalg.qr(normal(width, width))[0]
    return left[:, :rank] @ torch.diag(normal(rank).abs()) @ right[:, :rank].mT


def matrices(dtype, kinds=KINDS):
    for kind in kinds:
        for shape in SHAPES:
            for seed in range(2):
                if kind == "normal" or shape[0] > 1:
                    yield (kind, *shape, seed), matrix(kind, *shape, seed, dtype)


def tolerance(dtype, peer):
    return peer if dtype == torch.float32 else 1e-9


def close(found, expected, bound):
    return bool(((found - expected).abs() <= bound + bound * expected.abs()).all())


def report(wrong):
    assert not wrong, f"{len(wrong)} matrices (kind, tasks, parameters, rank, seed): {wrong[:8]}"


CALM = {
    "mgda": mf.mgda,
    "dualproj": mf.dualproj,
    "upgrad": mf.upgrad,
    "cagrad(1)": lambda: mf.cagrad(1.0),
    "cagrad(2)": lambda: mf.cagrad(2.0),
}
MOVING = {"dualproj": mf.dualproj, "upgrad": mf.upgrad}
SYMMETRIC = {
    "mean": mf.mean,
    "mgda": mf.mgda,
    "dualproj": mf.dualproj,
    "upgrad": mf.upgrad,
    "cagrad(0.4)": lambda: mf.cagrad(0.4),
    "config": mf.config,
    "imtl_g": mf.imtl_g,
    "krum": mf.krum,
}
LINEAR = {"mean": mf.mean, "upgrad": mf.upgrad}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CALM)
def test_non_conflicting(rule, dtype):
    """The rates that are not negative have the length of all rates."""
    wrong = []
    for name, J in matrices(dtype):
        rates = J @ mf.aggregate(CALM[rule](), J)
        if not close(rates.clamp_min(0).norm(), rates.norm(), tolerance(dtype, 4e-4)):
            wrong.append((*name, float(rates.min())))
    report(wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", MOVING)
def test_strongly_stationary(rule, dtype):
    """Where no combination with positive weights alone vanishes, d is not 0."""
    wrong = []
    for name, J in matrices(dtype, ("normal", "weakly stationary")):
        # a strict common descent direction for some task: the sum of all gradients that can fall
        if name[0] == "weakly stationary" and (name[3] < name[1] - 1 or name[1] > 5):
            continue  # others may be strongly stationary as well
        if name[0] == "normal" and name[3] < name[1]:
            continue
        d = mf.aggregate(MOVING[rule](), J)
        if not float(d.norm()) > 5e-3 * float(J.norm(dim=1).min()):
            wrong.append((*name, float(d.norm())))
    report(wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", SYMMETRIC)
def test_permutation_invariant(rule, dtype):
    wrong = []
    for name, J in matrices(dtype):
        draw = torch.Generator().manual_seed(0)
        d = mf.aggregate(SYMMETRIC[rule](), J)
        for _ in range(2):
            moved = J[torch.randperm(len(J), generator=draw)]
            again = mf.aggregate(SYMMETRIC[rule](), moved)
            if not close(again, d, tolerance(dtype, 1e-4)):
                wrong.append((*name, float((again - d).abs().max())))
    report(wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", LINEAR)
def test_linear_under_scaling(rule, dtype):
    wrong = []
    for name, J in matrices(dtype):
        draw = torch.Generator().manual_seed(0)
        one, two = torch.rand(2, len(J), generator=draw, dtype=dtype)
        a, b = torch.rand(2, generator=draw, dtype=dtype)
        d, e, both = (
            mf.aggregate(LINEAR[rule](), c[:, None] * J) for c in (one, two, a * one + b * two)
        )
        if not close(both, a * d + b * e, tolerance(dtype, 1e-4)):
            wrong.append((*name, float((both - a * d - b * e).abs().max())))
    report(wrong)
