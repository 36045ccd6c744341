"""The sources that numbers depend on, as this process has imported them.

A process looks at all of them as it begins, before it imports one. So it knows whether it imported
what it saw, and a result is kept under a key only where the code that computed it is the key's.
"""

import ast
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from .files import DataError

APART = ("audit", "guide", "plot", "warmup")
"""Rooms of mtlfunc that change no number: one is in a key where a source names it."""
KEYED: dict[str, str] = {}
"""The digests of those that are in some key of this process."""
_OURS, _ROOT = ("common", "experiments", "paper_repro"), Path(__file__).parents[1]
_PACKAGE = Path(getattr(find_spec("mtlfunc"), "origin", "")).parent


class Edited(DataError):
    """A source was edited after a process had begun, which may have imported either text."""


def _look(path: str) -> tuple[int, int, str]:
    """When a file was changed, and the digest of what it holds; zeros where it is gone."""
    try:
        found, content = os.stat(path), Path(path).read_bytes()
    except OSError:
        return 0, 0, ""
    return found.st_mtime_ns, found.st_ctime_ns, hashlib.sha256(content).hexdigest()


_rooms = {x: Path(x.relative_to(_PACKAGE).parts[0]).stem for x in _PACKAGE.rglob("*.py")}
_others = (path for name in _OURS for path in (_ROOT / name).rglob("*.py"))
_first = {path: _look(path) for path in map(str, (*_rooms, *_others))}
_seen, _as_seen = {**_first}, dict[str, bool]()  # the second of those that are imported


def key(files: Iterable[Path], *others: object) -> str:
    """SHA-256 of sources with all of ours that they import, and of the texts of `others`. Raises
    Edited.
    """
    found = hashlib.sha256(" ".join(map(str, others)).encode())
    for path in sorted(map(str, imported(files))):
        if path not in _first:  # a module of the user's, say, which may be another one now
            _seen[path] = _look(path)
            _as_seen.pop(path, None)
        KEYED[path] = _seen[path][-1]
        found.update(f"{Path(path).name} {KEYED[path]}\n".encode())
    check()
    return found.hexdigest()


def unlike(digests: Mapping[str, str]) -> str:
    """A source that this process has imported with a text of another digest, or perhaps so; "" for
    none. What is not of ours is looked at when it is first asked about, so ask before any import.
    """
    _seen.update({path: _look(path) for path in digests.keys() - _seen.keys()})
    for module in [*sys.modules.values()]:
        path = getattr(module, "__dict__", {}).get("__file__")
        if path in _seen and path not in _as_seen:
            _as_seen[path] = _look(path) == _seen[path]
    other = (path for path in _as_seen if path in digests)
    return next((x for x in other if not _as_seen[x] or _seen[x][-1] != digests[x]), "")


def check(path: str | None = None) -> None:
    """Raises Edited for a path that is `unlike`, by default one of this process."""
    path = unlike(KEYED) if path is None else path
    if path:
        raise Edited(
            f"{path} was edited after this command had begun, so that it is not known which text "
            "computed the last results: they are not kept, and the same command computes them again"
        )


@functools.cache
def digest() -> str:
    """Of all of ours as this process found them, wherever the checkout stands."""
    found = hashlib.sha256()
    for path, (*_, held) in sorted(_first.items()):
        found.update(f"{portable(path)} {held}\n".encode())
    return found.hexdigest()


def portable(path: str) -> str:
    """One of ours by its name below the checkout; any other as it is."""
    for root in (_PACKAGE.parent, _ROOT):
        if path in _first and Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return path


def local(name: str) -> str:
    """`portable`, backwards, in this process's checkout."""
    return str((_PACKAGE.parent if name.startswith("mtlfunc/") else _ROOT) / name)


def imported(files: Iterable[Path]) -> set[Path]:
    """Files, all of ours that they import, directly or not, and mtlfunc."""
    found, left, apart = set[Path](), {*files}, {*APART}
    while left:
        path = left.pop()
        found.add(path)
        content = path.read_bytes() if path.suffix == ".py" else b""
        apart -= {x for x in apart if re.search(rf"\b(mf|mtlfunc)\.{x}\b".encode(), content)}
        for level, module, names in _named(content):
            base = (path.parents[level - 1] if level else _ROOT).joinpath(*module.split("."))
            # `from .module import name`, or `from .package import module`
            for each in [base] * bool(module) + [base / name for name in names]:
                both = each.with_suffix(".py"), each / "__init__.py"
                left |= {x for x in both if x not in found and x.is_file()}
    return found | {path for path, room in _rooms.items() if room not in apart}


@functools.cache  # most files are imported by many
def _named(content: bytes) -> list[tuple[int, str, list[str]]]:
    """Level, module and names of a source's imports, relative ones and ours."""
    nodes = [*ast.walk(ast.parse(content))]
    froms = [x for x in nodes if isinstance(x, ast.ImportFrom)]
    found = [(x.level, x.module or "", [each.name for each in x.names]) for x in froms]
    found += [(0, y.name, []) for x in nodes if isinstance(x, ast.Import) for y in x.names]
    return [x for x in found if x[0] or x[1].partition(".")[0] in _OURS]
