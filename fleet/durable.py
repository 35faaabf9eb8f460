"""Writing files that must survive a power cut: the only module that does.

A file is written beside its place, flushed to the disk, renamed over it, and the folder is flushed too,
so that after a power cut at any instant the old bytes or the new ones are there, whole.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fleet.errors import StoreError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_ROOM_IN_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``: afterwards it is on the disk; interrupted, the old bytes are.

    Args:
        path: The file; its folder is made if it is missing.
        data: The whole new content.
        mode: Permission bits of the new file; 0o600 for secrets.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # what an interrupted write left may have other permissions
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _flush_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make ``path`` and what is missing above it, each entered durably into the folder above."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush_folder(path.parent)


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``: one process does at a time, and its death lets go.

    Args:
        wait: Whether to wait for the process that holds it.

    Raises:
        BlockingIOError: Another process holds it.
    """
    with open(path, "ab") as lock:  # which changes nothing, not even its time
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def append_line(path: Path, line: str, *, max_bytes: int) -> None:
    """Append ``line`` to a log, whole or not at all. Not flushed to the disk: a log is a witness, never the truth.

    Args:
        max_bytes: A file that has grown so long is set aside as ``NAME.1``, in the place of the one before.

    Raises:
        OSError: It was not appended.
    """
    data = f"{line}\n".encode()
    for _ in range(10):
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a node's children and threads write to the same log
            if not _is_at(file, path):
                continue  # it was set aside while we waited
            if os.fstat(file.fileno()).st_size >= max_bytes:
                os.replace(path, path.with_name(f"{path.name}.1"))
                continue
            written = file.write(data)
            if written < len(data):
                file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open ``file`` is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: what the system and SQLite say of it comes wrapped by others."""
    if isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return True
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _NO_ROOM_IN_SQLITE:
        return True
    return error is not None and is_full(error.__cause__ or error.__context__)


def is_damaged(error: Exception) -> bool:
    """Whether SQLite says that a file is no database, or a damaged one: its other errors are kinds of this one."""
    return type(error) is sqlite3.DatabaseError
