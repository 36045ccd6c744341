"""`python -m experiments.arena`: every rule, and yours, on small problems with known answers."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import command
from common.arguments import among, at_least, device, positive
from common.pool import perform_all
from common.progress import Progress
from mtlfunc.studies.arena import QUICK, SHORT, STATIC, Cell, Result, Settings, standard

from .cells import SPECIAL, Entrant, Task, load, perform, problem_of, source_of
from .contestants import CONTESTANTS
from .report import write
from .store import Store

HERE = Path(__file__).parent


def _parser() -> argparse.ArgumentParser:
    every, usual = [*standard(), *SPECIAL], Settings()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.arena",
        description="Every rule, and yours, on small problems with known answers: quadratics, the "
        "papers' landscapes, test problems of multi-objective optimisation, small networks. Each "
        "has the learning rate, from one grid a problem, that is best on other seeds; so does a "
        "static search over constant weights, the baseline to beat. Writes results.json and "
        "table.md, and prints the table.",
        epilog="A rule that raises, gives NaN or diverges is shown as that and ranks last there. "
        "Ctrl-C and SIGTERM (exit status 130, 143) keep all that is finished, report "
        "(not with --fresh) on what every rule has met; the same command without --fresh goes on.",
    )
    add = parser.add_argument
    said = "a rule of yours, one of those that mf.arena takes, no dict; repeatable"
    add("--rule", action="append", default=[], metavar="MODULE:NAME", help=said)
    rules = [*CONTESTANTS, STATIC]
    said = f"whom to meet, of {', '.join(rules)} (default: all)"
    add("--against", type=among(rules), metavar="A,B,…", help=said)
    said = f"these problems alone, of {', '.join(every)}"
    add("--only", type=among(every), action="extend", metavar="A,B,…", help=said)
    said = f"with {SHORT.seeds} seeds and {SHORT.budget:g} of the steps"
    add("--quick", action="store_true", help=f"{', '.join(QUICK)} alone, {said}")
    said = f"seeds that results are taken on (default: {usual.seeds})"
    add("--seeds", type=at_least(2), metavar="N", help=said)
    said = f"other seeds, that choose rates and weights (default: {usual.tuning})"
    add("--tuning", type=at_least(1), metavar="N", help=said)
    add("--budget", type=positive, metavar="X", help="times the usual steps (default: 1)")
    command.add_workers(parser, usual=None)
    add("--device", type=device, default="cpu", help="a torch device (default: cpu)")
    add("--fresh", action="store_true", help="drop what is kept, and run it again")
    said = "where results go (default: experiments/arena/out; its folders quick for --quick, and "
    said += "in them cuda for a device)"
    add("--out", type=Path, metavar="DIR", help=said)
    return parser


def _fill(
    found: dict[str, dict[str, Cell]], todo: Sequence[Task], store: Store, workers: int | str
) -> int:
    """Run and keep what is missing; 0, or the exit status of an interruption."""
    with Progress(len(todo), "arena", "cells") as bar:

        def keep(task: Task, cell: Cell) -> None:
            found[task.problem][task.entrant.name] = cell
            store.write(task.problem, task.entrant.name, task.entrant.source, cell)
            bar.update(note=f"{task.entrant.name} on {task.problem}")

        try:
            perform_all(perform, todo, workers, keep)
        except KeyboardInterrupt as stop:
            return 143 if isinstance(stop, command.Terminated) else 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is that of `command.finish`."""
    parser = _parser()
    asked = parser.parse_args(argv)
    settings = SHORT if asked.quick else Settings()
    given = {name: getattr(asked, name) for name in ("seeds", "tuning", "budget")}
    settings = settings._replace(**{k: x for k, x in given.items() if x is not None})
    names = list(dict.fromkeys(asked.only or (QUICK if asked.quick else [*standard(), *SPECIAL])))
    entrants = [Entrant(name, "", "") for name in asked.against or [*CONTESTANTS, STATIC]]
    for spec in asked.rule:
        try:
            label, _ = load(spec)
        except ValueError as error:
            parser.error(f"argument --rule: {error}")
        if label in [entrant.name for entrant in entrants]:
            parser.error(f"argument --rule: {spec!r}: there is a rule {label!r} already")
        entrants.append(Entrant(label, spec, source_of(spec)))
    there = "" if asked.device.type == "cpu" else asked.device.type
    asked.workers = asked.workers or (1 if there else command.two())
    default = HERE / "out" / ("quick" if asked.quick else "") / there
    out = command.usable(asked.out or default, parser)
    again = "the same command" + " without --fresh" * asked.fresh
    return command.finish(lambda: _run(asked, settings, names, entrants, out), out, again)


def _run(
    asked: argparse.Namespace,
    settings: Settings,
    names: list[str],
    entrants: list[Entrant],
    out: Path,
) -> int:
    """Fill the table, and report on it; the exit status."""
    start = time.perf_counter()
    there = "" if asked.device.type == "cpu" else asked.device.type
    store = Store(out / "cells" / there, settings)
    found: dict[str, dict[str, Cell]] = {name: {} for name in names}
    todo = []
    for name in names:
        for entrant in entrants:
            if asked.fresh:
                store.drop(name, entrant.name, entrant.source)
            if (kept := store.read(name, entrant.name, entrant.source)) is not None:
                found[name][entrant.name] = kept
            else:
                todo.append(Task(name, entrant, settings, asked.device))
    interrupted = _fill(found, todo, store, asked.workers)
    complete = {
        name: {entrant.name: found[name][entrant.name] for entrant in entrants}
        for name in names
        if len(found[name]) == len(entrants)
    }
    if complete and not (interrupted and asked.fresh):  # the table of an earlier run stays
        result = Result({name: problem_of(name) for name in complete}, complete, settings)
        described: dict[str, Any] = {
            "seeds": settings.seeds, "tuning seeds": settings.tuning, "budget": settings.budget,
            "optimizer": "Adam, learning rate falling linearly to 0", "torch": torch.__version__,
            "processes side by side": asked.workers,
        }  # fmt: skip
        if asked.device.type != "cpu":
            described["device"] = str(asked.device)
        paths = ", ".join(map(str, write(result, described, out)))
        print(f"\n{result}\n\nwritten: {paths}")
    if interrupted:
        done = ", ".join(complete) or "none"
        said = f"\ninterrupted; problems that every rule has met: {done}. The same command"
        said += " without --fresh" * asked.fresh
        print(f"{said} goes on from there", file=sys.stderr)
        return interrupted
    print(
        f"{len(names)} problems, {len(entrants)} contestants, {len(todo)} of "
        f"{len(names) * len(entrants)} cells new, {time.perf_counter() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
