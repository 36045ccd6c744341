"""Random encoders with a head a task, and both methods' directions at them.

Z are the encodings of a batch, A = ∂Z/∂θ, v_t = ∂L_t/∂Z, g_t = Aᵀv_t. MGDA minimises ‖Σ w_t g_t‖,
MGDA-UB ‖Σ w_t v_t‖; both step along d = Σ w_t g_t. A negative rate ⟨g_t, d⟩ raises task t."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

import mtlfunc as mf
from common.device import replayed

from ..report.figures import METHOD_COLOURS
from ..report.findings import Settings

RAISES = -1e-6  # a task is raised if cos(g_t, d) is below this: a margin for rounding in float64
CANCELLED = 1e-12  # where ⟨g_t, d⟩ is below this share of its terms, it is 0 but for rounding
SAMPLES, INPUTS = 16, 8
COLOURS = {name: METHOD_COLOURS[name] for name in ("MGDA-UB", "MGDA")}


def raises(gramian: Tensor, weights: Tensor) -> Tensor:
    """Whether the direction with these weights raises some task: min_t cos(g_t, d) < 0. None is
    raised where d is 0, and its rates what rounding leaves. Batched over the first axis.
    """
    rates = torch.einsum("dts,ds->dt", gramian, weights)
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    length = (weights * rates).sum(-1, keepdim=True).clamp_min(0).sqrt()
    terms = (weights * norms).sum(-1, keepdim=True)
    return (rates < -norms * torch.maximum(-RAISES * length, CANCELLED * terms)).any(-1)


class Study(NamedTuple):
    """A size of the study."""

    tasks: int
    width: int  # of the representation
    hidden: int = 16


Batch = dict[str, Tensor]


def encode(params: mf.types.Params, batch: Batch) -> Tensor:
    """A ReLU network of two hidden layers: `[sample, width]`."""
    hidden = F.linear(batch["x"], params["trunk.0.weight"], params["trunk.0.bias"]).relu()
    hidden = F.linear(hidden, params["trunk.1.weight"], params["trunk.1.bias"]).relu()
    return F.linear(hidden, params["trunk.2.weight"], params["trunk.2.bias"])


def decode(params: mf.types.Params, z: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of an affine head a task, over the samples that it labels."""
    error = (F.linear(z, params["heads.weight"], params["heads.bias"]) - batch["y"]).square()
    return (error * batch["labelled"]).sum(0) / batch["labelled"].sum(0)


def losses(params: mf.types.Params, batch: Batch) -> Tensor:
    return decode(params, encode(params, batch), batch)


def draw(key: Tensor, study: Study) -> tuple[mf.types.Params, Batch]:
    """A random encoder (PyTorch's default law) and correlated tasks. y_t = √.5 (common + private),
    each a random tanh unit of x.
    """
    layers = {
        "trunk.0": (study.hidden, INPUTS),
        "trunk.1": (study.hidden, study.hidden),
        "trunk.2": (study.width, study.hidden),
        "heads": (study.tasks, study.width),
    }
    params: mf.types.Params = {}
    for i, (name, (rows, columns)) in enumerate(layers.items()):
        for j, (part, shape) in enumerate({"weight": (rows, columns), "bias": (rows,)}.items()):
            params[f"{name}.{part}"] = (
                2 * mf.random.uniform(mf.random.fold_in(key, 2 * i + j), shape, torch.float64) - 1
            ) * columns**-0.5
    x = mf.random.normal(mf.random.fold_in(key, 20), (SAMPLES, INPUTS), torch.float64)
    common = mf.random.normal(mf.random.fold_in(key, 21), (INPUTS,), torch.float64)
    private = mf.random.normal(mf.random.fold_in(key, 22), (INPUTS, study.tasks), torch.float64)
    y = 0.5**0.5 * (torch.tanh(x @ common)[:, None] + torch.tanh(x @ private))
    return params, {"x": x, "y": y, "labelled": torch.ones_like(y)}


def steps_of(optimizer: mf.Optimizer) -> dict[str, mf.Step]:
    probes = {
        "MGDA-UB": mf.representation(encode, decode, shared="trunk.*"),
        "MGDA": mf.jacobian("trunk.*"),
    }
    return {name: mf.descend(losses, mf.mgda(), probe, optimizer) for name, probe in probes.items()}


def raised(params: mf.types.Params, batch: Batch) -> tuple[Tensor, Tensor]:
    """Whether the directions of the bound and of MGDA raise a task `[draw]`: the latter never does.
    Both at the same points, judged by the trunk's Gramian.
    """
    bound, exact = (
        vmap(lambda p, b, step=step: step.update(step.init(p, b), b)[1])(params, batch)
        for step in steps_of(mf.sgd(1.0)).values()
    )
    return raises(exact.gramian, bound.weights), raises(exact.gramian, exact.weights)


def trained(
    step: mf.Step, params: mf.types.Params, batch: Batch, count: int, label: str
) -> mf.types.Params:
    state = vmap(step.init)(params, batch)
    advance = replayed(vmap(lambda state, batch: step.update(state, batch)[:1]))
    for _ in tqdm(range(count), desc=label, leave=False):
        (state,) = advance(state, batch)
    return state.params


def drawn(study: Study, draws: int, settings: Settings) -> tuple[mf.types.Params, Batch]:
    return vmap(lambda key: draw(key, study))(torch.arange(draws, device=settings.device))
