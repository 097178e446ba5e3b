"""A study of one tiny run, and labelled pictures and clips made on the spot."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from scaling.config.run import RunConfig
from scaling.config.schema import DataConfig, SourceConfig, TokenizerConfig
from scaling.data.encode import prepare
from scaling.data.shards import TokenData
from scaling.models.family import size
from scaling.training.train import train


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run: 2 layers of width 16, 4 frames of 8 x 8 px, 4 tokens a frame."""
    folder = tmp_path_factory.mktemp("study")
    data = DataConfig(
        sources=(SourceConfig(name="leaves", kind="leaves"),),
        frames=4,
        size=8,
        stride=1,
        train_sequences=128,
        val_sequences=8,
    )
    tokenizer = TokenizerConfig(patch=4, codes=32, fit_frames=200)
    data_dir = prepare(data, tokenizer, folder / "data", seed=0)
    tokens = TokenData.open(data_dir)
    run = RunConfig(
        model=size(16, 2, 2, vocab=tokens.vocab, context=tokens.context, base_width=16),
        data_key=tokens.key,
        data_dir=str(data_dir),
        role="ladder",
        lr=2.0**-6,
        budgets_steps=(30,),
        budgets_macs=(1e7,),
        batch=4,
        warmup_steps=5,
        evals=0,
        study="tiny",
    )
    run_dir = folder / "runs" / run.run_id
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(run.to_yaml())
    train(run, run_dir, log=lambda _: None)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve photos: bright above, bright below, striped; with noise."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("above", "below", "striped"):
        (root / name).mkdir()
        for i in range(12):
            grey = np.full((16, 16, 3), 60.0)
            if name == "striped":
                grey[:, ::4] = 200
            else:
                grey[: 8 if name == "above" else 16][-8:] = 200
            noisy = np.clip(grey + rng.normal(0, 15, grey.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / name / f"{i}.png")
    return root


def write_clip(path: Path, frames: np.ndarray) -> Path:
    """An mp4 of uint8 frames (T, H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def moving_bar(steps: int, right: bool, shift: int = 0) -> np.ndarray:
    """A bright bar that moves 1 px a frame, uint8 (steps, 32, 48, 3)."""
    frames = np.full((steps, 32, 48, 3), 40, np.uint8)
    for t in range(steps):
        x = (shift + (t if right else -t)) % 44
        frames[t, :, x : x + 4] = 220
    return frames


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four clips of 12 frames, 48 x 32 px."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("left", "right"):
        for i in range(4):
            write_clip(root / name / f"{i}.mp4", moving_bar(12, name == "right", 7 * i))
    return root
