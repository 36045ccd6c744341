"""Rules that read losses alone, along a series of losses."""

import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.types import Geometry

F64 = torch.float64

_generator = torch.Generator().manual_seed(3)


# losses [step, task]
SERIES = (
    torch.rand(12, 4, generator=_generator, dtype=F64)
    * torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=F64)
    + 0.05
)


RULES = {
    "uw": lambda **more: mf.uw(0.1, **more),
    "imtl_l": lambda **more: mf.imtl_l(0.1, **more),
    "dwa": lambda **more: mf.dwa(2, **more),
    "gls": mf.gls,
    "stch": lambda **more: mf.stch(0.3, **more),
    "stch-warmup": lambda **more: mf.stch(0.3, warmup=(1, 2), **more),
    "famo": lambda **more: mf.famo(full_batch=True, **more),
    "cosmos": lambda **more: mf.cosmos(0.3, **more),
    "pbi": mf.pbi,
}


def geometry(losses: Tensor, present: Tensor | None = None, **extra: Tensor) -> Geometry:
    here = torch.ones_like(losses, dtype=torch.bool) if present is None else present
    return Geometry(
        losses.where(here, 0.0),
        losses.new_zeros(0, 0),
        here.to(losses) / here.sum().clamp_min(1),
        here,
        extra,
    )


def weights_of(rule, series, present=None, **fields):
    """Weights [step, task] and the last state; `fields` replace those of every geometry."""
    state, kept = rule.init(series[0], mf.random.key(0)), []
    for i, losses in enumerate(series):
        given = geometry(losses, None if present is None else present[i])._replace(**fields)
        weights, state = rule.update(given, state)
        kept.append(weights)
    return torch.stack(kept), state
