"""The output folder: PNG figures, claims.json with a row for every claim, runs.json.

Each file is written whole and then put in place. What another version left, or what was damaged,
is refused before anything runs.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from mtlfunc.core.files import write_whole

from ..claims import LEDGER, PAPERS, ROWS
from .findings import Claim, Figure, Finding, Verdict
from .ledger import KINDS, Row

NOT_RUN = "not run"
VERDICTS: tuple[str, ...] = (*get_args(Verdict), NOT_RUN)
LOCK = ".lock"


class Refused(Exception):
    """The output folder cannot be used; the text is the sentence that says why."""


class Results:
    """Keeps a folder in step with what was found; what is not run again stays.

    Args:
        folder: where to; it exists and can be written (`reserved`).
        configuration: of this run, kept with every claim that it decides.
        modules: names of the reproductions that there are.

    Raises:
        Refused: where a file of results is damaged or was written by another version.
    """

    def __init__(self, folder: Path, configuration: dict[str, str], modules: Iterable[str]) -> None:
        self.folder, self.configuration, modules = folder, configuration, list(modules)
        rows = read_claims(folder / "claims.json", modules)
        self.found = {row["id"]: row for row in rows if row["configuration"]}
        # of complete ones: their key and what they left
        self.runs = read_runs(folder / "runs.json", modules)
        for module in modules:
            for path in folder.glob(f"{module}-*.png"):
                check_figure(path)

    def kept(self, module: str, key: str) -> bool:
        """Whether what a complete run with this key left is all still here."""
        run = self.runs.get(module)
        if run is None or run["key"] != key:
            return False
        return all((self.folder / name).is_file() for name in run["figures"]) and all(
            self.found.get(identifier, {}).get("module") == module for identifier in run["claims"]
        )

    def start(self, module: str) -> None:
        """From here to `finish` the folder may hold a mixture of two runs of this module."""
        if self.runs.pop(module, None) is not None:
            self._write("runs.json", self.runs)

    def add(self, module: str, finding: Finding) -> None:
        """Put a figure or a claim in its file."""
        if isinstance(finding, Figure):
            # The caption rides in the PNG, so that a later run of another module can rebuild the
            # page.
            text = {"Title": finding.name, "Description": finding.caption}
            write_whole(
                self.folder / f"{module}-{finding.name}.png",
                lambda file: finding.canvas.savefig(file, format="png", metadata=text),
            )
            return
        if finding.id not in LEDGER:
            raise ValueError(
                f"{module}: there is no claim {finding.id}; give it a row in the paper's "
                "claims.py, or correct the id"
            )
        self.found[finding.id] = {
            **_blank(LEDGER[finding.id]),
            "claim": finding.claim,
            "verdict": finding.verdict,
            "measured": finding.measured,
            "where": finding.where,
            "module": module,
            "configuration": self.configuration,
        }
        self._write("claims.json", self.claims())

    def finish(self, module: str, key: str, findings: Iterable[Finding]) -> None:
        """Drop what an earlier run of this module left and this complete one did not find."""
        findings = list(findings)
        ids = {finding.id for finding in findings if isinstance(finding, Claim)}
        names = {
            f"{module}-{finding.name}.png" for finding in findings if isinstance(finding, Figure)
        }
        self.found = {
            identifier: row
            for identifier, row in self.found.items()
            if row["module"] != module or identifier in ids
        }
        for path in self.folder.glob(f"{module}-*.png"):
            if path.name not in names:
                path.unlink()
        self.runs[module] = {"key": key, "claims": sorted(ids), "figures": sorted(names)}
        self._write("claims.json", self.claims())
        self._write("runs.json", self.runs)

    def claims(self) -> list[dict[str, Any]]:
        """A row for every claim of the ledger: as found, or why it was not."""
        return [self.found.get(row.id) or {**_blank(row), **self._undecided(row)} for row in ROWS]

    def _undecided(self, row: Row) -> dict[str, str]:
        if row.kind in ("data/RL", "not here"):
            return {
                "verdict": "not testable here",
                "where": KINDS[row.kind] + (f": {row.needs}" if row.needs else ""),
            }
        if not row.module:
            return {"verdict": NOT_RUN, "where": "no reproduction decides it yet"}
        left_out = row.module in self.runs and row.needs
        return {
            "verdict": NOT_RUN,
            "where": row.needs if left_out else f"python -m paper_repro --only {row.module}",
        }

    def _write(self, name: str, content: Any) -> None:
        write_whole(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False))


def _blank(row: Row) -> dict[str, Any]:
    """A row of claims.json without a finding; only found ones have a configuration."""
    return {
        "id": row.id,
        "paper": PAPERS[row.paper],
        "kind": row.kind,
        "claim": row.statement,
        "verdict": NOT_RUN,
        "measured": {},
        "where": "",
        "module": row.module,
        "configuration": {},
    }


# ---- reading what is there ----


def read_claims(path: Path, modules: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a claims.json, none where there is no such file.

    Raises:
        Refused: where it is damaged, or of another version: fields, ids, verdicts or modules.
    """
    rows = _read(path, list)
    fields = set(_blank(ROWS[0]))
    for row in rows:
        if not isinstance(row, dict) or set(row) != fields:
            raise _another(path, "its rows have other fields")
        if row["id"] not in LEDGER or row["verdict"] not in VERDICTS:
            raise _another(path, f"{row['id']}, {row['verdict']!r}: no such claim or verdict")
        if not isinstance(row["measured"], dict) or not isinstance(row["configuration"], dict):
            raise _another(path, f"{row['id']}: its numbers or its configuration are no tables")
        if row["configuration"] and row["module"] not in modules:
            raise _another(path, f"there is no reproduction {row['module']}")
    return rows


def read_runs(path: Path, modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What complete runs left, by module; empty where there is no such file.

    Raises:
        Refused: where it is damaged, or its fields or modules are not this version's.
    """
    runs = _read(path, dict)
    for module, run in runs.items():
        if module not in modules:
            raise _another(path, f"there is no reproduction {module}")
        if not isinstance(run, dict) or set(run) != {"key", "claims", "figures"}:
            raise _another(path, f"{module}: other fields")
        if not all(isinstance(run[name], list) for name in ("claims", "figures")):
            raise _another(path, f"{module}: its claims or its figures are no list")
    return runs


def check_figure(path: Path) -> str:
    """The caption of a figure. Raises Refused where the file is damaged or has none."""
    try:
        with Image.open(path) as image:
            caption = str(image.info["Description"])
            image.verify()
            return caption
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise Refused(f"{path} is no whole figure of this package; {CURE}") from error


CURE = "delete it, or name another folder with --out"


def _read(path: Path, kind: type) -> Any:
    if not path.exists():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON; {CURE}") from error
    if not isinstance(content, kind):
        raise _another(path, f"no {kind.__name__}")
    return content


def _another(path: Path, why: str) -> Refused:
    return Refused(f"{path} was written by another version ({why}); {CURE}")


# ---- one run a folder ----


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this run alone until the block ends.

    The lock is the kernel's, on an open file: it goes with the process, however that ends.

    Raises:
        Refused: where the folder cannot be made or written, or another run holds it.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(f"--out: {folder} is no folder that can be written ({reason})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have ended, and taken its file away, since this one opened it.
            current = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            current = False
        if not current:
            file.seek(0)
            raise Refused(
                f"{folder} is in use by another run (process {file.read().strip() or 'unknown'}); "
                "wait for it, or name another folder with --out"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
