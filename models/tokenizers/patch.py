"""Continuous patches: inputs and regression targets without a vocabulary (Table 3 of the paper).

Shapes: N frames, L = H/P * W/P patches of a frame, D = 3 P^2 values of a patch.
"""

import numpy as np

from scaling.errors import UserError
from scaling.models.tokenizers.codebook import cut

_EPS = 1e-6  # as in MAE; a flat patch becomes zeros


def patches(frames_NHWC: np.ndarray, patch: int) -> np.ndarray:
    """Patches in [0, 1], float32 (N, L, D), raster order, of uint8 frames (N, H, W, 3)."""
    flat = cut(frames_NHWC, patch).astype(np.float32) / 255
    return flat.reshape(len(frames_NHWC), -1, flat.shape[1])


def normalise(patches_NLD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches with mean 0 and variance 1 each (He et al. 2022, 3), and the (N, L, 1) mean and std.

    Regressing these, not raw pixels, keeps the loss from being one of brightness. The variance is
    the unbiased one, as in the published code of MAE.
    """
    mean = patches_NLD.mean(-1, keepdims=True)
    std = np.sqrt(patches_NLD.var(-1, keepdims=True, ddof=1) + _EPS)
    return (patches_NLD - mean) / std, mean, std


def frames(patches_NLD: np.ndarray) -> np.ndarray:
    """uint8 frames (N, H, W, 3) of patches in [0, 1] on a square grid; the inverse of `patches`."""
    n, length, dims = patches_NLD.shape
    grid, side = round(length**0.5), round((dims / 3) ** 0.5)
    if grid * grid != length or 3 * side * side != dims:
        raise UserError(f"{length} patches of {dims} values are no square grid of RGB squares.")
    tiles = np.rint(np.clip(patches_NLD, 0, 1) * 255).astype(np.uint8)
    tiles = tiles.reshape(n, grid, grid, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(n, grid * side, grid * side, 3)
