"""Files that are written where a user said, or beside that: only what the tool made is replaced.

How it knows: each folder holds a record, a line of JSON for everything that was written there, with
the command and the content's SHA-256. A file is the command's own while it is what that command
wrote under that name. One that was there before, that another command made or that was edited since
is not; it is named before any work is done, and never touched. A page that is kept where no record
goes along (in git) says in its first line who made it, and the SHA-256 of the rest (`signed`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scaling.errors import UserError
from scaling.storage import files
from scaling.storage.files import storage_error

RECORD = ".scaling-made.jsonl"
STUDY = "scaling study"  # makes what lies at the top of a study's folder, as do its probes
GENERATE = "scaling generate"
LOCK = "driver.lock"  # of a study: held by the one process that runs it
GENERATED = "generated"  # of a study: the folder of its continued clips
MOST = 8  # files that a message names
MARK = "<!-- made by `{maker}`; SHA-256 of what follows: {sha256} -->\n"
Line = tuple[str, str, str]  # maker, name, sha256


def claim(maker: str, *paths: Path, inputs: Iterable[Path] = ()) -> None:
    """See that `maker` (a command) may write these files. Changes nothing.

    Raises UserError, naming all that are in the way: an input of the same call, under whatever
    name, or anything there that is not what `maker` wrote.
    """
    there = [path for path in paths if os.path.lexists(path)]
    read = [i for i in inputs if os.path.exists(i)]
    # Before the record: what another process writes meanwhile is noted there first.
    held = {path: _content(path) for path in there}
    known = {folder: set(_lines(folder)) for folder in {path.parent for path in there}}
    wrong = []
    for path in there:
        if path.exists() and any(path.samefile(i) for i in read):
            wrong.append(f"{path} is read by this command and would be overwritten: give another")
        elif not _is_made(maker, path, held[path], known[path.parent]):
            wrong.append(
                f"{path} is there and not as `{maker}` made it, so it is not replaced: give another"
            )
    if wrong:
        lines = [f"{one} name, or move it away" for one in wrong[:MOST]]
        lines += [f"... and {len(wrong) - MOST} more such files"] * (len(wrong) > MOST)
        raise UserError("\n".join(lines))


def begin(folder: Path) -> None:
    """Keep a record of a folder from now on: what is there is its user's, until it is written."""
    _append(folder, [], folder)


def adopt(maker: str, *paths: Path) -> None:
    """Where there is no record yet: these files, as they are, are `maker`'s of an older version."""
    for folder in {path.parent for path in paths}:
        if not (folder / RECORD).exists():
            files = sorted(path for path in paths if path.parent == folder and path.is_file())
            _append(folder, [(maker, f.name, _sha256(f)) for f in files], folder)


def write(maker: str, path: Path, data: bytes | str) -> None:
    """Write a file of `maker`'s, whole or not at all. Raises UserError as `claim`; no space."""
    payload = data.encode() if isinstance(data, str) else data
    _note(maker, path, hashlib.sha256(payload).hexdigest())
    files.write(path, payload)


def signed(maker: str, page: str) -> str:
    """A page of Markdown or HTML with a first line by which it is known, unless it was edited."""
    return MARK.format(maker=maker, sha256=hashlib.sha256(page.encode()).hexdigest()) + page


def write_signed(maker: str, path: Path, page: str) -> None:
    """`write` a page that is written again and again: signed, it needs no line of the record."""
    claim(maker, path)
    files.write(path, signed(maker, page).encode())


def _is_signed(maker: str, path: Path) -> bool:
    start = MARK.split("{sha256}", maxsplit=1)[0].format(maker=maker).encode()
    with open(path, "rb") as file:
        first = file.readline(len(MARK) + len(maker) + 64)
        if not first.startswith(start):
            return False
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return first == MARK.format(maker=maker, sha256=sha256).encode()


def wrote(maker: str, folder: Path) -> bool:
    """Whether something there was ever written by `maker`."""
    return any(one == maker for one, _, _ in _lines(folder))


@contextmanager
def writing(maker: str, path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block, as `write` does."""
    with files.writing(path) as temporary:
        yield temporary
        _note(maker, path, _sha256(temporary))


def remove(maker: str, path: Path) -> None:
    """Remove a file of `maker`'s, if it is there. Raises UserError as `claim`."""
    claim(maker, path)
    if path.exists():
        path.unlink(missing_ok=True)


def _content(path: Path) -> str | None:
    """The SHA-256 of a file; None where no command made it: a link, a folder, or unreadable."""
    try:
        return None if path.is_symlink() or not path.is_file() else _sha256(path)
    except OSError:
        return None


def _is_made(maker: str, path: Path, held: str | None, known: set[Line]) -> bool:
    if held is None:
        return False
    if _is_signed(maker, path):
        return True
    if not (path.parent / RECORD).exists():
        return maker == _maker_before(path.parent)
    return (maker, path.name, held) in known


def _maker_before(folder: Path) -> str | None:
    """Whose the files are of a study that was begun when there was no record yet."""
    study = folder.parent if folder.name == GENERATED else folder
    if (study / LOCK).is_file() and not (study / RECORD).exists():
        return STUDY if study == folder else GENERATE
    return None


def _lines(folder: Path) -> Iterator[Line]:
    """All that was ever written; without a line that a crash tore."""
    try:
        lines = (folder / RECORD).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{folder / RECORD}: cannot be read ({error.strerror})") from None
    for line in lines:
        try:
            maker, name, sha256 = map(str, json.loads(line))
        except (ValueError, TypeError):
            continue
        yield maker, name, sha256


def _note(maker: str, path: Path, sha256: str) -> None:
    """Record what is about to be written. It comes first: after a crash nobody owns too little."""
    claim(maker, path)
    new = (maker, path.name, sha256)
    before = _maker_before(path.parent)
    if before == STUDY:  # the generated first: what its files are hangs on the study's record
        adopt(GENERATE, *_made_before(path.parent / GENERATED))
    if before:
        adopt(before, *_made_before(path.parent))
    if not path.exists() or new not in set(_lines(path.parent)):
        _append(path.parent, [new], path)


def _made_before(folder: Path) -> list[Path]:
    kinds = (".csv", ".html", ".json", ".yaml", ".mp4", ".gif", ".png")
    return [f for f in folder.iterdir() if f.suffix in kinds] if folder.is_dir() else []


def _append(folder: Path, lines: Iterable[Line], about: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / RECORD, "a+b") as file:
            torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * bool(torn and text) + text.encode())
            file.flush()
            os.fsync(file.fileno())
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise UserError(
            f"{about}: cannot be written ({error.strerror}: {error.filename})"
        ) from None
    except OSError as error:
        raise storage_error(error, about) from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
