"""One solver at one problem: how wrong the answer is, and in which words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..solvers import CAGrad, DualCone, certify
from ..solvers.problems import Problem, root
from ..types import Solution
from ._answers import HOW, Wrong, certified_error, weights_of

AnySolver = Callable[[Any], Any]
"""From a problem to a `Solution`, or to weights alone."""


class Verdict(NamedTuple):
    """What came of one call."""

    error: float  # the certified error; infinite without an answer
    wrong: str = ""  # why it is wrong, empty if it is not
    weights: Tensor | None = None
    refused: str = ""  # the ValueError with which it answers nothing, which is not wrong


def judge(solver: AnySolver, problem: Problem, tolerance: float) -> Verdict:
    """Call a solver, and certify what it answers."""
    given = type(problem)(*(x.clone() for x in problem))
    versions = [x._version for x in given]
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                answer = solver(given)
            except ValueError as error:
                return Verdict(0.0, refused=describe_error(error))
        weights = weights_of(problem, answer).detach()
    except Wrong as error:
        return Verdict(float("inf"), str(error))
    except Exception as error:  # whatever a solver may raise
        return Verdict(float("inf"), describe_error(error))
    for i, (name, after) in enumerate(zip(problem._fields, given, strict=True)):
        # with the values that it has, or past torch, as by NumPy
        if after._version != versions[i] or not torch.equal(after, problem[i]):
            return Verdict(float("inf"), f"it changes problem.{name} in place", weights)
    if not bool(weights.isfinite().all()):
        return Verdict(float("inf"), "weights are not finite", weights)
    error = float(certified_error(problem, weights))
    if error > tolerance:
        return Verdict(error, explain(problem, weights, error, tolerance), weights)
    if isinstance(answer, Solution):
        untrue = contradiction(problem, answer, tolerance)
        if untrue:
            return Verdict(float("inf"), untrue, weights)
    return Verdict(error, "", weights)


def explain(problem: Problem, weights: Tensor, error: float, tolerance: float) -> str:
    """Why weights are wrong, and for dual weights of CAGrad what to return."""
    text = f"certified error {error:.1e}: {certify(problem, weights)}"
    if isinstance(problem, CAGrad) and float(weights.amin()) > -tolerance:
        dual = weights / weights.sum()
        if float(certified_error(problem, problem.recover(dual))) < min(error, tolerance):
            text += "; these are the dual's weights, return problem.solution(problem.recover(w), w)"
    return text


def contradiction(problem: Problem, solution: Solution, tolerance: float) -> str:
    """Which field of a `Solution` its weights and dual contradict, in words; empty if none."""
    weights, dual = solution.weights.detach(), solution.dual
    n = root(problem.gramian.diagonal())
    if not isinstance(dual, Tensor) or dual.shape != weights.shape or dual.dtype != weights.dtype:
        return "dual: expected a tensor of the shape and dtype of the weights"
    dual = dual.detach()
    sizes = [n @ weights.abs(), n @ dual.abs(), n.amax()]
    if isinstance(problem, DualCone):  # the answer may vanish where w does not
        sizes = [sizes[0], n @ problem.weights.abs()]
        apart = (n * (problem.weights + dual - weights)).abs().amax()
        if apart > tolerance * torch.stack(sizes).amax():
            return "dual: expected weights - problem.weights, the multipliers"
    elif dual.amin() < -tolerance or (dual.sum() - 1).abs() > tolerance:
        return f"dual: expected weights on the simplex, got {dual.tolist()}"
    size = torch.stack(sizes).amax()
    unit = size**2 if isinstance(problem, DualCone) else n.amax() * size
    true = problem.solution(weights, dual)
    for name, at in (("rates", n.amax() * size), ("value", unit), ("gap", unit)):
        claimed, exact = getattr(solution, name), getattr(true, name)
        if not isinstance(claimed, Tensor) or claimed.shape != exact.shape:
            return f"{name}: expected a tensor of shape {list(exact.shape)}; {HOW}"
        off = exact - claimed if name == "gap" else (exact - claimed).abs()
        if not bool((off <= tolerance * at).all()):  # NaN is wrong, too
            return (
                f"{name}: the Solution says {claimed.tolist()}, but its weights and dual give "
                f"{exact.tolist()}; make it by problem.solution(weights, dual, steps)"
            )
    return ""


def describe_error(error: Exception) -> str:
    """An exception in one line."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"raises {type(error).__name__}" + (f": {line[:200]}" if line else "")
