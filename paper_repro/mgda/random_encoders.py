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
from tqdm import tqdm

import mtlfunc as mf

from ..report.bounds import ENDS_ALIKE, EXCEPTION, VANISHED
from ..report.decisions import Claims, Measured, Row, decided, ends, named_so, verdict_of
from ..report.findings import Claim, Figure, Findings, Settings, Verdict
from ..report.intervals import Interval, mean_interval, named, share_interval
from ..report.options import Draws, Option, Steps, drawn
from .encoders import SAMPLES, Geometry, Study, geometry, losses, steps_of, trained
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
claim = Claims(CLAIMS)

TASKS, WIDTHS = (2, 3, 5), (1, 2, 4, 8)


def run(settings: Settings) -> Findings:
    draws = settings.count(4000 if settings.full else 300)
    count = settings.count(1000 if settings.full else 100)
    few = max(1, draws // 3)  # of them are trained
    cells = studied(TASKS, WIDTHS, draws, count, settings)
    shares = shares_of(cells)
    own = raised_by_mgda(cells)
    yield heat_map(shares, f"{draws} draws a cell, {few} of them trained", own)
    yield like_exact(cells, shares, own, draws, settings)
    yield from room_to_move(settings)


Cells = dict[str, dict[Study, Geometry]]


def studied(
    tasks: Sequence[int], widths: Sequence[int], draws: int, steps: int, settings: Settings
) -> Cells:
    """Directions at random encoders of every size, before and after some of them are trained."""
    cells: Cells = {"at initialisation": {}, f"after {steps} steps on the mean loss": {}}
    plain = mf.descend(losses, mf.mean(), mf.losses_only(), mf.adam(1e-2))
    for count, width in itertools.product(tasks, widths):
        study = Study(count, width)
        params, batch = drawn_encoders(study, draws, settings)
        first, last = cells.values()
        first[study] = geometry(params, batch)
        params, batch = tree_map(lambda x: x[: max(1, draws // 3)], (params, batch))
        moved = trained(plain, params, batch, steps, f"T = {count}, q = {width}")
        last[study] = geometry(moved, batch)
    return cells


def shares_of(cells: Cells) -> dict[str, dict[Study, Interval]]:
    """Of encoders whose bound raises a task."""
    return {
        when: {
            study: share_interval(int(g.raises.sum()), len(g.raises)) for study, g in found.items()
        }
        for when, found in cells.items()
    }


def raised_by_mgda(cells: Cells) -> int:
    return sum(int(g.exact_raises.sum()) for found in cells.values() for g in found.values())


@drawn
def raised_tasks(
    tasks: Annotated[tuple[int, ...], Option("numbers of tasks", 2, 50)] = TASKS,
    widths: Annotated[tuple[int, ...], Option("widths of the representation", 1, 256)] = WIDTHS,
    draws: Draws = 300,
    steps: Steps = 100,
) -> Figure:
    """How often MGDA-UB's direction raises a task of a random encoder."""
    cells = studied(tasks, widths, draws, steps, Settings())
    sizes = f"{draws} draws a cell, {max(1, draws // 3)} of them trained"
    return heat_map(shares_of(cells), sizes, raised_by_mgda(cells))


def heat_map(shares: dict[str, dict[Study, Interval]], sizes: str, own: int) -> Figure:
    studies = next(iter(shares.values()))
    all_tasks = list(dict.fromkeys(study.tasks for study in studies))
    widths = list(dict.fromkeys(study.width for study in studies))
    size = (3 + 2 * len(widths), 1.6 + 0.8 * len(all_tasks))
    canvas = Canvas(figsize=(max(8, size[0]), size[1]), layout="constrained")
    image = None
    for i, (when, found) in enumerate(shares.items()):
        axis = canvas.add_subplot(1, 2, i + 1)
        values = np.array(
            [[found[Study(tasks, width)].mean for width in widths] for tasks in all_tasks]
        )
        image = axis.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            interval = found[Study(all_tasks[row], widths[column])]
            axis.text(
                column,
                row,
                f"{value:.3f}\n[{interval.low:.2f}, {interval.high:.2f}]",
                ha="center",
                va="center",
                fontsize=0.75 * rcParams["font.size"],
                color="white" if value > 0.65 else "black",
            )
        axis.set(title=when, xlabel="width q of the representation", ylabel="tasks T")
        axis.set_xticks(range(len(widths)), [str(width) for width in widths])
        axis.set_yticks(range(len(all_tasks)), [str(tasks) for tasks in all_tasks])
    assert image is not None
    canvas.colorbar(image, ax=canvas.axes, label="share of encoders")
    caption = (
        f"Share of random ReLU encoders whose MGDA-UB direction raises some task; {sizes}, "
        "Wilson's 95 % intervals. "
    )
    return Figure(
        "shares",
        f"{caption}MGDA itself raised a task in {own} draws.",
        canvas,
        [
            {"when": when, "tasks": study.tasks, "width": study.width} | share._asdict()
            for when, found in shares.items()
            for study, share in found.items()
        ],
    )


def like_exact(
    cells: dict[str, dict[Study, Geometry]],
    shares: dict[str, dict[Study, Interval]],
    own: int,
    draws: int,
    settings: Settings,
) -> Claim:
    """Directions and end losses of the two methods."""
    count = settings.count(1000 if settings.full else 100)
    few = max(2, draws // 4)
    numbers: dict[str, float] = {}
    for study in (Study(2, 1), Study(2, 8), Study(5, 1), Study(5, 8)):
        name = f"T = {study.tasks}, q = {study.width}"
        when, found = next(iter(cells.items()))
        numbers[f"{name}: median cosine of the directions"] = float(found[study].cosine.nanmedian())
        numbers |= named(f"{name}: share raising a task {when}", shares[when][study])
        params, batch = drawn_encoders(study, few, settings)
        ends = {
            method: vmap(losses)(trained(step, params, batch, count, f"{method}, {name}"), batch)
            for method, step in steps_of(mf.adam(1e-2)).items()
        }
        start = vmap(losses)(params, batch)
        gap = mean_interval(((ends["MGDA-UB"] - ends["MGDA"]) / start).mean(1).cpu())
        numbers |= named(f"{name}: mean normalised end loss, MGDA-UB less MGDA", gap)
    numbers["draws in which MGDA itself raises a task"] = float(own)
    return claim(
        "SU-30",
        numbers,
        f"random ReLU encoders at initialisation; {few} draws trained by either method, Adam "
        f"1e-2, {count} steps on one batch "
        f"of {SAMPLES}; like: end losses within .05 of the start's "
        "and fewer than 5 % of directions raise a task. T intervals over draws for losses, "
        "Wilson's for shares",
    )


def room_to_move(settings: Settings) -> Findings:
    """Do many parameters make the bound's direction safe? Shares over P at fixed T, q and batch."""
    draws = settings.count(1000 if settings.full else 300)
    sizes = (4, 8, 16, 32, 64, 128) if settings.full else (4, 8, 16, 32, 64)
    canvas = Canvas(figsize=(7.5, 4.5), layout="constrained")
    axis = canvas.add_subplot()
    numbers: dict[str, float] = {}
    for tasks, width in ((2, 1), (2, 2), (5, 2), (5, 8)):
        counts, found = [], []
        for hidden in tqdm(sizes, desc=f"T = {tasks}, q = {width}", leave=False):
            params, batch = drawn_encoders(Study(tasks, width, hidden), draws, settings)
            counts.append(
                sum(leaf[0].numel() for name, leaf in params.items() if name.startswith("trunk"))
            )
            found.append(share_interval(int(geometry(params, batch).raises.sum()), draws))
            numbers |= named(f"T = {tasks}, q = {width}, P = {counts[-1]}", found[-1])
        bars = np.array([[share.mean - share.low, share.high - share.mean] for share in found]).T
        axis.errorbar(
            counts,
            [share.mean for share in found],
            bars,
            marker="o",
            capsize=3,
            label=f"T = {tasks}, q = {width}",
        )
    axis.set(
        xlabel="trunk parameters P",
        ylabel="share of encoders raising a task",
        xscale="log",
        ylim=(-0.02, 1),
    )
    axis.legend()
    caption = (
        "Share of random encoders whose MGDA-UB direction raises a task against the "
        f"number of trunk parameters; {draws} draws a point, "
    )
    yield Figure("parameters", f"Does room to move help? {caption}Wilson's 95 % intervals.", canvas)
    yield claim(
        "SU-36",
        numbers,
        f"random ReLU encoders at initialisation, batch of {SAMPLES}; part of the claim. Wilson "
        "intervals",
    )
