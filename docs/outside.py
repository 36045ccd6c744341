"""Put the table of other libraries' solvers into docs/solvers.md:
`python -m mtlfunc.testing | python docs/outside.py`.
"""

import sys
from pathlib import Path

from docs.blocks import marked, replaced

PAGE = Path(__file__).parent / "solvers.md"

if __name__ == "__main__":
    table = sys.stdin.read().strip()
    if not table.startswith("20"):
        raise SystemExit("expected what `python -m mtlfunc.testing` prints, a day first")
    PAGE.write_text(replaced(PAGE.read_text(), "outside", marked("outside", table)))
