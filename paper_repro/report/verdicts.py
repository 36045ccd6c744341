"""What a run of a reproduction yields, each claim with what had been said beforehand."""

from types import ModuleType

from ..claims import DECISIONS, LEDGER
from .findings import Claim, Findings, Settings


def findings(module: ModuleType, settings: Settings) -> Findings:
    """A reproduction's findings under these settings, each claim as `stated`."""
    for finding in module.run(settings):
        yield stated(finding, settings) if isinstance(finding, Claim) else finding


def stated(claim: Claim, settings: Settings) -> Claim:
    """A claim with its verdict and with what its decision says before anything runs. A run below
    the default's budget refutes nothing that a longer training, or more draws, could change: there
    it stays open. Raises LookupError where the decision misses a number.
    """
    if claim.verdict and claim.id not in DECISIONS:
        return claim
    decision = DECISIONS[claim.id]
    numbers = {name: float(value) for name, value in claim.measured.items()}
    verdict, row = claim.verdict or decision.verdict(numbers), LEDGER[claim.id]
    first = f"Stand-in: made-up problems for {row.instead}. " if row.instead else ""
    where = f"{first}{claim.where}. Said beforehand: {decision.fails}"
    short = settings.shrink < 1 and decision.trained
    if short and verdict in ("does not hold", "holds only when"):
        where += f". The numbers say `{verdict}`, for which this budget is too small"
        verdict = "inconclusive"
    return Claim(claim.id, numbers, where, verdict)
