"""Does the bound hold, and what does it see of disjointly labelled tasks?"""

import torch
from torch import Tensor
from torch.func import jacrev, vmap

import mtlfunc as mf

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from .encoders import SAMPLES, Batch, Study, decode, drawn, encode, losses, steps_of

CLAIMS = {
    "SU-28": Exact(
        "∂L_t/∂θ is the pullback of ∂L_t/∂Z, and ‖Σ w_t ∇_θ L_t‖ <= ‖∂Z/∂θ‖·‖Σ w_t ∇_Z L_t‖.",
        exact(
            ("largest relative difference of pullback and direct gradient", "<", 1e-9),
            ("left over right side, largest", "<=", 1 + 1e-9),
        ),
    ),
    "SU-31": Exact(
        "With disjoint labelled sets the encoding gradients are orthogonal and the bound "
        "ignores how tasks relate: w_t is proportional to 1/‖v_t‖².",
        exact(
            ("largest |v_s·v_t| over largest ‖v_t‖²", "==", 0),
            ("largest difference of weights from 1/‖v_t‖² weighting", "<", 1e-9),
        ),
    ),
}


def run(settings: Settings) -> Findings:
    yield bound_holds(settings)
    yield disjoint_labels(settings)


def bound_holds(settings: Settings) -> Claim:
    draws = settings.count(200)
    study = Study(3, 2)
    params, batch = drawn(study, draws, settings)
    keys = torch.arange(draws, device=settings.device)
    weights = vmap(
        lambda key: torch.softmax(
            mf.random.normal(mf.random.fold_in(key, 50), (study.tasks,), torch.float64), -1
        )
    )(keys)

    def one(params: mf.types.Params, batch: Batch, w: Tensor) -> tuple[Tensor, Tensor]:
        trunk = [name for name in params if name.startswith("trunk")]
        step = mf.balance(
            losses, mf.mean(preference=w), mf.representation(encode, decode, shared="trunk.*")
        )
        pulled, _, info = step.update(params, batch, step.init(params, batch))
        rows = mf.task_gradients(losses, params, batch)[1]
        direct = torch.cat([torch.tensordot(w, rows[name], 1).flatten() for name in trunk])
        through = torch.cat([pulled[name].flatten() for name in trunk])
        jacobian = jacrev(lambda p: encode(p, batch).flatten())(params)
        matrix = torch.cat([jacobian[name].flatten(1) for name in trunk], 1)
        right = torch.linalg.matrix_norm(matrix, 2) * (w @ info.gramian @ w).sqrt()
        return (direct - through).norm() / direct.norm(), direct.norm() / right

    difference, tightness = vmap(one)(params, batch, weights)
    return Claim(
        "SU-28",
        {
            "largest relative difference of pullback and direct gradient": difference.max(),
            "left over right side, largest": tightness.max(),
        },
        f"{draws} random ReLU encoders, T = 3, q = 2, random weights, operator norm",
    )


def disjoint_labels(settings: Settings) -> Claim:
    draws = settings.count(200)
    study = Study(4, 3)
    params, batch = drawn(study, draws, settings)
    owner = torch.arange(SAMPLES, device=settings.device) % study.tasks
    alone = (owner[:, None] == torch.arange(study.tasks, device=settings.device)).to(torch.float64)
    batch["labelled"] = alone.expand(draws, -1, -1)
    step = steps_of(mf.sgd(1.0))["MGDA-UB"]
    info = vmap(lambda p, b: step.update(step.init(p, b), b)[1])(params, batch)
    square = info.gramian.diagonal(dim1=-2, dim2=-1)
    across = (info.gramian - torch.diag_embed(square)).abs().amax((-1, -2)) / square.amax(-1)
    difference = (info.weights - (1 / square) / (1 / square).sum(-1, keepdim=True)).abs().amax(-1)
    return Claim(
        "SU-31",
        {
            "largest |v_s·v_t| over largest ‖v_t‖²": across.max(),
            "largest difference of weights from 1/‖v_t‖² weighting": difference.max(),
        },
        f"{draws} random ReLU encoders, T = 4, every sample labelled for one task",
    )
