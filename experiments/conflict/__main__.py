"""`python -m experiments.conflict`: coverage where the truth is known, and batches of networks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from common.arguments import folder
from common.progress import counted
from common.tables import as_dicts, markdown, report

from . import coverage
from .coverage import NOISES, SETTINGS, TAILED, Alarms, alarms, covered, tails
from .real import BATCH, Wrong, measure

HERE = Path(__file__).parent
NETWORKS = ("bottleneck", "digits", "transformer")
Simulated = dict[coverage.Setting, coverage.Covered]


def words(simulated: Simulated, looked: dict[float, Alarms], real: list[Wrong]) -> str:
    """The findings in sentences."""
    shares = [x.covered for x in simulated.values()]
    flipped = [r.naive for r in real]
    lines = [
        "What it does not do: it makes no step better, and a batch of "
        f"{BATCH} mostly leaves the question open: a verdict on {median(r.said for r in real):.0%} "
        f"of the batches in the median over {len(real)} pairs and points of training.",
        f"Coverage at 95 %: least {min(shares):.3f}, median {median(shares):.3f} over "
        f"{len(shares)} settings.",
        "Some false alarm within a run of looks at two tasks at a right angle, at most: "
        f"{max(x.sequence for x in looked.values()):.1%} by the sequence, "
        f"{max(x.peeking for x in looked.values()):.1%} by plain intervals.",
        f"On networks the batch's own product has the other sign than all data's on "
        f"{min(flipped):.0%} to {max(flipped):.0%} of the batches, "
        f"and a verdict of the other sign on at most {max(r.false for r in real):.1%}. The "
        f"intervals hold all data's product on {min(r.covered for r in real):.1%} at least: the "
        "heavy tails of a network's gradients cost coverage.",
    ]
    return "\n\n".join(lines)


def table(
    simulated: Simulated,
    looked: dict[float, Alarms],
    tailed: dict[tuple[str, int], coverage.Tails],
    real: list[Wrong],
) -> str:
    known = markdown(
        ("samples", "noise scale", "cosine", "noise correlation", "covered", "false verdicts",
         "wrong sign, naive", "bias, naive"),
        [
            [str(s.samples), f"{s.noise:g}", f"{s.cosine:g}", f"{s.correlation:g}",
             f"{c.covered:.3f}", f"{c.false:.3f}", f"{c.naive:.3f}", f"{c.naive_bias:+.2f}"]
            for s, c in simulated.items()
        ],
    )  # fmt: skip
    peeks = markdown(
        ("noise scale", "runs with a false alarm: sequence", "plain intervals"),
        [[f"{n:g}", f"{a.sequence:.3f}", f"{a.peeking:.3f}"] for n, a in looked.items()],
    )
    heavy = markdown(
        ("noise", "samples", "covered", "intervals on the wrong side", "false verdicts",
         "right verdicts", "fewer than two rare samples"),
        [
            [family, str(samples), *(f"{x:.3f}" for x in found)]
            for (family, samples), found in tailed.items()
        ],
    )  # fmt: skip
    nets = markdown(
        ("network", "after steps", "tasks", "cosine", "wrong sign, naive", "verdicts",
         "false verdicts", "covered", "needed"),
        [
            [r.network, str(r.steps), r.pair, f"{r.cosine:+.2f}", f"{r.naive:.2f}",
             f"{r.said:.2f}", f"{r.false:.3f}", f"{r.covered:.3f}", f"{r.needed:.0f}"]
            for r in real
        ],
    )  # fmt: skip
    return "\n\n".join([words(simulated, looked, real), nets, heavy, peeks, known])


def figure(real: list[Wrong]) -> Figure:
    """Wrong signs against the true cosine."""
    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    ax = drawn.subplots()
    for name, colour in zip(NETWORKS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        some = [r for r in real if r.network == name]
        ax.plot([r.cosine for r in some], [r.naive for r in some], "o", color=colour, label=name)
        ax.plot([r.cosine for r in some], [r.false for r in some], "x", color=colour)
    ax.plot([], [], "ko", label="sign of the batch's product")
    ax.plot([], [], "kx", label="verdict of conflict()")
    ax.set(
        xlabel="cosine of the tasks' gradients over all data",
        ylabel=f"share of batches of {BATCH} that are wrong",
        ylim=(-0.02, None),
    )
    ax.axvline(0, color="black", lw=0.5)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, measure, and write tables and a figure."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.conflict",
        description="Is a conflict real? Coverage of mtlfunc.diagnostics.conflict where the truth "
        "is known, its false alarms over 200 looks, and how often batches of three networks are "
        "wrong. The default takes two minutes of processor time.",
    )
    parser.add_argument("--quick", action="store_true", help="few settings, within a minute")
    parser.add_argument("--out", type=folder, default=str(HERE / "out"), help="for the results")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = SETTINGS[:27:3] if given.quick else SETTINGS
    simulated = {s: covered(s, 400) for s in counted(settings, "coverage", "settings")}
    runs = 20 if given.quick else 200
    looked = {noise: alarms(noise, 0.3, runs, 200) for noise in NOISES[: 1 if given.quick else 3]}
    sizes = (8, 32) if given.quick else (3, 4, 8, 16, 32, 64, 128)
    heavy = {(f, n): tails(f, n, 100 if given.quick else 1000) for f in TAILED for n in sizes}
    steps = (0, 20) if given.quick else (0, 20, 100)
    real = [r for name in NETWORKS for r in measure(name, steps, 50 if given.quick else 200)]
    numbers = {
        "coverage": [s._asdict() | c._asdict() for s, c in simulated.items()],
        "alarms": {str(noise): as_dicts(a) for noise, a in looked.items()},
        "tails": [{"noise": f, "samples": n} | x._asdict() for (f, n), x in heavy.items()],
        "networks": as_dicts(tuple(real)),
    }
    written = table(simulated, looked, heavy, real)
    report(given.out, numbers, written, {"conflict": figure(real)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
