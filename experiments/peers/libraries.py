"""Each library's call, as its documentation has it, in three steps with the same gradients."""

# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

import importlib
import random
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mtlfunc.testing.compare import begin

from .papers import ALPHA, BETA, FAIR, SPEED, C


def losses_of(J: Tensor) -> Tensor:
    """[step, task], of three steps."""
    each = torch.tensor([0.9, 0.7, 1.1, 0.8], dtype=torch.float64)[: len(J)]
    return each ** torch.arange(3.0)[:, None]


def asked(peer: Any, call: str, rows: list[list[float]], wide: bool) -> list[float] | str:
    """A peer's direction, or why there is none; random orders become those of the tasks."""
    torch.set_default_dtype(torch.float64 if wide else torch.float32)
    random.shuffle, torch.randperm = (lambda _: None), (lambda n, **_: torch.arange(n))
    try:
        found = peer(call, J := torch.tensor(rows), losses_of(J))
    except Exception as error:  # whatever a library may raise; not all of them can be pickled
        return f"{type(error).__name__}: {error}".splitlines()[0][:80].replace("|", "/")
    same = found.shape == J[0].shape
    return found.detach().tolist() if same else f"{list(found.shape)} for {J.shape[1]} parameters"


def ready(module: str) -> None:
    """Imports, which are not timed. LibMTL's own needs torchvision: its methods' files do not."""
    begin()
    with suppress(Exception):  # the call will say so
        if module != "LibMTL":
            importlib.import_module(module)
        elif at := [*find_spec(module).submodule_search_locations]:
            for name, path in ((module, at[0]), (f"{module}.weighting", f"{at[0]}/weighting")):
                sys.modules[name] = types.ModuleType(name)
                sys.modules[name].__path__ = [path]


def terms(J: Tensor, losses: Tensor) -> tuple[nn.Parameter, Tensor]:
    """A parameter, and losses with these values and gradients; their Hessians are I."""
    x = nn.Parameter(J.new_zeros(J.shape[1]))
    x.grad = torch.zeros_like(x)
    return x, losses.to(J) + J @ x + x.square().sum() / 2


def torchjd(call: str, J: Tensor, losses: Tensor) -> Tensor:
    peer = eval(call, vars(importlib.import_module("torchjd.aggregation")) | {"T": len(J)})
    return [peer(J) for _ in losses][-1]


def conflictfree(call: str, J: Tensor, losses: Tensor) -> Tensor:
    peer = eval(call, vars(importlib.import_module("conflictfree.grad_operator")))
    return [peer.calculate_gradient(J) for _ in losses][-1]


def gradnorm_pytorch(call: str, J: Tensor, losses: Tensor) -> Tensor:
    """Its penalty is a mean over tasks: T times the rate is the paper's."""
    own: Any = importlib.import_module("gradnorm_pytorch").GradNormLossWeighter
    speed = SPEED / float(J.norm(dim=1).amax())
    peer = own(num_losses=len(J), learning_rate=len(J) * speed, restoring_force_alpha=ALPHA)
    for now in losses:
        x, values = terms(J, now)
        peer._grad_norm_parameters = [x]
        peer.backward(values)
    return x.grad


def pina(call: str, J: Tensor, losses: Tensor) -> Tensor:
    """Squares of one residual each, ½ where its gradient is J's row."""
    peer = getattr(importlib.import_module("pina._src.weighting.ntk_weighting"), call[:-2])()
    x = nn.Parameter(J.new_zeros(J.shape[1]))
    peer._solver = types.SimpleNamespace(model=nn.ParameterList([x]))
    for _ in losses:
        values = (0.5 + J @ x).square()
        peer._saved_weights = peer.update_weights({str(i): y for i, y in enumerate(values)})
    sum(peer._saved_weights[str(i)] * y for i, y in enumerate(values)).backward()
    return x.grad


def libmtl(call: str, J: Tensor, losses: Tensor) -> Tensor:
    name, options = call.split("(", maxsplit=1)[0], eval("dict(" + call.split("(")[1])
    module = importlib.import_module(f"LibMTL.weighting.{name}")

    class Peer(getattr(module, name)):
        task_num, device, rep_grad, epoch = len(J), torch.device("cpu"), False, 1
        train_loss_buffer = losses[:1].mT.numpy()

        def get_share_params(self) -> list[nn.Parameter]:
            return [x]

        def zero_grad_share_params(self) -> None:
            x.grad = torch.zeros_like(x)

    peer: Any = Peer()
    peer.init_param()
    for now in losses:
        x, values = terms(J, now)
        peer.backward(values, **options)
        for own in peer.parameters() if name == "GradNorm" else ():
            own.data -= SPEED / J.norm(dim=1).amax() * own.grad
            own.grad = None
    return x.grad


# package -> what is imported, how it is called, and whose method each call is
PEERS: dict[str, tuple[str, Callable[[str, Tensor, Tensor], Tensor], dict[str, str]]] = {
    "torchjd": ("torchjd.aggregation", torchjd, {
        "MGDA()": "mgda", f"CAGrad({C})": "cagrad", "UPGrad()": "upgrad", "DualProj()": "dualproj",
        "PCGrad()": "pcgrad", f"GradVac({BETA})": "gradvac", "IMTLG()": "imtl_g",
        "AlignedMTL()": "aligned_mtl", "NashMTL(T)": "nash_mtl", f"FairGrad({FAIR})": "fairgrad",
        "ConFIG()": "config",
    }),
    "LibMTL": ("LibMTL", libmtl, {
        "MGDA(mgda_gn='none')": "mgda", f"CAGrad(calpha={C}, rescale=0)": "cagrad",
        "UPGrad(UPGrad_norm_eps=1e-4, UPGrad_reg_eps=1e-4)": "upgrad", "PCGrad()": "pcgrad",
        f"GradVac(GradVac_beta={BETA}, GradVac_group_type=0)": "gradvac", "IMTL()": "imtl_g",
        "Aligned_MTL()": "aligned_mtl",
        "Nash_MTL(update_weights_every=1, optim_niter=20, max_norm=1)": "nash_mtl",
        f"FairGrad(FairGrad_alpha={FAIR})": "fairgrad", f"GradNorm(alpha={ALPHA})": "gradnorm",
    }),
    "conflictfree": ("conflictfree.grad_operator", conflictfree, {
        "ConFIGOperator()": "config", "ConFIGOperator(allow_simplified_model=False)": "config",
        "PCGradOperator()": "pcgrad", "IMTLGOperator()": "imtl_g",
    }),
    "gradnorm-pytorch": ("gradnorm_pytorch", gradnorm_pytorch, {
        f"GradNormLossWeighter(restoring_force_alpha={ALPHA})": "gradnorm",
    }),
    "pina-mathlab": ("pina._src.weighting.ntk_weighting", pina, {
        "NeuralTangentKernelWeighting()": "ntk",
    }),
}  # fmt: skip
