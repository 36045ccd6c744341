"""Random linear encoders with curved heads, and where MGDA-UB and MGDA come to rest on them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

import mtlfunc as mf

from .common import gram

FULL = "full row rank, {}: share of ends that are not stationary"
DEFICIENT = "row rank 2 of 4, {}: share of ends that are not stationary"
CASES = {FULL: (3, 5), DEFICIENT: (4, 2)}
"""Samples (the encoding's length) and parameters of a random linear encoder."""


def curved_rows(w: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """v_t = B_t(z - y_t) and g_t = Xᵀv_t of the losses ½(z - y_t)ᵀB_t(z - y_t) at z = Xw."""
    x, targets, bends = batch
    off = (x @ w[..., None]).mT - targets
    v = (bends @ off[..., None])[..., 0]
    return v, v @ x


def curved_problem(root: Tensor, samples: int, size: int) -> tuple[Tensor, Any]:
    """A start, and an encoder of norm 1 with heads of norm 1, conditioned from 1 to 100."""
    part = [mf.random.fold_in(root, 100 + i) for i in range(5)]
    x = mf.random.normal(part[0], (samples, size), torch.float64)
    basis = torch.linalg.qr(mf.random.normal(part[3], (2, samples, samples), torch.float64))[0]
    scale = 100 ** -mf.random.uniform(part[4], (2, samples), torch.float64)
    bends = (basis * (scale / scale.amax(-1, keepdim=True))[:, None]) @ basis.mT
    start = 2 * mf.random.normal(part[1], (size,), torch.float64)
    targets = mf.random.normal(part[2], (2, samples), torch.float64)
    return start, (x / torch.linalg.matrix_norm(x, 2), targets, bends)


def padded(x: Tensor, *shape: int) -> Tensor:
    """With zeros behind, to a larger shape."""
    missing = [n - size for n, size in zip(shape, x.shape, strict=True)]
    return F.pad(x, [end for more in reversed(missing) for end in (0, more)])


def rest_points(draws: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Both methods from random starts. Distance of 0 from the gradients' hull, end over start
    `[draw]`, by the case with the method's name in it; and the most by which the distance is above
    ‖d‖ on MGDA-UB's way. All run side by side; zeros behind the smaller case change nothing.
    """
    samples, size = (max(sizes) for sizes in zip(*CASES.values(), strict=True))

    def problem(root: Tensor, own: tuple[int, int]) -> tuple[Tensor, Any]:
        w, (x, targets, bends) = curved_problem(root, *own)
        batch = padded(x, samples, size), padded(targets, 2, samples)
        return padded(w, size), (*batch, padded(bends, 2, samples, samples))

    every = [
        vmap(lambda root, own=own: problem(root, own))(torch.arange(draws))
        for own in CASES.values()
    ]
    start, batch = tree_map(lambda *parts: torch.cat(parts * 2), *every)
    weigh = vmap(lambda gramian: mf.weights(mf.mgda(), gramian))
    length = vmap(lambda rows: mf.diagnostics.stationarity(rows @ rows.mT).length)
    w, bound = start, len(CASES) * draws  # lanes of MGDA-UB, before those of MGDA
    held = -1.0
    for k in tqdm(range(steps), desc="to rest", leave=False):
        v, g = curved_rows(w, batch)
        weights = weigh(torch.cat([gram(v[:bound]), gram(g[bound:])]))
        d = (weights[:, None] @ g)[:, 0]
        if k % max(1, steps // 10) == 0:
            less = length(g[:bound]) - d[:bound].norm(dim=-1)
            held = max(held, float((less / g[:bound].norm(dim=-1).amax(-1)).max()))
        w = w - (1 + k / 100) ** -0.5 * d
    distance = length(curved_rows(w, batch)[1]) / length(curved_rows(start, batch)[1])
    lanes = [case.format(name) for name in ("MGDA-UB", "MGDA") for case in CASES]
    return dict(zip(lanes, distance.split(draws), strict=True)), held
