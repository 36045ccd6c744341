"""Which of conflict, unequal lengths and curvature make interference harmful?"""

import itertools

import torch
from torch import Tensor
from torch.func import vmap

from ..report.decisions import Measured, Row, decided, named_so, verdict_of
from ..report.findings import Claim, Findings, Settings, Verdict
from ..report.intervals import named, share_interval
from .common import normal, uniform
from .quadratics import at_angle, edited, losses

ALL_THREE = "conflict, gap, curvature"
DIM = 10
RIVALS = ("the plain step", "a plain step of the same length")


@decided(
    "against both rivals PCGrad's step does not end lower in most draws of the cell with all "
    "three, or does so in another cell"
)
def judge_factorial(measured: Measured) -> Verdict:
    alone, contradicted = [], []
    for rival in RIVALS:
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


def gains(key: Tensor, conflict: bool, unequal: bool, curved: bool) -> tuple[Tensor, Tensor]:
    """What PCGrad's step ends below the plain one by, and below one of its own length."""
    angle = torch.pi * (uniform(key, 2, 0.7, 0.95) if conflict else uniform(key, 2, 0.05, 0.45))
    gradients = torch.stack(at_angle(key, DIM, angle, 0.1 if unequal else 1.0))
    g, root = gradients.sum(0), normal(key, 3, (DIM, DIM))
    noise = root @ root.mT / (torch.linalg.matrix_norm(root, 2) ** 2)
    # With t = 1: along g the curvature is 4 (the plain step overshoots) or at most .2 (it does
    # not).
    hessian = 0.2 * noise + (3.9 if curved else 0.0) * torch.outer(g, g) / (g @ g)
    batch = (gradients, torch.stack([hessian, torch.zeros_like(hessian)]))
    params, step = {"x": torch.zeros(DIM, dtype=torch.float64)}, edited()
    d = step.update(params, batch, step.init(params, batch))[0]["x"]
    matched = g * torch.linalg.vector_norm(d) / torch.linalg.vector_norm(g)
    plain, edited_end, long = (losses({"x": -x}, batch).sum() for x in (g, d, matched))
    return (plain - edited_end) / (g @ g), (long - edited_end) / (g @ g)


def run(settings: Settings) -> Findings:
    draws = settings.count(2000)
    numbers: dict[str, float] = {}
    for cell in itertools.product((False, True), repeat=3):
        found = vmap(lambda key, cell=cell: gains(key, *cell))(torch.arange(draws))
        words = zip(("conflict", "gap", "curvature"), cell, strict=True)
        label = ", ".join(word if on else f"no {word}" for word, on in words)
        for rival, gain in zip(RIVALS, found, strict=True):
            wins = share_interval(int((gain > 1e-9).sum()), draws)
            numbers |= named(f"{label}; against {rival}: share of wins", wins)
    yield Claim(
        "PC-03",
        numbers,
        f"{draws} random quadratics a cell, {DIM} dimensions, t = 1; a win: PCGrad's step ends "
        "below the other",
    )
