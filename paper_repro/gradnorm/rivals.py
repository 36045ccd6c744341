"""The runs that several of GradNorm's questions share: T = 2 and T = 10, each method's lanes."""

import functools
from collections.abc import Mapping, Sequence

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
    Method,
    Trace,
    size_of,
    train,
)


def two_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Static weights and GradNorm at T = 2.

    Tasks of other scales, of other difficulty, and with few data.
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
        for lr in size.two[1:-1]
    ]
    static += [
        Lane(f"static, {second:g}", lr, weights=(1.0, second))
        for second in (1.0, *SECOND)
        for lr in size.two
    ]
    static += [lane for lr in size.two[1:-1] for lane in others(lr)]
    learnt = [
        Lane(f"GradNorm, {alpha:g}", lr, alpha) for alpha in EVERY_ALPHA for lr in size.two
    ] + [lane for lr in size.two[1:-1] for lane in others(lr)]
    learnt += [
        Lane(f"ratio {ratio:g}, {alpha:g}", lr, alpha, scales=(1.0, ratio))
        for ratio in (RATIOS[0], RATIOS[-1])
        for alpha in EVERY_ALPHA
        for lr in size.two[1:-1]
    ]
    # the first of the ten scales, for what a larger T does alone
    static += [Lane("of ten", lr, scales=TEN[:2]) for lr in size.two[1:-1]]
    learnt += [Lane("of ten", lr, scales=TEN[:2]) for lr in size.two[1:-1]]
    fixed_runs, learnt_runs = trained(
        {
            "T = 2, static weights": ("weighted", static),
            "T = 2, GradNorm": ("gradnorm", learnt),
        },
        settings,
    )
    return fixed_runs, learnt_runs


def ten_tasks(settings: Settings) -> tuple[Trace, Trace, Trace]:
    """Static weights, GradNorm, and GradNorm with normalised targets at T = 10.

    Static: equal, 1/L_i(0) and a random search.
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
    fixed_runs, learnt_runs, corrected_runs = trained(
        {
            "T = 10, static weights": ("weighted", static),
            "T = 10, GradNorm": ("gradnorm", learnt),
            "T = 10, normalised targets": ("normalised", corrected),
        },
        settings,
    )
    return fixed_runs, learnt_runs, corrected_runs


def five_tasks(settings: Settings) -> tuple[Trace, Trace]:
    """Equal weights and GradNorm at the first five of the ten scales: once in a process."""
    lanes = [Lane("of ten", lr, scales=TEN[:5]) for lr in size_of(settings).ten]
    equal_runs, learnt_runs = trained(
        {"T = 5, equal weights": ("weighted", lanes), "T = 5, GradNorm": ("gradnorm", lanes)},
        settings,
    )
    return equal_runs, learnt_runs


def trained(
    programs: Mapping[str, tuple[Method, Sequence[Lane]]], settings: Settings
) -> list[Trace]:
    """Programs in their order, by their labels; workers that need the same share them out."""
    size = size_of(settings)
    calls = {
        label: functools.partial(train.now, method, lanes, size, settings, label)
        for label, (method, lanes) in programs.items()
    }
    return list(train.together(calls).values())


def deviation_of(sharpness: float) -> float:
    """Of tanh(sharpness·z), z ~ N(0, 1)."""
    z = torch.linspace(-6, 6, 10001, dtype=torch.float64)
    return float(torch.tanh(sharpness * z).square() @ torch.softmax(-z.square() / 2, 0)) ** 0.5
