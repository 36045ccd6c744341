"""The verdicts of record, and those of the default run that is kept: what a run is compared with.

One of record is that of the largest run that decides: one at the papers' sizes, else the default
one. Other draws and processors mark the row. `python docs/results.py` writes `record.json`, with
these of each claim: its `verdict`; `default`, what the default run says that is kept, "" without
one; `when` it holds, if it holds only when; what it hangs on: other `runs`, `numbers` that leave
their interval on another processor, and `bounds` of which half or twice would give another verdict.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from .results import NOT_RUN

PATH = Path(__file__).parent.parent / "record.json"


@functools.cache
def kept() -> dict[str, dict[str, str]]:
    """By the claims' ids, of those that some run has decided."""
    found = json.loads(PATH.read_text(encoding="utf-8"))
    return {name: each for name, each in found.items() if each["verdict"] != NOT_RUN}


def marks(kept: Mapping[str, str]) -> str:
    """When a claim holds, if only then, and what its verdict hangs on; "" for nothing."""
    left = kept["numbers"] and f"numbers that leave their interval: {kept['numbers']}"
    return "; ".join(filter(None, (kept["when"], kept["runs"], kept["bounds"], left)))
