"""Files that `python -m paper_repro` cannot use, and what it refuses before anything runs."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paper_repro.__main__ import main, reproduce
from paper_repro.report.findings import Settings
from paper_repro.report.results import Refused, Results, reserved
from tests.support import ROOT
from tests.support.reproductions import claim, claims_in, count_runs, fake, figure

TINY = Settings(seeds=2, shrink=0.0001)


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the sources of fakes."""
    return tmp_path_factory.mktemp("sources")


# ---- files that cannot be used, and what is refused before anything runs ----


def never(made: Path) -> dict[str, ModuleType]:
    """A module that must not run."""
    module = fake(made, claim("PC-01"))
    module.run = lambda _: pytest.fail("ran")  # type: ignore[attr-defined]
    return {"a": module}


def without_page(folder: Path) -> dict[str, bytes]:
    """All files but the page, without the time that a question took."""
    return {
        path.name: re.sub(rb'"seconds": [\d.]+', b"", path.read_bytes())
        for path in folder.iterdir()
        if path.suffix not in (".html", ".unreadable")
    }


def vast() -> bytes:
    """A PNG whose header says 60,000 by 60,000 pixels."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0),
        b"tEXt": b"Description\0a caption",
        b"IDAT": zlib.compress(b""),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["claims.json", "runs.json", "a-one.png"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\x89PNG\r\n\x1a\n",
        b"[3]",
        b'{"a": 3}',
        -40,
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep"),
        pytest.param(vast(), id="vast"),
    ],
)
def test_damaged_files_are_set_aside_and_computed_again(
    name: str,
    content: bytes | int,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = fake(made, claim("PC-01"), figure("one"))
    runs = count_runs(module)
    assert reproduce({"a": module}, ["a"], TINY, tmp_path) == 0
    before = without_page(tmp_path)
    damaged = before[name][:content] if isinstance(content, int) else content
    (tmp_path / name).write_bytes(damaged)
    capsys.readouterr()
    assert reproduce({"a": module}, ["a"], TINY, tmp_path) == 0
    said = capsys.readouterr().out
    assert f"{name}.unreadable" in said
    assert (tmp_path / f"{name}.unreadable").read_bytes() == damaged
    assert len(runs) == 2
    after = without_page(tmp_path)
    assert after.keys() == before.keys()
    assert {x: after[x] for x in after if x != "a-one.png"} == {
        x: before[x] for x in before if x != "a-one.png"
    }
    reproduce({"a": module}, ["a"], TINY, tmp_path)
    assert len(runs) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"module": "pcgrad_theory"},
        {"id": "PC-99"},
        {"verdict": "true"},
        {"measured": [1]},
        {"measured": {"value": "0.5"}},
        {"measured": {"value": 10**400}},
        {"where": None},
        {"claim": " "},
        {"id": ["PC-01"]},
        {"configuration": {"seeds": 3}},
        {"configuration": {"seeds": "3", "device": "cpu"}},
        {"p-value": 0.1},
    ],
)
def test_claims_of_another_version_are_set_aside(
    change: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    reproduce({"a": fake(made, claim("PC-01"))}, ["a"], TINY, tmp_path)
    claims = claims_in(tmp_path)
    claims[0].update(change)
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    results = Results(tmp_path, {}, ["a"])
    assert len(results.notices) == 1
    assert json.loads((tmp_path / "claims.json.unreadable").read_text()) == claims
    assert not results.kept("a", results.runs["a"]["key"])


RUN = {"key": "", "claims": [], "figures": [], "seconds": 1.0}


@pytest.mark.parametrize(
    "runs",
    [
        {"gradnorm": RUN},
        {"a": {"key": "", "claims": []}},
        {"a": RUN | {"claims": 3}},
        {"a": RUN | {"figures": [1]}},
        {"a": RUN | {"claims": [["a"]]}},
        {"a": RUN | {"seconds": "1"}},
    ],
)
def test_runs_of_another_version_are_set_aside(runs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert len(Results(tmp_path, {}, ["a"]).notices) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing"])
def test_an_out_that_is_no_folder_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence and no traceback; the last one is a place where nothing can be made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "pcgrad.orders", "--out", str(tmp_path / place)])
    assert stopped.value.code == 2
    assert "no folder that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".parts", "report.html"])
def test_what_stands_in_the_way_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    place = tmp_path / name
    if name == ".parts":
        place.touch()
    else:
        place.mkdir()
    with pytest.raises(Refused, match=rf"{re.escape(name)} is no (file|folder); move it away"):
        reproduce(never(made), ["a"], TINY, tmp_path)
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    "name", ["report.html", "claims.json", "runs.json", "a-drawn.png", "a-drawn.svg", "notes.txt"]
)
def test_a_folder_of_somebody_else_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    """Whatever is in it; an empty folder, which the error names, will do."""
    theirs = tmp_path / name
    theirs.write_text('["not ours"]')
    with pytest.raises(Refused, match="none of an earlier run"):
        reproduce(never(made), ["a"], TINY, tmp_path)
    assert list(tmp_path.iterdir()) == [theirs]
    assert theirs.read_text() == '["not ours"]'
    (tmp_path / "empty").mkdir()
    reproduce({"a": fake(made, claim("PC-01"))}, ["a"], TINY, tmp_path / "empty")
    assert claims_in(tmp_path / "empty")[0]["verdict"] == "holds"


def test_a_folder_of_a_run_that_was_copied_is_its_own(made: Path, tmp_path: Path) -> None:
    """Without the hidden files, with what one has put next to the results."""
    reproduce({"a": fake(made, claim("PC-01"))}, ["a"], TINY, tmp_path / "run")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "run").glob("[!.]*"):
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "notes.txt").write_text("mine")
    reproduce({"a": fake(made, claim("PC-01"))}, ["a"], TINY, copy)
    assert (copy / "notes.txt").read_text() == "mine"


HOLD = """
import sys, time
from pathlib import Path
from paper_repro.report.results import reserved
with reserved(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_on_one_folder_is_refused(made: Path, tmp_path: Path) -> None:
    """While the other lives; one that was killed leaves nothing that stands in the way."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(Refused, match=rf"in use by another run \(process {other.pid} on "):
                reproduce(never(made), ["a"], TINY, tmp_path)
        finally:
            other.kill()
    assert (tmp_path / ".lock").exists()
    assert reproduce({"a": fake(made, claim("PC-01"))}, ["a"], TINY, tmp_path) == 0
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_a_number_in_use_is_stale_without_its_holder(tmp_path: Path) -> None:
    """Another program may have got the number of a run that is long gone: here, this one."""
    record = f"{os.getpid()}\n{os.uname().nodename}\n"
    (tmp_path / ".lock").write_text(record)
    with reserved(tmp_path), pytest.raises(Refused), reserved(tmp_path):
        pass
    with reserved(tmp_path):
        assert (tmp_path / ".lock").read_text() == record
