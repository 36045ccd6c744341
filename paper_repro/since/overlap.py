"""Do cosines of gradients need tasks that share samples?"""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

import mtlfunc as mf

from ..report.bounds import PREDICTS
from ..report.decisions import Measured, Row, decided, ends, named_so, verdict_of
from ..report.figures import axes
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import Interval, named
from .common import network, normal, outputs, rank_correlation


@decided(
    f"at an overlap below 30 % the cosines have a rank correlation above {PREDICTS} with how the "
    f"tasks are related, or above 40 % one below {PREDICTS}, in one setting, and in none both are "
    "as said"
)
def overlap(measured: Measured) -> Verdict:
    """The verdict on cosines, over all kinds of inputs and numbers of samples."""
    shown, lost = [], []
    for name in named_so(measured, "*: rank correlation at overlap 0, low"):
        case = name.split(": rank")[0]

        def at(percent: int, case: str = case) -> tuple[float, float]:
            return ends(measured, f"{case}: rank correlation at overlap {percent}")

        below, above = [at(0), at(10), at(20)], [at(50), at(75), at(100)]
        shown.append(
            all(low < 0 < high for low, high in below) and all(x > PREDICTS.now for x, _ in above)
        )
        lost.append(
            any(x > PREDICTS.now for x, _ in below) or any(x < PREDICTS.now for _, x in above)
        )
    return verdict_of(shown, lost)


CLAIMS = {
    "SI-12": Row(
        "Zhang & Cheng 2026: where tasks share less than 30 % of their samples, cosines of "
        "gradients are noise; above 40 % they show how the tasks are related.",
        overlap,
        instead="molecules and their measured properties",
    )
}

INPUTS, HIDDEN, NOISE = 8, 16, 0.3
PERCENT = (0, 10, 20, 30, 40, 50, 75, 100)
SIZES, SHIFTS = (20, 200), {"the same inputs": 0.0, "each task's inputs shifted": 1.0}


def cosines(pairs: int, samples: int, percent: int, shift: float) -> tuple[Tensor, Tensor]:
    """How alike the two teachers of every pair are, and the cosine of its gradients, `[pair]`. Each
    task has `samples` samples, of which some are also the other's; those that are its own may come
    from a distribution of its own.
    """
    shared = torch.arange(samples)[:, None] < round(samples * percent / 100)

    def one(seed: Tensor) -> tuple[Tensor, Tensor]:
        key = mf.random.key(seed)
        like = 2 * mf.random.uniform(mf.random.fold_in(key, 9), (), torch.float64) - 1
        first, other = normal(key, 0, 2, INPUTS) / INPUTS**0.5
        teachers = torch.stack([first, like * first + (1 - like.square()).sqrt() * other])
        own = normal(key, 1, 2, samples, INPUTS) + shift * normal(key, 2, 2, 1, INPUTS)
        x = torch.where(shared, normal(key, 3, 1, samples, INPUTS), own)
        y = (2 * torch.einsum("tni,ti->tn", x, teachers)).tanh()
        y = y + NOISE * normal(key, 4, 2, samples)

        def losses(params: mf.types.Params, batch: tuple[Tensor, Tensor]) -> Tensor:
            return (outputs(params, batch[0])[..., 0] - batch[1]).square().mean(-1)

        _, gramian = mf.task_gramian(losses, network(key, INPUTS, HIDDEN, 1), (x, y))
        return like, mf.diagnostics.cosines(gramian)[0, 1]

    return vmap(one)(torch.arange(pairs))


def run(settings: Settings) -> Findings:
    pairs = 25 * settings.seeds
    found = {
        f"{size} samples, {kind}": [
            rank_correlation(*cosines(pairs, size, percent, shift)) for percent in PERCENT
        ]
        for size in SIZES
        for kind, shift in SHIFTS.items()
    }
    where = (
        f"{pairs} pairs of tasks, teachers alike to degrees from -1 to 1, gradients of a network "
        f"of {INPUTS}-{HIDDEN}-1 at its start; Spearman's correlations with Fisher's intervals"
    )
    numbers: dict[str, float] = {}
    for case, row in found.items():
        for percent, value in zip(PERCENT, row, strict=True):
            numbers |= named(f"{case}: rank correlation at overlap {percent}", value)
    yield Claim(
        "SI-12",
        numbers,
        f"{where}, of the cosine of the gradients with how alike the teachers are. Shifted: each "
        "task's own inputs have a mean of their own",
    )
    yield course(found, where)


def course(found: dict[str, list[Interval]], where: str) -> Figure:
    canvas, panels = axes(1, len(SIZES), (11, 4.4))
    for panel, size in zip(panels, SIZES, strict=True):
        for kind, look in zip(SHIFTS, ("C0o-", "C1s--"), strict=True):
            middle, low, high = np.array(found[f"{size} samples, {kind}"]).T
            bars = [middle - low, high - middle]
            panel.errorbar(
                PERCENT, middle, bars, color=look[:2], fmt=look[2:], label=kind, capsize=3
            )
        panel.axvspan(30, 40, color="#dddddd", label="the claimed threshold")
        panel.set(
            xlabel="samples that the tasks share, %",
            ylabel="correlation of cosine with likeness",
            title=f"{size} samples a task",
            ylim=(-0.2, 1.05),
        )
        panel.legend()
    return Figure(
        "overlap", f"Do cosines of gradients say how alike two tasks are? {where}.", canvas
    )
