"""Solvers of min_norm at the hard families against exact answers, each in a process of its own."""

import datetime
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, combinations, groupby, product
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.progress import progress_bar
from ..solvers import active_set, auto, min_norm
from ._outside import installed, outside
from .families import FAMILIES, REGULAR, jacobian
from .judge import AnySolver, Invalid, certified_error, quiet, weights_of
from .reference import cvx

Make = Callable[[], AnySolver]
OWN: dict[str, Make] = {"auto": auto, "cvx": cvx}
PACKAGES = {"proxqp": "proxsuite", "highs": "highspy", "slsqp": "scipy", "nnls": "scipy"}
KINDS = RIGHT, WRONG, REFUSED, ENDLESS = "right", "silently wrong", "refused", "did not finish"
HEAD = ("solver", *KINDS, "worst error", "ms", "all right at G times", "regular G")


class Posed(NamedTuple):  # whose Gramian is exact
    regular: bool  # of a well-conditioned family
    rows: Tensor  # [task, parameter]
    gramian: Tensor
    exact: Tensor | None  # weights


class Answered(NamedTuple):
    exponent: int  # the Gramian was multiplied by that power of ten
    regular: bool
    kind: str
    error: float = 0.0
    seconds: float = 0.0


def posed(family: str, count: int) -> Posed:
    """Numbers of the family, rounded to 22 bits of the largest, have a Gramian without rounding."""
    rows = jacobian(family, count)
    unit = 2.0 ** (math.frexp(float(rows.abs().max()))[1] - 22)
    rows = (rows / unit).round() * unit
    gramian = rows @ rows.mT
    return Posed(family in REGULAR, rows, gramian, exact_weights(gramian) if count <= 8 else None)


def exact_weights(gramian: Tensor) -> Tensor:
    """Weights that meet the optimality conditions in fractions."""
    G = np.array([[Fraction(x) for x in row] for row in gramian.tolist()])
    guess = active_set()(min_norm(gramian)).weights.nonzero().flatten().tolist()
    for support in chain([guess], *(combinations(range(len(G)), n + 1) for n in range(len(G)))):
        w, at = np.full(len(G), Fraction(0)), list(support)
        w[at] = on_face(G[np.ix_(at, at)])
        if w.sum() == 1 and w.min() >= 0 and (G @ w).min() == (G @ w)[at[0]]:
            return torch.from_numpy(w.astype(np.float64))
    raise ArithmeticError("the matrix is no Gramian")


def on_face(G: Any) -> Any:
    """Weights of sum 1 that give all tasks one rate; zeros where they are not unique."""
    one, n = np.full((len(G), 1), Fraction(1)), len(G)
    rows = np.block([[G, one, 0 * one], [one.T, 0 * one[:1], one[:1]]])
    for k in range(n + 1):
        rows[k:] = rows[sorted(range(k, n + 1), key=lambda i: rows[i, k] == 0)]
        if rows[k, k] == 0:
            return 0 * one[:, 0]
        rows[k] /= rows[k, k]
        rows -= np.outer(rows[:, k] * (np.arange(n + 1) != k), rows[k])
    return rows[:n, -1]


def error_of(problem: Posed, weights: Tensor) -> float:
    """NaN if the answer is."""
    if problem.exact is None:
        return float(certified_error(min_norm(problem.gramian), weights))
    lengths, apart = problem.rows.norm(dim=-1), weights - problem.exact
    unit = float(lengths @ problem.exact) or float(lengths.max()) or 1.0
    errors = [(apart @ problem.rows).norm() / unit, (weights.sum() - 1).abs(), -weights.min()]
    return float(torch.stack([*errors, problem.regular * apart.abs().max()]).max())


def begin() -> None:
    """Once in a solver's process: imports, which are not timed, and nothing is printed after it."""
    installed()
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def timed(make: Make, gramian: Any) -> tuple[list[float], float]:
    """In a solver's process: weights and seconds. Tensors would come as open files."""
    problem, solve = min_norm(torch.tensor(gramian, dtype=torch.float64)), make()
    start = time.perf_counter()
    with quiet():
        answer = solve(problem)
    return weights_of(problem, answer).tolist(), time.perf_counter() - start


def alone(
    call: Any, given: Iterable[Any], limit: float, most: int = 3, start: Any = begin
) -> Iterator[Any]:
    """What a call says in a process of its own, or its error; `most` processes in all."""
    left = iter(given)
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload([__name__, "cvxpy"])
    for _ in range(most):
        with context.Pool(1) as pool:
            pool.apply(start)
            for arguments in left:
                try:
                    yield pool.apply_async(call, arguments).get(limit)
                except Exception as raised:  # whatever a library may raise
                    yield raised
                    if isinstance(raised, multiprocessing.TimeoutError):
                        break
            else:
                return


def answers(make: Make, given: Sequence[Any], limit: float = 10.0) -> Iterator[Answered]:
    """What a solver says to the problems, pairs (exponent, Posed); nothing if it takes no such."""
    scaled = ((2.0 ** round(x * math.log2(10)) * each.gramian).tolist() for x, each in given)
    said = alone(timed, ((make, gramian) for gramian in scaled), limit)
    for (exponent, problem), answer in zip(given, said, strict=False):
        head = exponent, problem.regular
        if isinstance(answer, TypeError):
            return
        if isinstance(answer, Invalid):  # as too few weights are
            yield Answered(*head, WRONG, math.inf)
        elif isinstance(answer, Exception):
            late = isinstance(answer, multiprocessing.TimeoutError)
            yield Answered(*head, ENDLESS if late else REFUSED)
        else:
            error = error_of(problem, torch.tensor(answer[0], dtype=torch.float64))
            yield Answered(*head, RIGHT if error <= 1e-3 else WRONG, error, answer[1])  # NaN: wrong


def row_of(name: str, found: Sequence[Answered]) -> list[str]:
    """A solver's line of the table."""
    package, label = name.rpartition(":")[2].lower(), name
    with suppress(PackageNotFoundError):
        label += f" {version(PACKAGES.get(package, package))}"
    kinds = [x.kind for x in found]
    worst = max(math.inf if math.isnan(x.error) else x.error for x in found)
    spent = median([1e3 * x.seconds for x in found if x.seconds] or [math.nan])
    spans = span(found), span([x for x in found if x.regular])
    return [label, *(str(kinds.count(x)) for x in KINDS), f"{worst:.0e}", f"{spent:.2g}", *spans]


def span(found: Sequence[Answered]) -> str:
    """The powers of ten, of those tried, between which every answer is right, around 1."""
    tried = sorted({x.exponent for x in found})
    wrong = {x.exponent for x in found if x.kind != RIGHT}
    runs = [[*run] for bad, run in groupby(tried, wrong.__contains__) if not bad]
    spans = [x for x in runs if min(map(abs, tried)) in map(abs, x)]
    return f"1e{spans[0][0]} to 1e{spans[0][-1]}" if spans else "–"


def table(names: Sequence[str], tasks: Sequence[int], exponents: Sequence[int]) -> str:
    """In Markdown, after a line with the day and versions."""
    families = [family for family in FAMILIES if family != "near_duplicates"]
    problems = [posed(family, count) for count, family in product(tasks, families)]
    rows = []
    for name in progress_bar(names, desc="solvers", delay=3):
        most = 6 if "highs" in name.lower() else 400  # HiGHS is kept to numbers that it is made for
        near = [x for x in sorted(exponents, key=abs) if abs(x) <= most]
        found = [*answers(OWN.get(name) or partial(outside, name), [*product(near, problems)])]
        rows += [row_of(name, found)] if found else []
    said = ", ".join(f"{x} {version(x)}" for x in ("torch", "numpy", "scipy", "cvxpy"))
    first = f"{datetime.date.today()}, Python {platform.python_version()}, {said}.\n"
    lines = (f"| {' | '.join(row)} |" for row in [HEAD, ["---"] * len(HEAD), *rows])
    return "\n".join([first, *lines])
