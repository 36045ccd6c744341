"""The reference: cvxpy with Clarabel, a conic interior-point solver, called as the fast ones."""

import warnings
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.extras import expect_installed
from ..core.operators import define, flatten_batch, leading_shape
from ..solvers import CAGrad, DualCone, MinNorm
from ..solvers.face_solve import cagrad_face, carry_derivatives, dual_cone_face, min_norm_face
from ..solvers.problems import Answer, Problem, kernel_inputs, resolution, solver
from ..types import Solver, constructor

Array = np.ndarray[Any, np.dtype[np.float64]]


@constructor
def cvx() -> Solver:
    """Clarabel at tolerance 1e-12 through cvxpy; takes all three problems, any T.

    Slow (milliseconds a problem, one after the other) and independent of the rest of this package:
    the answer to test the others against. Composes with vmap (a loop over the batch) and with grad,
    jvp and their nestings: derivatives come from the closed form on the answer's support, as they
    do for the exact solvers. Certified errors are below 1e-6 at every scale of the gradients
    (5e-6 where their lengths differ by 1e12).

    Returns:
        `steps` is 0: Clarabel's own count is not a number of ours.

    Raises:
        RuntimeError: when Clarabel finds no solution, and under `torch.compile`.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> cvx()(min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))).weights
        tensor([0.7500, 0.2500])
    """

    expect_installed("cvxpy", "clarabel", what="mtlfunc.solvers.cvx")

    def solve(problem: Problem, eps: float) -> Answer:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "cvx cannot run inside torch.compile; use faces (T <= 6), frank_wolfe or "
                "projected_gradient there"
            )
        weights, w = _solved(problem, eps)
        if isinstance(problem, DualCone):
            support = _active_support(w, problem.linear + problem.gramian @ w, problem)
            u = carry_derivatives(w, dual_cone_face(problem, support, eps))
            return problem.weights + u, u, 0
        rates = problem.gradient(w)
        support = _active_support(w, rates - w @ rates, problem)
        if isinstance(problem, MinNorm):
            w = carry_derivatives(w, min_norm_face(problem, support))
            return w, w, 0
        dual = carry_derivatives(w, cagrad_face(problem, support)[0])
        return carry_derivatives(weights, problem.recover(dual)), dual, 0

    return solver(solve)


_RANKS = (2, 1, 0)  # of gramian, vector, c


def _solved(problem: Problem, eps: float) -> tuple[Tensor, Tensor]:
    """What Clarabel gives, which no derivative sees: CAGrad's weights, and every problem's dual."""
    return _cvx(*(None if x is None else x.detach() for x in kernel_inputs(problem)), eps)


def _one_by_one(
    gramian: Tensor, vector: Tensor | None, c: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    inputs = list(zip((gramian, vector, c), _RANKS, strict=True))
    lead = leading_shape(inputs)
    wide = ((x.to("cpu", torch.float64), rank) for x, rank in inputs if x is not None)
    flat = (flatten_batch(x, lead, rank) for x, rank in wide)
    arrays = [x.expand(lead.numel(), *x.shape[1:]).numpy() for x in flat]
    solve = (
        _min_norm if vector is None else partial(_cagrad if c is not None else _dual_cone, eps=eps)
    )
    found = zip(*(solve(*each) for each in zip(*arrays, strict=True)), strict=True)
    weights, dual = (torch.from_numpy(np.stack(x)).to(gramian.device) for x in found)
    return weights.reshape(*lead, -1), dual.reshape(*lead, -1)


_cvx = define(
    "cvx(Tensor gramian, Tensor? vector, Tensor? c, float eps) -> (Tensor, Tensor)",
    _one_by_one,
    _RANKS,
)


def _active_support(weight: Tensor, multiplier: Tensor, problem: Problem) -> Tensor:
    """Where the weight is larger than the multiplier, as shares of Σ w_t‖g_t‖ and of a direction's
    length. Where no task conflicts, all multipliers of the dual cone are rounding.
    """
    n = problem.gramian.diagonal().detach().clamp_min(0).sqrt()
    weight, price = weight.detach() * n, multiplier.detach() / n.where(n > 0, 1.0)
    total = length = weight.abs().sum()
    if isinstance(problem, CAGrad):
        length = n @ problem.preference.detach()
    elif isinstance(problem, DualCone):
        total = length = total + problem.weights.detach().abs() @ n
    return (weight * length > price * total) & (weight > 0)


def _units(gramian: Array) -> Array:
    """Lengths of the gradients; of a zero one the shortest other's, or 1."""
    n = np.sqrt(gramian.diagonal().clip(0))
    return np.where(n > 0, n, n[n > 0].min() if n.any() else 1.0)


def _root(gramian: Array, ridge: float = 0.0) -> Array:
    """R with RᵀR = G + ridge·diag(G), accurate row by row however the norms are spread."""
    unit = _units(gramian)
    values, vectors = np.linalg.eigh(gramian / np.outer(unit, unit))
    lengths = np.sqrt(gramian.diagonal().clip(0))
    return np.sqrt(values.clip(0) + ridge)[:, None] * vectors.T * lengths


def _twice(x: Array) -> tuple[Array, Array]:
    """Weights that are the dual weights."""
    return x, x


# Clarabel's tolerances are absolute. So each gradient is divided by its length n, and the unknowns
# are v = w n / min(n): the shortest has price 1, and no answer is longer.


def _min_norm(gramian: Array) -> tuple[Array, Array]:
    if not np.isfinite(gramian).all():
        return _twice(np.full(len(gramian), np.nan))
    unit = _units(gramian)
    price = unit.min() / unit
    v = _run("min_norm", R=_root(gramian) / unit, a=price)
    return _twice(price * v / (price @ v))


def _cagrad(gramian: Array, preference: Array, c: float, eps: float) -> tuple[Array, Array]:
    if not all(np.isfinite(x).all() for x in (gramian, c, preference)):
        return _twice(np.full(len(gramian), np.nan))
    factor, unit = _root(gramian), _units(gramian)
    linear, price = factor.T @ (factor @ preference), unit.min() / unit
    centre = np.sqrt(max(preference @ linear, 0.0))
    radius = c * centre
    if radius == 0:
        w = np.zeros(len(gramian))
        w[linear.argmin()] = 1
        return preference, w
    scaled = {"R": c * factor / unit, "b": linear / unit / centre, "a": price}
    v = _run("cagrad", **scaled)
    w = price * v / (price @ v)
    length = np.linalg.norm(factor @ w)
    recovered = preference + radius / (length or 1.0) * w
    resolved = resolution(len(gramian), eps)
    if length**2 <= resolved * (unit @ w) ** 2:
        # Near Pareto stationarity d cannot be read off w. Where the ball holds the projection on
        # the dual cone, that is the answer.
        push, _ = _dual_cone(gramian, preference, eps)
        if np.linalg.norm(factor @ push) <= (1 + resolved) * radius:
            return preference + push, w
    # The dual is flat at w: 1e-12 of it is 1e-6 of a direction. So ask for d - g₀ too, which is
    # bounded as its coefficients are not (those lost in rounding have none): the better one counts.
    move = _run("cagrad directly", **scaled)
    noise = np.sqrt(8 * len(gramian) * np.finfo(np.float64).eps)
    move /= max(np.linalg.norm(move), 1.0)  # into the ball, which holds it to the solver's accuracy
    direct = preference + radius * np.linalg.lstsq(factor / unit, move, rcond=noise)[0] / unit
    return max(recovered, direct, key=lambda weights: float((gramian @ weights).min())), w


def _dual_cone(gramian: Array, weights: Array, eps: float) -> tuple[Array, Array]:
    if not all(np.isfinite(x).all() for x in (gramian, weights)):
        return _twice(np.full(len(gramian), np.nan))
    unit = _units(gramian)
    linear = gramian @ weights
    if not linear.any():  # no rate is negative
        return _twice(np.zeros(len(gramian)))
    scale = unit @ np.abs(weights)  # homogeneous in w and in each row of J
    # By the factor, not the Gramian: rounding outside its range would make the program unbounded.
    # With the ridge its unknowns are also bounded.
    factor = _root(gramian, resolution(len(gramian), eps)) / unit
    y = _run("dual_cone", R=factor, b=linear / unit / scale)
    return _twice(y * scale / unit)


@cache
def _program(kind: str, count: int) -> tuple[Any, Any]:
    """A cvxpy problem and its answer; R is the factor, b the linear part, a the prices."""
    import cvxpy as cp

    factor = cp.Parameter((count, count), name="R")
    linear, price = cp.Parameter(count, name="b"), cp.Parameter(count, name="a")
    if kind == "cagrad directly":
        move, worst = cp.Variable(count), cp.Variable()
        rates = linear + factor.T @ move
        return cp.Problem(cp.Maximize(worst), [rates >= price * worst, cp.norm(move) <= 1]), move
    v = cp.Variable(count, nonneg=True)
    if kind == "dual_cone":
        return cp.Problem(cp.Minimize(0.5 * cp.sum_squares(factor @ v) + linear @ v)), v
    direction = factor @ v
    value = linear @ v + cp.norm(direction) if kind == "cagrad" else cp.sum_squares(direction)
    return cp.Problem(cp.Minimize(value), [cp.Zero(price @ v - 1)]), v


def _run(kind: str, **values: Array) -> Array:
    import cvxpy as cp

    program, variable = _program(kind, len(values["R"]))
    for name, parameter in program.param_dict.items():
        parameter.value = values[name]
    # Clarabel sometimes stalls just short of 1e-12 and calls it a failure; a looser target then
    # gives the same point.
    for tolerance in (1e-12, 1e-10, 1e-8):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
                ends = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
                program.solve(solver=cp.CLARABEL, warm_start=False, **ends)
            break
        except cp.SolverError as error:
            if tolerance == 1e-8:
                raise RuntimeError(f"cvx: Clarabel failed ({error})") from error
    # "inaccurate" misses the tolerance, not more than the gap of the answer tells; everything else
    # is not an answer.
    if program.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE) or variable.value is None:
        raise RuntimeError(f"cvx: Clarabel stopped with status {program.status!r}")
    value = np.asarray(variable.value, dtype=np.float64)
    return value.clip(0) if variable.is_nonneg() else value
