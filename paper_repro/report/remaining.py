"""How long a run has still to go, by what its questions took when the record was made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.remaining import unit

from .findings import QUICK, Settings

QUICKLY, WHOLLY = (Path(__file__).parent.parent / name for name in ("quick.json", "whole.json"))
"""Records of the quick run, and of the default one if that is kept: of each question the seconds of
processor time, and those of its long computations, which others may need as well.
"""
EARLY = 6
"""Short questions that come first, so that some are soon answered."""


def record_of(settings: Settings) -> tuple[Any, float]:
    """The nearest in size, and how many steps and draws there are for one of its."""
    whole = settings.shrink == 1 and WHOLLY.exists()
    path, shrink = (WHOLLY, 1.0) if whole else (QUICKLY, QUICK.shrink)
    return json.loads(path.read_text(encoding="utf-8")), settings.shrink / shrink


def expected(names: Sequence[str], settings: Settings) -> dict[str, float]:
    """Seconds of each question, as steps and draws are more than the record's, the mean of one that
    it lacks. What several need counts for the first. Nothing is known of the papers' sizes.
    """
    if settings.full:
        return {}
    record, factor = record_of(settings)
    seconds, parts, counted = record["seconds"], record.get("parts", {}), set[str]()
    mean, found = sum(seconds.values()) / len(seconds), {}
    for name in names:
        own = parts.get(name) or {"": seconds.get(name, mean)}
        found[name] = factor * sum(own[x] for x in own.keys() - counted)
        counted |= own.keys() - {""}
    return found


def in_order(names: Sequence[str]) -> list[str]:
    """The slowest, a few short ones, then the others, slow ones first: so something is soon found,
    and no slow one is last.
    """
    seconds = expected(names, QUICK)
    short, long = (sorted(names, key=seconds.__getitem__, reverse=down) for down in (False, True))
    return list(dict.fromkeys([*long[:1], *short[:EARLY], *long]))


def pace_of(settings: Settings) -> float:
    """Seconds that one of the record takes here."""
    recorded = record_of(settings)[0].get("unit")
    return unit() / recorded if recorded else 1.0
