"""Files that are whole or absent, whatever happens on the way."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaling.errors import UserError


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent, whoever else writes the same."""
    temporary = path.with_name(f"{path.name}.{os.uname().nodename}.{threading.get_native_id()}.tmp")
    try:
        temporary.write_bytes(content)
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Make a written file durable and give it its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path`; wait for another process that encodes the same data."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn a full disk or a folder that may not be written into a message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the device of {root} ({error.strerror}). Nothing is damaged: "
                "free some space and give the same command, it goes on where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{root} cannot be written ({error.strerror}). Give a folder that you own."
            ) from error
        raise
