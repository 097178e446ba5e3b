"""Files of every awkward kind in one folder: each has a clear outcome in the manifest."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.data.clips import rotate_mp4, write_video
from tests.data.test_encode import manifest, noise, run, source


def test_each_kind_of_file_has_its_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(4):
        write_video(folder / f"plain-{i}.mp4", noise(i, 12))
    write_video(folder / "odd.mkv", noise(10, 12, 53, 37), codec="ffv1", pix_fmt="yuv444p")
    write_video(folder / "ten-bit.mkv", noise(11, 12), codec="libx264", pix_fmt="yuv420p10le")
    write_video(folder / "grey.mkv", noise(12, 12), codec="ffv1", pix_fmt="gray")
    write_video(folder / "alpha.mkv", noise(13, 12), codec="ffv1", pix_fmt="bgra")
    write_video(folder / "streams.mkv", noise(14, 12, 32, 32), sizes=[(96, 64), (48, 48)])
    uneven = [0, 40, 80, 320, 360, 400, 900, 940, 980, 1020, 1060, 1100]
    write_video(folder / "variable-rate.mkv", noise(15, 12), times=uneven)
    rotate_mp4(write_video(folder / "rotated.mp4", noise(16, 12)), 1)
    write_video(folder / "one-frame.mp4", noise(17, 1))
    cut = write_video(folder / "truncated.avi", noise(18, 40))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 7 // 10])
    cut = write_video(folder / "no-index.mp4", noise(19, 12))
    cut.write_bytes(cut.read_bytes()[:2000])
    (folder / "zero-bytes.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    Image.fromarray(noise(20, 1)[0]).save(folder / "photo.png")
    (folder / "photo.png").rename(folder / "photo.mp4")  # an image under the name of a video
    (folder / "notes.txt").write_text("not media")
    (folder / "loop").symlink_to(folder)
    rows = manifest(run(tmp_path / "data", source("video", folder)))
    status = {name: row["status"] for name, row in rows.items() if not name.startswith("plain")}
    good = "odd.mkv ten-bit.mkv grey.mkv alpha.mkv streams.mkv variable-rate.mkv rotated.mp4"
    assert status == dict.fromkeys(good.split(), "ok") | {
        "one-frame.mp4": "error",
        "truncated.avi": "partial",
        "no-index.mp4": "error",
        "zero-bytes.mp4": "error",
        "text.mp4": "error",
        "photo.mp4": "error",
        "notes.txt": "ignored",
        "loop": "ignored",
    }
    assert "too few" in rows["one-frame.mp4"]["error"]
    assert "of 40 frames are missing" in rows["truncated.avi"]["error"]
    assert all(bool(row["error"]) == (row["status"] != "ok") for row in rows.values())
    assert all(int(row["tokens"]) > 0 for row in rows.values() if row["status"] == "ok")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_read(open_folder: Path) -> None:
    """Root reads everything, so this process is nobody for a moment when it is root."""
    (open_folder / "videos").mkdir()
    for i in range(4):
        write_video(open_folder / "videos" / f"{i}.mp4", noise(i, 12))
    (open_folder / "videos" / "3.mp4").chmod(0)
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        rows = manifest(run(open_folder / "out", source("video", open_folder / "videos")))
    finally:
        os.seteuid(user)
    assert rows["3.mp4"]["status"] == "error" and rows["3.mp4"]["error"] == "Permission denied"
    assert [rows[f"{i}.mp4"]["status"] for i in range(3)] == ["ok"] * 3


def test_names_that_are_no_utf8_and_pipes(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(4):
        write_video(folder / f"plain-{i}.mp4", noise(i, 12))
    odd = os.fsencode(folder) + b"/\xff\xfe.mp4"
    os.rename(os.fsencode(folder / "plain-3.mp4"), odd)
    os.mkfifo(folder / "pipe.mp4")  # opened, it would wait for a writer
    rows = manifest(run(tmp_path / "data", source("video", folder)))
    assert rows["\\udcff\\udcfe.mp4"]["status"] == "ok"
    assert rows["pipe.mp4"]["status"] == "ignored" and "a pipe" in rows["pipe.mp4"]["error"]


def test_a_refusal_says_why_what_is_there_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "shard.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"shard\.tar\.gz: compressed: .* unpack it to \.tar"):
        run(tmp_path / "data", source("video", tmp_path / "packed"))
    (tmp_path / "frames").mkdir()
    for i in range(3):
        Image.fromarray(noise(i, 1)[0]).save(tmp_path / "frames" / f"{i}.png")
    with pytest.raises(ValueError, match=r"3 of them would be kind: images"):
        run(tmp_path / "data", source("video", tmp_path / "frames"))
