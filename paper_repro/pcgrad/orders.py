"""Can PCGrad's direction raise a task of three, whatever the order?"""

from ..report.decisions import Exact, exact
from ..report.findings import Claim, Findings, Settings
from .rational import RAISED, gramian_of, under_all_orders

CLAIMS = {
    "PC-30": Exact(
        "All theory covers two tasks; projections may clash when there are more.",
        exact(
            ("worst task's rate, largest over orders", "<", 0),
            ("library against fractions, largest difference", "<", 1e-12),
        ),
    )
}


def run(settings: Settings) -> Findings:
    rates, _, difference = under_all_orders(gramian_of(RAISED))
    yield Claim(
        "PC-30",
        {
            "worst task's rate, largest over orders": max(map(min, rates)),
            "library against fractions, largest difference": difference,
        },
        "gradients (-2, -2), (-2, 0), (2, 1) in exact fractions and through "
        f"mtlfunc.pcgrad(orders), all {len(rates)} orders, d the sum of the projected gradients",
    )
