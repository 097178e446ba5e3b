"""Durable state: verified checkpoints, and a stop flag.

A checkpoint file is the SHA-256 of its payload (32 bytes) followed by the payload (`torch.save`,
read back with `weights_only=True`). It replaces its predecessor by rename and the predecessor is
kept, so a torn or rotten newest file costs the work since the one before, never the run.

A run whose weights are sharded over ranks writes them into a new folder beside the file, whose
state then names the folder and the SHA-256 of everything in it: {"shards": {"folder", "sha256"}}.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from scaling.storage import files

PARTIAL = ".partial"  # a folder of sharded weights that is being written


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there becomes `<name>.previous`."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    with files.explained(path), files.writing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())  # before its predecessor gives up the name
        if path.exists():
            os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """The file of the checkpoint before the newest."""
    return path.with_name(path.name + ".previous")


def load(
    path: Path, *, shards: bool = True, wrong: Callable[[dict[str, Any]], str] = lambda state: ""
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with those that did not.

    Returns (None, notes) when there is none. Never executes code from the file. With shards=False
    the folder of a sharded checkpoint is not read (one rank does it for all). `wrong` says what
    makes a state unfit for its reader, or ''.
    """
    notes: list[str] = []
    for candidate in (path, previous(path)):
        state, why = _read(candidate)
        if state is None and not why:
            continue
        if state is not None:
            why = wrong(state)
            if shards and not why:
                why = _wrong_shards(path, state.get("shards"))
        if state is None or why:
            notes.append(f"{candidate.name} is damaged ({why}); set aside")
            os.replace(candidate, _aside(candidate))
            continue
        if shards and state.get("shards"):  # what came after it belongs to no checkpoint
            for folder in shard_folders(path):
                if folder.name > state["shards"]["folder"]:
                    shutil.rmtree(folder, ignore_errors=True)
        return state, notes
    return None, notes


def _read(candidate: Path) -> tuple[dict[str, Any] | None, str]:
    """A checkpoint's state, or what is wrong with it; (None, '') where there is none."""
    import torch

    try:
        content = candidate.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:  # a folder of that name, a bad block
        return None, f"it cannot be read: {error.strerror}"
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        return None, "checksum differs"
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that somebody else wrote makes of the reader
        return None, f"it holds no state: {type(error).__name__}"
    if not isinstance(state, dict):
        return None, f"it holds a {type(state).__name__}, no state"
    return state, ""


def _aside(candidate: Path) -> Path:
    """A free name for a damaged file or folder: an earlier one is kept."""
    target = candidate.with_name(candidate.name + ".damaged")
    number = 1
    while target.exists():
        number += 1
        target = candidate.with_name(f"{candidate.name}.{number}.damaged")
    return target


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
    files.sync_folder(folder)
    sealed = folder.with_suffix("")
    os.replace(folder, sealed)
    files.sync_folder(sealed.parent)
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


def _wrong_shards(path: Path, shards: Any) -> str:
    """What is wrong with the sharded weights that a state names. They lie beside it, nowhere else:
    a name that leads away belongs to somebody else's file."""
    if shards is None:
        return ""
    try:
        folder, digests = str(shards["folder"]), dict(shards["sha256"])
    except (TypeError, KeyError, ValueError):
        return "its list of shards is none"
    names = [folder, *map(str, digests)]
    if not folder.startswith(f"{path.name}.shards-") or any("/" in n or n == ".." for n in names):
        return f"its shards are not beside it: {folder}"
    for name, sha256 in digests.items():
        file = path.parent / folder / name
        if not file.is_file():
            return f"{folder}/{name} is missing"
        if _sha256(file) != sha256:
            return f"{folder}/{name}: checksum differs"
    return ""


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
