"""B p of Aligned-MTL, compiled: G reduced to a tridiagonal matrix and that diagonalised by implicit
QL, with p carried along; no eigenvectors are formed.
"""

from typing import no_type_check

import numpy as np
from numba import njit

Array = np.ndarray
ROUNDING = 2.2e-16

# sums may be reordered; NaN and infinity keep their meaning
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_jit
@no_type_check
def solve(gramian: Array, noise: float, scale: int, x: Array) -> bool:
    """Turn x from p into B p (see `aligned_mtl`); False, and nothing of use in x, for a zero
    Gramian, one that is not finite, or too many sweeps.

    Args:
        gramian: float64 `[T, T]`.
        noise: eigenvalues up to that times the largest diagonal entry are taken for 0.
        scale: s is the smallest eigenvalue that is kept (0), the lower median of those (1), or
            their mean (2).
        x: float64 `[T]`.
    """
    count = len(x)
    longest = 0.0
    for i in range(count):
        longest = max(longest, gramian[i, i])
        for j in range(count):
            if not np.isfinite(gramian[i, j]):
                return False
    if not longest > 0:
        return False
    a = gramian / longest
    d, e, push, beta = np.empty(count), np.zeros(count), np.empty(count), np.zeros(count)
    # Householder, from the last row up: the reflection that takes row k to its last entry stays in
    # its place.
    for k in range(count - 1, 1, -1):
        v, square = a[k], 0.0
        for i in range(k - 1):
            square += v[i] * v[i]
        if square > 0:
            e[k - 1] = -np.copysign(np.sqrt(square + v[k - 1] * v[k - 1]), v[k - 1])
            v[k - 1] -= e[k - 1]
            beta[k] = 2 / (square + v[k - 1] * v[k - 1])
            for i in range(k):
                push[i] = 0.0
            for i in range(k):
                entry, here = a[i, i] * v[i], v[i]
                for j in range(i):
                    entry += a[i, j] * v[j]
                    push[j] += a[i, j] * here
                push[i] += entry
            along = 0.0
            for i in range(k):
                along += push[i] * v[i]
            for i in range(k):
                push[i] = beta[k] * (push[i] - 0.5 * beta[k] * along * v[i])
            for i in range(k):
                one, two = v[i], push[i]
                for j in range(i + 1):
                    a[i, j] -= one * push[j] + two * v[j]
            _reflect(v, beta[k], k, x)
        else:
            e[k - 1] = v[k - 1]
    for i in range(count):
        d[i] = a[i, i]
    if count > 1:
        e[0] = a[1, 0]
    turns = np.empty((4 * count * count + 64, 2))
    rows = np.empty(len(turns), dtype=np.int64)
    taken = _diagonalise(d, e, x, turns, rows)
    if taken < 0:
        return False
    kept, total, least = 0, 0.0, np.inf
    for i in range(count):
        if d[i] > noise:
            kept += 1
            total += d[i]
            least = min(least, d[i])
    if scale == 1:
        least = np.sort(d)[count - kept + (kept - 1) // 2]
    elif scale == 2:
        least = total / kept
    for i in range(count):
        x[i] = x[i] * np.sqrt(least / d[i]) if d[i] > noise else (x[i] if kept == 0 else 0.0)
    for turn in range(taken - 1, -1, -1):
        i, c, s = rows[turn], turns[turn, 0], turns[turn, 1]
        x[i], x[i + 1] = c * x[i] + s * x[i + 1], c * x[i + 1] - s * x[i]
    for k in range(2, count):
        _reflect(a[k], beta[k], k, x)
    return True


@_jit
@no_type_check
def _reflect(v: Array, beta: float, size: int, x: Array) -> None:
    along = 0.0
    for i in range(size):
        along += v[i] * x[i]
    along *= beta
    for i in range(size):
        x[i] -= along * v[i]


@_jit
@no_type_check
def _diagonalise(d: Array, e: Array, x: Array, turns: Array, rows: Array) -> int:
    """Implicit QL with Wilkinson's shift on the diagonal d and what is next to it, e; returns how
    many rotations x went through, -1 if too many.
    """
    count, taken = len(d), 0
    for low in range(count):
        while True:
            high = low
            while high < count - 1 and abs(e[high]) > ROUNDING * (abs(d[high]) + abs(d[high + 1])):
                high += 1
            if high == low:
                break
            if taken + high - low > len(turns):
                return -1
            g = (d[low + 1] - d[low]) / (2 * e[low])
            g = d[high] - d[low] + e[low] / (g + np.copysign(np.sqrt(g * g + 1), g))
            c, s, p, whole = 1.0, 1.0, 0.0, True
            for i in range(high - 1, low - 1, -1):
                f, b = s * e[i], c * e[i]
                r = np.sqrt(f * f + g * g)
                e[i + 1] = r
                if r == 0:
                    d[i + 1] -= p
                    e[high] = 0.0
                    whole = False
                    break
                s, c = f / r, g / r
                g = d[i + 1] - p
                r = (d[i] - g) * s + 2 * c * b
                p = s * r
                d[i + 1] = g + p
                g = c * r - b
                x[i], x[i + 1] = c * x[i] - s * x[i + 1], s * x[i] + c * x[i + 1]
                rows[taken], turns[taken, 0], turns[taken, 1] = i, c, s
                taken += 1
            if whole:
                d[low] -= p
                e[low] = g
                e[high] = 0.0
    return taken
