"""What a run of a reproduction yields, each claim with what had been said beforehand."""

from types import ModuleType

from ..claims import DECISIONS, LEDGER
from .findings import Claim, Findings, Settings


def findings(module: ModuleType, settings: Settings) -> Findings:
    """A reproduction's findings under these settings. A run below the default's budget refutes
    nothing that a longer training, or more draws, could change; and every claim says what its
    decision says before anything runs.
    """
    for finding in module.run(settings):
        yield stated(finding, settings) if isinstance(finding, Claim) else finding


def stated(claim: Claim, settings: Settings) -> Claim:
    """A claim with its decision's words, and open where a small budget cannot close it."""
    decision = DECISIONS.get(claim.id)
    if decision is None:
        return claim
    row = LEDGER.get(claim.id)
    first = f"Stand-in: made-up problems for {row.instead}. " if row and row.instead else ""
    where = f"{first}{claim.where}. Said beforehand: {decision.fails}"
    short = settings.shrink < 1 and decision.trained
    if short and claim.verdict in ("does not hold", "holds only when"):
        where = f"{where}. The numbers say `{claim.verdict}`, for which this budget is too small"
        return claim._replace(verdict="inconclusive", where=where)
    return claim._replace(where=where)
