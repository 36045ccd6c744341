"""Locks of folders, and digests of files."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout


def digest(files: Iterable[Path], *others: object) -> str:
    """SHA-256 of the files' names and contents and of the texts of `others`."""
    found = hashlib.sha256(" ".join(map(str, others)).encode())
    for path in files:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


class InUse(Exception):
    """Another process, `.holder` in words, has the lock; `.cure` is what to do if it has not. The
    text is for who wants the lock's folder.
    """

    def __init__(self, lock: Path) -> None:
        record: list[str] = []
        with suppress(OSError, ValueError):  # the holder may end now; Windows lets no one read
            record = lock.read_text(encoding="utf-8").split("\n")
        process, node = record[:2] if len(record) > 1 else ("", "")
        self.holder: str = f"process {process} on {node}" if node else "another process"
        here = node in ("", platform.node())
        self.cure: str = "" if here else f"; if it no longer runs, delete {lock}"
        super().__init__(
            f"{lock.parent} is in use by another run ({self.holder}); wait for it, or name another "
            f"folder with --out{self.cure}"
        )


def writer_lock(file: Path) -> FileLock:
    """Of whoever reads this file and then writes it; others wait for their turn."""
    return FileLock(file.with_name(f".{file.name}.lock"))


@contextmanager
def hold_lock(lock: Path) -> Iterator[None]:
    """Hold a lock file until the block ends.

    The lock is the kernel's, through `filelock`, so it ends with the process, however that ends. On
    a file system without locks the file itself is the lock, which warns.

    Args:
        lock: the file, in a folder that exists; deleted at the end.

    Raises:
        InUse: where another process has it, or this one already.
        OSError: where the file cannot be written.
    """
    held = FileLock(lock, thread_local=False)
    try:
        held.acquire(timeout=0.2, poll_interval=0.02)  # or another one only looks who has it
    except Timeout as error:
        raise InUse(lock) from error
    try:
        if not isinstance(held, SoftFileLock):  # which writes the same two lines, and a third
            with suppress(PermissionError):  # Windows
                lock.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(PermissionError):
            lock.unlink(missing_ok=True)
        held.release()
