"""Functions of grids that other processes import."""

import torch

import mtlfunc as mf

AXES = {
    "seed": torch.arange(6),
    "rule": ["mgda", "cagrad"],
    "scale": torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64),
}


def weights(seed, rule, scale):
    """A solver's weights on a random Gramian, in the caller's default dtype where none is named."""
    rows = mf.random.normal(mf.random.key(seed), (3, 5), torch.float64) * scale
    rules = {"mgda": mf.mgda(), "cagrad": mf.cagrad(0.5)}
    return {"weights": mf.weights(rules[rule], rows @ rows.mT), "default": torch.ones(()) * 0.1}
