"""Media to shards: the same bytes whatever happens on the way, a split by file, clear outcomes."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scaling.config.schema import DataConfig, SourceConfig, TokenizerConfig
from scaling.data import encode, leaves, parts_to_shards
from scaling.data.encode import Mapper, prepare
from scaling.data.shards import SPECIALS, TokenData
from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from tests.data.clips import write_video
from tests.shell import HANGS, changed


def source(
    kind: str, path: Path | None = None, weight: float = 1.0, name: str = ""
) -> SourceConfig:
    return SourceConfig.model_validate(
        {"name": name or kind, "kind": kind, "path": path, "weight": weight}
    )


def run(
    root: Path,
    *sources: SourceConfig,
    seed: int = 0,
    codes: int = 16,
    tokenizer: dict[str, object] | None = None,
    workers: int = 1,
    mapper: Mapper | None = None,
    **changes: object,
) -> Path:
    data = {
        "frames": 2,
        "size": 16,
        "stride": 2,
        "clips_per_video": 3,
        "train_sequences": 60,
        "val_sequences": 20,
        "val_fraction": 0.25,
    }
    how = {"kind": "codebook", "patch": 4, "codes": codes, "fit_frames": 40} | (tokenizer or {})
    config = DataConfig.model_validate(data | changes | {"sources": sources})
    made_by = TokenizerConfig.model_validate(how)
    return prepare(config, made_by, root, seed=seed, workers=workers, mapper=mapper)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def manifest(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "manifest.csv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def noise(seed: int, frames: int, width: int = 24, height: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_video(folder / f"{i}.mp4", noise(i, 12))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        Image.fromarray(noise(100 + i, 1)[0]).save(folder / f"{i}.png")
    return folder


# -- what is written -------------------------------------------------------------------------------


def test_leaves_tokens_are_the_codes_of_the_clips(tmp_path: Path) -> None:
    path = run(tmp_path, source("leaves"))
    data = TokenData.open(path)
    assert (data.vocab, data.context, data.tokenizer) == (16 + 4, 2 * 16 + 1, "codebook-4px-16")
    book = Codebook.load(path / "tokenizer.safetensors")
    clips = leaves.clips(0, 0, 20, frames=2, size=16, stream="validation")
    codes = book.encode(clips.reshape(-1, 16, 16, 3)).reshape(20, -1)
    validation = data.validation()["leaves"]
    np.testing.assert_array_equal(validation[:, 1:-1], codes + SPECIALS)
    assert (validation[:, 0] == 1).all() and (validation[:, -1] == 2).all()
    rebuilt = book.decode(codes.reshape(40, 16)).reshape(clips.shape)
    mse = ((rebuilt.astype(float) - clips) ** 2).mean()
    assert data.meta["tokenizer"]["reconstruction"]["leaves"]["mse"] == pytest.approx(mse)
    assert 8 <= data.meta["tokenizer"]["codes_used"] <= 16
    samples = np.load(path / "samples.npz")
    np.testing.assert_array_equal(samples["original"], clips[: parts_to_shards.SAMPLE_CLIPS])
    np.testing.assert_array_equal(
        samples["reconstruction"], rebuilt[: parts_to_shards.SAMPLE_CLIPS]
    )


def test_videos_and_images_mixed(tmp_path: Path, videos: Path, photos: Path) -> None:
    path = run(tmp_path, source("video", videos, 0.8), source("images", photos, 0.2))
    data = TokenData.open(path)
    tokens, origin = data.batch(0, 1000, 0)
    assert (origin == 1).sum() == 200
    assert set(tokens[origin == 0, 0]) == {1} and set(tokens[origin == 1, 0]) == {3}
    train, validation = zip(
        *[(s["train"]["sequences"], s["validation"]["sequences"]) for s in data.meta["sources"]],
        strict=True,
    )
    assert train == (4 * 3, 60)  # 4 of 6 videos x 3 clips; images as many as asked for
    assert validation == (2 * 3, 1)  # 2 of 6 videos; 3 of 12 images make one sequence of 2
    rows = manifest(path)
    assert len(rows) == 18 and {row["status"] for row in rows.values()} == {"ok"}
    video_tokens = sum(int(row["tokens"]) for row in rows.values() if row["source"] == "video")
    assert video_tokens == (train[0] + validation[0]) * 32


def test_split_is_by_content_and_never_shares_a_file(tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    for i in range(6):  # the same clips again under other names
        shutil.copy(folder / f"{i}.mp4", folder / f"copy-{i}.mp4")
    rows = manifest(run(tmp_path / "data", source("video", folder)))
    for i in range(6):
        assert rows[f"{i}.mp4"]["split"] == rows[f"copy-{i}.mp4"]["split"]
    assert {row["split"] for row in rows.values()} == {"train", "validation"}


def test_tokenizer_is_fitted_on_training_files_only(tmp_path: Path, videos: Path) -> None:
    """Changing a validation file must not change the tokenizer."""
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    first = run(tmp_path / "a", source("video", folder))
    held_out = [name for name, row in manifest(first).items() if row["split"] == "validation"]
    kept = digest(first)["tokenizer.safetensors"]
    for attempt in range(50):  # a new content that stays on its side of the split
        write_video(folder / held_out[0], noise(1000 + attempt, 12))
        again = run(tmp_path / "b", source("video", folder))
        rows = manifest(again)
        if [n for n, row in rows.items() if row["split"] == "validation"] == held_out:
            break
    else:
        pytest.fail("no attempt left the split as it was")
    assert digest(again)["tokenizer.safetensors"] == kept
    assert (
        digest(again)["0-video.validation-00000.bin"]
        != digest(first)["0-video.validation-00000.bin"]
    )


def test_frames_are_stored_beside_their_tokens(tmp_path: Path, videos: Path, photos: Path) -> None:
    sources = (source("video", videos), source("images", photos), source("leaves"))
    path = run(tmp_path / "a", *sources, pixels=True)
    data = TokenData.open(path)
    book = Codebook.load(path / "tokenizer.safetensors")

    def codes(frames: np.ndarray) -> np.ndarray:
        return book.encode(frames.reshape(-1, 16, 16, 3)).reshape(len(frames), -1)

    for step in (0, 7):
        tokens, _ = data.batch(step, 30, 0)
        np.testing.assert_array_equal(codes(data.frames(step, 30, 0)), tokens[:, 1:-1] - SPECIALS)
    for name, frames in data.validation_frames().items():
        np.testing.assert_array_equal(codes(frames), data.validation()[name][:, 1:-1] - SPECIALS)
    without = TokenData.open(run(tmp_path / "b", *sources))
    with pytest.raises(UserError, match=r"data\.pixels: true"):
        without.frames(0, 1, 0)
    np.testing.assert_array_equal(without.batch(3, 9, 1)[0], data.batch(3, 9, 1)[0])


# -- the same bytes --------------------------------------------------------------------------------


def test_key_follows_content_and_settings_not_place(tmp_path: Path, videos: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(videos, moved)
    first = run(tmp_path / "a", source("video", videos))
    second = run(tmp_path / "b", source("video", moved))
    assert first.name == second.name and digest(first) == digest(second)
    others = [
        run(tmp_path / "a", source("video", videos), seed=1),
        run(tmp_path / "a", source("video", videos), codes=8),
        run(tmp_path / "a", source("video", videos), stride=1),
        run(tmp_path / "a", source("video", videos), zoom=2.0),
        run(tmp_path / "a", source("video", videos, name="renamed")),
    ]
    (moved / "3.mp4").unlink()
    others.append(run(tmp_path / "a", source("video", moved)))
    assert len({path.name for path in [first, *others]}) == 7


def test_second_call_does_nothing(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run(tmp_path, source("video", videos))
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    monkeypatch.setattr(encode, "_Encoder", None)
    assert run(tmp_path, source("video", videos)) == path
    assert before == {p: p.stat().st_mtime_ns for p in path.iterdir()}


def test_stopped_anywhere_then_the_same_bytes(
    tmp_path: Path, videos: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at every durable write in turn; the next call always ends with the reference bytes."""
    sources = (source("video", videos), source("images", photos), source("leaves"))
    reference = digest(run(tmp_path / "reference", *sources))
    real = os.fsync
    for stop in range(0, 90, 3):
        calls = 0

        def fsync(handle: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt
            real(handle)

        root = tmp_path / f"stopped-{stop}"
        monkeypatch.setattr(os, "fsync", fsync)
        try:
            run(root, *sources)
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.setattr(os, "fsync", real)
        assert digest(run(root, *sources)) == reference
        assert [p.name for p in root.iterdir() if p.name.endswith(".partial")] == []
        if finished:
            assert stop > 10
            return
        shutil.rmtree(root)
    pytest.fail("the reference run makes more than 90 durable writes")


def test_killed_then_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = [{tests!r}]\n"
        "from pathlib import Path; from test_encode import run, source\n"
        "run(Path({root!r}), source('leaves'), size=32, train_sequences=3000)\n"
    )

    def start(root: Path) -> subprocess.Popen[bytes]:
        code = script.format(tests=str(Path(__file__).parent), root=str(root))
        return subprocess.Popen([sys.executable, "-c", code])

    reference = run(tmp_path / "reference", source("leaves"), size=32, train_sequences=3000)
    root = tmp_path / "killed"
    for parts in (0, 1, 2):
        process = start(root)
        deadline = time.monotonic() + HANGS
        while len(list(root.glob(".*.partial/parts/*/*.npz"))) < parts:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (root / reference.name / "index.json").exists()
    again = run(root, source("leaves"), size=32, train_sequences=3000)
    assert digest(again) == digest(reference)


@pytest.mark.slow
def test_killed_at_random_moments_with_two_workers(
    tmp_path: Path, videos: Path, photos: Path
) -> None:
    """The driver and its workers at once, as a node that loses its power. A moment is a number of
    files written since the start, whatever the machine's speed."""
    script = (
        "import sys; from pathlib import Path; from tests.data.test_encode import run, source\n"
        "if __name__ == '__main__':\n"
        "    sources = source('video', Path(sys.argv[2])), source('images', Path(sys.argv[3]))\n"
        "    run(Path(sys.argv[1]), *sources, source('leaves'), workers=2, train_sequences=2500)\n"
    )
    (tmp_path / "main.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def start(root: Path) -> subprocess.Popen[bytes]:
        arguments: list[str | Path] = [sys.executable, tmp_path / "main.py", root, videos, photos]
        return subprocess.Popen(arguments, env=environment, start_new_session=True)

    sources = source("video", videos), source("images", photos), source("leaves")
    reference = run(tmp_path / "reference", *sources, train_sequences=2500)
    rng = np.random.default_rng(0)
    kills = 0
    roots: list[Path] = []
    while kills < 3 or len(roots) < 3:  # a process may end before it is killed
        root = tmp_path / f"killed-{len(roots)}"
        root.mkdir()
        roots.append(root)
        for _ in range(2):
            process = start(root)
            kills += changed(process, root, int(rng.integers(1, 12)))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for root in roots:
        assert start(root).wait() == 0
        (made,) = root.glob("[!.]*")
        assert digest(made) == digest(reference)


def test_two_workers_give_the_same_bytes(tmp_path: Path, videos: Path, photos: Path) -> None:
    sources = (source("video", videos), source("images", photos), source("leaves"))
    one = run(tmp_path / "one", *sources)
    two = run(tmp_path / "two", *sources, workers=2)
    assert digest(one) == digest(two)
    calls = []

    def mapper(work: Any, lists: Any) -> Any:
        calls.extend(lists)
        return [pickle.loads(pickle.dumps(work))(units) for units in reversed(lists)]

    three = run(tmp_path / "three", *sources, workers=3, mapper=mapper)
    assert digest(one) == digest(three) and len(calls) == 3


def test_a_killed_driver_leaves_no_worker(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.data.test_encode import run, source\n"
        "if __name__ == '__main__':\n"
        "    run(Path(sys.argv[1]), source('leaves'), size=64, train_sequences=40000, workers=2)\n"
    )
    (tmp_path / "main.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    root = tmp_path / "root"
    driver = subprocess.Popen([sys.executable, tmp_path / "main.py", root], env=environment)
    deadline = time.monotonic() + HANGS
    while not list(root.glob(".*.partial/parts/*/*.npz")):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    assert len(children) >= 2
    driver.kill()
    driver.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_learned_tokenizers(tmp_path: Path, videos: Path, kind: str) -> None:
    sources = (source("video", videos), source("leaves"))
    settings = {"kind": kind, "width": 8, "steps": 6}
    one = run(tmp_path / "one", *sources, tokenizer=settings)
    data = TokenData.open(one)
    assert data.tokenizer == f"{kind}-4px-16" and data.context == 33
    weights = tmp_path / "weights.safetensors"
    shutil.copy(one / "tokenizer.safetensors", weights)
    given = run(tmp_path / "given", *sources, tokenizer={"kind": kind, "weights": weights})
    assert digest(one)["0-video.train-00000.bin"] == digest(given)["0-video.train-00000.bin"]
    with pytest.raises(UserError, match=r"tokenizer\.codes is 8, the weights .* have 16"):
        run(tmp_path / "a", *sources, codes=8, tokenizer={"kind": kind, "weights": weights})
    weights.write_text("no weights")
    with pytest.raises(UserError, match=r"tokenizer: .*cannot be read"):
        run(tmp_path / "b", *sources, tokenizer={"kind": kind, "weights": weights})
    with pytest.raises(UserError, match="cannot be read"):
        run(tmp_path / "c", *sources, tokenizer={"kind": kind, "weights": tmp_path / "none"})


# -- bad input -------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_the_rest_is_used(tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "readme.txt").touch()
    (folder / "broken-link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "loop").symlink_to(folder)
    write_video(folder / "short.mp4", noise(9, 2))
    rows = manifest(run(tmp_path / "data", source("video", folder)))
    status = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert status == {
        "text.mp4": "error",
        "empty.mp4": "error",
        "broken-link.mp4": "error",
        "short.mp4": "error",
        "readme.txt": "ignored",
        "loop": "ignored",
    }
    assert all(row["error"] for name, row in rows.items() if name in status)
    assert str(tmp_path) not in json.dumps(rows)


def test_validation_is_never_empty_because_of_a_bad_file(tmp_path: Path, videos: Path) -> None:
    """Whatever file the hash would hold out, a usable one is found and is not trained on."""
    for seed in range(8):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        for i in range(3):
            shutil.copy(videos / f"{i}.mp4", folder)
        (folder / "text.mp4").write_text("no video")
        path = run(tmp_path / "data", source("video", folder), seed=seed)
        ok = [row["split"] for row in manifest(path).values() if row["status"] == "ok"]
        assert sorted(set(ok)) == ["train", "validation"] and len(ok) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no readable video file"),
        (["note.txt"], "no readable video file"),
        (["text.mp4", "more.mp4"], "too few that can be used"),
        (["0.mp4"], "too few that can be used"),
        (["0.mp4", "text.mp4"], "too few that can be used"),
    ],
)
def test_nothing_usable_is_an_error_with_a_remedy(
    tmp_path: Path, videos: Path, content: list[str], message: str
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in content:
        if name == "0.mp4":
            shutil.copy(videos / name, folder)
        else:
            (folder / name).write_text(f"no video: {name}")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "data", source("video", folder))


def test_missing_folder_few_images_and_odd_patch(
    tmp_path: Path, photos: Path, videos: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path, source("video", tmp_path / "nowhere"))
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        shutil.copy(photos / f"{i}.png", few)
    with pytest.raises(UserError, match="each need at least 2 of different"):
        run(tmp_path, source("images", few))
    with pytest.raises(UserError, match=r"data\.size=18 px is no multiple"):
        run(tmp_path, source("leaves"), size=18)
    with pytest.raises(UserError, match=r"tokenizer: only \d+ distinct patches for 4000 codes"):
        run(tmp_path, source("leaves"), codes=4000)


def test_full_disk_is_a_message_and_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the device"):
        run(tmp_path / "a", source("leaves"))
    monkeypatch.setattr(os, "fsync", real)
    assert digest(run(tmp_path / "a", source("leaves"))) == digest(
        run(tmp_path / "b", source("leaves"))
    )


# -- real data -------------------------------------------------------------------------------------


def test_real_clips_and_photos(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("imageio-binaries__realshort.mp4", "interactive-examples__stream-of-water.webm"):
        (folder / name).symlink_to(shared_data / "videos" / "clips" / name)
    for name in ("bend/subj0.mp4", "jack/subj1.mp4"):
        (folder / name.replace("/", "-")).symlink_to(shared_data / "videos" / "weizmann64" / name)
    photos = shared_data / "images" / "sign_digits_100" / "0"
    path = run(tmp_path / "data", source("video", folder), source("images", photos), codes=64)
    rows = manifest(path).values()
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == 4 + 40
    reconstruction = TokenData.open(path).meta["tokenizer"]["reconstruction"]
    assert all(15 < error["psnr"] < 50 for error in reconstruction.values())
