"""Rows of measurements on disk, each with the settings that it was taken under."""

import datetime
import json
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

import mtlfunc as mf
from common.locks import digest, writer_lock
from common.machine import processor
from mtlfunc.core.files import write_whole

Row = dict[str, Any]
Settings = dict[str, Any]
VERSION = 4  # of the files; 3 had cases that are gone


def settings(**given: Any) -> Settings:
    """Everything besides the case that a time depends on. `**given`: the command's own settings, as
    they stand in JSON. Returns these, with the machine, the versions of what is timed and a digest
    of the sources.
    """
    here = Path(__file__).parent
    sources = sorted([*Path(mf.__file__).parent.rglob("*.py"), *here.glob("*.py")])
    found = {
        "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"torchjd": version("torchjd")} if find_spec("torchjd") else {}),
        "sources": digest(sources)[:12],
    }  # fmt: skip
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found | given


def described(chosen: Settings, rows: Iterable[Row]) -> str:
    """Settings, how busy the machine was and on which days, in one line."""
    rows = list(rows)
    said = [str(x) if k in ("processor", "GPU") else f"{k} {x}" for k, x in chosen.items()]
    load = sorted(row["load"] for row in rows if row.get("load") is not None)
    busy = f"load {median(load):.0f} (median), at most {load[-1]:.0f}" if load else "load unknown"
    return ", ".join([*said, busy, *sorted({row["day"] for row in rows if row.get("day")})])


def read(path: Path) -> list[Row]:
    """The rows of a file; none without one. Raises SystemExit where it is damaged, or was written
    by another version.
    """
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["version"] == VERSION:
            return kept["rows"]
        error = f"it is not of version {VERSION}"
    except (OSError, ValueError, KeyError, TypeError) as reason:
        error = repr(reason)
    raise SystemExit(f"{path} cannot be read ({error}): move it away or give another --out")


def groups(rows: Iterable[Row]) -> list[tuple[Settings, list[Row]]]:
    """Rows by the settings that they were taken under."""
    found: dict[str, tuple[Settings, list[Row]]] = {}
    for row in rows:
        key = json.dumps(row["settings"], sort_keys=True)
        found.setdefault(key, (row["settings"], []))[1].append(row)
    return list(found.values())


def only(path: Path) -> tuple[Settings, list[Row]]:
    """Settings and rows of a file. Raises SystemExit without rows, and for several settings."""
    found = groups(read(path))
    if len(found) != 1:
        said = f"{path} has rows under {len(found)} different settings, where one is wanted"
        raise SystemExit(f"{said}: run its benchmark again in an empty folder")
    return found[0]


ABOUT = ("load", "day", "settings")


def markdown(line: str, heads: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """A table under a `line`, if there is one."""
    heads = list(heads)
    lines = [f"{line}\n"] * bool(line) + [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(each)} |" for each in cells)])


def plain(rows: Iterable[Row], line: str) -> str:
    """One line per row, one column for each text and number, under the `line`."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return markdown(line, names, ([row.get(name, "") for name in names] for row in flat)) + "\n"


def _flat(row: Row) -> dict[str, str]:
    """Texts of a row's entries, and of what its dictionaries hold."""
    found: Row = {}
    for key, value in row.items():
        if key not in ABOUT:
            several = isinstance(value, dict)
            found |= {f"{key} {k}": x for k, x in value.items()} if several else {key: value}
    return {
        key: f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
        for key, value in found.items()
    }


def units(seconds: Mapping[str, float], names: Iterable[str], unit: str = "plain") -> list[str]:
    """For a line of a table: the times of these contenders in units of another one's."""
    return [f"{seconds[x] / seconds[unit]:.2f}" if x in seconds else "–" for x in names]


class Record:
    """A file of rows. A row is reused only where its cell and all of its settings are the same."""

    def __init__(
        self,
        path: Path,
        fields: tuple[str, ...],
        chosen: Settings,
        order: Callable[[Row], Any] = lambda row: 0,
    ) -> None:
        """Read what an earlier run left. `path`: of the JSON file; it need not exist. `fields`: the
        entries of a row that name its cell. `chosen`: this run's `settings`. `order`: key by which
        rows are sorted; in the order of measuring by default.
        """
        self.path, self.fields, self.settings, self.order = path, fields, chosen, order
        self.rows, self.own = read(path), list[Row]()  # of this run alone

    def cell(self, row: Row) -> tuple[Any, ...]:
        """What names the cell of a row."""
        return tuple(row[field] for field in self.fields)

    def missing(self, cells: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The cells that were not measured yet under this run's settings."""
        done = {self.cell(row) for row in self.rows if row["settings"] == self.settings}
        return [cell for cell in cells if cell not in done]

    def keep(self, *found: Row) -> None:
        """Put the rows of a cell or more in the place of older ones, and write the file whole."""
        anew = {self.cell(row) for row in found}
        day = datetime.date.today().isoformat()
        # processes that ran or waited for a processor in the last minute, on average
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        about = {"load": load, "day": day, "settings": self.settings}
        with writer_lock(self.path):  # another command may have its rows here
            mine = [row for row in self.own if self.cell(row) not in anew]
            self.own = [*mine, *(row | about for row in found)]
            anew |= {self.cell(row) for row in mine}
            rest = [row for row in read(self.path) if self.cell(row) not in anew]
            self.rows = sorted([*rest, *self.own], key=self.order)
            write_whole(self.path, json.dumps({"version": VERSION, "rows": self.rows}, indent=1))

    def write_tables(self, table: Callable[[list[Row], str], str]) -> str:
        """Markdown, also next to the file: a `table` and its line for each settings."""
        page = "\n".join(table(rows, described(chosen, rows)) for chosen, rows in groups(self.rows))
        write_whole(self.path.with_suffix(".md"), page)
        return page

    def here(self) -> list[Row]:
        """The rows under this run's settings."""
        return [row for row in self.rows if row["settings"] == self.settings]
