"""Media files: which there are, what is in them, and images -> uint8 pictures of one size.

A file that gives nothing raises MediaError. Everything, the frames of `data.video` too, is resized
by one filter, swscale's area average: resizers differ by tens of grey levels, and token caches
would not match.

Shapes: S = side of the square crop in px.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image, ImageOps

from scaling.errors import UserError
from scaling.storage.outputs import RECORD

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".y4m",
        ".gif",
        ".apng",
    ]
)
IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pnm",
        ".gif",
        ".jp2",
        ".avif",
    ]
)
MAY_MOVE = frozenset([".png", ".webp"])  # pictures that may be animated, and are videos then
OTHER_KIND = "suffix is not of this kind"
_SAMPLE = 1 << 20  # bytes read at the head, middle and tail of a large file to identify it


class MediaError(UserError):
    """One file cannot be used; the message is the reason, without the file's name."""


def list_files(root: Path, suffixes: frozenset[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Relative POSIX paths below `root` with one of the suffixes, sorted; and what is left out.

    The second list has (path, reason). Linked directories are followed, each directory once. Hidden
    files and folders are left out: they are copies that tools keep (.ipynb_checkpoints, thumbnails,
    ._name of macOS), which would stand in training and validation both.
    A `root` that is a file is the only file of its folder.
    """
    if root.is_file():
        return [root.name], []
    files: list[str] = []
    left_out: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        where = os.path.relpath(error.filename or root, root)
        left_out.append((where, f"folder cannot be read: {error.strerror}"))

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        for name in sorted(n for n in subfolders if n.startswith(".")):
            left_out.append((os.path.relpath(os.path.join(folder, name), root), "hidden folder"))
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            left_out.append((os.path.relpath(folder, root), "folder reached before (a link)"))
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            relative = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            if name.startswith(".") and name != RECORD:
                left_out.append((relative, "hidden file"))
            elif os.path.splitext(name)[1].lower() in suffixes:
                if _may_be_read(os.path.join(folder, name)):
                    files.append(relative)
                else:
                    left_out.append((relative, "a pipe, socket or device"))
            elif name != RECORD:
                left_out.append((relative, OTHER_KIND))
    return sorted(files), sorted(left_out)


def _may_be_read(path: str) -> bool:
    """Whether it is a file, or gone: opening a pipe would wait for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # said where it is opened


def moves(path: Path) -> bool:
    """Whether a .png or .webp file is animated, by its head: an acTL chunk before the picture (PNG
    specification, 3rd edition), or the animation flag of VP8X (WebP container, RFC 9649)."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return len(head) > 20 and bool(head[20] & 2)
    return head[1:4] == b"PNG" and b"acTL" in head.partition(b"IDAT")[0]


def fingerprint(path: Path) -> str:
    """Identity of a file's content, whatever its name, place and date.

    Files above 3 MiB are known by their size and by 1 MiB at the head, middle and tail. OSError
    when the file cannot be read.
    """
    with path.open("rb") as file:
        return fingerprint_of(file, 0, path.stat().st_size)


def fingerprint_of(file: IO[bytes], start: int, size: int) -> str:
    """The same of `size` bytes of a file from `start` on."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    parts = [(0, size)]
    if size > 3 * _SAMPLE:
        parts = [(at, _SAMPLE) for at in (0, (size - _SAMPLE) // 2, size - _SAMPLE)]
    for offset, length in parts:
        file.seek(start + offset)
        digest.update(file.read(length))
    return digest.hexdigest()


def reason(error: BaseException, path: Path) -> str:
    """The message of an error without the path: manifests must not depend on where files lie."""
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
    return text.replace(str(path), path.name)


def read_rgb(file: Path | IO[bytes]) -> np.ndarray:
    """A picture, upright, uint8 (H, W, 3). Raises MediaError."""
    try:
        with Image.open(file) as image:
            return _rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(file, Path):
            raise MediaError(reason(error, file)) from error
        raise MediaError(str(error).replace(repr(file), "it")) from error


def read_image(
    path: Path, *, size: int, crops: int, rng: np.random.Generator | None, zoom: float = 1.0
) -> np.ndarray:
    """Crops of one image, uint8 (crops, S, S, 3): random ones, or the centre when `rng` is None.

    The short side of the whole picture is `size` px; of a random crop up to `zoom` times as many.
    """
    rgb = read_rgb(path)
    if rng is None:
        resized = resize_short(rgb, size)
        return np.stack([crop(resized, size, np.full(2, 0.5))] * crops)
    place, sides = rng.random((crops, 2)), crop_sides(size, zoom, crops, rng)
    resized_by_side = {side: resize_short(rgb, side) for side in sorted(set(sides))}
    return np.stack(
        [crop(resized_by_side[side], size, yx) for side, yx in zip(sides, place, strict=True)]
    )


def crop_sides(size: int, zoom: float, count: int, rng: np.random.Generator | None) -> list[int]:
    """The short side of the picture, px, that each crop is cut from: log-uniform up to `zoom`."""
    if zoom == 1 or rng is None:
        return [size] * count
    sides: list[int] = np.rint(size * zoom ** rng.random(count)).astype(int).tolist()
    return sides


def _rgb(image: Image.Image) -> np.ndarray:
    """Upright 8-bit RGB: EXIF turned, 16-bit scaled, transparency laid over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16- and 32-bit greys
        grey = np.asarray(image).astype(np.float64)
        # 16-bit files come as I;16 or, from some formats, as I with values up to 65535.
        top = 65535.0 if image.mode.startswith("I") else max(float(grey.max(initial=1.0)), 1e-12)
        grey8 = np.rint(np.clip(grey / top, 0, 1) * 255).astype(np.uint8)
        return np.repeat(grey8[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB"))


def resize_short(rgb_HWC: np.ndarray, size: int) -> np.ndarray:
    """The same picture with its short side `size` px, uint8 (H', W', 3)."""
    return resize(rgb_HWC, *resized_to(rgb_HWC.shape[0], rgb_HWC.shape[1], size))


def resize(rgb_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same picture, uint8 (height, width, 3)."""
    if (height, width) == rgb_HWC.shape[:2]:
        return rgb_HWC
    # Labelled as YUV, three full planes are resized as they are; RGB would lose colour detail.
    planes = np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1))
    frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
    small = frame.reformat(width=width, height=height, interpolation="AREA", threads=1)
    return np.ascontiguousarray(small.to_ndarray().transpose(1, 2, 0))


def resized_to(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, px, of a picture whose short side becomes `size`."""
    short = min(height, width)
    # Never below `size`: rounding must not lose the last row.
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def crop(rgb_HWC: np.ndarray, size: int, place_yx: np.ndarray) -> np.ndarray:
    """Square crop; `place_yx` in [0, 1) goes from the first to the last possible corner."""
    height, width = rgb_HWC.shape[:2]
    y = int(place_yx[0] * (height - size + 1))
    x = int(place_yx[1] * (width - size + 1))
    return rgb_HWC[y : y + size, x : x + size]
