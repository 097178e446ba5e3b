"""Every real clip and image at hand: all are encoded, no frame is lost, and once is enough."""

import csv
from collections import Counter
from pathlib import Path

import av
import pytest

from scaling.data import encode, media
from tests.data.test_encode import digest, run, source

CLIPS, GESTURES, LABELLED = 44, 20, 24


def frames_in(path: Path) -> int:
    """Of the largest video stream, by decoding it whole: what its container shows.

    The count in a header leaves out edit lists, and a packet may show nothing (VP8).
    """
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda s: (s.width * s.height, -s.index))
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


@pytest.mark.slow
def test_all_of_it(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {
        "clips": ("video", shared_data / "videos" / "clips"),
        "gestures": ("video", shared_data / "videos" / "asl_gestures"),
        "labelled": ("video", shared_data / "videos" / "weizmann64"),
        "davis": ("images", shared_data / "davis2016" / "JPEGImages"),
        "photos": ("images", shared_data / "images"),
    }
    sources = [source(kind, path, name=name) for name, (kind, path) in folders.items()]
    settings = {"size": 32, "stride": 4, "val_fraction": 0.1, "frames": 4}
    made = run(tmp_path / "one", *sources, codes=64, **settings)  # type: ignore[arg-type]
    with (made / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    used = [row for row in rows if row["status"] != "ignored"]
    assert [row for row in used if row["status"] != "ok" or row["error"]] == []
    counts = Counter(row["source"] for row in used)
    assert (counts["clips"], counts["gestures"], counts["labelled"]) == (CLIPS, GESTURES, LABELLED)
    for name in ("davis", "photos"):
        there = [p for p in folders[name][1].rglob("*") if p.suffix in media.IMAGE_SUFFIXES]
        assert counts[name] == len(there) > 500
    for row in used:
        kind, folder = folders[row["source"]]
        frames = frames_in(folder / row["path"]) if kind == "video" else 1
        assert int(row["frames"]) == frames, row["path"]
    # By two workers, the same bytes; and then nothing is left to do.
    two = run(tmp_path / "two", *sources, codes=64, workers=2, **settings)  # type: ignore[arg-type]
    assert digest(two) == digest(made)
    monkeypatch.setattr(encode, "_Encoder", None)
    again = run(tmp_path / "one", *sources, codes=64, **settings)  # type: ignore[arg-type]
    assert again == made
