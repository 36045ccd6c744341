"""`python .ci/tested.py VERSION RESULT`: a row of the table of tested versions in docs/limits.md.

RESULT is what `pytest --junitxml` wrote. The row's last cell, in words, stays.
"""

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"


def main() -> None:
    version, result = sys.argv[1:]
    suite = next(ElementTree.parse(result).iter("testsuite"))
    tests, skipped, failed = (int(suite.attrib[key]) for key in ("tests", "skipped", "failures"))
    failed += int(suite.attrib["errors"])
    day = datetime.now(UTC).strftime("%d %B %Y").lstrip("0")
    cells = f"| {version} | {tests - skipped - failed} | {skipped} | {failed} | {day} |"
    row = re.compile(rf"^\| {re.escape(version)} \|(?:[^|\n]*\|){{4}}", re.MULTILINE)
    page, count = row.subn(cells, PAGE.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{PAGE}: {count} rows of {version}; add one with its last cell")
    PAGE.write_text(page, encoding="utf-8")
    print(cells)


if __name__ == "__main__":
    main()
