"""The k-means tokenizer against brute force, and the determinism that token caches rely on."""

from pathlib import Path

import numpy as np
import pytest

from scaling.data import leaves
from scaling.models.tokenizers.codebook import Codebook, cut, psnr


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return leaves.clips(0, 0, 60, frames=2, size=32).reshape(-1, 32, 32, 3)


@pytest.mark.parametrize("patch", [4, 16])  # float32 arithmetic, float64 arithmetic
def test_codes_are_the_nearest_centroids(frames: np.ndarray, patch: int) -> None:
    rng = np.random.default_rng(0)
    book = Codebook(rng.integers(0, 256, (50, 3 * patch * patch)).astype(np.uint8), patch)
    patches = cut(frames, patch).astype(np.int64)
    distance = ((patches[:, None] - book.centroids_KD.astype(np.int64)) ** 2).sum(-1)
    np.testing.assert_array_equal(book.encode(frames).reshape(-1), distance.argmin(1))


def test_cut_and_decode_are_raster_order(frames: np.ndarray) -> None:
    patches = cut(frames[:1], 4)
    np.testing.assert_array_equal(patches[9].reshape(4, 4, 3), frames[0, 4:8, 4:8])
    exact = Codebook(np.unique(patches, axis=0), 4)
    np.testing.assert_array_equal(exact.decode(exact.encode(frames[:1])), frames[:1])


def test_fit_is_bitwise_reproducible_and_seeded(frames: np.ndarray) -> None:
    patches = cut(frames, 4)
    first = Codebook.fit(patches, 32, seed=3)
    np.testing.assert_array_equal(first.centroids_KD, Codebook.fit(patches, 32, 3).centroids_KD)
    assert (first.centroids_KD != Codebook.fit(patches, 32, 4).centroids_KD).any()


def test_fit_finds_separate_clusters() -> None:
    """Ten far-apart clusters: every centroid must sit on the mean of one of them."""
    rng = np.random.default_rng(0)
    centres = rng.permutation(np.linspace(20, 235, 10))[:, None] + rng.uniform(-15, 15, (10, 12))
    points = np.repeat(centres, 200, axis=0) + rng.uniform(-2, 2, (2000, 12))
    book = Codebook.fit(np.rint(points).astype(np.uint8), 10, seed=0)
    distance = np.abs(book.centroids_KD[:, None].astype(float) - centres).max(-1)
    assert sorted(distance.argmin(1)) == list(range(10))
    assert distance.min(1).max() < 1.5


def test_more_codes_reconstruct_better_and_are_used(frames: np.ndarray) -> None:
    held_out = leaves.clips(0, 0, 20, frames=2, size=32, stream="validation").reshape(-1, 32, 32, 3)
    quality = []
    for codes in (16, 64, 256):
        book = Codebook.fit(cut(frames, 4), codes, seed=0)
        tokens = book.encode(held_out)
        quality.append(psnr(float(((book.decode(tokens) - held_out.astype(float)) ** 2).mean())))
        assert len(np.unique(tokens)) > 0.8 * codes
    assert quality[0] + 1 < quality[1] < quality[2] - 1


def test_save_and_load(frames: np.ndarray, tmp_path: Path) -> None:
    book = Codebook.fit(cut(frames, 8), 20, seed=0)
    book.save(tmp_path / "book.safetensors")
    again = Codebook.load(tmp_path / "book.safetensors")
    assert again.patch == 8
    np.testing.assert_array_equal(again.encode(frames), book.encode(frames))


def test_mistakes_say_what_to_do(frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only 1 distinct patches for 8 codes.*fit_frames"):
        Codebook.fit(np.zeros((100, 48), np.uint8), 8, seed=0)
    with pytest.raises(ValueError, match="patch that divides"):
        cut(frames, 5)
    with pytest.raises(ValueError, match=r"uint8"):
        cut(frames.astype(float), 4)
    book = Codebook.fit(cut(frames, 4), 8, seed=0)
    with pytest.raises(ValueError, match="not below 8"):
        book.decode(np.full((1, 64), 8, np.uint16))
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a codebook"):
        Codebook.load(tmp_path / "other.safetensors")


def test_psnr() -> None:
    assert psnr(0) == float("inf")
    assert psnr(255.0**2) == 0
    assert psnr(65.025) == pytest.approx(30)
