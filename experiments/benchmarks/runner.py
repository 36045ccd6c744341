"""How a benchmark runs: what the record lacks is measured and kept, and its table printed."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.arguments import folder, positive
from common.progress import counted
from experiments.benchmarks.measuring import CLOCK_HELP, CLOCKS
from experiments.benchmarks.record import Record, Row, plain, settings

OUT = Path(__file__).parent / "out"


def parser(
    doc: str | None, seconds: float | None = None, clock: str = "cpu", what: str = "for every cell"
) -> argparse.ArgumentParser:
    """`--seconds --clock --out --again`; the first two where a default is given.

    Args:
        doc: of the benchmark, whose first line describes it.
        seconds: the default time.
        clock: the default one of `CLOCKS`.
        what: the time is for.
    """
    found = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if seconds is not None:
        found.add_argument("--seconds", type=positive, default=seconds, help=what)
        found.add_argument("--clock", choices=list(CLOCKS), default=clock, help=CLOCK_HELP)
    found.add_argument("--out", type=folder, default=str(OUT), help="folder of the files")
    again = "measure anew what the record already has"
    found.add_argument("--again", action="store_true", help=again)
    return found


def record_of(
    given: argparse.Namespace,
    name: str,
    fields: tuple[str, ...],
    order: Callable[[Row], Any] = lambda row: 0,
    **about: Any,
) -> Record:
    """The file of a benchmark under this command's settings; `about` are further ones."""
    timing = {key: vars(given)[key] for key in ("seconds", "clock") if key in given}
    return Record(given.out / f"{name}.json", fields, settings(**timing, **about), order)


def run(
    given: argparse.Namespace,
    record: Record,
    cells: Iterable[tuple[Any, ...]],
    measure: Callable[..., Iterable[Row]],
    table: Callable[[list[Row], str], str] = plain,
    figure: Callable[[list[Row], Path], None] | None = None,
) -> list[Row]:
    """Measure what is missing; Ctrl-C loses the cell at work alone.

    Args:
        given: the command line.
        record: where rows are kept.
        cells: all that the command line asks for.
        measure: from a cell's entries to its rows.
        table: of rows under one line of settings, in Markdown; next to the record.
        figure: draws rows into a file; next to the record.

    Returns:
        The rows under these settings.
    """
    left = list(cells) if given.again else record.missing(cells)
    try:
        for cell in counted(left, record.path.stem, "cells"):
            record.keep(*measure(*cell))
    except KeyboardInterrupt:
        print(f"stopped; {record.path} has {len(record.rows)} rows, and the next run goes on")
    page = record.path.with_suffix(".md")
    record.write_tables(page, table)
    rows = record.here()
    if rows and figure is not None:
        figure(rows, record.path.with_suffix(".png"))
    print(page.read_text(encoding="utf-8"))
    return rows
