"""Which of conflict, unequal lengths and curvature make interference harmful?"""

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ..report.decisions import Claims, Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import normal, uniform
from .quadratics import edited, losses

ALL_THREE = "conflict, gap, curvature"


@decided(
    "against both rivals PCGrad's step does not end lower in most draws of the cell with all "
    "three, or does so in another cell"
)
def judge_factorial(measured: Measured) -> Verdict:
    alone, contradicted = [], []
    for rival in ("the plain step", "a plain step of the same length"):
        end = f"; against {rival}: share of wins"
        cells = [name.removesuffix(end) for name in named_so(measured, f"*{end}")]
        wins = {cell for cell in cells if measured[f"{cell}{end}, low"] > 0.5}
        loses = {cell for cell in cells if measured[f"{cell}{end}, high"] < 0.5}
        alone.append(wins == {ALL_THREE})
        contradicted.append(ALL_THREE in loses or bool(wins - {ALL_THREE}))
    return verdict_of(alone, contradicted)


CLAIMS = {
    "PC-03": Row(
        "Harmful interference needs three things together: conflict, very unequal "
        "magnitudes, strong curvature.",
        judge_factorial,
        when="against a plain step of PCGrad's length; against the plain step PCGrad also wins in "
        "conflict without the two others",
    )
}
claim = Claims(CLAIMS)

DIM = 10
Cell = tuple[bool, ...]
"""Conflict, gap and curvature, on or off."""
CELLS: tuple[Cell, ...] = tuple(itertools.product((False, True), repeat=3))
LABELS = {
    cell: ", ".join(
        word if on else f"no {word}"
        for word, on in zip(("conflict", "gap", "curvature"), cell, strict=True)
    )
    for cell in CELLS
}
AGAINST = ("the plain step", "a plain step of the same length")


def gains(key: Tensor, conflict: bool, unequal: bool, curved: bool) -> tuple[Tensor, Tensor]:
    """What PCGrad's step ends below the plain one by, and below one of its own length."""
    first, other = normal(key, 0, (DIM,)), normal(key, 1, (DIM,))
    first = first / torch.linalg.vector_norm(first)
    other = other - (other @ first) * first
    other = other / torch.linalg.vector_norm(other)
    angle = torch.pi * (uniform(key, 2, 0.7, 0.95) if conflict else uniform(key, 2, 0.05, 0.45))
    second = (0.1 if unequal else 1.0) * (angle.cos() * first + angle.sin() * other)
    g = first + second
    root = normal(key, 3, (DIM, DIM))
    noise = root @ root.mT / (torch.linalg.matrix_norm(root, 2) ** 2)
    # With t = 1: along g the curvature is 4 (the plain step overshoots) or at most .2 (it does
    # not).
    along = torch.outer(g, g) / (g @ g)
    hessian = 0.2 * noise + (3.9 if curved else 0.0) * along
    batch = (torch.stack([first, second]), torch.stack([hessian, torch.zeros_like(hessian)]))
    params, step = {"x": torch.zeros(DIM, dtype=torch.float64)}, edited()
    d = step.update(params, batch, step.init(params, batch))[0]["x"]
    matched = g * torch.linalg.vector_norm(d) / torch.linalg.vector_norm(g)
    plain, edited_end, long = (losses({"x": -x}, batch).sum() for x in (g, d, matched))
    return (plain - edited_end) / (g @ g), (long - edited_end) / (g @ g)


def run(settings: Settings) -> Findings:
    draws = settings.count(2000)
    shares = np.empty((len(AGAINST), len(CELLS), 2))  # of wins and of losses
    for i, cell in enumerate(CELLS):
        found = vmap(lambda key, cell=cell: gains(key, *cell))(torch.arange(draws))
        for j, gain in enumerate(found):
            shares[j, i] = [(side * gain > 1e-9).double().mean().item() for side in (1, -1)]
    yield factorial(shares, draws)


def factorial(shares: np.ndarray, draws: int) -> Claim:
    """How often a PCGrad step ends below the plain one, with each condition on or off."""
    numbers: dict[str, float] = {}
    for share, against in zip(shares.tolist(), AGAINST, strict=True):
        for label, (better, worse) in zip(LABELS.values(), share, strict=True):
            wins = share_interval(round(better * draws), draws)
            numbers |= named(f"{label}; against {against}: share of wins", wins)
            numbers |= {f"{label}; against {against}: share of losses": worse}
    return claim(
        "PC-03",
        numbers,
        f"{draws} random quadratics a cell, {DIM} dimensions, t = 1; a win: PCGrad's step ends "
        "below the other",
    )
