"""Hypothesis strategies for Jacobians and problems; hypothesis is imported when one is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.checks import check_option
from ..core.extras import expect_installed
from ..solvers import cagrad, dual_cone, min_norm
from ..solvers.problems import Problem
from .families import FAMILIES, jacobian

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    Tensors = SearchStrategy[Tensor]
    Problems = SearchStrategy[Problem]
else:  # names for annotations that are read at run time
    Tensors = Problems = Any

KINDS = ("min_norm", "cagrad", "dual_cone")


def jacobians(
    tasks: tuple[int, int] = (1, 8),
    width: tuple[int, int] | None = (1, 12),
    *,
    families: Iterable[str] = tuple(FAMILIES),
    exponents: tuple[int, int] = (-10, 10),
) -> Tensors:
    """A strategy for Jacobians of the hard families.

    A failure shrinks to the first of the families that fails, with the fewest tasks and parameters,
    the least power of ten and the least seed that hypothesis finds.

    Args:
        tasks: the least and largest number of tasks T.
        width: the least and largest number of parameters P, as `jacobian` takes it; None is T + 10.
        families: those of `jacobian`, the ones to prefer in a counterexample first.
        exponents: all gradients are multiplied by a power of ten between these, -300 to 300.

    Returns:
        a strategy of tensors `[task, parameter]`, float64.

    Raises:
        ImportError: without hypothesis.
        ValueError: for an unknown family, or a range that is empty.

    Examples:
        >>> from hypothesis import given, settings
        >>> from mtlfunc import solvers, testing
        >>> @settings(deadline=None)  # the first call loads a kernel
        ... @given(testing.jacobians(tasks=(2, 4)))
        ... def test_shortest_is_no_longer_than_the_mean(rows):
        ...     gramian = rows @ rows.mT
        ...     shortest = solvers.auto()(solvers.min_norm(gramian)).value
        ...     assert shortest <= 0.5 * gramian.mean() + 1e-9 * gramian.diagonal().max()
        >>> test_shortest_is_no_longer_than_the_mean()
    """
    expect_installed("hypothesis", what="the strategies of mtlfunc.testing")
    from hypothesis import strategies as st

    chosen = list(families)
    if isinstance(families, str) or not chosen:
        raise ValueError(f'families: expected names, such as ["gaussian"], got {families!r}')
    for name in chosen:
        check_option(name, "families", tuple(FAMILIES))
    whole_range(width or (1, 1), "width")
    powers = whole_range(exponents, "exponents", -300, 300)
    # hypothesis draws the least of a range half of the time: a single task shows nothing
    sizes = [n for n in whole_range(tasks, "tasks") for _ in range(1 if n == 1 else 3)]

    # by calls that a failure prints as they are
    return st.builds(
        jacobian,
        *(st.sampled_from(chosen), st.sampled_from(sizes), st.integers(0, 2**32 - 1)),
        scale=st.integers(powers[0], powers[-1]).map(lambda exponent: 10.0**exponent),
        width=st.none() if width is None else st.integers(*width),
    )


def problems(
    kind: str, tasks: tuple[int, int] = (1, 8), width: tuple[int, int] | None = (1, 12), *,
    families: Iterable[str] = tuple(FAMILIES), exponents: tuple[int, int] = (-10, 10),
) -> Problems:  # fmt: skip
    """A strategy for problems of one kind, on the Gramians of `jacobians`.

    CAGrad's c is 0.4, 0.1, 1 or 0, and its preference uniform, increasing, or 0 for the last of
    several tasks; the dual cone's weights uniform, of one task, or of both signs; simplest first.

    Args:
        kind: `"min_norm"`, `"cagrad"` or `"dual_cone"`.
        tasks: the least and largest number of tasks T.
        width: the least and largest number of parameters P, as `jacobian` takes it; None is T + 10.
        families: those of `jacobian`.
        exponents: all gradients are multiplied by a power of ten between these, -300 to 300.

    Returns:
        a strategy of problems of `mtlfunc.solvers`.

    Raises:
        ImportError: without hypothesis.
        ValueError: for an unknown kind or family, or a range that is empty.

    Examples:
        >>> from hypothesis import given, settings
        >>> from mtlfunc import solvers, testing
        >>> @settings(deadline=None)  # the first call loads a kernel
        ... @given(testing.problems("min_norm", tasks=(2, 3)))
        ... def test_faces(problem):
        ...     testing.assert_agree(solvers.faces(), solvers.active_set(), problem)
        >>> test_faces()
    """
    check_option(kind, "kind", KINDS)
    rows = jacobians(tasks, width, families=families, exponents=exponents)
    from hypothesis import note
    from hypothesis import strategies as st

    @st.composite
    def posed(draw: Any) -> Problem:
        problem = pose(kind, draw(rows), draw(st.integers(0, VARIANTS[kind] - 1)))
        numbers = {k: x.tolist() for k, x in problem._asdict().items()}
        note(f"{type(problem).__name__} of dtype {problem.gramian.dtype}: {numbers}")
        return problem

    return posed()


def whole_range(ends: Any, name: str, low: int = 1, high: int | float = math.inf) -> range:
    """All numbers from the least to the largest, both in [low, high], or an error with the name."""
    pair = isinstance(ends, Sequence) and [isinstance(x, int) for x in ends] == [True, True]
    if not pair or not low <= ends[0] <= ends[1] <= high:
        ask = f"(least, most), whole numbers with {low} <= least <= most <= {high}"
        raise ValueError(f"{name}: expected {ask}, got {ends}")
    return range(ends[0], ends[1] + 1)


VARIANTS = {"min_norm": 1, "cagrad": 6, "dual_cone": 4}
"""How many problems of a kind there are for one Gramian; the first is the simplest."""


def pose(kind: str, rows: Tensor, variant: int) -> Problem:
    """A problem on the Gramian of `rows` [task, parameter]."""
    gramian, count = rows @ rows.mT, len(rows)
    if kind == "min_norm":
        return min_norm(gramian)
    if kind == "cagrad":
        preference = torch.arange(1.0, count + 1).to(rows) if variant == 4 else None
        if variant == 5:
            preference = (torch.arange(count) < max(1, count - 1)).to(rows)
        return cagrad(gramian, (0.4, 0.1, 1.0, 0.0, 0.4, 0.4)[variant], preference=preference)
    weights = torch.full_like(gramian[0], 1 / count)
    if variant in (1, 2):
        weights = (torch.arange(count) == (0, count - 1)[variant - 1]).to(rows)
    elif variant == 3:
        weights = torch.linspace(-1, 1, count, dtype=rows.dtype)
    return dual_cone(gramian, weights)
