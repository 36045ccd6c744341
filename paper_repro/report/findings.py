"""What a reproduction yields, figures and claims, and the settings it runs under."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure as Canvas

from mtlfunc.core.files import write_whole

from .figures import FORMS, in_style
from .layout import fit

Verdict = Literal[
    "holds", "holds only when", "does not hold", "inconclusive", "stand-in", "not testable here"
]


class Claim(NamedTuple):
    """What was measured about one statement of a paper, and the verdict that this gives."""

    id: str  # GN-21, SU-34: the ledger's number
    measured: Mapping[str, Any]  # numbers, or tensors of one
    # configuration, threshold and kind of interval; for "holds only when", the condition
    where: str
    verdict: Verdict | None = None  # until its decision has judged the numbers


class Figure(NamedTuple):
    """A drawing, its caption, and the numbers that it shows. In a notebook it shows itself."""

    name: str  # of the file, after the module's
    caption: str
    figure: Canvas
    # a record a point, by what its numbers are called
    numbers: Sequence[Mapping[str, Any]] = ()
    arguments: Mapping[str, Any] = {}  # of the function that drew it

    def record(self, path: Path, drawn: Sequence[Mapping[str, Any]]) -> None:
        """Write the numbers and what is drawn as JSON, with the ending .json; what is not a number,
        as of a run that diverged, is null there. Raises OSError.
        """
        values = self.name, self.caption, finite(self.arguments), finite(self.numbers), []
        found = dict(zip(RECORDED, values, strict=True))
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        lines = [json.dumps(finite(x), ensure_ascii=False, allow_nan=False) for x in drawn]
        whole = text.removesuffix("[]\n}") + "[\n" + ",\n".join(lines) + "\n]}\n"
        write_whole(path.with_suffix(".json"), whole)

    def drawn(self, form: str) -> bytes:
        """What its file holds that ends in .png, which has the caption in it, .svg or .pdf."""
        text = {"Title": self.name, "Description": self.caption}
        with in_style(), BytesIO() as file:
            fit(self.figure)
            FORMS[form](self.figure, file, text)
            return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.drawn("png")


RECORDED = ("figure", "caption", "arguments", "numbers", "drawn")
"""The keys of the JSON beside a figure."""


def is_recorded(path: Path) -> bool:
    """Whether a file is the JSON next to a figure, as `Figure.record` writes it. Raises OSError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        return False
    return isinstance(found, dict) and tuple(found) == RECORDED


def finite(value: Any) -> Any:
    """A value as JSON has it: None for what is not a number."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finding = Claim | Figure
Findings = Iterator[Finding]


class Settings(NamedTuple):
    """How much a module's `run(settings)` computes."""

    seeds: int = 16  # >= 2: every interval is over seeds
    full: bool = False  # the papers' own sizes and budgets
    device: torch.device = torch.device("cpu")
    # multiplies numbers of steps and draws; below 1 for a first look, and in tests
    shrink: float = 1.0
    draw: int = 0  # of all random numbers: others for another number

    def count(self, number: int) -> int:
        """A number of steps or draws at this scale, at least 4."""
        return max(4, round(number * self.shrink))


QUICK = Settings(seeds=4, shrink=0.2)
"""First verdicts: a quarter of the seeds, a fifth of the steps and draws."""
