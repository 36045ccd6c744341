"""Triton kernel of the active-set solver: the three small problems solved exactly on the GPU, one
program a problem, nothing decided on the host.

The loop is that of `active_set_cpu`, on the same unit rows C = G/(n nᵀ) with n_t the power of two
next to ‖g_t‖, a_t = min(n)/n_t, y_t = w_t/a_t. The linear algebra differs: a program cannot index
its registers by a number, which a triangular solve would have to. So what is held for the face's
matrix M = C + eeᵀ is a square root W of the inverse, M⁻¹ = WᵀW, with a row and a column for each
task, zero outside the face. A task that enters fills its row; one that leaves is reflected out.
(The inverse itself would be cheaper by half, but loses all digits where gradients are within 1e-7
of depending on each other; its root keeps half of them.) x = M⁻¹b is refined with C itself until it
stands still, so that the errors that W gathers on its way do not reach the answer. Where a pivot is
at rounding level W is made again with a ridge of that size. Sums run over axis 0 where they can: a
thread holds several of its entries, so that fewer are exchanged between threads.

A literal is exact only as operand of a float64 value: alone it is a float32. Scalars that a loop
carries therefore start as float64 tensors.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_NORM, CAGRAD, DUAL_CONE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
INDEFINITE, SINGLE = tl.constexpr(1e3), tl.constexpr(2.0**-23)
"""As in `active_set_cpu`."""


def solve(
    gramian: Tensor, vector: Tensor | None, c: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve a batch in one launch: `active_set_batch.solve` on tensors of one device and of any
    floating dtype, T <= 128, with a Gramian `[T, T]` for each problem or one for all.

    No value is read by the host and no allocation depends on one: it may be captured in a CUDA
    graph once it has run (and so been compiled) before.
    """
    count = gramian.shape[-1]
    kind = MIN_NORM if vector is None else DUAL_CONE if c is None else CAGRAD
    # what a problem lacks is never read
    arrays = [_make_contiguous(gramian if x is None else x) for x in (gramian, vector, c)]
    batch = max(len(x) for x in arrays)
    report = gramian.new_empty((batch, 3 * count + 2), dtype=torch.float64)
    support = gramian.new_empty((batch, 2, count), dtype=torch.bool)
    info = gramian.new_empty((batch, 2), dtype=torch.int64)
    strides = [x.stride(0) if len(x) > 1 else 0 for x in arrays]
    if batch:
        size = block(count)
        with torch.cuda.device_of(gramian):
            kernel: Any = _solve_one[(batch,)]
            shape = count, *strides, kind.value, size, eps
            kernel(*arrays, report, support, info, *shape, **launch(size))
    return report, support, info


def _make_contiguous(x: Tensor) -> Tensor:
    """Contiguous; half precision is widened here, what remains in the kernel."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.double()).contiguous()


def block(count: int) -> int:
    """Number of tasks, padded to a power of two."""
    return max(2, triton.next_power_of_2(count))


def launch(size: int) -> dict[str, Any]:
    """As many warps as hold two matrices of this size in registers with room to work; at 128, where
    some spill, all that a program may have. Nothing is contracted: the loop relies on symmetries.
    """
    warps = {32: 4, 64: 8, 128: 32}.get(size, 1)
    return {"num_warps": warps, "enable_fp_fusion": False}


@triton.jit
@no_type_check
def _resolution(EPS: tl.constexpr, tasks):
    """`problems.resolution`."""
    return 4 * EPS * tasks.to(tl.float64) + 9.094947017729282e-13  # 2⁻⁴⁰


@triton.jit
@no_type_check
def _times(matrix, x):
    """A symmetric matrix times a vector."""
    return tl.sum(matrix * x[:, None], axis=0)


@triton.jit
@no_type_check
def _dot(x, y):
    return tl.sum(x * y, axis=0)


@triton.jit
@no_type_check
def _column(matrix, here):
    return tl.sum(tl.where(here[:, None], matrix, 0.0), axis=0)


@triton.jit
@no_type_check
def _entry_at(x, here):
    return tl.sum(tl.where(here, x, 0.0), axis=0)


@triton.jit
@no_type_check
def _inverse_times(root, x):
    """M⁻¹x = WᵀW x."""
    return tl.sum(root * tl.sum(root * x[None, :], axis=1)[:, None], axis=0)


@triton.jit
@no_type_check
def _solve_face(root, cosine, e, right, ridge):
    """x = (M + ridge)⁻¹ right on the face, refined until one more round would change nothing."""
    x = _inverse_times(root, right)
    moving = 6
    while moving > 0:
        image = _times(cosine, x) + e * _dot(e, x) + ridge * x
        step = _inverse_times(root, right - image)
        x += step
        moving = tl.where(
            tl.max(tl.abs(step), axis=0) > 1e-9 * tl.max(tl.abs(x), axis=0), moving - 1, 0
        )
    return x


@triton.jit
@no_type_check
def _add_task(root, cosine, e, here, ridge, squares, floor):
    """W with the task `here` added to the face, and its pivot: the square of what its row adds."""
    column = _column(cosine, here)
    e_here = _entry_at(e, here)
    corner = _entry_at(column, here) + e_here * e_here + ridge * _entry_at(squares, here)
    column = column + e * e_here
    v = _solve_face(root, cosine, e, column, ridge * squares)  # zero outside the face, as W is
    image = _times(cosine, v) + e * _dot(e, v) + ridge * squares * v
    # an error of v enters by its square
    pivot = corner - tl.sum(v * (2 * column - image), axis=0)
    v = tl.where(here, -1.0, v) / tl.sqrt(tl.maximum(pivot, 0.25 * floor))
    return tl.where(here[:, None], v[None, :], root), pivot


@triton.jit
@no_type_check
def _drop_task(root, here):
    """W without the task `here`: a reflection leaves its row alone with an entry in its column."""
    p = tl.sum(tl.where(here[None, :], root, 0.0), axis=1)
    own, length = _entry_at(p, here), tl.sqrt(_dot(p, p))
    v = tl.where(here, p + tl.where(own < 0, -length, length), p)
    image = tl.sum(root * v[:, None], axis=0) * (1 / (length * (length + tl.abs(own))))
    rest = ~here[:, None] & ~here[None, :]
    return tl.where(rest, root - v[:, None] * image[None, :], 0.0)


@triton.jit
@no_type_check
def _descend(
    KIND: tl.constexpr, cosine, a, beta, radius, magnitude, EPS: tl.constexpr, y, inside, real,
    tasks, active,
):  # fmt: skip
    """The add-and-drop loop from a feasible y with support `inside`, if `active`; return y, the
    number of faces solved and, for the dual cone, yᵀC y, for CAGrad r/‖g_y‖ (0: not known).

    See the loops of `active_set_cpu`; one turn solves one face. Should rounding make the loop turn
    in a circle all the same, tasks that left stay out after 4T + 20 entries, and after 20T + 100
    faces the best point so far is the answer: its gap is computed from it.
    """
    index = tl.arange(0, y.shape[0])
    zero = tl.sum(tl.zeros_like(y), axis=0)
    root = tl.zeros_like(cosine)
    blocked, none = index < 0, tl.sum(index * 0, axis=0)
    entered, solved, entries = none - 1, none, none
    unit, delta = zero + 1.0, _resolution(EPS, tasks)
    # ridges are in units of ‖g_t‖²; a zero gradient has none of its own
    own = index[:, None] == index[None, :]
    squares = tl.maximum(tl.sum(tl.where(own, cosine, 0.0), axis=0), 0.5)
    ridge, centre, again, held_pull = zero, tl.zeros_like(y), active, zero
    rebuild = active
    # Triton 3.5 to 3.8 cannot compile a loop that carries a bool
    going = active.to(tl.int32)
    while going > 0:
        size = tl.sum(inside.to(tl.int32), axis=0)
        floor = 4 * EPS * size.to(tl.float64)
        # 1. W, brought to this face.
        if KIND != DUAL_CONE:
            largest = tl.max(tl.where(inside, a, 0.0), axis=0)
            far = (largest > 8 * unit) | (largest < 0.125 * unit)
            unit = tl.where(far, largest, unit)
            rebuild = rebuild | far
            ridge = tl.where(rebuild, 0.0, ridge)
        else:
            ridge = delta
        e = a / unit if KIND != DUAL_CONE else tl.zeros_like(a)
        todo = inside & (rebuild | (index == entered))
        root = tl.where(rebuild, 0.0, root)
        while tl.max(todo.to(tl.int32), axis=0) > 0:
            here = index == tl.argmax(todo.to(tl.int32), axis=0)
            root, pivot = _add_task(root, cosine, e, here, ridge, squares, floor)
            dependent = (pivot < floor) & (ridge == 0)  # never in the dual cone
            ridge = tl.where(dependent, floor, ridge)
            todo = tl.where(dependent, inside, todo & ~here)
            root = tl.where(dependent, 0.0, root)
        solved += 1
        # 2. The face's minimiser z, or (not bounded) a direction of endless descent.
        bounded = solved > 0
        if KIND == DUAL_CONE:
            held = tl.where(inside, centre, 0.0)
            right = tl.where(inside, -beta - _times(cosine, held), 0.0)
            z = held + _solve_face(root, cosine, e, right, delta * squares)
        else:
            x = _solve_face(root, cosine, e, e, zero)
            sum_x = _dot(a, x)
            z = x / sum_x
            if KIND == CAGRAD:
                other = _solve_face(root, cosine, e, beta, zero)
                other = z * _dot(a, other) - other
                height = tl.maximum(_dot(z, _times(cosine, z)), 0.0)
                room = radius * radius - _dot(other, _times(cosine, other))
                bounded = (room > 0) | (size == 1)
                stride = tl.where(
                    (room > 0) & (size > 1), tl.sqrt(height / tl.where(room > 0, room, 1.0)), 0.0
                )
                # it sums to 0: that of the largest a from the others', which may be tiny
                top = index == tl.argmax(tl.where(inside, a, 0.0), axis=0)
                rest = tl.sum(tl.where(top, 0.0, a * other), axis=0)
                falls = tl.where(top, -rest / a, other)
                z = tl.where(bounded, z + stride * other, falls)
        # 3. Take it, or go towards it as far as the simplex reaches.
        rejected = (entered >= 0) & (_entry_at(z, index == entered) <= 0)
        blocking = inside & tl.where(bounded, z <= 0, z < 0)
        way = tl.where(bounded, y - z, -z)
        fraction = y / tl.where(blocking & (way > 0), way, 1.0)
        share, leaver = tl.min(
            tl.where(blocking, fraction, float("inf")), axis=0, return_indices=True
        )
        stopped = ~rejected & (share < float("inf"))
        late = entries > 4 * tasks + 20
        taken = ~rejected & ~stopped & bounded
        moved = tl.maximum(y + tl.where(stopped, share, 0.0) * tl.where(bounded, z - y, z), 0.0)
        moved = tl.where(inside & (index != leaver), moved, 0.0)
        if KIND != DUAL_CONE:
            moved = moved / tl.where(stopped, _dot(a, moved), 1.0)
        y = tl.where(taken, tl.where(inside, z, 0.0), tl.where(stopped, moved, y))
        if KIND == CAGRAD:
            tried = tl.where(stride > 0, 1 / tl.where(stride > 0, stride, 1.0), 0.0)
            held_pull = tl.where(taken, tried, tl.where(stopped, 0.0, held_pull))
        leaver = tl.where(rejected, entered, tl.where(stopped, leaver, -1))
        inside = inside & (index != leaver)
        blocked = (blocked & (rejected | stopped | late)) | ((index == leaver) & (rejected | late))
        rebuild = (leaver >= 0) & (ridge > 0) if KIND != DUAL_CONE else leaver < -1
        if (leaver >= 0) & ~rebuild:
            root = _drop_task(root, index == leaver)
        # 4. Which task enters: that of the largest violation, as a cosine, above the noise.
        rates = _times(cosine, y)
        total, square = tl.sum(y, axis=0), _dot(y, rates)
        if KIND == MIN_NORM:
            level, noise = square, 8 * min(EPS, SINGLE) * total
        elif KIND == CAGRAD:
            pull = tl.where(square > 0, radius / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0)
            pull = tl.where(held_pull > 0, held_pull, pull)
            rates = beta + pull * rates
            level, noise = _dot(y, rates), 8 * min(EPS, SINGLE) * (magnitude + pull * total)
        else:
            rates = beta + rates + delta * squares * (y - centre)
            level, noise = zero, 8 * min(EPS, SINGLE) * (magnitude + total)
        if KIND == DUAL_CONE:
            violation = -rates - noise
        else:
            violation = level * a - rates - noise * tl.maximum(1.0, total * a)
        violation = tl.where(real & ~inside & ~blocked, violation, 0.0)
        most, candidate = tl.max(violation, axis=0, return_indices=True)
        entered = tl.where((most > 0) & ~stopped, candidate, -1)
        entries += tl.where(stopped, 0, 1)
        inside = inside | (index == entered)
        more = stopped | (entered >= 0)
        if KIND == DUAL_CONE:  # the second step of the proximal-point method
            centre = tl.where(again & ~more, y, centre)
            more, again = more | again, again & more
        going = (more & (solved < 20 * tasks + 100)).to(tl.int32)
    # without the cancellation in yᵀC y
    reach = tl.sum(y * (beta + delta * squares * (y - centre)), axis=0)
    return y, solved, held_pull if KIND == CAGRAD else tl.maximum(-reach, 0.0)


@triton.jit
@no_type_check
def _semidefinite(cosine, bound, index, tasks):
    """Whether no eigenvalue of C lies below -bound: all pivots of C + bound·I are positive."""
    matrix = cosine + tl.where(index[:, None] == index[None, :], bound, 0.0)
    sound = tasks > 0
    for k in range(tasks):
        here = index == k
        row = _column(matrix, here)
        pivot = _entry_at(row, here)
        sound = sound & (pivot > 0)
        rest = ~here[:, None] & ~here[None, :]
        matrix = tl.where(
            rest, matrix - row[:, None] * row[None, :] * (1 / tl.where(pivot > 0, pivot, 1.0)), 0.0
        )
    return sound


@triton.jit(do_not_specialize=["tasks", "gramian_stride", "vector_stride", "c_stride"])
@no_type_check
def _solve_one(
    gramian, vector, c, report, support, info, tasks, gramian_stride, vector_stride, c_stride,
    KIND: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, N)
    there = index < tasks
    both = there[:, None] & there[None, :]
    gramian += problem * gramian_stride
    cell = index[:, None] * tasks + index[None, :]
    g = tl.load(gramian + cell, both, other=0.0).to(tl.float64)
    g = 0.5 * (g + tl.trans(g))
    infinity = float("inf")
    finite = tl.sum(tl.sum(tl.where(tl.abs(g) < infinity, 0, 1), axis=0), axis=0) == 0
    # what is unsound is computed all the same, and its answer thrown away
    g = tl.where(finite, g, 0.0)
    diagonal = tl.sum(tl.where(index[:, None] == index[None, :], g, 0.0), axis=0)
    real = diagonal > 0
    # The power of two next to the square root, from the bits of the exponent.
    exponent = (diagonal.to(tl.int64, bitcast=True) >> 52) - 1023
    n = ((((exponent + 1) >> 1) + 1023) << 52).to(tl.float64, bitcast=True)
    least = tl.min(tl.where(real, n, infinity), axis=0)
    least = tl.where(least < infinity, least, 1.0)
    n = tl.where(real, n, least)
    a, shrink = least / n, 1 / n
    cosine = g * shrink[:, None] * shrink[None, :]
    lengths = tl.sqrt(tl.maximum(diagonal, 0.0)) * shrink
    negative = tl.min(diagonal, axis=0) < 0
    delta = _resolution(EPS, tasks)
    definite = (
        finite
        & ~negative
        & _semidefinite(cosine, INDEFINITE * EPS * tasks.to(tl.float64), index, tasks)
    )
    fine = definite
    given, asked = tl.zeros_like(a), tl.zeros_like(a)
    radius, magnitude = tl.sum(given, axis=0), tl.sum(given, axis=0)
    beta = given
    if KIND != MIN_NORM:
        asked = tl.load(vector + problem * vector_stride + index, there, other=0.0).to(tl.float64)
        fine = fine & (tl.sum(tl.where(tl.abs(asked) < infinity, 0, 1), axis=0) == 0)
        asked = tl.where(fine, asked, 0.0)
        given = tl.where(real, asked / a, 0.0)
        magnitude = tl.sum(tl.abs(given), axis=0)
        beta = _times(cosine, given)
    if KIND == CAGRAD:
        ball = tl.load(c + problem * c_stride).to(tl.float64)
        fine = fine & (tl.abs(ball) < infinity)
        radius = tl.where(fine, ball, 0.0) * tl.sqrt(tl.maximum(_dot(beta, given), 0.0))
    none = index < 0
    push = tl.zeros_like(a)
    held_pull = radius
    stationary = tasks < 0
    if KIND == DUAL_CONE:
        y, solved, _ = _descend(
            DUAL_CONE, cosine, a, beta, radius, magnitude, EPS, push, none, real, tasks, fine
        )
    else:
        # A zero gradient: the hull holds 0, and every such task is as good.
        zeros = there & (diagonal == 0)
        converged = tl.sum(zeros.to(tl.int32), axis=0)
        nearest = tl.argmin(tl.where(there, diagonal, infinity), axis=0)
        start = tl.where(converged > 0, zeros, index == nearest)
        y = tl.where(start, 1 / (a * tl.maximum(converged, 1).to(tl.float64)), 0.0)
        flat = (radius == 0) if KIND == CAGRAD else (tasks < 0)
        active = fine & (converged == 0) & ~flat
        y, solved, _ = _descend(
            MIN_NORM, cosine, a, beta, radius, magnitude, EPS, y, start, real, tasks, active
        )
        if KIND == CAGRAD:
            image = _times(cosine, y)
            square, total = _dot(y, image), tl.sum(y, axis=0)
            value = _dot(beta, y) + radius * tl.sqrt(tl.maximum(square, 0.0))
            # Near Pareto stationarity: where the ball holds the projection on the dual cone, that
            # is the answer; elsewhere its multipliers are a start with F < 0, from which g_w = 0 is
            # never visited.
            near = fine & ~flat & (square <= tl.maximum(1e-6, delta) * total * total)
            push, more, reach = _descend(
                DUAL_CONE, cosine, a, beta, radius, magnitude, EPS, push, none, real, tasks, near
            )
            solved += more
            pareto = near & (square <= delta * total * total)
            stationary = pareto & (reach <= (1 + delta) * radius * radius)
            sum_push = _dot(a, push)
            pushing = sum_push > 0
            sum_push = tl.where(pushing, sum_push, 1.0)
            value_push = (_dot(beta, push) + radius * tl.sqrt(tl.maximum(reach, 0.0))) / sum_push
            better = near & pushing & ((value_push < value) | pareto)
            value_start = tl.where(better, value_push, value)
            start = tl.where(better, push / sum_push, y)
            # With c = 0, F is linear, the direction g₀, and the lowest vertex the answer.
            vertices = tl.where(
                tl.where(flat, there, real), (beta + radius * lengths) / a, infinity
            )
            lowest, best = tl.min(vertices, axis=0, return_indices=True)
            start = tl.where(
                flat | (lowest < value_start), tl.where(index == best, 1 / a, 0.0), start
            )
            active = fine & ~stationary
            start = tl.where(active, start, y)
            inside, going = start > 0, active & ~flat
            y, more, held_pull = _descend(
                CAGRAD, cosine, a, beta, radius, magnitude, EPS, start, inside, real, tasks, going
            )
            solved += more
            image = _times(cosine, y)
            square, total = _dot(y, image), tl.sum(y, axis=0)
            # the projection, or as much of it as the ball holds, may do better than what g_w says
            push = push * tl.minimum(1.0, radius / tl.sqrt(tl.where(reach > 0, reach, 1e-300)))
            pull = radius / tl.sqrt(tl.maximum(square, 0.0) + 2.2e-16 * total * total)
            pull = tl.where(held_pull > 0, held_pull, pull)
            # by more than rounding: see `active_set_cpu`
            noise = 8 * 2.2e-16 * (magnitude + pull * total)
            recovered = (beta + pull * image + noise) / a
            recovered = tl.min(tl.where(there, recovered, infinity), axis=0)
            safest = (beta + _times(cosine, push)) / a
            safest = tl.min(tl.where(there, safest, infinity), axis=0)
            late = active & near & ~flat & (recovered < safest)
            stationary = stationary | late
    # The answer in the caller's units, and its certificate from it alone.
    dual = a * y
    if KIND != DUAL_CONE:
        dual = dual / tl.where(fine, tl.sum(dual, axis=0), 1.0)
    image = _times(cosine, dual / a)
    square = tl.maximum(_dot(image, dual / a), 0.0)
    total = tl.sum(dual / a, axis=0)
    if KIND == MIN_NORM:
        weights = dual
    elif KIND == DUAL_CONE:
        weights = asked + dual
    else:
        # The ball holds the direction in spite of rounding in ‖g_w‖.
        pull = tl.where(
            square > 0,
            radius / tl.sqrt(tl.where(square > 0, square + 2.2e-16 * total * total, 1.0)),
            0.0,
        )
        pull = tl.where(held_pull > 0, held_pull, pull)  # see `_pull` of `active_set_cpu`
        weights = asked + tl.where(stationary, a * push, pull * dual)
    rates = _times(cosine, weights / a) / a
    smallest = tl.min(tl.where(there, rates, infinity), axis=0)
    own = _dot(weights, rates)
    if KIND == MIN_NORM:
        value, gap = 0.5 * own, own - smallest
    elif KIND == CAGRAD:
        value = _dot(beta, dual / a) + radius * tl.sqrt(square)
        gap = value - smallest
    else:
        lengths = lengths / a
        charge = tl.sum(lengths * tl.abs(weights), axis=0) / tl.where(real, lengths, 1.0)
        value = 0.5 * own
        gap = tl.sum(dual * tl.abs(rates) + tl.maximum(-rates, 0.0) * charge, axis=0)
    unknown = float("nan")
    report += problem * (3 * tasks + 2)
    tl.store(report + index, tl.where(fine, weights, unknown), there)
    tl.store(report + tasks + index, tl.where(fine, dual, unknown), there)
    tl.store(report + 2 * tasks + index, tl.where(fine, rates * least * least, unknown), there)
    tl.store(report + 3 * tasks, tl.where(fine, value * least * least, unknown))
    tl.store(
        report + 3 * tasks + 1, tl.where(fine, tl.where(gap < 0, 0.0, gap) * least * least, unknown)
    )
    support += problem * 2 * tasks
    tl.store(support + index, fine & (y > 0), there)
    tl.store(support + tasks + index, stationary & (push > 0), there)
    tl.store(info + 2 * problem, solved.to(tl.int64))
    tl.store(
        info + 2 * problem + 1,
        tl.where(finite & ~definite, -1, stationary.to(tl.int32)).to(tl.int64),
    )
