"""Which centroid is nearest to a patch: exactly, and mostly without the full comparison.

A patch is compared with all centroids in a few directions first. What the other directions can add
to the product of two vectors is bounded by the vectors' lengths there (Cauchy and Schwarz), so one
centroid often wins whatever they hold; only patches for which that is open are compared in full.
Natural pictures are smooth, so a few directions hold most of their energy, and nine patches of ten
are decided. Where none is (noise, equal centroids) the look costs half as much again.

Shapes: M patches, K centroids, D = 3 P^2 values of a patch, R directions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
from threadpoolctl import ThreadpoolController

_CHUNK = 256  # patches scored together: their scores stay in the processor's cache
_DIRECTIONS = 24
_THREADS = ThreadpoolController().select(user_api="blas")


def one_thread() -> AbstractContextManager[object]:
    """Products in here are made by one thread: they are small, and threads that wait for each other
    spin, which on a busy machine takes several times the work itself."""
    limited: AbstractContextManager[object] = _THREADS.limit(limits=1)
    return limited


def directions(points_ND: np.ndarray) -> np.ndarray:
    """Orthonormal columns, (D, R), along which uint8 points are far from mid-grey.

    R is 0 where the points have too few values for a gain.
    """
    dims = points_ND.shape[1]
    if dims < 4 * _DIRECTIONS:
        return np.empty((dims, 0))
    shifted = points_ND.astype(np.float64) - 128
    basis_DR = np.random.default_rng(0).standard_normal((dims, _DIRECTIONS))
    for _ in range(3):  # subspace iteration: the first principal directions, nearly
        basis_DR = np.linalg.qr(shifted.T @ (shifted @ basis_DR))[0]
    return basis_DR


class Nearest:
    """Finds the nearest of K centroids.

    Args:
        centroids_KD: uint8.
        basis_DR: of `directions`, by default those of the centroids. The codes do not depend on it.
    """

    # argmin |x - c|^2 = argmax 2 x.c - |c|^2, the score. Patches and centroids are integers,
    # shifted to [-128, 127]: every partial sum is one too, and below 3 D 2^14. So float32 is exact
    # up to D = 341 (24 bits), float64 above.

    def __init__(self, centroids_KD: np.ndarray, basis_DR: np.ndarray | None = None) -> None:
        dims = centroids_KD.shape[1]
        self.exact = np.float32 if 3 * dims * 2**14 <= 2**24 else np.float64
        self.centroids_KD = centroids_KD.astype(np.float64) - 128
        self.square_K = np.einsum("kd,kd->k", self.centroids_KD, self.centroids_KD)
        self.basis_DR = directions(centroids_KD) if basis_DR is None else basis_DR
        # Projections are rounded to float32 once, and a score is a float32 sum of R + 2 products:
        # less than this is lost, of |x| |c| + |c|^2.
        self.lost = 8 * (self.basis_DR.shape[1] + 4) * 2.0**-24

    def __call__(self, patches_MD: np.ndarray) -> np.ndarray:
        """Index of the nearest centroid, uint16 (M,), of uint8 patches; the lowest among equals."""
        with one_thread():
            if not self.basis_DR.shape[1]:
                return self._in_full(patches_MD)
            code_M, open_ = self._at_a_glance(patches_MD)
            if len(open_):
                code_M[open_] = self._in_full(patches_MD[open_])
            return code_M

    def _in_full(self, patches_MD: np.ndarray) -> np.ndarray:
        size, dims = min(_CHUNK, len(patches_MD)), patches_MD.shape[1]
        weight = np.empty((dims + 1, len(self.centroids_KD)), self.exact)
        weight[:dims] = 2 * self.centroids_KD.T
        weight[dims] = -self.square_K
        x = np.ones((size, dims + 1), self.exact)
        scores = np.empty((size, len(self.centroids_KD)), self.exact)
        code_M = np.empty(len(patches_MD), np.uint16)
        for first in range(0, len(patches_MD), _CHUNK):
            part = patches_MD[first : first + _CHUNK]
            n = len(part)
            np.subtract(part, 128, out=x[:n, :dims], dtype=self.exact)
            np.matmul(x[:n], weight, out=scores[:n])
            code_M[first : first + n] = scores[:n].argmax(1)
        return code_M

    def _at_a_glance(self, patches_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likely index of each patch, (M,), and the places where another may be as near."""
        size, r = min(_CHUNK, len(patches_MD)), self.basis_DR.shape[1]
        weight = np.empty((len(self.centroids_KD), r + 2), np.float32)
        self._project(self.centroids_KD, self.square_K, weight)
        weight[:, : r + 1] *= 2
        weight[:, r + 1] = self.square_K * (self.lost - 1)
        weight = np.ascontiguousarray(weight.T)
        x, low = np.empty((size, patches_MD.shape[1])), np.ones((size, r + 2), np.float32)
        bound, row = np.empty((size, weight.shape[1]), np.float32), np.arange(size)
        code_M = np.empty(len(patches_MD), np.uint16)
        found = [np.empty(0, np.int64)]
        for first in range(0, len(patches_MD), _CHUNK):
            n = len(patches_MD[first : first + _CHUNK])
            np.subtract(patches_MD[first : first + n], 128, out=x[:n], dtype=np.float64)
            self._project(x[:n], np.einsum("md,md->m", x[:n], x[:n]), low[:n])
            np.matmul(low[:n], weight, out=bound[:n])  # no score is above it
            best = bound[:n].argmax(1)
            score = 2 * np.einsum("md,md->m", x[:n], self.centroids_KD[best]) - self.square_K[best]
            bound[row[:n], best] = -np.inf
            code_M[first : first + n] = best
            found.append(first + np.flatnonzero(bound[:n].max(1) >= score))
        return code_M, np.concatenate(found)

    def _project(self, x_ND: np.ndarray, square_N: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (N, R + ...): the projection, and then the length of what is not in it, longer
        by what rounding may hide."""
        inside = x_ND @ self.basis_DR
        r = inside.shape[1]
        rest = square_N * (1 + self.lost) - np.einsum("nr,nr->n", inside, inside)
        out[:, :r] = inside
        out[:, r] = np.sqrt(np.maximum(rest, 0))
