"""Coefficients of unit gradients by Cholesky's factor of their cosines, compiled for a CPU."""

import math

import numpy as np

from ...core.compiling import jit

Array = np.ndarray

_jit = jit()


@_jit
def solve(gramian: Array, cosines: Array, noise: float, unit: Array, answer: Array) -> bool:
    """Fill `unit` with 1/‖g‖ and `answer` with C⁻¹ cosines, C the lower triangle's cosines; False,
    with nothing of use in these, unless all entries are finite and the determinant excludes that an
    eigenvalue of C is `noise` or less. The smallest one is at least det(C) ((T-1)/T)^(T-1) >
    det(C)/e, as the trace is T.
    """
    count, rest = len(gramian), 0.0
    for i in range(count):
        unit[i] = 1 / math.sqrt(gramian[i, i]) if gramian[i, i] > 0 else 0.0
        for j in range(count):
            rest += 0.0 * gramian[i, j]
    if rest != 0:
        return False
    factor, determinant = np.empty((count, count)), 1.0
    for i in range(count):
        value = cosines[i]
        for j in range(i + 1):
            entry = gramian[i, j] * unit[i] * unit[j]
            for k in range(j):
                entry -= factor[i, k] * factor[j, k]
            if j < i:
                factor[i, j] = entry / factor[j, j]
                value -= factor[i, j] * answer[j]
            else:
                determinant *= entry
                if not determinant > math.e * noise:  # no later factor is above 1
                    return False
                factor[i, i] = math.sqrt(entry)
        answer[i] = value / factor[i, i]
    for i in range(count - 1, -1, -1):
        for k in range(i + 1, count):
            answer[i] -= factor[k, i] * answer[k]
        answer[i] /= factor[i, i]
    return True
