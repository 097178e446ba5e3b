"""The k-means tokenizer against brute force, and the determinism that token caches rely on."""

from pathlib import Path

import numpy as np
import pytest

from scaling.data import leaves
from scaling.models.tokenizers.codebook import Codebook, cut, psnr
from scaling.models.tokenizers.nearest import Nearest, directions


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


def _smooth(rng: np.random.Generator, count: int, patch: int) -> np.ndarray:
    """Patches (count, 3 P^2) like those of pictures: a ramp of colour, and a little noise."""
    ramp = np.stack(np.meshgrid(*[np.linspace(-1, 1, patch)] * 2), -1)
    slope, grey = rng.normal(0, 30, (count, 2, 3)), rng.uniform(0, 255, (count, 1, 1, 3))
    values = grey + np.einsum("hwi,nic->nhwc", ramp, slope)
    values += rng.normal(0, 3, values.shape)
    patches: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(count, -1)
    return patches


def _kinds(patch: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Patches (M, D) and centroids (K, D) in which a bound could go wrong."""
    rng = np.random.default_rng(patch)
    dims = 3 * patch * patch
    smooth = _smooth(rng, 150, patch)
    noise = rng.integers(0, 256, (150, dims)).astype(np.uint8)
    greys = np.repeat(rng.permutation(256)[:120, None], dims, 1).astype(np.uint8)
    by_one = np.repeat(smooth[:1], 60, 0).astype(np.int64)
    by_one[np.arange(60), rng.integers(0, dims, 60)] += rng.choice([-1, 1], 60)
    extremes = np.where(rng.random((50, dims)) < 0.5, 0, 255).astype(np.uint8)
    return {
        "smooth": (smooth, smooth[::5]),
        "noise": (noise, noise[::5]),
        "noise among smooth": (noise, smooth[::5]),
        "every code twice": (smooth, np.repeat(smooth[::5], 2, 0)),
        "one code": (smooth, np.repeat(smooth[:1], 30, 0)),
        "greys half-way": (greys, greys[greys[:, 0] % 2 == 0]),  # each odd one is a tie
        "one value apart": (smooth, np.clip(by_one, 0, 255).astype(np.uint8)),
        "extremes": (extremes, np.concatenate([extremes[::5], 255 - extremes[::5]])),
    }


@pytest.mark.parametrize("side", [8, 20])  # float32 arithmetic, float64 arithmetic
@pytest.mark.parametrize("kind", list(_kinds(6)))
def test_a_glance_changes_no_code(kind: str, side: int) -> None:
    patches, centroids = _kinds(side)[kind]
    differences = (centroids.astype(np.int32) - patch for patch in patches)
    right = [np.square(d).sum(-1).argmin() for d in differences]
    np.testing.assert_array_equal(Nearest(centroids)(patches), right)
    other = directions(np.random.default_rng(0).integers(0, 256, patches.shape).astype(np.uint8))
    np.testing.assert_array_equal(Nearest(centroids, other)(patches), right)
    np.testing.assert_array_equal(Nearest(centroids)._in_full(patches), right)


def test_a_glance_decides_most_patches_of_pictures() -> None:
    patches = _smooth(np.random.default_rng(0), 3000, 8)
    _, undecided = Nearest(patches[:100])._at_a_glance(patches)
    assert len(undecided) < 0.2 * len(patches)


def test_what_stands_still_has_the_codes_of_each_frame_alone() -> None:
    """Also where a frame comes again, and where it is the first of a block."""
    rng = np.random.default_rng(1)
    book = Codebook(_smooth(rng, 50, 8), 8)
    video = np.repeat(rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8), 600, axis=0)
    for frame in range(1, 600):
        video[frame] = video[frame - 1 - frame % 2]
        y, x = rng.integers(0, 56, 2)
        video[frame, y : y + 8, x : x + 8] = rng.integers(0, 256, (8, 8, 3))
    alone = np.concatenate([book.encode(frame[None]) for frame in video])
    np.testing.assert_array_equal(book.encode(video), alone)
    assert book.encode(video[:0]).shape == (0, 64)


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
