"""Compiled active-set kernels for the CPU: the three small problems solved exactly, one by one.

Everything happens on unit rows: with n_t a power of two next to ‖g_t‖, C = G/(n nᵀ) is free of
rounding and a_t = min(n)/n_t. The unknowns are y_t = w_t/a_t, so that the simplex is {y >= 0, a·y =
1} and the violation of a task is read as a cosine, whatever its scale. The noise of (C y)_t is
about ε Σ|y|, with ε the machine epsilon of the arithmetic that made G; every threshold below is a
multiple of it, or of δ, the square of the smallest opening that G resolves
(`problems.resolution`).

There are two loops: `_on_simplex` (Wolfe for the min-norm problem, the same with the minimiser of
CAGrad's dual on a face) and `_dual_cone` (Lawson and Hanson). Each adds the task with the largest
violation, solves the face, and drops the tasks whose weights would be negative on the way. One that
enters and at once wants to leave did so by rounding: it stays out until there is progress. Each
face visited has a lower objective than the one before, so that the loops are finite; should
rounding make one turn in a circle all the same, then after 4T + 20 entries whoever left may not
return, and at most T entries are left.

A rough phase of at most 16 turns comes first where the start is a vertex: all tasks enter that are
half as violated as the worst (on the simplex none that nearly depends on those inside), all that
get weights <= 0 leave, nothing is refined. It finds most of the support in a few faces. The exact
loop starts from there and proves the answer, whatever the rough phase did.
"""

import numpy as np

from ...core.compiling import jit

Array = np.ndarray
INDEFINITE = 1e3
"""A cosine matrix with an eigenvalue below -INDEFINITE·T·ε is no Gramian in that precision."""
ROUNDING = 2.2e-16
"""Relative error of a sum in float64, for ‖g_w‖²: the ball shall hold the direction in spite of it.
"""
SINGLE = 2.0**-23
"""Float32's ε: a Gramian that was rounded to half precision is solved as it was given."""
ROUGH_TURNS = 16
SHARED = 32
"""So many problems with one Gramian in a row, of dual cones, start each from the face of the last:
at places of the batch that do not depend on the number of threads, nor does the answer.
"""
CENTRES = 2
"""Steps of the proximal-point method for the dual cone: the first regularises, the second takes the
effect out where it is resolved.
"""

# sums may be reordered; NaN and infinity keep their meaning
_jit = jit(fastmath={"reassoc", "contract"})


# --- a face and its linear algebra --------------------------------------------------------------


MIN_NORM, CAGRAD, DUAL_CONE = 0, 1, 2
# A problem and the face that its loop is on live in three arrays, in rows with names: passing these
# costs a kernel of a microsecond nothing, a tuple of twenty arrays doubled its time.
COSINE, MATRIX, FACTOR = 0, 1, 2
"""m `[3, T, T]`: C; C + eeᵀ on the face; its Cholesky factor, with the inverse diagonal."""
INDEX, INSIDE, BLOCKED, REAL, COUNT = 0, 1, 2, 3, 4
"""k `[5, T + 6]`, integers: the face's tasks in the order of the factor's rows; whether a task is
among them; whether it must wait for progress; whether its gradient is not zero; counters.
"""
SIZE, VALID, FRESH, SOLVED, NEWEST, UNLIKE, ROUNDS = 0, 1, 2, 3, 4, 5, 6
"""The counters: tasks on the face, rows of the factor that hold for it, tasks that have just
entered, faces solved, the task that entered last (-1: none, or it has stayed), whether the problems
with this C have been seen to end on faces that differ, and in how many rounds a face is solved.
"""
A, LENGTH, BETA, RATES, E, X, Z, OTHER, RESIDUAL, RIGHT, CENTRE, Y, PUSH, SCALAR = range(14)
"""v `[14, T + 4]`: a; √C_tt, between 1/√2 and √2; the linear term, C times the given vector; rates;
a in units of its largest entry on the face (0 for the dual cone); scratch; the face's minimiser, or
while a task is chosen the violations; scratch; the centre of a proximal step; the answer; CAGrad's
step to the dual cone; numbers.
"""
RIDGE, UNIT, TRIED, PULL = 0, 1, 2, 3
"""The numbers: what is added to the diagonal where a face's gradients depend on each other, the
largest a on the face, and r/‖g_z‖ of CAGrad's minimiser z on the face and of the answer.
"""


@_jit
def _scale(gramian: Array, v: Array, k: Array, m: Array) -> tuple[float, bool, bool, bool]:
    """Fill C, a; return min(n), if entries are finite, a diagonal one negative, and one zero."""
    count = m.shape[1]
    least, finite, negative, zero = np.inf, True, False, False
    for i in range(count):
        square = gramian[i, i]
        k[REAL, i] = square > 0
        if square > 0 and square < np.inf:
            v[A, i] = 2.0 ** np.floor(0.5 * np.log2(square) + 0.5)
            least = min(least, v[A, i])
        else:
            v[A, i] = 0.0
            zero = zero or square == 0
            negative = negative or square < 0
    if least == np.inf:
        least = 1.0
    for i in range(count):
        if v[A, i] == 0:
            v[A, i] = least  # its row of C is zero
        for j in range(i + 1):
            entry = 0.5 * (gramian[i, j] + gramian[j, i])
            finite = finite and np.isfinite(entry)
            entry = entry / v[A, i] / v[A, j]
            m[COSINE, i, j] = m[COSINE, j, i] = entry
        v[LENGTH, i] = np.sqrt(max(m[COSINE, i, i], 0.0))
    for i in range(count):
        v[A, i] = least / v[A, i]
    return least, finite, negative, zero


@_jit
def _eliminate(m: Array, i: int, ridge: float) -> float:
    """Row i of the Cholesky factor of the matrix + ridge·I (inverse diagonal) but for its diagonal;
    return the square of that, the pivot.
    """
    for j in range(i):
        entry = m[MATRIX, i, j]
        for l in range(j):
            entry -= m[FACTOR, i, l] * m[FACTOR, j, l]
        m[FACTOR, i, j] = entry * m[FACTOR, j, j]
    pivot = m[MATRIX, i, i] + ridge
    for l in range(i):
        pivot -= m[FACTOR, i, l] * m[FACTOR, i, l]
    return pivot


@_jit
def _semidefinite(m: Array, bound: float) -> bool:
    """Whether C + bound·I has a Cholesky factor: no eigenvalue of C lies below -bound."""
    for i in range(m.shape[1]):
        for j in range(i + 1):
            m[MATRIX, i, j] = m[COSINE, i, j]
        pivot = _eliminate(m, i, bound)
        if not pivot > 0:
            return False
        m[FACTOR, i, i] = 1 / np.sqrt(pivot)
    return True


@_jit
def _factorise(v: Array, k: Array, m: Array, ridge: float, floor: float, least: float) -> None:
    """The rows of the face's matrix and factor that do not hold yet, up to the first pivot below
    `floor`: the gradient of that task depends on those before it.
    """
    for i in range(k[COUNT, VALID], k[COUNT, SIZE]):
        task = k[INDEX, i]
        for j in range(i + 1):
            entry = m[COSINE, task, k[INDEX, j]] + v[E, task] * v[E, k[INDEX, j]]
            m[MATRIX, i, j] = m[MATRIX, j, i] = entry
        # in units of ‖g_t‖²; a zero gradient has none of its own
        pivot = _eliminate(m, i, ridge * max(m[COSINE, task, task], 0.5))
        if pivot < floor:
            k[COUNT, VALID] = i
            return
        m[FACTOR, i, i] = 1 / np.sqrt(max(pivot, least))
    k[COUNT, VALID] = k[COUNT, SIZE]


@_jit
def _solve_face(v: Array, k: Array, m: Array) -> None:
    """x = (matrix + ridge)⁻¹ right; every further round refines it towards matrix⁻¹ right."""
    size = k[COUNT, SIZE]
    for i in range(size):
        v[X, i] = 0.0
        v[RESIDUAL, i] = v[RIGHT, i]
    for turn in range(k[COUNT, ROUNDS]):
        if turn:
            for i in range(size):
                entry = v[RIGHT, i]
                for j in range(size):
                    entry -= m[MATRIX, i, j] * v[X, j]
                v[RESIDUAL, i] = entry
        for i in range(size):
            entry = v[RESIDUAL, i]
            for j in range(i):
                entry -= m[FACTOR, i, j] * v[RESIDUAL, j]
            v[RESIDUAL, i] = entry * m[FACTOR, i, i]
        for i in range(size - 1, -1, -1):
            step = v[RESIDUAL, i] * m[FACTOR, i, i]
            v[X, i] += step
            for j in range(i):
                v[RESIDUAL, j] -= m[FACTOR, i, j] * step


@_jit
def _times(v: Array, k: Array, m: Array) -> tuple[float, float]:
    """rates = C y with y zero off the face; return yᵀC y and Σ y."""
    count, total, square = m.shape[1], 0.0, 0.0
    for i in range(count):
        v[RATES, i] = 0.0
    for j in range(k[COUNT, SIZE]):
        task = k[INDEX, j]
        weight = v[Y, task]
        total += weight
        for i in range(count):
            v[RATES, i] += weight * m[COSINE, task, i]
    for j in range(k[COUNT, SIZE]):
        square += v[Y, k[INDEX, j]] * v[RATES, k[INDEX, j]]
    return square, total  # pyright: ignore[reportReturnType]


@_jit
def _product(v: Array, m: Array) -> float:
    """rates = C x; return xᵀC x. Rows whose x is 0 cost nothing: UPGrad has one task at a time."""
    count, square = m.shape[1], 0.0
    for i in range(count):
        v[RATES, i] = 0.0
    for j in range(count):
        weight = v[X, j]
        if weight != 0:
            for i in range(count):
                v[RATES, i] += weight * m[COSINE, j, i]
    for i in range(count):
        square += v[X, i] * v[RATES, i]
    return square


# --- moves that the loops share -----------------------------------------------------------------


@_jit
def _begin(v: Array, k: Array, count: int) -> None:
    """The face is the support of y."""
    size = 0
    for i in range(count):
        k[INSIDE, i] = v[Y, i] > 0
        k[BLOCKED, i] = 0
        v[E, i] = 0.0
        if v[Y, i] > 0:
            k[INDEX, size] = i
            size += 1
    k[COUNT, SIZE], k[COUNT, VALID], k[COUNT, FRESH], k[COUNT, NEWEST] = size, 0, 0, -1
    for i in range(4):
        v[SCALAR, i] = 0.0


@_jit
def _price(v: Array, k: Array, count: int, level: float, noise: float, total: float) -> float:
    """z = how far the rates of the tasks outside lie below level·a, beyond the noise, as cosines;
    return the largest, its task in NEWEST.
    """
    worst, newest = 0.0, -1
    for i in range(count):
        v[Z, i] = 0.0
        if not k[INSIDE, i] and not k[BLOCKED, i] and k[REAL, i]:
            slack = noise * max(1.0, total * v[A, i])
            v[Z, i] = (level * v[A, i] - v[RATES, i] - slack) / v[LENGTH, i]
            if v[Z, i] > worst:
                worst, newest = v[Z, i], i
    k[COUNT, NEWEST] = newest
    return worst


@_jit
def _enter(k: Array, task: int) -> None:
    k[INDEX, k[COUNT, SIZE]] = task
    k[INSIDE, task] = 1
    k[COUNT, SIZE] += 1


@_jit
def _choose(v: Array, k: Array, count: int, worst: float, rough: bool, last: bool) -> bool:
    """Put the newest task on the face; in the rough phase, until nothing violates or a turn is its
    `last`, all that are at least half as violated (`worst`), none of which counts as the newest.
    Return whether that phase goes on.
    """
    if not rough:
        _enter(k, k[COUNT, NEWEST])
        return False
    if last or k[COUNT, NEWEST] < 0:
        k[COUNT, NEWEST] = -1
        return False
    before = k[COUNT, SIZE]
    for i in range(count):
        if v[Z, i] >= 0.5 * worst:
            _enter(k, i)
    k[COUNT, FRESH] = k[COUNT, SIZE] - before
    k[COUNT, NEWEST] = -1
    return True


@_jit
def _drop_dependent(k: Array) -> bool:
    """Take the first fresh task that depends on those before it off; whether more are fresh."""
    valid = k[COUNT, VALID]
    if valid < k[COUNT, SIZE] - k[COUNT, FRESH]:
        return False
    k[COUNT, SIZE] -= 1
    k[COUNT, FRESH] -= 1
    k[INSIDE, k[INDEX, valid]] = 0
    for i in range(valid, k[COUNT, SIZE]):
        k[INDEX, i] = k[INDEX, i + 1]
    return k[COUNT, FRESH] > 0


@_jit
def _rejects_newest(v: Array, k: Array) -> bool:
    """Whether the newest task, last on the face, wants to leave at once: off it goes, blocked."""
    newest = k[COUNT, NEWEST]
    if newest < 0 or v[Z, k[COUNT, SIZE] - 1] > 0:
        k[COUNT, NEWEST] = -1
        return False
    k[COUNT, SIZE] -= 1
    k[COUNT, VALID] = min(k[COUNT, VALID], k[COUNT, SIZE])
    k[INSIDE, newest] = 0
    k[BLOCKED, newest] = 1
    return True


@_jit
def _remove(v: Array, m: Array, place: int, size: int) -> None:
    """The face's matrix and factor without one row: rotations put what it held into those after it,
    at a cost of size² instead of the size³ of a new factor.
    """
    for i in range(size - 1):
        above = i + (i >= place)
        for j in range(place if i >= place else 0):
            m[MATRIX, i, j], m[FACTOR, i, j] = m[MATRIX, above, j], m[FACTOR, above, j]
        for j in range(place, size - 1):
            m[MATRIX, i, j] = m[MATRIX, above, j + 1]
    for i in range(place, size - 1):
        rest = m[FACTOR, i + 1, place]
        for j in range(place, i):
            entry = m[FACTOR, i + 1, j + 1]
            m[FACTOR, i, j] = v[RIGHT, j] * entry + v[RESIDUAL, j] * rest
            rest = v[RIGHT, j] * rest - v[RESIDUAL, j] * entry
        inverse = m[FACTOR, i + 1, i + 1]
        length = np.sqrt(1 + (rest * inverse) ** 2)
        v[RIGHT, i], v[RESIDUAL, i] = 1 / length, rest * inverse / length
        m[FACTOR, i, i] = inverse / length


@_jit
def _advance(v: Array, k: Array, m: Array, bounded: bool, rough: bool, late: bool) -> bool:
    """From y to the minimiser z, or along the direction z where there is none, as far as y >= 0;
    return whether nothing is in the way. Otherwise who reaches 0 leaves (in the rough phase, all
    whose z <= 0).
    """
    size, share, leaver = k[COUNT, SIZE], 1.0 if bounded else np.inf, -1
    for i in range(size):
        if v[Z, i] <= 0 if bounded else v[Z, i] < 0:
            here = v[Y, k[INDEX, i]]
            fraction = here / (here - v[Z, i]) if bounded else -here / v[Z, i]
            if leaver < 0 or fraction < share:
                share, leaver = fraction, k[INDEX, i]
    if leaver < 0:
        for i in range(size if bounded else 0):
            v[Y, k[INDEX, i]] = v[Z, i]
        for i in range(0 if late else m.shape[1]):
            k[BLOCKED, i] = 0
        return True
    kept, valid, left = 0, k[COUNT, VALID], 0
    for i in range(size):
        task = k[INDEX, i]
        target = v[Z, i] - v[Y, task] if bounded else v[Z, i]
        moved = v[Z, i] if rough and bounded else v[Y, task] + share * target
        v[Y, task] = 0.0 if task == leaver else max(moved, 0.0)
        if v[Z, i] <= 0 and v[Y, task] == 0:
            k[INSIDE, task] = 0
            k[BLOCKED, task] = late
            valid, left = min(valid, i), valid
        else:
            k[INDEX, kept] = task
            kept += 1
    if kept == size - 1 and left == size:
        _remove(v, m, valid, size)
        valid = kept
    k[COUNT, SIZE], k[COUNT, VALID] = kept, valid
    return False


# --- the simplex: min-norm and CAGrad -----------------------------------------------------------


@_jit
def _prepare(v: Array, k: Array, m: Array, eps: float, rough: bool) -> bool:
    """Bring e and the factor to this face, with a ridge at rounding level where its gradients
    depend on each other (in the rough phase without those); return whether that phase goes on.
    """
    while True:
        size, largest = k[COUNT, SIZE], 0.0
        for i in range(size):
            largest = max(largest, v[A, k[INDEX, i]])
        if largest != v[SCALAR, UNIT]:
            v[SCALAR, UNIT], v[SCALAR, RIDGE], k[COUNT, VALID] = largest, 0.0, 0
        for i in range(size):
            v[E, k[INDEX, i]] = v[A, k[INDEX, i]] / largest
        floor, ridge = np.sqrt(eps) if rough else 4 * size * eps, v[SCALAR, RIDGE]
        _factorise(v, k, m, ridge, floor if ridge == 0 else 0.0, 0.25 * floor)
        if k[COUNT, VALID] == size:
            k[COUNT, ROUNDS] = 1 if rough else 2 if ridge == 0 else 4
            return rough
        if not rough:
            v[SCALAR, RIDGE], k[COUNT, VALID], k[COUNT, ROUNDS] = floor, 0, 4
            _factorise(v, k, m, floor, 0.0, 0.25 * floor)
            return False
        rough = _drop_dependent(k)


@_jit
def _drop_ridge(v: Array, k: Array) -> None:
    """A ridge is for the face that needed it: the next one is factorised again."""
    if v[SCALAR, RIDGE] > 0:
        v[SCALAR, RIDGE], k[COUNT, VALID] = 0.0, 0


@_jit
def _scale_to_simplex(v: Array, k: Array) -> None:
    total = 0.0
    for i in range(k[COUNT, SIZE]):
        total += v[A, k[INDEX, i]] * v[Y, k[INDEX, i]]
    for i in range(k[COUNT, SIZE]):
        v[Y, k[INDEX, i]] /= total


@_jit
def _nearest_on_face(v: Array, k: Array, m: Array) -> bool:
    """z = the point of the face's affine hull that is nearest to 0; there is always one."""
    size, total = k[COUNT, SIZE], 0.0
    for i in range(size):
        v[RIGHT, i] = v[E, k[INDEX, i]]
    _solve_face(v, k, m)
    for i in range(size):
        total += v[A, k[INDEX, i]] * v[X, i]
    for i in range(size):
        v[Z, i] = v[X, i] / total
    k[COUNT, SOLVED] += 1
    return True


@_jit
def _polish(v: Array, k: Array, m: Array, eps: float) -> None:
    """Pareto stationary up to rounding: the answer is a null vector of C on this face, and inverse
    iteration finds it also where a·y = 1 hardly binds (norms 1e8 : 1). y takes it if it is >= 0.
    """
    size = k[COUNT, SIZE]
    ridge = 4 * size * eps
    for i in range(size):
        v[X, i] = v[Y, k[INDEX, i]]
        v[E, k[INDEX, i]] = 0.0
    v[SCALAR, UNIT], v[SCALAR, RIDGE], k[COUNT, VALID], k[COUNT, ROUNDS] = 0.0, ridge, 0, 1
    _factorise(v, k, m, ridge, 0.0, 0.25 * ridge)
    for _ in range(2):
        largest = 0.0
        for i in range(size):
            v[RIGHT, i] = v[X, i]
        _solve_face(v, k, m)
        for i in range(size):
            largest = max(largest, abs(v[X, i]))
        for i in range(size):
            v[X, i] /= largest
    for i in range(size):
        if not v[X, i] > -8 * size * eps:
            return
    for i in range(size):
        v[Y, k[INDEX, i]] = max(v[X, i], 0.0)
    _scale_to_simplex(v, k)


@_jit
def _lowest_on_face(v: Array, k: Array, m: Array, radius: float) -> bool:
    """z = the minimiser of β·y + radius·√(yᵀC y) on the face's affine hull, or (False) a direction
    along which it falls for ever.
    """
    size = k[COUNT, SIZE]
    _nearest_on_face(v, k, m)
    v[SCALAR, TRIED] = 0.0
    if size == 1:
        return True
    for i in range(size):
        v[RIGHT, i] = v[BETA, k[INDEX, i]]
    _solve_face(v, k, m)
    sum_other, height, along, e_z, e_d = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(size):
        sum_other += v[A, k[INDEX, i]] * v[X, i]
    for i in range(size):
        v[X, i] = v[Z, i] * sum_other - v[X, i]
        e_z += v[E, k[INDEX, i]] * v[Z, i]
        e_d += v[E, k[INDEX, i]] * v[X, i]
    for i in range(size):
        row_z, row_d = -e_z * v[E, k[INDEX, i]], -e_d * v[E, k[INDEX, i]]
        for j in range(size):
            row_z += m[MATRIX, i, j] * v[Z, j]
            row_d += m[MATRIX, i, j] * v[X, j]
        height += v[Z, i] * row_z
        along += v[X, i] * row_d
    room = radius * radius - along
    bounded = room > 0
    stride = np.sqrt(max(height, 0.0) / room) if bounded else 0.0
    v[SCALAR, TRIED] = 1 / stride if stride > 0 else 0.0
    for i in range(size):
        v[Z, i] = v[Z, i] + stride * v[X, i] if bounded else v[X, i]
    if not bounded:  # it sums to 0: that of the largest a from the others', which may be tiny
        top, rest = 0, 0.0
        for i in range(1, size):
            if v[A, k[INDEX, i]] > v[A, k[INDEX, top]]:
                top = i
        for i in range(size):
            rest += v[A, k[INDEX, i]] * v[Z, i] if i != top else 0.0
        v[Z, top] = -rest / v[A, k[INDEX, top]]
    return bounded


@_jit
def _pull(v: Array, radius: float, square: float) -> float:
    """r/‖g_y‖, where y is a face's minimiser the number that it was made with: what cancels g₀ on
    the face, near Pareto stationarity, is no other rounding of it. Else by ‖g_y‖² = `square`.
    """
    if v[SCALAR, PULL] > 0:
        return v[SCALAR, PULL]
    return radius / np.sqrt(square) if square > 0 else 0.0


@_jit
def _on_simplex(v: Array, k: Array, m: Array, radius: float, magnitude: float, eps: float) -> None:
    """β·y + radius·√(yᵀC y) from a feasible y, or ½ yᵀC y where the radius is below 0, by Wolfe's
    loop: y is the answer. `magnitude` is Σ|·| of the vector that β is C times.

    No rough phase is needed where the start has more than one task: then it was chosen with care.
    """
    count, turn, polished, ball = m.shape[1], 0, False, radius >= 0
    _begin(v, k, count)
    rough = settled = k[COUNT, SIZE] == 1
    while True:
        turn += 1
        late = turn > 4 * count + 20
        if settled:
            square, total = _times(v, k, m)
            flat = square <= 8 * count * eps * total * total
            level, size = square, total
            if ball:
                pull, level = _pull(v, radius, square), 0.0
                for i in range(count):
                    v[RATES, i] = v[BETA, i] + pull * v[RATES, i]
                for i in range(k[COUNT, SIZE]):
                    level += v[Y, k[INDEX, i]] * v[RATES, k[INDEX, i]]
                size = magnitude + pull * total
            # in the rough phase nothing is refined
            noise = 8 * min(eps, SINGLE) * size * (64 if rough else 1)
            worst = _price(v, k, count, level, noise, total)
            if not rough and k[COUNT, NEWEST] < 0:
                return
            if flat and k[COUNT, SIZE] > 1 and not (ball or rough or polished):
                # what violates now may be the error of y alone
                polished = True
                _polish(v, k, m, eps)
                continue
            polished = False
            rough = _choose(v, k, count, worst, rough, turn >= ROUGH_TURNS or flat)
        settled = True
        while True:
            rough = _prepare(v, k, m, eps, rough)
            bounded = _lowest_on_face(v, k, m, radius) if ball else _nearest_on_face(v, k, m)
            if _rejects_newest(v, k):
                _drop_ridge(v, k)
                break
            if _advance(v, k, m, bounded, rough, late):
                v[SCALAR, PULL] = v[SCALAR, TRIED]
                break
            _drop_ridge(v, k)
            _scale_to_simplex(v, k)


# --- the dual cone ------------------------------------------------------------------------------


@_jit
def _lowest_in_cone(v: Array, k: Array, m: Array, ridge: float) -> int:
    """z = (C + R)⁻¹(R·centre - β) on the face, R = ridge·diag(C), as a correction of the centre;
    return how many of its entries are negative.
    """
    _factorise(v, k, m, ridge, 0.0, 0.25 * ridge)
    size, negative = k[COUNT, SIZE], 0
    for i in range(size):
        entry = -v[BETA, k[INDEX, i]]
        for j in range(size):
            entry -= m[MATRIX, i, j] * v[CENTRE, k[INDEX, j]]
        v[RIGHT, i] = entry
    _solve_face(v, k, m)
    for i in range(size):
        v[Z, i] = v[X, i] + v[CENTRE, k[INDEX, i]]
        negative += v[Z, i] < 0
    k[COUNT, SOLVED] += 1
    return negative  # pyright: ignore[reportReturnType]


@_jit
def _dual_cone(v: Array, k: Array, m: Array, magnitude: float, eps: float, ridge: float) -> float:
    """½ yᵀC y + β·y over y >= 0; `magnitude` is Σ|·| of the vector that β is C times.

    It starts from the face that k still holds, which the last problem with this C left, if most of
    its weights are also positive in this problem; else from 0, and so do those that follow. Two
    steps of the proximal-point method, each with ½ ridge Σ C_tt(y_t - centre_t)² added: no pivot is
    below the ridge, so that no face is without a correct digit. Return yᵀC y.
    """
    count = m.shape[1]
    for i in range(count):
        v[Y, i] = v[CENTRE, i] = 0.0
        k[BLOCKED, i] = 0
    k[COUNT, ROUNDS] = 1
    warm = k[COUNT, SIZE] > 0 and k[COUNT, UNLIKE] == 0
    if warm and 8 * _lowest_in_cone(v, k, m, ridge) > k[COUNT, SIZE]:
        warm, k[COUNT, UNLIKE] = False, 1
    if not warm:
        _begin(v, k, count)
    for step in range(CENTRES):
        turn, settled, rough = 0, step == 0 and not warm, step == 0
        while True:
            turn += 1
            late = turn > 4 * count + 20
            if settled:
                _, total = _times(v, k, m)
                for i in range(count):
                    v[RATES, i] += v[BETA, i] + ridge * m[COSINE, i, i] * (v[Y, i] - v[CENTRE, i])
                noise = 8 * min(eps, SINGLE) * (magnitude + total) * (64 if rough else 1)
                worst = _price(v, k, count, 0.0, noise, 0.0)
                if not rough and k[COUNT, NEWEST] < 0:
                    break
                rough = _choose(v, k, count, worst, rough, turn >= ROUGH_TURNS)
            settled = True
            while k[COUNT, SIZE] > 0:
                _lowest_in_cone(v, k, m, ridge)
                if _rejects_newest(v, k) or _advance(v, k, m, True, rough, late):
                    break
        if k[COUNT, SIZE] == 0:
            return 0.0
        for i in range(count if step + 1 < CENTRES else 0):
            v[CENTRE, i] = v[Y, i]
    reach = 0.0
    for i in range(count):  # yᵀC y, without the cancellation in it
        pull = ridge * m[COSINE, i, i] * (v[Y, i] - v[CENTRE, i])
        reach -= v[Y, i] * (v[BETA, i] + pull)
    return max(reach, 0.0)


# --- one problem after the other ----------------------------------------------------------------


@_jit
def _shortest(v: Array, k: Array, m: Array, zero: bool, eps: float) -> None:
    """The min-norm answer y; where there are zero gradients the hull holds 0, and every such task
    is as good: y is then 1 for each, and their number in sum.
    """
    nearest, count = 0, m.shape[1]
    for i in range(count):
        v[Y, i] = 1 - k[REAL, i]
        if v[LENGTH, i] * v[A, nearest] < v[LENGTH, nearest] * v[A, i]:
            nearest = i
    if not zero:
        v[Y, nearest] = 1 / v[A, nearest]
        _on_simplex(v, k, m, -1.0, 0.0, eps)


@_jit
def _worst_rate(v: Array, count: int, pull: float, noise: float) -> float:
    """Of β + pull·C y + noise, in the units of min(n); `rates` holds C y."""
    worst = np.inf
    for i in range(count):
        worst = min(worst, (v[BETA, i] + pull * v[RATES, i] + noise) / v[A, i])
    return worst


@_jit
def _set_vertex(v: Array, count: int, task: int) -> None:
    """y is this vertex."""
    v[SCALAR, PULL] = 0.0
    for i in range(count):
        v[Y, i] = 1 / v[A, i] if i == task else 0.0


@_jit
def _solve_in_ball(
    v: Array, k: Array, m: Array, zero: bool, radius: float, magnitude: float, eps: float,
    ridge: float,
) -> bool:  # fmt: skip
    """CAGrad's dual answer y; True where the direction is not to be had from it, but is the
    projection on the dual cone (`push` its multipliers), or as much of it as the ball holds.
    """
    count, vertex, vertex_value = m.shape[1], 0, np.inf
    for i in range(count):
        value = (v[BETA, i] + radius * v[LENGTH, i]) / v[A, i]
        if value < vertex_value:
            vertex, vertex_value = i, value
    _set_vertex(v, count, vertex)
    if radius == 0:  # F is linear, the direction g₀
        return False
    if not zero:
        # Away from Pareto stationarity F is smooth, and the best vertex as good a start as any.
        _on_simplex(v, k, m, radius, magnitude, eps)
        square, total = _times(v, k, m)
        if square > 1e-6 * total * total:
            return False
    _shortest(v, k, m, zero, eps)
    square, total = _times(v, k, m)
    square = 0.0 if zero else max(square, 0.0)
    lowest, safest, shrink = radius * np.sqrt(square), -np.inf, 1.0
    for i in range(count):
        lowest += v[BETA, i] * v[Y, i]
    if square <= max(1e-6, ridge) * total * total:
        # Near Pareto stationarity: where the ball holds the projection on the dual cone, that is
        # the answer; elsewhere its multipliers are a start with F < 0, from which g_w = 0 is never
        # visited.
        k[COUNT, SIZE] = 0
        for i in range(count):
            v[OTHER, i] = v[Y, i]  # the loops have one place for their answers
        reach = _dual_cone(v, k, m, magnitude, eps, ridge)
        _times(v, k, m)
        for i in range(count):
            v[PUSH, i], v[Y, i] = v[Y, i], v[OTHER, i]
        shrink = min(1.0, radius / np.sqrt(reach)) if reach > 0 else 1.0
        safest = _worst_rate(v, count, shrink, 0.0)
        pareto = square <= ridge * total * total
        value, total = radius * np.sqrt(reach), 0.0
        for i in range(count):
            value += v[BETA, i] * v[PUSH, i]
            total += v[A, i] * v[PUSH, i]
        stationary = pareto and reach <= (1 + ridge) * radius * radius
        for i in range(count):
            if total > 0 and not stationary and (value < lowest * total or pareto):
                v[Y, i] = v[PUSH, i] / total
            v[PUSH, i] *= shrink
        if stationary:
            return True
        lowest = value / total if total > 0 and (value < lowest * total or pareto) else lowest
    if vertex_value < lowest:
        _set_vertex(v, count, vertex)
    _on_simplex(v, k, m, radius, magnitude, eps)
    square, total = _times(v, k, m)
    # The projection may do better than what g_w says of d: by more than rounding, for a projection
    # cut off by the ball has the derivatives of g_w's branch where both are one direction.
    pull = _pull(v, radius, max(square, 0.0) + ROUNDING * total * total)
    return _worst_rate(v, count, pull, 8 * ROUNDING * (magnitude + pull * total)) < safest


@_jit
def _recover(
    v: Array, m: Array, kind: int, given: Array, stationary: bool, radius: float, out: Array
) -> float:
    """Dual and weights in the caller's units; return CAGrad's dual value."""
    count, total, pull, value = m.shape[1], 0.0, 0.0, 0.0
    for i in range(count):
        total += v[A, i] * v[Y, i]
    for i in range(count):
        dual = v[A, i] * v[Y, i] if kind == DUAL_CONE else v[A, i] * v[Y, i] / total
        out[count + i] = dual
        out[i] = dual if kind == MIN_NORM else given[i] + dual
        v[X, i] = dual / v[A, i]
    if kind != CAGRAD:
        return value
    square, total = max(_product(v, m), 0.0), 0.0
    for i in range(count):
        value += v[BETA, i] * v[X, i]
        total += v[X, i]
    if square > 0:
        pull = _pull(v, radius, square + ROUNDING * total * total)
    for i in range(count):
        out[i] = given[i] + (v[A, i] * v[PUSH, i] if stationary else pull * out[count + i])
    return value + radius * np.sqrt(square)


@_jit
def _certify(
    v: Array, k: Array, m: Array, kind: int, value: float, unit: float, out: Array
) -> None:
    """Rates, value and gap from the answer alone; `value` is CAGrad's dual value."""
    count, smallest, own, spread, gap = m.shape[1], np.inf, 0.0, 0.0, 0.0
    for i in range(count):
        v[X, i] = out[i] / v[A, i]
        spread += v[LENGTH, i] * abs(v[X, i])
    _product(v, m)
    for i in range(count):
        rate = v[RATES, i] / v[A, i]
        out[2 * count + i] = rate * unit
        smallest = min(smallest, rate)
        own += out[i] * rate
        gap += out[count + i] * abs(rate)
        if rate < 0:
            gap -= rate * spread / (v[LENGTH, i] / v[A, i] if k[REAL, i] else 1.0)
    if kind == MIN_NORM:
        gap = own - smallest
    elif kind == CAGRAD:
        gap = value - smallest
    out[3 * count] = (value if kind == CAGRAD else 0.5 * own) * unit
    out[3 * count + 1] = max(gap, 0.0) * unit


@_jit
def _range(
    gramian: Array, vector: Array, c: Array, kind: int, eps: float, ridge: float, lo: int, hi: int,
    report: Array, support: Array, info: Array,
) -> None:  # fmt: skip
    """Problems lo … hi - 1 of the batch."""
    count = gramian.shape[2]
    v, k = np.zeros((14, count + 4)), np.zeros((5, count + 6), np.int64)
    # rows of three matrices at distances of a power of two would share lines of the cache
    m = np.empty((3, count, count + 8 if count >= 32 else count))
    least, finite, definite, zero = 1.0, False, False, False
    run = len(report) // len(gramian)
    for problem in range(lo, hi):
        given = vector[problem if len(vector) > 1 else 0]
        ball = c[problem if len(c) > 1 else 0]
        if problem % run == 0 or problem % SHARED == 0:
            k[COUNT, SIZE] = k[COUNT, UNLIKE] = 0
        if problem == lo or problem % run == 0:
            least, finite, negative, zero = _scale(gramian[problem // run], v, k, m)
            definite = finite and not negative and _semidefinite(m, INDEFINITE * count * eps)
        fine, magnitude, radius, stationary = definite and np.isfinite(ball), 0.0, 0.0, False
        for i in range(count):
            fine = fine and np.isfinite(given[i])
            v[X, i] = given[i] / v[A, i] if k[REAL, i] else 0.0
            magnitude += abs(v[X, i])
            support[problem, 0, i] = support[problem, 1, i] = False
        info[problem, 0], info[problem, 1] = 0, -1 if finite and not definite else 0
        if not fine:
            for i in range(report.shape[1]):  # a slice would bring numba's strings along
                report[problem, i] = np.nan
            continue
        if kind != MIN_NORM:
            radius = ball * np.sqrt(max(_product(v, m), 0.0))
            for i in range(count):
                v[BETA, i] = v[RATES, i]
        k[COUNT, SOLVED] = 0
        if kind == MIN_NORM:
            _shortest(v, k, m, zero, eps)
        elif kind == CAGRAD:
            stationary = _solve_in_ball(v, k, m, zero, radius, magnitude, eps, ridge)
        else:
            _dual_cone(v, k, m, magnitude, eps, ridge)
            for i in range(count):
                if given[i] > 0 and not k[INSIDE, i]:
                    _enter(k, i)  # the next problem begins at the support of v = w + u
        info[problem, 0], info[problem, 1] = k[COUNT, SOLVED], stationary
        for i in range(count):
            support[problem, 0, i] = v[Y, i] > 0
            support[problem, 1, i] = stationary and v[PUSH, i] > 0
        value = _recover(v, m, kind, given, stationary, radius, report[problem])
        _certify(v, k, m, kind, value, least * least, report[problem])
