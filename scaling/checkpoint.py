"""Durable state: atomic files, verified checkpoints, one worker per directory, a stop flag.

A checkpoint file is the SHA-256 of its payload (32 bytes) followed by the payload (`torch.save`,
read back with `weights_only=True`). It replaces its predecessor by rename and the predecessor is
kept, so a torn or rotten newest file costs the work since the one before, never the run.

A run whose weights are sharded over ranks writes them into a new folder beside the file, whose
state then names the folder and the SHA-256 of everything in it: {"shards": {"folder", "sha256"}}.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from scaling.errors import UserError

PARTIAL = ".partial"  # a folder of sharded weights that is being written


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old or the new content, also after a crash.

    Raises UserError when the device is full; the old file is then untouched.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path) -> Exception:
    """A full device or a read-only folder is the user's to mend; anything else stays as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{path}: no space left on the device. Nothing finished was lost; free some space or "
            f"choose another folder with --out, then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"{path}: cannot be written ({error.strerror}); choose another --out")
    return error


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there becomes `<name>.previous`."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def load(path: Path, *, shards: bool = True) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with those that did not.

    Returns (None, notes) when there is none. Never executes code from the file. With shards=False
    the folder of a sharded checkpoint is not read (one rank does it for all).
    """
    import torch

    notes: list[str] = []
    for candidate in (path, previous(path)):
        try:
            content = candidate.read_bytes()
        except FileNotFoundError:
            continue
        digest, payload = content[:32], content[32:]
        wrong = "checksum differs" if hashlib.sha256(payload).digest() != digest else ""
        if not wrong:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            wrong = _wrong_shards(path.parent, state.get("shards")) if shards else ""
        if not wrong:
            if shards and state.get("shards"):  # what came after it belongs to no checkpoint
                for folder in shard_folders(path):
                    if folder.name > state["shards"]["folder"]:
                        shutil.rmtree(folder, ignore_errors=True)
            return state, notes
        notes.append(f"{candidate.name} is damaged ({wrong}); set aside")
        os.replace(candidate, candidate.with_name(candidate.name + ".damaged"))
    return None, notes


def shard_folders(path: Path) -> list[Path]:
    """The folders of a checkpoint's sharded weights, in the order in which they were written."""
    return sorted(p for p in path.parent.glob(f"{path.name}.shards-*") if p.suffix != PARTIAL)


def new_shards(path: Path) -> Path:
    """An empty folder for sharded weights; `seal_shards` makes it part of a checkpoint."""
    last = [int(p.name.rpartition("-")[2]) for p in shard_folders(path)[-1:]] or [0]
    folder = path.with_name(f"{path.name}.shards-{last[0] + 1:08d}{PARTIAL}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def seal_shards(folder: Path) -> dict[str, Any]:
    """Give a folder that is completely written its name; returns what a checkpoint says of it."""
    sha256 = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    sync_folder(folder)
    sealed = folder.with_suffix("")
    os.replace(folder, sealed)
    sync_folder(sealed.parent)
    return {"folder": sealed.name, "sha256": sha256}


def drop(path: Path, *, files: int, folders: int) -> None:
    """Keep the newest `files` (0 to 2) of a checkpoint and the newest `folders` of its shards."""
    for old in (path, previous(path))[files:]:
        old.unlink(missing_ok=True)
    written = shard_folders(path)
    unused = written[: max(0, len(written) - folders)]
    for folder in [*unused, *path.parent.glob(f"{path.name}.shards-*{PARTIAL}")]:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _wrong_shards(run_dir: Path, shards: dict[str, Any] | None) -> str:
    if shards is None:
        return ""
    for name, sha256 in shards["sha256"].items():
        file = run_dir / shards["folder"] / name
        if not file.is_file():
            return f"{shards['folder']}/{name} is missing"
        if _sha256(file) != sha256:
            return f"{shards['folder']}/{name}: checksum differs"
    return ""


class RunBusy(RuntimeError):
    """Another live process works in this directory."""


class RunLock:
    """Exclusive use of a directory for the life of a process (an `flock`, so a crash frees it).

    The lock file names its holder, for people and for `scaling status`.
    """

    def __init__(self, folder: Path, name: str = "lock") -> None:
        self.path = folder / name
        self._file: Any = None

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+")  # held until __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RunBusy(f"{self.path.parent} is in use by {holder}") from None
        self._file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": job}))
        self._file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.truncate(0)
        self._file.close()


def held(lock: Path) -> bool:
    """Whether a live process holds a lock file."""
    try:
        with open(lock, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Interrupted(RuntimeError):
    """A run stopped at a step boundary with its state saved; the same call continues it."""


class StopFlag:
    """Set by SIGTERM or SIGUSR2 (Slurm's warnings); training looks at it between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self, *more: signal.Signals) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR2, *more):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


STOP = StopFlag()
