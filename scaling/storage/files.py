"""Files that are whole or absent, and folders with one worker, on every file system of a cluster.

A lock file holds a record of its holder (host, process, Slurm job) and a beat that the holder
counts up while it lives. `flock` excludes others wherever the file system takes it to the whole
cluster, and frees at once what a crash left. Some file systems have no `flock` (parts of Lustre and
NFS) and some keep it within each host: there the record decides. One of another host is watched
until it beats (somebody lives) or has been still for PATIENCE_SECONDS; nothing compares clocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from scaling.errors import UserError, note

T = TypeVar("T")
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 45.0  # without a beat, after which a holder on another host counts as dead
CLAIM_SECONDS = 2.0  # without `flock`: longer than a write takes to be seen by other hosts
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
HALF = ".tmp"  # in the name of a file that is being written
NO_RENAME = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)


# ------------------------------------------------------------------------------------ whole files


def write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old or the new content, also after a crash.

    Raises UserError when the device is full or the folder may not be written; the old file is then
    untouched.
    """
    with explained(path), writing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The name under which to write what becomes `path` at the end of the block: see `write`.

    Nothing is left of it where the block raises.
    """
    temporary = unfinished(path)
    try:
        yield temporary
        with explained(path):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            _as_readable_as_others(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _as_readable_as_others(path: Path) -> None:
    """The permissions that a new file has here: safetensors (0.8) writes for its owner alone."""
    if stat.S_IMODE(path.stat().st_mode) == 0o600:
        usual = path.with_name(f"{path.name}.mode")
        try:
            usual.touch()
            path.chmod(stat.S_IMODE(usual.stat().st_mode))
        finally:
            usual.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """The name of `path` while it is being written, of the same kind; no other writer anywhere
    uses the same."""
    writer = f"{os.uname().nodename}-{threading.get_native_id()}"
    return path.with_name(f".{path.stem}.{writer}{HALF}{path.suffix}")


def whole(folder: Path, pattern: str) -> list[Path]:
    """What matches in a folder, sorted, without the hidden. A killed writer leaves half a file
    (`unfinished`), which is of the same kind and none of them; other tools leave copies."""
    above = len(folder.parts)
    return sorted(
        path for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.parts[above:])
    )  # fmt: skip


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, kind: type[T]) -> T:
    """The value of a JSON file that must be of a kind (dict, list).

    Raises OSError, or ValueError for whatever else is wrong with it.
    """
    return parse_json(path.read_text(), kind)


def parse_json(text: str, kind: type[T]) -> T:
    """The same of its text."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError("it is nested without end") from None
    if not isinstance(value, kind):
        raise UserError(f"it holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def storage_error(error: OSError, path: Path) -> Exception:
    """What the user can mend of the storage, in a sentence; anything else stays as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{path}: no space left on the device ({error.strerror}). Nothing finished was lost; "
            f"free some space or choose another folder with --out, then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"{path}: cannot be written ({error.strerror}); choose another --out")
    if error.errno in NO_RENAME:
        return UserError(
            f"{path}: its file system cannot put one file in the place of another "
            f"({error.strerror}), by which everything here stays whole; choose an --out on a disk "
            f"of this machine or an ordinary shared one (NFS, Lustre, GPFS)"
        )
    return error


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn what the storage under `root` refuses into a message."""
    try:
        yield
    except OSError as error:
        told = storage_error(error, root)
        if told is error:
            raise
        raise told from error


# ------------------------------------------------------------------------------------------ locks


class RunBusy(RuntimeError):
    """Another live process works in this directory."""


class RunLock:
    """Exclusive use of a directory for the life of a process, as the `with` block of a lock file.

    Args:
        folder: made if it is not there.
        name: of the lock file in it.
        wait: for the holder to leave; else RunBusy is raised while it lives.
        say: is told when another host's record has to be watched, which takes a while.

    Should the file come to name somebody else meanwhile (this process was stopped for long, or two
    hosts without a common `flock` began at the same moment), the process gets a SIGTERM: it saves
    what it has and leaves.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "lock",
        *,
        wait: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path = folder / name
        self._wait = wait
        self._say = say or note
        self._token = secrets.token_hex(8)
        self._watched = False
        self._left = threading.Event()
        self._beats = threading.Thread(target=self._beat, name=f"lock {name}", daemon=True)

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if self._acquire(descriptor):
                    self._file = descriptor  # held open, and so locked, until __exit__
                    self._beats.start()
                    return self
            except BaseException:  # Ctrl-C, say: nobody may wait for a process that gave up
                self._erase(descriptor)
                os.close(descriptor)
                raise
            os.close(descriptor)
            time.sleep(0.2)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._beats.join()
        self._erase(self._file)
        os.close(self._file)

    def _erase(self, descriptor: int) -> None:
        """Take back the record, where it is this one's."""
        record = holder(self.path)
        if record is not None and record.get("token") == self._token:
            os.ftruncate(descriptor, 0)

    def _acquire(self, descriptor: int) -> bool:
        """Whether the lock is ours now. Raises RunBusy when it is not and nobody wants to wait."""
        flock = _flock(descriptor)
        if flock is False:
            return self._busy(holder(self.path))
        seen, since = None, time.monotonic()
        while (record := holder(self.path)) is not None:
            alive = _alive(record, flock)
            if alive is False:
                break
            if record != seen:
                if seen is not None or alive:
                    return self._busy(record)
                seen, since = record, time.monotonic()
                if not self._watched:
                    self._watched = True
                    self._say(
                        f"{self.path.parent}: waiting up to {PATIENCE_SECONDS:.0f} s to see "
                        f"whether {_named(record)} still works there"
                    )
            elif time.monotonic() - since > PATIENCE_SECONDS:
                break
            time.sleep(min(0.2, PATIENCE_SECONDS / 5))
        self._put(descriptor, 0)
        if flock is None:
            time.sleep(CLAIM_SECONDS)  # of several that write at the same moment the last one stays
        record = holder(self.path)
        return (record is not None and record.get("token") == self._token) or self._busy(record)

    def _busy(self, record: dict[str, Any] | None) -> bool:
        if self._wait:
            return False
        who = "another process" if record is None else _named(record)
        raise RunBusy(f"{self.path.parent} is in use by {who}")

    def _put(self, descriptor: int, beat: int) -> None:
        record = {
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            **process(),
            "token": self._token,
            "beat": f"{beat:012d}",  # of one length, so that it is overwritten in place
        }
        content = json.dumps(record).encode()
        os.pwrite(descriptor, content, 0)
        if beat == 0:
            os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)

    def _beat(self) -> None:
        beat = 0
        while not self._left.wait(BEAT_SECONDS):
            record = holder(self.path)
            if record is not None and record.get("token") != self._token:
                self._say(
                    f"{self.path.parent} is in use by {_named(record)} now, because this process "
                    f"gave no sign of life for long or both began at once; leaving it to that one"
                )
                os.kill(os.getpid(), signal.SIGTERM)
                return
            beat += 1
            with contextlib.suppress(OSError):  # a server that is away for a while; the next one
                self._put(self._file, beat)


def held(lock: Path) -> bool:
    """Whether a live process holds a lock file; of another host's, whether it beat of late."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        flock = _flock(descriptor)
        if flock is False:
            return True
        record = holder(lock)
        alive = record is not None and _alive(record, flock)
        age = time.time() - os.fstat(descriptor).st_mtime
        return abs(age) < PATIENCE_SECONDS if alive is None else alive
    finally:
        os.close(descriptor)


def machine() -> str:
    """One system that was started once: where process numbers mean something, and `flock` holds."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {os.readlink(space)}"
    except OSError:
        return socket.gethostname()


def process() -> dict[str, Any]:
    """By which this process is known again: the machine, the number, when it began."""
    return {"machine": machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def gone(record: dict[str, Any]) -> bool:
    """Whether the process of a record (`process`) has surely ended: seen on its own machine."""
    pid, started = record.get("pid"), record.get("started")
    if record.get("machine") != machine() or not isinstance(started, str):
        return False
    try:
        os.kill(int(pid or 0), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, TypeError):
        return False
    return _started(int(pid or 0)) not in (None, started)


def _flock(descriptor: int) -> bool | None:
    """True: locked. False: somebody else has it. None: this file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


def holder(lock: Path) -> dict[str, Any] | None:
    """The record of a lock file; None where there is none. One that cannot be read names nobody."""
    content = b""
    for _ in range(3):  # one that is being overwritten is whole a moment later
        try:
            content = lock.read_bytes()
        except FileNotFoundError:
            return None
        if not content.strip(b"\0 \n"):
            return None
        with contextlib.suppress(ValueError):
            record = json.loads(content)
            if isinstance(record, dict) and {"host", "pid"} <= record.keys():
                return record
        time.sleep(0.02)
    return {"host": "an unknown host", "pid": "?", "content": content}


def _alive(record: dict[str, Any], flock: bool | None) -> bool | None:
    """Whether the holder lives; None where that cannot be seen from here."""
    if record.get("machine") == machine():
        started: str | None = record["started"]
        return started is not None and _started(record["pid"]) == started
    return False if "machine" not in record and flock else None  # of a version without a beat


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: its number alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _named(record: dict[str, Any]) -> str:
    job = f", Slurm job {record['job']}" if record.get("job") else ""
    return f"process {record['pid']} on {record['host']}{job}"
