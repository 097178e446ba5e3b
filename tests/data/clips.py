"""Makes the small videos that the tests read."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def level(index: int) -> int:
    """The grey level that says which frame of a test video this is."""
    return 5 + 6 * index


def indices(pixels: np.ndarray) -> np.ndarray:
    """The frame numbers in clips (n, T, S, S, 3) of a test video, by brightness, (n, T)."""
    return np.asarray(np.rint((pixels.mean((2, 3, 4)) - 5) / 6).astype(int))


def write_video(
    path: Path,
    frames: int | np.ndarray,
    *,
    size: tuple[int, int] = (48, 36),
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    muxer: dict[str, str] | None = None,
) -> Path:
    """A video of flat grey frames, or of given pixels (F, H, W, 3); further streams of `sizes`.

    `size` is (width, height); `times` are milliseconds, 40 a frame if not given.
    """
    if isinstance(frames, np.ndarray):
        pixels = frames
        size = (frames.shape[2], frames.shape[1])
    else:
        pixels = np.empty((frames, size[1], size[0], 3), np.uint8)
        pixels[:] = np.array([level(i) for i in range(frames)])[:, None, None, None]
    with av.open(str(path), "w", options=muxer or {}) as container:
        for width, height in (size, *sizes):
            stream = container.add_stream(codec, rate=25, options=options or {})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = Fraction(1, 1000 if times else 25)
            stream.codec_context.thread_count = 1
            stream.codec_context.bit_rate = 8_000_000  # brightness must survive
        for stream in container.streams.video:
            for i, picture in enumerate(pixels):
                shown = picture[: stream.height, : stream.width]
                if shown.shape[:2] != (stream.height, stream.width):
                    shown = np.full((stream.height, stream.width, 3), picture[0, 0], np.uint8)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
                frame.pts = times[i] if times else i
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def rotate_mp4(path: Path, quarter_turns: int) -> None:
    """Set the display matrix of the first track: this many quarter turns clockwise."""
    cos = [1, 0, -1, 0][quarter_turns % 4]
    sin = [0, 1, 0, -1][quarter_turns % 4]
    matrix_mp4(path, (cos, sin, -sin, cos))


def matrix_mp4(path: Path, abcd: tuple[float, float, float, float]) -> None:
    """Set the display matrix of the first track: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = abcd
    matrix = [a, b, 0, c, d, 0, 0, 0, 1]
    scale = [16, 16, 30, 16, 16, 30, 16, 16, 30]  # fixed-point bits of each entry
    packed = b"".join(
        round(value * 2**bits).to_bytes(4, "big", signed=True)
        for value, bits in zip(matrix, scale, strict=True)
    )
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    content[header + 44 : header + 80] = packed
    path.write_bytes(content)
