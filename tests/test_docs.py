"""What the project says of itself is true: the README runs, its tables name what exists, the
environment files agree.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import mtlfunc as mf
from docs import properties

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RULES = set(mf.rules.__all__) - {"aggregate", "weights"}  # these two apply a rule


def test_readme_runs_from_top_to_bottom(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    scope: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, "README.md", "exec"), scope)
    assert scope["grid"](
        mf.stack(scope["nets"]), torch.arange(4), torch.tensor([0.2, 0.4, 0.8])
    ).losses.shape == (4, 3, 3)
    assert len(re.findall(r"^tensor\(", capsys.readouterr().out, re.MULTILINE)) == 4


def test_method_table_names_what_exists():
    rows = [line for line in README.splitlines() if line.startswith("| ") and ("`mf." in line)]
    calls = [call for row in rows for call in re.findall(r"`(mf\.[^`]+\))`", row)]
    scope = {
        "mf": mf,
        "encode": lambda p, b: b,
        "decode": lambda p, z, b: z,
        "f": lambda gramian: gramian.diagonal(),
    }
    for call in calls:
        assert isinstance(eval(call, scope), mf.Rule | mf.Probe), call
    named = {
        re.match(r"mf\.(\w+)", call).group(1)  # pyright: ignore[reportOptionalMemberAccess]
        for call in calls
    }
    assert named >= RULES, f"the README's table lacks {RULES - named}"


def test_table_of_properties_names_every_rule():
    named = {
        re.match(r"\w+", rule).group()  # pyright: ignore[reportOptionalMemberAccess]
        for rule in properties.RULES
    }
    assert RULES - {"stateless"} <= named


def test_solver_table_names_every_solver():
    named = set(re.findall(r"^\| `solvers\.(\w+)", README, re.MULTILINE))
    solvers = {"active_set", "auto", "cvx", "faces", "frank_wolfe", "projected_gradient"}
    assert named == solvers
    assert all(hasattr(mf.solvers, name) for name in solvers)


def test_folders_of_the_architecture_exist():
    block = README[README.index("    mtlfunc/\n") : README.index("Imports go one way")]
    for name in re.findall(r"(\w+\.py|\w+/)", block):
        assert list(ROOT.rglob(name.rstrip("/"))), name
    for path in (ROOT / "mtlfunc").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in block, path.name
        elif (path / "__init__.py").exists():
            assert f"{path.name}/" in block, path.name


def test_images_exist():
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / image).is_file(), image


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {item for item in environment["dependencies"] if isinstance(item, str)} - {"pip"}
    expected = {re.sub(r"^torch(?=[<>=])", "pytorch", item) for item in project["dependencies"]} | {
        f"python{project['requires-python']}"
    }
    assert conda == expected
    assert environment["dependencies"][-1] == {"pip": ['-e ".[test]"']}


def test_every_dependency_is_bounded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for item in [
        *project["dependencies"],
        *(x for extra in project["optional-dependencies"].values() for x in extra),
    ]:
        assert item == "mtlfunc[repro]" or re.fullmatch(
            r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+(; sys_platform == 'linux')?", item
        ), item


def test_citation_and_version_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == mf.__version__
    assert project["dynamic"] == ["version"]
    assert citation["license"] == project["license"]


@pytest.mark.parametrize("module", ["paper_repro", "experiments.digits", "experiments.arena"])
def test_help_is_shown(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
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
            and name != "tests/test_docs.py"
        ):
            assert not pattern.search(path.read_text()), name
