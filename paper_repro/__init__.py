"""The papers re-run: `python -m paper_repro`.

A folder a paper, a question a file: a module with `run(settings)`, which yields figures and claims.
`report` is what they share, `claims` the ledger of every claim and what decides it.
"""

from importlib.util import find_spec

import common as common  # it looks at all sources before one is imported

_absent = [name for name in ("tqdm", "moocore", "xarray", "PIL") if find_spec(name) is None]
if _absent:
    raise ModuleNotFoundError(
        f"paper_repro: {', '.join(_absent)} not installed; in the clone: "
        'python -m pip install -e ".[repro]"',
        name=_absent[0],
    )
