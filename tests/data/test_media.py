"""Reading media: which frames, which pixels, and what is said about bad files."""

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from scaling.data import media, video
from scaling.data.media import (
    MediaError,
    fingerprint,
    list_files,
    read_image,
    resize_short,
)
from scaling.data.video import VideoClips, read_video
from tests.data.clips import indices, level, rotate_mp4, write_video


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def read(
    path: Path,
    frames: int = 4,
    size: int = 16,
    stride: int = 2,
    clips: int = 3,
    rng: np.random.Generator | None = None,
) -> VideoClips:
    return read_video(path, frames=frames, size=size, stride=stride, clips=clips, rng=rng)


# -- which frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),  # B-frames: decoding order is not presentation order
        ("a.mp4", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx-vp9"),
        ("a.webm", "libvpx"),
        ("a.ts", "mpeg2video"),
        ("a.mov", "mjpeg"),
    ],
)
def test_frames_are_chosen_by_stride(tmp_path: Path, name: str, codec: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, 40, codec=codec, pix_fmt=pix_fmt)
    found = read(path, stride=3, clips=8)
    assert (found.frames, found.note) == (40, "")
    index = indices(found.pixels)
    assert (np.diff(index, axis=1) == 3).all()
    assert (np.diff(index[:, 0]) >= 10).all()  # validation clips do not overlap
    many = indices(read(path, stride=3, clips=30, rng=rng()).pixels)
    assert len(many) == 30 and (np.diff(many, axis=1) == 3).all()
    assert many[0, 0] <= 1 and many[-1, -1] >= 37  # the whole video is used


def test_training_clips_depend_on_the_generator_only(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 30, size=(64, 36))
    a, b, c = (read(path, rng=rng(seed)).pixels for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_variable_frame_rate_is_sampled_by_time(tmp_path: Path) -> None:
    """Frames at 0, 40, 80 ... ms, but numbers 10 to 14 were never recorded: time must not bend."""
    recorded = [i for i in range(30) if not 10 <= i < 15]
    pixels = np.empty((25, 36, 48, 3), np.uint8)
    pixels[:] = np.array([level(i) for i in recorded])[:, None, None, None]
    times = [40 * i for i in recorded]
    path = write_video(tmp_path / "a.mkv", pixels, times=times, codec="mpeg4")
    index = indices(read(path, frames=3, stride=2, clips=200, rng=rng()).pixels)
    true_start = index[:, 0]
    for offset in (1, 2):
        wanted = true_start + 2 * offset
        shown = np.where((wanted >= 10) & (wanted < 15), 9, wanted)  # the frame on show then
        usual = ~((true_start == 9) & (shown == 9)) & (true_start != 9)
        np.testing.assert_array_equal(index[usual, offset], shown[usual])


def test_one_frame_and_too_few_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", 1)
    assert read(path, frames=1).pixels.shape == (1, 1, 16, 16, 3)
    with pytest.raises(MediaError, match="1 frames are too few for 4 frames at stride 2"):
        read(path)
    exact = write_video(tmp_path / "exact.mp4", 7)
    assert indices(read(exact).pixels).tolist() == [[0, 2, 4, 6]]


# -- which pixels ----------------------------------------------------------------------------------


def picture(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards; the top left corner is blue."""
    out = np.zeros((height, width, 3), np.uint8)
    out[..., 0] = np.linspace(0, 255, width)
    out[..., 1] = np.linspace(0, 255, height)[:, None]
    out[: height // 4, : width // 4, 2] = 255
    return out


def test_short_side_is_resized_and_the_centre_is_cut(tmp_path: Path) -> None:
    frames = np.repeat(picture(48, 96)[None], 5, axis=0)
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    same = read(path, frames=2, stride=1, size=48, clips=1).pixels[0, 0]
    np.testing.assert_array_equal(same, frames[0][:, 24:72])
    half = read(path, frames=2, stride=1, size=24, clips=1).pixels[0, 0]
    average = frames[0].reshape(24, 2, 48, 2, 3).mean((1, 3))[:, 12:36]
    assert np.abs(half - average).mean() < 1.5  # the way through YUV rounds


def test_resizing_is_the_area_average() -> None:
    rgb = rng().integers(0, 256, (60, 96, 3)).astype(np.uint8)
    average = rgb.reshape(20, 3, 32, 3, 3).mean((1, 3))
    assert np.abs(resize_short(rgb, 20) - average).max() <= 1


@pytest.mark.parametrize(("turns", "corner"), [(0, "tl"), (1, "tr"), (2, "br"), (3, "bl")])
def test_rotation_metadata_is_honoured(tmp_path: Path, turns: int, corner: str) -> None:
    """A clockwise quarter turn brings the blue corner from top left to top right."""
    path = write_video(tmp_path / "a.mp4", np.repeat(picture(64, 64)[None], 4, axis=0))
    rotate_mp4(path, turns)
    got = read(path, frames=1, size=32, clips=1).pixels[0, 0, :, :, 2].astype(int)
    quadrant = {"tl": got[:8, :8], "tr": got[:8, -8:], "br": got[-8:, -8:], "bl": got[-8:, :8]}
    means = {name: part.mean() for name, part in quadrant.items()}
    assert max(means, key=lambda name: means[name]) == corner
    assert means[corner] > 150


def test_the_largest_video_stream_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 6, size=(32, 32), sizes=[(96, 64), (48, 48)])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 3
    assert video._open(path)[1].width == 96


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        cover = container.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 640
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for stream, count in ((video, 6), (cover, 1)):
            for i in range(count):
                grey = np.full((stream.height, stream.width, 3), 99, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey)
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert max(s.width for s in container.streams.video) == 640
    assert read(path, stride=1).frames == 6


@pytest.mark.parametrize(
    ("size", "codec", "pix_fmt"),
    [
        ((53, 37), "ffv1", "yuv444p"),
        ((54, 36), "libx264", "yuv420p10le"),
        ((54, 36), "ffv1", "gray"),
        ((54, 36), "ffv1", "bgra"),
    ],
)
def test_odd_sizes_and_pixel_formats(
    tmp_path: Path, size: tuple[int, int], codec: str, pix_fmt: str
) -> None:
    path = write_video(tmp_path / "a.mkv", 8, size=size, codec=codec, pix_fmt=pix_fmt)
    found = read(path, stride=1)
    assert indices(found.pixels)[0].tolist() == [0, 1, 2, 3] and found.note == ""


def test_resize_never_falls_below_the_crop() -> None:
    for height in range(20, 60):
        out = resize_short(np.zeros((height, 47, 3), np.uint8), 24)
        assert min(out.shape[:2]) == 24


# -- bad files -------------------------------------------------------------------------------------


def test_text_empty_and_pictureless_files(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4"):
        with pytest.raises(MediaError) as caught:
            read(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MediaError, match="No such file"):
        read(tmp_path / "none.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.webm"])
def test_a_truncated_video_gives_its_usable_frames_and_says_so(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "libvpx", "a.ts": "mpeg2video"}.get(name, "mpeg4")
    noise = rng().integers(0, 256, (40, 36, 48, 3)).astype(np.uint8) // 2
    noise += np.array([4 * i for i in range(40)], np.uint8)[:, None, None, None]
    muxer = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = write_video(tmp_path / name, noise, codec=codec, muxer=muxer)
    whole = read(path, clips=20, rng=rng())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    cut = read(path, clips=20, rng=rng())
    assert 10 < cut.frames < whole.frames == 40
    assert 1 <= len(cut.pixels) <= 20
    if name in ("a.mp4", "a.avi"):  # these promise a number of frames
        assert "of 40 frames are missing" in cut.note


def test_a_video_that_ends_before_its_index_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 40)
    path.write_bytes(path.read_bytes()[:2000])  # the index of an mp4 is at its end
    with pytest.raises(MediaError):
        read(path)


def test_a_title_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
        container.metadata["title"] = stream.metadata["title"] = "caf@"
        for i in range(8):
            grey = np.full((36, 48, 3), level(i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.count(b"caf@") == 2
    path.write_bytes(content.replace(b"caf@", "café".encode("latin-1")))
    found = read(path, stride=1)
    assert found.note == "" and indices(found.pixels).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_damage_in_the_middle_costs_only_what_it_hits(tmp_path: Path) -> None:
    noise = rng().integers(0, 256, (60, 36, 48, 3)).astype(np.uint8)
    path = write_video(tmp_path / "a.mov", noise, codec="png", pix_fmt="rgb24")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    found = read(path, frames=2, stride=1, clips=60, rng=rng())
    assert 50 <= len(found.pixels) < 60
    assert "clips have frames that do not decode" in found.note


# -- images ----------------------------------------------------------------------------------------


def one(path: Path, size: int = 8) -> np.ndarray:
    (pixels,) = read_image(path, size=size, crops=1, rng=None)
    return np.asarray(pixels)


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(picture(32, 32))
    upright = resize_short(picture(32, 32), 8)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image.rotate(90).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(one(tmp_path / "a.png"), upright)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_modes_become_rgb(
    tmp_path: Path, mode: str, colour: Any, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (20, 20), colour).save(path)
    assert (one(path) == expected).all()


def test_palette_transparency_cmyk_and_float(tmp_path: Path) -> None:
    Image.new("P", (20, 20), 0).save(tmp_path / "a.png", transparency=0)
    assert (one(tmp_path / "a.png") == 255).all()
    Image.new("CMYK", (20, 20), (0, 0, 0, 0)).save(tmp_path / "b.jpg")
    assert (one(tmp_path / "b.jpg") == 255).all()
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "c.tif")
    assert (one(tmp_path / "c.tif") == 128).all()


def test_crops_are_random_in_training_and_central_in_validation(tmp_path: Path) -> None:
    Image.fromarray(picture(32, 64)).save(tmp_path / "a.png")
    crops = read_image(tmp_path / "a.png", size=32, crops=6, rng=rng())
    assert crops.shape == (6, 32, 32, 3)
    assert len({crop.tobytes() for crop in crops}) > 3
    np.testing.assert_array_equal(one(tmp_path / "a.png", 32), picture(32, 64)[:, 16:48])


def test_random_crops_are_cut_at_several_sizes(tmp_path: Path) -> None:
    """Of a ramp from black to white, a crop at z times the size of the whole shows 1 / z of it."""
    ramp = np.repeat(np.linspace(0, 255, 192).astype(np.uint8)[None, :, None], 192, 0)
    Image.fromarray(np.repeat(ramp, 3, 2)).save(tmp_path / "a.png")
    path = write_video(tmp_path / "a.mp4", np.repeat(np.repeat(ramp, 3, 2)[None], 40, 0))
    settings: dict[str, Any] = {"frames": 2, "size": 16, "stride": 1, "clips": 39}
    for zoom, low, high in ((1.0, 0.95, 1.1), (3.0, 0.28, 0.45)):
        crops = read_image(tmp_path / "a.png", size=16, crops=60, rng=rng(), zoom=zoom)
        clips = read_video(path, **settings, rng=rng(), zoom=zoom).pixels
        for found in (crops, clips[:, 0], clips[:, 1]):
            spread = (found[:, 8, -1, 0].astype(int) - found[:, 8, 0, 0]) / 255 / (15 / 16)
            assert low < spread.min() < high and 0.85 < spread.max() < 1.1
        assert (abs(clips[:, 0].astype(int) - clips[:, 1]).mean((1, 2, 3)) < 4).all()
    whole = read_video(path, **settings, rng=None, zoom=3.0).pixels
    np.testing.assert_array_equal(whole, read_video(path, **settings, rng=None).pixels)


def test_bad_images(tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(picture(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-100])
    for name in ("zero.png", "text.jpg", "cut.png"):
        with pytest.raises(MediaError) as caught:
            one(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


# -- files -----------------------------------------------------------------------------------------


def test_list_files_follows_links_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b" / "c").mkdir(parents=True)
    (root / "b" / "x.MP4").touch()
    (root / "a.mp4").touch()
    (root / "notes.txt").touch()
    (root / "b" / "c" / "loop").symlink_to(root)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "y.mkv").touch()
    (root / "link").symlink_to(outside)
    files, left_out = list_files(root, media.VIDEO_SUFFIXES)
    assert files == ["a.mp4", "b/x.MP4", "link/y.mkv"]
    assert left_out == [
        ("b/c/loop", "folder reached before (a link)"),
        ("notes.txt", "suffix is not of this kind"),
    ]
    assert list_files(root / "a.mp4", media.VIDEO_SUFFIXES)[0] == ["a.mp4"]


def test_hidden_copies_are_left_out_and_told(tmp_path: Path) -> None:
    """As Jupyter, file managers and macOS leave beside what they show; below a hidden home too."""
    root = tmp_path / ".home"
    for name in ("a.mp4", "._a.mp4", ".ipynb_checkpoints/a-checkpoint.mp4", "b/.thumb/x.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    files, left_out = list_files(root, media.VIDEO_SUFFIXES)
    assert files == ["a.mp4"]
    assert left_out == [
        ("._a.mp4", "hidden file"),
        (".ipynb_checkpoints", "hidden folder"),
        ("b/.thumb", "hidden folder"),
    ]


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    for place in (0, 2_500_000, 4_999_999):
        content = bytearray(b"x" * 5_000_000)
        content[place] = 0
        (tmp_path / "b").write_bytes(content)
        assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
