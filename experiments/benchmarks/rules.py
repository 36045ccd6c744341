"""Every rule's time from Gramian to weights, one problem alone and a batch of them, against
TorchJD's on the same problems.

    python -m experiments.benchmarks.rules [--rules mgda ...] [--tasks 2 8 ...] [--batch 1024]
    [--seconds S] [--clock cpu] [--out DIR]

Writes rules.json (after every cell; a run that was stopped goes on where it was, --again measures
anew), rules.md and rules.png.

Problems: Jacobians [T, 2T] of independent normal entries in float32, half of whose pairs of rows
conflict; losses uniform in [.5, 1.5]. One call of ours is `rule.update` with the state that the
last call left. TorchJD's is its weighting on the same Gramian, or, where it asks for the Jacobian,
on that, which is as narrow here as it will ever be; of its scalarizers, which make one loss of
many, the call with the backward pass to the losses, which gives the weights, and with the
optimizer's step where they learn, since ours takes it too. A batch is one `vmap` for ours; for
TorchJD too where that runs and gives what a loop gives, else a loop. Both take turns, so that what
else the machine does hits both alike: compare ratios. `apart` is the distance of the two unit
directions Jᵀw at the first step, where no random numbers enter: whether the same thing was timed.
On a busy machine, OMP_NUM_THREADS=1 and --clock cpu count the processor's time instead of the
wall's.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import mtlfunc as mf
from experiments.benchmarks.files import write
from mtlfunc.rules.common import BY_HAND

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
POOL = 8  # different problems that single calls go through in turn
ROUNDS = 7
TASKS = [2, 8, 32, 128]
WIDE = 2**27  # entries that one vmap of a rule that needs T Gramians a problem may take


class Problem(NamedTuple):
    jacobian: Tensor  # [task, param]
    gramian: Tensor
    losses: Tensor


Call = Callable[[Problem], Tensor]


class Peer(NamedTuple):
    """What TorchJD has, for T tasks."""

    name: str
    takes: str
    make: Callable[[int], Call]
    batched: Callable[[int], Call]  # what vmap is tried on


class Entry(NamedTuple):
    make: Callable[[], mf.Rule]
    peer: Peer | None = None
    random: bool = False
    wide: bool = False  # memory of T Gramians a problem: its batch comes in several vmaps


def on_gramian(name: str, *args: Any, **options: Any) -> Peer:
    def make(count: int) -> Call:
        weigh = _peer("aggregation", name, *args, **options)
        return lambda problem: weigh(problem.gramian)

    return Peer(name, "Gramian", make, make)


def on_jacobian(name: str, make: Callable[[int], Callable[[Tensor], Tensor]] | None = None) -> Peer:
    def of(count: int) -> Call:
        weigh = make(count) if make else _peer("aggregation", name)
        return lambda problem: weigh(problem.jacobian)

    return Peer(name, "Jacobian", of, of)


def on_losses(
    name: str,
    make: Callable[[int], Any] | None = None,
    after: Callable[[Any], Callable[[Tensor], Any]] | None = None,
) -> Peer:
    """A scalarizer; `after(scalarizer)` is called with the losses at the end of each step."""

    def scalarizer(count: int) -> Any:
        return make(count) if make else _peer("scalarization", name)

    def of(count: int) -> Call:
        scalarize = scalarizer(count)
        finish = after(scalarize) if after else None

        def call(problem: Problem) -> Tensor:
            losses = problem.losses.detach().requires_grad_()
            scalarize(losses).backward()
            if finish:
                finish(problem.losses)
            assert losses.grad is not None
            return losses.grad

        return call

    def pure(count: int) -> Call:
        gradient = grad(scalarizer(count))
        return lambda problem: gradient(problem.losses)

    return Peer(name, "losses", of, of if after else pure)


def _peer(module: str, name: str, *args: Any, **options: Any) -> Any:
    import torchjd.aggregation  # a test dependency
    import torchjd.scalarization

    return getattr(getattr(torchjd, module), name)(*args, **options)


def _learned(scalarizer: Any) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.01)

    def step(losses: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def _equal(count: int) -> Tensor:
    return torch.full((count,), 1 / count)


def accumulated(rule: mf.Rule) -> mf.Rule:
    """ExcessMTL with its accumulation of squared gradients, which here is the probe's and in
    TorchJD the weighting's.
    """

    def init(losses: Tensor, key: Tensor) -> Any:
        return losses.new_zeros(len(losses), 2 * len(losses)), rule.init(losses, key)

    def update(geometry: mf.Geometry, state: Any) -> tuple[Tensor, Any]:
        square = geometry.extra["jacobian"].square()
        total = state[0] + square
        weights, inner = rule.update(
            geometry._replace(extra={"excess": (square / total.sqrt()).sum(-1)}), state[1]
        )
        return weights, (total, inner)

    return mf.Rule(init, update)


RULES: dict[str, Entry] = {
    "mean": Entry(mf.mean, on_gramian("MeanWeighting")),
    "rlw": Entry(mf.rlw, on_jacobian("RandomWeighting"), random=True),
    "mgda": Entry(mf.mgda, on_gramian("MGDAWeighting")),
    "cagrad": Entry(lambda: mf.cagrad(0.4), on_gramian("CAGradWeighting", c=0.4)),
    "pcgrad": Entry(mf.pcgrad, on_gramian("PCGradWeighting"), random=True),
    "gradvac": Entry(
        lambda: mf.gradvac(0.5), on_gramian("GradVacWeighting", beta=0.5), random=True
    ),
    "dualproj": Entry(mf.dualproj, on_gramian("DualProjWeighting")),
    "upgrad": Entry(mf.upgrad, on_gramian("UPGradWeighting"), wide=True),
    "imtl_g": Entry(mf.imtl_g, on_gramian("IMTLGWeighting")),
    "aligned_mtl": Entry(mf.aligned_mtl, on_gramian("AlignedMTLWeighting")),
    "config": Entry(mf.config, on_jacobian("ConFIG")),
    "nash_mtl": Entry(
        lambda: mf.nash_mtl(max_norm=1.0),
        on_jacobian("NashMTL", lambda count: _peer("aggregation", "NashMTL", count).weighting),
    ),
    "fairgrad": Entry(lambda: mf.fairgrad(2.0), on_gramian("FairGradWeighting", 2.0)),
    "krum": Entry(mf.krum, on_gramian("KrumWeighting", 0)),
    "pcd": Entry(mf.pcd, on_gramian("PCDWeighting")),
    "modo": Entry(mf.modo, on_gramian("MoDoWeighting")),
    "sdmgrad": Entry(mf.sdmgrad, on_gramian("SDMGradWeighting")),
    "excess_mtl": Entry(lambda: accumulated(mf.excess_mtl(1.0)), on_jacobian("ExcessMTLWeighting")),
    "momentum": Entry(
        lambda: mf.momentum(mf.mgda()),
        Peer("CRMOGMWeighting", "Gramian", lambda count: _smoothed(), lambda count: _smoothed()),
    ),
    "uw": Entry(
        lambda: mf.uw(0.01),
        on_losses("UW", lambda count: _peer("scalarization", "UW", count), _learned),
    ),
    "imtl_l": Entry(
        lambda: mf.imtl_l(0.01),
        on_losses("IMTLL", lambda count: _peer("scalarization", "IMTLL", count), _learned),
    ),
    "dwa": Entry(
        lambda: mf.dwa(1),
        on_losses("DWA", None, lambda scalarizer: lambda losses: scalarizer.step()),
    ),
    "gls": Entry(mf.gls, on_losses("GeometricMean")),
    "stch": Entry(
        lambda: mf.stch(0.3), on_losses("STCH", lambda count: _peer("scalarization", "STCH", 0.3))
    ),
    "cosmos": Entry(
        lambda: mf.cosmos(0.3),
        on_losses("COSMOS", lambda count: _peer("scalarization", "COSMOS", 0.3, _equal(count))),
    ),
    "pbi": Entry(
        mf.pbi, on_losses("PBI", lambda count: _peer("scalarization", "PBI", 5.0, _equal(count)))
    ),
    "famo": Entry(
        lambda: mf.famo(full_batch=True),
        on_losses(
            "FAMO", lambda count: _peer("scalarization", "FAMO", count), lambda famo: famo.update
        ),
    ),
    "gradnorm": Entry(lambda: mf.gradnorm(0.12)),
    "db_mtl": Entry(mf.db_mtl),
    "moco": Entry(mf.moco),
    "epo": Entry(mf.epo),
    "pareto_mtl": Entry(mf.pareto_mtl),
    "normalize": Entry(lambda: mf.normalize(mf.mgda())),
    "every": Entry(lambda: mf.every(mf.mgda(), 2)),
}


def _smoothed() -> Call:
    weigh = _peer("aggregation", "CRMOGMWeighting", _peer("aggregation", "MGDAWeighting"))
    return lambda problem: weigh(problem.gramian)


@lru_cache(maxsize=1)
def problems(count: int, batch: int) -> Problem:
    """Problems side by side: `[batch, ...]`."""
    draw = torch.Generator().manual_seed(count)
    jacobian = torch.randn(batch, count, 2 * count, generator=draw)
    return Problem(jacobian, jacobian @ jacobian.mT, 0.5 + torch.rand(batch, count, generator=draw))


def one(given: Problem, at: int) -> Problem:
    return Problem(*(leaf[at] for leaf in given))


def ours(entry: Entry, count: int, given: Problem) -> Callable[[], Tensor]:
    """A call on all of the problems at once if there are several in a batch, with the state that
    the last one left.
    """
    rule = entry.make()
    preference, present = _equal(count), torch.ones(count, dtype=torch.bool)

    def update(problem: Problem, state: Any) -> tuple[Tensor, Any]:
        extra = {"jacobian": problem.jacobian, BY_HAND: present}
        geometry = mf.Geometry(problem.losses, problem.gramian, preference, present, extra)
        return rule.update(geometry, state)

    size = len(given.losses)
    if size <= POOL:
        pool, state = (
            [one(given, at) for at in range(size)],
            rule.init(given.losses[0], mf.random.key(0)),
        )
        turn = 0

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
            if entry.random or all(
                torch.allclose(
                    second[at],
                    _second(entry.peer.make(count), one(given, at)),
                    rtol=1e-3,
                    atol=1e-5,
                )
                for at in range(POOL)
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


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Callable[[], Any], times: int, clock: str) -> float:
    start = CLOCKS[clock]()
    for _ in range(times):
        call()
    return (CLOCKS[clock]() - start) / times


def take_turns(
    calls: dict[str, Callable[[], Any]], seconds: float, clock: str
) -> dict[str, list[float]]:
    """Times of a call, each the mean over as many as fill two milliseconds; slow ones are called
    three times.
    """
    # after a first call, made by whoever made it
    once = {name: timed(call, 1, clock) for name, call in calls.items()}
    block = {name: max(1, int(2e-3 / max(t, 1e-6))) for name, t in once.items()}
    found: dict[str, list[float]] = {
        name: [t] if t > seconds / 3 else [] for name, t in once.items()
    }
    for turn in range(ROUNDS):
        for name in list(calls) if turn % 2 else list(calls)[::-1]:
            if turn >= 2 and once[name] > seconds / 3:
                continue
            end = time.perf_counter() + seconds / ROUNDS
            found[name].append(timed(calls[name], block[name], clock))
            while time.perf_counter() < end:
                found[name].append(timed(calls[name], block[name], clock))
    return found


def measure(rule: str, count: int, batch: int, seconds: float, clock: str) -> Row:
    """One cell: microseconds a problem."""
    entry, given = RULES[rule], problems(count, POOL if batch == 1 else batch)
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
    for name, taken in take_turns(calls, seconds, clock).items():
        scaled = [1e6 * t / sizes[name] for t in taken]
        row[name] = {"median": median(scaled), "fastest": min(scaled), "blocks": len(scaled)}
    return row


def apart(weights: Tensor, other: Tensor, jacobian: Tensor) -> float:
    """The distance of two unit directions, of which the other may be given as such."""
    d, e = weights @ jacobian, other if len(other) == jacobian.shape[1] else other @ jacobian
    return float((d / d.norm() - e / e.norm()).norm())


def against_bars(rows: list[Row]) -> list[Row]:
    """Every cell that both sides have: no rule slower than TorchJD's, and PCGrad and GradVac faster
    by far at T = 32.
    """
    found = []
    for row in rows:
        if "TorchJD" in row:
            single = row["batch"] == 1
            far = row["rule"] in ("pcgrad", "gradvac") and row["tasks"] == 32
            limit = (1 / 20 if single else 1 / 100) if far else 1.0
            ratios = {key: row["ours"][key] / row["TorchJD"][key] for key in ("median", "fastest")}
            found.append(
                {key: row[key] for key in ("rule", "tasks", "batch")} | ratios | {"limit": limit}
            )
    return found


def tables(rows: list[Row], machine: str) -> str:
    lines = [
        "# Every rule, from Gramian to weights",
        "",
        machine,
        "",
        "µs a problem, fastest blocks: ours / TorchJD's, and in brackets the ratio.",
        "",
    ]
    bars = against_bars(rows)
    missed = [bar for bar in bars if bar["fastest"] > bar["limit"]]
    lines += [
        f"Of {len(bars)} bars {len(bars) - len(missed)} are met" + ("; missed:" if missed else "."),
        "",
    ]
    for bar in missed:
        case = f"{bar['rule']}, T = {bar['tasks']}, batch {bar['batch']:,}"
        lines.append(
            f"- {case}: {bar['fastest']:.3g} of TorchJD's (medians {bar['median']:.3g}), asked "
            f"for at most {bar['limit']:g}"
        )
    tasks = sorted({row["tasks"] for row in rows})
    for batch in sorted({row["batch"] for row in rows}):
        chosen = {(row["rule"], row["tasks"]): row for row in rows if row["batch"] == batch}
        lines += ["", "## One problem alone" if batch == 1 else f"## {batch:,} at once", ""]
        lines += [
            f"| rule | TorchJD's, on | {' | '.join(f'T = {count}' for count in tasks)} | apart |",
            "|---" * (len(tasks) + 3) + "|",
        ]
        for rule, (_, peer, *_) in RULES.items():
            own = [chosen[rule, count] for count in tasks if (rule, count) in chosen]
            if own:
                how = " (vmap)" if any(row.get("together") for row in own) else ""
                off = [row["apart"] for row in own if "apart" in row]
                cells = [_cell(chosen.get((rule, count))) for count in tasks]
                lines.append(
                    f"| {rule} | {f'{peer.name}, {peer.takes}{how}' if peer else ''} | "
                    f"{' | '.join(cells)} | {f'{max(off):.0e}' if off else ''} |"
                )
    return "\n".join([*lines, ""])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    mine = f"{row['ours']['fastest']:.3g}"
    if "TorchJD" in row:
        return (
            f"{mine} / {row['TorchJD']['fastest']:.3g} "
            f"({row['ours']['fastest'] / row['TorchJD']['fastest']:.2g})"
        )
    return f"{mine} / {row['failed'].split(':')[0]}" if "failed" in row else mine


def figure(rows: list[Row], path: Path) -> None:
    """Ours over TorchJD's against T, a line a rule, named where it ends."""
    batches = sorted({row["batch"] for row in rows})
    panels, axes = plt.subplots(
        1, len(batches), figsize=(7.2 * len(batches), 8), squeeze=False, layout="constrained"
    )
    names = [
        rule for rule in RULES if any(row["rule"] == rule and "TorchJD" in row for row in rows)
    ]
    for axis, batch in zip(axes[0], batches, strict=True):
        ends = []
        for number, rule in enumerate(names):
            line = sorted(
                (row["tasks"], row["ours"]["fastest"] / row["TorchJD"]["fastest"])
                for row in rows
                if row["rule"] == rule and row["batch"] == batch and "TorchJD" in row
            )
            if line:
                colour, dash = (
                    mpl.colormaps["tab10"](number % 10),
                    ["-", "--", ":"][number // 10 % 3],
                )
                axis.plot(
                    *zip(*line, strict=True),
                    dash,
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    linewidth=1.4,
                )
                ends.append((line[-1][1], line[-1][0], rule, colour))
        tasks = sorted({row["tasks"] for row in rows})
        axis.hlines(1, tasks[0] / 1.15, tasks[-1] * 1.1, color="black", linewidth=1.2)
        title = "one problem alone" if batch == 1 else f"{batch:,} problems at once, time of each"
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="tasks T",
            ylabel="time of ours / time of TorchJD's",
            title=title,
        )
        axis.set_xticks(tasks, [str(count) for count in tasks])
        axis.set_xticks([], minor=True)
        axis.set_xlim(
            tasks[0] / 1.15, tasks[-1] * (tasks[-1] / tasks[0] if len(tasks) > 1 else 2) ** 0.42
        )
        axis.grid(alpha=0.25)
        low, high = axis.get_ylim()
        places = _spread([_share(y, low, high) for y, *_ in ends], 0.026)
        for (y, x, rule, colour), place in zip(ends, places, strict=True):
            axis.annotate(
                rule,
                (x, y),
                (tasks[-1] * 1.3, low * (high / low) ** place),
                color=colour,
                fontsize=9,
                va="center",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
            )
    panels.savefig(path.with_suffix(".part.png"), dpi=150)
    plt.close(panels)
    os.replace(path.with_suffix(".part.png"), path)


def _share(y: float, low: float, high: float) -> float:
    """Where y is between low and high on a logarithmic axis."""
    return float(torch.tensor(y / low).log() / torch.tensor(high / low).log())


def _spread(places: list[float], apart: float) -> list[float]:
    """The places moved up and down until they are that far apart, in the same order and within [0,
    1].
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(500):
        for i in range(len(moved) - 1):
            short = apart - (moved[i + 1] - moved[i])
            if short > 1e-4:
                moved[i], moved[i + 1] = moved[i] - short / 2, moved[i + 1] + short / 2
        moved = [min(max(y, 0.01), 0.99) for y in moved]
    found = list(places)
    for i, y in zip(order, moved, strict=True):
        found[i] = y
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=list(RULES),
        choices=list(RULES),
        metavar="RULE",
        help="of " + ", ".join(RULES),
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS)
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1, 1024],
        help=f"problems at once: 1, or more than {POOL}",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        help="time for each side of a cell; three calls in any case",
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: the processor's time; for one thread of a busy machine",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure anew what the record already has"
    )
    given = parser.parse_args(arguments)
    if any(batch < 1 or 1 < batch <= POOL for batch in given.batch):
        parser.error(f"--batch: expected 1, or more than {POOL}, got {given.batch}")
    given.out.mkdir(parents=True, exist_ok=True)
    record = given.out / "rules.json"
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    machine += f", {given.seconds:g} s a side, {given.clock} clock"
    rows: list[Row] = json.loads(record.read_text())["rows"] if record.exists() else []
    done = {(row["rule"], row["tasks"], row["batch"]) for row in rows}
    cells = [
        (rule, count, batch)
        for count in given.tasks
        for batch in given.batch
        for rule in given.rules
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for rule, count, batch in (
                bar := tqdm([cell for cell in cells if given.again or cell not in done])
            ):
                bar.set_description(f"{rule}, T = {count}, batch {batch}")
                found = measure(rule, count, batch, given.seconds, given.clock)
                rows = [
                    row
                    for row in rows
                    if (row["rule"], row["tasks"], row["batch"]) != (rule, count, batch)
                ] + [found]
                rows.sort(
                    key=lambda row: (row["batch"], list(RULES).index(row["rule"]), row["tasks"])
                )
                write(record, json.dumps({"machine": machine, "rows": rows}, indent=1))
    except KeyboardInterrupt:
        tqdm.write(f"stopped; {len(rows)} cells are in {record}, the next run goes on from there")
    write(given.out / "rules.md", tables(rows, machine))
    if any("TorchJD" in row for row in rows):
        figure(rows, given.out / "rules.png")


if __name__ == "__main__":
    main()
