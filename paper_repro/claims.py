"""The questions and their ledger: every claim of the four texts, and some that the field has made
since, a row each.

A claim stands in the module that measures it, with what decides it before any run; one that no
module decides, in its paper's `__init__`, with what deciding it would take. Numbers and verdicts
come from the runs.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from .report.decisions import KINDS, Decision, Row

__all__ = ["DECISIONS", "KINDS", "LEDGER", "PAPERS", "ROWS", "papers", "reproductions"]

HERE = Path(__file__).parent
PAPERS = {
    "PC": "PCGrad (Yu et al. 2020)",
    "SU": "MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022)",
    "CA": "CAGrad (Liu et al. 2021)",
    "GN": "GradNorm (Chen et al. 2018)",
    "X": "Links between the texts",
    "SI": "Since 2020",
}
"""Titles by the letters that an id starts with."""


def papers() -> list[str]:
    """The names of their folders."""
    folders = (folder.parent.name for folder in HERE.glob("*/__init__.py"))
    return sorted(folder for folder in folders if folder != "report")  # which asks nothing


def reproductions() -> dict[str, ModuleType]:
    """Every module of a paper's folder that has `run(settings)`, by its name paper.question. A
    module that steps aside for a figure's function, as `_search`, goes without its underscore.
    """
    found = [
        (f"{paper}.{module.name.removeprefix('_')}", f"{__package__}.{paper}.{module.name}")
        for paper in papers()
        for module in pkgutil.iter_modules([str(HERE / paper)])
    ]
    modules = {name: importlib.import_module(module) for name, module in sorted(found)}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


def _collected() -> list[Row]:
    """By paper, then by number."""
    undecided = {paper: importlib.import_module(f"{__package__}.{paper}") for paper in papers()}
    rows = [
        row._replace(id=identifier, module=name if row.decision else "")
        for name, module in (undecided | reproductions()).items()
        for identifier, row in getattr(module, "CLAIMS", {}).items()
    ]
    order = list(PAPERS)
    return sorted(rows, key=lambda row: (order.index(row.paper), int(row.id.split("-")[1])))


ROWS = tuple(_collected())
LEDGER = {row.id: row for row in ROWS}
DECISIONS: dict[str, Decision] = {row.id: row.decision for row in ROWS if row.decision}
"""By the ids of the claims that reproductions decide."""
