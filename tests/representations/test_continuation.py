"""A clip is continued into a video, a strip and its losses."""

import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from scaling import checkpoint
from scaling.errors import UserError
from scaling.models.family import size
from scaling.models.parametrization import build
from scaling.representations.continuation import continue_clip, losses
from scaling.representations.trained import trained_runs
from scaling.study_folder import Study


@pytest.fixture
def run_dir(study: Path, tmp_path: Path) -> Path:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    return trained_runs(Study(own))[0].folder


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_continues_past_the_context(
    run_dir: Path, clips: Path, tmp_path: Path, suffix: str
) -> None:
    """64 frames after a prompt of 2, by a model of 4 frames."""
    made = continue_clip(
        run_dir, clips / "left" / "0.mp4", frames=64, out=tmp_path / f"made{suffix}"
    )
    video, strip, table = made
    with av.open(str(video)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    least = 66 if suffix == ".mp4" else 60  # a GIF shows equal frames once, for longer
    assert least <= len(pictures) <= 66 and pictures[0].shape[1] == 128
    with Image.open(strip) as image:
        assert image.size == (16 * 8, 2 * 8)
    rows = pd.read_csv(table)
    drawn = rows[rows.what == "drawn"]
    assert len(drawn) == 66 * 4 and drawn.frame.max() == 65
    clip = rows[rows.what == "clip"]
    assert 2 < clip.frame.nunique() <= 12  # as many as the clip has
    shared = drawn.merge(clip, on=["frame", "position"])
    prompt = shared[shared.frame < 2]
    np.testing.assert_allclose(prompt.loss_x, prompt.loss_y, atol=1e-5)


def test_the_same_seed_draws_the_same(run_dir: Path, clips: Path, tmp_path: Path) -> None:
    one, two, other = (
        continue_clip(
            run_dir, clips / "left" / "0.mp4", frames=4, out=tmp_path / f"{i}.gif", seed=i // 2
        )[2].read_text()
        for i in range(3)
    )
    assert one == two != other


def test_losses_are_those_of_the_window_of_each_frame() -> None:
    model = build(size(16, 2, 2, vocab=20, context=13, base_width=16), seed=0)
    with torch.no_grad():
        model.head.normal_()
    ids = torch.randint(4, 20, (1, 1 + 6 * 4))
    got = losses(model, ids, tokens_per_frame=4)  # three frames fit
    for f in range(6):
        first = max(0, f - 2)
        window = torch.cat((ids[:, :1], ids[:, 1 + 4 * first : 1 + 4 * (f + 1)]), 1)
        with torch.no_grad():
            nats = model.loss(window[:, :-1], window[:, 1:], reduction="none")
        torch.testing.assert_close(got[f], nats[0, -4:], rtol=1e-4, atol=1e-4)


def test_mistakes(run_dir: Path, clips: Path, tmp_path: Path) -> None:
    clip = clips / "left" / "0.mp4"
    with pytest.raises(UserError, match="not a run's folder"):
        continue_clip(tmp_path, clip, frames=2)
    with pytest.raises(UserError, match="no such file"):
        continue_clip(run_dir, tmp_path / "none.mp4", frames=2)
    with pytest.raises(UserError, match=r"end it in .mp4 or .gif"):
        continue_clip(run_dir, clip, frames=2, out=tmp_path / "x.avi")
    with pytest.raises(UserError, match="12 frames are too few for 40"):
        continue_clip(run_dir, clip, frames=2, prompt_frames=40)
    (tmp_path / "bad.mp4").write_bytes(b"no")
    with pytest.raises(UserError, match=r"--prompt .*bad.mp4"):
        continue_clip(run_dir, tmp_path / "bad.mp4", frames=2)
    (path,) = run_dir.glob("weights-*.pt")
    saved, _ = checkpoint.load(path)
    assert saved is not None
    saved["model"]["head"] = saved["model"]["head"][:-1]
    checkpoint.save(path, saved)
    with pytest.raises(UserError, match=r"not those of this run's model \(size mismatch for head"):
        continue_clip(run_dir, clip, frames=2)
