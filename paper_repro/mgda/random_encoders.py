"""How often does the bound's direction raise a task, and does room to move help?"""

import itertools
import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure as Canvas
from torch.func import vmap
from torch.utils._pytree import tree_map

import mtlfunc as mf

from ..report.bounds import ENDS_ALIKE, EXCEPTION, VANISHED
from ..report.decisions import Measured, Row, decided, ends, named_so, verdict_of
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import Interval, mean_interval, named, share_interval
from ..report.options import Draws, Option, Steps, drawn
from .encoders import SAMPLES, Study, losses, raised, steps_of, trained
from .encoders import drawn as drawn_encoders


@decided(
    "in no case end losses are within .05 of each other and under 5 % of directions raise a task, "
    "and in one they are further apart or more raise one (intervals)"
)
def judge_like_exact(measured: Measured) -> Verdict:
    shown, lost = [], []
    for end in named_so(measured, "*: mean normalised end loss, MGDA-UB less MGDA, low"):
        case = end.split(": ")[0]
        gap = f"{case}: mean normalised end loss, MGDA-UB less MGDA"
        low, high = ends(measured, gap)
        raising = f"{case}: share raising a task at initialisation"
        shown.append(
            low > -ENDS_ALIKE.now
            and high < ENDS_ALIKE.now
            and measured[f"{raising}, high"] < EXCEPTION.now
        )
        lost.append(
            low > ENDS_ALIKE.now
            or high < -ENDS_ALIKE.now
            or measured[f"{raising}, low"] > EXCEPTION.now
        )
    return verdict_of(shown, lost)


@decided(
    "in no setting the share that raises a task falls from the smallest P to the largest; in part "
    "unless it ends below .02 in each"
)
def judge_room_to_move(measured: Measured) -> Verdict:
    groups: dict[str, list[tuple[int, str]]] = {}
    for end in named_so(measured, "T = *, q = *, P = *, low"):
        group, size = re.fullmatch(r"(.*), P = (\d+), low", end).groups()  # pyright: ignore
        groups.setdefault(group, []).append((int(size), end.removesuffix(", low")))
    to_zero, some, stays = [], [], []
    for cases in groups.values():
        first, last = min(cases)[1], max(cases)[1]
        falls = measured[f"{last}, high"] < measured[f"{first}, low"]
        to_zero.append(measured[f"{last}, high"] < VANISHED.now)
        some.append(falls or to_zero[-1])
        stays.append(measured[f"{last}, low"] > VANISHED.now and not falls)
    if all(to_zero):
        return "holds"
    if any(some):
        return "holds only when"
    return "does not hold" if all(stays) else "inconclusive"


CLAIMS = {
    "SU-30": Row(
        "Minimising the upper bound gives results like minimising the exact norm.",
        judge_like_exact.open_unless(("draws in which MGDA itself raises a task", "==", 0)),
        when="the encoding is wide enough; in the narrow ones directions raise a task",
    ),
    "SU-36": Row(
        "The bound works well in experiments because deep networks have so many "
        "parameters that there is room to move.",
        judge_room_to_move,
        when="the share is asked to fall with the parameters; in no setting it vanishes",
        instead="deep networks on real data",
    ),
}

TASKS, WIDTHS = (2, 3, 5), (1, 2, 4, 8)
Shares = dict[str, dict[Study, Interval]]
"""Of encoders whose bound raises a task, by when."""


def run(settings: Settings) -> Findings:
    draws = settings.count(4000 if settings.full else 300)
    count = settings.count(1000 if settings.full else 100)
    shares, own = studied(TASKS, WIDTHS, draws, count, settings)
    yield heat_map(shares, own, draws)
    yield like_exact(shares, own, draws, count, settings)
    yield room_to_move(settings)


def studied(
    tasks: Sequence[int], widths: Sequence[int], draws: int, steps: int, settings: Settings
) -> tuple[Shares, int]:
    """Random encoders of every size, before and after a third of them is trained; and the number of
    draws in which MGDA's own direction raises a task.
    """
    first, last = "at initialisation", f"after {steps} steps on the mean loss"
    shares: Shares = {first: {}, last: {}}
    own, plain = 0, mf.descend(losses, mf.mean(), mf.losses_only(), mf.adam(1e-2))
    for count, width in itertools.product(tasks, widths):
        study = Study(count, width)
        points = drawn_encoders(study, draws, settings)
        some, batch = tree_map(lambda x: x[: max(1, draws // 3)], points)
        moved = trained(plain, some, batch, steps, f"T = {count}, q = {width}")
        for when, there in ((first, points), (last, (moved, batch))):
            bound, exact = raised(*there)
            shares[when][study] = share_interval(int(bound.sum()), len(bound))
            own += int(exact.sum())
    return shares, own


@drawn
def raised_tasks(
    tasks: Annotated[tuple[int, ...], Option("numbers of tasks", 2, 50)] = TASKS,
    widths: Annotated[tuple[int, ...], Option("widths of the representation", 1, 256)] = WIDTHS,
    draws: Draws = 300,
    steps: Steps = 100,
) -> Figure:
    """How often MGDA-UB's direction raises a task of a random encoder."""
    return heat_map(*studied(tasks, widths, draws, steps, Settings()), draws)


def heat_map(shares: Shares, own: int, draws: int) -> Figure:
    studies = next(iter(shares.values()))
    all_tasks = list(dict.fromkeys(study.tasks for study in studies))
    widths = list(dict.fromkeys(study.width for study in studies))
    size = (max(8, 3 + 2 * len(widths)), 1.6 + 0.8 * len(all_tasks))
    canvas = Canvas(figsize=size, layout="constrained")
    image = None
    for i, (when, found) in enumerate(shares.items()):
        axis = canvas.add_subplot(1, 2, i + 1)
        values = np.array([[found[Study(t, q)].mean for q in widths] for t in all_tasks])
        image = axis.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        for study, share in found.items():
            axis.text(
                widths.index(study.width),
                all_tasks.index(study.tasks),
                f"{share.mean:.3f}\n[{share.low:.2f}, {share.high:.2f}]",
                ha="center",
                va="center",
                fontsize=0.75 * rcParams["font.size"],
                color="white" if share.mean > 0.65 else "black",
            )
        axis.set(title=when, xlabel="width q of the representation", ylabel="tasks T")
        axis.set_xticks(range(len(widths)), [str(width) for width in widths])
        axis.set_yticks(range(len(all_tasks)), [str(tasks) for tasks in all_tasks])
    assert image is not None
    canvas.colorbar(image, ax=canvas.axes, label="share of encoders")
    return Figure(
        "shares",
        f"Share of random ReLU encoders whose MGDA-UB direction raises some task; {draws} draws a "
        f"cell, {max(1, draws // 3)} of them trained, Wilson's 95 % intervals. MGDA itself raised "
        f"a task in {own} draws.",
        canvas,
        [
            {"when": when, "tasks": study.tasks, "width": study.width} | share._asdict()
            for when, found in shares.items()
            for study, share in found.items()
        ],
    )


def like_exact(shares: Shares, own: int, draws: int, count: int, settings: Settings) -> Claim:
    """Directions and end losses of the two methods."""
    few = max(2, draws // 4)
    numbers: dict[str, float] = {}
    for study in (Study(2, 1), Study(2, 8), Study(5, 1), Study(5, 8)):
        name, when = f"T = {study.tasks}, q = {study.width}", "at initialisation"
        numbers |= named(f"{name}: share raising a task {when}", shares[when][study])
        params, batch = drawn_encoders(study, few, settings)
        bound, exact = (
            vmap(losses)(trained(step, params, batch, count, f"{method}, {name}"), batch)
            for method, step in steps_of(mf.adam(1e-2)).items()
        )
        gap = mean_interval(((bound - exact) / vmap(losses)(params, batch)).mean(1).cpu())
        numbers |= named(f"{name}: mean normalised end loss, MGDA-UB less MGDA", gap)
    numbers["draws in which MGDA itself raises a task"] = own
    return Claim(
        "SU-30",
        numbers,
        f"random ReLU encoders at initialisation; {few} draws trained by either method, Adam "
        f"1e-2, {count} steps on one batch of {SAMPLES}. T intervals over draws for losses, "
        "Wilson's for shares",
    )


def room_to_move(settings: Settings) -> Claim:
    """Do many parameters make the bound's direction safe? Shares with few and with many at fixed T,
    q and batch.
    """
    draws = settings.count(1000 if settings.full else 300)
    numbers: dict[str, float] = {}
    for tasks, width in ((2, 1), (2, 2), (5, 2), (5, 8)):
        name = f"T = {tasks}, q = {width}"
        for hidden in (4, 128 if settings.full else 64):
            params, batch = drawn_encoders(Study(tasks, width, hidden), draws, settings)
            size = sum(x[0].numel() for part, x in params.items() if part.startswith("trunk"))
            share = share_interval(int(raised(params, batch)[0].sum()), draws)
            numbers |= named(f"{name}, P = {size}", share)
    return Claim(
        "SU-36",
        numbers,
        f"{draws} random ReLU encoders a size at initialisation, batch of {SAMPLES}. Wilson "
        "intervals",
    )
