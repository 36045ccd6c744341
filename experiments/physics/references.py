"""Solutions to compare with: Burgers' by an integral, others by Fourier series in space."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NODES = 128  # of Gauss-Hermite's quadrature
MODES, STEPS = 256, 4000
EVERY = 4  # one point in four is in the answer


def cole_hopf(x: np.ndarray, t: np.ndarray, viscosity: float) -> np.ndarray:
    """u of u_t + u u_x = ν u_xx on [-1, 1] with u(x, 0) = -sin πx, by the transform of Cole and
    Hopf: a ratio of two integrals against a heat kernel.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(NODES)
    y = x[..., None] - 2 * np.sqrt(viscosity * t)[..., None] * nodes
    exponent = -np.cos(np.pi * y) / (2 * np.pi * viscosity)
    share = weights * np.exp(exponent - exponent.max(-1, keepdims=True))
    return -(np.sin(np.pi * y) * share).sum(-1) / share.sum(-1)


def spectral(
    start: Callable[[np.ndarray], np.ndarray],
    linear: Callable[[np.ndarray], np.ndarray],
    rest: Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], np.ndarray],
    times: np.ndarray,
    modes: int = MODES,
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """u of u_t = L u + N(u), of period 2 on [-1, 1): Fourier series in x, Runge-Kutta's method of
    order 4 in t, with L solved exactly. `start`: u at t = 0, from x. `linear`: the factor by which
    L multiplies e^{ikx}, from ik. `rest`: N(u), from u and the derivative in x as a function of u.
    `times`: rising evenly from 0. `modes`: points in x. `steps`: of time, all together. Returns the
    points x `[modes]`, and u `[time, modes]`.
    """
    x = -1 + 2 * np.arange(modes) / modes
    ik = 1j * np.pi * np.fft.rfftfreq(modes, 1 / modes)
    kept = np.abs(ik.imag) < np.pi * modes / 3  # products of what is kept alias to what is not
    each = -(-steps // (len(times) - 1))
    h = times[-1] / (each * (len(times) - 1))
    half = np.exp(linear(ik) * h / 2)

    def derivative(u: np.ndarray) -> np.ndarray:
        return np.fft.irfft(ik * np.fft.rfft(u), modes)

    def slope(v: np.ndarray) -> np.ndarray:
        return kept * np.fft.rfft(rest(np.fft.irfft(v, modes), derivative))

    v = kept * np.fft.rfft(start(x))
    found = [np.fft.irfft(v, modes)]
    for _ in times[1:]:
        for _ in range(each):
            a = slope(v)
            b = slope(half * (v + h / 2 * a))
            c = slope(half * v + h / 2 * b)
            d = slope(half * (half * v + h * c))
            v = half * (half * (v + h / 6 * a) + h / 3 * (b + c)) + h / 6 * d
        found.append(np.fft.irfft(v, modes))
    return x, np.stack(found)


ALLEN_CAHN, REACTION = 1e-3, 5.0
KORTEWEG = 0.1**2
LAST = {"Allen-Cahn": 0.5, "Korteweg-de Vries": 0.5}


@functools.cache
def evolution(name: str, times: int) -> tuple[Tensor, Tensor]:
    """Points (x, t) `[times · MODES / EVERY, 2]` and u there, of the two periodic problems."""
    t = np.linspace(0, LAST[name], times)
    if name == "Allen-Cahn":
        x, u = spectral(
            lambda x: x**2 * np.cos(np.pi * x), lambda ik: ALLEN_CAHN * ik**2,
            lambda u, _: REACTION * (u - u**3), t,
        )  # fmt: skip
    else:
        x, u = spectral(
            lambda x: np.cos(np.pi * x), lambda ik: -KORTEWEG * ik**3,
            lambda u, derivative: -derivative(u**2 / 2), t,
        )  # fmt: skip
    x, u = x[::EVERY], u[:, ::EVERY]
    grid = np.stack(np.meshgrid(t, x, indexing="ij")[::-1], -1).reshape(-1, 2)
    return torch.from_numpy(grid), torch.from_numpy(u.reshape(-1))
