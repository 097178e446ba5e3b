"""What the plan says of the time that encoding takes: counted by hand, timed on real files."""

import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from scaling.config.schema import DataConfig, SourceConfig, StudyConfig
from scaling.plan.encode_cost import _sample, lines
from tests.data.clips import write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "00.mp4", frames=12)
    for number in range(1, 40):
        shutil.copy(folder / "00.mp4", folder / f"{number:02d}.mp4")
    return folder


def _said(*sources: Mapping[str, object], **tokenizer: object) -> list[str]:
    study = {
        "study": "s",
        "data": {"sources": [dict(one) for one in sources], "frames": 2, "size": 16, "stride": 1},
        "tokenizer": {"patch": 4, "codes": 16} | tokenizer,
        "ladder": {"sizes": ["t16"], "budgets_macs": [1e12], "log2_lr": -6},
    }
    return lines(StudyConfig.model_validate(yaml.safe_load(yaml.safe_dump(study))), 2)


def _numbers(line: str) -> list[float]:
    assert "core-seconds" in line
    return [float(word) for word in re.findall(r"[\d.]+(?:e-\d+)?(?= |\))", line.split(":", 1)[1])]


def test_files_are_counted_and_some_are_timed(clips: Path) -> None:
    [line] = _said({"name": "clips", "kind": "video", "path": str(clips)})
    mean, low, high, with_jobs, *_ = _numbers(line)
    assert 0 < low <= mean <= high and with_jobs == pytest.approx(mean / 2, rel=0.05)
    assert "from 7 of 40 files" in line and "decoding and encoding" in line


def test_the_last_files_are_timed_too(tmp_path: Path) -> None:
    """Names often go by length or by day."""
    for number in range(15):
        (tmp_path / f"{number:02d}.mp4").touch()
    source = SourceConfig.model_validate({"name": "a", "kind": "video", "path": tmp_path})
    _, units, count = _sample(source, DataConfig(sources=(source,)))
    assert (units[0].files, units[-1].files) == (("00.mp4",), ("14.mp4",))
    assert (len(units), count) == (8, 15)


def test_generated_clips_and_networks(clips: Path) -> None:
    leaves = {"name": "leaves", "kind": "leaves"}
    [line] = _said(leaves)
    assert "from 48 of 4,160 clips" in line
    dvae = {"kind": "dvae", "width": 8}
    [slow] = _said({"name": "clips", "kind": "video", "path": str(clips)}, **dvae)
    [fast] = _said({"name": "clips", "kind": "video", "path": str(clips)})
    assert _numbers(slow)[0] > _numbers(fast)[0]


def test_what_is_not_timed_is_said(clips: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(clips / "00.mp4", "00.mp4")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "x.mp4").write_bytes(b"no video")
    where = {"gone": "nowhere", "tar": str(tmp_path), "short": str(tmp_path / "short")}
    told = _said(*({"name": n, "kind": "video", "path": p} for n, p in where.items()))
    assert "nowhere does not exist" in told[0] and "archives" in told[1]
    assert "none of 1 files tried gives a clip" in told[2]
    [line] = _said(
        {"name": "x", "kind": "video", "path": str(clips)},
        kind="dvae", patch=8, weights="gone.safetensors",
    )  # fmt: skip
    assert "gone.safetensors is not here" in line
