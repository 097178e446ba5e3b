"""LeRobot's datasets as sources: files that its own library wrote, in v2.1 and v3."""

import csv
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.config.schema import DataConfig, SourceConfig
from scaling.data import media
from scaling.data.picture import picture
from scaling.data.sources import Reader, Source, survey
from scaling.errors import UserError
from tests.data.test_encode import run, source

WRITTEN = Path(__file__).parent / "lerobot"
LENGTHS = [9, 12, 8, 10, 15, 11]
TOP, WRIST, STILL = (f"observation.images.{name}" for name in ("top", "wrist", "still"))


def of(path: Path, kind: str = "video") -> tuple[Source, Reader]:
    settings = SourceConfig(name="x", kind=kind, path=path)  # type: ignore[arg-type]
    data = DataConfig(sources=(settings,), frames=3, size=16, stride=2, clips_per_video=3, zoom=1.5)
    surveyed = survey(0, settings, 0.3, 0)
    return surveyed, Reader(data, 0, (surveyed,))


def clips(source: Source, reader: Reader, name: str, split: str) -> np.ndarray:
    pixels, rows = reader.pixels(reader.file_unit(source, split, (name,)))
    assert [row["status"] for row in rows] == ["ok"], rows
    return pixels


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / "v21", tmp_path / "set"))


def test_an_episode_gives_the_clips_of_its_own_file(tmp_path: Path) -> None:
    """v2.1's files and these in a folder; of v3's one file what plain decoding shows there."""
    (new, reads_new), (old, reads_old) = of(WRITTEN / "v3"), of(WRITTEN / "v21")
    names = [f"episode-{n:06d}/{camera}" for n in range(6) for camera in (TOP, WRIST, STILL)]
    assert sorted(new.identity) == sorted(old.identity) == sorted(names)
    for name in names:
        mine, theirs = (clips(new, reads_new, name, "validation").astype(float),
                        clips(old, reads_old, name, "validation"))  # fmt: skip
        # The library encoded them twice; other frames are 60 grey levels away.
        assert mine.shape == theirs.shape and np.abs(mine - theirs).mean() < 15, name
    with av.open(str(WRITTEN / f"v3/videos/{TOP}/chunk-000/file-000.mp4")) as container:
        shown = [picture(frame, 16) for frame in container.decode(video=0)]
    for n, first in enumerate(np.cumsum([0, *LENGTHS[:-1]])):
        expected = [media.crop(rgb, 16, np.full(2, 0.5)) for rgb in shown[first:][: LENGTHS[n]]]
        for clip in clips(new, reads_new, f"episode-{n:06d}/{TOP}", "validation"):
            starts = range(len(expected) - 4)
            assert any(np.array_equal(clip, expected[at : at + 5 : 2]) for at in starts)
    for n in range(6):
        shutil.copy(
            WRITTEN / f"v21/videos/chunk-000/{TOP}/episode_{n:06d}.mp4", tmp_path / f"{n}.mp4"
        )
    folder, reads_folder = of(tmp_path)
    for n in range(6):  # random crops in space and time too
        mine = clips(old, reads_old, f"episode-{n:06d}/{TOP}", "train")
        assert np.array_equal(mine, clips(folder, reads_folder, f"{n}.mp4", "train"))
    assert [reads_new.pixels(reads_new.file_unit(new, "train", (f"episode-{n:06d}/{TOP}",)))[1][0]
            ["frames"] for n in range(6)] == LENGTHS  # fmt: skip


def test_images_of_a_table_are_frames() -> None:
    dataset, reader = of(WRITTEN / "v3")
    table = pq.read_table(WRITTEN / "v3/data/chunk-000/file-000.parquet").to_pylist()
    rows = [row for row in table if row["episode_index"] == 2]
    got = clips(dataset, reader, f"episode-000002/{STILL}", "validation")
    pictures = [media.read_rgb(io.BytesIO(row[STILL]["bytes"])) for row in rows]
    expected = [media.crop(media.resize_short(p, 16), 16, np.full(2, 0.5)) for p in pictures]
    assert len(rows) == 8 and got.shape == (1, 3, 16, 16, 3)
    assert any(np.array_equal(got[0], expected[at : at + 5 : 2]) for at in range(4))


def test_cameras_of_an_episode_stay_on_one_side(tmp_path: Path) -> None:
    dataset, _ = of(WRITTEN / "v3")
    sides = [{name.split("/")[0] for name in side} for side in (dataset.train, dataset.validation)]
    assert all(sides) and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 6
    made = run(tmp_path, source("video", WRITTEN / "v3", name="x"))
    two = run(tmp_path / "two", source("video", WRITTEN / "v3", name="x"), workers=2)
    shards = [[p.read_bytes() for p in sorted(d.rglob("*.bin"))] for d in (made, two)]
    assert shards[0] and shards[0] == shards[1]
    with (made / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["status"] == "ok" for row in rows) == 18
    assert not any(row["status"] == "error" for row in rows)


def test_what_no_episode_can_be_made_of_is_told(copy: Path) -> None:
    lines = [json.loads(line) for line in (copy / "meta/episodes.jsonl").read_text().splitlines()]
    lines[0]["length"], lines[5]["length"] = 0, 13
    (copy / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (copy / f"videos/chunk-000/{TOP}/episode_000001.mp4").unlink()
    shutil.copy(copy / f"videos/chunk-000/{TOP}/episode_000002.mp4", copy / "videos/stray.mp4")
    dataset, reader = of(copy)
    told = {row["path"]: row["error"] for row in dataset.rows}
    assert told[f"episode-000000/{WRIST}"] == "an episode without frames"
    assert "no file videos/chunk-000" in told[f"episode-000001/{TOP}"]
    assert "of no episode" in told["videos/stray.mp4"]
    _, rows = reader.pixels(reader.file_unit(dataset, "train", (f"episode-000005/{TOP}",)))
    assert rows[0]["status"] == "partial" and rows[0]["error"] == (
        "11 of its 13 frames are in the file"
    )
    assert "its 13 rows are not all in data/" in told[f"episode-000005/{STILL}"]


def test_episodes_of_v3_that_would_show_others_are_told(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(WRITTEN / "v3", tmp_path / "v3"))
    table = copy / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[0]["length"], rows[5]["episode_index"] = 10**15, 4
    pq.write_table(pa.Table.from_pylist(rows), table)
    dataset, _ = of(copy)
    told = {row["path"]: row["error"] for row in dataset.rows}
    assert "is not that of its rows" in told[f"episode-000000/{TOP}"]
    assert told[f"episode-000004/{TOP}"] == "an episode of this number was there before"
    assert len(dataset.identity) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "version v1.6; those of v2 and v3 can"),
        ({"fps": 0}, "fps 0"),
        ({"fps": None}, "LeRobot dataset that cannot be read"),
        ({"features": [1]}, "LeRobot dataset that cannot be read"),
        ({"chunks_size": 0}, "modulo by zero|division by zero"),
        ({"features": {}}, "no feature is a video or an image"),
        ({"video_path": "../{episode_index:09d}.mp4", "data_path": "/{x}"}, "in the dataset"),
        ({"video_path": "{a.b:999999999d}", "data_path": "x"}, "no file"),
    ],
)
def test_a_dataset_that_cannot_be_read_says_why(
    copy: Path, change: dict[str, object], message: str
) -> None:
    info = json.loads((copy / "meta/info.json").read_text()) | change
    (copy / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=message):
        of(copy)


def test_a_dataset_asked_for_otherwise_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match="its episodes are clips, kind: video"):
        of(copy, "images")
    with pytest.raises(UserError, match="is a LeRobot dataset: give that folder"):
        of(copy / "videos")
    nested = copy.parent
    assert len(of(nested)[0].identity) == 18
    (copy / "meta/episodes.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"set/meta: a LeRobot dataset that cannot be read"):
        of(nested)
