"""`python -m paper_repro`: its command line, the ledger, what it writes, keeps and refuses."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from paper_repro.__main__ import main, reproduce, reproductions, selected, title
from paper_repro.claims import LEDGER, PAPERS, ROWS
from paper_repro.report import standins
from paper_repro.report.cache import key, sources
from paper_repro.report.decisions import KINDS
from paper_repro.report.draws import redrawn
from paper_repro.report.figures import STYLE
from paper_repro.report.findings import QUICK, TENTH, Settings
from paper_repro.report.results import NOT_RUN, VERDICTS, Results
from tests.support import ROOT
from tests.support.reproductions import IDS, claim, claims_in, count_runs, fake, figure, found_in

MODULES = sorted({row.module for row in ROWS if row.module})
CHEAP = ("cagrad.definitions", "gradnorm.algorithm", "mgda.counterexample", "pcgrad.orders")
TINY = Settings(seeds=2, shrink=0.0001)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """Cheap reproductions, and for every other one a fake that finds what the ledger says it does.

    The others are run by the tests of their papers.
    """
    sources, real = tmp_path_factory.mktemp("sources"), reproductions()
    modules = {}
    for name in MODULES:
        ids = [row.id for row in ROWS if row.module == name]
        findings = (figure("drawn"), *map(claim, ids))
        modules[name] = real[name] if name in CHEAP else fake(sources, *findings)
    return modules


@pytest.fixture(scope="module")
def written(every: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of everything leaves; run once, read by many tests."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paper_repro.report.workers.STYLE", [STYLE, {"figure.dpi": 30}])
        mpl.use("Agg")
        assert reproduce(every, list(every), TINY, out) == 0
    return out


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the sources of fakes."""
    return tmp_path_factory.mktemp("sources")


# ---- the ledger ----


def test_ledger_has_every_claim_once() -> None:
    assert [row.id for row in ROWS] == IDS
    assert list(LEDGER) == IDS
    assert {row.paper for row in ROWS} == set(PAPERS)
    assert Counter(row.kind for row in ROWS) == {
        "synthetic": 90,
        "exact": 65,
        "data/RL": 16,
        "not here": 2,
    }
    assert {row.kind for row in ROWS} == set(KINDS)
    for row in ROWS:
        assert row.statement.endswith((".", "?"))
        assert "|" not in row.statement  # it stands in a table


CLAIM = r'claim\(\s*"([A-Z]+-\d+)"'


def test_ledger_names_what_decides_each_row() -> None:
    """Every row's module builds its claim, no other module does, and none builds another one.

    Here as their sources say; that each run yields them, the tests of the papers check.
    """
    asked = reproductions().items()
    built = {name: set(re.findall(CLAIM, inspect.getsource(module))) for name, module in asked}
    named = {name: {row.id for row in ROWS if row.module == name} for name in MODULES}
    assert built == named
    for row in ROWS:
        if row.kind in ("data/RL", "not here"):
            assert not row.module
        if row.kind == "data/RL":
            assert row.needs


def test_every_paper_has_a_test_that_runs_it() -> None:
    """The other half of the ledger's check: `findings_of(paper)` with `check_ledger`."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for paper in {name.split(".")[0] for name in MODULES}:
        assert f'findings_of("{paper}"' in tests, paper


def test_every_row_is_in_the_claims(written: Path) -> None:
    claims = claims_in(written)
    assert [c["id"] for c in claims] == IDS
    for c in claims:
        assert c["verdict"] in VERDICTS
        assert c["where"]
        row = LEDGER[c["id"]]
        assert (c["kind"], c["paper"]) == (row.kind, PAPERS[row.paper])
        if c["configuration"]:
            assert c["verdict"] not in (NOT_RUN, "not testable here", "stand-in")
            assert c["measured"]
            assert all(isinstance(value, int | float) for value in c["measured"].values())
        else:
            needs = row.kind in ("data/RL", "not here")
            assert c["verdict"] == (standins.verdict(row) if needs else NOT_RUN)
            assert (c["claim"], c["measured"]) == (row.statement, {})


def test_no_claim_is_decided_twice(written: Path) -> None:
    runs = json.loads((written / "runs.json").read_text())
    assert sorted(runs) == MODULES
    counted = Counter(claim for run in runs.values() for claim in run["claims"])
    assert max(counted.values()) == 1


def test_unknown_ids_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {
        "fake": fake(made, claim("PC-01"), claim("PC-99"), claim("PC-02")),
        "other": fake(made, claim("GN-01")),
    }
    assert reproduce(modules, ["fake", "other"], TINY, tmp_path) == 1
    message = "fake: there is no claim PC-99; give it a row in the module's `claim`"
    assert message in capsys.readouterr().err
    assert [c["id"] for c in found_in(tmp_path)] == ["PC-01", "GN-01"]


# ---- what a run writes ----


def test_a_second_run_keeps_everything(
    every: dict[str, ModuleType], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in every.values():
        monkeypatch.setattr(module, "run", lambda _: pytest.fail("run again"))
    look = lambda: {  # noqa: E731
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in written.glob("*.png")
    }
    before, claims = look(), claims_in(written)
    assert reproduce(every, list(every), TINY, written) == 0
    assert look() == before
    assert claims_in(written) == claims


# ---- the command line ----


def test_a_reproduction_is_one_question_in_one_file() -> None:
    for name, module in reproductions().items():
        path = Path(str(module.__file__))
        assert len(path.read_text().splitlines()) <= 400, name
        assert title(module).endswith("?"), name
        paper, question = path.relative_to(ROOT / "paper_repro").with_suffix("").parts
        assert f"{paper}.{question.removeprefix('_')}" == name


def test_only_takes_names_beginnings_and_ids() -> None:
    assert selected(["gradnorm.reach"], MODULES) == ["gradnorm.reach"]
    pcgrad = [name for name in MODULES if name.startswith("pcgrad.")]
    assert selected(["pcgrad"], MODULES) == pcgrad
    found = selected(["GN-21", "su-34", "mgda.c", "gradnorm.reach"], MODULES)
    costs = ["mgda.cost_of_gradients", "mgda.cost_of_weights"]
    assert found == ["gradnorm.reach", "mgda.counterexample", *costs]
    assert selected(["PCGrad", "GradNorm.Reach"], MODULES) == [*pcgrad, "gradnorm.reach"]


@pytest.mark.parametrize("identifier", ["GN-21", "su-34", "PC-23"])
def test_where_names_the_line_of_a_claim(
    identifier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--where", identifier]) == 0
    path, line = capsys.readouterr().out.strip().rsplit(":", 1)
    lines = Path(path).read_text().splitlines()[int(line) - 2 :]
    assert lines[0].strip() == "Row("
    assert lines[1].strip() == f'"{identifier.upper()}",'


@pytest.mark.parametrize(
    ("arguments", "settings", "folder"),
    [
        ([], Settings(), "out"),
        (["--quick"], QUICK, "quick"),
        (["--full", "--seeds", "3"], Settings(seeds=3, full=True), "full"),
        (["--quick", "--seeds", "7", "--out", "there"], QUICK._replace(seeds=7), "there"),
        (["--draw", "2"], Settings(draw=2), "draw-2"),
        (["--quick", "--draw", "2"], QUICK._replace(draw=2), "draw-2"),
        (["--full", "--tenth"], Settings(full=True, shrink=TENTH), "tenth"),
    ],
)
def test_sizes(
    arguments: list[str], settings: Settings, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size has its own folder, so that a first look costs no finished run."""
    calls = []
    monkeypatch.setattr(
        "paper_repro.__main__.reproduce",
        lambda modules, only, settings, out, fresh, workers, single_file: (
            calls.append((only, settings, out.name, fresh, workers)) or 0
        ),
    )
    assert main(arguments) == 0
    assert calls == [(MODULES, settings, folder, False, len(os.sched_getaffinity(0)))]


def test_another_draw_is_of_other_numbers(tmp_path: Path) -> None:
    """In processes of its own and under its own keys; the page says which draw it is."""
    name, drawn = "pcgrad.dominance", TINY._replace(draw=1)
    modules = {name: reproductions()[name]}
    for settings in (TINY, drawn):
        assert reproduce(modules, [name], settings, tmp_path / str(settings.draw)) == 0
    first, other = (found_in(tmp_path / draw) for draw in "01")
    assert [claim["id"] for claim in first] == [claim["id"] for claim in other]
    assert all(a["measured"] != b["measured"] for a, b in zip(first, other, strict=True))
    assert all(claim["configuration"]["draw"] == "1" for claim in other)
    assert "--draw 1 --only" in (tmp_path / "1" / "report.html").read_text()
    assert key(modules[name], TINY) != key(modules[name], drawn)


def test_other_draws_end_with_the_run() -> None:
    root = mf.random.key(3)

    def numbers() -> list[float]:
        drawn = (mf.random.uniform(root, (2,)), mf.random.normal(root, (2,)))
        return [*torch.cat(drawn).tolist(), *mf.random.permutation(root, 9).tolist()]

    plain = numbers()
    with redrawn(0):
        assert numbers() == plain
    with redrawn(1):
        first = numbers()
    with redrawn(2):
        second = numbers()
    assert plain == numbers()
    assert len({tuple(plain), tuple(first), tuple(second)}) == 3


def test_what_rules_draw_is_the_same_in_every_draw() -> None:
    """Alone, where kernels draw, and in lanes, where torch does."""
    step = mf.balance(lambda params, batch: params["x"] ** 2, mf.rlw(), mf.losses_only())

    def weights(seed: torch.Tensor) -> torch.Tensor:
        params = {"x": torch.ones(3)}
        return step.update(params, (), step.init(params, (), key=seed))[2].weights

    plain = weights(torch.tensor(5))
    with redrawn(1):
        alone, lanes = weights(torch.tensor(5)), vmap(weights)(torch.tensor([5]))[0]
    assert torch.equal(alone, plain)
    torch.testing.assert_close(lanes, plain)


# ---- what stays ----


def test_interruption_keeps_what_is_finished(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {
        "a": fake(made, claim("PC-02")),
        "b": fake(made, claim("PC-01"), figure("one"), stop=True),
        "c": fake(made),
    }
    assert reproduce(modules, list(modules), TINY, tmp_path) == 130
    assert [c["id"] for c in found_in(tmp_path)] == ["PC-01", "PC-02"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".parts",
        "b-one.png",
        "b-one.svg",
        "claims.json",
        "report.html",
        "runs.json",
    ]
    assert "caption of one" in (tmp_path / "report.html").read_text(encoding="utf-8")
    message = capsys.readouterr().err
    assert "interrupted in b, after 1 claims and 1 figures of it; finished before: a" in message
    assert list(json.loads((tmp_path / "runs.json").read_text())) == ["a"]


def test_interruption_while_writing_leaves_the_old_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce({"fake": fake(made, claim("PC-01"))}, ["fake"], TINY, tmp_path)
    before, replace = (tmp_path / "claims.json").read_bytes(), Path.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == "claims.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    assert reproduce({"fake": fake(made, claim("PC-02"))}, ["fake"], TINY, tmp_path) == 130
    assert (tmp_path / "claims.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".parts",
        "claims.json",
        "report.html",
        "runs.json",
    ]


def test_ctrl_c_before_anything_runs_is_no_traceback(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While keys are computed; and while torch and others are imported."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(
            "paper_repro.__main__.key", lambda *_: signal.raise_signal(signal.SIGINT)
        )
        assert main(["--only", "pcgrad.orders", "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err == "\ninterrupted\n"
        (made / "matplotlib.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"
        )
        command = [sys.executable, "-m", "paper_repro", "--out", str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(made)}
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (130, "")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def test_files_of_others_stay(made: Path, tmp_path: Path) -> None:
    """Also in the folder of long computations, which stays with them."""
    others = [tmp_path / folder / "notes-1" for folder in ("parts", ".parts")]
    for path in others:
        path.parent.mkdir()
        path.touch()
    for fresh in (False, True):
        module = {"a": fake(made, claim("PC-01"))}
        assert reproduce(module, ["a"], TINY, tmp_path, fresh=fresh) == 0
    assert all(path.exists() for path in others)
    assert [path.name for path in (tmp_path / ".parts").iterdir()] == ["notes-1"]


def test_other_modules_stay_and_own_leftovers_go(made: Path, tmp_path: Path) -> None:
    first, second = (
        fake(made, claim("PC-01"), claim("PC-02"), figure("one")),
        fake(made, claim("GN-01")),
    )
    reproduce({"a": first, "b": second}, ["a", "b"], TINY, tmp_path)
    reproduce({"a": fake(made, claim("PC-01", 2.0)), "b": second}, ["a"], TINY, tmp_path)
    assert [(c["id"], c["measured"]["value"]) for c in found_in(tmp_path)] == [
        ("PC-01", 2.0),
        ("GN-01", 1.0),
    ]
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.svg")]
    assert "caption of one" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_captions_survive_a_run_of_another_module(made: Path, tmp_path: Path) -> None:
    modules = {"a": fake(made, figure("one")), "b": fake(made, claim("GN-01"))}
    reproduce(modules, ["a"], TINY, tmp_path)
    reproduce(modules, ["b"], TINY, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caption of one" in page
    assert "<td>1</td>" in page


def test_what_has_not_changed_is_not_run_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fake(made, claim("PC-01"), figure("one"))
    runs = count_runs(module)
    again = lambda **options: reproduce(  # noqa: E731
        {"a": module}, ["a"], options.pop("settings", TINY), tmp_path, **options
    )
    again()
    again()
    assert len(runs) == 1
    assert "results kept" in capsys.readouterr().out
    again(fresh=True)
    assert len(runs) == 2
    again(settings=TINY._replace(seeds=3))
    assert len(runs) == 3
    again()
    Path(str(module.__file__)).write_text("text = 2")
    again()
    assert len(runs) == 5
    (tmp_path / "a-one.png").unlink()
    again()
    assert len(runs) == 6
    (tmp_path / "a-one.svg").unlink()
    again()
    again()
    assert len(runs) == 7


def test_an_interrupted_run_is_not_kept(made: Path, tmp_path: Path) -> None:
    """Even where an earlier one was complete: its figures and claims may be mixed with the
    interrupted one's.
    """
    module = fake(made, claim("PC-01"))
    reproduce({"a": module}, ["a"], TINY, tmp_path)
    broken = fake(made, claim("PC-01", 2.0), stop=True)
    broken.__file__ = module.__file__
    reproduce({"a": broken}, ["a"], TINY, tmp_path, fresh=True)
    assert not Results(tmp_path, {}, ["a"]).kept("a", key(module, TINY))


def test_key_follows_imports() -> None:
    """Beside a module, a folder up and from `common`, but nothing that it does not import."""

    def found_by(name: str) -> set[str]:
        return {str(path.relative_to(ROOT)) for path in sources(ROOT / "paper_repro" / name)}

    names = found_by("pcgrad/ablation.py")
    assert "common/intervals.py" in names
    found = {name.removeprefix("paper_repro/") for name in names}
    assert {
        "pcgrad/ablation.py",
        "pcgrad/common.py",
        "pcgrad/landscape.py",
        "pcgrad/problems.py",
        "report/figures.py",
        "report/findings.py",
        "report/intervals.py",
    } <= found
    assert all(name.startswith(("pcgrad/", "report/", "common/")) for name in found)
    assert not found & {"claims.py", "pcgrad/theorem1.py", "report/page.py"}
    shared = {f"common/grouping/{name}.py" for name in ("data", "truth", "forecasts", "judge")}
    assert shared | {"common/problems/digits.py"} <= found_by("since/grouping.py")


def test_key_changes_with_a_source_a_folder_up(tmp_path: Path) -> None:
    for name, text in {
        "report/helper.py": "x = 1",
        "paper/beside.py": "from ..report.helper import x",
        "paper/question.py": "from . import beside",
        "paper/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    module = ModuleType("question")
    module.__file__ = str(tmp_path / "paper" / "question.py")
    first = key(module, TINY)
    (tmp_path / "paper" / "other.py").write_text("y = 1")
    assert key(module, TINY) == first
    (tmp_path / "report" / "helper.py").write_text("x = 2")
    assert key(module, TINY) != first
