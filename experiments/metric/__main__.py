"""`python -m experiments.metric`: rules under many optimizers, with and without their metric."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from common import command
from common.device import on
from common.progress import counted
from common.tables import as_dicts, report

from .report import figure, table
from .run import FIRST, WAYS, Cell, Outcome, meet, perform
from .steps import DIAGONAL, EXACT, MUON

HERE = Path(__file__).parent
RATES = (1e-3, 3e-3)  # those of SGD and Muon in tenths
BATCHES = {"bottleneck": 32, "digits": 128, "transformer": 32}


def cells(*, matrices: bool, quick: bool) -> Iterator[Cell]:
    """The settings: on the bottleneck all rules, rates and batches of diagonal optimizers, else two
    rules at one rate.
    """
    optimizers = [MUON, EXACT] if matrices else list(DIAGONAL)[: 2 if quick else None]
    few = ("MGDA", "UPGrad")
    plan: list[tuple[str, Sequence[float], tuple[int, ...], tuple[str, ...]]]
    last = RATES[-1:]
    plan = [("bottleneck", last, (32,), few)]
    if not quick:
        if not matrices:
            plan[0] = ("bottleneck", RATES, (0, 32), ("mean", "MGDA", "CAGrad", "UPGrad"))
        plan += [("digits", last, (128,), few), ("transformer", last, (32,), few)]
    for network, some, batches, rules in plan:
        every = itertools.product(optimizers, some, batches, rules, WAYS)
        for optimizer, rate, batch, rule, way in every:
            if exists(optimizer, rule, way):
                yield Cell(network, optimizer, rate, batch, rule, way)


def exists(optimizer: str, rule: str, way: str) -> bool:
    """Whether there is such a setting."""
    if optimizer in (MUON, EXACT):  # whose norm is MGDA's affair
        return rule == "MGDA" and way in ("G", "norm")
    return way != "norm" and (rule, way) != ("mean", "metric")  # the mean reads no Gramian


def main(argv: Sequence[str] | None = None) -> int:
    """Run every setting on every seed, and write what the steps did."""
    parser = command.brief(
        "metric",
        "Three networks, several optimizers: after how many steps, and by how much, does some loss "
        "of the step's own batch rise to first order, with rules on J Jᵀ, in the optimizer's "
        "metric, and made safe? The default takes ten minutes of processor time.",
        (4, 4),
        (40, 100),
        least=FIRST + 2,
    )
    parser.add_argument("--matrices", action="store_true", help="Muon instead, at the last rate")
    name = "matrices" if parser.parse_args(argv).matrices else "metric"
    given = command.settled(parser, argv, HERE / "out" / name)
    torch.set_num_threads(1)
    out, steps = given.out, given.steps
    planned = list(cells(matrices=given.matrices, quick=given.quick))
    outcomes: dict[Cell, list[Outcome]] = {}
    with on(given.device):
        for cell in counted(planned, "runs", "cells"):
            runs = [perform(cell, seed, steps, given.device) for seed in given.seeds]
            outcomes[cell] = runs
        met = {
            name: meet(name, RATES[-1], BATCHES[name], given.seeds, steps, given.device)
            for name in dict.fromkeys(cell.network for cell in outcomes)
        }
    settings = {
        "seeds": list(given.seeds), "rates": RATES, "steps": steps, "torch": torch.__version__,
    }  # fmt: skip
    if given.device.type != "cpu":
        settings["device"] = str(given.device)
    numbers = {
        "settings": settings,
        "conflict": {name: as_dicts(x) for name, x in met.items()},
        "outcomes": [as_dicts(cell) | {"runs": as_dicts(runs)} for cell, runs in outcomes.items()],
    }
    report(out, numbers, table(outcomes, met), {name: figure(outcomes)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
