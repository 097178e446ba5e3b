"""What is left out of decoding must not change a pixel of what is kept."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from scaling.data import leaves, media, packets, video
from scaling.data.packets import Kind, to_decode
from tests.data.clips import write_video


def moving(frames: int) -> np.ndarray:
    """Real motion, so that predicted frames depend on what they refer to."""
    (clip,) = leaves.clips(3, 0, 1, frames=frames, size=64)
    return np.asarray(clip)


@pytest.mark.parametrize(
    ("name", "codec", "options", "share"),
    [
        ("a.mp4", "libx264", {"bf": "3", "g": "20"}, 0.7),
        ("a.mp4", "libx264", {"bf": "2", "g": "12", "x264-params": "open-gop=1"}, 0.9),
        ("a.mp4", "libx264", {"bf": "0", "g": "60"}, 1.0),
        ("a.ts", "libx264", {"bf": "3", "g": "20"}, 0.7),  # start codes, not lengths
        ("a.ts", "mpeg2video", {"bf": "2", "g": "15"}, 0.9),
        ("a.mkv", "mpeg4", {"bf": "2", "g": "15"}, 0.9),
        ("a.webm", "libvpx", {"g": "10"}, 1.0),
        ("a.webm", "libvpx-vp9", {"g": "10"}, 1.0),
        ("a.avi", "mpeg4", {}, 1.0),
        ("a.mkv", "ffv1", {}, 1.0),
    ],
)
def test_selected_frames_are_identical(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], share: float
) -> None:
    path = write_video(tmp_path / name, moving(60), codec=codec, options=options)
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    scan = video._scan(path)
    timeline = scan.timeline
    assert len(every) == len(timeline.times) == 60
    rng = np.random.default_rng(0)
    fractions = []
    for wanted in [np.arange(0, 60, 4), np.arange(3, 60, 7), *rng.integers(0, 60, (6, 3))]:
        chosen = np.ones(len(timeline.shows), bool)
        if timeline.order_known:
            chosen = to_decode(scan.kinds, np.isin(timeline.shows, wanted))
        fractions.append(chosen.mean())
        found = {
            int(timeline.shows[packet]): frame.to_ndarray(format="rgb24")
            for packet, frame in video._decode(scan, chosen, [])
        }
        for index in wanted:
            np.testing.assert_array_equal(found[index], every[index])
    assert min(fractions) <= share


def test_to_decode() -> None:
    """Two groups, decoded I P b b P b | I P b; the fifth and the last frame are wanted."""
    n, b, i = Kind.NEEDED, Kind.DISPOSABLE, Kind.RESTART
    kinds = [i, n, b, b, n, b, i, n, b]
    wanted = np.zeros(9, bool)
    wanted[3] = True
    assert to_decode(kinds, wanted).tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0]
    wanted[8] = True
    assert to_decode(kinds, wanted).tolist() == [1, 1, 0, 1, 0, 0, 1, 1, 1]


def test_h264_headers() -> None:
    classify = packets.classifier("h264", b"\1\0\0\0\xff")  # lengths of 4 bytes
    plain = packets.classifier("h264", None)

    def nal(header: int) -> bytes:
        return bytes([header, 7, 7])

    for headers, kind in [
        ([0x67, 0x68, 0x65], Kind.RESTART),  # parameter sets and an IDR slice
        ([0x41, 0x41], Kind.NEEDED),
        ([0x06, 0x01, 0x01], Kind.DISPOSABLE),  # SEI and two slices that nothing refers to
        ([0x01, 0x41], Kind.NEEDED),  # two fields, one of them a reference
        ([0x06], Kind.NEEDED),  # no slice: not known
    ]:
        lengths = b"".join(b"\0\0\0\3" + nal(header) for header in headers)
        codes = b"".join(b"\0\0\0\1" + nal(header) for header in headers)
        assert classify(memoryview(lengths), False) is kind
        assert plain(memoryview(codes), False) is kind


def test_large_files_are_read_twice_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", moving(30), codec="libx264")
    arguments: dict[str, Any] = {"frames": 3, "size": 32, "stride": 2, "clips": 4}
    held = video.read_video(path, rng=np.random.default_rng(0), **arguments)
    monkeypatch.setattr(video, "_HELD", 0)
    again = video.read_video(path, rng=np.random.default_rng(0), **arguments)
    np.testing.assert_array_equal(held.pixels, again.pixels)


def test_fps_is_a_clock(tmp_path: Path) -> None:
    """25 frames a second sampled at 5 a second: every fifth frame."""
    from tests.data.clips import indices

    path = write_video(tmp_path / "a.mp4", 40, codec="libx264")
    clip = video.read_video(path, frames=4, size=16, stride=1, clips=1, rng=None, fps=5)
    assert np.diff(indices(clip.pixels)).tolist() == [[5, 5, 5]]
    slow = video.read_video(path, frames=2, size=16, stride=2, clips=1, rng=None, fps=4)
    assert np.diff(indices(slow.pixels)).tolist() in ([[12]], [[13]])
    with pytest.raises(media.MediaError, match=r"too few for 4 frames at stride 1 of 1/1 s"):
        video.read_video(path, frames=4, size=16, stride=1, clips=1, rng=None, fps=1)
