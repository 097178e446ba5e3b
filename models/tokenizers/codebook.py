"""Codebook tokenizer: k-means on image patches. Needs no download and no gradient.

A frame is cut into square patches in raster order; the code of a patch is its nearest centroid.
Patches and centroids are integers, shifted to [-128, 127]. Their dot products then have no rounding
(up to 18 x 18 px), so codes do not depend on the machine, on the threads or on the batch.

Shapes: N frames, H = W pixels, P patch side, K codes, D = 3 P^2 values of a patch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from scaling.errors import UserError

_CHUNK = 512  # patches scored together: their scores stay in the processor's cache
_BATCH = 16384  # patches of a k-means step
_PASSES = 12  # over the patches; fewer, but at least 3, when there are more than _SEEN / 12
_SEEN = 1 << 22


@dataclass(frozen=True)
class Codebook:
    """Fitted centroids: uint8 (K, D), a patch in row, column, RGB order."""

    centroids_KD: np.ndarray
    patch: int

    @property
    def codes(self) -> int:
        return len(self.centroids_KD)

    @classmethod
    def fit(cls, patches_MD: np.ndarray, codes: int, seed: int) -> "Codebook":
        """Mini-batch k-means (Sculley 2010) from a k-means++ start (Arthur and Vassilvitskii 2007).

        `patches_MD` is uint8 (M, 3 P^2), from `cut`. The same patches and seed give the same bytes.
        A code that wins no patch during a pass is moved onto a patch that is badly served.
        Raises UserError when there are fewer distinct patches than codes.
        """
        patch = _side(patches_MD.shape[1])
        if not 2 <= codes <= 65_532:
            raise UserError(
                f"codes={codes}: a codebook has 2 to 65,532 codes (tokens are 16 bits wide and 4 "
                "values are taken by specials)."
            )
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, 0xC0DE]))
        patches_MD = patches_MD[rng.permutation(len(patches_MD))]
        centroids = _plus_plus(patches_MD[: max(8192, 8 * codes)], codes, rng).astype(np.float64)
        won = np.zeros(codes)
        for _ in range(min(_PASSES, max(3, _SEEN // len(patches_MD)))):
            won_before = won.copy()
            for first in range(0, len(patches_MD), _BATCH):
                batch = patches_MD[first : first + _BATCH]
                nearest = _nearest(batch, np.rint(centroids).astype(np.uint8))
                count = np.bincount(nearest, minlength=codes)
                order = np.argsort(nearest, kind="stable")
                used = np.flatnonzero(count)
                starts = np.concatenate(([0], np.cumsum(count[used])[:-1]))
                sums = np.add.reduceat(batch[order].astype(np.int64), starts, axis=0)
                won[used] += count[used]
                centroids[used] += (sums - count[used, None] * centroids[used]) / won[used, None]
            idle = np.flatnonzero(won == won_before)
            if len(idle):
                sample = patches_MD[rng.permutation(len(patches_MD))[: max(8192, 8 * codes)]]
                integer = np.rint(centroids).astype(np.uint8)
                error = _squared_error(sample, integer[_nearest(sample, integer)])
                if error.any():
                    chosen = rng.choice(len(sample), len(idle), p=error / error.sum())
                    centroids[idle] = sample[chosen]
                    won[idle] = 1
        return cls(np.rint(centroids).astype(np.uint8), patch)

    def encode(self, frames_NHWC: np.ndarray) -> np.ndarray:
        """Codes, uint16 (N, H/P * W/P), raster order, of uint8 frames (N, H, W, 3)."""
        patches = cut(frames_NHWC, self.patch)
        return _nearest(patches, self.centroids_KD).reshape(len(frames_NHWC), -1)

    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Frames, uint8 (N, H, W, 3), of the codes of square frames (N, H/P * W/P)."""
        n, length = codes_NL.shape
        grid = round(length**0.5)
        if grid * grid != length:
            raise UserError(f"{length} codes a frame are not a square grid.")
        if codes_NL.size and int(codes_NL.max()) >= self.codes:
            raise UserError(f"code {int(codes_NL.max())} is not below {self.codes}.")
        p = self.patch
        tiles: np.ndarray = self.centroids_KD[codes_NL].reshape(n, grid, grid, p, p, 3)
        return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid * p, grid * p, 3)

    def save(self, path: Path) -> None:
        """Write `path` (.safetensors): the centroids (K, 3 P^2)."""
        # One entry: safetensors writes several in random order; equal books must be equal bytes.
        meta = {"kind": "codebook"}
        save_file({"centroids": np.ascontiguousarray(self.centroids_KD)}, path, metadata=meta)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what `save` wrote; UserError for a file of something else."""
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("kind") != "codebook" or "centroids" not in file.keys():  # noqa: SIM118
                raise UserError(
                    f"{path} is not a codebook: it has no tensor 'centroids' with the metadata "
                    "kind=codebook. Give a file that `Codebook.save` wrote."
                )
            centroids_KD = file.get_tensor("centroids")
        return cls(centroids_KD, _side(centroids_KD.shape[1]))


def cut(frames_NHWC: np.ndarray, patch: int) -> np.ndarray:
    """Patches uint8 (N * H/P * W/P, 3 P^2), raster order, of uint8 frames (N, H, W, 3)."""
    n, h, w, channels = frames_NHWC.shape
    if frames_NHWC.dtype != np.uint8 or channels != 3:
        raise UserError(f"frames must be uint8 (N, H, W, 3), not {frames_NHWC.dtype}, {channels}.")
    if h % patch or w % patch:
        raise UserError(
            f"a frame of {h} x {w} px cannot be cut into patches of {patch} px; use a patch that "
            "divides the size."
        )
    tiles = frames_NHWC.reshape(n, h // patch, patch, w // patch, patch, 3)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 3 * patch * patch)


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit frames; infinite for identical frames."""
    if mean_squared_error == 0:
        return float("inf")
    return float(10 * np.log10(255.0**2 / mean_squared_error))


def _side(values: int) -> int:
    side: int = round((values / 3) ** 0.5)
    if 3 * side * side != values:
        raise UserError(f"{values} values are no square RGB patch (3 P^2).")
    return side


def _nearest(patches_MD: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid, uint16 (M,); the lowest index among equals."""
    # argmin |x - c|^2 = argmax 2 x.c - |c|^2. Every partial sum is an integer below 3 D 2^14: exact
    # in float32 (24 bits) up to D = 341, in float64 above.
    dims = patches_MD.shape[1]
    dtype = np.float32 if 3 * dims * 2**14 <= 2**24 else np.float64
    weight = np.empty((dims + 1, len(centroids_KD)), dtype)
    shifted = centroids_KD.astype(dtype) - 128
    weight[:dims] = 2 * shifted.T
    weight[dims] = -(shifted**2).sum(1)
    out = np.empty(len(patches_MD), np.uint16)
    x = np.ones((min(_CHUNK, len(patches_MD)), dims + 1), dtype)
    scores = np.empty((len(x), len(centroids_KD)), dtype)
    for first in range(0, len(patches_MD), _CHUNK):
        part = patches_MD[first : first + _CHUNK]
        np.subtract(part, 128, out=x[: len(part), :dims], dtype=dtype)
        np.matmul(x[: len(part)], weight, out=scores[: len(part)])
        out[first : first + _CHUNK] = scores[: len(part)].argmax(1)
    return out


def _squared_error(a_MD: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    error_M: np.ndarray = ((a_MD.astype(np.int32) - b_MD) ** 2).sum(1)
    return error_M


def _plus_plus(sample_MD: np.ndarray, codes: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ start: each next centroid is drawn with probability ~ its squared distance."""
    distinct = len(np.unique(sample_MD, axis=0))
    if distinct < codes:
        raise UserError(
            f"only {distinct} distinct patches for {codes} codes. Use fewer codes, or fit on more "
            "frames (tokenizer.fit_frames)."
        )
    shifted = sample_MD.astype(np.float32) - 128
    square = (shifted**2).sum(1)
    chosen = np.empty(codes, np.int64)
    chosen[0] = rng.integers(len(sample_MD))
    distance = np.full(len(sample_MD), np.inf)
    for k in range(1, codes):
        last = chosen[k - 1]
        new = square - 2 * (shifted @ shifted[last]) + square[last]  # exact up to 18 x 18 px
        distance = np.minimum(distance, np.maximum(new, 0))
        distance[last] = 0
        cumulative = np.cumsum(distance)
        pick = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        chosen[k] = min(int(pick), len(sample_MD) - 1)
    return sample_MD[chosen]
