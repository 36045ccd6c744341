"""The files of a folder of data: what they hold in one key, and words for what cannot be read."""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .progress import counted

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says where nothing more can be written."""


class DataError(ValueError):
    """A folder that cannot be used; the message says what is wrong and what to do."""


class Source(NamedTuple):
    """A folder with what its files hold: part of a study's settings, so that kept runs are of it.

    As a text it is the folder.
    """

    folder: str
    contents: str  # digest of the files' names and bytes

    def __str__(self) -> str:
        return self.folder


class Files:
    """The files that a study reads, as they were when it began."""

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        """Reads every file once.

        Args:
            folder: the one of `--data`.
            files: all that is read of it.

        Raises:
            DataError: for a file that cannot be read.
        """
        self.stamps = {path: _stamp(path) for path in sorted(files)}
        found = hashlib.sha256()
        for path in counted(list(self.stamps), "reading the data", "files"):
            with reading(path), path.open("rb") as file:
                held = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{path.relative_to(folder).as_posix()}\0{held}\n".encode())
        self.source = Source(str(folder.resolve()), found.hexdigest())

    def check(self) -> None:
        """Raises DataError where a file is no longer as it was when the study began."""
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise DataError(
                    f"{path} has changed while the study ran, so that the runs at work read more "
                    "than one version; the same command keeps the finished ones if the files hold "
                    "what they held, and makes all anew if they do not"
                )


def _stamp(path: Path) -> tuple[int, int]:
    with reading(path):
        found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads a file or lists a folder: errors of the system become a `DataError`."""
    try:
        # a folder is listed or refused by the system; to open a pipe would wait for ever
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise DataError(f"{path}: is neither a file nor a folder; put the file itself there")
        yield
    except OSError as error:
        raise DataError(f"{path}: {_cure(path, error)}") from error


def _cure(path: Path, error: OSError) -> str:
    if path.is_symlink() and not os.path.exists(path):
        return (
            f"is a link to {os.readlink(path)}, which is not there; mend the link, or put the file "
            "itself there"
        )
    if isinstance(error, IsADirectoryError):
        return "is a folder; expected a file: put the one that is meant in its place"
    if isinstance(error, PermissionError):
        needed = "u+rx" if os.path.isdir(path) else "u+r"
        return f"may not be read by this user; give the right to (chmod {needed}), or its owner"
    if isinstance(error, FileNotFoundError):
        return "is not there; put it back, or copy the data anew"
    return f"cannot be read ({error.strerror}); copy it anew, and look after the disk"


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing if it is not a folder. Raises DataError."""
    if not folder.is_dir():
        return []
    with reading(folder):
        return sorted(path.name for path in folder.iterdir())


def listed(folder: Path) -> str:
    """The first names in a folder, in words."""
    if not folder.is_dir():
        return f"no folder {folder}"
    names = names_in(folder)
    return (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "nothing"
