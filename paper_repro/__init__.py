"""The papers re-run: `python -m paper_repro`.

A folder a paper, a question a file: a module with `run(settings)`, which yields figures and claims.
`report` is what they share, `claims` the ledger of every claim and what decides it.
"""

import common as common  # it looks at all sources before one is imported
