"""The verdicts of record, and those of the default run that is kept: what a run is compared with.

One of record is that of the largest run that decides: one at the papers' sizes, else the default
one. Other draws and processors mark the row. `python docs/results.py` writes `record.json`.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from .results import NOT_RUN

PATH = Path(__file__).parent.parent / "record.json"


class Kept(TypedDict):
    """A claim's."""

    verdict: str
    default: str  # what the default run says that is kept; "" without one
    when: str  # it holds, if it holds only when
    runs: str  # what the verdict hangs on, and what the other runs say; "" if they agree
    numbers: str  # those that leave their interval on another processor
    bounds: str  # thresholds of which half or twice would give another verdict


@functools.cache
def kept() -> dict[str, Kept]:
    """By the claims' ids, of those that some run has decided."""
    found = json.loads(PATH.read_text(encoding="utf-8"))
    return {name: each for name, each in found.items() if each["verdict"] != NOT_RUN}


def marks(kept: Mapping[str, object]) -> str:
    """When a claim holds, if only then, and what its verdict hangs on; "" for nothing."""
    left = kept["numbers"] and f"numbers that leave their interval: {kept['numbers']}"
    found = (kept["when"], kept["runs"], kept["bounds"], left)
    return "; ".join(str(each) for each in found if each)
