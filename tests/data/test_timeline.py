"""Times that lie: joined streams, decoding times, coarse clocks; and pictures that lie on a side.

The reference is the decoder's output order, and ffmpeg's command line where that is installed.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from scaling.data import packets, timeline
from scaling.data.video import read_video
from tests.data import against_ffmpeg
from tests.data.clips import indices, level, matrix_mp4, write_video


def greys(first: int, count: int) -> np.ndarray:
    pixels = np.empty((count, 36, 48, 3), np.uint8)
    pixels[:] = np.array([level(i) for i in range(first, first + count)])[:, None, None, None]
    return pixels


def remux(source: Path, target: Path, tick: int) -> Path:
    """The same packets with times that rise in decoding order, `tick` of them in each 25th of a
    second and none between."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets_there = [packet for packet in old.demux(video=0) if packet.size]
        for number, packet in enumerate(packets_there):
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = number // tick
            packet.stream = stream
            new.mux(packet)
    return target


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
def test_joined_streams_keep_every_frame_and_no_clip_crosses(
    tmp_path: Path, name: str, codec: str
) -> None:
    pieces = [greys(0, 14), greys(14, 8), greys(22, 17)]
    paths = [
        write_video(tmp_path / f"{i}{name}", piece, codec=codec) for i, piece in enumerate(pieces)
    ]
    joined = tmp_path / name
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    whole, note = against_ffmpeg.every_frame(joined, 16)
    assert indices(whole[:, None]).ravel().tolist() == list(range(39)) and note == ""
    rng = np.random.default_rng(0)
    clips = read_video(joined, frames=4, size=16, stride=2, clips=40, rng=rng)
    spaced = read_video(joined, frames=4, size=16, stride=2, clips=9, rng=None)
    assert clips.frames == spaced.frames == 39 and abs(clips.seconds - 39 / 25) < 1e-6
    for found in (indices(clips.pixels), indices(spaced.pixels)):
        assert (np.diff(found, axis=1) == 2).all()
        piece = np.digitize(found, [14, 22])
        assert (piece == piece[:, :1]).all() and set(piece[:, 0]) == {0, 1, 2}
    starts = sorted(indices(spaced.pixels)[:, 0])
    assert len(starts) == 5 and all(b - a >= 7 for a, b in pairwise(starts))
    assert read_video(joined, frames=9, size=16, stride=1, clips=9, rng=None).frames == 39
    with pytest.raises(ValueError, match="39 frames in 3 joined pieces are too few for 18 frames"):
        read_video(joined, frames=18, size=16, stride=1, clips=1, rng=None)


def test_times_in_decoding_order_do_not_shuffle_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", greys(0, 30), codec="libx264", options={"bf": "3"})
    wrong = remux(path, tmp_path / "b.mkv", 1)
    with av.open(str(wrong)) as container:
        held = [packet.pts for packet in container.demux(video=0) if packet.size]
    times = [pts for pts in held if pts is not None]
    assert times == sorted(times)
    found, note = against_ffmpeg.every_frame(wrong, 16)
    assert indices(found[:, None]).ravel().tolist() == list(range(30)) and note == ""


def test_frames_that_share_a_tick_are_all_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", greys(0, 24), codec="libx264", options={"bf": "0"})
    coarse = remux(path, tmp_path / "b.mkv", 2)
    found, note = against_ffmpeg.every_frame(coarse, 16)
    assert indices(found[:, None]).ravel().tolist() == list(range(24)) and note == ""
    clips = read_video(coarse, frames=4, size=16, stride=2, clips=9, rng=np.random.default_rng(0))
    assert (np.diff(indices(clips.pixels), axis=1) == 2).all()


def test_repeats_in_an_avi_are_time_and_no_loss(tmp_path: Path) -> None:
    """Every third frame was not stored: the one before is shown on."""
    kept = [i for i in range(30) if i % 3 != 2]
    pixels = greys(0, 30)[kept]
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
        for time, picture in zip(kept, pixels, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_video(path, frames=3, size=16, stride=3, clips=1, rng=None)
    assert found.note == "" and found.frames == 20
    assert (np.diff(indices(found.pixels)) == 3).all()


MATRICES = [
    *((a, 0, 0, d) for a in (1, -1) for d in (1, -1)),
    *((0, b, c, 0) for b in (1, -1) for c in (1, -1)),
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_whole_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """A coded place (x, y) is shown at (a x + c y, b x + d y), as players do."""
    coded = np.zeros((64, 64, 3), np.uint8)
    coded[:24, :12] = (255, 255, 255)  # no turn or mirror leaves it where it is
    path = write_video(tmp_path / "a.mp4", np.repeat(coded[None], 3, 0))
    matrix_mp4(path, matrix)
    a, b, c, d = matrix
    y, x = np.nonzero(coded[..., 0])
    centred = np.stack([2 * x - 63, 2 * y - 63])
    shown = np.array([[a, c], [b, d]]) @ centred
    expected = np.zeros((64, 64), bool)
    expected[(shown[1] + 63) // 2, (shown[0] + 63) // 2] = True
    got = read_video(path, frames=1, size=64, stride=1, clips=1, rng=None).pixels[0, 0, ..., 1]
    assert ((got > 128) == expected).mean() > 0.98


def test_an_odd_angle_is_told(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(0, 3))
    matrix_mp4(path, (0.866, 0.5, -0.5, 0.866))
    note = read_video(path, frames=1, size=16, stride=1, clips=1, rng=None).note
    assert note == "turned by 30 degrees in its description, and here to the nearest quarter"


def test_the_mark_of_interlaced_video_changes_no_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = np.repeat(np.repeat(rng.integers(0, 256, (4, 8, 8, 3)), 8, 1), 8, 2).astype(np.uint8)
    lossless = {"crf": "0", "bf": "0"}
    found = []
    for name, interlaced in (("a.mkv", 0), ("b.mkv", 1)):
        options = lossless | {"x264-params": f"interlaced={interlaced}"}
        path = write_video(tmp_path / name, noise, codec="libx264", options=options)
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).interlaced_frame == interlaced
        found.append([against_ffmpeg.every_frame(path, size)[0] for size in (64, 24)])
    for plain, marked in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, marked)


def test_hidden_frames_and_reordering() -> None:
    """Headers as RFC 6386 (VP8: show_frame is bit 4) and the VP9 bitstream (6.2) have them."""
    assert packets.hidden("vp8", memoryview(b"\x00")) and not packets.hidden(
        "vp8", memoryview(b"\x10")
    )
    assert packets.hidden("vp9", memoryview(b"\x84\x00"))
    assert not packets.hidden("vp9", memoryview(b"\x86\x00"))
    assert not packets.hidden("vp9", memoryview(b"\x84\xc1"))  # a superframe
    assert packets.hidden("theora", memoryview(b"\x80")) and not packets.hidden(
        "h264", memoryview(b"")
    )
    needed, b_picture = packets.Kind.NEEDED, packets.Kind.DISPOSABLE
    assert not packets.reorders("mpeg2video", True, [needed])
    assert packets.reorders("mpeg2video", True, [needed, b_picture])
    assert packets.reorders("hevc", True, [needed]) and not packets.reorders("av1", True, [needed])


@pytest.mark.parametrize(
    ("dts", "stretches"),
    [
        (range(0, 300, 10), 1),
        ([*range(0, 100, 10), *range(0, 100, 10)], 2),
        ([*range(0, 100, 10), *range(5000, 5100, 10)], 2),  # ten seconds on
        ([0, 10, 20, 30, 40, 10, 50, 60, 70, 80], 1),  # a slip of the muxer
        ([0, 10, 20, 400, 410, 420], 1),  # a long still picture
    ],
)
def test_where_streams_were_joined(dts: list[int], stretches: int) -> None:
    shown = [True] * len(dts)
    found = timeline.of_packets(dts, dts, shown, reorders=False, unit=1 / 250)
    assert found.stretch[-1] + 1 == stretches


CASES = {
    "a.ts": 25, "b.ts": 25, "cat.ts": 50, "cat2.ts": 75, "cat3.ts": 100, "vcat.mpg": 50,
    "nopts.mp4": 23, "m_hflip.mp4": 25, "m_vflip.mp4": 25, "m_transpose.mp4": 25, "m_rot90.mp4": 25,
    "inter.mp4": 25,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, shared_data: Path) -> None:
    """Pictures of other makers: as many frames as players show, as the decoder gives them."""
    path = shared_data.parent / "cases" / "media" / name
    found, note = against_ffmpeg.every_frame(path, 96)
    assert (len(found), note) == (CASES[name], "")
    turns: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "m_hflip.mp4": lambda f: f[:, ::-1],
        "m_vflip.mp4": lambda f: f[::-1],
        "m_transpose.mp4": lambda f: f.transpose(1, 0, 2),
        "m_rot90.mp4": lambda f: np.rot90(f, -1),
    }
    with av.open(str(path)) as container:
        for mine, frame in zip(found, container.decode(video=0), strict=True):
            if not frame.interlaced_frame:
                shown = frame.to_ndarray(format="rgb24")
                shown = turns[name](shown) if name in turns else shown
                y, x = ((side - 96) // 2 for side in shown.shape[:2])
                np.testing.assert_array_equal(mine, shown[y : y + 96, x : x + 96])


@pytest.mark.skipif(against_ffmpeg.ffmpeg() is None, reason="no ffmpeg, no package imageio-ffmpeg")
def test_a_sample_equals_the_ffmpeg_command_line(tmp_path: Path) -> None:
    """All of it: python -m tests.data.against_ffmpeg."""
    found = against_ffmpeg.campaign(12, tmp_path)
    assert len(found) == 12
    assert [one for one in found if one.verdict == "silent"] == []
    assert sum(one.verdict == "equal" for one in found) >= 8
