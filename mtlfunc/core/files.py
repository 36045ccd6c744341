"""Files that are whole or absent, locks, and one number for what several files hold."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, then move it in place: who finds it finds it whole.

    Args:
        path: where to; an older file there stays until the new one is complete.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

    Raises:
        OSError: where the folder is missing or cannot be written.
    """
    # of this write alone: processes of one number on two machines may share a folder
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(files: Iterable[Path], *others: object) -> str:
    """SHA-256 of the files' names and contents and of the texts of `others`."""
    found = hashlib.sha256(" ".join(map(str, others)).encode())
    for path in files:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


# ---- locks ----

_HELD: set[TextIO] = set()
"""Open lock files of this process."""


class InUse(Exception):
    """Another process, `.holder` in words, has the lock; `.cure` is what to do if it has not."""

    def __init__(self, lock: Path, holder: str) -> None:
        super().__init__(f"{lock} is held by {holder}")
        self.holder = holder
        here = holder.endswith(f" on {platform.node()}")
        self.cure = "" if here else f"; if it no longer runs, delete {lock}"


@contextmanager
def reserved(lock: Path) -> Iterator[None]:
    """A lock file, for this process alone until the block ends.

    The lock is the kernel's, on an open file, so it goes with the process, however that ends; the
    text of the file says who has it, `process 17 on lab3`. Where the file system has no locks, the
    text alone counts: stale where that process of this machine has ended, in use otherwise.

    Args:
        lock: the file, in a folder that exists; taken away at the end.

    Raises:
        InUse: where another process has it, or this one already.
        OSError: where the file cannot be written.
    """
    other = ""
    for _ in range(5):
        file = lock.open("a+", encoding="utf-8")
        # Another process may have ended, and taken its file away, since this one opened it.
        if _take(file, lock) and _same(file, lock):
            break
        other = _text(file)
        file.close()
        time.sleep(0.05)  # or one only looks who has it
    else:
        raise InUse(lock, other or "a process that just starts")
    _HELD.add(file)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
    finally:
        lock.unlink(missing_ok=True)
        _HELD.discard(file)
        file.close()


def holder(lock: Path) -> str:
    """Who has a lock, `process 17 on lab3`; empty where nobody has."""
    try:
        with lock.open("r+", encoding="utf-8") as file:
            return "" if _take(file, lock) else _text(file)
    except FileNotFoundError:
        return ""


def _take(file: TextIO, lock: Path) -> bool:
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return not _runs(_text(file), lock)


def _runs(text: str, lock: Path) -> bool:
    """Whether the process that a lock's text names may still run."""
    found = re.fullmatch(r"process (\d+) on (.*)", text)
    if not found or found[2] != platform.node() or os.name != "posix":
        return bool(text)
    if int(found[1]) == os.getpid():  # or of another one that had this number before
        return any(Path(file.name) == lock for file in _HELD)
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):  # of another user
        pass
    return True


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def _same(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    """In a forked child: it has the open files, too, and would keep the locks of a dead parent."""
    for file in _HELD:
        file.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
