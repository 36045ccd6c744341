# compiled functions take their scratch space as arguments
"""Compiled active-set kernels for the CPU: the three small problems solved exactly, batch entry by
batch entry.

Everything happens on unit rows: with n_t a power of two next to ‖g_t‖, C = G/(n nᵀ) is free of
rounding and a_t = min(n)/n_t. The unknowns are y_t = w_t/a_t, so that the simplex is {y >= 0, a·y =
1} and the violation of a task is read as a cosine, whatever its scale. The noise of (C y)_t is
about ε Σ|y|, with ε the machine epsilon of the arithmetic that made G; every threshold below is a
multiple of it.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import no_type_check

import numpy as np
from numba import njit

Array = np.ndarray
MIN_NORM, CAGRAD, DUAL_CONE = 0, 1, 2
INDEFINITE = 1e3
"""A cosine matrix with an eigenvalue below -INDEFINITE·T·ε is no Gramian in that precision."""
ROUNDING = 2.2e-16
"""Relative error of a sum in float64, for ‖g_w‖²: the ball shall hold the direction in spite of it.
"""
PARALLEL_WORK = 100_000
"""batch · (T² + 64) from which starting threads pays."""

# sums may be reordered; NaN and infinity keep their meaning
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
# `no_type_check`: annotations enforced at run time (jaxtyping's import hook) would wrap functions
# that numba has to read.


def solve(
    gramian: Array, vector: Array | None, c: Array | None, eps: float, threads: int
) -> tuple[Array, Array, Array]:
    """Solve a batch: min-norm from the Gramian alone, the dual cone with a vector, CAGrad with
    both; an array of batch length 1 is shared by all.

    Args:
        gramian: float64 `[batch, T, T]`, contiguous; or `[batch / r, T, T]`, each for r problems in
            a row.
        vector: float64 `[batch, T]`: weights (dual cone) or preference (CAGrad).
        c: float64 `[batch]`: CAGrad's radius.
        eps: noise level of the Gramian's entries, the epsilon of the dtype it was computed in.
        threads: at most so many at work.

    Returns:
        `[batch, 3T + 2]` weights, dual, rates, value, gap; `[batch, 2, T]` bool, the support of the
        dual and of CAGrad's step to the dual cone; `[batch, 2]` int64, the number of faces solved
        and whether CAGrad's answer is that of a Pareto-stationary point (-1: an indefinite
        Gramian). NaN where an input is not finite or the Gramian is indefinite.
    """
    count = gramian.shape[-1]
    kind = MIN_NORM if vector is None else DUAL_CONE if c is None else CAGRAD
    vector, c = np.zeros((1, count)) if vector is None else vector, np.zeros(1) if c is None else c
    batch = max(len(gramian), len(vector), len(c))
    report = np.empty((batch, 3 * count + 2))
    support = np.empty((batch, 2, count), dtype=np.bool_)
    info = np.empty((batch, 2), dtype=np.int64)
    if threads == 1 or batch * (count * count + 64) < PARALLEL_WORK:
        _range(gramian, vector, c, kind, eps, 0, batch, report, support, info)
        return report, support, info
    # Threads around a kernel that holds no lock: numba's own threading layers abort when two Python
    # threads meet in them. The caller works, too. Every range prepares the Gramian that it shares
    # anew, so there are no more of them than needed.
    bounds = (
        np.linspace(0, batch, min(batch, (1 if len(gramian) == 1 else 4) * threads) + 1)
        .astype(int)
        .tolist()
    )
    ranges = iter(list(pairwise(bounds)))

    def work() -> None:
        for lo, hi in ranges:
            _range(gramian, vector, c, kind, eps, lo, hi, report, support, info)

    with ThreadPoolExecutor(threads - 1) as pool:
        helpers = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            helper.result()
    return report, support, info


@_jit
@no_type_check
def _scale(gramian: Array, cosine: Array, a: Array) -> tuple[float, bool, bool, bool]:
    """Fill C and a; return min(n), whether all entries are finite, whether a diagonal entry is
    negative, and whether one is zero.
    """
    count = len(a)
    least, finite, negative, zero = np.inf, True, False, False
    for i in range(count):
        square = gramian[i, i]
        if square > 0 and square < np.inf:
            exponent = np.floor(0.5 * np.log2(square) + 0.5)
            a[i] = 2.0**exponent
            least = min(least, a[i])
        else:
            a[i] = 0.0
            zero = zero or square == 0
            negative = negative or square < 0
    if least == np.inf:
        least = 1.0
    for i in range(count):
        if a[i] == 0:
            a[i] = least  # its row of C is zero
        for j in range(i + 1):
            entry = 0.5 * (gramian[i, j] + gramian[j, i])
            finite = finite and np.isfinite(entry)
            cosine[i, j] = entry / a[i] / a[j]
            cosine[j, i] = cosine[i, j]
    for i in range(count):
        a[i] = least / a[i]
    return least, finite, negative, zero


@_jit
@no_type_check
def _eliminate(matrix: Array, factor: Array, i: int, ridge: float) -> float:
    """Row i of the Cholesky factor of matrix + ridge·I (inverse diagonal) but for its diagonal;
    return the square of that, the pivot.
    """
    for j in range(i):
        entry = matrix[i, j]
        for l in range(j):
            entry -= factor[i, l] * factor[j, l]
        factor[i, j] = entry * factor[j, j]
    pivot = matrix[i, i] + ridge
    for l in range(i):
        pivot -= factor[i, l] * factor[i, l]
    return pivot


@_jit
@no_type_check
def _semidefinite(cosine: Array, bound: float, factor: Array) -> bool:
    """Whether C + bound·I has a Cholesky factor: no eigenvalue of C lies below -bound."""
    for i in range(len(cosine)):
        pivot = _eliminate(cosine, factor, i, bound)
        if not pivot > 0:
            return False
        factor[i, i] = 1 / np.sqrt(pivot)
    return True


@_jit
@no_type_check
def _factor(
    cosine: Array,
    e: Array,
    index: Array,
    size: int,
    valid: int,
    ridge: float,
    floor: float,
    matrix: Array,
    factor: Array,
) -> int:
    """Rows valid…size of the face's matrix C + eeᵀ and of its Cholesky factor (inverse diagonal);
    return how many rows there are now.

    Without a ridge that is fewer than `size` if a pivot lies below `floor`: this gradient depends
    on those before it.
    """
    for i in range(valid, size):
        for j in range(i + 1):
            matrix[i, j] = cosine[index[i], index[j]] + e[index[i]] * e[index[j]]
            matrix[j, i] = matrix[i, j]
        pivot = _eliminate(matrix, factor, i, ridge)
        if pivot < floor and ridge == 0:
            return i
        factor[i, i] = 1 / np.sqrt(max(pivot, 0.25 * floor))
    return size


@_jit
@no_type_check
def _solve_face(
    matrix: Array, factor: Array, size: int, rounds: int, right: Array, x: Array, residual: Array
) -> None:
    """x = (matrix + ridge)⁻¹ right; every round after the first refines it towards matrix⁻¹ right."""
    for i in range(size):
        x[i] = 0.0
        residual[i] = right[i]
    for turn in range(rounds):
        if turn:
            for i in range(size):
                entry = right[i]
                for j in range(size):
                    entry -= matrix[i, j] * x[j]
                residual[i] = entry
        for i in range(size):
            entry = residual[i]
            for j in range(i):
                entry -= factor[i, j] * residual[j]
            residual[i] = entry * factor[i, i]
        for i in range(size - 1, -1, -1):
            step = residual[i] * factor[i, i]
            x[i] += step
            for j in range(i):
                residual[j] -= factor[i, j] * step


@_jit
@no_type_check
def _times(cosine: Array, y: Array, index: Array, size: int, out: Array) -> tuple[float, float]:
    """out = C y with y zero off the face; return yᵀC y and Σ y."""
    count = len(out)
    for i in range(count):
        out[i] = 0.0
    total, square = 0.0, 0.0
    for j in range(size):
        weight = y[index[j]]
        total += weight
        row = cosine[index[j]]
        for i in range(count):
            out[i] += weight * row[i]
    for j in range(size):
        square += y[index[j]] * out[index[j]]
    return square, total  # pyright: ignore[reportReturnType]


@_jit
@no_type_check
def _product(cosine: Array, x: Array, out: Array) -> float:
    """out = C x; return xᵀC x. Rows whose x is 0 cost nothing: supports are small, and UPGrad asks
    for one task at a time.
    """
    count = len(out)
    out[:] = 0.0
    for j in range(count):
        if x[j] != 0:
            for i in range(count):
                out[i] += x[j] * cosine[j, i]
    square = 0.0
    for i in range(count):
        square += x[i] * out[i]
    return square


@_jit
@no_type_check
def _descend(
    kind: int, cosine: Array, a: Array, beta: Array, radius: float, magnitude: float, eps: float,
    y: Array, index: Array, size: int, rates: Array, real: Array, matrix: Array, factor: Array, v: Array, flags: Array,
) -> tuple[int, int]:  # fmt: skip
    """The add-and-drop loop from a feasible y with support index[:size]; return the size of the
    final support and the number of faces solved.

    kind MIN_NORM: ½ yᵀC y, CAGRAD: β·y + radius·√(yᵀC y), both on a·y = 1; DUAL_CONE: ½ yᵀC y +
    β·y. `magnitude` is Σ|·| of the vector that β is C times, for its noise. A task enters by the
    largest violation measured as a cosine. One that enters and at once wants to leave did so by
    rounding: it stays out until there is progress. Each face visited has a lower objective than the
    one before, so that the loop is finite; should rounding make it turn in a circle all the same,
    then after 4T + 20 entries whoever left may not return, and at most T entries are left.

    A rough phase of at most 16 turns comes first, unless the start is a face of CAGrad's: all tasks
    enter that are half as violated as the worst (but none that nearly depends on those inside), all
    that get weights <= 0 leave, nothing is refined. It finds most of the support in a few faces.
    The loop above starts from there and proves the answer, whatever the rough phase did.
    """
    count = len(a)
    x, z, other, residual, right, e = v[0], v[1], v[2], v[3], v[4], v[5]
    inside, blocked = flags[0], flags[1]
    for i in range(count):
        inside[i] = 0
        blocked[i] = 0
        e[i] = 0.0
    for i in range(size):
        inside[index[i]] = 1
    valid, ridge, unit, solved, turn, rounds = 0, 0.0, 0.0, 0, 0, 2
    entered, settled, polished, rough = -1, size <= 1, False, kind != CAGRAD or size == 1
    while True:
        turn += 1
        fresh = 0
        late = turn > 4 * count + 20
        if settled:
            square, total = _times(cosine, y, index, size, rates)
            level, noise = 0.0, 8 * eps * total
            if kind == MIN_NORM:
                level = square
            elif kind == CAGRAD:
                pull = radius / np.sqrt(square) if square > 0 else 0.0
                for i in range(count):
                    rates[i] = beta[i] + pull * rates[i]
                for i in range(size):
                    level += y[index[i]] * rates[index[i]]
                noise = 8 * eps * (magnitude + pull * total)
            else:
                for i in range(count):
                    rates[i] += beta[i]
                noise = 8 * eps * (magnitude + total)
            noise *= 64 if rough else 1  # nothing is refined yet
            worst, entered = 0.0, -1
            for i in range(count):
                z[i] = 0.0
                if not inside[i] and not blocked[i] and real[i]:
                    slack = noise * (max(1.0, total * a[i]) if kind != DUAL_CONE else 1.0)
                    z[i] = (level * a[i] - rates[i] - slack) / np.sqrt(cosine[i, i])
                    if z[i] > worst:
                        worst, entered = z[i], i
            if entered < 0 and not rough:
                return size, solved
            if rough:
                rough = (
                    entered >= 0
                    and turn < 16
                    and (kind == DUAL_CONE or square > 8 * count * eps * total * total)
                )
                for i in range(count if rough else 0):  # z holds the violations
                    if z[i] >= 0.5 * worst:
                        index[size] = i
                        inside[i] = 1
                        size += 1
                        fresh += 1
                entered = -1
            elif (
                kind == MIN_NORM
                and size > 1
                and not polished
                and square <= 8 * count * eps * total * total
            ):
                # Pareto stationary up to rounding: the answer is a null vector of C on this face,
                # and inverse iteration finds it also where a·y = 1 hardly binds (norms 1e8 apart).
                # What violates now may be the error of y alone.
                polished, nonnegative = True, True
                for i in range(size):
                    x[i] = y[index[i]]
                    e[index[i]] = 0.0
                unit, ridge = 0.0, 4 * size * eps
                valid = _factor(cosine, e, index, size, 0, ridge, ridge, matrix, factor)
                for _ in range(2):
                    for i in range(size):
                        right[i] = x[i]
                    _solve_face(matrix, factor, size, 1, right, x, residual)
                    largest = 0.0
                    for i in range(size):
                        largest = max(largest, abs(x[i]))
                    for i in range(size):
                        x[i] /= largest
                total = 0.0
                for i in range(size):
                    nonnegative = nonnegative and x[i] > -8 * size * eps
                    x[i] = max(x[i], 0.0)
                    total += a[index[i]] * x[i]
                if not nonnegative:
                    continue
                for i in range(size):
                    y[index[i]] = x[i] / total
                continue
            else:
                polished = False
                index[size] = entered
                inside[entered] = 1
                size += 1
        while True:
            if kind != DUAL_CONE:
                largest = 0.0
                for i in range(size):
                    largest = max(largest, a[index[i]])
                if largest != unit:
                    unit, valid, ridge = largest, 0, 0.0
                for i in range(size):
                    e[index[i]] = a[index[i]] / unit
            floor = np.sqrt(eps) if rough else 4 * size * eps
            valid = _factor(cosine, e, index, size, valid, ridge, floor, matrix, factor)
            if valid < size and rough:
                rough = valid >= size - fresh and fresh > 1
                if valid >= size - fresh:
                    inside[index[valid]] = 0
                    fresh -= 1
                    size -= 1
                    for i in range(valid, size):
                        index[i] = index[i + 1]
                continue
            if valid < size:
                ridge = floor
                valid = _factor(cosine, e, index, size, 0, ridge, floor, matrix, factor)
            rounds = 1 if rough else 2 if ridge == 0 else 4
            solved += 1
            # The face's minimiser z, or (bounded = False) a direction along which the objective
            # falls for ever.
            bounded = True
            if kind == DUAL_CONE:
                for i in range(size):
                    right[i] = -beta[index[i]]
                _solve_face(matrix, factor, size, rounds, right, z, residual)
            else:
                for i in range(size):
                    right[i] = e[index[i]]
                _solve_face(matrix, factor, size, rounds, right, x, residual)
                sum_x = 0.0
                for i in range(size):
                    sum_x += a[index[i]] * x[i]
                for i in range(size):
                    z[i] = x[i] / sum_x
                if kind == CAGRAD and size > 1:
                    for i in range(size):
                        right[i] = beta[index[i]]
                    _solve_face(matrix, factor, size, rounds, right, other, residual)
                    sum_other = 0.0
                    for i in range(size):
                        sum_other += a[index[i]] * other[i]
                    height, along, e_z, e_d = 0.0, 0.0, 0.0, 0.0
                    for i in range(size):
                        other[i] = z[i] * sum_other - other[i]
                        e_z += e[index[i]] * z[i]
                        e_d += e[index[i]] * other[i]
                    for i in range(size):
                        row_z, row_d = -e_z * e[index[i]], -e_d * e[index[i]]
                        for j in range(size):
                            row_z += matrix[i, j] * z[j]
                            row_d += matrix[i, j] * other[j]
                        height += z[i] * row_z
                        along += other[i] * row_d
                    room = radius * radius - along
                    bounded = room > 0
                    stride = np.sqrt(max(height, 0.0) / room) if bounded else 0.0
                    for i in range(size):
                        z[i] = z[i] + stride * other[i] if bounded else other[i]
            if entered >= 0 and z[size - 1] <= 0:  # the newest is last
                size -= 1
                valid = size
                inside[entered] = 0
                blocked[entered] = 1
                if ridge > 0:
                    valid, ridge = 0, 0.0
                break
            entered = -1
            share, leaver = 1.0 if bounded else np.inf, -1
            for i in range(size):
                if z[i] <= 0 if bounded else z[i] < 0:
                    here = y[index[i]]
                    fraction = here / (here - z[i]) if bounded else -here / z[i]
                    if leaver < 0 or fraction < share:
                        share, leaver = fraction, i
            if leaver < 0:
                if bounded:
                    for i in range(size):
                        y[index[i]] = z[i]
                if not late:
                    for i in range(count):
                        blocked[i] = 0
                break
            for i in range(size):
                target = z[i] - y[index[i]] if bounded else z[i]
                y[index[i]] = max(z[i] if rough and bounded else y[index[i]] + share * target, 0.0)
            y[index[leaver]] = 0.0
            kept, valid = 0, size
            for i in range(size):
                if z[i] <= 0 and y[index[i]] == 0:
                    inside[index[i]] = 0
                    blocked[index[i]] = late
                    valid = min(valid, i)
                else:
                    index[kept] = index[i]
                    kept += 1
            size = kept
            if ridge > 0:
                valid, ridge = 0, 0.0
            if kind != DUAL_CONE:
                total = 0.0
                for i in range(size):
                    total += a[index[i]] * y[index[i]]
                for i in range(size):
                    y[index[i]] /= total
            elif size == 0:
                break
        settled = True


@_jit
@no_type_check
def _range(
    gramian: Array,
    vector: Array,
    c: Array,
    kind: int,
    eps: float,
    lo: int,
    hi: int,
    report: Array,
    support: Array,
    info: Array,
) -> None:
    count = gramian.shape[2]
    cosine, matrix, factor = (
        np.empty((count, count)),
        np.empty((count, count)),
        np.empty((count, count)),
    )
    v, a, flags = np.empty((6, count)), np.empty(count), np.empty((2, count), np.uint8)
    y, shortest, push = np.empty(count), np.empty(count), np.empty(count)
    index, real = np.empty(count + 1, np.int64), np.empty(count, np.uint8)
    beta, rates, given = np.empty(count), np.empty(count), np.empty(count)
    weights, dual = np.empty(count), np.empty(count)
    least, finite, definite, zero = 1.0, False, False, False
    run = len(report) // len(gramian)
    for problem in range(lo, hi):
        out = report[problem]
        matrix_g = gramian[problem // run]
        asked = vector[problem if len(vector) > 1 else 0]
        ball = c[problem if len(c) > 1 else 0]
        if problem == lo or problem % run == 0:
            least, finite, negative, zero = _scale(matrix_g, cosine, a)
            definite = (
                finite and not negative and _semidefinite(cosine, INDEFINITE * count * eps, factor)
            )
        fine = definite and np.isfinite(ball)
        for i in range(count):
            fine = fine and np.isfinite(asked[i])
            support[problem, 0, i] = support[problem, 1, i] = False
        info[problem, 0], info[problem, 1] = 0, 0
        if not fine:
            info[problem, 1] = -1 if finite and not definite else 0
            out[:] = np.nan
            continue
        magnitude, radius = 0.0, 0.0
        for i in range(count):
            real[i] = matrix_g[i, i] > 0
            y[i] = shortest[i] = push[i] = 0.0
            given[i] = asked[i] / a[i] if real[i] else 0.0
            magnitude += abs(given[i])
        if kind != MIN_NORM:
            radius = ball * np.sqrt(max(_product(cosine, given, beta), 0.0))
        solved, size, stationary, pareto, shrink, safest, regular = (
            0,
            0,
            False,
            False,
            1.0,
            -np.inf,
            False,
        )
        if kind == DUAL_CONE:
            size, solved = _descend(
                kind,
                cosine,
                a,
                beta,
                0.0,
                magnitude,
                eps,
                y,
                index,
                0,
                rates,
                real,
                matrix,
                factor,
                v,
                flags,
            )
        elif kind == CAGRAD and radius == 0:  # F is linear, the direction g₀
            lowest = 0
            for i in range(count):
                if beta[i] / a[i] < beta[lowest] / a[lowest]:
                    lowest = i
            y[lowest] = 1 / a[lowest]
            index[0], size = lowest, 1
        else:
            if kind == CAGRAD and not zero:
                # Away from Pareto stationarity F is smooth, and the best vertex as good a start as
                # any.
                size, value = 0, np.inf
                for i in range(count):
                    entry = (beta[i] + radius * np.sqrt(cosine[i, i])) / a[i]
                    if entry < value:
                        value, index[0] = entry, i
                y[index[0]] = 1 / a[index[0]]
                size, solved = _descend(
                    CAGRAD,
                    cosine,
                    a,
                    beta,
                    radius,
                    magnitude,
                    eps,
                    y,
                    index,
                    1,
                    rates,
                    real,
                    matrix,
                    factor,
                    v,
                    flags,
                )
                square, total = _times(cosine, y, index, size, rates)
                regular = square > 1e-6 * total * total
            if regular:
                pass
            elif zero:  # the hull holds 0, and every such task is as good
                for i in range(count):
                    if not real[i]:
                        index[size] = i
                        size += 1
                for i in range(size):
                    shortest[index[i]] = 1 / (a[index[i]] * size)
            else:
                nearest = 0
                for i in range(count):
                    if matrix_g[i, i] < matrix_g[nearest, nearest]:
                        nearest = i
                shortest[nearest] = 1 / a[nearest]
                index[0] = nearest
                size, more = _descend(
                    MIN_NORM,
                    cosine,
                    a,
                    beta,
                    0.0,
                    0.0,
                    eps,
                    shortest,
                    index,
                    1,
                    rates,
                    real,
                    matrix,
                    factor,
                    v,
                    flags,
                )
                solved += more
            if kind == MIN_NORM:
                y[:] = shortest
            elif not regular:
                square, total = _times(cosine, shortest, index, size, rates)
                if zero:
                    square = total = 0.0
                y[:] = shortest
                lowest = beta @ y + radius * np.sqrt(max(square, 0.0))
                if square <= max(1e-6, 8 * count * eps) * total * total:
                    # Near Pareto stationarity: where the ball holds the projection on the dual
                    # cone, that is the answer; elsewhere its multipliers are a start with F < 0,
                    # from which g_w = 0 is never visited.
                    pushed, more = _descend(
                        DUAL_CONE,
                        cosine,
                        a,
                        beta,
                        0.0,
                        magnitude,
                        eps,
                        push,
                        index,
                        0,
                        rates,
                        real,
                        matrix,
                        factor,
                        v,
                        flags,
                    )
                    solved += more
                    reach, _ = _times(cosine, push, index, pushed, rates)
                    shrink, safest = min(1.0, radius / np.sqrt(reach)) if reach > 0 else 1.0, np.inf
                    for i in range(count):
                        safest = min(safest, (beta[i] + shrink * rates[i]) / a[i])
                    pareto = square <= 8 * count * eps * total * total
                    stationary = pareto and reach <= (1 + 8 * count * eps) * radius * radius
                    if not stationary and pushed > 0:
                        sum_push, value = 0.0, 0.0
                        for i in range(count):
                            sum_push += a[i] * push[i]
                            value += beta[i] * push[i]
                        value = (value + radius * np.sqrt(max(reach, 0.0))) / sum_push
                        if value < lowest or pareto:
                            lowest = value
                            for i in range(count):
                                y[i] = push[i] / sum_push
                if not stationary:
                    best = -1
                    for i in range(count):
                        value = (beta[i] + radius * np.sqrt(cosine[i, i])) / a[i]
                        if real[i] and value < lowest:
                            lowest, best = value, i
                    if best >= 0:
                        y[:] = 0.0
                        y[best] = 1 / a[best]
                    size = 0
                    for i in range(count):
                        if y[i] > 0:
                            index[size] = i
                            size += 1
                    size, more = _descend(
                        CAGRAD,
                        cosine,
                        a,
                        beta,
                        radius,
                        magnitude,
                        eps,
                        y,
                        index,
                        size,
                        rates,
                        real,
                        matrix,
                        factor,
                        v,
                        flags,
                    )
                    solved += more
                    square, total = _times(cosine, y, index, size, rates)
                    pull = radius / np.sqrt(max(square, 0.0) + ROUNDING * total * total)
                    smallest = np.inf
                    for i in range(count):
                        smallest = min(smallest, (beta[i] + pull * rates[i]) / a[i])
                    # the projection, or as much of it as the ball holds, does better than what g_w
                    # tells of d
                    stationary = smallest < safest
                for i in range(count):
                    push[i] *= shrink
        # The answer in the caller's units, and its certificate from it alone.
        total = 0.0
        for i in range(count):
            dual[i] = a[i] * y[i]
            total += dual[i]
            support[problem, 0, i] = y[i] > 0
            support[problem, 1, i] = stationary and push[i] > 0
        if kind != DUAL_CONE:
            for i in range(count):
                dual[i] /= total
        info[problem, 0], info[problem, 1] = solved, stationary
        pull, value = 0.0, 0.0
        if kind == CAGRAD:
            total = 0.0
            for i in range(count):
                given[i] = dual[i] / a[i]
                total += given[i]
            square = max(_product(cosine, given, rates), 0.0)
            value = beta @ given + radius * np.sqrt(square)
            if square > 0:
                pull = radius / np.sqrt(square + ROUNDING * total * total)
        for i in range(count):
            if kind == MIN_NORM:
                weights[i] = dual[i]
            elif kind == DUAL_CONE:
                weights[i] = asked[i] + dual[i]
            elif stationary:
                weights[i] = asked[i] + a[i] * push[i]
            else:
                weights[i] = asked[i] + pull * dual[i]
            given[i] = weights[i] / a[i]
        _product(cosine, given, rates)
        smallest, own, spread = np.inf, 0.0, 0.0
        for i in range(count):
            rate = rates[i] / a[i]
            out[i], out[count + i], out[2 * count + i] = weights[i], dual[i], rate * least * least
            smallest = min(smallest, rate)
            own += weights[i] * rate
            spread += np.sqrt(cosine[i, i]) / a[i] * abs(weights[i])
        if kind == MIN_NORM:
            value, gap = 0.5 * own, own - smallest
        elif kind == CAGRAD:
            gap = value - smallest
        else:
            value, gap = 0.5 * own, 0.0
            for i in range(count):
                rate = out[2 * count + i] / least / least
                gap += dual[i] * abs(rate)
                if rate < 0:
                    gap -= rate * spread / (np.sqrt(cosine[i, i]) / a[i] if real[i] else 1.0)
        out[3 * count] = value * least * least
        out[3 * count + 1] = max(gap, 0.0) * least * least
