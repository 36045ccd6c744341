"""Packages without which the core works, and what installs them."""

from importlib.util import find_spec

LAB = "moocore", "scipy", "tqdm", "xarray"
PLOT = ("matplotlib",)


def expect_installed(*packages: str, what: str) -> None:
    """Raise ModuleNotFoundError with the cure unless the packages that `what` needs are installed;
    they are imported by the names that pip knows.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        extras = {"plot": PLOT, "lab": LAB}
        extra = next((name for name, has in extras.items() if {*packages} <= {*has}), None)
        cure = f'"mtlfunc[{extra}]"' if extra else " ".join(absent)
        raise ModuleNotFoundError(
            f"{what}: {', '.join(absent)} not installed; python -m pip install {cure}",
            name=absent[0],
        )
