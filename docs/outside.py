"""Put a table about other libraries into the page that has it:
`python -m mtlfunc.testing | python docs/outside.py` their solvers into docs/solvers.md,
`python -m experiments.peers | python docs/outside.py` their rules into docs/from/peers.md.
"""

import sys
from pathlib import Path

from docs.blocks import marked, replaced

PAGES = {"| solver ": ("outside", "solvers.md"), "| call ": ("peers", "from/peers.md")}

if __name__ == "__main__":
    table = sys.stdin.read().strip()
    found = [page for head, page in PAGES.items() if f"\n{head}" in table]
    if not table.startswith("20") or not found:
        raise SystemExit("expected what one of the two commands prints, a day first")
    name, page = found[0]
    path = Path(__file__).parent / page
    path.write_text(replaced(path.read_text(), name, marked(name, table)))
