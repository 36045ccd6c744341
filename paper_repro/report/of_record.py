"""The verdicts of record: what a default run is compared with.

Each is the weakest of what several runs say: the default one, others of its size, and one at the
papers' sizes. `python docs/results.py` writes `record.json`.
"""

import functools
import json
from pathlib import Path
from typing import TypedDict

from .results import NOT_RUN

PATH = Path(__file__).parent.parent / "record.json"


class Kept(TypedDict):
    """A claim's."""

    verdict: str
    runs: str  # what each run says, in words, if they differ


@functools.cache
def kept() -> dict[str, Kept]:
    """By the claims' ids, of those that some run has decided."""
    found = json.loads(PATH.read_text(encoding="utf-8"))
    return {name: each for name, each in found.items() if each["verdict"] != NOT_RUN}
