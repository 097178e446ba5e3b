"""Media inside of WebDataset's tar shards and Hugging Face's parquet files.

A member has the name of its archive before its own, `shard-0001.tar/dog.mp4`, and is what a file
of a folder is: identified by its content, split by that, decoded alone. So the tokens are those of
the same files in a folder. Only what these libraries take for a sample is one; the rest is told.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaling.data import media

SUFFIXES = frozenset([".tar", ".parquet"])
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Member:
    """A media file inside of an archive."""

    archive: str  # relative to the source's folder
    start: int  # its first byte in a tar; its row in a parquet file
    size: int  # bytes
    column: str = ""  # of a parquet file


def members(
    folder: Path, archive: str, kind: str
) -> tuple[dict[str, Member], list[tuple[str, str, str]]]:
    """The media of a kind ("video" | "images") in an archive, by name.

    The second list has (name, "ignored" | "error", reason) of what is not used.
    """
    read = _tar if archive.lower().endswith(".tar") else _parquet
    return read(folder / archive, archive, kind)


def content(folder: Path, member: Member) -> bytes:
    """The bytes of a member. Raises OSError where they are not there any more."""
    path = folder / member.archive
    if not member.column:
        with path.open("rb") as file:
            file.seek(member.start)
            return file.read(member.size)
    try:
        held = _cell(str(path), member.start, member.column)
    except (ValueError, LookupError) as error:  # pyarrow's are such, or an OSError
        raise OSError(f"it cannot be read: {error}") from error
    if held.get("bytes") is not None:
        return bytes(held["bytes"])
    beside = _beside(path, held)
    if beside is None:
        raise OSError(f"no bytes, and no file {held.get('path')} in {path.parent}")
    return beside.read_bytes()


def _beside(path: Path, held: dict[str, Any]) -> Path | None:
    """The file that a row names; None where it is not there, or not in the archive's own folder: a
    downloaded table does not choose what is read elsewhere."""
    beside = Path(os.path.normpath(path.parent / str(held.get("path"))))
    inside = beside.is_relative_to(os.path.normpath(path.parent))
    return beside if inside and beside.is_file() else None


@contextmanager
def as_file(folder: Path, name: str, member: Member | None) -> Iterator[Path]:
    """A path at which a media file can be read: its own, or of a copy of the member."""
    if member is None:
        yield folder / name
        return
    with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as copy:
        copy.write(content(folder, member))
        copy.flush()
        yield Path(copy.name)


def _tar(
    path: Path, archive: str, kind: str
) -> tuple[dict[str, Member], list[tuple[str, str, str]]]:
    """As WebDataset reads it: a sample's key is the name up to its first dot, a suffix the rest."""
    suffixes = media.VIDEO_SUFFIXES if kind == "video" else media.IMAGE_SUFFIXES
    found: dict[str, Member] = {}
    left: list[tuple[str, str, str]] = []
    there, end, last = 0, 0, ""
    others: Counter[str] = Counter()  # labels and texts beside the media
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                name = f"{archive}/{entry.name.removeprefix('./')}"
                why = _no_sample(entry, kind, suffixes)
                if entry.isreg() and entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                held = entry.size if entry.isreg() else 0
                there, end = there + 1, entry.offset_data + -(-held // 512) * 512
                if why == media.OTHER_KIND:
                    others[os.path.splitext(entry.name)[1] or "no suffix"] += 1
                elif why:
                    left.append((name, "ignored", why))
                elif entry.isdir():
                    continue
                elif (key := _key(entry.name)) == last:
                    left.append((name, "ignored", f"sample {key} has its {kind} already"))
                else:  # one key again, not next to the first, is another sample
                    last, name = key, name if name not in found else f"{name}#{there}"
                    found[name] = Member(archive, entry.offset_data, entry.size)
        with path.open("rb") as file:  # tarfile takes half a header for the end
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, OSError, EOFError) as error:
        left.append((archive, "error", f"cut off after {there} members ({error})"))
    if others:
        counts = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(others.items()))
        left.append((archive, "ignored", f"members of other kinds: {counts}"))
    return found, left


def _key(name: str) -> str:
    folder, _, last = name.removeprefix("./").rpartition("/")
    return f"{folder}/{last.partition('.')[0]}" if folder else last.partition(".")[0]


def _no_sample(entry: tarfile.TarInfo, kind: str, suffixes: frozenset[str]) -> str:
    """Why a member is no media of this kind, or ""."""
    if entry.isdir():
        return ""
    parts = entry.name.removeprefix("./").split("/")
    if not entry.isreg() or entry.issparse():
        return "a link or device, which WebDataset leaves out"
    if any(part.startswith(".") for part in parts):
        return "hidden file"
    if parts[0].startswith("__") and parts[0].endswith("__"):
        return "WebDataset's own (__...__)"
    whole = "." + parts[-1].partition(".")[2].lower()
    last = os.path.splitext(parts[-1])[1].lower()
    if last not in suffixes:
        return media.OTHER_KIND
    if kind == "images" and whole != last:
        return f"WebDataset's suffix is {whole}, of which a sample has one beside its image"
    return ""


def _parquet(
    path: Path, archive: str, kind: str
) -> tuple[dict[str, Member], list[tuple[str, str, str]]]:
    """Columns of {bytes, path}, as `datasets` stores images and videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        return {}, [(archive, "error", f"no parquet file, or cut off: {error}")]
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(told["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):  # nothing that `datasets` wrote
        features = {}
    wanted = "Video" if kind == "video" else "Image"
    columns = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {"bytes", "path"} <= {field.type.field(i).name for i in range(field.type.num_fields)}
        and _type_of(features.get(field.name), wanted) == wanted
    ]
    if not columns:
        names = ", ".join(schema.names[:8])
        return {}, [(archive, "ignored", f"no column of {wanted}s (bytes, path) among {names}")]
    column, *others = columns
    found: dict[str, Member] = {}
    left = [
        (f"{archive}/{other}", "ignored", f"a row is one sample, of which {column} is taken")
        for other in others
    ]
    row = 0
    try:
        for batch in file.iter_batches(batch_size=16, columns=[column]):
            for values in batch.to_pylist():
                name, held = f"{archive}/{row:06d}.{column}", values[column] or {}
                own, beside = held.get("bytes"), _beside(path, held)
                if own is not None:
                    found[name] = Member(archive, row, len(own), column)
                elif held.get("path") and beside is not None:
                    found[name] = Member(archive, row, beside.stat().st_size, column)
                elif held.get("path"):
                    left.append(
                        (name, "error", f"no bytes, and no file {held['path']} in its folder")
                    )
                else:
                    left.append((name, "error", "empty"))
                row += 1
    except (pa.ArrowException, OSError) as error:
        left.append((archive, "error", f"after {row} rows: {error}"))
    return found, left


def _type_of(feature: object, otherwise: str) -> object:
    return feature.get("_type", otherwise) if isinstance(feature, dict) else otherwise


def rows_of(path: Path) -> int:
    """How many rows a parquet file has. Raises OSError."""
    try:
        return int(_opened(str(path))[0].metadata.num_rows)
    except ValueError as error:
        raise OSError(f"no parquet file, or cut off: {error}") from error


def _cell(path: str, row: int, column: str) -> dict[str, Any]:
    firsts = _opened(path)[1]
    group = max(i for i, first in enumerate(firsts) if first <= row)
    values: dict[str, Any] = _group(path, group, column)[row - firsts[group]].as_py() or {}
    return values


@lru_cache(maxsize=8)
def _opened(path: str) -> tuple[Any, list[int]]:
    """The file, and the first row of each of its groups."""
    import pyarrow.parquet as pq

    file, firsts, row = pq.ParquetFile(path), [], 0
    for group in range(file.num_row_groups):
        firsts.append(row)
        row += file.metadata.row_group(group).num_rows
    return file, firsts


@lru_cache(maxsize=2)
def _group(path: str, group: int, column: str) -> Any:
    return _opened(path)[0].read_row_group(group, columns=[column]).column(0)
