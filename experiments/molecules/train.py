"""One run: a network over the atoms of molecules and their pairs, by one method."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

import mtlfunc as mf
from common.cells import Cell, Refusal
from common.problems import molecules
from common.problems.molecules import FEATURES, NAMES, Part
from common.study import Numbers
from mtlfunc import Probe, Rule
from mtlfunc.types import Params

UNTUNED, RAW = "mean, untuned", "mean, raw units"
SINGLE = tuple(f"{name} alone" for name in NAMES)


class Settings(NamedTuple):
    """What all runs share."""

    data: Path
    out: Path  # for what is kept of the data
    parts: tuple[int, int, int] = (16_000, 2_000, 2_000)  # to learn from, that choose, to test on
    draw: int = 0  # the seed of that division
    epochs: int = 30
    batch: int = 128


class Network(nn.Module):
    """A layer pair of every atom, its sum over the atoms, a layer pair of the molecule, heads."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"pairs": (FEATURES, 64), "atom": (64, 64), "first": (64, 256), "last": (256, 256)}
        self.trunk = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
        self.heads = nn.Linear(256, len(NAMES))

    def forward(self, atoms: Tensor, real: Tensor) -> Float[Tensor, "molecule property"]:
        trunk = self.trunk
        z = (F.silu(trunk["atom"](F.silu(trunk["pairs"](atoms)))) * real).sum(-2)
        return self.heads(F.silu(trunk["last"](F.silu(trunk["first"](z)))))


def _parts(epoch: int, deviation: Tensor) -> dict[str, Callable[[], tuple[Probe, Rule]]]:
    plain, rows = mf.losses_only(), mf.jacobian("trunk.*")
    # squares of what is in debye, a₀³, eV and so on: of energies in meV a millionth
    raw = torch.tensor([1e-6 if molecules.COLUMNS[x].endswith("_au") else 1.0 for x in NAMES])
    raw = raw * deviation.float().square()
    return {
        "mean": lambda: (plain, mf.mean()),
        "nash-mtl": lambda: (rows, mf.nash_mtl()),
        "famo": lambda: (mf.second_evaluation(plain), mf.famo()),
        "uw": lambda: (plain, mf.uw(0.025)),
        "si": lambda: (plain, mf.mean()),  # of the logarithms of the losses
        "rlw": lambda: (plain, mf.rlw()),
        "dwa": lambda: (plain, mf.dwa(epoch)),
        "mgda": lambda: (rows, mf.mgda()),
        "pcgrad": lambda: (rows, mf.pcgrad()),
        "cagrad": lambda: (rows, mf.cagrad(0.4)),
        "imtl-g": lambda: (rows, mf.imtl_g()),
        "gradnorm": lambda: (mf.jacobian("trunk.last.*"), mf.gradnorm(0.12)),
        "upgrad": lambda: (rows, mf.upgrad()),
        "stch": lambda: (plain, mf.stch(0.1)),
        UNTUNED: lambda: (plain, mf.mean()),
        RAW: lambda: (plain, mf.mean(preference=raw)),
    }


METHODS = tuple(_parts(1, torch.ones(len(NAMES))))[:14]


def perform(settings: Settings, cell: Cell) -> Numbers:
    """Train and measure one run.

    Returns:
        `score` (minus the mean logarithm of the mean absolute errors of standardised properties on
        the molecules that choose), `test` (mean absolute errors in published units), `seconds` of
        the processor, all over the learnt properties; NaN for a run that stops being finite.
    """
    data = molecules.parts(settings.data, settings.out, settings.parts, settings.draw)
    begun = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        net = Network()
    count, size, single = settings.parts[0], settings.batch, cell.method in SINGLE
    learnt, epoch = [*range(len(NAMES))], count // size
    learnt = [SINGLE.index(cell.method)] if single else learnt
    probe, rule = _parts(epoch, data.deviation)["mean" if single else cell.method]()

    def losses(params: Params, batch: Part) -> Tensor:
        outputs = functional_call(net, params, (batch.atoms, batch.real))
        found = (outputs - batch.wanted).square().mean(0)[learnt]
        return found.log() if cell.method == "si" else found

    balance, params = mf.balance(losses, rule, probe), mf.parameters(net)
    moments, state, step, total = mf.adam(cell.rate).init(params), None, 0, settings.epochs * epoch
    draw = torch.Generator().manual_seed(cell.seed)
    with Refusal() as refusal:
        for _ in range(settings.epochs):
            for index in torch.randperm(count, generator=draw)[: epoch * size].split(size):
                batch = Part(*(leaf[index] for leaf in data.train))
                state = state or balance.init(params, batch, cell.seed)
                grads, state, _ = balance.update(params, batch, state)
                rate = cell.rate * (1 + math.cos(math.pi * step / total)) / 2
                params, moments = mf.adam(rate).update(grads, moments, params)
                step += 1

    @torch.no_grad()
    def errors(part: Part) -> Tensor:
        outputs = functional_call(net, params, (part.atoms, part.real))
        found = (outputs - part.wanted).abs().mean(0)[learnt].double()
        return torch.full_like(found, math.nan) if refusal.came else found

    test = errors(data.test) * data.deviation[learnt]
    score = -float(errors(data.validation).log().mean())
    return {"score": score, "test": test.tolist(), "seconds": time.process_time() - begun}
