"""Data flows one way: the imports of every module are read and held to the README's diagram."""

import ast
from pathlib import Path

import pytest

import mtlfunc as mf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mtlfunc"

# What a part of the package may import from the rest of it.
ALLOWED = {
    "types": set(),
    "checks": {"types"},
    "random": {"checks", "random_cpu"},
    "random_cpu": set(),
    "simplex": set(),
    "tree": {"types"},
    "layerwise": {"checks", "tree", "types"},
    "backward": {"layerwise", "tree", "types"},
    "plain": set(),
    "gradients": {"backward", "checks", "layerwise", "plain", "tree", "types"},
    "samples": {"backward", "checks", "gradients", "layerwise", "plain", "tree", "types"},
    "gramian": {"checks", "gradients", "layerwise", "samples", "tree", "types"},
    "explain": {"checks", "gradients", "layerwise", "tree", "types"},
    "optim": {"checks", "tree", "types"},
    "solvers": {"checks", "simplex", "types"},
    "rules": {"checks", "optim", "random", "random_cpu", "simplex", "solvers", "types"},
    "probes": {"checks", "gradients", "gramian", "layerwise", "random", "tree", "types"},
    "step": {"checks", "random", "types"},
    "oneshot": {"checks", "random", "types"},
    "sweep": {"checks"},
    "pareto": {"checks", "sweep"},
    "arena": {
        "diagnostics",
        "gradients",
        "optim",
        "pareto",
        "probes",
        "random",
        "rules",
        "step",
        "tree",
        "types",
    },
    "audit": {"random", "solvers", "types"},
    "plot": {"diagnostics", "oneshot", "pareto", "random", "rules", "types"},
    "diagnostics": {"checks", "gradients", "solvers", "tree", "types"},
    "theory": {"checks", "diagnostics", "gradients", "solvers", "tree", "types"},
}
OUTSIDE = {
    "torch",
    "jaxtyping",
    "cvxpy",
    "matplotlib",
    "moocore",
    "mpl_toolkits",
    "numba",
    "numpy",
    "tqdm",
    "triton",
    "xarray",
}
STANDARD = {
    "argparse",
    "ast",
    "collections",
    "concurrent",
    "contextlib",
    "dataclasses",
    "enum",
    "fnmatch",
    "functools",
    "html",
    "importlib",
    "inspect",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "os",
    "pathlib",
    "sys",
    "time",
    "types",
    "typing",
    "warnings",
    "__future__",
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Parts of the package, and outside packages, that a file imports."""
    inner, outer = set(), set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outer |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module
            outer.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:  # from the package itself
            inner |= (
                {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            )
    return inner, outer


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_follow_the_diagram(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    inner, outer = imports(path)
    if part != "__init__":
        assert inner <= ALLOWED[part], f"{part} must not import {inner - ALLOWED[part]}"
    assert outer <= OUTSIDE | STANDARD


def test_every_part_is_in_the_diagram():
    parts = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set(ALLOWED)


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "paper_repro").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_experiments_use_public_names_only(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(
                alias.name == "mtlfunc" for alias in node.names if alias.name.startswith("mtlfunc")
            )
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "mtlfunc"
        ):
            assert node.module in (
                "mtlfunc",
                "mtlfunc.arena",
                "mtlfunc.audit",
                "mtlfunc.core.files",
                "mtlfunc.studies.arena",
                "mtlfunc.types",
                "mtlfunc.solvers",
            ), node.module
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "mf"
        ):
            assert hasattr(mf, node.attr)
            assert not node.attr.startswith("_") or node.attr == "__file__"


def test_package_draws_no_global_random_numbers():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        for forbidden in ("torch.rand", "torch.manual_seed", "np.random", "Generator(", "randperm"):
            assert forbidden not in source.replace("torch.Generator` cannot", ""), (
                f"{path.name}: {forbidden}"
            )
