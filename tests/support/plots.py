"""Axes, random rows, labels of legends."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtlfunc.core.random import normal


def axes() -> Axes:
    return Figure(layout="constrained").add_subplot()


def rows(seed: int, *shape: int) -> Tensor:
    return normal(torch.tensor(seed), shape, torch.float64)


def labels(panel: Axes) -> list[str]:
    legend = panel.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]
