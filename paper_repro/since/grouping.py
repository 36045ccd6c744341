"""What tells which tasks should share a network, judged by training every group of them?"""

from typing import NamedTuple

import numpy as np
import torch
from torch.func import vmap
from tqdm import tqdm

from common.grouping.data import FAMILIES, TASKS, questions
from common.grouping.forecasts import measured
from common.grouping.judge import BUDGETS, above_random, folds, ranks, shown
from common.grouping.truth import GROUPS
from common.problems.digits import digits

from ..report.bounds import ALIKE
from ..report.decisions import Decision, Measured, Row, decided, ends, named_so, sided, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import Interval, mean_interval, named


def instead_of_training(forecast: str) -> Decision:
    """Of a forecast that orders gains, and no worse than the groups do if each is trained once."""

    def judge(measured: Measured) -> Verdict:
        shown, lost = [], []
        for end in named_so(measured, f"*: rank correlation of {forecast}, low"):
            name = end.removesuffix(", low")
            own, less = ends(measured, name), ends(measured, f"{name} less that of trained groups")
            shown.append(own[0] > 0 and less[0] > ALIKE.now)
            lost.append(own[1] < 0 or less[1] < ALIKE.now)
        return verdict_of(shown, lost)

    return decided(
        f"of no family of tasks {forecast} is shown to order the gains, and as well as training "
        "every group once does, and of one it is shown not to"
    )(judge)


CLAIMS = {
    "SI-25": Row(
        "Fifty et al. 2021: how one task's gradient would affect the other losses, measured in a "
        "single run of all tasks, selects which tasks should train together.",
        # the choice is judged: forecasts may order gains, and no choice be better for it
        sided(("*: loss of TAG's grouping less that of as large groups at random", "<", 0)),
        instead="benchmarks of images",
    ),
    "SI-26": Row(
        "Li et al. 2024: projected gradients of one network of all tasks estimate the affinities "
        "of groups without training them, close to the true ones.",
        instead_of_training("Grad-TAG"),
        instead="graphs and language models",
    ),
    "SI-27": Row(
        "Ayman et al. 2026: the similarity of the updates of two tasks measures their affinity, "
        "and extends linearly to groups.",
        sided(
            ("*, pairs: rank correlation of ETAP's linear part", ">", 0),
            ("*, larger groups: rank correlation of ETAP's linear part", ">", 0),
        ),
        instead="benchmarks of several domains",
    ),
    "SI-28": Row(
        "After Standley et al. 2020 (our words): what tasks gain in pairs, averaged, tells what "
        "they gain in larger groups, which then need no training.",
        instead_of_training("averaged pairs"),
        instead="networks for scenes",
    ),
}

LANES = 16  # seeds of all groups that are trained side by side
FIRST = 30_000  # draw of tasks; far from the seeds, and none of `python -m experiments.grouping`
FORECASTS = {
    "TAG": "TAG",
    "ETAP's linear part": "ETAP, linear part",
    "Grad-TAG": "Grad-TAG",
    "averaged pairs": "pairs",
    "trained groups": "every group",
}
"""As numbers are called here, and as the study calls them."""
PAIRS, LARGER = shown(2, 2), shown(3)


class Trained(NamedTuple):
    """A family of tasks: what each group gains, and what foretells it."""

    gains: list[np.ndarray]  # of a draw, [seed, group, task]
    forecasts: dict[str, list[np.ndarray]]

    def correlation(self, name: str, kept: np.ndarray) -> np.ndarray:
        """`[draw]`, of forecasts from one seed with the mean gains of the draw's other seeds."""
        parts = folds(len(self.gains[0]))["one seed"]
        return ranks(self.forecasts[name], self.gains, parts, kept).mean(1)

    def less_random(self, name: str, most: int) -> Interval:
        """The log loss of the chosen grouping less that of groups as large, at random."""
        parts = folds(len(self.gains[0]))["one seed"]
        return mean_interval(above_random(self.forecasts[name], self.gains, parts, most).mean(1))

    def against_trained(self, label: str, name: str, kept: np.ndarray) -> dict[str, float]:
        """A forecast, and what it has less than the groups trained on the same seed, paired."""
        own, real = (self.correlation(x, kept) for x in (name, "trained groups"))
        label = f"{label}: rank correlation of {name}"
        less = named(f"{label} less that of trained groups", mean_interval(own - real))
        return named(label, mean_interval(own)) | less


def train(family: str, draws: int, seeds: int, steps: int, first: int) -> Trained:
    """Every group on every seed of every draw of tasks; no seed is of two draws."""
    source, found = digits(torch.get_default_device()), []
    bar = tqdm(total=-(-draws * seeds // LANES) * steps, desc=family, leave=False)
    for lanes in torch.arange(draws * seeds).split(LANES):
        data = vmap(lambda lane: questions(family, source, FIRST + lane // seeds, first + lane))(
            lanes
        )
        names = (first + lanes).tolist()
        found.append(measured(names, data, steps, bar.update, ("TAG", "ETAP, linear part")))
    bar.close()

    def by_draw(name: str) -> list[np.ndarray]:
        every = torch.cat([each[name] for each in found])
        return list(every.unflatten(0, (draws, seeds)).double().cpu().numpy())

    return Trained(by_draw("gains"), {name: by_draw(said) for name, said in FORECASTS.items()})


def run(settings: Settings) -> Findings:
    draws, seeds = max(2, settings.seeds // 2), 8 if settings.full else 2
    steps = settings.count(300 if settings.full else 200)
    first = 500 + 1000 * settings.draw  # torch draws the first weights, by the seeds alone
    selects: dict[str, float] = {}
    estimates: dict[str, float] = {}
    extends: dict[str, float] = {}
    extrapolates: dict[str, float] = {}
    for family in FAMILIES:
        found = train(family, draws, seeds, steps, first)
        for most in BUDGETS:
            label = f"{family}, at most {most} groups: loss of TAG's grouping less that of as large"
            selects |= named(f"{label} groups at random", found.less_random("TAG", most))
        estimates |= found.against_trained(family, "Grad-TAG", shown())
        for size, kept in (("pairs", PAIRS), ("larger groups", LARGER)):
            label = f"{family}, {size}: rank correlation of ETAP's linear part"
            score = found.correlation("ETAP's linear part", kept)
            extends |= named(label, mean_interval(score))
        label = f"{family}, three or more"
        extrapolates |= found.against_trained(label, "averaged pairs", LARGER)
    where = (
        f"all {len(GROUPS)} groups of {TASKS} yes-or-no questions, trained for {steps} steps of "
        f"Adam, {seeds} seeds of each of {draws} draws of tasks: questions about digits, and "
        "questions of which three read one set of features and three another (planted). A task's "
        "gain is the log of its test loss alone over that in the group; a forecast from one seed "
        "is judged by the mean gains of the draw's other seeds. 95 % t intervals over draws"
    )
    ranked = "Spearman's correlations over the members of all groups of"
    trained = "groups that are trained on one seed are judged alike"
    yield Claim(
        "SI-25",
        selects,
        f"{where}. The chosen grouping has the largest sum of forecasts; its mean log loss over "
        "tasks is compared with the mean over all groupings whose groups are as large",
    )
    ridge = "Grad-TAG's ridge is the best on validation data"
    yield Claim("SI-26", estimates, f"{where}. {ranked} two or more; {trained}. {ridge}")
    yield Claim(
        "SI-27",
        extends,
        f"{where}. {ranked} two, and of three or more. The affinity of a pair is the product of "
        "the two gradients over the trunk, over the loss; that of a group the mean over its "
        "others. ETAP's other part, which learns from trained groups, is left out",
    )
    yield Claim("SI-28", extrapolates, f"{where}. {ranked} three or more; {trained}")
