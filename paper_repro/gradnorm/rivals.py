"""The runs that several of GradNorm's questions share: T = 2 and T = 10, each method's lanes."""

import torch

import mtlfunc as mf

from ..report.findings import Settings
from .common import TEN
from .lanes import (
    EQUAL,
    EVERY_ALPHA,
    FIXED,
    MILD,
    NOISE,
    RATIOS,
    SEARCH,
    SECOND,
    SHARPER,
    STRONG,
    STRONG_ALPHA,
    TEN_ALPHAS,
    TRIED,
    Lane,
    Trace,
    size_of,
)
from .train_lanes import train


def two_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm at T = 2. Tasks of other scales, of other difficulty, and with
    few data.
    """
    size = size_of(settings)
    plain, sharp = deviation_of(1.0), deviation_of(SHARPER)

    def others(lr: float) -> list[Lane]:
        return [
            Lane("sharper", lr, scales=(1 / plain, 1 / sharp), sharpness=(1.0, SHARPER)),
            Lane("noisy", lr, scales=(1 / plain,) * 2, noise=(0.0, NOISE)),
            Lane("finite", lr, scales=MILD, finite=True),
        ]

    static = [
        Lane(f"scales, {ratio:g}", lr, scales=(1.0, ratio))
        for ratio in RATIOS[:-1]
        for lr in size.mild
    ]
    static += [
        Lane(f"static, {second:g}", lr, weights=(1.0, second))
        for second in (1.0, *SECOND)
        for lr in size.two
    ]
    static += [lane for lr in size.mild for lane in others(lr)]
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha) for alpha in EVERY_ALPHA for lr in size.two
    ] + [lane for lr in size.mild for lane in others(lr)]
    learnt += [
        Lane(f"ratio {ratio:g}, {alpha:g}", lr, alpha, scales=(1.0, ratio))
        for ratio in (RATIOS[0], RATIOS[-1])
        for alpha in EVERY_ALPHA
        for lr in size.mild
    ]
    # the first of the ten scales, for what a larger T does alone
    static += [Lane("of ten", lr, scales=TEN[:2]) for lr in size.mild]
    learnt += [Lane("of ten", lr, scales=TEN[:2]) for lr in size.mild]
    fixed_runs, learnt_runs = train(
        {"T = 2, static weights": ("weighted", static), "T = 2, GradNorm": ("gradnorm", learnt)},
        size,
        settings,
    )
    return fixed_runs, learnt_runs


def ten_tasks(settings: Settings) -> tuple[Trace, Trace, Trace]:
    """Static weights, GradNorm, and GradNorm with normalised targets at T = 10. Static: equal,
    1/L_i(0) and a random search.
    """
    size = size_of(settings)
    key = mf.random.key(10)
    # log-uniform over three decades; σ² spans as many
    drawn = 10 ** (-3 * mf.random.uniform(mf.random.fold_in(key, 0), (size.draws, len(TEN))))
    rates = (mf.random.uniform(mf.random.fold_in(key, 1), (size.draws,)) * len(size.ten)).long()
    static = [Lane(EQUAL, lr, scales=TEN) for lr in size.ten]
    finite = [Lane("finite", lr, scales=TEN, finite=True) for lr in size.ten]
    static += finite
    fixed = [
        Lane(FIXED, lr, scales=TEN, weights=tuple(scale**-2 for scale in TEN)) for lr in size.ten
    ]
    search = [
        Lane(SEARCH, size.ten[int(rate)], scales=TEN, weights=tuple(w.tolist()))
        for w, rate in zip(drawn, rates, strict=True)
    ]
    static += fixed + search
    # what needs no search is among what a search tries: at T = 2 it is in the grid
    static += [lane._replace(name=f"{TRIED}, {lane.name}") for lane in fixed + search]
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha, scales=TEN)
        for alpha in TEN_ALPHAS
        for lr in size.ten
    ] + finite
    corrected = [Lane(STRONG, lr, STRONG_ALPHA, scales=TEN) for lr in size.ten]
    fixed_runs, learnt_runs, corrected_runs = train(
        {
            "T = 10, static weights": ("weighted", static),
            "T = 10, GradNorm": ("gradnorm", learnt),
            "T = 10, normalised targets": ("normalised", corrected),
        },
        size,
        settings,
    )
    return fixed_runs, learnt_runs, corrected_runs


def five_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Equal weights and GradNorm at the first five of the ten scales: once in a process."""
    size = size_of(settings)
    lanes = [Lane("of ten", lr, scales=TEN[:5]) for lr in size.ten]
    equal_runs, learnt_runs = train(
        {"T = 5, equal weights": ("weighted", lanes), "T = 5, GradNorm": ("gradnorm", lanes)},
        size,
        settings,
    )
    return equal_runs, learnt_runs


def deviation_of(sharpness: float) -> float:
    """Of tanh(sharpness·z), z ~ N(0, 1)."""
    z = torch.linspace(-6, 6, 10001, dtype=torch.float64)
    return float(torch.tanh(sharpness * z).square() @ torch.softmax(-z.square() / 2, 0)) ** 0.5
