"""One run: a network over the atoms of molecules and their pairs, by one method."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from common.cells import Cell, Refusal
from common.device import alone, replayed
from common.problems import molecules
from common.problems.molecules import FEATURES, NAMES, Part
from common.study import Numbers
from mtlfunc import Probe, Rule
from mtlfunc.types import Info, Params, TrainState

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
    device: str = "cpu"


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
    raw = (raw * deviation.cpu().float().square()).to(deviation.device)
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


def perform(settings: Settings, cells: Sequence[Cell]) -> list[Numbers]:
    """Train and measure runs of one method, which differ in rate and seed, as one program. Returns
    of each `score` (minus the mean logarithm of the mean absolute errors of standardised properties
    on the molecules that choose), `test` (mean absolute errors in published units), `seconds` (its
    share of the processor's), over the learnt properties; NaN of a run that stops being finite.
    """
    begun, device, method = time.process_time(), torch.device(settings.device), cells[0].method
    data = molecules.parts(settings.data, settings.out, settings.parts, settings.draw)
    nets = [_network(cell.seed) for cell in cells]
    draws = [torch.Generator().manual_seed(cell.seed) for cell in cells]
    params = {k: v.to(device) for k, v in mf.stack(nets).items()}
    net, single = nets[0].to(device), method in SINGLE
    count, size, lanes = settings.parts[0], settings.batch, len(cells)
    learnt, epoch = [*range(len(NAMES))], count // size
    learnt = [SINGLE.index(method)] if single else learnt
    deviation = data.deviation.to(device)
    train, validation, test = (Part(*(x.to(device) for x in part)) for part in data[:3])
    probe, rule = _parts(epoch, deviation)["mean" if single else method]()

    def losses(params: Params, batch: Part) -> Tensor:
        outputs = functional_call(net, params, (batch.atoms, batch.real))
        found = (outputs - batch.wanted).square().mean(0)[learnt[0] : learnt[-1] + 1]
        return found.log() if method == "si" else found

    def start(params: Params, batch: Part, rate: Tensor, key: Tensor) -> TrainState:
        return mf.descend(losses, rule, probe, mf.adam(rate)).init(params, batch, key)

    def advance(state: TrainState, batch: Part, rate: Tensor) -> tuple[TrainState, Info]:
        return mf.descend(losses, rule, probe, mf.adam(rate)).update(state, batch)

    lift = alone if lanes == 1 else vmap
    update, step, total = replayed(lift(advance)), 0, settings.epochs * epoch
    keys = torch.tensor([cell.seed for cell in cells], device=device)
    rates = torch.tensor([cell.rate for cell in cells], device=device)
    state: Any = None
    finite = torch.ones(lanes, dtype=torch.bool, device=device)
    with Refusal() as refusal:
        for _ in range(settings.epochs):
            orders = [torch.randperm(count, generator=draw)[: epoch * size] for draw in draws]
            for index in torch.stack(orders).to(device).split(size, 1):
                batch = Part(*(leaf[index] for leaf in train))
                state = state or lift(start)(params, batch, rates, keys)
                rate = rates * ((1 + math.cos(math.pi * step / total)) / 2)
                state, info = update(state, batch, rate)
                finite, step = finite & info.losses.isfinite().all(-1), step + 1

    @torch.no_grad()
    def errors(part: Part) -> Tensor:
        outputs = vmap(lambda own: functional_call(net, own, part[:2]))(state.params)
        found = (outputs - part.wanted).abs().mean(1)[:, learnt].double()
        return found.where(finite[:, None] & (not refusal.came), math.nan)

    tests, scores = errors(test) * deviation[learnt], -errors(validation).log().mean(1)
    seconds = (time.process_time() - begun) / lanes
    return [
        {"score": score, "test": own, "seconds": seconds}
        for score, own in zip(scores.tolist(), tests.tolist(), strict=True)
    ]


def _network(seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()
