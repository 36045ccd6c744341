"""`python -m experiments.metric`: rules under Adam and others, with and without their metric."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.arguments import folder, seeds
from experiments.common.tables import as_dicts, write_report

from .report import figure, table
from .run import OPTIMIZERS, WAYS, Cell, Outcome, perform

HERE = Path(__file__).parent
RATES = (1e-3, 3e-3)


def cells(*, quick: bool) -> Iterator[Cell]:
    """The settings: on the bottleneck all rules, rates and batches, else two rules at one rate."""
    optimizers = list(OPTIMIZERS)[:2] if quick else list(OPTIMIZERS)
    few = ("MGDA", "UPGrad")
    plan = [("bottleneck", RATES[1:] if quick else RATES, (32,) if quick else (0, 32), few)]
    if not quick:
        plan[0] = ("bottleneck", RATES, (0, 32), ("mean", "MGDA", "CAGrad", "UPGrad"))
        plan += [("digits", RATES[1:], (128,), few), ("transformer", RATES[1:], (32,), few)]
    for network, rates, batches, rules in plan:
        every = itertools.product(optimizers, rates, batches, rules, WAYS)
        for optimizer, rate, batch, rule, way in every:
            if (rule, way) != ("mean", "metric"):  # which reads no Gramian
                yield Cell(network, optimizer, rate, batch, rule, way)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every setting on every seed, and write what the steps did."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.metric",
        description="Three networks, four optimizers: after how many steps, and by how much, does "
        "some loss of the step's own batch rise to first order, with rules on J Jᵀ, in the "
        "optimizer's metric, and made safe? The default takes about a quarter of an hour.",
    )
    parser.add_argument("--quick", action="store_true", help="one network, within a minute")
    parser.add_argument("--seeds", type=seeds, default="4", help="N or A:B (default: 4)")
    parser.add_argument("--out", type=folder, default=str(HERE / "out"), help="for the results")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps, outcomes = 40 if given.quick else 100, {}
    for cell in tqdm(list(cells(quick=given.quick)), disable=None):
        runs: list[Outcome] = [perform(cell, seed, steps) for seed in given.seeds]
        outcomes[cell] = runs
    settings = {"seeds": list(given.seeds), "steps": steps, "torch": torch.__version__}
    numbers = {
        "settings": settings,
        "outcomes": [as_dicts(cell) | {"runs": as_dicts(runs)} for cell, runs in outcomes.items()],
    }
    paths = write_report(given.out, numbers, table(outcomes), {"metric": figure(outcomes)})
    print(table(outcomes))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
