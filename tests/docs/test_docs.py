"""What the project says of itself is true: pages run, tables name what exists, files agree."""

import ast
import inspect
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import mtlfunc as mf
from docs import derivatives, front, outputs, pages, properties, results, versions
from mtlfunc import core
from mtlfunc.gradients import safe_ops
from mtlfunc.guide import guide
from tests.support import ROOT, python

DOCS = ROOT / "docs"
MOST_WORDS = 29_813
README = (ROOT / "README.md").read_text()
RULES = set(pages.RULES)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def checked(path: Path) -> dict:
    """Run a page; each block prints what stands after it. What the page leaves."""
    scope: dict = {}
    for block in list(outputs.run(path.read_text(encoding="utf-8"), path.name)):
        scope = block.scope
        if block.printed is not None:
            found = outputs.difference(block.printed, block.stored or "")
            assert not found, f"{path.name}, after\n{block.code}\n{found}"
    return scope


def test_readme_is_a_front_page_and_runs():
    lines = README.splitlines()
    assert len(lines) <= 100
    assert len(README.split()) <= 650
    assert {"```diff", "```python"} <= {*lines[:40]}, "code on the first screen"
    opening = README[: README.index("```")]
    for number in re.findall(r"\d+\.\d+|\d+ of|; \d+", opening):  # each is in the results below
        assert re.search(rf"\b{re.sub('[^0-9.]', '', number)}\b", results_part(README)), number
    assert checked(ROOT / "README.md")["info"].weights.shape == (3,)


def results_part(text: str) -> str:
    return text[text.index("<!-- summary -->") :]


def test_readme_has_the_numbers_of_the_benchmarks():
    assert results.summary((DOCS / "benchmarks.md").read_text()) in README
    assert front.block() in README
    assert versions.kept()[mf.__version__] == versions.today()
    assert versions.block() in (DOCS / "benchmarks.md").read_text()


def test_tour_runs_from_top_to_bottom():
    scope = checked(DOCS / "tour.md")
    assert scope["grid"](
        mf.stack(scope["nets"]), torch.arange(4), torch.tensor([0.2, 0.4, 0.8])
    ).losses.shape == (4, 3, 3)


def test_method_table_names_what_exists():
    table = (DOCS / "methods" / "index.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and ("`mf." in line)]
    calls = [call for row in rows for call in re.findall(r"`(mf\.[^`]+\))`", row)]
    scope = {
        "mf": mf,
        "encode": lambda p, b: b,
        "decode": lambda p, z, b: z,
        "f": lambda gramian: gramian.diagonal(),
        "matrix": lambda batch: batch,
        "trimmed_mean": lambda k: lambda key, rows: rows,
        "residuals": [lambda params, batch: batch],
    }
    for call in calls:
        assert isinstance(eval(call, scope), mf.Rule | mf.Probe), call
    named = {call.partition("(")[0].rpartition(".")[2] for call in calls}
    assert named >= RULES, f"the table of methods lacks {RULES - named}"
    for row in rows:  # the step refuses a probe that does not measure what the rule reads
        rule, probe = (re.search(r"`(mf\.[^`]+\))`", cell) for cell in row.split(" | ")[1:3])
        if probe and rule:
            mf.balance(lambda params, batch: batch, eval(rule[1], scope), eval(probe[1], scope))


def test_table_of_properties_names_every_rule():
    named = {rule.partition("(")[0].rpartition(".")[2] for rule in properties.RULES}
    assert RULES - {"stateless"} <= named


def test_solver_table_names_every_solver():
    named = set(re.findall(r"^\| `solvers\.(\w+)", (DOCS / "solvers.md").read_text(), re.MULTILINE))
    solvers = {"active_set", "auto", "cvx", "faces", "frank_wolfe", "projected_gradient"}
    assert named == solvers
    assert all(hasattr(mf.solvers, name) for name in solvers)


def test_what_torch_differentiates_wrongly_is_written_out_or_refused():
    """As the table for all versions says. It shows why each operation of `safe_ops` is there."""
    known = json.loads(derivatives.KEPT.read_text())
    block = derivatives.table(known)
    assert block in (DOCS / "limits.md").read_text()
    assert not re.search(r"\*\*wrong\*\* \|$", block, re.MULTILINE)
    of = [pair for each in known.values() for pair in each.items()]
    shown = {re.split("[ ,]", x)[0].replace(".", "_") for x, y in of if {*y.values()} - {"right"}}
    rows = [row[0] for row in safe_ops._REFUSED] + [*safe_ops._OURS]
    assert not [row for row in rows if not shown & {*row.replace("native_", "").split()}]


def test_pages_that_are_written_by_hand_stay_short():
    """Lower the number with every page that gets shorter."""
    made = {"claims.md", "benchmarks.md", "figures.md", "properties.md"}
    part = re.compile(r"<!-- ([\w-]+) -->.*?<!-- end of \1 -->", re.DOTALL)
    pages = (path.read_text("utf-8") for path in DOCS.rglob("*.md") if path.name not in made)
    assert sum(len(part.sub("", page).split()) for page in pages) <= MOST_WORDS


def test_folders_of_the_architecture_exist():
    page = (DOCS / "architecture.md").read_text()
    assert len(page.split()) <= 1000
    block = page[page.index("    mtlfunc/\n") : page.index("Imports go one way")]
    for name in re.findall(r"(\w+\.py|\w+/)", block):
        assert list(ROOT.rglob(name.rstrip("/"))), name
    for path in (ROOT / "mtlfunc").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in block, path.name
        elif (path / "__init__.py").exists():
            assert f"{path.name}/" in block, path.name


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str)
def test_images_and_files_that_are_linked_exist(path):
    """As a reader finds them in the repository; the test of the site follows them there."""
    for file, place in links(path):
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), file
        if place and target.suffix == ".md":
            assert place in anchors(target), f"{file}#{place}"


def links(path: Path) -> list[tuple[str, str]]:
    """Files and places that a page links to, without addresses on the net."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose)


def anchors(path: Path) -> set[str]:
    """The places of a page, as hosting sites name its headings, and those that it names itself."""
    text = path.read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    named = re.findall(r'<a (?:id|name)="([^"]+)"', text)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads} | {*named}


def code_spans(text: str) -> list[str]:
    """Those of prose that begin with `mf.`, as expressions."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " ")
    spans = re.findall(r"`(mf\.[^`]+)`", prose)
    return [re.sub(r"=(?=[,)])|=…", "=None", span).replace("…", "...") for span in spans]


def wrong(span: str) -> list[str]:
    """Names in an expression that do not exist, and calls that do not fit their function."""
    found = []
    for node in ast.walk(ast.parse(span, mode="eval").body):
        function = node.func if isinstance(node, ast.Call) else node
        if not re.fullmatch(r"mf(\.\w+)+", ast.unparse(function)):  # a call's result has no name
            continue
        try:
            value = eval(ast.unparse(function), {"mf": mf})
            if isinstance(node, ast.Call) and "..." not in ast.unparse(node):
                names = {each.arg: None for each in node.keywords if each.arg}
                part = ast.unparse(node).endswith("=None)")  # what is meant is this argument
                bind = inspect.signature(value).bind_partial if part else None
                (bind or inspect.signature(value).bind)(*node.args, **names)
        except (AttributeError, TypeError) as error:
            found.append(f"{span}: {error}")
    return found


def test_every_name_and_call_in_prose_exists():
    pages = (ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "experiments").rglob("*.md"))
    spans = [span for page in pages for span in code_spans(page.read_text(encoding="utf-8"))]
    assert len(spans) > 300
    assert not [text for span in spans for text in wrong(span)]
    assert wrong("mf.uw()")
    assert wrong("mf.revisit(probe)")


def test_the_installed_guide_is_the_page_for_agents():
    page = (DOCS / "agents.md").read_text(encoding="utf-8")
    assert (ROOT / "mtlfunc" / "guide.md").read_text(encoding="utf-8") == page
    printed = guide()
    assert printed.startswith(f"mtlfunc {mf.__version__}")
    assert "](" not in printed


def test_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {item for item in environment["dependencies"] if isinstance(item, str)} - {"pip"}
    expected = (
        {item for extra in ("fast", "plot", "lab") for item in EXTRAS[extra]}
        | {re.sub(r"^torch(?=[<>=])", "pytorch", item) for item in PROJECT["dependencies"]}
        | {f"python{PROJECT['requires-python']}"}
    )
    assert conda == expected
    assert environment["dependencies"][-1] == {"pip": ['-e ".[repro]"']}


def test_the_tested_torches_are_those_of_the_table_and_the_jobs():
    assert [item for item in PROJECT["dependencies"] if item.startswith("torch")] == ["torch>=2.6"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    tested = jobs["torch"]["strategy"]["matrix"]["torch"]
    row = re.compile(r"^\| (\d[.\d]+) \| (\d+) \| \d+ \| 0 \| \d+ \w+ \d{4} \|", re.MULTILINE)
    rows = row.findall((ROOT / "docs/limits.md").read_text())
    assert [version for version, _ in rows] == tested
    assert all(int(passed) > 200 for _, passed in rows)
    ends = [tuple(map(int, x.split(".")[:2])) for x in (tested[0], tested[-1])]
    assert ends == [core.OLDEST, core.NEWEST]
    run = (ROOT / ".ci/run").read_text()
    assert re.findall(r"\.ci/versions (.+)", run) == [tested[0], tested[-1]]
    assert f"TORCH:-{tested[0]}}}" in (ROOT / ".ci/lowest").read_text()
    for page in ("README.md", "docs/start.md"):
        assert "Python 3.11 or later, PyTorch 2.6 or later" in (ROOT / page).read_text()


def test_every_dependency_is_bounded():
    ours = r"mtlfunc\[[a-z,]+\]|torch>=2\.6"
    others = r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+(; sys_platform == 'linux')?"
    for item in (*PROJECT["dependencies"], *(x for extra in EXTRAS.values() for x in extra)):
        assert re.fullmatch(f"{ours}|{others}", item), item


def test_citation_and_version_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == mf.__version__
    assert PROJECT["dynamic"] == ["version"]
    assert citation["license"] == PROJECT["license"]
    assert "CITATION.cff" in README


def test_a_release_writes_the_readmes_links_out(tmp_path):
    """Links and pictures of a package index lead to the tag in the repository."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    (step,) = [x["run"] for x in jobs["build"]["steps"] if "README.md" in x.get("run", "")]
    (tmp_path / "README.md").write_text(README)
    env = {**os.environ, "GITHUB_REPOSITORY": "some/one", "GITHUB_REF_NAME": "v1.2.3"}
    subprocess.run(["bash", "-euc", step], cwd=tmp_path, env=env, check=True)
    written = (tmp_path / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]*)\)", re.sub(r"```.*?```", "", written, flags=re.DOTALL))
    home = "https://github.com/some/one"
    for target in targets:
        path = target.removeprefix(f"{home}/blob/v1.2.3/").removeprefix(f"{home}/raw/v1.2.3/")
        assert path != target, target
        assert (ROOT / path.partition("#")[0]).exists(), target


@pytest.mark.parametrize("module", ["paper_repro", "experiments.multimnist", "experiments.arena"])
def test_help_is_shown(module):
    done = python("-m", module, "--help")
    assert "--out" in done.stdout
    assert "--seeds" in done.stdout


def test_project_speaks_of_itself_alone():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(?:work|root|home|tmp)/\w")
    for name in tracked.stdout.split():
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".yml", ".cff"}
            and path.exists()
            and name != "tests/docs/test_docs.py"
        ):
            assert not pattern.search(path.read_text()), name
