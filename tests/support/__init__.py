"""What test modules import, for none of them imports another: families, problems, tables of rules,
solvers and probes, oracles.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
