"""Prose on pages of Markdown, and the parts of them that a program writes."""

import datetime
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path


def paragraph(text: str, first: str = "", others: str = "") -> str:
    """Prose in lines of 100 columns, which may begin with something."""
    return textwrap.fill(
        " ".join(text.split()),
        100,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def bullets(lines: Iterable[str]) -> str:
    """A list, its lines wrapped."""
    return "\n".join(paragraph(line, "- ", "  ") for line in lines)


def listed(text: str) -> list[str]:
    """The lines of a list in Markdown."""
    return text.removeprefix("- ").split("\n- ")


def day(path: Path) -> str:
    """When a file was written."""
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()


def day_in(text: str) -> str:
    """The first day that a text names."""
    found = re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    if not found:
        raise SystemExit(f"no day is named in {text[:60]!r}")
    return found[0]


def marked(name: str, *parts: str) -> str:
    """A part of a page that a program writes between its markers."""
    return "\n\n".join([f"<!-- {name} -->", *parts, f"<!-- end of {name} -->"])


def part(text: str, name: str) -> str:
    """What is between the markers of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return text[text.index(begin) : text.index(end)]


def row_of(text: str, first: str) -> dict[str, str]:
    """The row of a table that begins so, by the heads of its columns."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith(f"| {first}")), None)
    if at is None:
        raise SystemExit(f"no row of a table begins with {first!r}")
    head = next(i for i in range(at, 0, -1) if lines[i].startswith("|--")) - 1
    heads, cells = ([x.strip() for x in lines[i].strip("|").split(" | ")] for i in (head, at))
    return dict(zip(heads, cells, strict=True))


def replaced(text: str, name: str, new: str) -> str:
    """`text` with what is between the markers of `name`, and these, exchanged."""
    pattern = re.compile(f"<!-- {name} -->.*<!-- end of {name} -->", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the markers <!-- {name} --> and <!-- end of {name} --> are missing")
    return pattern.sub(lambda _: new, text)
