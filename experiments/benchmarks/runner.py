"""How a benchmark runs: what the record lacks is measured and kept, and its table printed."""

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.arguments import folder, positive
from common.progress import counted
from experiments.benchmarks.record import Record, Row, plain, settings

OUT = Path(__file__).parent / "out"
Cell = tuple[Any, ...]


class Axis(NamedTuple):
    """An entry of a cell. Its option takes the values' type, of names these names alone."""

    option: str  # "" for values that no option chooses
    values: Sequence[Any]  # that run by default
    type: Callable[[str], Any] = str


def command(
    name: str, doc: str | None, axes: Mapping[str, Axis], measure: Callable[..., Iterable[Row]],
    table: Callable[[list[Row], str], str] = plain, *, seconds: tuple[float, str] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None, about: Sequence[str] = (),
    cells: Callable[[argparse.Namespace], Iterable[Cell]] | None = None,
) -> Callable[..., list[Row]]:  # fmt: skip
    """The `main` of a benchmark: on one thread, and Ctrl-C loses the cell at work alone.

    It returns the rows under the settings of its command line: `--seconds`, `--out`,
    `--again` and those of the axes and of `more`.

    Args:
        name: of the files.
        doc: of the benchmark, whose first line describes it.
        axes: by the entry of a row, in the order that rows have.
        measure: from the command line, which has the `record`, and a cell's entries to its rows,
            to which these are added.
        table: of rows under one line of settings, in Markdown; next to the record.
        seconds: the default time, and what it is for; None has no `--seconds`.
        more: further options, by name, with the arguments of argparse.
        about: options that a time depends on.
        cells: other ones than all combinations of what the axes have.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = parser.add_argument
    if seconds is not None:
        usual, what = seconds
        add("--seconds", type=positive, default=usual, help=f"time {what} (default: {usual})")
    add("--out", type=folder, default=str(OUT), help="folder of the files")
    add("--again", action="store_true", help="measure anew what the record already has")
    for axis in axes.values():
        if axis.option:
            known: dict[str, Any] = {"choices": axis.values} if axis.type is str else {}
            default = list(axis.values)
            add(f"--{axis.option}", nargs="+", type=axis.type, default=default, **known)
    for option, told in (more or {}).items():
        add(f"--{option.replace('_', '-')}", **told)

    def order(row: Row) -> list[Any]:
        return [
            (axis.values.index(row[field]) if axis.values else 0)
            if axis.type is str
            else row[field]
            for field, axis in axes.items()
        ]

    def main(arguments: list[str] | None = None) -> list[Row]:
        given = parser.parse_args(arguments)
        torch.set_num_threads(1)
        timing = {x: vars(given)[x] for x in ("seconds", *about) if x in given}
        path = given.out / f"{name}.json"
        given.record = record = Record(path, tuple(axes), settings(**timing), order)
        chosen = [vars(given).get(axis.option, axis.values) for axis in axes.values()]
        wanted = list(cells(given) if cells else itertools.product(*chosen))
        if not wanted:
            parser.error("there is nothing to measure under these options")
        try:
            left = wanted if given.again else record.missing(wanted)
            for cell in counted(left, name, "cells"):
                entries = dict(zip(axes, cell, strict=True))
                record.keep(*(entries | row for row in measure(given, *cell)))
        except KeyboardInterrupt:
            print(f"stopped; {path} has {len(record.rows)} rows, and the next run goes on")
        print(record.write_tables(table))
        return record.here()

    return main
