"""What the reproductions' tests share: questions that are made up."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import pytest

from paper_repro.report.findings import Settings
from tests.support import ROOT

TINY = Settings(seeds=2, shrink=0.0001)
QUESTION = '''"""What does {name} find?"""
import os, signal, sys, time
from pathlib import Path
import torch
from tqdm import tqdm
from matplotlib.figure import Figure as Canvas
from paper_repro.report.findings import Claim, Figure
from paper_repro.report.parts import kept
HERE = Path(__file__).parent

@kept
def long(number, settings):
    with (HERE / "calls").open("a") as file:
        file.write(f"{{number}}\\n")
    return torch.arange(number), {{"seeds": settings.seeds}}

def claim(identifier, value):
    return Claim(identifier, {{"value": float(value)}}, "here", "holds")

def figure(name):
    canvas = Canvas(figsize=(1, 1))
    canvas.add_subplot().plot([0, 1])
    return Figure(name, f"caption of {{name}}", canvas)

def run(settings):
    yield claim("{claim}", long(5, settings)[0].sum())
{body}
'''
RUN = """
import sys
from importlib import import_module
from pathlib import Path
from paper_repro.__main__ import reproduce
from paper_repro.report.findings import Settings
folder, out = map(Path, sys.argv[1:])
if __name__ == "__main__":
    sys.path.insert(0, str(folder))
    modules = {name: import_module(f"question_{name}") for name in ("x", "y", "z")}
    sys.exit(reproduce(modules, list(modules), Settings(seeds=2, shrink=0.0001), out, workers=2))
"""


class Made:
    """Questions in files that workers can import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def question(self, name: str, claim: str, *body: str) -> ModuleType:
        lines = "\n".join(f"    {line}" for line in body)
        (self.folder / f"{name}.py").write_text(QUESTION.format(name=name, claim=claim, body=lines))
        invalidate_caches()
        sys.modules.pop(name, None)
        return import_module(name)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []

    def workers(self) -> list[int]:
        """Processes that have said their number."""
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]

    @contextmanager
    def started(self, out: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A process that runs the questions x, y and z side by side; an error inside ends it."""
        (self.folder / "run.py").write_text(RUN)
        command = ["env", "--default-signal=INT", sys.executable, self.folder / "run.py"]
        command += [self.folder, out]
        paths = os.environ | {"PYTHONPATH": f"{ROOT}:{self.folder}"}
        options = {"stdout": subprocess.DEVNULL} | options
        with subprocess.Popen(command, env=paths, text=True, **options) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A folder of questions; their names must differ from those of other tests."""
    folder = tmp_path_factory.mktemp("questions")
    monkeypatch.syspath_prepend(str(folder))
    mpl.use("Agg")
    return Made(folder)


def claims_in(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "claims.json").read_text(encoding="utf-8"))


def found_in(folder: Path) -> list[dict[str, Any]]:
    return [claim for claim in claims_in(folder) if claim["configuration"]]


def left_in(folder: Path) -> dict[str, Any]:
    """What a run leaves, without what tells one run from another."""
    runs = json.loads((folder / "runs.json").read_text())
    assert all(run.pop("seconds") >= 0 and run.pop("parts").keys() >= {""} for run in runs.values())
    figures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    return {"claims": found_in(folder), "runs": runs, "figures": figures}


def until(condition: Any) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


IDS = [
    f"{paper}-{number:02d}"
    for paper, count in {"PC": 32, "SU": 37, "CA": 40, "GN": 29, "X": 7, "SI": 30}.items()
    for number in range(1, count + 1)
]
