"""Solvers of other libraries behind one call, with their answers as they are."""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from ..core.checks import inside_transform
from ..solvers.problems import CAGrad, DualCone, Problem, check_problem
from ..types import Solution, Solver, constructor
from ._cvx import Array, _root
from ._judge import describe_error, quiet

SECOND_ORDER = (
    "CAGrad's dual has a norm in its objective; pass another kind of problem, or take "
    "cvxpy:CLARABEL, cvxpy:SCS or slsqp"
)


class Program(NamedTuple):
    """min ½ xᵀGx over x >= lower, perhaps of sum 1; with a radius min linear·x + radius √(xᵀGx)."""

    gramian: Array  # G
    lower: Array
    simplex: bool
    linear: Array
    radius: float | None = None


@constructor
def outside(name: str, *, normalized: bool = False) -> Solver:
    """A solver of another library, judged as it is: its defaults, nothing scaled or cleaned up.

    It is given the program on the Gramian as `docs/solvers.md` states it, in float64. SciPy's nnls
    gets a factor R of G = RᵀR and is asked for min ‖Rx‖² + (Σx - 1)², whose x over its sum is the
    answer of min_norm. CAGrad's dual is taken by slsqp and by cvxpy's solvers of second-order cones.
    One problem after the other, without derivatives.

    Args:
        name: `"slsqp"` or `"nnls"` of SciPy, a name of `qpsolvers.available_solvers`, or
            `"cvxpy:NAME"` of `cvxpy.installed_solvers()`.
        normalized: divide G by its largest diagonal entry first, which changes no answer.

    Returns:
        a solver. It raises ValueError with the library's status where that is not success,
        TypeError for a kind of problem that the library cannot take, and RuntimeError in a
        transform of `torch.func`; `steps` is 0.

    Raises:
        ValueError: for an unknown name, or one that is not installed: lists those that are.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> outside("slsqp")(min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))).weights
        tensor([0.7500, 0.2500])
    """
    known = installed()
    if name not in known:
        cure = 'python -m pip install "mtlfunc[solvers]" for more'
        raise ValueError(f"name: {name!r} is not among {', '.join(known)}; {cure}")
    library, _, called = name.rpartition(":")
    own: dict[str, Callable[[Program], Any]] = {"slsqp": _slsqp, "nnls": _nnls}
    answer = own.get(name) or partial(_cvxpy if library else _qpsolvers, called)

    def solve(problem: Problem) -> Solution:
        check_problem(problem)
        if inside_transform():
            raise RuntimeError(f"{name} answers one problem at a time: call it outside torch.func")
        dtype, wide = problem.gramian.dtype, [x.detach().cpu().double() for x in problem]
        largest = wide[0].diagonal().amax()
        if normalized and largest > 0:
            wide[0] = wide[0] / largest
        given: Any = type(problem)(*wide)
        program = stated(given)
        if program.radius is not None and not (library or name == "slsqp"):
            raise TypeError(f"{name}: {SECOND_ORDER}")
        try:
            with quiet(), np.errstate(all="ignore"):
                found = torch.from_numpy(np.array(answer(program), dtype=np.float64))
        except NotImplementedError as error:
            raise TypeError(f"{name}: {error}") from error
        except Exception as error:  # whatever a library may raise
            raise ValueError(f"{name} refuses: {describe_error(error)}") from error
        dual = found - given.weights if isinstance(given, DualCone) else found
        weights = given.recover(found) if isinstance(given, CAGrad) else found
        moved = (x.to(problem.gramian.device, dtype) for x in (weights, dual))
        return problem.solution(*moved)

    return solve


@cache
def installed() -> list[str]:
    """The names that `outside` takes here."""
    found = ["slsqp", "nnls"] if find_spec("scipy") else []
    with quiet():
        if find_spec("qpsolvers"):
            import qpsolvers

            found += qpsolvers.available_solvers
        if find_spec("cvxpy"):
            import cvxpy

            found += [f"cvxpy:{name}" for name in cvxpy.installed_solvers()]
    return found


def stated(problem: Any) -> Program:
    """A problem of float64 tensors as arrays."""
    gramian, nothing = problem.gramian.numpy(), np.zeros(len(problem.gramian))
    if isinstance(problem, DualCone):
        return Program(gramian, problem.weights.numpy(), False, nothing)
    if isinstance(problem, CAGrad):
        return Program(gramian, nothing, True, problem.linear.numpy(), float(problem.radius))
    return Program(gramian, nothing, True, nothing)


def _qpsolvers(name: str, program: Program) -> Any:
    import qpsolvers

    count = len(program.lower)
    total = {"A": np.ones((1, count)), "b": np.ones(1)} if program.simplex else {}
    posed = qpsolvers.Problem(program.gramian, program.linear, lb=program.lower, **total)
    found = qpsolvers.solve_problem(posed, solver=name)
    if not found.found:
        status = found.extras.get("status") or getattr(found.extras.get("info"), "status", None)
        raise ArithmeticError(f"status {status or 'not found'}")
    return found.x


def _cvxpy(name: str, program: Program) -> Any:
    import cvxpy

    x = cvxpy.Variable(len(program.lower))
    value: Any = cvxpy.quad_form(x, program.gramian, assume_PSD=True) / 2
    if program.radius is not None:
        value = program.linear @ x + program.radius * cvxpy.norm(_root(program.gramian) @ x)
    posed = cvxpy.Problem(
        cvxpy.Minimize(value), [x >= program.lower] + [cvxpy.sum(x) == 1] * program.simplex
    )
    try:
        posed.get_problem_data(name)
    except cvxpy.error.SolverError as error:
        said = SECOND_ORDER if program.radius is not None else "it takes no quadratic programs"
        raise NotImplementedError(said) from error
    posed.solve(solver=name)
    if posed.status != cvxpy.OPTIMAL:
        raise ArithmeticError(f"status {posed.status}")
    return x.value


def _slsqp(program: Program) -> Any:
    from scipy.optimize import minimize

    def objective(x: Array) -> tuple[float, Array]:
        rates = program.gramian @ x
        if program.radius is None:
            return 0.5 * x @ rates, rates
        length = np.sqrt(max(x @ rates, 0.0))
        slope = program.radius * rates / (length or 1.0)
        return program.linear @ x + program.radius * length, program.linear + slope

    total = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}
    start = np.full_like(program.lower, 1 / len(program.lower))
    found = minimize(
        objective,
        start if program.simplex else program.lower,
        jac=True,
        method="SLSQP",
        bounds=[(least, None) for least in program.lower],
        constraints=[total] * program.simplex,
    )
    if not found.success:
        raise ArithmeticError(f"status {found.message}")
    return found.x


def _nnls(program: Program) -> Any:
    from scipy.optimize import nnls

    factor = _root(program.gramian)
    if not program.simplex:
        return program.lower + nnls(factor, -factor @ program.lower)[0]
    found = nnls(np.vstack([factor, np.ones(len(factor))]), np.append(0 * program.lower, 1.0))[0]
    return found / found.sum()
