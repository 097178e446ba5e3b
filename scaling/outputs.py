"""Files that are written where a user said, or beside that: only what the tool made is replaced.

How it knows: each folder holds a record, a line of JSON for everything that was written there, with
the command and the content's SHA-256. A file is the command's own while it is what that command
wrote under that name. One that was there before, that another command made or that was edited since
is not; it is named before any work is done, and never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from scaling import files
from scaling.errors import UserError
from scaling.files import storage_error

RECORD = ".scaling-made.jsonl"
STUDY = "scaling study"  # makes what lies at the top of a study's folder, as do its probes


def claim(maker: str, *paths: Path, inputs: Iterable[Path] = ()) -> None:
    """See that `maker` (a command) may write these files. Changes nothing.

    Raises UserError, naming all that are in the way: an input of the same call, under whatever
    name, or anything there that is not what `maker` wrote.
    """
    read = [i for i in inputs if i.exists()]
    wrong = []
    known = {folder: set(_lines(folder)) for folder in {path.parent for path in paths}}
    for path in paths:
        if not os.path.lexists(path):
            continue
        if path.exists() and any(path.samefile(i) for i in read):
            wrong.append(f"{path} is read by this command and would be overwritten: give another")
        elif not _is_made(maker, path, known[path.parent]):
            wrong.append(
                f"{path} is there and not as `{maker}` made it, so it is not replaced: give another"
            )
    if wrong:
        raise UserError("\n".join(f"{one} name, or move it away" for one in wrong))


def write(maker: str, path: Path, data: bytes | str) -> None:
    """Write a file of `maker`'s, whole or not at all. Raises UserError as `claim`; no space."""
    payload = data.encode() if isinstance(data, str) else data
    _note(maker, path, hashlib.sha256(payload).hexdigest())
    files.write(path, payload)


def place(maker: str, temporary: Path, path: Path) -> None:
    """Give a written file its name, as `write` does."""
    _note(maker, path, _sha256(temporary))
    files.settle(temporary, path)


def remove(maker: str, path: Path) -> None:
    """Remove a file of `maker`'s, if it is there. Raises UserError as `claim`."""
    claim(maker, path)
    path.unlink(missing_ok=True)


def _is_made(maker: str, path: Path, known: set[tuple[str, str, str]]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if _is_of_before(path.parent):
        return maker == STUDY
    return (maker, path.name, _sha256(path)) in known


def _is_of_before(folder: Path) -> bool:
    """Whether it is the folder of a study that was begun when there was no record yet."""
    return (folder / "driver.lock").is_file() and not (folder / RECORD).exists()


def _lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(maker, name, sha256) of all that was ever written; without a line that a crash tore."""
    try:
        lines = (folder / RECORD).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            maker, name, sha256 = json.loads(line)
        except (ValueError, TypeError):
            continue
        yield maker, name, sha256


def _note(maker: str, path: Path, sha256: str) -> None:
    """Record what is about to be written. It comes first: after a crash nobody owns too little."""
    claim(maker, path)
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = [(maker, path.name, sha256)]
        if _is_of_before(folder):
            kinds = (".csv", ".html", ".json", ".yaml")
            there = [f for f in sorted(folder.iterdir()) if f.suffix in kinds and f.is_file()]
            new += [(STUDY, f.name, _sha256(f)) for f in there]
        known = set(_lines(folder))
        text = "".join(json.dumps(line) + "\n" for line in new if line not in known)
        if text:
            with open(folder / RECORD, "a+b") as file:
                torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
                file.write(b"\n" * bool(torn) + text.encode())
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path) from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
