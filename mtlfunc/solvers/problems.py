"""The three small problems behind the rules, on the Gramian G = J Jᵀ of T gradients g_t.

- `min_norm`: min over the simplex of ½ wᵀG w (MGDA; the shortest convex combination).
- `cagrad`: max over ‖d - g₀‖ <= c‖g₀‖ of min_t g_t·d, g₀ = Jᵀp (its dual is over the simplex).
- `dual_cone`: min over v >= w of ½ vᵀG v (DualProj, UPGrad; Jᵀw projected on {d: J d >= 0}).

Each knows its objective and turns an answer into a `Solution`, whose gap is of that answer alone.

What a Gramian can say
----------------------
The entries of G carry rounding of ε‖g_s‖‖g_t‖, ε the machine epsilon of its dtype, and with them
every matrix nearby is as good a Gramian. The cone {d: J d >= 0} can be very thin: where a gradient
nearly lies in the span of others, say g₂ = -g₁ + η (an ordinary situation: gradients in float32 at
a weakly Pareto-stationary point), the constraint g₂·d >= 0 on top of g₁·d >= 0 is one on η·d, and
‖η‖² is a *pivot*, the squared sine of the angle of a gradient with the span of those before it, of
size ε. Its relative error is ε/‖η‖²: G resolves openings of the cone down to √ε, not to ε, and
below that the weights v, about η·d/‖η‖², have no correct digit, be they 1e7 or 1e10.

So what is solved for the dual cone is the problem of G + δ diag(G), δ = `resolution(T, ε)` = 4Tε +
2⁻⁴⁰ (9.1e-13 in float64; 2⁻⁴⁰ is 4096 of its machine epsilons: the least pivot on which the
solver's own arithmetic keeps three digits), followed by one more step of the proximal-point method,
min ½ uᵀG u + (G w)ᵀu + ½δ‖u - u₁‖² in units of ‖g_t‖, which takes the effect out again wherever G
resolves the answer: there it is exact to rounding. Where it does not:

- The weights are bounded, Σ v_t‖g_t‖ <~ ‖g₀‖/√δ; the small ones that explain G.
- No rate is below -δ‖g_t‖ Σ v_s‖g_s‖, hence none below about -√δ‖g_t‖‖g₀‖.
- It is optimal for a G' with |G' - G| <= 3κ‖g_s‖‖g_t‖, κ < δ the `backward` error of `certify`.

There is a trade: a rate of -h‖g_t‖ that is to be explained by a change of G of size κ takes weights
of h/κ. With rows rounded to float32, h is some 1e-8: weights of 1e2 to 1e5 go with κ = 1e-12.
(Weights of order 1 would need κ = 1e-8, and would not resolve a distance of 1e-6.)

CAGrad's answer at a Pareto-stationary point is the projection on the dual cone, if the ball holds
it; stationary is where ‖g_w‖² <= δ(Σ w_t‖g_t‖)² for the shortest g_w. All exact solvers
(`active_set` on both devices, `faces`, the closed form for two tasks, `cvx`) use this δ, and so
agree on d as far as their certificates say. `projected_gradient` needs none: it starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.checks import (
    check_gramian,
    check_scalar,
    check_vector,
    normalized_preference,
    poison,
)
from ..core.transforms import has_finite_sum, values_readable
from ..core.tree import root
from ..types import Scalar, Solution, Solver


class MinNorm(NamedTuple):
    """min ½ wᵀG w over the simplex."""

    gramian: Float[Tensor, "task task"]

    def objective(self, w: Tensor) -> Tensor:
        return 0.5 * w @ self.gramian @ w

    def gradient(self, w: Tensor) -> Tensor:
        return self.gramian @ w

    def best_step(self, w: Tensor, direction: Tensor) -> Tensor:
        """The unconstrained best step from w along `direction`; infinite where there is none."""
        slope, curvature = direction @ self.gramian @ w, direction @ self.gramian @ direction
        straight = torch.where(slope < 0, torch.inf, 0.0)
        return torch.where(curvature > 0, -slope / or_one(curvature), straight)

    def solution(self, weights: Tensor, dual: Tensor, steps: Tensor | int = 0) -> Solution:
        """weights = dual = w; gap = wᵀG w - min(G w), a bound of ½ wᵀG w - optimum, ‖Jᵀw - d*‖²."""
        rates = self.gramian @ weights
        square = weights @ rates
        gap = (square - rates.amin()).clamp_min(0)
        return Solution(weights, dual, rates, 0.5 * square, gap, _count(steps, self))


class CAGrad(NamedTuple):
    """max min_t g_t·d, ‖d - g₀‖ <= c‖g₀‖; dual: min F(w) = g_w·g₀ + c‖g₀‖‖g_w‖ in the simplex."""

    gramian: Float[Tensor, "task task"]
    c: Float[Tensor, ""]
    preference: Float[Tensor, " task"]

    @property
    def linear(self) -> Tensor:
        """b = J g₀."""
        return self.gramian @ self.preference

    @property
    def radius(self) -> Tensor:
        """r = c‖g₀‖."""
        return (self.c * root(self.preference @ self.linear)).to(self.gramian.dtype)

    def objective(self, w: Tensor) -> Tensor:
        return self.linear @ w + self.radius * root(w @ self.gramian @ w)

    def gradient(self, w: Tensor) -> Tensor:
        """Also the rates of the direction that w recovers."""
        gw = self.gramian @ w
        return self.linear + self.radius * gw / or_one(root(w @ gw))

    def best_step(self, w: Tensor, direction: Tensor) -> Tensor:
        gd = self.gramian @ direction
        slope, q2, q1, q0 = self.linear @ direction, direction @ gd, w @ gd, w @ self.gramian @ w
        phi, centre = self.radius**2, -q1 / or_one(q2)
        height = (q0 - q1**2 / or_one(q2)).clamp_min(0)
        inside = phi * q2 > slope**2
        bend = or_one(root((q2 * (phi * q2 - slope**2)).where(inside, 1.0)))
        step = centre - slope * root(height) / bend
        return torch.where(inside & (q2 > 0), step, torch.where(slope < 0, torch.inf, 0.0))

    def recover(self, w: Tensor, pull: Tensor | float = 0.0) -> Tensor:
        """Coefficients of d = g₀ + (r/‖g_w‖) g_w; of g₀ where g_w = 0.

        ‖g_w‖² counts with its rounding, ε(Σ w_t‖g_t‖)², so that d does not leave the ball by it. A
        face's minimiser has a `pull` > 0, r/‖g_w‖ as it was made with: near Pareto stationarity
        another rounding of that number would leave some of g₀ that the face cancels.
        """
        square, length = w @ self.gramian @ w, root(self.gramian.diagonal()) @ w
        own = root(square + torch.finfo(w.dtype).eps * length**2)
        pull = torch.as_tensor(pull, dtype=w.dtype, device=w.device)
        free = torch.where(square > 0, self.radius / or_one(own), 0.0)
        return self.preference + torch.where(pull > 0, pull, free) * w

    def solution(self, weights: Tensor, dual: Tensor, steps: Tensor | int = 0) -> Solution:
        """gap = F(dual) - min(G weights): both sides are feasible, so in exact arithmetic it bounds
        the loss of the worst task's rate. In that of floats it is off where ‖g₀‖ or ‖g_w‖ is: by
        up to ‖g_t‖‖g₀‖ times the `resolution` of `certify`, near stationarity far above rounding.
        """
        rates, value = self.gramian @ weights, self.objective(dual)
        gap = (value - rates.amin()).clamp_min(0)
        return Solution(weights, dual, rates, value, gap, _count(steps, self))


class DualCone(NamedTuple):
    """min ½ vᵀG v over v >= w; with v = w + u: min ½ uᵀG u + (G w)ᵀu over u >= 0."""

    gramian: Float[Tensor, "task task"]
    weights: Float[Tensor, " task"]

    @property
    def linear(self) -> Tensor:
        return self.gramian @ self.weights

    def objective(self, u: Tensor) -> Tensor:
        v = self.weights + u
        return 0.5 * v @ self.gramian @ v

    def solution(self, weights: Tensor, dual: Tensor, steps: Tensor | int = 0) -> Solution:
        """weights = v, dual = u = v - w; gap = uᵀ|G v| + Σ (-G v)₊·(lengths·|v|)/lengths: zero only
        at the optimum.

        It bounds the suboptimality where no rate is negative; a negative rate is charged at the
        scale of v, which does not prove anything.
        """
        rates = self.gramian @ weights
        lengths = root(self.gramian.diagonal())
        charge = lengths @ weights.abs() / or_one(lengths)
        gap = dual @ rates.abs() + ((-rates).clamp_min(0) * charge).sum()
        return Solution(weights, dual, rates, 0.5 * weights @ rates, gap, _count(steps, self))


Problem = MinNorm | CAGrad | DualCone
PROBLEMS = MinNorm, CAGrad, DualCone


def kernel_inputs(problem: Problem) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gramian, vector and c; None for what a problem lacks."""
    if isinstance(problem, CAGrad):
        return problem.gramian, problem.preference, problem.c
    return problem.gramian, problem.weights if isinstance(problem, DualCone) else None, None


def min_norm(gramian: Float[Tensor, "task task"]) -> MinNorm:
    """The shortest vector in the convex hull of the gradients: min ½ wᵀG w over the simplex.

    Args:
        gramian: G `[task, task]`, positive semidefinite. Asymmetry of up to 1,000 machine epsilons,
            relative to ‖g_s‖‖g_t‖, or 64 of float32, in which it may have been made, is rounding:
            the symmetric part counts. More, as of J₁J₂ᵀ, is refused.

    Returns:
        the problem, for any solver of `mtlfunc.solvers`.

    Raises:
        ValueError: for a matrix that is not square, symmetric and finite.
        TypeError: for an integer one.

    Source:
        Désidéri 2012; Sener & Koltun 2018, eq. 3.

    Examples:
        >>> from mtlfunc.solvers import active_set
        >>> active_set()(min_norm(torch.diag(torch.tensor([1.0, 4.0])))).weights
        tensor([0.8000, 0.2000])
    """
    check_gramian(gramian, symmetric=True)
    return MinNorm(gramian)


def cagrad(
    gramian: Float[Tensor, "task task"],
    c: Scalar,
    *,
    preference: Float[Tensor, " task"] | None = None,
) -> CAGrad:
    """CAGrad's direction: the best worst rate within c‖g₀‖ of g₀ = Jᵀp.

    Args:
        gramian: G `[task, task]`.
        c: radius, >= 0, relative to ‖g₀‖; 0 gives g₀, from 1 on no task's rate is negative.
        preference: p `[task]` >= 0, scaled to sum 1; None is 1/T.

    Returns:
        the problem, for any solver of `mtlfunc.solvers`.

    Raises:
        ValueError: for a bad Gramian (see `min_norm`), c or preference.

    Source:
        Liu et al. 2021, eq. 3; its dual, Algorithm 1.

    Examples:
        >>> from mtlfunc.solvers import active_set
        >>> active_set()(cagrad(torch.eye(2), 0.5)).weights
        tensor([0.7500, 0.7500])
    """
    check_gramian(gramian, symmetric=True)
    check_scalar(c, "c")
    uniform = gramian.new_full(gramian.shape[-1:], 1 / gramian.shape[-1])
    # a number is filled in where the Gramian is, not copied there; half precision would round it
    double = torch.float64
    number = not isinstance(c, Tensor)
    c = gramian.new_full((), float(c), dtype=double) if number else c.to(gramian.device, double)
    c = c.where(c >= 0, float("nan"))
    return CAGrad(gramian, c, normalized_preference(preference, uniform))


def dual_cone(gramian: Float[Tensor, "task task"], weights: Float[Tensor, " task"]) -> DualCone:
    """The projection of Jᵀw on the cone where no task's rate is negative: min ½ vᵀG v over v >= w.

    Args:
        gramian: G `[task, task]`.
        weights: w `[task]`, of any sign.

    Returns:
        the problem, for the solvers that take it.

    Raises:
        ValueError: for a bad Gramian (see `min_norm`) or weights of another shape, dtype or device.

    Source:
        Lopez-Paz & Ranzato 2017, eq. 11 (GEM's dual).

    Examples:
        >>> from mtlfunc.solvers import active_set
        >>> gramian = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
        >>> active_set()(dual_cone(gramian, torch.tensor([1.0, 0.0]))).weights
        tensor([1.0000, 0.5000])
    """
    check_gramian(gramian, symmetric=True)
    check_vector(weights, gramian, "weights")
    return DualCone(gramian, weights)


RESOLUTION = 2.0**-40
"""4096 machine epsilons of float64: a face solved on it is right to three digits."""


def resolution(count: int, eps: float) -> float:
    """δ, the smallest squared sine that a Gramian of `count` tasks with noise `eps` resolves."""
    return 4 * count * eps + RESOLUTION


def precision(count: int, dtype: torch.dtype) -> float:
    """ε of a Gramian of `count` tasks in this dtype.

    Half precision stores sums that were made in float32, so that there each entry is off by one
    rounding, however many tasks there are, and eigenvalues of the cosines by half of its √T.
    """
    eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    return eps if eps <= single else eps / (4 * count**0.5) + single


def rounding(count: int, dtype: torch.dtype) -> float:
    """To this times (Σ w_t‖g_t‖)² a Gramian in this dtype tells wᵀG w: 8Tε, in half precision one
    rounding besides those of float32.
    """
    eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    return 8 * count * min(eps, single) + (eps if eps > single else 0.0)


def noise_level(count: int, dtype: torch.dtype) -> float:
    """`rounding`; NaN where that is most of 1/T, the share of orthogonal gradients of equal
    lengths: such a Gramian does not tell these from gradients that cancel.
    """
    noise = rounding(count, dtype)
    return noise if 2 * count * noise <= 1 else float("nan")


def or_one(x: Tensor) -> Tensor:
    """A divisor: 1 instead of 0."""
    return x.where(x != 0, 1.0)


def own_or_shortest(n: Tensor) -> Tensor:
    """Lengths; of a zero gradient the shortest other's, as one of its own would have a unit."""
    shortest = n.where(n > 0, torch.inf).amin()
    return n.where(n > 0, shortest.where(shortest.isfinite(), 1.0))


Answer = tuple[Tensor, Tensor, Int[Tensor, ""] | int]
"""weights, dual, steps."""


def solver(solve: Callable[[Problem, float], Answer]) -> Solver:
    """Around every solver: float64 inside, a symmetric Gramian with a largest diagonal entry of 1/2
    to 1, the certificate from the answer, NaN for NaN, an error where an indefinite matrix shows.

    `solve` gets the scaled problem and the `precision` of the dtype that the Gramian came in. All
    three problems are homogeneous, so the scale is a constant for derivatives.
    """

    def solve_certified(problem: Problem) -> Solution:
        check_problem(problem)
        dtype = problem.gramian.dtype
        wide = type(problem)(*(x.double() for x in problem))
        wide = wide._replace(gramian=0.5 * (wide.gramian + wide.gramian.mT))
        count = len(wide.gramian)
        eps = precision(count, dtype)
        if values_readable(wide.gramian) and has_finite_sum(wide.gramian):
            check_definite(problem.gramian, -1e3 * count * eps)  # as the kernels do
        largest = wide.gramian.diagonal().detach().amax()
        scale = largest / torch.frexp(largest).mantissa  # a power of two, by which nothing rounds
        scaled = wide._replace(gramian=wide.gramian / scale.where(largest > 0, 1.0))
        weights, dual, steps = solve(scaled, eps)
        solution = wide.solution(poison(weights, *wide), poison(dual, *wide), steps)
        return Solution._make([*(x.to(dtype) for x in solution[:-1]), solution.steps])

    return solve_certified


def check_definite(gramian: Tensor, least: float) -> None:
    """Raise where the matrix of cosines has an eigenvalue below `least`."""
    wide = gramian.detach().double()
    n = wide.diagonal().abs().sqrt()
    n = n.where(n > 0, 1.0)
    smallest = float(torch.linalg.eigvalsh(wide / n / n[:, None])[0])
    if smallest >= least:
        return
    cure = "accumulate it in float64 if it comes from half precision"
    dtype, noise = torch.finfo(gramian.dtype), 8 * len(gramian) * torch.finfo(torch.float32).eps
    if gramian.diagonal().abs().amax() < dtype.tiny / dtype.eps:
        cure = f"numbers near {dtype.tiny:.0e} have lost their digits: multiply the losses"
    elif gramian.dtype == torch.float64 and -smallest < noise:
        cure = (
            "this is what float32 leaves: pass a Gramian that was made in float32 in that "
            "dtype, or make it in float64, of J.double()"
        )
    raise ValueError(
        f"gramian: indefinite: the matrix of cosines has the eigenvalue {smallest:.3g}; a "
        f"Gramian is J @ J.T with none below 0 ({cure})"
    )


def check_problem(problem: object) -> None:
    if not isinstance(problem, PROBLEMS):
        raise TypeError(
            "problem: expected min_norm(...), cagrad(...) or dual_cone(...) of mtlfunc.solvers, "
            f"got {type(problem).__name__}"
        )


def _count(steps: Tensor | int, problem: Problem) -> Int[Tensor, ""]:
    if isinstance(steps, Tensor):
        return steps
    return torch.full((), steps, dtype=torch.int64, device=problem.gramian.device)
