"""Atomic writes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(
    path: Path, content: str | bytes | Callable[[BinaryIO], Any], *, new: bool = False
) -> None:
    """Write text (as UTF-8), bytes, or what a function writes to an open binary file, under a
    temporary name that is then moved in place. `new`: of several processes that write at once only
    the first does, and the others raise FileExistsError. Raises OSError for a folder that is
    missing or cannot be written to.
    """
    # of this write alone: processes of one number on two machines may share a folder
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        if new:
            try:
                return os.link(temporary, path)
            except OSError:  # a file system without links: an empty file holds the place
                path.open("xb").close()
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a full disk does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
