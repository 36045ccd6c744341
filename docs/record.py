"""The verdict of record of every claim: what each kept run says, and what they say together.

`docs/record/` has a file per run: the default one, one with other random numbers (`--draw 1`), one
of another processor if there is one, one whose arithmetic rounds otherwise than this processor's,
and one of a device if there is one. Those at the papers' sizes (`--full`) are in
`experiments/benchmarks`. Each keeps the numbers; a verdict is what today's decision says of them.
"""

import datetime
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import full
from mtlfunc.core.files import write_whole
from paper_repro.claims import DECISIONS, LEDGER, ROWS
from paper_repro.report.results import NOT_RUN

FOLDER = Path(__file__).parent / "record"
NAMES = ("default", "draw 1", "another processor", "other arithmetic", "device", "full")
STRENGTH = ("holds", "holds only when", "does not hold")


class Run(NamedTuple):
    """The numbers that a run left, by claim, and when and where."""

    machine: str
    day: str
    numbers: dict[str, dict[str, float]]
    where: dict[str, str]  # each claim's decision in words

    def verdicts(self) -> dict[str, str]:
        """What today's decisions say; a claim whose numbers are not enough has none."""
        found = {}
        for name, numbers in self.numbers.items():
            with suppress(LookupError):
                found[name] = DECISIONS[name].verdict(numbers)
        return found


def path(name: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{name.replace(' ', '-')}.json"


def read(name: str) -> Run | None:
    """A run that was kept."""
    if not path(name).exists():
        return None
    return Run(**json.loads(path(name).read_text(encoding="utf-8")))


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
        {claim: claims[claim]["where"] for claim in numbers},
    )
    before = read(name)
    FOLDER.mkdir(exist_ok=True)
    if name == "default" and before is not None and before.machine != run.machine:
        path("default").replace(path("another processor"))
    text = json.dumps(run._asdict(), indent=1, ensure_ascii=False)
    write_whole(path(name), f"{text}\n")


def rounded(name: str, claim: dict) -> dict[str, float]:
    """A claim's numbers with six digits each, unless its verdict hangs on more."""
    measured, decision = claim["measured"], DECISIONS[name]
    few = {key: float(x) for key, x in short(measured).items()}
    return few if decision.verdict(few) == decision.verdict(measured) else measured


def verdicts() -> dict[str, dict[str, str]]:
    """What every kept run says of every claim: `[claim][run]`."""
    found: dict[str, dict[str, str]] = {row.id: {} for row in ROWS}
    for name in NAMES[:-1]:
        run = read(name)
        for claim, verdict in run.verdicts().items() if run else ():
            found[claim][name] = verdict
    default = read("default")
    usual = default.numbers if default else {}
    for answer in full.read().values():
        for claim, verdict in answer.verdicts.items():
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
    """The verdict of record of a claim.

    Runs of one size that differ give the weakest verdict, and "inconclusive" if one of them is. Of
    the default size and the papers' own, the weakest; what is inconclusive gives way to the larger
    size, but a run that decides never counts for less because another one cannot.
    """
    larger = said.get("full", "")
    usual = [verdict for name, verdict in said.items() if name != "full"]
    if larger == "inconclusive" or (not larger and "inconclusive" in usual):
        return "inconclusive"
    decided = [verdict for verdict in [*usual, larger] if verdict in STRENGTH]
    return max(decided, key=STRENGTH.index) if decided else next(iter(usual), NOT_RUN)


def hangs(said: Mapping[str, str]) -> str:
    """What each run says, in words, if they differ; "" if they agree."""
    if len(set(said.values())) < 2:
        return ""
    return "; ".join(f"{_named(name)}: {verdict}" for name, verdict in said.items())


def _named(name: str) -> str:
    return {"draw 1": "`--draw 1`", "full": "`--full`"}.get(name, name)


def claims() -> dict[str, dict[str, str]]:
    """By claim its verdict of record and, if its runs differ, what each says."""
    found = verdicts()
    return {name: {"verdict": of(found[name]), "runs": hangs(found[name])} for name in LEDGER}
