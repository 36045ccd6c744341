"""Claims about real images, decided by the accuracies that two studies' runs have.

How each is decided was written before any run of the first study, but for the methods of GN-01 and
CA-38. `python docs/results.py images FOLDER` takes its accuracies into `docs/record/images.json`.
The second study, with four times the seeds, decides four claims; its power.md says when that was
settled (`python docs/results.py power`). Until a file has what a criterion asks for, the claim is
"not run". Of the three sets of pairs MultiMNIST decides, as in the papers.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common.cells import filled, plain
from common.judge import (
    ARCHITECTURES,
    BOTH,
    Judged,
    Values,
    above,
    accuracies,
    alone,
    columns,
    every_one,
    over,
    some_one,
)
from mtlfunc.core.files import write_whole

RECORDS = Path(__file__).parents[2] / "docs" / "record"
FIRST, SECOND = "images", "images-power"
"""The studies, by the names of their files of accuracies."""
COMMANDS = {FIRST: "python -m experiments.multimnist --data FOLDER"}
COMMANDS |= {SECOND: "python -m experiments.multimnist.power run --data FOLDER"}
NOT_RUN = "not run"
SETS = {"mnist": "MultiMNIST", "fashion": "MultiFashion", "mixed": "MNIST with Fashion-MNIST"}
BASE, TENTH = "hard sharing", "a tenth of the images"
WEIGHTINGS = ("mean", "static search", "uw", "dwa", "random")
EARLIER = ("mgda, own heads", "pcgrad", "gradnorm")
RULES = ("mean", "nash-mtl, weighted heads", "uw", "cagrad", *EARLIER)
"""The second study's; of these are from before CAGrad, and manipulate gradients, the `EARLIER`."""
ALIKE = ("epochs", "batch", "papers", "set", "most", "images", "optimizer")
"""What all runs of a set have in common, whatever machine made them."""


class Criterion(NamedTuple):
    """How a claim is decided."""

    holds: str  # the claim, where …
    needed: dict[str, tuple[str, ...]]  # methods by setting, next to the networks alone
    judge: Callable[[Values], Judged]
    study: str = FIRST  # whose runs decide it


def bound(found: Values) -> Judged:
    """The published result: better than the mean loss, and as good as a network for each task."""
    gains = above(found, BASE, "mgda-ub", ("mean", BOTH))
    mean, two = gains
    if gains[two].high < 0:
        return Judged("does not hold", gains, two)
    below = "does not hold" if gains[mean].high < 0 else "inconclusive"
    return Judged("holds" if gains[mean].low > 0 else below, gains, mean)


def one_network(found: Values) -> Judged:
    """Each rule's gain on two networks."""
    return some_one({k: x for rule in RULES for k, x in above(found, BASE, rule, [BOTH]).items()})


def balanced(found: Values) -> Judged:
    """GradNorm's gains in every architecture on what ran there."""
    return every_one(over(found, ARCHITECTURES, "gradnorm", (BOTH, *WEIGHTINGS)))


CRITERIA = {
    "SU-37": Criterion(
        "the bound is above the mean loss, and not below two networks",
        {BASE: ("mean", "mgda-ub")},
        bound,
    ),
    "PC-01": Criterion(
        "some task ends below its own network by the mean loss",
        {BASE: ("mean",)},
        lambda v: some_one(alone(v, [BASE])),
        SECOND,
    ),
    "PC-07": Criterion(
        "PCGrad is above the mean loss in all four architectures",
        dict.fromkeys(ARCHITECTURES, ("mean", "pcgrad")),
        lambda v: every_one(over(v, ARCHITECTURES, "pcgrad", ["mean"])),
    ),
    "PC-08": Criterion(
        "PCGrad ends above the mean loss with a tenth of the images and with all of them; how "
        "fast it gets there is not judged",
        dict.fromkeys((BASE, TENTH), ("mean", "pcgrad")),
        lambda v: every_one(over(v, (BASE, TENTH), "pcgrad", ["mean"])),
    ),
    "CA-01": Criterion(
        "both tasks end below their own networks by the mean loss",
        {BASE: ("mean",)},
        lambda v: every_one(alone(v, [BASE])),
        SECOND,
    ),
    "CA-38": Criterion(
        "CAGrad is above MGDA, PCGrad and GradNorm",
        {BASE: ("cagrad", *EARLIER)},
        lambda v: every_one(above(v, BASE, "cagrad", EARLIER)),
        SECOND,
    ),
    "GN-01": Criterion(
        "one network, by some of seven methods, is above two", {BASE: RULES}, one_network, SECOND
    ),
    "GN-26": Criterion(
        "GradNorm is above two networks and every other weighting in all four architectures",
        {
            BASE: ("gradnorm", *WEIGHTINGS),
            **dict.fromkeys(ARCHITECTURES[1:], ("gradnorm", "mean", "uw", "dwa")),
        },
        balanced,
    ),
}


@functools.cache
def kept(study: str = FIRST) -> dict[str, Any]:
    """By set: how it ran (`settings`), the `seeds`, how many are `planned` where that says more,
    and `accuracies` by setting, method and task, one a seed; empty before anything ran.
    """
    path = RECORDS / f"{study}.json"
    return filled(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def judged(claim: str, which: str = "mnist") -> Judged | None:
    """What a set says of a claim; None where it is not decided here, or runs are missing."""
    row = CRITERIA.get(claim)
    found = kept(row.study).get(which, {}).get("accuracies", {}) if row else {}
    if row is None or not all(
        {*methods, "left alone", "right alone"} <= {*found.get(setting, {})}
        for setting, methods in row.needed.items()
    ):
        return None
    measured: Values = {}
    for setting in row.needed:
        measured |= accuracies(setting, found[setting])
    return row.judge(measured)


def verdict(claim: str) -> str:
    """Of MultiMNIST; "not run" without it."""
    found = judged(claim)
    return found.verdict if found else NOT_RUN


def said(claim: str) -> str:
    """Every set's verdict, in a sentence without its full stop."""
    study, each = CRITERIA[claim].study, list[str]()
    for which, name in SETS.items():
        if found := judged(claim, which):
            seeds = kept(study)[which]["seeds"]
            planned = kept(study)[which].get("planned", len(seeds))
            each.append(f"{found.verdict} on {name}, seeds {seeds[0]} to {seeds[-1]}")
            each[-1] += f", {len(seeds)} of {planned}, provisional" * (len(seeds) < planned)
    return f"real images: {'; '.join(each) or NOT_RUN} (`{COMMANDS[study]}`)"


def measured(claim: str) -> str:
    """The gain that decides, by set; a dash before anything ran."""
    parts = []
    for which, name in SETS.items():
        if found := judged(claim, which):
            gain = found.gains[found.decisive]
            parts.append(
                f"{name}: {found.decisive} {gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]"
            )
    return "; ".join(parts) or "–"


def keep(results: dict[str, Any]) -> None:
    """Put what a study left into the record; settings that are there of the same set stay.

    Raises:
        SystemExit: for other bytes than the published files, fewer images, rates that were given or
            chosen on the seeds of the results; where the set's other settings ran otherwise or on
            other seeds; and where a setting lacks methods that the record has there.
    """
    settings, plan, path = results["settings"], results["plan"], RECORDS / f"{FIRST}.json"
    seeds = plan["seeds"]
    if not settings["data"] or "not the published" in settings["images"] or settings["most"]:
        raise SystemExit(f"expected whole sets of the published files, got {settings['images']}")
    if len(plan["rates"]) < 3 or set(plan["tuning"]) & set(seeds) or len(seeds) < 5:
        raise SystemExit(
            f"expected rates chosen of three on a seed of its own, and five more: {plan}"
        )
    same = {k: v for k, v in settings.items() if k in ALIKE}
    found = kept().get(settings["set"], {"settings": same, "seeds": seeds, "accuracies": {}})
    if (found["settings"], found["seeds"]) != (same, seeds):
        raise SystemExit(
            f"{path} has {settings['set']} of other settings or seeds: {found['seeds']}"
        )
    new = {
        setting: {name: columns(row["runs"]) for name, row in methods.items()}
        for setting, methods in filled(results["problems"]).items()
    }
    lost = [
        f"{name} ({setting})"
        for setting, methods in new.items()
        for name in found["accuracies"].get(setting, {})
        if name not in methods
    ]
    if lost:
        raise SystemExit(f"{path} has {', '.join(lost)}, which these results lack; run all --rules")
    record = kept() | {settings["set"]: found | {"accuracies": found["accuracies"] | new}}
    write_whole(path, json.dumps(plain(record), indent=1, ensure_ascii=False) + "\n")
    kept.cache_clear()
