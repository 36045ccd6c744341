"""The runs that several of GradNorm's questions share: T = 2 and T = 10, each method's lanes."""

import torch

import mtlfunc as mf

from ..report.findings import Settings
from .common import TEN
from .lanes import (
    EQUAL,
    EVERY_ALPHA,
    MILD,
    NOISE,
    RATIOS,
    SECOND,
    SHARPER,
    TEN_ALPHAS,
    Lane,
    Trace,
    size_of,
)
from .train_lanes import train

OF_TEN = "of ten"
"""Lanes at the first two of the ten scales, for what a larger T does alone."""
TRIED = "tried"
"""Lanes that a search over static weights at T = 10 tries."""


def two_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm at T = 2. Tasks of other scales, of other difficulty, and with
    few data.
    """
    size = size_of(settings)
    plain, sharp = deviation_of(1.0), deviation_of(SHARPER)
    others = [
        lane
        for lr in size.mild
        for lane in (
            Lane("sharper", lr, scales=(1 / plain, 1 / sharp), sharpness=(1.0, SHARPER)),
            Lane("noisy", lr, scales=(1 / plain,) * 2, noise=(0.0, NOISE)),
            Lane("finite", lr, scales=MILD, finite=True),
        )
    ]
    of_ten = [Lane(OF_TEN, lr, scales=TEN[:2]) for lr in size.mild]
    scaled = [
        Lane(f"scales, {ratio:g}", lr, scales=(1.0, ratio))
        for ratio in RATIOS[:-1]
        for lr in size.mild
    ]
    grid = [
        Lane(f"static, {second:g}", lr, weights=(1.0, second))
        for second in (1.0, *SECOND)
        for lr in size.two
    ]
    learnt = [Lane(f"GradNorm, {alpha:g}", lr, alpha) for alpha in EVERY_ALPHA for lr in size.two]
    ratios = [
        Lane(f"ratio {ratio:g}, {alpha:g}", lr, alpha, scales=(1.0, ratio))
        for ratio in (RATIOS[0], RATIOS[-1])
        for alpha in EVERY_ALPHA
        for lr in size.mild
    ]
    return train(
        "T = 2",
        [*scaled, *grid, *others, *of_ten],
        [*learnt, *others, *ratios, *of_ten],
        size,
        settings,
    )


def ten_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm at T = 10. Static: equal, and what a search tries, 1/L_i(0) and
    random weights, each with one of the rates.
    """
    size = size_of(settings)
    equal = [Lane(EQUAL, lr, scales=TEN) for lr in size.ten]
    finite = [Lane("finite", lr, scales=TEN, finite=True) for lr in size.ten]
    weights = tuple(scale**-2 for scale in TEN)
    fixed = [Lane(TRIED, lr, scales=TEN, weights=weights) for lr in size.ten]
    search = random_lanes(TRIED, TEN, size.draws, size.ten)
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha, scales=TEN)
        for alpha in TEN_ALPHAS
        for lr in size.ten
    ]
    static = [*equal, *finite, *fixed, *search]
    return train("T = 10", static, [*learnt, *finite], size, settings)


def random_lanes(
    name: str, scales: tuple[float, ...], draws: int, rates: tuple[float, ...]
) -> list[Lane]:
    """Weights that are log-uniform over three decades, as many as σ² spans, each with a rate."""
    key = mf.random.key(10)
    drawn = 10 ** (-3 * mf.random.uniform(mf.random.fold_in(key, 0), (draws, len(scales))))
    which = (mf.random.uniform(mf.random.fold_in(key, 1), (draws,)) * len(rates)).long()
    return [
        Lane(name, rates[int(i)], scales=scales, weights=tuple(w.tolist()))
        for w, i in zip(drawn, which, strict=True)
    ]


def deviation_of(sharpness: float) -> float:
    """Of tanh(sharpness·z), z ~ N(0, 1)."""
    z = torch.linspace(-6, 6, 10001, dtype=torch.float64)
    return float(torch.tanh(sharpness * z).square() @ torch.softmax(-z.square() / 2, 0)) ** 0.5
