"""Every rule's time from Gramian to weights, alone and in a batch, against TorchJD's.

    python -m experiments.benchmarks.rules [--rules mgda ...] [--tasks 2 8 ...] [--batch 1024]
    [--seconds S] [--clock cpu] [--out DIR]

Writes rules.json (after every cell; a run that was stopped goes on where it was, --again measures
again) and rules.md. A row is reused only where machine, versions, sources and settings are the
same.

Problems: Jacobians [T, 2T] of independent normal entries in float32, half of whose pairs of rows
conflict; losses uniform in [.5, 1.5]. One call of ours is `rule.update` with the state that the
last call left. TorchJD's is its weighting, at its defaults, on the same Gramian, or, where it takes
the Jacobian, on that, which is as narrow here as it will ever be; of its scalarizers, which make
one loss of many, the call with the backward pass to the losses, which gives the weights, and with
the optimizer's step where they learn, since ours takes it too. A batch is one `vmap` for ours; for
TorchJD too where that runs and gives what a loop gives, else a loop. Both take turns, so that what
else the machine does hits both alike: compare ratios. `mf.weights(mf.mgda(), G)` and
`mf.aggregate(mf.mgda(), J)`, which check all that they are given, stand against TorchJD's at two
and three tasks. `apart` is the distance of the two unit directions Jᵀw at the first step, where no
random numbers enter: whether the same thing was timed.
On a busy machine, OMP_NUM_THREADS=1 and --clock cpu count the processor's time instead of the
wall's.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf
from common.arguments import at_least
from experiments.benchmarks import runner
from experiments.benchmarks.measuring import in_shares
from experiments.benchmarks.record import Row
from experiments.benchmarks.rules_peers import (
    DOORS,
    FEW,
    RULES,
    Call,
    Entry,
    Problem,
    equal,
)

POOL = 8  # different problems that single calls go through in turn
TASKS = [2, 8, 32, 128]
ENTRIES = RULES | DOORS
WIDE = 2**27  # entries that one vmap of a rule that needs T Gramians a problem may take


@lru_cache(maxsize=1)
def problems(count: int, batch: int) -> Problem:
    """Problems side by side: `[batch, ...]`."""
    draw = torch.Generator().manual_seed(count)
    jacobian = torch.randn(batch, count, 2 * count, generator=draw)
    return Problem(jacobian, jacobian @ jacobian.mT, 0.5 + torch.rand(batch, count, generator=draw))


def one(given: Problem, at: int) -> Problem:
    return Problem(*(leaf[at] for leaf in given))


def ours(entry: Entry, count: int, given: Problem) -> Callable[[], Tensor]:
    """A call on all problems of a batch at once, with the state that the last call left."""
    rule = entry.make()
    preference, present = equal(count), torch.ones(count, dtype=torch.bool)

    def update(problem: Problem, state: Any) -> tuple[Tensor, Any]:
        extra = {"jacobian": problem.jacobian}
        geometry = mf.Geometry(problem.losses, problem.gramian, preference, present, extra)
        return rule.update(geometry, state)

    size, door = len(given.losses), entry.door
    pool, turn = [one(given, at) for at in range(min(size, POOL))], 0
    if door:

        def through() -> Tensor:
            nonlocal turn
            turn = (turn + 1) % len(pool)
            return door(rule, pool[turn - 1])

        return through
    if size <= POOL:
        state = rule.init(given.losses[0], mf.random.key(0))

        def call() -> Tensor:
            nonlocal state, turn
            turn = (turn + 1) % size
            weights, state = update(pool[turn - 1], state)
            return weights

        return call
    states = vmap(rule.init)(given.losses, torch.arange(size))
    step = vmap(update, chunk_size=max(1, min(size, WIDE // count**3)) if entry.wide else None)

    def together() -> Tensor:
        nonlocal states
        weights, states = step(given, states)
        return weights

    return together


def theirs(entry: Entry, count: int, given: Problem) -> tuple[Callable[[], Tensor], bool]:
    """A call of TorchJD's, and whether it takes the whole batch."""
    assert entry.peer
    size = len(given.losses)
    if size > POOL:
        try:
            batched = vmap(entry.peer.batched(count), randomness="different")
            batched(given)
            second = batched(given)  # after one step of the state, where there is one
            alone = (_second(entry.peer.make(count), one(given, at)) for at in range(POOL))
            if entry.random or all(
                torch.allclose(second[at], found, rtol=1e-3, atol=1e-5)
                for at, found in enumerate(alone)
            ):
                return lambda: batched(given), True
        except Exception:  # most branch on values, or keep what they saw inside of vmap
            pass
    weigh, turn = entry.peer.make(count), 0
    pool = [one(given, at) for at in range(min(size, POOL))]

    def call() -> Tensor:
        nonlocal turn
        turn = (turn + 1) % len(pool)
        return weigh(pool[turn - 1])

    return call, False


def _second(weigh: Call, problem: Problem) -> Tensor:
    weigh(problem)
    return weigh(problem)


def measure(rule: str, count: int, batch: int, seconds: float, clock: str) -> Row:
    """One cell: microseconds a problem."""
    entry, given = ENTRIES[rule], problems(count, POOL if batch == 1 else batch)
    row: Row = {"rule": rule, "tasks": count, "batch": batch}
    calls: dict[str, Callable[[], Any]] = {"ours": ours(entry, count, given)}
    first = calls["ours"]()
    sizes = {"ours": batch}
    if entry.peer:
        row |= {"peer": entry.peer.name, "takes": entry.peer.takes}
        try:
            calls["TorchJD"], together = theirs(entry, count, given)
            calls["TorchJD"]()
            sizes["TorchJD"] = batch if together else 1
            row["together"] = together
            if batch == 1 and not entry.random:
                row["apart"] = apart(
                    first, entry.peer.make(count)(one(given, 0)), given.jacobian[0]
                )
        except Exception as error:  # what it cannot do is a result, too
            calls.pop("TorchJD", None)
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    for name, taken in in_shares(calls, seconds, clock, block=2e-3).items():
        scaled = [1e6 * t / sizes[name] for t in taken]
        row[name] = {"median": median(scaled), "fastest": min(scaled), "blocks": len(scaled)}
    return row


def apart(weights: Tensor, other: Tensor, jacobian: Tensor) -> float:
    """The distance of two unit directions, which may be given as such or as weights."""
    d, e = (x if len(x) == jacobian.shape[1] else x @ jacobian for x in (weights, other))
    return float((d / d.norm() - e / e.norm()).norm())


def against_bars(rows: Sequence[Row]) -> list[Row]:
    """Every cell that both sides have, with the most that ours may take of TorchJD's time.

    No rule slower than TorchJD's, and PCGrad and GradVac faster by far at T = 32; the functions
    that check all they are given 1.2 of it for few tasks.
    """
    found = []
    for row in rows:
        if "TorchJD" in row:
            single = row["batch"] == 1
            far = row["rule"] in ("pcgrad", "gradvac") and row["tasks"] == 32
            limit = (1 / 20 if single else 1 / 100) if far else 1.0
            limit = 1.2 if row["rule"] in DOORS else limit
            ratios = {key: row["ours"][key] / row["TorchJD"][key] for key in ("median", "fastest")}
            found.append(
                {key: row[key] for key in ("rule", "tasks", "batch")} | ratios | {"limit": limit}
            )
    return found


def _batch(text: str) -> int:
    value = at_least(1)(text)
    if 1 < value <= POOL:
        raise argparse.ArgumentTypeError(f"expected 1, or more than {POOL}, got {value}")
    return value


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = runner.parser(__doc__, 0.3, "wall", "time for each side of a cell")
    every = list(ENTRIES)
    names = "of " + ", ".join(every)
    parser.add_argument(
        "--rules", nargs="+", default=every, choices=every, metavar="RULE", help=names
    )
    parser.add_argument("--tasks", type=at_least(2), nargs="+", default=TASKS)
    at_once = f"problems at once: 1, or more than {POOL}"
    parser.add_argument("--batch", type=_batch, nargs="+", default=[1, 1024], help=at_once)
    given = parser.parse_args(arguments)

    def order(row: Row) -> tuple[int, int, int]:
        return row["batch"], list(ENTRIES).index(row["rule"]), row["tasks"]

    record = runner.record_of(given, "rules", ("rule", "tasks", "batch"), order)

    def one(rule: str, tasks: int, batch: int) -> list[Row]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [measure(rule, tasks, batch, given.seconds, given.clock)]

    cells = [
        (rule, t, b)
        for t in [*given.tasks, *(t for t in FEW if t not in given.tasks)]
        for b in given.batch
        for rule in given.rules
        if (b == 1 and t in FEW if rule in DOORS else t in given.tasks)
    ]
    runner.run(given, record, cells, one)


if __name__ == "__main__":
    main()
