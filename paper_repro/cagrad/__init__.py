"""CAGrad (Liu et al. 2021), one question a file."""

from typing import Any

from ..report.decisions import META_WORLD, MULTIMNIST, Row
from ..report.options import exported

CLAIMS = {
    "CA-01": Row(
        "Minimising the mean loss often leaves each task worse than alone.",
        kind="data/RL",
        needs=MULTIMNIST,
    ),
    "CA-07": Row(
        "A method should not rest on meeting the Pareto set, but go on to where the mean is least.",
        kind="not here",
    ),
    "CA-30": Row(
        "NYUv2: Δm .20 %, with surface normals no longer neglected.",
        kind="data/RL",
        needs="`python -m experiments.scenes --data FOLDER --full`, on NYUv2",
        published="Δm, %: CAGrad 0.20, others 1.38 to 6.96",
    ),
    "CA-31": Row(
        "CityScapes: Δm 11.64 %, better on depth.",
        kind="data/RL",
        needs="`python -m experiments.scenes --data FOLDER --full`, on CityScapes",
        published="Δm, %: CAGrad 11.64, others 18.29 to 90.02",
    ),
    "CA-32": Row(
        "Meta-World: success .83 on MT10 and .52 on MT50, above the others.",
        kind="data/RL",
        needs=META_WORLD,
        published="success on MT10 and MT50: CAGrad 0.83 and 0.52, others 0.49 to 0.73 and 0.36 to "
        "0.50",
    ),
    "CA-33": Row(
        "CAGrad-Fast is slightly below it: .82 and .50.",
        kind="data/RL",
        needs=f"{META_WORLD}, with `mf.subset` as probe, which it does not offer. On two digits a "
        "subset of one task is all tasks; CA-34 has what a step costs",
        published="success on MT10 and MT50: 0.82 and 0.50",
    ),
    "CA-35": Row(
        "Only CARE, which reads language descriptions of the tasks, does better.",
        kind="data/RL",
        needs="Meta-World and CARE with descriptions of its tasks, of which nothing here stands in",
        published="success of CARE on MT10 and MT50: 0.84 and 0.54",
    ),
    "CA-36": Row(
        "Semi-supervised CIFAR-10: highest mean accuracy for every number of labels.",
        kind="data/RL",
        needs="`python -m experiments.auxiliary --data FOLDER --full`, on CIFAR-10",
    ),
    "CA-38": Row(
        "Overall better than earlier gradient manipulation.",
        kind="data/RL",
        needs="what decides CA-30, CA-31, CA-32 and CA-36",
    ),
}

FIGURES = {"toy": "toy_figures", "surface": "toy_figures", "role_of_c": "_role_of_c"}
"""The module of every figure that takes options: `python -m paper_repro figure --list`."""


def __getattr__(name: str) -> Any:
    return exported(__name__, FIGURES, name)
