"""Continuous patches and their normalisation."""

import numpy as np
import pytest
import torch

from scaling.models.tokenizers import patch


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def test_patches_are_raster_order_and_invert(frames: np.ndarray) -> None:
    cut = patch.patches(frames, 4)
    assert cut.shape == (3, 16, 48) and cut.dtype == np.float32
    np.testing.assert_allclose(cut[1, 6].reshape(4, 4, 3) * 255, frames[1, 4:8, 8:12], rtol=1e-6)
    np.testing.assert_array_equal(patch.frames(cut), frames)


def test_normalised_patches_are_those_of_mae(frames: np.ndarray) -> None:
    cut = patch.patches(frames, 8)
    normal, mean, std = patch.normalise(cut)
    target = torch.from_numpy(cut)
    expected = (target - target.mean(-1, keepdim=True)) / (
        target.var(-1, keepdim=True) + 1e-6
    ) ** 0.5
    torch.testing.assert_close(torch.from_numpy(normal), expected)
    np.testing.assert_allclose(normal * std + mean, cut, atol=1e-6)


def test_a_flat_patch_becomes_zeros() -> None:
    normal, _, _ = patch.normalise(np.full((1, 4, 48), 0.7, np.float32))
    assert np.abs(normal).max() < 1e-3


def test_shapes_that_do_not_fit(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="patch that divides"):
        patch.patches(frames, 5)
    with pytest.raises(ValueError, match="no square grid"):
        patch.frames(np.zeros((1, 3, 48), np.float32))
