"""Files that are whole or absent, and one number for what several files hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, then move it in place: who finds it finds it whole.

    Args:
        path: where to; an older file there stays until the new one is complete.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

    Raises:
        OSError: where the folder is missing or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
