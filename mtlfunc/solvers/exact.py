"""Exact for any number of tasks: a kernel finds the face, a closed form carries derivatives."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.operators import define, flatten_batch, leading_shape
from ..core.transforms import is_differentiated, values_readable
from ..types import Solution, Solver, constructor
from .face_solve import cagrad_face, carry_derivatives, dual_cone_face, min_norm_face
from .problems import (
    PROBLEMS,
    Answer,
    DualCone,
    MinNorm,
    Problem,
    check_definite,
    kernel_inputs,
    precision,
    solver,
)

MOST_TASKS = 128
"""The GPU kernel's limit: two matrices of this size fill the registers of a multiprocessor."""

HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None
"""A constant, since a look-up in a step would break the graph of `torch.compile`."""

_RANKS = (2, 1, 0)  # of gramian, vector, c


@constructor
def active_set() -> Solver:
    """Wolfe's algorithm and its relatives: finite, exact to rounding; all three problems, any T.

    min_norm is solved by Wolfe's algorithm, dual_cone by Lawson and Hanson's, cagrad by the same
    loop with the closed-form minimiser of its dual on a face. A task enters by the cosine of its
    violation and all thresholds are multiples of ε·‖g_t‖·Σ w_s‖g_s‖, ε the Gramian's dtype's (who
    enters: float32's at most): no absolute number, so no scale at which the answer changes. At
    Pareto-stationary points, where CAGrad's dual weights say nothing of d, the answer is the
    projection on the dual cone, if the ball holds it. What exact means where the dual cone is
    thinner than the Gramian resolves is said in `mtlfunc.solvers.problems`.

    Returns:
        the exact answer; `steps` counts the faces solved. A compiled kernel (twenty seconds to
        compile once, then cached on disk; see `mtlfunc.warmup`) does the work in float64, in
        parallel over the problems of a `vmap`: nested ones fold into one call, and UPGrad's T
        right-hand sides are a vmap over `weights`. CUDA tensors up to T = 128 are solved where they
        are, where Triton is installed: one launch for a whole batch, no host synchronisation, and
        it may be captured in a CUDA graph after a first call has compiled it; others travel to the
        CPU and back. Both give one direction to rounding, though not one of several weights for it.

    It composes with vmap, grad, jvp, their nestings and torch.compile: where something may
    differentiate, the closed form on the answer's face carries the derivatives, and elsewhere it is
    not computed. They hold under strict complementarity; where the face changes they are one-sided.

    Raises:
        ValueError: for an indefinite matrix where values can be read; elsewhere its answer is NaN.

    Source:
        Wolfe 1976; Lawson & Hanson 1974, ch. 23.

    Examples:
        >>> from mtlfunc.solvers import min_norm
        >>> active_set()(min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))).weights
        tensor([0.8000, 0.2000])
    """
    with_derivatives = solver(_solve_on_face)

    def solve(problem: Problem) -> Solution:
        if not isinstance(problem, PROBLEMS) or is_differentiated(problem):
            return with_derivatives(problem)
        count, dtype = problem.gramian.shape[-1], problem.gramian.dtype
        report, _, info = run(problem, precision(count, dtype))
        weights, dual, rates, rest = report.to(dtype).split_with_sizes([count, count, count, 2], -1)
        value, gap = rest.unbind()  # unpacked by a loop, a tensor takes five times as long
        return Solution(weights, dual, rates, value, gap, info[0])

    return solve


def _solve_on_face(problem: Problem, eps: float) -> Answer:
    """The kernel's answer, with the derivatives of the closed form on its support."""
    count = problem.gramian.shape[-1]
    report, support, info = run(type(problem)(*(x.detach() for x in problem)), eps)
    weights, dual, steps = report[:count], report[count : 2 * count], info[0]
    if isinstance(problem, MinNorm):
        w = carry_derivatives(dual, min_norm_face(problem, support[0]))
        return w, w, steps
    if isinstance(problem, DualCone):
        u = carry_derivatives(dual, dual_cone_face(problem, support[0], eps))
        return problem.weights + u, u, steps
    stationary = info[1] > 0
    # Where a branch is not taken its face is a harmless one, so that its derivatives are finite.
    first = torch.arange(count, device=support.device) == 0
    ordinary, _, pull = cagrad_face(problem, torch.where(stationary, first, support[0]))
    shortest = min_norm_face(MinNorm(problem.gramian), torch.where(stationary, support[0], first))
    push = dual_cone_face(DualCone(problem.gramian, problem.preference), support[1], eps)
    w = carry_derivatives(dual, torch.where(stationary, shortest, ordinary))
    safe = torch.where(stationary, problem.preference, carry_derivatives(dual, ordinary))
    recovered = problem.recover(safe, torch.where(stationary, 0.0, pull))
    recovered = torch.where(stationary, problem.preference + push, recovered)
    return carry_derivatives(weights, recovered), w, steps


def run(problem: Problem, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Report `[3T + 2]`, supports `[2, T]` and info `[2]` (see the kernel), for each vector; raises
    an error for an indefinite matrix, where that can be seen.
    """
    answer = _active_set(*kernel_inputs(problem), eps)
    if values_readable(problem.gramian) and answer[2].flatten().tolist()[1] < 0:
        check_definite(problem.gramian, 0.0)
    return answer


def kernel_at(gramian: Tensor) -> bool:
    """Whether a kernel runs where this Gramian `[..., T, T]` is: always on a CPU; on CUDA up to 128
    tasks, where Triton is installed.
    """
    return gramian.device.type == "cpu" or (
        gramian.is_cuda and gramian.shape[-1] <= MOST_TASKS and HAS_TRITON
    )


def _kernel(
    gramian: Tensor, vector: Tensor | None, c: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (gramian, vector, c)
    single = [x is None or x.ndim == rank for x, rank in zip(inputs, _RANKS, strict=True)]
    if gramian.is_cpu and all(single):  # one problem: views in NumPy cost less than in torch
        found = _on_cpu([None if x is None else _array(x.detach())[None] for x in inputs], eps)
        report, support, info = [torch.from_numpy(x[0]) for x in found]
        return report, support, info
    lead = leading_shape(zip(inputs, _RANKS, strict=True))
    on_gpu = gramian.is_cuda and kernel_at(gramian)
    matrix = flatten_batch(gramian, lead, 2) if on_gpu else _runs(gramian, lead)
    vector = None if vector is None else flatten_batch(vector, lead, 1)
    c = None if c is None else flatten_batch(c, lead, 0)
    if on_gpu:
        from ._kernels.active_set_gpu import solve  # Triton is optional

        found = solve(matrix, vector, c, eps)
    else:
        arrays = [None if x is None else _array(x.cpu()) for x in (matrix, vector, c)]
        found = [torch.from_numpy(x).to(gramian.device) for x in _on_cpu(arrays, eps)]
    report, support, info = (x.reshape(*lead, *x.shape[1:]) for x in found)
    return report, support, info


def _runs(gramian: Tensor, lead: torch.Size) -> Tensor:
    """The Gramians on one batch axis, each once where the problems that share it follow each other,
    as UPGrad's T right-hand sides do under `vmap`.
    """
    while lead.numel() and gramian.ndim > 2 and gramian.shape[-3] == 1:
        gramian, lead = gramian.squeeze(-3), lead[:-1]
    return flatten_batch(gramian, lead, 2)


def _array(x: Tensor) -> np.ndarray:
    return np.asarray(x.double().numpy(), order="C")


def _on_cpu(arrays: list[Any], eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from ._kernels.active_set_batch import solve  # numba: half a second

    return solve(*arrays, eps=eps, threads=torch.get_num_threads())


_active_set = define(
    "active_set(Tensor gramian, Tensor? vector, Tensor? c, float eps) -> (Tensor, Tensor, Tensor)",
    _kernel,
    _RANKS,
    lambda lead, gramian, *_: (
        gramian.new_empty((*lead, 3 * gramian.shape[-1] + 2), dtype=torch.float64),
        gramian.new_empty((*lead, 2, gramian.shape[-1]), dtype=torch.bool),
        gramian.new_empty((*lead, 2), dtype=torch.int64),
    ),
)
