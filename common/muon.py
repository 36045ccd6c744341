"""The steepest common descent in Muon's norm, and Muon with exact polar factors."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import mtlfunc as mf


@contextmanager
def factors(exact: bool) -> Iterator[None]:
    """Polar factors, if exact, instead of Muon's own five Newton-Schulz steps in bfloat16."""
    module, name = import_module("torch.optim._muon"), "_zeropower_via_newtonschulz"

    def polar(update: Tensor, *_: Any) -> Tensor:
        left, _, right = torch.linalg.svd(update, full_matrices=False)
        return left @ right

    with patch.object(module, name, polar) if exact else nullcontext():
        yield


def descent_in_norm(
    muon: torch.optim.Muon, net: nn.Module, rows: mf.types.Params, gramian: Tensor
) -> tuple[mf.types.Params, Tensor]:
    """Gradients of all leaves of `rows` for the steepest common descent, and the rates that it
    promises: in Muon's norm over matrices, over the others by their Gramian.
    """
    matrices = {name: row for name, row in rows.items() if net.get_parameter(name).ndim == 2}
    solution, grads = mf.muon.gradients(muon, net, matrices, gramian)
    mixed = {name: torch.tensordot(solution.weights, row, 1) for name, row in rows.items()}
    return mixed | grads, solution.rates
