"""The command line with a user's mistakes: one clear message, exit code 2, nothing damaged."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from scaling.errors import UserError
from tests.shell import scaling

CLIPS = """\
study: own
data:
  frames: 2
  size: 16
  stride: 1
  clips_per_video: 8
  train_sequences: 64
  val_sequences: 8
  val_fraction: 0.3
  sources:
    - {name: clips, kind: video, path: clips, weight: 0.8}
    - {name: photos, kind: images, path: photos, weight: 0.2}
tokenizer: {patch: 4, codes: 16, fit_frames: 64}
ladder: {sizes: [t16], budgets_macs: [1e9], log2_lr: -6}
launch: {parallel: 1}
"""


def write_video(path: Path, seed: int, frames: int = 12, side: int = 32) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A study of own media: five videos and six photos."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "photos").mkdir()
    for i in range(5):
        write_video(tmp_path / "clips" / f"{i}.mp4", i)
    rng = np.random.default_rng(9)
    for i in range(6):
        picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "own.yaml").write_text(CLIPS)
    return tmp_path


def encode(own: Path, code: int, *more: str) -> str:
    return scaling("encode", str(own / "own.yaml"), "--out", str(own / "studies"), *more, code=code)


def manifest(own: Path) -> str:
    (path,) = (own / "studies" / "own" / "data").glob("*/manifest.csv")
    return path.read_text()


def test_bad_files_are_listed_and_not_fatal(own: Path) -> None:
    (own / "clips" / "text.mp4").write_text("this is not a video\n" * 50)
    whole = (own / "clips" / "0.mp4").read_bytes()
    write_video(own / "clips" / "cut.avi", 7, frames=60)
    cut = (own / "clips" / "cut.avi").read_bytes()
    (own / "clips" / "cut.avi").write_bytes(cut[: len(cut) * 2 // 3])
    (own / "photos" / "empty.png").write_bytes(b"")
    encode(own, 0)
    listed = manifest(own)
    bad = [x for x in listed.splitlines() if "text.mp4" in x or "empty.png" in x]
    assert len(bad) == 2
    assert all(",ok," not in line for line in bad)
    assert "cut.avi" in listed
    assert (own / "clips" / "0.mp4").read_bytes() == whole


def test_empty_folder(own: Path) -> None:
    (own / "none").mkdir()
    said = encode(own, 2, "--set", f"data.sources.clips.path={own / 'none'}")
    assert str(own / "none") in said


def test_missing_folder(own: Path) -> None:
    said = encode(own, 2, "--set", f"data.sources.clips.path={own / 'nowhere'}")
    assert "nowhere" in said


def test_whole_study_of_own_media_refuses_a_law_from_one_budget(own: Path) -> None:
    said = scaling("study", str(own / "own.yaml"), "--out", str(own / "studies"), code=0)
    assert "no law" in said
    assert (own / "studies" / "own" / "report.html").exists()
    rows = scaling("status", str(own / "studies" / "own"), code=0)
    assert "finished" in rows and "100%" in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stdy",), "Did you mean 'study'"),
        (("study", "--ot", "x"), "--out"),
        (("study", "none.yaml"), "no such file"),
        (("status", "nowhere"), "no such study"),
        (("fit", "nowhere"), "not a study directory"),
        (("train", "nowhere"), "no such run"),
        (("ui", "nowhere"), "nowhere"),
        (("compare", "nowhere"), "not a study directory"),
        (("report", "nowhere"), "nowhere"),
        (("represent", ".", "--set", "seed=1"), "give its YAML file with --set"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    assert message in scaling(*arguments, code=2)


def test_every_command_has_help_with_an_example() -> None:
    top = scaling("--help", code=0)
    names = ["study", "plan", "status", "encode", "train", "fit", "compare", "report", "ui"]
    names += [
        "choices",
        "next",
        "models",
        "coord-check",
        "tokens",
        "logs",
        "cancel",
        "sync",
        "doctor",
    ]
    for name in names:
        assert name in top
        assert "Example" in scaling(name, "--help", code=0)
    for name in ("convert", "train"):
        assert "Example" in scaling("tokenizer", name, "--help", code=0)


def test_plan_says_what_a_study_costs(own: Path) -> None:
    said = scaling("plan", str(own / "own.yaml"), code=0)
    for word in ("runs", "tokens", "training MACs", "memory", "time: about", "disk"):
        assert word in said
    assert "budget" not in said and "Slurm" not in said and "beware" not in said
    more = ["--no-measure", "--set", "data.train_sequences=10000000000"]
    said = scaling("plan", str(own / "own.yaml"), *more, code=0)
    assert "beware: this study does not fit the disk of" in said


def test_a_study_over_its_budget_takes_a_yes(own: Path) -> None:
    def limited(*limits: str) -> list[str]:
        return [str(own / "own.yaml"), "--out", str(own / "never"), *limits]

    macs = ["--set", "launch.max_macs=1e6"]
    said = scaling("plan", "--no-measure", *limited(*macs), code=0)
    assert "over budget" in said and "launch.max_macs is 1e+06" in said
    said = scaling("study", *limited(*macs), code=2)
    assert "over its budget" in said and "--yes" in said
    assert not (own / "never" / "own" / "data").exists(), "nothing was started"
    said = scaling("plan", "--no-measure", *limited("--set", "launch.max_macs=1e15"), code=0)
    assert "within its budget" in said
    hours = ["--set", "launch.max_gpu_hours=1e-9", "--set", "launch.gpu_macs_per_second=1e12"]
    said = scaling("plan", "--no-measure", *limited(*hours), code=0)
    assert "GPU-hours, launch.max_gpu_hours is 1e-09" in said


def test_a_limit_in_gpu_hours_takes_a_speed() -> None:
    from scaling.config.schema import LaunchConfig
    from scaling.plan.cost import Cost, over_budget

    cost = Cost("ladder", "t16", 1, 1, 1, 1, macs=7_200, bytes_memory=1, gpus=1, seconds=None)
    with pytest.raises(UserError, match=r"Set launch.gpu_macs_per_second"):
        over_budget(LaunchConfig(max_gpu_hours=1.0), [cost])
    assert over_budget(LaunchConfig(max_gpu_hours=1.0, gpu_macs_per_second=2.0), [cost]) == []
    assert over_budget(LaunchConfig(max_gpu_hours=0.9, gpu_macs_per_second=2.0), [cost]) == [
        "about 1 GPU-hours, launch.max_gpu_hours is 0.9"
    ]


def test_gpus_follow_from_the_size() -> None:
    from scaling.config.run import RunConfig
    from scaling.config.schema import LaunchConfig
    from scaling.models.family import FAMILY
    from scaling.plan.cost import gpus_of, rank_bytes

    def run(size: str, parallel: str = "fsdp", batch: int = 64) -> RunConfig:
        return RunConfig(
            model=FAMILY[size],
            data_key="",
            role="ladder",
            lr=1.0,
            budgets_steps=(100,),
            budgets_macs=(1e9,),
            batch=batch,
            precision="bf16",
            parallel=parallel,
        )

    launch = LaunchConfig(cluster="slurm", gpus=8, gpu_memory_gb=80)
    found = [gpus_of(launch, run(size)) for size in ("t16", "a1", "large")]
    assert found == sorted(found) and found[0] == 1 < found[-1] <= 8
    usable = 0.9 * 80e9
    assert rank_bytes(run("large"), found[-1]) <= usable < rank_bytes(run("large"), found[-1] // 2)
    assert gpus_of(launch, run("large", "ddp")) > gpus_of(launch, run("large"))
    with pytest.raises(UserError, match=r"large needs .* GB on each of 1 GPUs.*recompute"):
        gpus_of(launch, run("large", batch=61))  # a prime divides among nobody
    assert gpus_of(LaunchConfig(cluster="slurm", gpus=8), run("t16")) == 8
    with pytest.raises(UserError, match=r"61 sequences .* do not divide among 8 tasks on each"):
        gpus_of(LaunchConfig(cluster="slurm", gpus=8), run("t16", batch=61))


def test_an_address_that_is_none_is_said_before_anything_starts(own: Path) -> None:
    wrong = ["--set", "tracking.uri=localhost/5000"]
    arguments = [str(own / "own.yaml"), "--out", str(own / "never"), *wrong]
    assert "not an address of MLflow" in scaling("study", *arguments, code=2)
    assert not (own / "never" / "own" / "data").exists()
