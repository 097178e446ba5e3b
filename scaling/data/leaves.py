"""Moving dead leaves: an endless video source with the statistics of natural images.

A scene is a stack of opaque discs with a power-law of radii, p(r) ~ r^-3, which makes the images
scale invariant (Lee, Mumford and Huang 2001, "Occlusion models for natural images"). Each disc has
one colour, a linear shading and a constant velocity; nearer discs hide farther ones. Colours come
from a fixed palette with Zipf frequencies, so that patches have a skewed distribution, as in
natural video, and a good tokenizer needs many codes but uses a few of them most of the time.

Clip i of a stream is a pure function of (seed, stream, i): no state, no end.
"""

import numpy as np

from scaling.errors import UserError

STREAMS = ("train", "validation")  # each has its own random key: no clip is in both

DISCS = 40
RADIUS_MIN, RADIUS_MAX = 1 / 12, 3 / 4  # in units of the frame's side
MARGIN = 1 / 4  # centres start up to this far outside of the frame
SPEED_MAX = 1 / 16  # per frame, along each axis
SHADE = 0.45  # brightness falls by at most this share from one rim of a disc to the other
PALETTE_COLOURS = 48

_DRAWS_PER_DISC = 8
_CLIP_DRAWS = DISCS * _DRAWS_PER_DISC  # a multiple of 4: Philox makes four 64-bit words a counter
_BLOCK = 16  # clips rendered together: small enough for the cache, big enough for numpy


def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Colours (P, 3) in [0, 255] and their cumulative Zipf frequencies (P,); always the same."""
    rng = np.random.Generator(np.random.Philox(key=[0x1EAF, 0]))
    grey = rng.uniform(20, 235, (PALETTE_COLOURS, 1))
    tint = rng.normal(0, 30, (PALETTE_COLOURS, 3))  # natural colours: weakly saturated
    colours = np.clip(grey + tint, 0, 255).astype(np.float32)
    frequency = 1 / np.arange(1, PALETTE_COLOURS + 1)
    return colours, np.cumsum(frequency / frequency.sum())


_COLOURS, _CUMULATIVE = _palette()


def clips(
    seed: int, start: int, count: int, *, frames: int, size: int, stream: str = "train"
) -> np.ndarray:
    """Clips start .. start + count - 1 of a stream, uint8 (N, T, H, W, 3) with H = W = `size` px.

    Raises UserError for an unknown stream or a count below 1.
    """
    if stream not in STREAMS:
        raise UserError(f"stream {stream!r} is unknown; use one of {', '.join(STREAMS)}.")
    if start < 0 or count < 1 or frames < 1 or size < 4:
        raise UserError(
            f"start={start}, count={count}, frames={frames}, size={size}: start must be at least "
            "0, count and frames at least 1, size at least 4 px."
        )
    key = [seed % 2**64, STREAMS.index(stream)]
    # A counter of the generator stands for 4 words, so clip i starts at counter i * draws / 4.
    generator = np.random.Philox(key=key, counter=start * (_CLIP_DRAWS // 4))
    out = np.empty((count, frames, size, size, 3), np.uint8)
    for first in range(0, count, _BLOCK):
        n = min(_BLOCK, count - first)
        words = generator.random_raw(n * _CLIP_DRAWS)
        uniform = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        draws = uniform.reshape(n, DISCS, _DRAWS_PER_DISC)
        out[first : first + n] = _render(draws, frames, size)
    return out


def _render(draws_NKD: np.ndarray, frames: int, size: int) -> np.ndarray:
    """Paint discs from far to near; draws are uniform in [0, 1), float32 (N, discs, 8)."""
    u = np.moveaxis(draws_NKD, 2, 0)
    n = u.shape[1]
    # Inverse CDF of r^-3 between the two radii.
    far, near = RADIUS_MIN**-2.0, RADIUS_MAX**-2.0
    radius_NK = size / np.sqrt(far - u[0] * np.float32(far - near))
    radius_NK[:, 0] = 10 * size  # the backdrop: one leaf that covers the frame
    time_T = np.arange(frames, dtype=np.float32)
    span, speed = np.float32(size * (1 + 2 * MARGIN)), np.float32(2 * size * SPEED_MAX)
    x_NKT = ((u[1] * span - size * MARGIN)[..., None]) + ((u[2] - 0.5) * speed)[..., None] * time_T
    y_NKT = ((u[3] * span - size * MARGIN)[..., None]) + ((u[4] - 0.5) * speed)[..., None] * time_T
    colour_NK = np.searchsorted(_CUMULATIVE, u[5], side="right").clip(max=PALETTE_COLOURS - 1)
    angle_NK = u[6] * np.float32(2 * np.pi)
    shade_NK = u[7] * np.float32(SHADE / 2)

    pixel = np.arange(size, dtype=np.float32)
    dx2_KNTW = (pixel - np.moveaxis(x_NKT, 1, 0)[..., None]) ** 2
    dy2_KNTH = (pixel - np.moveaxis(y_NKT, 1, 0)[..., None]) ** 2
    limit_KNTH = (radius_NK.T**2)[..., None, None] - dy2_KNTH  # inside where dx^2 <= r^2 - dy^2
    top_NTHW = np.zeros((n, frames, size, size), np.uint8)  # the nearest disc at each pixel
    inside = np.empty(top_NTHW.shape, bool)
    for k in range(1, DISCS):
        np.less_equal(dx2_KNTW[k][:, :, None, :], limit_KNTH[k][..., None], out=inside)
        np.copyto(top_NTHW, np.uint8(k), where=inside)

    # Shading: brightness falls linearly across the disc along its own direction.
    clip_N = np.arange(n)[:, None, None, None]
    time_index_T = np.arange(frames)[None, :, None, None]
    slope_x = shade_NK * np.cos(angle_NK) / radius_NK
    slope_y = shade_NK * np.sin(angle_NK) / radius_NK
    offset_NKT = 1 - np.float32(SHADE / 2) - slope_x[..., None] * x_NKT - slope_y[..., None] * y_NKT
    disc = clip_N * DISCS + top_NTHW
    light = offset_NKT.reshape(-1)[disc * frames + time_index_T]
    light += slope_x.reshape(-1)[disc] * pixel
    light += slope_y.reshape(-1)[disc] * pixel[:, None]
    rgb: np.ndarray = _COLOURS[colour_NK.reshape(-1)[disc]]
    rgb *= light[..., None]
    return rgb.astype(np.uint8)
