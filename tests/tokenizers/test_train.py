"""Training a small tokenizer: its parts against what they promise, and stopping at any step."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.data import leaves
from scaling.data.fit_tokenizer import Kept
from scaling.models.tokenizers import train
from scaling.models.tokenizers.codebook import Codebook, cut, psnr


def _frames(count: int, size: int, stream: str = "train") -> np.ndarray:
    return leaves.clips(0, 0, count, frames=1, size=size, stream=stream)[:, 0]


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_k_means_ends_where_codes_are_the_means_of_what_they_win() -> None:
    rng = _rng()
    centres = rng.normal(size=(8, 4)) * 10
    points = torch.from_numpy(np.repeat(centres, 100, 0) + rng.normal(size=(800, 4))).float()
    table = train.k_means(points, 8, rng)
    nearest = torch.cdist(points, table).argmin(1)
    for code in nearest.unique():
        torch.testing.assert_close(table[code], points[nearest == code].mean(0))
    spread = (points - points.mean(0)).square().mean()
    assert (points - table[nearest]).square().mean() < 0.3 * spread
    few = train.k_means(points[:3], 8, rng)  # fewer points than codes
    assert few.shape == (8, 4) and torch.isfinite(few).all()


def test_codes_follow_what_they_win_and_lost_ones_are_put_on_outputs() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 4) * 0.1 + 3  # all near code 0; the others win nothing
    table = torch.tensor([[3.0] * 4, [-5.0] * 4, [-6.0] * 4])
    won, total = torch.full((3,), 64 / 3), table * 64 / 3
    for _ in range(500):
        nearest = torch.cdist(z, table).argmin(1)
        train.follow(table, won, total, z, nearest)
    torch.testing.assert_close(table[0], z.mean(0), rtol=1e-3, atol=1e-3)
    assert table[1].tolist() == pytest.approx([-5.0] * 4)  # a running mean of nothing new
    kept = table[0].clone()
    train.revive(table, won, total, z, _rng())
    torch.testing.assert_close(table[0], kept)
    for moved in table[1:]:
        assert (z == moved).all(1).any()
    nearest = torch.cdist(z, table).argmin(1)
    assert len(nearest.unique()) == 3  # they win now
    train.follow(table, won, total, z, nearest)
    assert torch.isfinite(table).all() and len(torch.cdist(z, table).argmin(1).unique()) == 3


def test_a_small_network_does_not_lose_the_brightness_of_a_frame() -> None:
    """Channels are normalised in groups of 4, as in published ones; alone they lose the mean."""
    torch.manual_seed(0)
    model = train.small_vqgan(16, 4, 8)
    pattern = torch.rand(1, 3, 16, 16) * 0.2
    dark, bright = (model.vectors(pattern + level) for level in (0.0, 0.7))
    assert (dark - bright).abs().max() > 0.05 * dark.abs().max()


@pytest.mark.parametrize("learn", [train.train_vqgan, train.train_dvae])
@pytest.mark.parametrize("stop", [1, 10, 13])  # without the quantiser, as it begins, with it
def test_a_stopped_training_ends_with_the_same_bits(learn: Any, stop: int) -> None:
    settings: dict[str, Any] = {"codes": 16, "patch": 4, "width": 8, "steps": 20, "seed": 1}
    frames = _frames(64, 16)
    states: list[io.BytesIO] = []

    def keep(state: Any) -> None:
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        states.append(buffer)

    whole = learn(frames, **settings, keep=keep).state_dict()
    assert len(states) == 20
    states[stop - 1].seek(0)
    state = torch.load(states[stop - 1], weights_only=True)
    assert state["step"] == stop
    again = learn(frames, **settings, state=state).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    other = learn(frames, **settings | {"seed": 2}).state_dict()
    assert not all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


def test_what_is_kept_belongs_to_its_frames_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "SECONDS", -1.0)
    frames, path = _frames(8, 16), tmp_path / "t.training"
    kept = Kept(path, {"steps": 3}, frames)
    assert kept.load() is None
    for step in (1, 2):
        kept(partial(dict, step=step))
    assert (Kept(path, {"steps": 3}, frames).load() or {})["step"] == 2
    assert Kept(path, {"steps": 4}, frames).load() is None
    assert Kept(path, {"steps": 3}, frames + 1).load() is None
    path.write_bytes(path.read_bytes()[:-7])  # cut off: the one before it stands
    assert (Kept(path, {"steps": 3}, frames).load() or {})["step"] == 1
    Kept.drop(path)
    assert kept.load() is None


def test_a_short_training_learns_codes_and_uses_them() -> None:
    """Frames that it has not seen, next to k-means with as many tokens of a quarter of the codes.

    (benchmarks/RESULTS.md has the full training against k-means of equally many codes.)
    """
    frames, held_out = _frames(1000, 16), _frames(200, 16, "validation")
    model = train.train_vqgan(frames, codes=32, patch=4, width=8, steps=300, seed=0)
    codes = model.encode(held_out)
    assert codes.shape == (200, 16) and len(np.unique(codes)) > 16
    book = Codebook.fit(cut(frames, 4), 8, seed=0)
    assert _psnr(model, held_out) > _psnr(book, held_out)


def _psnr(tokenizer: Any, frames: np.ndarray) -> float:
    error = tokenizer.decode(tokenizer.encode(frames)).astype(float) - frames
    return psnr(float(np.square(error).mean()))
