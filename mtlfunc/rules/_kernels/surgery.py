"""Compiled loops of PCGrad and GradVac on unit gradients, whose products are cosines."""

import numpy as np

from ...core.compiling import jit

Array = np.ndarray
PARALLEL_WORK = 2_000_000
"""batch · T³ from which starting threads pays."""

COMPILED_WORK = 100_000
"""batch · T³ from which a caller waits for the compiled loops."""

_jit = jit(fastmath={"contract"})


def solve(
    gramian: Array, key: Array, orders: Array, targets: Array, eps: float, batch: int, threads: int
) -> tuple[Array, Array]:
    """Coefficients and cosines `[batch, T, T]` (see `surgery.surgery`), by at most `threads`; an
    array of batch length 1 is shared by all. Integers are int64, other numbers float64.

    Args:
        gramian, targets: `[batch, T, T]`; targets are `[1, 0, 0]` for PCGrad.
        key: `[batch]`, used where there are no `orders`.
        orders: `[batch, T, T]`; `[1, 0, 0]` is none.
        eps: noise level of the Gramian's entries.
    """
    count = gramian.shape[-1]
    given = gramian, key, orders, targets, 8 * count * eps
    coefficients, cosines = np.empty((batch, count, count)), np.empty((batch, count, count))
    work = batch * count**3
    if threads == 1 or work < PARALLEL_WORK:
        _range.run(*given, 0, batch, coefficients, cosines, many=work >= COMPILED_WORK)
        return coefficients, cosines
    cuts = np.linspace(0, batch, min(batch, 4 * threads) + 1).astype(int).tolist()
    _range.run_in_threads(given, cuts, (coefficients, cosines), threads)
    return coefficients, cosines


GOLDEN = 0x9E3779B97F4A7C15


@_jit
def hash_bits(x: np.uint64) -> np.uint64:
    """The hash of `core.random`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_jit
def _order(root: np.uint64, row: int, draws: Array, order: Array) -> None:
    """Row `row` of `random.permutation(key, T, rows=T)`: T uniform numbers sorted by insertion."""
    count = len(order)
    for s in range(count):
        draw = hash_bits(root + np.uint64(row * count + s + 1) * np.uint64(GOLDEN)) >> np.uint64(11)
        at = s
        while at > 0 and draws[at - 1] > draw:
            draws[at] = draws[at - 1]
            order[at] = order[at - 1]
            at -= 1
        draws[at] = draw
        order[at] = s


@_jit
def _range(
    gramian: Array, key: Array, orders: Array, targets: Array, noise: float, lo: int, hi: int,
    coefficients: Array, cosines: Array,
) -> None:  # fmt: skip
    count = gramian.shape[-1]
    adapt = targets.shape[-1] == count and count > 0
    unit, length, row = np.empty((count, count)), np.empty(count), np.empty(count)
    draws, order = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.int64)
    for b in range(lo, hi):
        g = gramian[b if len(gramian) > 1 else 0]
        goal = targets[b if len(targets) > 1 else 0]
        root = hash_bits(np.uint64(key[b if len(key) > 1 else 0]) + np.uint64(GOLDEN))
        for i in range(count):
            length[i] = np.sqrt(g[i, i]) if g[i, i] > 0 else 0.0
        finite = True
        for i in range(count):
            for j in range(count):
                finite = finite and np.isfinite(g[i, j]) and (not adapt or np.isfinite(goal[i, j]))
                unit[i, j] = g[i, j] / length[i] / length[j]  # that of a zero gradient is not read
        if not finite:
            for i in range(count):  # slices would bring numba's strings along
                for j in range(count):
                    coefficients[b, i, j] = cosines[b, i, j] = np.nan
            continue
        for i in range(count):
            if orders.shape[-1] != count:
                _order(root, i, draws, order)
            a = coefficients[b, i]
            for j in range(count):
                if orders.shape[-1] == count:
                    order[j] = orders[b if len(orders) > 1 else 0, i, j]
                a[j], row[j] = 1.0 if j == i else 0.0, unit[i, j]
                if adapt:
                    cosines[b, i, j] = goal[i, j]
            size = 1.0 if length[i] > 0 else 0.0  # ‖c_i‖, in units of ‖g_i‖
            for s in range(count):
                j = order[s]
                if size == 0 or j == i or length[j] == 0:
                    continue
                if not adapt:
                    if row[j] < 0:
                        share = -row[j]
                        a[j] += share
                        for l in range(count):
                            row[l] += share * unit[j, l]
                    continue
                cosine, target = row[j] / size, goal[i, j]
                cosines[b, i, j] = min(max(cosine, -1.0), 1.0)
                if cosine < target - noise * abs(target) and 1 - target * target > 0:
                    ratio = np.sqrt(
                        max((1 - cosine) * (1 + cosine), 0.0) / ((1 - target) * (1 + target))
                    )
                    share = size * (target * ratio - cosine)
                    a[j] += share
                    size *= ratio
                    for l in range(count):
                        row[l] += share * unit[j, l]
            for j in range(count):
                if a[j] != 0 and j != i:
                    a[j] *= length[i] / length[j]
