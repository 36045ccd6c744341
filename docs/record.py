"""The verdict of record of every claim: what each kept run says, and what they say together.

`docs/record/` has a file per run: the default one, one with other random numbers (`--draw 1`), one
of another processor if there is one, one whose arithmetic rounds otherwise than this processor's,
and one of a device if there is one. Those at the papers' sizes (`--full`) are in
`paper_repro/full.json`. Each keeps the numbers; a verdict is what today's decision says of them.
"""

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from docs import full
from mtlfunc.core.files import write_whole
from paper_repro.claims import DECISIONS, LEDGER, ROWS
from paper_repro.report import bounds
from paper_repro.report.results import NOT_RUN
from paper_repro.report.said import when

FOLDER = Path(__file__).parent / "record"
NAMES = ("default", "draw 1", "another processor", "other arithmetic", "device", "full")
USUAL = "default"
PROCESSORS = ("another processor", "other arithmetic", "device")
"""Runs that differ from the default one in the arithmetic alone: the draws are the same."""
STRENGTH = ("holds", "holds only when", "does not hold")
FACTOR = {0.5: "half", 2.0: "twice"}
SHOWN = 2
"""Numbers of a row that are told."""


class Run(NamedTuple):
    """The numbers that a run left, by claim, and when and where."""

    machine: str
    day: str
    numbers: dict[str, dict[str, float]]
    where: dict[str, str]  # how each claim was measured; its decision is today's

    def verdicts(self) -> dict[str, str]:
        """What today's decisions say; a claim whose numbers are not enough has none."""
        return full.decided(self.numbers)


def path(name: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{name.replace(' ', '-')}.json"


def read(name: str) -> Run | None:
    """A run that was kept."""
    if not path(name).exists():
        return None
    return Run(**json.loads(path(name).read_text(encoding="utf-8")))


def runs() -> dict[str, Run]:
    """Those that were kept, by name; of --full there are single questions."""
    return {name: run for name in NAMES[:-1] if (run := read(name))}


def keep(
    name: str, claims: Mapping[str, dict], settings: str = "", machine: str | None = None
) -> None:
    """Keep the numbers of a run, six digits each unless its verdict hangs on more.

    `settings`: of the environment, where they change the arithmetic. `machine`: that it ran on; by
    default this one.

    A default run of another processor than this one stays, as that of another processor.
    """
    numbers = {
        claim: rounded(claim, found) for claim, found in claims.items() if found["configuration"]
    }
    run = Run(
        ", ".join(filter(None, (machine or full.here(), settings))),
        datetime.date.today().isoformat(),
        numbers,
        {claim: measured_how(claims[claim]) for claim in numbers},
    )
    before = read(name)
    FOLDER.mkdir(exist_ok=True)
    if name == "default" and before is not None and before.machine != run.machine:
        path("default").replace(path("another processor"))
    write(name, run)


def measured_how(claim: dict) -> str:
    """A claim's configuration, without the decision as it was when it ran."""
    return claim["where"].partition(". Said beforehand: ")[0]


def write(name: str, run: Run) -> None:
    text = json.dumps(run._asdict(), indent=1, ensure_ascii=False)
    write_whole(path(name), f"{text}\n")


def keep_questions(claims: Mapping[str, dict]) -> None:
    """Put single questions that ran in their place of the default run.

    What another run or `--full` has of a claim is left out if a number of the default run is new
    or another one: on one machine that is so where the question has changed.

    Raises:
        SystemExit: where the rest of the default run is of another machine.
    """
    numbers = {c: rounded(c, found) for c, found in claims.items() if found["configuration"]}
    before, today = read(USUAL), datetime.date.today().isoformat()
    if before is None or before.machine != full.here():
        raise SystemExit("docs/record/default.json: no default run of this machine to complete")
    day = " to ".join(sorted({before.day.split(" to ")[0], today}))
    where = before.where | {c: measured_how(claims[c]) for c in numbers}
    write(USUAL, Run(before.machine, day, before.numbers | numbers, where))

    gone = {c for c, x in numbers.items() if not unchanged(before.numbers.get(c, {}), x)}
    for name, run in runs().items():
        if name != USUAL:
            kept = {c: x for c, x in run.numbers.items() if c not in gone}
            write(name, run._replace(numbers=kept, where={c: run.where[c] for c in kept}))
    answers = full.read()
    for question, answer in answers.items():
        answers[question] = answer._replace(
            numbers={c: x for c, x in answer.numbers.items() if c not in gone}
        )
    full.keep(answers)


def unchanged(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether all numbers of now were there and are the same, but for those that are times."""
    steady = {x for x in now if not re.search(r"\btime\b|\bms\b|seconds|µs", x)}
    return steady <= before.keys() and all(
        math.isnan(now[x] + before[x]) or math.isclose(now[x], before[x], rel_tol=1e-4)
        for x in steady
    )


def rounded(name: str, claim: dict) -> dict[str, float]:
    """A claim's numbers with six digits each, unless its verdict hangs on more."""
    measured, decision = claim["measured"], DECISIONS[name]
    few = {key: float(x) for key, x in short(measured).items()}
    return few if decision.verdict(few) == decision.verdict(measured) else measured


def verdicts() -> dict[str, dict[str, str]]:
    """What every kept run says of every claim: `[claim][run]`."""
    found: dict[str, dict[str, str]] = {row.id: {} for row in ROWS}
    kept = runs()
    for name, run in kept.items():
        for claim, verdict in run.verdicts().items():
            found[claim][name] = verdict
    usual = kept[USUAL].numbers if USUAL in kept else {}
    for answer in full.read().values():
        for claim, verdict in full.decided(answer.numbers).items():
            numbers = short(answer.numbers.get(claim, {}))
            # a question without larger sizes is run again as it was
            same = bool(numbers) and numbers == short(usual.get(claim, {}))
            if claim in found and not same:
                found[claim]["full"] = verdict
    return found


def short(numbers: Mapping[str, float]) -> dict[str, str]:
    """Six digits of each number."""
    return {key: f"{x:.6g}" for key, x in numbers.items()}


def of(said: Mapping[str, str]) -> str:
    """The verdict of record of a claim: that of the largest run that decides.

    The papers' own size first, then the default run. Other draws, processors and arithmetics mark
    the row (`hangs`), and never outvote it.
    """
    if not said:
        return NOT_RUN
    decided = (said.get(name, "") for name in ("full", "default"))
    return next((verdict for verdict in decided if verdict in STRENGTH), "inconclusive")


def hangs(said: Mapping[str, str]) -> str:
    """What the verdict hangs on, and what the other runs say; "" if they agree with the record."""
    kept = of(said)
    others: dict[str, list[str]] = {}
    for name, verdict in said.items():
        if verdict != kept:
            others.setdefault(_on(name, said), []).append(f"{_named(name)} says {verdict}")
    return "; ".join(f"hangs on the {on}: {', '.join(each)}" for on, each in others.items())


def _on(name: str, said: Mapping[str, str]) -> str:
    """What a run differs in; of those that agree with the default one that is its size."""
    if name in (USUAL, "full") or said.get(USUAL) == said[name]:
        return "size"
    return "draw" if name == "draw 1" else "processor"


def _named(name: str) -> str:
    named = {"draw 1": "`--draw 1`", "full": "`--full`", "default": "the default run"}
    return named.get(name, name)


def left(claim: str, runs: Mapping[str, Run]) -> str:
    """Numbers of the default run whose 95 % interval a run of the same draws leaves, in words."""
    found = []
    for name in PROCESSORS:
        usual, other = (runs[x].numbers.get(claim, {}) if x in runs else {} for x in (USUAL, name))
        found += [
            f"{number}: {usual[number]:.3g} [{low:.3g}, {high:.3g}], {name} {other[number]:.3g}"
            for number, low, high in intervals(usual)
            if not low <= other.get(number, low) <= high
        ]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def intervals(numbers: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Every number with an interval, and its ends."""
    for number in numbers:
        low, high = (numbers.get(f"{number}, {end}") for end in ("low", "high"))
        if low is not None and high is not None:
            yield number, low, high


def compared(name: str, runs: Mapping[str, Run]) -> tuple[int, int, int, int]:
    """Of a run and the default one: numbers of both, those that are the same to 1e-5, those with an
    interval, and those of these that leave it.
    """
    usual, other = runs[USUAL].numbers, runs[name].numbers
    both = [(x[n], other[c][n]) for c, x in usual.items() for n in x if n in other.get(c, {})]
    same = sum(math.isclose(x, y, rel_tol=1e-5) or math.isnan(x + y) for x, y in both)
    ends = [
        low <= other[claim][number] <= high
        for claim, numbers in usual.items()
        for number, low, high in intervals(numbers)
        if number in other.get(claim, {})
    ]
    return len(both), same, len(ends), ends.count(False)


def bounds_of(claim: str, numbers: Mapping[str, float]) -> str:
    """Thresholds of which half or twice would give another verdict, in words."""
    try:
        found = bounds.perturbed(DECISIONS[claim].verdict, numbers)
    except LookupError:
        return ""
    said = [
        f"{name} ({', '.join(f'{FACTOR[factor]}: {verdict}' for factor, verdict in each.items())})"
        for name, each in found.items()
    ]
    return f"hangs on the bound: {'; '.join(said)}" if said else ""


def claims() -> dict[str, dict[str, str]]:
    """By claim its verdict of record, when it holds if only then, and what it hangs on.

    That is other runs, numbers that leave their interval on another processor, and bounds.
    """
    found, kept = verdicts(), runs()
    larger = {c: x for answer in full.read().values() for c, x in answer.numbers.items()}
    usual = kept[USUAL].numbers if USUAL in kept else {}
    rows = {}
    for name in LEDGER:
        verdict, of_full = of(found[name]), found[name].get("full") in STRENGTH
        numbers = (larger if of_full else usual).get(name, {})
        rows[name] = {
            "verdict": verdict,
            "default": found[name].get(USUAL, ""),
            "when": when(LEDGER[name], numbers) if verdict == STRENGTH[1] else "",
            "runs": hangs(found[name]),
            "numbers": left(name, kept),
            "bounds": bounds_of(name, numbers),
        }
    return rows
