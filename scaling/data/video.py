"""Reading video: files -> uint8 clips of frames of one size.

What can be used is used, what was lost is said: a damaged file gives the clips whose frames all
decode and a `note`; one that gives nothing raises MediaError.

Shapes: n clips, T frames, S = side of the square crop in px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.stream import Disposition

from scaling.data import packets
from scaling.data.media import MediaError, crop, crop_sides, reason, resized_to

_PYAV = int(av.__version__.split(".")[0])
# A title or comment need not be UTF-8. PyAV below 19 refuses such a file unless told to leave those
# bytes out; from 19 on it escapes them, and has no such option.
_ANY_TITLE: dict[str, Any] = {"metadata_errors": "ignore"} if _PYAV < 19 else {}
_HELD = 64 << 20  # bytes: the packets of a smaller file stay in memory, so that it is read once


@dataclass(frozen=True)
class VideoClips:
    """The clips that were cut from one file."""

    pixels: np.ndarray  # uint8 (n, T, S, S, 3)
    frames: int  # frames found in the stream
    seconds: float  # duration of the stream
    note: str  # what was lost, or ""


@dataclass(frozen=True)
class _Video:
    """What a look at the packets says, before anything is decoded."""

    times: np.ndarray  # presentation time of each frame, rising
    counted: bool  # the container keeps no times (AVI) or lacks some: they are 0, 1, 2 ...
    period: float  # usual distance of two times
    time_unit: float  # seconds
    shows: np.ndarray  # the frame (place in `times`) of each packet, or -1; in decoding order
    kinds: list[packets.Kind]
    notes: list[str]  # what is missing
    path: Path
    # All packets of a small file.
    held: tuple[av.container.InputContainer, list[Packet[av.VideoStream]]] | None


def read_video(
    path: Path,
    *,
    frames: int,
    size: int,
    stride: int,
    clips: int,
    rng: np.random.Generator | None,
    fps: float | None = None,
    crops: int | None = None,
    zoom: float = 1.0,
) -> VideoClips:
    """Clips of `frames` frames, `stride` frame periods apart, cut from the largest video stream.

    With `rng`: `clips` clips, one from each of that many equal parts of the video, at a random time
    and place in it. Without (validation): at most `clips` clips that do not overlap, evenly spaced,
    from the centre. A frame period is 1 / `fps` seconds, or the video's own. Time is measured on
    the clock of the file, so a variable frame rate or missing frames do not bend it. Only what the
    wanted frames need is decoded. With `crops` (a test of several views; `rng` is None): exactly
    `clips` clips from the first to the last possible one, which may overlap, each at `crops` places
    along the long side; a clip's crops follow one another.
    Raises MediaError when no clip can be had.
    """
    video = _scan(path)
    try:
        return _cut(video, frames, size, stride, clips, rng, fps, crops, zoom)
    finally:
        if video.held is not None:
            video.held[0].close()


def _cut(
    video: _Video,
    frames: int,
    size: int,
    stride: int,
    clips: int,
    rng: np.random.Generator | None,
    fps: float | None,
    crops: int | None,
    zoom: float,
) -> VideoClips:
    reasons = "".join(f"; {note}" for note in video.notes)
    if not len(video.times):
        raise MediaError("no frame in the video stream" + reasons)
    period = video.period if fps is None else 1 / (fps * video.time_unit)
    plan = _plan(video.times, video.period, frames, stride * period, clips, rng, crops)
    if not len(plan):
        rate = "" if fps is None else f" of 1/{fps:g} s"
        raise MediaError(
            f"{len(video.times)} frames are too few for {frames} frames at stride {stride}{rate}"
            + reasons
        )
    place = np.full((len(plan), 2), 0.5) if rng is None else rng.random((len(plan), 2))
    if crops is not None:  # the short side has one place, whatever is asked of it
        place = np.repeat(np.tile(_spread(crops), clips)[:, None], 2, axis=1)
    sides = crop_sides(size, zoom, len(plan), rng)
    users: dict[int, list[tuple[int, int]]] = {}
    for clip, row in enumerate(plan):
        for t, index in enumerate(row):
            users.setdefault(int(index), []).append((clip, t))
    pixels = np.empty((len(plan), frames, size, size, 3), np.uint8)
    filled = np.zeros((len(plan), frames), bool)
    everything = np.ones(len(video.shows), bool)
    selected = everything
    if not video.counted:  # else a frame is known only by how many came before it
        selected = packets.to_decode(video.kinds, np.isin(video.shows, list(users)))
    # Should a damaged stream not give all that way, everything is decoded.
    for decode in (selected, everything):
        notes = list(video.notes)
        for index, frame in _decode(video, decode, notes):
            if index in users and not frame.is_corrupt:
                wanted = {sides[clip] for clip, _ in users[index]}
                resized = {side: _picture(frame, side) for side in wanted}
                for clip, t in users[index]:
                    pixels[clip, t] = crop(resized[sides[clip]], size, place[clip])
                    filled[clip, t] = True
        if filled.all() or decode.all():
            break
    complete = filled.all(1)
    if not complete.all():
        notes.append(
            f"{int((~complete).sum())} of {len(plan)} clips have frames that do not decode"
        )
    if not complete.any():
        raise MediaError("no clip decodes: " + "; ".join(notes))
    seconds = float(video.times[-1] - video.times[0] + video.period) * video.time_unit
    return VideoClips(pixels[complete], len(video.times), seconds, "; ".join(notes))


def _open(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        container = av.open(str(path), mode="r", **_ANY_TITLE)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(reason(error, path)) from error
    # A cover picture is a video stream too, and can be the largest. A stream without a codec has
    # nothing to decode: a file cut off before its description ends.
    streams = [
        s
        for s in container.streams.video
        if s.codec_context is not None and not s.disposition & Disposition.attached_pic
    ]
    if not streams:
        container.close()
        raise MediaError("no video stream that can be decoded")
    stream = max(streams, key=lambda s: (s.width * s.height, -s.index))
    # One thread a decoder: files are what is worked on in parallel.
    stream.codec_context.thread_count = 1
    return container, stream


def _scan(path: Path) -> _Video:
    container, stream = _open(path)
    times: list[int | None] = []
    shown: list[bool] = []
    kinds: list[packets.Kind] = []
    notes: list[str] = []
    held: list[Packet[av.VideoStream]] | None = [] if path.stat().st_size <= _HELD else None
    counted = container.format.name == "avi"
    codec = stream.codec_context
    classify = packets.classifier(codec.name, codec.extradata)
    promised = stream.frames
    try:
        for packet in _demux(container, stream):
            times.append(packet.pts)
            # Outside of the edit list, or 'as before' (AVI): no frame of its own.
            shown.append(packet.size > 0 and not packet.is_discard)
            kinds.append(classify(memoryview(packet), packet.is_keyframe))
            if held is not None:
                held.append(packet)
    except (av.FFmpegError, OSError) as error:
        notes.append(f"reading stopped after {len(times)} frames: {reason(error, path)}")
    # A rate or unit that is not known is None, or from PyAV 19 on a ratio with a 0, which is false.
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    unit = float(stream.time_base) if stream.time_base else 1 / rate
    if held is None:
        container.close()
    if promised > len(times):
        notes.append(f"{promised - len(times)} of {promised} frames are missing from the file")
    if counted or None in times:
        counted, unit = True, 1 / rate
        number = np.cumsum(shown) - 1
    else:
        number = np.array(times, np.int64)
    # A time that occurs twice is a frame that is only a reference for others (VP8, VP9).
    unique, place = np.unique(number[np.array(shown, bool)], return_inverse=True)
    shows = np.full(len(times), -1)
    shows[np.array(shown, bool)] = place
    period = float(np.median(np.diff(unique))) if len(unique) > 1 else 1.0
    opened = None if held is None else (container, held)
    return _Video(unique, counted, period, unit, shows, kinds, notes, path, opened)


def _plan(
    times: np.ndarray,
    period: float,
    frames: int,
    step: float,
    clips: int,
    rng: np.random.Generator | None,
    crops: int | None = None,
) -> np.ndarray:
    """Indices of the frames of each clip, (n, T), `step` apart; n = 0 for too short a video."""
    span = (frames - 1) * step
    # Half a period of slack: rounded timestamps must not cost the last clip.
    possible = int(np.searchsorted(times, times[-1] - span + period / 2, side="right"))
    if possible < 1:
        return np.empty((0, frames), np.int64)
    if crops is not None:
        first = np.repeat((_spread(clips) * possible).astype(np.int64), crops)
    elif rng is None:  # each clip in the middle of its own part of the video
        duration = times[-1] - times[0] + period
        clips = max(1, min(clips, int((duration + period / 2) // (span + period))))
        middle = times[0] + (np.arange(clips) + 0.5) * (duration / clips)
        first = np.searchsorted(times, middle - span / 2, side="right") - 1
    else:
        first = ((np.arange(clips) + rng.random(clips)) / clips * possible).astype(np.int64)
    start = times[np.clip(first, 0, possible - 1)]
    wanted = start[:, None] + np.arange(frames) * step
    on_show: np.ndarray = np.searchsorted(times, wanted + period / 2, side="right") - 1
    return on_show


def _spread(count: int) -> np.ndarray:
    """Places in [0, 1): the middle, or from the first to the last."""
    last = np.nextafter(1, 0)
    return np.array([0.5]) if count == 1 else np.linspace(0, last, count)


def _demux(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[Packet[av.VideoStream]]:
    for packet in container.demux(stream):
        if packet.size or packet.dts is not None:  # else the mark of the end
            yield packet


def _decode(
    video: _Video, decode: np.ndarray, notes: list[str]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(place in `video.times`, frame) of the packets to `decode`; damaged packets are noted."""
    if video.held is None:
        container, stream = _open(video.path)
        source = _demux(container, stream)
    else:
        container, source = video.held[0], iter(video.held[1])
        stream = video.held[1][0].stream
        stream.codec_context.flush_buffers()
    position = {int(time): place for place, time in enumerate(video.times)}
    last = int(np.flatnonzero(decode)[-1])
    failed = count = 0
    try:
        for number, packet in enumerate(source):
            if number > last:
                break
            if not decode[number]:
                continue
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                failed += 1
                continue
            for frame in decoded:
                yield (count if video.counted else position.get(frame.pts or 0, -1)), frame
                count += 1
        for frame in stream.codec_context.decode(None):  # what the decoder still holds
            yield (count if video.counted else position.get(frame.pts or 0, -1)), frame
            count += 1
    except (av.FFmpegError, OSError) as error:
        if not notes:  # else the look at the packets has met and noted the same end
            notes.append(f"reading stopped: {reason(error, video.path)}")
    if video.held is None:
        container.close()
    if failed:
        notes.append(f"{failed} damaged packets")


def _picture(frame: av.VideoFrame, size: int) -> np.ndarray:
    """RGB uint8 (H', W', 3), short side `size`, turned as the display matrix says.

    (PyAV leaves the display matrix to the caller.)
    """
    height, width = resized_to(frame.height, frame.width, size)
    if (height, width) != (frame.height, frame.width):
        # To full colour planes first: at once to RGB, swscale would halve the colour resolution.
        frame_small = frame.reformat(
            width=width, height=height, format="yuv444p", interpolation="AREA", threads=1
        )
        rgb = frame_small.to_ndarray(format="rgb24")
    else:
        rgb = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
