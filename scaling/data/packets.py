"""Which packets of a video need not be decoded to get the wanted frames, pixel for pixel.

Two kinds can be left out: packets of frames that no other frame refers to, and whole groups of
pictures between two points at which a decoder can start afresh. Both are read from the bitstream:
FFmpeg's own `skip_frame` drops such frames even when they are wanted.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np


class Kind(Enum):
    """What other frames a packet's frame matters to."""

    NEEDED = 0  # or not known: other frames may refer to it
    DISPOSABLE = 1  # no frame refers to it
    RESTART = 2  # no frame from here on refers to a frame before


def classifier(codec: str, extradata: bytes | None) -> Callable[[memoryview, bool], Kind]:
    """The function (payload, is_keyframe) -> Kind of a codec; unknown codecs drop nothing."""
    if codec == "h264":
        # avcC (ISO 14496-15) gives the width of the length fields; else there are start codes.
        prefix = (extradata[4] & 3) + 1 if extradata and extradata[0] == 1 else 0
        return lambda payload, key: _h264(payload, prefix)
    if codec in ("mpeg1video", "mpeg2video"):
        return lambda payload, key: _b_pictures(payload, b"\0\0\1\0", lambda p: p[1] >> 3 & 7 == 3)
    if codec == "mpeg4":
        return lambda payload, key: _b_pictures(payload, b"\0\0\1\xb6", lambda p: p[0] >> 6 == 2)
    if codec in ("vp8", "vp9", "av1"):  # a key frame resets every reference buffer
        return lambda payload, key: Kind.RESTART if key else Kind.NEEDED
    return lambda payload, key: Kind.NEEDED


def hidden(codec: str, payload: memoryview) -> bool:
    """Whether a packet holds one frame that is only a reference for others (VP8, VP9), or
    none at all (Theora's headers).

    By the frame header's show_frame (RFC 6386, 9.1; VP9 bitstream, 6.2). A VP9 superframe, known by
    the marker in its last byte, shows one of its frames.
    """
    if not len(payload):
        return False
    first = payload[0]
    if codec == "vp8":
        return not first >> 4 & 1
    if codec == "theora":  # headers, once more where streams were joined
        return bool(first >> 7)
    if codec == "vp9" and payload[-1] & 0xE0 != 0xC0:
        reserved = first >> 4 & 3 == 3  # profile 3 has one bit more
        return not first >> (3 - reserved) & 1 and not first >> (1 - reserved) & 1
    return False


def reorders(codec: str, delayed: bool, kinds: Sequence[Kind]) -> bool:
    """Whether frames may be shown in another order than they are decoded.

    `delayed` is what FFmpeg says of the stream (has_b_frames); of MPEG-1, 2 and 4 it says so of
    every stream that is not marked as of low delay, B-pictures or none.
    """
    if codec in ("mpeg1video", "mpeg2video", "mpeg4"):
        return Kind.DISPOSABLE in kinds
    return delayed and codec not in ("vp8", "vp9", "av1")


def to_decode(kinds: Sequence[Kind], wanted: np.ndarray) -> np.ndarray:
    """Which packets to decode, bool (packets,), in decoding order; `wanted` likewise."""
    restart = np.array([kind is Kind.RESTART for kind in kinds], bool)
    disposable = np.array([kind is Kind.DISPOSABLE for kind in kinds], bool)
    group = np.cumsum(restart)
    # In each group, up to its last wanted packet: references come before what refers to them.
    place = np.arange(len(group))
    last = np.full(group[-1] + 1, -1)
    np.maximum.at(last, group[wanted], place[wanted])
    needed: np.ndarray = (place <= last[group]) & (wanted | ~disposable)
    return needed


def _h264(payload: memoryview, prefix: int) -> Kind:
    """By the NAL unit headers (ITU-T H.264, 7.3.1): nal_ref_idc 0 is a disposable picture."""
    headers = _lengths(payload, prefix) if prefix else _start_codes(payload)
    slices = [header for header in headers if 1 <= header & 31 <= 5]
    if any(header & 31 == 5 for header in slices):
        return Kind.RESTART  # IDR
    if slices and all(header >> 5 & 3 == 0 for header in slices):
        return Kind.DISPOSABLE
    return Kind.NEEDED


def _lengths(payload: memoryview, prefix: int) -> list[int]:
    headers, at = [], 0
    while at + prefix < len(payload):
        headers.append(payload[at + prefix])
        at += prefix + int.from_bytes(payload[at : at + prefix], "big")
    return headers


def _start_codes(payload: memoryview) -> list[int]:
    content = bytes(payload)
    headers, at = [], content.find(b"\0\0\1")
    while 0 <= at < len(content) - 3:
        headers.append(content[at + 3])
        at = content.find(b"\0\0\1", at + 3)
    return headers


def _b_pictures(payload: memoryview, code: bytes, is_b: Callable[[bytes], bool]) -> Kind:
    """Disposable when every picture header (start code, then 2 bytes) in the packet is a B."""
    content = bytes(payload)
    pictures, at = [], content.find(code)
    while 0 <= at < len(content) - len(code) - 1:
        pictures.append(is_b(content[at + len(code) : at + len(code) + 2]))
        at = content.find(code, at + len(code))
    return Kind.DISPOSABLE if pictures and all(pictures) else Kind.NEEDED
