"""The hash of `random`, compiled for plain keys on a CPU: the same numbers, bit for bit, without a
dozen small tensors on the way.
"""

import numpy as np

from .compiling import jit

Array = np.ndarray

# no fast-math: every operation is the one that torch does
_jit = jit()

GOLDEN = 0x9E3779B97F4A7C15


@_jit
def hash_bits(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_jit
def fold_in(key: int, data: int) -> int:
    """`random.fold_in`."""
    one = hash_bits(np.uint64(key) + np.uint64(GOLDEN))
    other = hash_bits(np.uint64(data) + np.uint64(0xBF58476D1CE4E5B9))
    return np.int64(hash_bits(one ^ other))  # pyright: ignore[reportReturnType]


@_jit
def uniform(key: int, digits: int, out: Array) -> None:
    """Fill `out`, flat, with numbers in [0, 1) of `digits` binary digits."""
    root, unit = hash_bits(np.uint64(key) + np.uint64(GOLDEN)), 2.0**-digits
    for i in range(len(out)):
        bits = hash_bits(root + np.uint64(i + 1) * np.uint64(GOLDEN)) >> np.uint64(64 - digits)
        out[i] = np.float64(bits) * unit


@_jit
def fill_symmetric(key: int, out: Array) -> None:
    """Fill `out`, flat float64, with the numbers in (-1, 1) whose erfinv, times √2, is standard
    normal.
    """
    root = hash_bits(np.uint64(key) + np.uint64(GOLDEN))
    for i in range(len(out)):
        bits = hash_bits(root + np.uint64(i + 1) * np.uint64(GOLDEN)) >> np.uint64(11)
        out[i] = 2 * ((np.float64(bits) + 0.5) * 2.0**-53) - 1


@_jit
def scale_into(x: Array, factor: float, out: Array) -> None:
    """out = factor x, rounded to the dtype of `out`."""
    for i in range(len(x)):
        out[i] = factor * x[i]
