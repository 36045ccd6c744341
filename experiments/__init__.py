"""Experiments, one folder a question, on real data or at scale: `python -m experiments.<name>`."""

import common as common  # it looks at all sources before one is imported
