"""Codebook tokenizer: k-means on image patches. Needs no download and no gradient.

A frame is cut into square patches in raster order; the code of a patch is its nearest centroid.
Patches and centroids are integers, and products decide that have no rounding (`nearest`), so codes
do not depend on the machine, on the threads or on the batch.

Shapes: N frames, H = W pixels, P patch side, K codes, D = 3 P^2 values of a patch.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from scaling.errors import UserError
from scaling.models.tokenizers.nearest import Nearest, directions, one_thread

_BATCH = 16384  # patches of a k-means step, and encoded together
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
        basis = directions(patches_MD[:_BATCH])
        won = np.zeros(codes)
        for _ in range(min(_PASSES, max(3, _SEEN // len(patches_MD)))):
            won_before = won.copy()
            for first in range(0, len(patches_MD), _BATCH):
                batch = patches_MD[first : first + _BATCH]
                winner = Nearest(np.rint(centroids).astype(np.uint8), basis)(batch)
                count = np.bincount(winner, minlength=codes)
                used = np.flatnonzero(count)
                sums = _sums(batch, winner, count)[used]
                won[used] += count[used]
                centroids[used] += (sums - count[used, None] * centroids[used]) / won[used, None]
            idle = np.flatnonzero(won == won_before)
            if len(idle):
                sample = patches_MD[rng.permutation(len(patches_MD))[: max(8192, 8 * codes)]]
                integer = np.rint(centroids).astype(np.uint8)
                error = _squared_error(sample, integer[Nearest(integer, basis)(sample)])
                if error.any():
                    chosen = rng.choice(len(sample), len(idle), p=error / error.sum())
                    centroids[idle] = sample[chosen]
                    won[idle] = 1
        return cls(np.rint(centroids).astype(np.uint8), patch)

    def encode(self, frames_NHWC: np.ndarray) -> np.ndarray:
        """Codes, uint16 (N, H/P * W/P), raster order, of uint8 frames (N, H, W, 3)."""
        length = (frames_NHWC.shape[1] // self.patch) * (frames_NHWC.shape[2] // self.patch)
        codes_NL = np.empty((len(frames_NHWC), length), np.uint16)
        block = max(1, _BATCH // max(1, length))
        for first in range(0, len(frames_NHWC), block):
            patches = cut(frames_NHWC[first : first + block], self.patch)
            codes_NL[first : first + block] = self._encode(
                patches.reshape(-1, length, patches.shape[1])
            )
        return codes_NL

    def _encode(self, patches_NLD: np.ndarray) -> np.ndarray:
        # What stands still in a video need not be looked up again: often a quarter of it.
        new_NL = np.ones(patches_NLD.shape[:2], bool)
        new_NL[1:] = (patches_NLD[1:] != patches_NLD[:-1]).any(2)
        codes_NL = np.zeros(new_NL.shape, np.uint16)
        codes_NL[new_NL] = self._nearest(patches_NLD[new_NL])
        last_NL = np.maximum.accumulate(np.where(new_NL, np.arange(len(new_NL))[:, None], 0))
        return np.take_along_axis(codes_NL, last_NL, axis=0)

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(self.centroids_KD)

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


def _sums(patches_MD: np.ndarray, code_M: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """The sum of the patches of each code, (K, D)."""
    from scipy.sparse import csr_array  # here: those who only encode need not wait for it

    ends = np.concatenate(([0], np.cumsum(count_K)))
    order = np.argsort(code_M, kind="stable")
    one_KM = csr_array((np.ones(len(order), np.int32), order, ends), (len(count_K), len(order)))
    sums_KD: np.ndarray = one_KM @ patches_MD.astype(np.int32)
    return sums_KD


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
    with one_thread():
        for k in range(1, codes):
            last = chosen[k - 1]
            new = square - 2 * (shifted @ shifted[last]) + square[last]  # exact up to 18 x 18 px
            distance = np.minimum(distance, np.maximum(new, 0))
            distance[last] = 0
            cumulative = np.cumsum(distance)
            pick = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
            chosen[k] = min(int(pick), len(sample_MD) - 1)
    return sample_MD[chosen]
