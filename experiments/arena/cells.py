"""The cells of the table, one rule on one problem each, side by side in several processes."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.device import on
from common.sources import key
from mtlfunc.studies.arena import (
    STATIC,
    BenchmarkProblem,
    Cell,
    Contestant,
    Settings,
    compete,
    contestants,
    standard,
)

from .contestants import CONTESTANTS
from .digits import problem as digits

SPECIAL: dict[str, Callable[[], BenchmarkProblem]] = {"digits": digits}
"""Problems that the package has no data for."""


class Entrant(NamedTuple):
    """A rule in a form that another process can make again."""

    name: str
    spec: str  # of `--rule`; empty for those of the table and the static search
    source: str  # the digest of what `--rule` names


class Task(NamedTuple):
    problem: str
    entrant: Entrant
    settings: Settings
    device: torch.device = torch.device("cpu")


def contestant_of(entrant: Entrant) -> Contestant | None:
    if entrant.spec:
        return load(entrant.spec)[1]
    return None if entrant.name == STATIC else CONTESTANTS[entrant.name]


def load(spec: str) -> tuple[str, Contestant]:
    """A contestant from `module:name`. Raises ValueError with what is wrong."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ValueError(f"{spec!r}: expected module:name, for instance my_rules:soft")
    try:
        value = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        (found,) = contestants({name: value}, taken=(*CONTESTANTS, STATIC)).items()
    except TypeError as error:
        raise ValueError(f"{spec!r}: {error}") from error
    return found


def source_of(spec: str) -> str:
    """The digest of `spec`, its module and all loaded from its folder or package, for results."""
    name = spec.partition(":")[0]
    folder, root = Path(inspect.getfile(importlib.import_module(name))).parent, name.split(".")[0]
    files = {x: getattr(each, "__file__", None) for x, each in [*sys.modules.items()]}
    every = ((x.split(".")[0] == root, Path(file)) for x, file in files.items() if file)
    return key((path for inside, path in every if inside or path.parent == folder), spec)


def problem_of(name: str, *, afresh: bool = False) -> BenchmarkProblem:
    """A problem; `afresh`: with tensors of its own, on the device of the moment."""
    every = inspect.unwrap(standard) if afresh else standard
    return SPECIAL[name]() if name in SPECIAL else every()[name]


def perform(task: Task) -> Cell:
    """One cell."""
    with on(task.device):
        problem = problem_of(task.problem, afresh=task.device.type != "cpu")
        cell = compete(problem, contestant_of(task.entrant), task.settings)
    on_host: list[Any] = [x.cpu() if isinstance(x, torch.Tensor) else x for x in cell]
    return Cell(*on_host)
