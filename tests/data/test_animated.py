"""Animated GIF, PNG and WebP in a folder of videos; still pictures are none."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from scaling.config.schema import SourceConfig
from scaling.data.sources import survey
from scaling.data.video import read_video


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 4, (8, 8, 3)) * 85
    return [Image.fromarray(np.kron(np.roll(colours, i, 1), np.ones((4, 4, 1))).astype(np.uint8))
            for i in range(8)]  # fmt: skip


def test_animations_are_videos_and_stills_are_not(
    pictures: list[Image.Image], tmp_path: Path
) -> None:
    first, rest = pictures[0], pictures[1:]
    for name in ("a.gif", "b.PNG", "c.apng", "d.webp"):
        kind = "PNG" if name.endswith(".apng") else None
        how = {"lossless": True} if name.endswith(".webp") else {}
        first.save(tmp_path / name, kind, save_all=True, append_images=rest, duration=100, **how)
    first.save(tmp_path / "still.png")
    first.save(tmp_path / "still.webp")
    (tmp_path / "cut.webp").write_bytes(b"RIFF....WEBPVP8X")
    source = survey(0, SourceConfig(name="x", kind="video", path=tmp_path), 0.3, 0)
    reads_webp = "webp_anim" in av.codecs_available
    animated = ["a.gif", "b.PNG", "c.apng"] + ["d.webp"] * reads_webp
    assert sorted(source.identity) == animated
    told = {row["path"]: row["error"] for row in source.rows}
    assert set(told) == {"still.png", "still.webp", "cut.webp"} | {"d.webp"} - set(animated)
    assert reads_webp or "PyAV 19 reads it" in told["d.webp"]
    for name in animated:
        video = read_video(tmp_path / name, frames=8, size=32, stride=1, clips=1, rng=None)
        assert video.frames == 8 and video.note == ""
        assert np.array_equal(video.pixels[0], np.stack([np.asarray(p) for p in pictures])), name
