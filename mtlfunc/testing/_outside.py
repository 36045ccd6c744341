"""Solvers of other libraries behind one call, with their answers as they are."""

from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..core.transforms import inside_transform
from ..solvers.problems import CAGrad, DualCone, Problem, check_problem
from ..types import Solution, Solver, constructor
from .judge import describe_error, quiet
from .reference import Array, _root


@constructor
def outside(name: str, *, normalized: bool = False) -> Solver:
    """A solver of another library with its defaults; nothing is scaled or cleaned up.

    It gets the program on the Gramian in float64: min ½ wᵀG w on the simplex, ½ vᵀG v over v >= w,
    or CAGrad's dual, which slsqp and cvxpy's solvers of second-order cones take. SciPy's nnls gets
    a factor R of G = RᵀR, for min_norm min ‖Rx‖² + (Σx - 1)², and x over its sum is the answer.

    Args:
        name: `"slsqp"` or `"nnls"` of SciPy, one of `qpsolvers.available_solvers`, or
            `"cvxpy:NAME"` with one of `cvxpy.installed_solvers()`.
        normalized: divide G by its largest diagonal entry first, which changes no exact answer.

    Returns:
        a solver for one problem at a time, without derivatives; `steps` is 0. It raises ValueError
        with the library's status where that is not success, TypeError for a kind of problem that
        the library cannot take, and RuntimeError under a transform of `torch.func`.

    Raises:
        ValueError: for a name that is unknown or not installed; lists those that are.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> outside("nnls")(min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))).weights
        tensor([0.7500, 0.2500])
    """
    if name not in installed():
        raise ValueError(f"name: {name!r} is not among {', '.join(installed())}; {CURE}")
    library, _, called = name.rpartition(":")
    own: dict[str, Any] = {"slsqp": _slsqp, "nnls": _nnls}
    run = own.get(name) or partial(_cvxpy if library else _qpsolvers, called)

    def solve(problem: Problem) -> Solution:
        check_problem(problem)
        if inside_transform():
            raise RuntimeError(f"{name} takes one problem at a time: loop outside of torch.func")
        given: Any = type(problem)(*(x.detach().to("cpu", torch.float64) for x in problem))
        size = float(given.gramian.diagonal().amax())
        if normalized and size > 0:
            given = given._replace(gramian=given.gramian / size)
        norm = None
        if isinstance(problem, CAGrad):
            norm = given.linear.numpy(), float(given.radius)
            if run is not _slsqp and not library:
                raise TypeError(f"{name}: {CONIC}")
        lower = given.weights.numpy() if isinstance(problem, DualCone) else None
        try:
            with quiet(), np.errstate(all="ignore"):
                found = torch.from_numpy(1.0 * run(given.gramian.numpy(), lower, norm))
        except NotImplementedError as error:
            raise TypeError(f"{name}: {error}") from error
        except Exception as error:  # whatever a library may raise
            raise ValueError(f"{name} refuses: {describe_error(error)}") from error
        weights = given.recover(found) if norm else found
        dual = found if lower is None else found - given.weights
        return problem.solution(*(x.to(problem.gramian) for x in (weights, dual)))

    return solve


CURE = 'python -m pip install "mtlfunc[solvers]" for more'
CONIC = "CAGrad's dual has a norm in it, which slsqp, cvxpy:CLARABEL and cvxpy:SCS can take"


@cache
def installed() -> list[str]:
    """The names that `outside` takes here."""
    found = ["slsqp", "nnls"]
    with quiet():
        import cvxpy

        if find_spec("qpsolvers"):
            import qpsolvers

            found += qpsolvers.available_solvers
    return [*found, *(f"cvxpy:{name}" for name in cvxpy.installed_solvers())]


# Each gets G, the lower bounds or None for the simplex, and CAGrad's linear part and radius.


def _qpsolvers(name: str, gramian: Array, lower: Array | None, _: Any) -> Any:
    import qpsolvers

    nothing = np.zeros(len(gramian))
    total = {"A": np.ones((1, len(gramian))), "b": np.ones(1)} if lower is None else {}
    bound = nothing if lower is None else lower
    posed = qpsolvers.Problem(gramian, nothing, lb=bound, **total)
    found = qpsolvers.solve_problem(posed, solver=name)
    if not found.found:
        info = found.extras.get("info", found.extras)
        said = info.get("status") if isinstance(info, dict) else getattr(info, "status", None)
        raise ArithmeticError(f"status {said or 'not found'}")
    return found.x


def _cvxpy(name: str, gramian: Array, lower: Array | None, norm: Any) -> Any:
    import cvxpy

    x = cvxpy.Variable(len(gramian))
    value: Any = cvxpy.quad_form(x, gramian, assume_PSD=True) / 2
    if norm:
        value = norm[0] @ x + norm[1] * cvxpy.norm(_root(gramian) @ x)
    limits: Any = [x >= 0, cvxpy.sum(x) == 1] if lower is None else [x >= lower]
    posed = cvxpy.Problem(cvxpy.Minimize(value), limits)
    try:
        posed.get_problem_data(name)
    except cvxpy.SolverError as error:
        raise NotImplementedError(CONIC if norm else "no quadratic programs") from error
    posed.solve(solver=name)
    if posed.status != cvxpy.OPTIMAL:
        raise ArithmeticError(f"status {posed.status}")
    return x.value


def _slsqp(gramian: Array, lower: Array | None, norm: Any) -> Any:
    from scipy.optimize import minimize

    def objective(x: Array) -> Any:
        rates = gramian @ x
        if not norm:
            return 0.5 * x @ rates, rates
        length = np.sqrt(max(x @ rates, 0.0))
        return norm[0] @ x + norm[1] * length, norm[0] + norm[1] * rates / (length or 1.0)

    total = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}
    start = np.full(len(gramian), 1 / len(gramian)) if lower is None else lower
    ends: Any = {"bounds": [(x, None) for x in (0 * start if lower is None else lower)]}
    ends["constraints"] = [total] * (lower is None)
    found = minimize(objective, start, jac=True, method="SLSQP", **ends)
    if not found.success:
        raise ArithmeticError(f"status {found.message}")
    return found.x


def _nnls(gramian: Array, lower: Array | None, _: Any) -> Any:
    from scipy.optimize import nnls

    factor = _root(gramian)
    if lower is not None:
        return lower + nnls(factor, -factor @ lower)[0]
    found = nnls(np.vstack([factor, np.ones(len(factor))]), np.eye(len(factor) + 1)[-1])[0]
    return found / found.sum()
