"""Whether answers prove themselves (`certified_error`), two agree, and claims of a solver hold."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy import random as numpy_random
from torch import Tensor
from torch.func import grad, vmap

from ..core.transforms import enable_grad
from ..solvers import CAGrad, DualCone, MinNorm, active_set, certify
from ..solvers.problems import Problem, check_problem, or_one, own_or_shortest, root
from ..types import Solution
from .families import FAMILIES, REGULAR, jacobian
from .strategies import VARIANTS, pose

HOW = "return problem.solution(weights, dual, steps), or the weights alone"

AnySolver = Callable[[Any], Any]  # from a problem to a `Solution`, or to weights alone


class Invalid(Exception):
    """What was returned cannot be an answer."""


def quiet() -> warnings.catch_warnings:
    """A context in which warnings of what is tested are ignored."""
    return warnings.catch_warnings(action="ignore")


def attempt(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a function returns; None if it raises."""
    try:
        return function(*args, **options)
    except Exception:  # whatever it may raise, which other tests report
        return None


def describe_error(error: Exception) -> str:
    """An exception in one line of at most 160 letters."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, Invalid):
        return line
    line = line if len(line) <= 160 else line.split(". ")[0][:160]
    return f"raises {type(error).__name__}" + (f": {line}" if line else "")


def weights_of(problem: Problem, answer: Any) -> Float[Tensor, " task"]:
    """The weights of an answer, a `Solution` or a tensor. Raises Invalid if it cannot be one."""
    like = problem.gramian
    if not isinstance(answer, Solution | Tensor):
        got = "None" if answer is None else type(answer).__name__
        expected = f"a Solution or a tensor of weights [{len(like)}]"
        raise Invalid(f"expected {expected}, got {got}; {HOW}")
    weights = answer.weights if isinstance(answer, Solution) else answer
    if not isinstance(weights, Tensor):
        raise Invalid(f"weights: expected a tensor, got {type(weights).__name__}; {HOW}")
    if weights.shape != like.shape[:1]:
        got = list(weights.shape)
        raise Invalid(f"weights: expected shape [{len(like)}], one entry per task, got {got}")
    if weights.dtype != like.dtype:
        text = f"weights are {weights.dtype}, but the Gramian is {like.dtype}".replace("torch.", "")
        raise Invalid(f"{text}; compute in its dtype, or convert the answer")
    if weights.layout != like.layout or weights.device != like.device:
        got = f"{weights.layout} on {weights.device}"
        raise Invalid(f"weights: expected a dense tensor on {like.device}, got {got}")
    return weights


def certified_error(problem: Problem, weights: Float[Tensor, " task"]) -> Float[Tensor, ""]:
    """How far weights can be from optimal, from problem and weights alone, in float64.

    The larger of the worst violation of a constraint and of

    - min_norm: the largest (‖d‖² - ⟨g_t, d⟩) / ‖g_t‖, ε, or the largest possible distance
      min(√gap, ‖d‖) of d from the shortest vector d*, the smaller of both, in units of
      Σ|w_t|‖g_t‖. However the lengths are spread, ‖d - d*‖² <= ε · Σ|w_t|‖g_t‖ · Σ w*_t‖g_t‖;
    - cagrad: the largest (F* - ⟨g_t, d⟩) / ‖g_t‖ in units of the larger of Σ|w_t|‖g_t‖ and
      Σ p_t‖g_t‖, F* the best dual value; by how much more d leaves the ball than the Gramian can
      tell (`resolution` of `certify`) is in units of Σ p_t‖g_t‖;
    - dual_cone: the gap in units of m², m the larger of Σ|v_t|‖g_t‖ and Σ|w_t|‖g_t‖, or the
      `backward` error of `certify` if it is smaller: of a thin cone a Gramian knows no more.

    A gradient of length 0 counts as long as the shortest other.

    Args:
        problem: of `mtlfunc.solvers`.
        weights: `[task]`, in the Gramian's dtype.

    Returns:
        a number >= 0, the same for all gradients times a constant; infinite for weights that are
        not finite, or so large that nothing can be said of them. It can be vmapped.

    Raises:
        TypeError: for anything but a problem.
        ValueError: for weights of another shape or dtype.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> problem = min_norm(torch.diag(torch.tensor([1.0, 4.0])))
        >>> bool(certified_error(problem, torch.tensor([0.8, 0.2])) < 1e-6)
        True
        >>> round(float(certified_error(problem, torch.tensor([0.5, 0.5]))), 3)
        0.5
    """
    check_problem(problem)
    finite = weights.isfinite().all()
    proof = certify(problem, weights.where(finite, 0.0))
    gramian = problem.gramian.double()
    w, n = weights.double(), root(gramian.diagonal())
    infeasible, gap = proof.infeasibility.double(), proof.gap.double()
    if isinstance(problem, MinNorm):
        norm = root(w @ gramian @ w)
        distance = torch.minimum(gap.sqrt(), norm) / or_one(own_or_shortest(n) @ w.abs())
        error = torch.minimum(proof.violation.double(), distance)
    elif isinstance(problem, CAGrad):
        error, p = proof.violation.double(), problem.preference.double()
        centre, size = root(p @ gramian @ p), n @ p
        infeasible = (infeasible - proof.resolution.double()).clamp_min(0)
        infeasible = infeasible * centre.where(centre > 0, size) / or_one(size)
    else:  # v may vanish where w does not: a task without a gradient
        unit = or_one((n @ w.abs()).maximum(n @ problem.weights.double().abs()))
        error = torch.minimum(gap / unit**2, proof.backward.double())
        infeasible = (n * (problem.weights.double() - w)).amax().clamp_min(0) / unit
    worst = torch.maximum(error, infeasible)
    return worst.where(finite & ~worst.isnan(), torch.inf)  # NaN where products overflow


class Verdict(NamedTuple):
    """What came of one call."""

    error: float  # the certified error; infinite without an answer
    wrong: str = ""  # why it is wrong, empty if it is not
    weights: Tensor | None = None
    refused: str = ""  # the ValueError with which it answers nothing, which is not wrong


def judge(solver: AnySolver, problem: Problem, tolerance: float) -> Verdict:
    """Call a solver, and certify what it answers, to no less than its rounding."""
    tolerance = max(tolerance, torch.finfo(problem.gramian.dtype).eps)
    with enable_grad():  # tensors of the inference mode have no version
        given = type(problem)(*(x.clone() for x in problem))
    versions, drawn = [x._version for x in given], global_random()
    try:
        with quiet():
            answer = solver(given)
        weights = weights_of(problem, answer).detach()
    except ValueError as error:
        return Verdict(0.0, refused=describe_error(error))
    except Exception as error:  # whatever a solver may raise
        return Verdict(float("inf"), describe_error(error))
    if global_random() != drawn:
        return Verdict(float("inf"), "it draws from global random numbers: take a key", weights)
    for i, (name, after) in enumerate(zip(problem._fields, given, strict=True)):
        # with the values that it has, or past torch, as by NumPy
        if after._version != versions[i] or not torch.equal(after, problem[i]):
            return Verdict(float("inf"), f"it changes problem.{name} in place", weights)
    if not bool(weights.isfinite().all()):
        return Verdict(float("inf"), "weights are not finite", weights)
    error = float(certified_error(problem, weights))
    if error > tolerance:
        return Verdict(error, explain(problem, weights, error, tolerance), weights)
    if isinstance(answer, Solution) and (untrue := contradiction(problem, answer, tolerance)):
        return Verdict(float("inf"), untrue, weights)
    return Verdict(error, "", weights)


def global_random(seed: int | None = None) -> bytes:
    """The states of torch's and NumPy's global generators, which a `seed` sets first."""
    if seed is not None:
        torch.default_generator.manual_seed(seed)
        numpy_random.seed(seed)  # noqa: NPY002
    states = torch.get_rng_state().numpy(), numpy_random.get_state(legacy=False)  # noqa: NPY002
    return pickle.dumps(states)  # Python's is left out: libraries that check types draw from it


def explain(problem: Problem, weights: Tensor, error: float, tolerance: float) -> str:
    """Why weights are wrong, and for dual weights of CAGrad what to return."""
    # near stationary points a direction is far off where the objective hardly is
    text = f"certified error {error:.1e} of the direction; its objective: "
    text += str(certify(problem, weights))
    on_simplex = (weights.sum() - 1).abs() <= tolerance and weights.amin() > -tolerance
    if isinstance(problem, CAGrad) and on_simplex:
        recovered = problem.recover(weights)
        if float(certified_error(problem, recovered)) < min(error, tolerance):
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
        if not apart <= tolerance * torch.stack(sizes).amax():
            return "dual: expected weights - problem.weights, the multipliers"
    elif not (dual.amin() >= -tolerance and (dual.sum() - 1).abs() <= tolerance):  # or NaN
        return f"dual: expected weights on the simplex, got {dual.tolist()}"
    elif isinstance(problem, MinNorm) and n @ (dual - weights).abs() > tolerance * sizes[0]:
        return f"dual: expected the weights again, got {dual.tolist()}"
    size = torch.stack(sizes).amax()
    unit = size**2 if isinstance(problem, DualCone) else n.amax() * size
    true = problem.solution(weights, dual)
    for name, at in (("rates", n.amax() * size), ("value", unit), ("gap", unit)):
        claimed, exact = getattr(solution, name), getattr(true, name)
        if not isinstance(claimed, Tensor) or claimed.shape != exact.shape:
            return f"{name}: expected a tensor of shape {list(exact.shape)}; {HOW}"
        off = exact - claimed if name == "gap" else (exact - claimed).abs()
        if not bool((off <= tolerance * at).all()):  # NaN is wrong, too
            text = f"{name}: the Solution says {claimed.tolist()}, but its weights and dual give "
            return f"{text}{exact.tolist()}; make it by problem.solution(weights, dual, steps)"
    steps = solution.steps
    if not isinstance(steps, Tensor) or steps.ndim or steps.is_floating_point():
        return f"steps: expected a 0-d tensor of integers, got {steps!r:.40}; {HOW}"
    return ""


def assert_agree(one: Any, other: Any, problem: Problem, tolerance: float = 1e-6) -> None:
    """Raise AssertionError unless both answers to a problem are certified.

    Weights are not compared: where several weights give the optimal direction, two right solvers
    may differ in them. An answer whose certificate is within the tolerance is as near to the
    optimum as the certificate says, and so to the other one.

    Args:
        one: a solver, or its answer: a `Solution` or weights `[task]`.
        other: likewise.
        problem: of `mtlfunc.solvers`.
        tolerance: the largest error (see `certified_error`), at least the dtype's epsilon.

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
    failed = {name: verdict.wrong or verdict.refused for name, verdict in found.items()}
    wrong = [f"{name}: {text}" for name, text in failed.items() if text]
    if not wrong:
        return
    weights = [verdict.weights for verdict in found.values()]
    if weights[0] is not None and weights[1] is not None:
        apart = (weights[0] - weights[1]).double()
        gramian = problem.gramian.double()
        distance = root(apart @ gramian @ apart) / or_one(root(gramian.diagonal().amax()))
        text = f"the directions are {float(distance):.1e} of the longest gradient apart"
        wrong.append(f"{text}, the weights {float(apart.abs().amax()):.1e}")
    raise AssertionError(f"on {type(problem).__name__}: " + "\n".join(wrong))


# of the central differences: their error is its square, and rounding over it, 1e-10 each
STEP = 1e-5
SLACK = 1e-3  # between a derivative and a difference quotient, relative


def check_vmap(solver: AnySolver, kind: str, tolerance: float, counts: Sequence[int]) -> str:
    """A vmap over four problems gives four certified answers, also nested; empty if so."""

    def solve(kind: Callable[..., Problem], *fields: Tensor) -> Tensor:
        problem = kind(*fields)
        return weights_of(problem, solver(problem))

    for count, family in itertools.product(counts, FAMILIES):
        variants = [(count + i) % VARIANTS[kind] for i in range(4)]
        batch = [pose(kind, jacobian(family, count, i), x) for i, x in enumerate(variants)]
        f = partial(solve, type(batch[0]))
        for how, problems, mapped in _batches(batch, more=family == "gaussian"):
            try:
                with quiet():
                    found = mapped(f)
            except Exception as error:  # whatever a solver may raise
                return f"{kind}: under {how} it {_describe(error)} (at T = {count})"
            for i, (problem, weights) in enumerate(zip(problems, found, strict=True)):
                error = float(certified_error(problem, weights))
                if not error <= tolerance:
                    seed = i if torch.equal(problem.gramian, batch[i].gramian) else 0
                    what = f"the answer to {called(family, count, seed, problem)}"
                    what += f" has a certified error of {error:.1e}"
                    return f"{kind}: under {how}, at T = {count}, {what}"
    return ""


Batched = tuple[str, Sequence[Problem], Callable[[Callable[..., Tensor]], Tensor]]


def _batches(batch: Sequence[Problem], more: bool) -> Iterator[Batched]:
    """Ways to map a function of their fields over problems, in words, and what it then answers."""
    fields = [torch.stack(x) for x in zip(*batch, strict=True)]
    yield "torch.func.vmap", batch, lambda f: vmap(f)(*fields)
    if not more:
        return
    pairs = [x.unflatten(0, (2, 2)) for x in fields]
    yield "nested vmaps", batch, lambda f: vmap(vmap(f))(*pairs).flatten(0, 1)
    ones = [x[:1] for x in fields]
    yield "torch.func.vmap in a batch of one", batch[:1], lambda f: vmap(f)(*ones)
    if len(fields) > 1:
        first = batch[0].gramian
        same = [x._replace(gramian=first) for x in batch]
        dims = (None, *(0 for _ in fields[1:]))
        yield "torch.func.vmap with one Gramian", same, lambda f: vmap(f, dims)(first, *fields[1:])


def called(family: str, count: int, seed: int, problem: Problem) -> str:
    """A problem on a family's Gramian in words."""
    given = [f", {name} {x.tolist()}" for name, x in problem._asdict().items() if name != "gramian"]
    return f'testing.jacobian("{family}", {count}, {seed})' + "".join(given)


def check_grad(solver: AnySolver, kind: str, tolerance: float, counts: Sequence[int]) -> str:
    """First derivatives of the weights are quotients of the exact answer's; empty if so."""
    exact = active_set()
    for family in REGULAR:
        for count in counts:
            for seed in range(4):
                rows = jacobian(family, count, seed)
                line = jacobian("gaussian", count, seed + 100)
                mark = torch.arange(1.0, count + 1).to(rows)
                variant = (count + seed) % VARIANTS[kind]

                def along(t: Tensor, solve: AnySolver, x=rows, y=line, m=mark, v=variant) -> Tensor:
                    problem = _moved(pose(kind, x + t * y, v), t * m)
                    return m @ weights_of(problem, solve(problem))

                places = STEP * torch.arange(-2, 3, dtype=rows.dtype)
                before, behind, at, ahead, beyond = (float(along(t, exact)) for t in places)
                near, far = (ahead - behind) / (2 * STEP), (beyond - before) / (4 * STEP)
                bend, unit = (ahead - 2 * at + behind) / STEP, 1 + abs(near)
                if abs(near - far) > 1e-2 * SLACK * unit or abs(bend) > SLACK * unit:
                    continue
                try:
                    with quiet():
                        slope = float(grad(lambda t, f=along: f(t, solver))(places[2]))
                except Exception as error:  # whatever a solver may raise
                    return f"{kind}: under torch.func.grad it {_describe(error)}"
                if not abs(slope - near) <= SLACK * unit:
                    where = called(family, count, seed, pose(kind, rows, variant))
                    text = f"{kind}: at {where} torch.func.grad gives a slope of {slope:.6g} along"
                    return f"{text} one line, difference quotients of the exact answer {near:.6g}"
    return ""


def _moved(problem: Problem, shares: Tensor) -> Problem:
    """CAGrad's radius and preference, or the cone's weights, each longer by these shares of it."""
    if isinstance(problem, CAGrad):
        p = problem.preference * (1 + shares)
        return problem._replace(c=problem.c * (1 + shares[0]), preference=p / p.sum())
    if isinstance(problem, DualCone):
        return problem._replace(weights=problem.weights * (1 + shares))
    return problem


def _describe(error: Exception) -> str:
    what = "returns what cannot be an answer: " if isinstance(error, Invalid) else ""
    return what + describe_error(error)


CLAIMS = {"vmap": check_vmap, "grad": check_grad}
