"""A decoded frame -> the upright RGB picture that players show.

Shapes: H', W' = height and width in px of the picture whose short side is asked for.
"""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from scaling.data.media import resized_to


class _Kept(threading.local):
    """swscale's tables, which take longer to make than a small frame to convert; made anew by it
    when frames of another kind come. Not for two threads at once."""

    def __init__(self) -> None:
        self.resizer, self.colours = VideoReformatter(), VideoReformatter()


_kept = _Kept()


def picture(frame: av.VideoFrame, size: int) -> np.ndarray:
    """RGB uint8 (H', W', 3), short side `size`, turned and mirrored as the display matrix says."""
    height, width = resized_to(frame.height, frame.width, size)
    matrix = display_matrix(frame)
    if frame.interlaced_frame:
        frame = _as_progressive(frame)
    if (height, width) != (frame.height, frame.width):
        # To full colour planes first: at once to RGB, swscale would halve the colour resolution.
        frame = _kept.resizer.reformat(
            frame, width=width, height=height, format="yuv444p", interpolation="AREA", threads=1
        )
    rgb = _kept.colours.reformat(frame, format="rgb24", threads=1)
    return _upright(rgb.to_ndarray(), matrix)


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """(2, 2): where x and y of the coded picture point on the display; None: where they do.

    Row 0 is the display's direction of the coded x, row 1 of the coded y; y points down.
    """
    # Asked by its type: PyAV 18 goes through the data themselves, PyAV 19 through their types.
    held: Any = frame.side_data  # whose stub is another's
    data = held.get(Type.DISPLAYMATRIX)
    if data is None:
        return None
    nine = np.frombuffer(bytes(data)[:36], np.int32).reshape(3, 3)
    return nine[:2, :2] / 65536


def odd_angle(frame: av.VideoFrame) -> str:
    """What to say of a frame that is turned by no quarter, or ""."""
    matrix = display_matrix(frame)
    if matrix is None or not matrix.any():
        return ""
    angle = math.degrees(math.atan2(matrix[0, 1], matrix[0, 0]))
    if abs((angle + 45) % 90 - 45) <= 1:
        return ""
    return f"turned by {angle:.0f} degrees in its description, and here to the nearest quarter"


def _upright(rgb: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    if matrix is None:
        return rgb
    (a, b), (c, d) = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):  # the coded x runs along the display's y
        rgb = rgb.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    if flip_x:
        rgb = rgb[:, ::-1]
    if flip_y:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _as_progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """The same frame without the mark of interlaced video.

    swscale (from FFmpeg 8 on) converts the fields of marked frames apart, the ffmpeg command line
    does not. The mark does not say how chroma was subsampled, and much that bears it is progressive
    film or screen.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    unmark, sink = graph.add("setfield", "mode=prog"), graph.add("buffersink")
    source.link_to(unmark)
    unmark.link_to(sink)
    graph.configure()
    graph.push(frame)
    out = graph.pull()
    assert isinstance(out, av.VideoFrame)
    return out
