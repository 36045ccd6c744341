"""Claims about data that are not here, judged on data of ours, on two sets of seeds.

`python -m experiments.standins` reads what these commands left, each about five minutes on a core,
and writes `paper_repro/standins.json`, from which the ledger's pages are made:

    python -m experiments.multimnist --settings "hard sharing"
        --rules mean,gradnorm,mgda,mgda-ub,pcgrad,cagrad --seeds 16
        --out experiments/multimnist/out/rules
    (again with --seeds 100:116 --out experiments/multimnist/out/rules-fresh)
    python -m experiments.multimnist
    python -m experiments.multimnist --seeds 100:112 --out experiments/multimnist/out/fresh
    python -m experiments.auxiliary
    python -m experiments.auxiliary --seeds 200:212 --out experiments/auxiliary/out/fresh
    python -m experiments.scenes
    python -m experiments.scenes --seeds 100:108 --out experiments/scenes/out/fresh
    python -m experiments.control
    python -m experiments.control --parts grids --seeds 100:140 --out experiments/control/out/fresh
    python -m experiments.control --parts points --seeds 100:110 --out experiments/control/out/fresh

`python -m experiments.standins molecules` judges that study alone, from its record.

`STANDINS` has every criterion, each said before the runs on fresh seeds were looked at, and after
those on the default ones: a method is above another where the gain, paired by seed, has its
interval above 0, widened for the number of rivals; a claim of several gains holds where all are
above 0, and does not hold where one is below when widened for all of them. Molecules have one run;
their criteria, written with its results, follow two questions of its decisions.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.cells import filled, plain
from common.intervals import Estimate, estimate
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
    settings_of,
    some_one,
)
from common.pooled import agreement
from common.tables import as_dicts
from common.tuned import Record
from experiments.auxiliary import train as auxiliary
from experiments.control import methods as control
from experiments.molecules import __main__ as molecules
from experiments.multimnist import train as multimnist
from experiments.scenes import train as scenes
from experiments.scenes.metrics import METRICS, TASKS, flat, metrics_of
from mtlfunc.core.files import write_whole

HERE = Path(__file__).parent
TARGET = HERE.parent / "paper_repro" / "standins.json"


class Study(NamedTuple):
    """Where its runs are, and how it is called."""

    on: str  # what it is about
    command: str
    rules: Sequence[str]  # that have to be there
    part: str = ""  # of its folders
    runs: tuple[str, str] = ("default", "fresh")  # the default run, and the one on fresh seeds

    @property
    def folders(self) -> tuple[str, str]:
        """Where both runs are, below this folder."""
        first, second = (f"{self.command.split()[0]}/out/{run}{self.part}" for run in self.runs)
        return first, second


DIGITS = ("mean", "gradnorm", "mgda", "mgda-ub", "pcgrad", "cagrad")
CALLED = f'multimnist --settings "hard sharing" --rules {",".join(DIGITS)}'
MAZES, POINTS = "control --parts grids", "control --parts points"
STUDIES = {
    "digits": Study("two overlaid digits", CALLED, DIGITS, runs=("rules", "rules-fresh")),
    "multimnist": Study("overlaid digits in six settings", "multimnist", multimnist.RULES),
    "auxiliary": Study("digits with few labels", "auxiliary", auxiliary.RULES),
    "scenes": Study("rendered rooms", "scenes", scenes.RULES),
    "mazes": Study("mazes with exact gradients", MAZES, control.RULES, "/grids"),
    "point mass": Study("a point mass with ten goals", POINTS, control.RULES, "/points"),
    "molecules": Study(
        "eleven properties of 20,000 molecules of QM9, a small network",
        "molecules run --data FOLDER",
        molecules.METHODS,
    ),
}

EARLIER = ("mgda", "mgda-ub", "mgda_ub", "pcgrad", "gradnorm")
"""Gradient manipulation from before CAGrad, as the studies name it."""

PLAIN = ("mean", "static search", "uw", "dwa")


Judge = Callable[[Values], Judged]


class StandIn(NamedTuple):
    """A claim's criterion on one study."""

    claim: str
    study: str
    holds: str  # the claim, where …
    judge: Judge


def values(study: str, results: Mapping[str, Any]) -> Values:
    """One number a seed of every measure and method; accuracies and Δm in per cent."""
    if study == "molecules":
        return {"Δm": {name: [-x for x in of.values()] for name, of in results["Δm"].items()}}
    if study in ("digits", "multimnist"):
        found: Values = {}
        for setting, methods in results["problems"].items():
            found |= accuracies(setting, {k: columns(v["runs"]) for k, v in methods.items()})
        return found
    if study == "auxiliary":
        return {
            problem: {
                name: [100 * run["test"] for run in row["runs"]] for name, row in methods.items()
            }
            for problem, methods in results["problems"].items()
        }
    runs = {name: row["runs"] for name, row in results["methods"].items()}
    if study == "scenes":
        return _scenes(runs)
    return {
        key: {name: [x[key] if up else -x[key] for x in each] for name, each in runs.items()}
        for key, up in results["higher is better"].items()
    }


def _scenes(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Values:
    """-Δm flat, over all metrics and over those of a task."""
    alone = [
        [run["test"] for run in each] for each in runs.values() if len(each[0]["weights"]) == 1
    ]
    base = [{k: v for test in seed for k, v in test.items()} for seed in zip(*alone, strict=True)]

    def gain(tests: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[float]:
        return [
            -flat({k: test[k] for k in names}, {k: one[k] for k in names})
            for test, one in zip(tests, base, strict=True)
        ]

    joint = {k: [x["test"] for x in v] for k, v in runs.items() if len(v[0]["weights"]) > 1}
    names = {"Δm": list(METRICS)} | {task: list(metrics_of([task])) for task in TASKS}
    return {
        task: {name: gain(tests, every) for name, tests in joint.items()}
        for task, every in names.items()
    }


def levels(found: Values, measure: str, sign: int = 1) -> dict[str, Estimate]:
    """What every method reached."""
    return {
        f"{measure}, {name}": estimate([sign * x for x in each])
        for name, each in found[measure].items()
    }


def _rooms(found: Values, task: str) -> Judged:
    gains = above(found, "Δm", "cagrad", (*PLAIN, *EARLIER)) | above(
        found, task, "cagrad", ["mean"]
    )
    return every_one(gains, levels(found, "Δm", -1))


def _published_wins(found: Values, ours: str, measure: str) -> Judged:
    rivals = ("mean", "mgda", "pcgrad", control.HEADS, control.INDEPENDENT)
    return every_one(above(found, measure, ours, rivals), levels(found, measure))


def _pcgrad_wins(found: Values, measures: Sequence[str]) -> Judged:
    rivals = ("mean", BOTH, control.HEADS, control.INDEPENDENT)
    return every_one(over(found, measures, "pcgrad", rivals))


def _same_order(found: Values) -> Judged:
    levels = {name: dict(enumerate(each)) for name, each in found["Δm"].items()}
    tau, *_ = agreement({name: -x for name, x in molecules.PUBLISHED.items()}, levels)
    return every_one({"Kendall's τ": tau})


def _wins(ours: str, rivals: Sequence[str], measures: Sequence[str] = ()) -> Judge:
    """Above all rivals, in these measures or in all of a study."""
    return lambda found: every_one(over(found, measures or list(found), ours, rivals))


def _bound_wins(measure: str, ours: str) -> Judge:
    return lambda found: every_one(above(found, measure, ours, ("mean", BOTH)))


def _one_above_two(found: Values) -> Judged:
    gains = {}
    for setting in settings_of(found):
        for rule in found[setting]:
            gains |= above(found, setting, rule, [BOTH]) if rule != BOTH else {}
    return some_one(gains)


BELOW = "some task ends below its own network by the mean loss"
FOUR = "PCGrad is above the mean loss in all four architectures"
FASTER = "PCGrad is above the mean loss along training and at the end"
POLICIES = "PCGrad ends above one policy, a head a task, independent ones"
NETWORKS = "PCGrad ends above the mean loss and the networks alone"
BOUND = "the bound is above the mean loss"
SIX = "in all six settings both tasks end below their own networks by the mean loss"
BETTER = "CAGrad is above every earlier gradient manipulation that runs"
PIXELS = "CAGrad's Δm is better than that of every other method from before it that runs, and its "
PIXELS += "{} better than the mean loss's"
GOALS = "CAGrad ends above the mean loss, MGDA, PCGrad, a head a task, independent policies"
LABELS = "CAGrad is above the main task alone and every other rule for every number of labels"
SHARED = "in some of six settings one network, by some rule, is above two"
NORMS = "GradNorm is above two networks and every other rule in all four architectures"
NO_BETTER = "the tuned mean loss has a lower Δm than every method; a lower one speaks against it"
SAME = "Kendall's τ with the published Δm of eleven methods is above 0"
MEASURES = {"digits": ["hard sharing"], "auxiliary": [], "scenes": ["Δm"]}
MEASURES |= {"mazes": ["final"], "point mass": ["final"]}
STANDINS = (
    StandIn("PC-01", "digits", BELOW, lambda v: some_one(alone(v, ["hard sharing"]))),
    StandIn("PC-01", "multimnist", BELOW, lambda v: some_one(alone(v, ["hard sharing"]))),
    StandIn("PC-07", "multimnist", FOUR, _wins("pcgrad", ["mean"], ARCHITECTURES)),
    StandIn("PC-08", "mazes", FASTER, _wins("pcgrad", ["mean"])),
    StandIn("PC-08", "point mass", FASTER, _wins("pcgrad", ["mean"])),
    StandIn("PC-21", "point mass", POLICIES, lambda v: _pcgrad_wins(v, ["final"])),
    StandIn("PC-21", "digits", NETWORKS, lambda v: _pcgrad_wins(v, ["hard sharing"])),
    StandIn(
        "SU-37", "digits", f"{BOUND} and the networks alone", _bound_wins("hard sharing", "mgda-ub")
    ),
    StandIn("SU-37", "scenes", BOUND, _bound_wins("Δm", "mgda_ub")),
    StandIn("CA-01", "multimnist", SIX, lambda v: every_one(alone(v, settings_of(v)))),
    StandIn("CA-30", "scenes", PIXELS.format("normals"), lambda v: _rooms(v, "normals")),
    StandIn("CA-31", "scenes", PIXELS.format("depth"), lambda v: _rooms(v, "depth")),
    StandIn("CA-32", "point mass", GOALS, lambda v: _published_wins(v, "cagrad", "final")),
    StandIn(
        "CA-36", "auxiliary", LABELS, lambda v: _wins("cagrad", list(next(iter(v.values()))))(v)
    ),
    *(StandIn("CA-38", x, BETTER, _wins("cagrad", EARLIER, m)) for x, m in MEASURES.items()),
    StandIn("GN-01", "multimnist", SHARED, _one_above_two),
    StandIn(
        "GN-26",
        "multimnist",
        NORMS,
        lambda v: _wins("gradnorm", list(v["hard sharing"]), ARCHITECTURES)(v),
    ),
    StandIn("SI-29", "molecules", NO_BETTER, _wins("mean", molecules.METHODS[1:])),
    StandIn("SI-30", "molecules", SAME, _same_order),
)


def read(study: str) -> dict[str, Any]:
    """What both runs of a study left, by the seeds that they were on. Raises SystemExit for a run
    that is not there, runs that share seeds or differ otherwise, and methods that were left out.
    """
    if study == "molecules":
        record = Record(molecules.RECORD, molecules.DESIGN)
        return {
            f"{record.design.seeds[0]} to {record.design.seeds[-1]}": {
                "Δm": molecules.found(record).levels
            }
        }
    found: dict[str, Any] = {}
    cure = "the commands are at the top of experiments/standins.py"
    for folder in STUDIES[study].folders:
        path = HERE / folder / "results.json"
        try:
            results = filled(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path} cannot be read ({error}); {cure}") from error
        seeds = _seeds(results)
        missing = sorted(set(STUDIES[study].rules) - _methods(results))
        if missing:
            raise SystemExit(f"{path} has no runs of {', '.join(missing)}; {cure}")
        found[f"{seeds[0]} to {seeds[-1]}"] = results
    one, other = list(found.values()) if len(found) == 2 else 2 * list(found.values())
    a, b = one["settings"], other["settings"]
    differ = sorted(k for k in (a | b).keys() - {"workers", "seeds"} if a.get(k) != b.get(k))
    if differ or set(_seeds(one)) & set(_seeds(other)):
        what = f"differ in {', '.join(differ)}" if differ else "share seeds"
        raise SystemExit(f"{' and '.join(STUDIES[study].folders)} {what}; {cure}")
    return found


def _seeds(results: Mapping[str, Any]) -> list[int]:
    return (results.get("plan") or results["settings"])["seeds"]


def _methods(results: Mapping[str, Any]) -> set[str]:
    every = results.get("problems") or {"": results["methods"]}
    return set.intersection(*map(set, every.values()))


def judged(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All criteria on all runs. `results`: by study and seeds, what `read` gives."""
    measured = {
        study: {seeds: values(study, result) for seeds, result in runs.items()}
        for study, runs in results.items()
    }
    return {
        "studies": {
            x: {"on": STUDIES[x].on, "command": f"python -m experiments.{STUDIES[x].command}"}
            for x in results
        },
        "stand-ins": [
            {
                "claim": row.claim,
                "study": row.study,
                "holds": row.holds,
                "runs": {
                    seeds: as_dicts(row.judge(found))
                    for seeds, found in measured[row.study].items()
                },
            }
            for row in STANDINS
            if row.study in results
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.standins",
        description="Judge claims about data that are not here by what the studies left, on the "
        "default seeds and on fresh ones; the commands are at the top of experiments/standins.py.",
    )
    parser.add_argument("--out", type=Path, default=TARGET, help="the file (default: %(default)s)")
    parser.add_argument("study", nargs="?", choices=STUDIES, help="the others stay as they are")
    given = parser.parse_args(argv)
    found = _short(
        plain(judged({study: read(study) for study in STUDIES if given.study in (None, study)}))
    )
    if given.study:
        kept = json.loads(TARGET.read_text(encoding="utf-8"))
        others = [row for row in kept["stand-ins"] if row["study"] != given.study]
        found = {
            "studies": kept["studies"] | found["studies"],
            "stand-ins": others + found["stand-ins"],
        }
    write_whole(given.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for row in found["stand-ins"]:
        said = "; ".join(f"seeds {seeds}: {run['verdict']}" for seeds, run in row["runs"].items())
        print(f"{row['claim']}  {row['study']:<12}{said}")
    print(f"written: {given.out}")
    return 0


def _short(value: Any) -> Any:
    """Numbers of six digits."""
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
