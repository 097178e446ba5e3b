"""Reading video: files -> uint8 clips of frames of one size.

What can be used is used, what was lost is said: a damaged file gives the clips whose frames all
decode and a `note`; one that gives nothing raises MediaError.

Shapes: n clips, T frames, S = side of the square crop in px.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.stream import Disposition

from scaling.data import packets
from scaling.data.media import MediaError, crop, crop_sides, reason, resize_short
from scaling.data.picture import odd_angle, picture
from scaling.data.timeline import Timeline, of_packets, spread

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
class Part:
    """Frames of a file that holds several recordings, one after another."""

    start: float  # seconds
    frames: int
    fps: float


@dataclass(frozen=True)
class _Video:
    """What a look at the packets says, before anything is decoded."""

    timeline: Timeline
    unit: float  # seconds of one step of its times
    kinds: list[packets.Kind]
    notes: list[str]  # what is missing
    path: Path
    # All packets of a small file.
    held: tuple[av.container.InputContainer, list[Packet[av.VideoStream]]] | None
    decoded: bool = False  # the timeline is that of the decoder's output


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
    part: Part | None = None,
) -> VideoClips:
    """Clips of `frames` frames, `stride` frame periods apart, cut from the largest video stream.

    With `rng`: `clips` clips, one from each of that many equal parts of the video, at a random time
    and place in it. Without (validation): at most `clips` clips that do not overlap, evenly spaced,
    from the centre. A frame period is 1 / `fps` seconds, or the video's own. Time is measured on
    the clock of the file, so a variable frame rate or missing frames do not bend it; where that
    clock starts again, streams were joined, and no clip goes across. Only what the wanted frames
    need is decoded. With `crops` (a test of several views; `rng` is None): exactly
    `clips` clips from the first to the last possible one, which may overlap, each at `crops` places
    along the long side; a clip's crops follow one another. The video is
    all of the file or that `part` of it.
    Raises MediaError when no clip can be had.
    """
    video = _scan(path)
    try:
        piece = slice(0, None) if part is None else _piece(video, part)
        return _cut(video, frames, size, stride, clips, rng, fps, crops, zoom, piece)
    finally:
        if video.held is not None:
            video.held[0].close()


def read_numbered(
    path: Path, numbers: Collection[int], make: Callable[[np.ndarray], np.ndarray]
) -> tuple[dict[int, np.ndarray], str]:
    """Frames of a video by their numbers, 0 the first that is shown, as `make` makes them of the
    whole upright picture, uint8 (H, W, 3); and a note on what was lost.

    What the video does not have, or does not decode, is not among them. Raises MediaError when
    nothing can be read.
    """
    video = _scan(path)
    try:
        timeline, everything = video.timeline, np.ones(len(video.timeline.shows), bool)
        selected, by_order = everything, not timeline.order_known
        if not by_order:  # else a frame is known only by how many came before it
            wanted = np.isin(timeline.shows, list(numbers))
            if not wanted.any():
                return {}, "; ".join(video.notes)
            selected = packets.to_decode(video.kinds, wanted)
        found: dict[int, np.ndarray] = {}
        for decode in (selected, everything):
            notes, came = list(video.notes), list[int]()
            found = {}
            for packet, frame in _decode(video, decode, notes):
                number = len(came) if by_order else int(timeline.shows[packet])
                came.append(packet)
                if number in numbers and not frame.is_corrupt:
                    found[number] = make(picture(frame, min(frame.height, frame.width)))
            if not by_order and _disproved(timeline, came):
                by_order = True  # and everything is decoded, to count what comes
            elif decode.all() or len(found) == len(set(numbers) & set(timeline.shows.tolist())):
                break
        return found, "; ".join(notes)
    finally:
        if video.held is not None:
            video.held[0].close()


def read_pictures(
    pictures: Sequence[Callable[[], np.ndarray]],
    rate: float,
    *,
    frames: int,
    size: int,
    stride: int,
    clips: int,
    rng: np.random.Generator | None,
    fps: float | None = None,
    zoom: float = 1.0,
) -> VideoClips:
    """The clips that `read_video` would cut, of pictures uint8 (H, W, 3) at `rate` a second."""
    count = len(pictures)
    timeline = Timeline(
        np.arange(count), np.zeros(count, np.int64), 1.0, np.arange(count), order_known=True
    )
    video = _Video(timeline, 1 / rate, [], [], Path(), None)
    plan = _plan(video, frames, stride, clips, rng, fps, None, slice(0, None))
    place = np.full((len(plan), 2), 0.5) if rng is None else rng.random((len(plan), 2))
    sides = crop_sides(size, zoom, len(plan), rng)
    pixels = np.empty((len(plan), frames, size, size, 3), np.uint8)
    for index in np.unique(plan):
        rgb = pictures[index]()
        for clip, t in np.argwhere(plan == index):
            pixels[clip, t] = crop(resize_short(rgb, sides[clip]), size, place[clip])
    return VideoClips(pixels, count, count / rate, "")


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
    piece: slice,
) -> VideoClips:
    before = copy.deepcopy(rng)  # to plan once more, should the decoder give other frames
    plan = _plan(video, frames, stride, clips, rng, fps, crops, piece)
    place = np.full((len(plan), 2), 0.5) if rng is None else rng.random((len(plan), 2))
    if crops is not None:  # the short side has one place, whatever is asked of it
        place = np.repeat(np.tile(spread(crops), clips)[:, None], 2, axis=1)
    sides = crop_sides(size, zoom, len(plan), rng)
    users: dict[int, list[tuple[int, int]]] = {}
    for clip, row in enumerate(plan):
        for t, index in enumerate(row):
            users.setdefault(int(index), []).append((clip, t))
    pixels = np.empty((len(plan), frames, size, size, 3), np.uint8)
    filled = np.zeros((len(plan), frames), bool)
    timeline = video.timeline
    everything = np.ones(len(timeline.shows), bool)
    selected = everything
    if timeline.order_known:  # else a frame is known only by how many came before it
        selected = packets.to_decode(video.kinds, np.isin(timeline.shows, list(users)))
    # Should a damaged stream not give all that way, everything is decoded.
    for decode in (selected, everything):
        notes = list(video.notes)
        came: list[int] = []
        for packet, frame in _decode(video, decode, notes):
            index = int(timeline.shows[packet]) if timeline.order_known else len(came)
            came.append(packet)
            if index in users and not frame.is_corrupt:
                if not filled.any() and (angle := odd_angle(frame)):
                    notes.append(angle)
                wanted = {sides[clip] for clip, _ in users[index]}
                resized = {side: picture(frame, side) for side in wanted}
                for clip, t in users[index]:
                    pixels[clip, t] = crop(resized[sides[clip]], size, place[clip])
                    filled[clip, t] = True
        if not video.decoded and _disproved(timeline, came):
            output = timeline.of_output(_all_output(video, came, decode))
            heard = replace(video, timeline=output, decoded=True)
            return _cut(heard, frames, size, stride, clips, before, fps, crops, zoom, piece)
        if filled.all() or decode.all():
            break
    complete = filled.all(1)
    if not complete.all():
        notes.append(
            f"{int((~complete).sum())} of {len(plan)} clips have frames that do not decode"
        )
    if not complete.any():
        raise MediaError("no clip decodes: " + "; ".join(notes))
    shown = timeline.piece(piece)
    seconds = shown.seconds_in_units * video.unit
    return VideoClips(pixels[complete], len(shown.times), seconds, "; ".join(notes))


def _plan(
    video: _Video,
    frames: int,
    stride: int,
    clips: int,
    rng: np.random.Generator | None,
    fps: float | None,
    crops: int | None,
    piece: slice,
) -> np.ndarray:
    """The frames of each clip, (n, T). Raises MediaError when the video is too short for one."""
    timeline, reasons = video.timeline.piece(piece), "".join(f"; {n}" for n in video.notes)
    if not len(timeline.times):
        raise MediaError("no frame in the video stream" + reasons)
    period = timeline.period if fps is None else 1 / (fps * video.unit)
    plan = timeline.clips(frames, stride * period, clips, rng, crops)
    if not len(plan):
        rate = "" if fps is None else f" of 1/{fps:g} s"
        joins = int(timeline.stretch[-1])
        joined = f" in {joins + 1} joined pieces" if joins else ""
        raise MediaError(
            f"{len(timeline.times)} frames{joined} are too few for {frames} frames at stride "
            f"{stride}{rate}" + reasons
        )
    placed: np.ndarray = plan + piece.start
    return placed


def _piece(video: _Video, part: Part) -> slice:
    """The frames of a part of the file, by their times."""
    if video.timeline.stretch.any():
        raise MediaError("its time starts again, so that the parts cannot be told apart")
    seconds = video.timeline.times * video.unit
    ends = part.start + (np.array([0, part.frames]) - 0.5) / part.fps  # between two frames
    first, end = np.searchsorted(seconds, ends)
    if end - first != part.frames:
        video.notes.append(f"{end - first} of its {part.frames} frames are in the file")
    return slice(int(first), int(end))


def _disproved(timeline: Timeline, came: list[int]) -> bool:
    """Whether the decoder gave other frames, or in another order, than the packets promised."""
    if timeline.order_known:
        return bool((np.diff(timeline.shows[came]) <= 0).any())
    return len(came) != len(timeline.times)


def _all_output(video: _Video, came: list[int], decode: np.ndarray) -> list[int]:
    """The packets whose frames come out when everything is decoded, in that order."""
    if decode.all():
        return came
    return [packet for packet, _ in _decode(video, np.ones(len(decode), bool), [])]


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
    pts: list[int | None] = []
    dts: list[int | None] = []
    shown: list[bool] = []
    kinds: list[packets.Kind] = []
    notes: list[str] = []
    held: list[Packet[av.VideoStream]] | None = [] if path.stat().st_size <= _HELD else None
    codec = stream.codec_context
    classify = packets.classifier(codec.name, codec.extradata)
    promised = stream.frames
    try:
        for packet in _demux(container, stream):
            content = memoryview(packet)
            pts.append(packet.pts)
            dts.append(packet.dts)
            # Outside of the edit list, 'as before' (AVI), or hidden: no frame of its own.
            shown.append(
                packet.size > 0
                and not packet.is_discard
                and not packets.hidden(codec.name, content)
            )
            kinds.append(classify(content, packet.is_keyframe))
            if held is not None:
                held.append(packet)
    except (av.FFmpegError, OSError) as error:
        notes.append(f"reading stopped after {len(pts)} frames: {reason(error, path)}")
    # A rate or unit that is not known is None, or from PyAV 19 on a ratio with a 0, which is false.
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    unit = float(stream.time_base) if stream.time_base else 1 / rate
    if held is None:
        container.close()
    if container.format.name == "avi":  # keeps the number of each frame, and no times
        pts = dts
        there = 1 + max((time for time in dts if time is not None), default=-1)  # with repeats
    else:
        there = len(pts)
    if promised > there:
        notes.append(f"{promised - there} of {promised} frames are missing from the file")
    if all(time is None for time in pts):
        unit = 1 / rate
    timeline = of_packets(
        pts,
        dts,
        shown,
        reorders=packets.reorders(codec.name, bool(codec.has_b_frames), kinds),
        unit=unit,
    )
    opened = None if held is None else (container, held)
    return _Video(timeline, unit, kinds, notes, path, opened)


def _demux(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[Packet[av.VideoStream]]:
    for packet in container.demux(stream):
        if packet.size or packet.dts is not None:  # else the mark of the end
            yield packet


def _decode(
    video: _Video, decode: np.ndarray, notes: list[str]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number of its packet, frame) of the packets to `decode`, in the order in which they show.

    Damaged packets are noted. A packet's time is replaced by its number, which the decoder hands on
    to the frame: two frames can have one time.
    """
    if video.held is None:
        container, stream = _open(video.path)
        source = _demux(container, stream)
    else:
        container, source = video.held[0], iter(video.held[1])
        stream = video.held[1][0].stream
        stream.codec_context.flush_buffers()
    last = int(np.flatnonzero(decode)[-1])
    failed = 0
    try:
        for number, packet in enumerate(source):
            if number > last:
                break
            if not decode[number]:
                continue
            packet.pts = number
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                failed += int(video.timeline.shows[number] >= 0)
                continue
            for frame in decoded:
                yield frame.pts if frame.pts is not None else number, frame
        for frame in stream.codec_context.decode(None):  # what the decoder still holds
            yield frame.pts if frame.pts is not None else last, frame
    except (av.FFmpegError, OSError) as error:
        if not notes:  # else the look at the packets has met and noted the same end
            notes.append(f"reading stopped: {reason(error, video.path)}")
    if video.held is None:
        container.close()
    if failed:
        notes.append(f"{failed} damaged packets")
