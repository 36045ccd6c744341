"""Run the code of Markdown pages and write what it prints: `python docs/outputs.py FILE …`.

What a block of Python prints stands in a block of text after it, and the figures that a page saves
lie next to it. The tests run every page and compare what is printed.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")


class Ran(NamedTuple):
    """A block of code of a page after it was run."""

    code: str
    stored: str | None  # what the page says that it prints; None without a block of text
    printed: str | None  # what it prints; None if a package that it needs is not installed
    scope: dict  # of the page so far
    figures: list[Path]  # that the page has saved so far; they last until the next block


def needs(code: str) -> list[str]:
    """The packages that have to be installed for a block."""
    return re.findall(r"^# needs: (\w+)$", code, re.MULTILINE)


def run(text: str, name: str) -> Iterator[Ran]:
    """Run all Python of a page from top to bottom, in a folder of its own."""
    dtype, here = torch.get_default_dtype(), Path.cwd()
    scope: dict = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        os.chdir(folder)
        sys.path.insert(0, folder)  # a page may write a module
        torch.manual_seed(0)
        try:
            for code, stored in BLOCK.findall(text):
                printed = None
                if all(map(importlib.util.find_spec, needs(code))):
                    with contextlib.redirect_stdout(io.StringIO()) as out:
                        exec(compile(code, name, "exec"), scope)
                    printed = "".join(f"{x.rstrip()}\n" for x in out.getvalue().splitlines())
                yield Ran(code, stored or None, printed, scope, sorted(Path(folder).glob("*.png")))
        finally:
            sys.path.remove(folder)
            os.chdir(here)
            torch.set_default_dtype(dtype)
            torch.set_printoptions(profile="default")


def difference(got: str, expected: str) -> str:
    """Where what was printed differs from what the page says; empty if nowhere.

    A line `...` of the page stands for any lines, and `...` within a line for any text. A number
    may differ by one in a thousand, or by two units of the last decimal that its line shows: the
    last bits of a processor show in no more.
    """
    rest, pieces = got.splitlines(), re.split(r"(?m)^\.\.\.\n", expected)
    for i, piece in enumerate(pieces):
        lines = piece.splitlines()
        latest = len(rest) - len(lines)
        first, last = (0 if not i else None), (latest if i == len(pieces) - 1 else None)
        if i and not lines:  # after `...` in the last line: the rest is what it is
            last = None
        places = [j for j in range(latest + 1) if first in (None, j) and last in (None, j)]
        matching = (j for j in places if all(map(same, rest[j:], lines)))
        place = next(matching, None)
        if place is None:
            return f"printed\n{got}\nwhere the page says\n{expected}"
        rest = rest[place + len(lines) :]
    return ""


def same(got: str, expected: str) -> bool:
    """Whether two lines say the same."""
    if "..." in expected:
        pattern = ".*".join(map(re.escape, plain(expected).split("...")))
        return re.fullmatch(pattern, plain(got)) is not None
    numbers, known = NUMBER.findall(got), NUMBER.findall(expected)
    if plain(NUMBER.sub("#", got)) != plain(NUMBER.sub("#", expected)):
        return False
    fixed = [len(x.partition(".")[2].rstrip("0")) for x in known if "e" not in x]
    for one, other in zip(numbers, known, strict=True):
        decimals = max(fixed, default=0)
        if "e" in other:
            mantissa, exponent = other.split("e")
            decimals = len(mantissa.partition(".")[2]) - int(exponent)
        bound = max(1e-3 * abs(float(other)), 2.001 * 10.0**-decimals)
        if abs(float(one) - float(other)) > bound:
            return False
    return True


def plain(text: str) -> str:
    """Text without what aligns columns."""
    return re.sub(r"(?<=[\[(]) ", "", re.sub(r"\s+", " ", text)).strip()


def written(text: str, name: str, beside: Path | None = None) -> str:
    """A page with what its code prints; what is right or cannot run here stays as it is.

    The figures that the page saves go to the folder `beside`.
    """
    ran = run(text, name)

    def block(found: re.Match) -> str:
        this = next(ran)
        for figure in this.figures:
            if beside:
                shutil.copy(figure, beside)
        if this.printed is None or not difference(this.printed, this.stored or ""):
            return found.group()
        shown = f"\n\n```text\n{this.printed}```" if this.printed else ""
        return f"```python\n{this.code}```{shown}"

    new = BLOCK.sub(block, text)
    next(ran, None)  # leaves its folder
    return new


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="FILE")
    for path in [page.resolve() for page in parser.parse_args().pages]:
        text = path.read_text(encoding="utf-8")
        path.write_text(written(text, path.name, path.parent), encoding="utf-8")
