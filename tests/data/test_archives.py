"""Media inside of tar shards and parquet files: the tokens of the same files in a folder."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scaling.data import archives
from scaling.errors import UserError
from tests.data.clips import write_video
from tests.data.test_encode import run, source


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def parquet(path: Path, rows: list[dict[str, object]], kind: str) -> Path:
    """As `datasets` writes a column of images or videos, in row groups of three."""
    told = {"info": {"features": {"media": {"_type": kind}, "label": {"_type": "Value"}}}}
    media = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"label": pa.array(range(len(rows))), "media": media})
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = np.repeat(rng.integers(0, 256, (12, 4, 4, 3)), 8, 1).repeat(8, 2)
        write_video(folder / f"{i}.mp4", pixels.astype(np.uint8), codec="libx264")
        Image.fromarray(pixels[0].astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("kind", ["video", "images"])
def test_archives_give_the_tokens_of_the_folder(clips: Path, tmp_path: Path, kind: str) -> None:
    suffix = ".mp4" if kind == "video" else ".png"
    held = {path.stem: path.read_bytes() for path in sorted(clips.glob(f"*{suffix}"))}
    names = list(held)
    for folder in ("folder", "wds", "hf"):
        (tmp_path / folder).mkdir()
    for name, content in held.items():
        (tmp_path / "folder" / f"{name}{suffix}").write_bytes(content)
    for shard in (0, 1):
        tar(tmp_path / "wds" / f"s-{shard:04d}.tar", {
            f"./dir.1/{name}{part}": content for name in names[4 * shard : 4 * shard + 4]
            for part, content in ((".json", b"{}"), (suffix, held[name]))
        })  # fmt: skip
    rows: list[dict[str, object]] = [
        {"bytes": held[name], "path": f"{name}{suffix}"} for name in names
    ]
    parquet(tmp_path / "hf" / "train-0.parquet", rows, "Video" if kind == "video" else "Image")
    made = {
        folder: run(tmp_path / f"out-{folder}", source(kind, tmp_path / folder, name="x"))
        for folder in ("folder", "wds", "hf")
    }
    shards = {
        folder: [path.read_bytes() for path in sorted(where.rglob("*.bin"))]
        for folder, where in made.items()
    }
    assert shards["folder"] and shards["wds"] == shards["folder"] == shards["hf"]
    workers = run(tmp_path / "two", source(kind, tmp_path / "wds", name="x"), workers=2)
    assert [path.read_bytes() for path in sorted(workers.rglob("*.bin"))] == shards["wds"]


def told(folder: Path, archive: str, kind: str) -> tuple[list[str], dict[str, str]]:
    found, left = archives.members(folder, archive, kind)
    return [name.removeprefix(f"{archive}/") for name in found], {
        name.removeprefix(f"{archive}/"): why for name, _, why in left
    }


def test_what_webdataset_takes_for_no_sample_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {
        "a.jpg": b"1", "a.seg.png": b"2", "a.png": b"7", "b.1.jpg": b"3", "dir/._c.jpg": b"4",
        "__x__/d.jpg": b"5", "e.JPG": b"6", "f.txt": b"8", "dir/__g__/g.jpg": b"9",
    })  # fmt: skip
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
    found, left = told(tmp_path, "a.tar", "images")
    assert found == ["a.jpg", "e.JPG", "dir/__g__/g.jpg"]
    assert set(left) == {"a.seg.png", "b.1.jpg", "dir/._c.jpg", "__x__/d.jpg", "a.png", "a.tar",
                         "link.jpg"}  # fmt: skip
    assert left["a.tar"] == "members of other kinds: .txt 1"
    assert left["a.png"] == "sample a has its images already"
    assert "a link" in left["link.jpg"] and ".1.jpg" in left["b.1.jpg"]
    members = archives.members(tmp_path, "a.tar", "images")[0]
    assert archives.content(tmp_path, members["a.tar/e.JPG"]) == b"6"


def test_a_cut_tar_gives_its_whole_members(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": bytes(2000) for i in range(4)})
    for size in (2 * 2560 + 1000, 2 * 2560 + 300):
        path.write_bytes(path.read_bytes()[:size])
        found, left = told(tmp_path, "a.tar", "images")
        assert found == ["0.png", "1.png"] and "after 2 members" in left["a.tar"]
    path.write_bytes(b"")
    assert told(tmp_path, "a.tar", "images")[1]


def test_rows_without_bytes_are_read_beside_the_file_or_told(tmp_path: Path) -> None:
    """Beside it, and nowhere else: whoever made the table does not choose what is read here."""
    (tmp_path / "own.png").write_bytes(b"of the user")
    tmp_path = tmp_path / "source"
    tmp_path.mkdir()
    (tmp_path / "here.png").write_bytes(b"abc")
    rows = [
        {"bytes": b"12", "path": None},
        {"bytes": None, "path": "here.png"},
        {"bytes": None, "path": "/gone/x.png"},
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": "../own.png"},
        {"bytes": None, "path": str(tmp_path.parent / "own.png")},
    ]
    path = parquet(tmp_path / "a.parquet", rows, "Image")  # type: ignore[arg-type]
    found, left = told(tmp_path, path.name, "images")
    assert found == ["000000.media", "000001.media"]
    assert left == {
        "000002.media": "no bytes, and no file /gone/x.png in its folder",
        "000003.media": "empty",
        "000004.media": "empty",
        "000005.media": "no bytes, and no file ../own.png in its folder",
        "000006.media": f"no bytes, and no file {tmp_path.parent}/own.png in its folder",
    }
    members = archives.members(tmp_path, path.name, "images")[0]
    held = [archives.content(tmp_path, member) for member in members.values()]
    assert held == [b"12", b"abc"]
    assert told(tmp_path, path.name, "video")[1] == {
        "a.parquet": "no column of Videos (bytes, path) among label, media"
    }
    odd = pq.read_table(path).replace_schema_metadata({"huggingface": "[1"})
    pq.write_table(odd, tmp_path / "odd.parquet")
    assert told(tmp_path, "odd.parquet", "images")[0] == found
    path.write_bytes(path.read_bytes()[:-20])
    assert "no parquet file, or cut off" in told(tmp_path, path.name, "images")[1]["a.parquet"]


def test_what_is_left_out_is_in_the_manifest(clips: Path, tmp_path: Path) -> None:
    held = {f"{i}.mp4": (clips / f"{i}.mp4").read_bytes() for i in range(4)}
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in" / "a.tar", held | {"x.mp4": b"text", "a.txt": b"-"})
    (tmp_path / "in" / "b.tar.gz").write_bytes(b"-")
    made = run(tmp_path / "out", source("video", tmp_path / "in"))
    with (made / "manifest.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["a.tar/x.mp4"]["status"] == "error" and "tmp" not in rows["a.tar/x.mp4"]["error"]
    assert (
        rows["a.tar"]["error"] == "members of other kinds: .txt 1"
        and "unpack" in rows["b.tar.gz"]["error"]
    )
    assert sum(row["status"] == "ok" for row in rows.values()) == 4
    (tmp_path / "none").mkdir()
    tar(tmp_path / "none" / "a.tar", {"a.txt": b"-"})
    with pytest.raises(UserError, match=r"no readable video file.*\.tar \(WebDataset\)"):
        run(tmp_path / "out", source("video", tmp_path / "none"))
