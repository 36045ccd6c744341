"""Published numbers, to stand next to measured ones: fractions, metres, degrees, per cent."""

from typing import NamedTuple

from .metrics import METRICS


class Published(NamedTuple):
    """A benchmark's single-task metrics and the Δm that CAGrad's paper (Liu et al. 2021) gives. Δm
    flat over metrics, lower is better; others are the lowest and the highest of its other methods.
    """

    base: dict[str, float]
    cagrad: float
    others: tuple[float, float]


NYUV2 = (0.3830, 0.6376, 0.6754, 0.2780, 25.01, 19.21, 0.3014, 0.5720, 0.6915)
CITYSCAPES = (0.7401, 0.9316, 0.0125, 27.77)
PUBLISHED = {
    "NYUv2": Published(dict(zip(METRICS, NYUV2, strict=True)), 0.20, (1.38, 6.96)),
    "CityScapes": Published(dict(zip(METRICS, CITYSCAPES, strict=False)), 11.64, (18.29, 90.02)),
}
