"""LeRobot's datasets (v2.0, v2.1, v3): an episode, as one camera saw it, is a clip's file.

From v3 on a video file holds many episodes, which are told apart by their times; images are rows of
a parquet file. The cameras of an episode are one thing for the split, or validation would show what
training saw from another side. What no episode names is left out and told.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.data import archives
from scaling.errors import UserError

INFO = "meta/info.json"
_KNOWN = re.compile(r"v(2\.\d+|3\.\d+)$")
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # of a template of paths, and nothing else


@dataclass(frozen=True)
class Episode:
    """One camera's view of an episode."""

    file: str  # relative to the source's folder: a video, or a parquet file of images
    group: str  # of the episode
    frames: int
    fps: float
    start: float = 0.0  # seconds at which it begins in a video
    row: int = 0  # its first in a parquet file
    column: str = ""  # of a parquet file
    alone: bool = False  # the only one in its file


class _Damaged(Exception):
    """What a dataset or an episode lacks; the message is the reason."""


# What the words of a stranger's file can do where another kind of word was meant.
_WRONG = (_Damaged, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def episodes(root: Path, dataset: str) -> tuple[dict[str, Episode], list[tuple[str, str]]]:
    """The episodes of the dataset in the folder root/`dataset` ("" is root itself), by name.

    The second list has (name, reason) of what cannot be used.
    """
    found: dict[str, Episode] = {}
    left: list[tuple[str, str]] = []
    folder, prefix = root / dataset, f"{dataset}/" if dataset else ""
    try:
        info = _info(folder)
        for number, told in _told(folder, info):
            for camera, kind in info["cameras"].items():
                name = f"{prefix}episode-{number:06d}/{camera}"
                try:
                    episode = _episode(folder, prefix, info, number, told, camera, kind)
                except (*_WRONG, OSError) as error:
                    left.append((name, _why(error)))
                else:
                    if name in found:
                        left.append((name, "an episode of this number was there before"))
                    found.setdefault(name, episode)
    except (*_WRONG, OSError, RecursionError) as error:
        left.append((f"{prefix}meta", f"a LeRobot dataset that cannot be read: {_why(error)}"))
    return found, left


def root_above(path: Path) -> Path | None:
    """The dataset that a folder is a part of, or None."""
    for above in path.resolve().parents:
        if (above / INFO).is_file():
            return above
    return None


def _why(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _info(folder: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((folder / INFO).read_text())
    version = info["codebase_version"]
    if not _KNOWN.match(str(version)):
        raise _Damaged(f"version {version}; those of v2 and v3 can (LeRobot converts older ones)")
    cameras = {
        name: feature["dtype"]
        for name, feature in info["features"].items()
        if feature["dtype"] in ("video", "image")
    }
    if not cameras:
        raise _Damaged("no feature is a video or an image")
    fps = float(info["fps"])
    if not 0 < fps < 10_000:
        raise _Damaged(f"fps {fps:g}")
    return info | {"cameras": cameras, "fps": fps, "old": version.startswith("v2")}


def _told(folder: Path, info: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, what its dataset says of it) of each episode; a table at a time is in memory."""
    if info["old"]:
        with (folder / "meta/episodes.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    told = json.loads(line)
                    yield int(told["episode_index"]), told
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not tables:
        raise _Damaged("meta/episodes holds no parquet file")
    firsts: dict[tuple[int, int], int] = {}  # of each data file: the index of its first row
    for table in tables:
        try:
            file = pq.ParquetFile(table)
            wanted = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            rows = file.read(columns=wanted).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _Damaged(f"{table.name}: {error}") from error
        for told in rows:
            data = (told["data/chunk_index"], told["data/file_index"])
            first = firsts.setdefault(data, told["dataset_from_index"])
            yield int(told["episode_index"]), told | {"row": told["dataset_from_index"] - first}


def _episode(
    folder: Path, prefix: str, info: dict[str, Any], number: int, told: dict[str, Any],
    camera: str, kind: str,
) -> Episode:  # fmt: skip
    frames = int(told["length"])
    if frames < 1:
        raise _Damaged("an episode without frames")
    if not info["old"] and frames != told["dataset_to_index"] - told["dataset_from_index"]:
        raise _Damaged(f"its length {frames:,} is not that of its rows")  # nor its end in a video
    of = {"video_key": camera, "episode_index": number}
    of["episode_chunk"] = number // int(info.get("chunks_size", 1000))
    place: dict[str, Any] = {}
    if not info["old"]:
        what = f"videos/{camera}" if kind == "video" else "data"
        of |= {name: int(told[f"{what}/{name}"]) for name in ("chunk_index", "file_index")}
        if kind == "video":
            place["start"] = float(told[f"{what}/from_timestamp"])
    if kind == "image":
        place |= {"column": camera, "row": told.get("row", 0)}
    else:
        place["alone"] = info["old"]
    file = _filled(info["video_path" if kind == "video" else "data_path"], of)
    path = Path(os.path.normpath(folder / file))
    if not path.is_relative_to(os.path.normpath(folder)) or not path.is_file():
        raise _Damaged(f"no file {file} in the dataset")
    if kind == "image" and place["row"] + frames > archives.rows_of(path):
        raise _Damaged(f"its {frames:,} rows are not all in {file}")
    return Episode(prefix + file, f"{prefix}{number}", frames, info["fps"], **place)


def _filled(template: str, values: dict[str, Any]) -> str:
    """str.format of names and widths only: the template is a stranger's."""

    def value(match: re.Match[str]) -> str:
        width = int(match[2] or 0)
        return str(values[match[1]]).zfill(width)

    return _FIELD.sub(value, template)


def refused(source: str, path: Path, reason: str) -> UserError:
    """What to say of a source that is a dataset, and is asked for otherwise."""
    return UserError(f"source {source!r}: {path} is a LeRobot dataset: {reason}")
