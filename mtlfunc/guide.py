"""`python -m mtlfunc.guide`: how to use this version, for coding agents."""

import re
import sys
from importlib.resources import files

from . import __version__


def guide() -> str:
    """The page "For coding agents" of the documentation, without its links."""
    text = files(__package__ or "mtlfunc").joinpath("guide.md").read_text(encoding="utf-8")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return f"mtlfunc {__version__}\n\n{plain}"


if __name__ == "__main__":
    sys.stdout.write(guide())
