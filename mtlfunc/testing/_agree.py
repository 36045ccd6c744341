"""Whether two solvers agree, by what their answers prove."""

from __future__ import annotations

from typing import Any

from ..solvers.problems import Problem, check_problem, or_one, root
from ._judge import judge


def assert_agree(one: Any, other: Any, problem: Problem, tolerance: float = 1e-6) -> None:
    """Raise AssertionError unless both answers to a problem are certified.

    Weights are not compared: where several weights give the optimal direction, two right solvers
    may differ in them. An answer whose certificate is within the tolerance is as near to the
    optimum as the certificate says, and so to the other one.

    Args:
        one: a solver, or its answer: a `Solution` or weights `[task]`.
        other: likewise.
        problem: of `mtlfunc.solvers`.
        tolerance: the largest error (see `certified_error`).

    Raises:
        AssertionError: says which of both is wrong, by how much, and how much they differ.
        TypeError: for anything but a problem.

    Examples:
        >>> import torch
        >>> from mtlfunc.solvers import active_set, min_norm
        >>> problem = min_norm(torch.ones(2, 2))  # one gradient twice: any weights will do
        >>> assert_agree(active_set(), torch.tensor([0.25, 0.75]), problem)
    """
    check_problem(problem)
    # the answers once: a solver may be slow, or random
    found = {
        name: judge(x if callable(x) else lambda _, x=x: x, problem, tolerance)
        for name, x in (("one", one), ("other", other))
    }
    wrong = [f"{name}: {verdict.wrong}" for name, verdict in found.items() if verdict.wrong]
    if not wrong:
        return
    weights = [verdict.weights for verdict in found.values()]
    if weights[0] is not None and weights[1] is not None:
        apart = (weights[0] - weights[1]).double()
        gramian = problem.gramian.double()
        distance = root(apart @ gramian @ apart) / or_one(root(gramian.diagonal().amax()))
        wrong.append(
            f"the directions are {float(distance):.1e} of the longest gradient apart, the weights "
            f"{float(apart.abs().amax()):.1e}"
        )
    raise AssertionError(f"on {type(problem).__name__}: " + "\n".join(wrong))
