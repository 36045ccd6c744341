"""The output folder: figures as PNG and SVG, claims.json with a row for every claim, runs.json.

Each file is written whole and then put in place. What is damaged, or of another version, is set
aside before anything runs, with a notice, and what it held is computed again.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from PIL import Image

from common.locks import InUse
from common.locks import hold_lock as locked
from mtlfunc.core.files import write_whole

from ..claims import LEDGER, PAPERS, ROWS
from . import standins
from .decisions import KINDS, Row
from .findings import Claim, Verdict

NOT_RUN = "not run"
VERDICTS: tuple[str, ...] = (*get_args(Verdict), NOT_RUN)
LOCK = ".lock"
PARTS = ".parts"
"""The folder of long computations, until a run has come to its end."""
PAGE = "report.html"
FOUND = ("verdict", "measured", "where", "module", "configuration")
"""What a row of claims.json has beside the ledger's words."""
ASIDE = ".unreadable"
"""What the name of a file that was set aside ends in."""


class Refused(Exception):
    """The output folder cannot be used; the text is the sentence that says why."""


class Unreadable(Exception):
    """A file of results is damaged, or of another version; the text says why."""


class Drawn(NamedTuple):
    """What a figure's files hold: pixels, and lines that print at any size."""

    name: str
    files: dict[str, bytes]  # by ending; the PNG's caption serves the page of a later run


Took = tuple[float, dict[str, float]]
"""Processor seconds of a question; and of each long computation that it needs, of "" all else."""


class Results:
    """Keeps a folder (`reserved`) in step with what was found; what is not run again stays. The
    configuration is kept with every claim that this run decides; `.notices` says which files could
    not be used and were set aside.
    """

    def __init__(self, folder: Path, configuration: dict[str, str], modules: Iterable[str]) -> None:
        self.folder, self.configuration, modules = folder, configuration, list(modules)
        self.notices: list[str] = []
        rows = self._read(read_claims, folder / "claims.json", modules) or []
        self.found = {
            row["id"]: {name: row[name] for name in FOUND} for row in rows if row["configuration"]
        }
        # of complete ones: their key and what they left
        self.runs = self._read(read_runs, folder / "runs.json", modules) or {}
        for path in [path for module in modules for path in folder.glob(f"{module}-*.[ps][nv]g")]:
            self._read(check_figure, path)

    def _read(self, read: Callable[..., Any], path: Path, *arguments: Any) -> Any:
        """What is in a file; None where it cannot be used, and then it is set aside."""
        try:
            return read(path, *arguments)
        except Unreadable as error:
            aside = path.with_name(path.name + ASIDE)
            path.replace(aside)
            self.notices.append(
                f"{path.name} {error}; set aside as {aside.name}, and what it held is computed "
                "again when its question runs"
            )
            return None

    def kept(self, module: str, key: str) -> bool:
        """Whether what a complete run with this key left is all still here."""
        run = self.runs.get(module)
        if run is None or run["key"] != key:
            return False
        there = {path.name for path in self.folder.iterdir()}
        return all(
            name in there and Path(name).with_suffix(".svg").name in there
            for name in run["figures"]
        ) and all(
            self.found.get(identifier, {}).get("module") == module for identifier in run["claims"]
        )

    def start(self, module: str) -> None:
        """From here to `finish` the folder may hold a mixture of two runs of this module."""
        if self.runs.pop(module, None) is not None:
            self._write("runs.json", self.runs)

    def add(self, module: str, finding: Claim | Drawn) -> None:
        """Put it in its file, or in both."""
        if isinstance(finding, Drawn):
            for form, content in finding.files.items():
                write_whole(self.folder / f"{module}-{finding.name}.{form}", content)
            return
        values = finding.verdict, finding.measured, finding.where, module, self.configuration
        self.found[finding.id] = dict(zip(FOUND, values, strict=True))
        self._write("claims.json", self.claims())

    def finish(self, module: str, key: str, findings: Iterable[Claim | Drawn], took: Took) -> None:
        """Drop what an earlier run of this module left and this complete one did not find."""
        findings, (seconds, parts) = list(findings), took
        ids = {x.id for x in findings if isinstance(x, Claim)}
        names = [f"{module}-{x.name}.png" for x in findings if isinstance(x, Drawn)]
        for name in [x for x, row in self.found.items() if row["module"] == module]:
            if name not in ids:
                del self.found[name]
        for path in self.folder.glob(f"{module}-*.[ps][nv]g"):
            if path.with_suffix(".png").name not in names:
                path.unlink()
        self.runs[module] = {
            "key": key,
            "claims": sorted(ids),
            "figures": names,
            "seconds": round(seconds, 1),
            "parts": {name: round(took, 1) for name, took in parts.items()},
        }
        self._write("claims.json", self.claims())
        self._write("runs.json", self.runs)

    def figures(self, module: str) -> list[Path]:
        """A module's PNGs, in the order that it drew them; of a run in progress by name."""
        order = self.runs.get(module, {}).get("figures", [])
        found = sorted(self.folder.glob(f"{module}-*.png"))
        return sorted(found, key=lambda x: order.index(x.name) if x.name in order else len(order))

    def claims(self) -> list[dict[str, Any]]:
        """A row for every claim of the ledger, in its words of today: as found, or why it was
        not; only found ones have a configuration.
        """
        return [
            {"id": row.id, "paper": PAPERS[row.paper], "kind": row.kind, "claim": row.statement}
            | (self.found.get(row.id) or self._undecided(row))
            for row in ROWS
        ]

    def _undecided(self, row: Row) -> dict[str, Any]:
        if row.module:
            verdict = NOT_RUN
            where = f"not run yet; `python -m paper_repro --only {row.module}` decides it"
        elif standins.of(row):
            verdict, where = standins.verdict(row), standins.sentence(row)
        else:
            verdict = "not testable here"
            where = KINDS[row.kind] + (f": {row.needs}" if row.needs else "")
        return dict(zip(FOUND, (verdict, {}, where, row.module, {}), strict=True))

    def _write(self, name: str, content: Any) -> None:
        write_whole(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False))


# ---- reading what is there ----


ROW: Any = msgspec.defstruct("Row", [
    *dict.fromkeys(("id", "paper", "kind", "claim", "where", "module"), str).items(),
    ("verdict", Literal[Verdict, "not run"]),
    *{"measured": dict[str, float], "configuration": dict[str, str]}.items(),
])  # fmt: skip
RUN: Any = msgspec.defstruct("Run", [
    ("key", str), ("claims", list[str]), ("figures", list[str]), ("seconds", float),
    ("parts", dict[str, float], {}),
])  # fmt: skip
CONFIGURATION = {"seeds", "sizes", "device"}
"""What a finding's configuration has in any case: the command that finds it again needs them."""


def read_claims(path: Path, modules: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a claims.json, none without such a file. Raises Unreadable where it is damaged,
    or of another version: fields, their types, ids, verdicts or modules.
    """
    rows = _read(path, list[ROW])
    for row in rows:
        whole = row["configuration"].keys() >= CONFIGURATION and row["module"] in modules
        if row["id"] not in LEDGER or (row["configuration"] and not whole):
            raise Unreadable(f"was written by another version ({row['id']})")
    return rows


def read_runs(path: Path, modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What complete runs left, by module; empty without such a file. Raises Unreadable likewise."""
    runs = _read(path, dict[str, RUN])
    for module in runs.keys() - {*modules}:
        raise Unreadable(f"was written by another version (there is no {module})")
    return runs


def check_figure(path: Path) -> str:
    """The caption of a PNG; "" of an SVG. Raises Unreadable where it is damaged, or has none."""
    try:
        if path.suffix == ".svg":
            path.read_bytes().rindex(b"</svg>", -9)
            return ""
        with Image.open(path) as image:
            caption = str(image.info["Description"])
            image.verify()
            return caption
    except Exception as error:  # whatever Pillow says of a damaged file, or of a vast one
        raise Unreadable("is no whole figure of this package") from error


def _read(path: Path, kind: Any) -> Any:
    if not path.exists():
        return get_origin(kind)()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # no half of a character: it is rewritten
        msgspec.convert(content, kind)
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"cannot be used ({error})") from error


# ---- one run a folder ----


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this run alone until the block ends.

    What writes that were killed halfway left is taken away.

    Raises:
        Refused: where the folder cannot be made or written, or holds files but none of a run, or
            another run holds it.
    """
    lock = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _own(folder):
            raise Refused(
                f"--out: {folder} holds files, and none of an earlier run; name a new folder, or "
                "an empty one"
            )
        lock.open("a").close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(f"--out: {folder} is no folder that can be written ({reason})") from error
    try:
        with locked(lock):
            _tidy(folder)
            yield
            _tidy(folder)
    except InUse as error:
        raise Refused(str(error)) from error


def _own(folder: Path) -> bool:
    """Whether a run may write there: it holds no visible file, or what a run left, whole or not."""
    if not any(not path.name.startswith(".") for path in folder.iterdir()):
        return True
    marks = {"claims.json": '"verdict"', "runs.json": '"claims"', PAGE: "<title>The papers re-run"}
    for name, mark in marks.items():
        with suppress(OSError):
            if mark in (folder / name).read_text(encoding="utf-8", errors="replace"):
                return True
    return (folder / LOCK).exists() or (folder / PARTS).exists()  # one that was killed early


def _tidy(folder: Path) -> None:
    for path in (*folder.glob(".*"), *folder.glob(f"{PARTS}/.*")):
        if re.search(r"\.\d+-[0-9a-f]{8}$", path.name):
            path.unlink(missing_ok=True)
