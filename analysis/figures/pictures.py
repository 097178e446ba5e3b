"""Frames as pictures: contact sheets of clips, and the distance of a reconstruction."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from scaling.errors import UserError

GAP = 1  # pixels between frames


def contact_sheet(rows: Sequence[np.ndarray]) -> Image.Image:
    """Clips under each other, frames side by side.

    Args:
        rows: uint8 arrays (T, H, W, 3) of one shape, e.g. an original and its reconstruction, or a
            video, its masks and their overlay. Gaps are transparent.
    Raises:
        UserError: no row, another type, or shapes that differ.
    """
    shapes = {np.shape(row) for row in rows}
    wrong = [np.asarray(row).dtype for row in rows if np.asarray(row).dtype != np.uint8]
    if len(shapes) != 1 or wrong or len(next(iter(shapes))) != 4:
        raise UserError(
            f"rows of shapes {sorted(map(str, shapes))}, other types {sorted(map(str, wrong))}: a "
            f"sheet takes uint8 clips (frames, height, width, 3) of one shape"
        )
    frames, height, width, _ = next(iter(shapes))
    canvas = np.zeros((len(rows) * (height + GAP) - GAP, frames * (width + GAP) - GAP, 4), np.uint8)
    for r, row in enumerate(rows):
        for t, frame in enumerate(row):
            y, x = r * (height + GAP), t * (width + GAP)
            canvas[y : y + height, x : x + width, :3] = frame
            canvas[y : y + height, x : x + width, 3] = 255
    return Image.fromarray(canvas, "RGBA")


def data_uri(image: Image.Image) -> str:
    """The image as a PNG data URI, for pages that load nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def psnr_decibel(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB; infinite when they are equal."""
    difference = original.astype(np.float64) - reconstruction.astype(np.float64)
    mse = float(np.mean(difference**2))
    return float(10 * np.log10(255**2 / mse)) if mse else float("inf")


# Okabe and Ito's colours, which differ under any kind of colour vision.
OBJECTS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
     (204, 121, 167)], np.uint8,
)  # fmt: skip


def overlay(frames: np.ndarray, masks: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Object masks over frames, for strips of label propagation.

    Args:
        frames: uint8 (T, H, W, 3). masks: integers (T, H, W), 0 is background, k is object k.
    """
    if frames.shape[:-1] != masks.shape or not 0 <= opacity <= 1:
        raise UserError(
            f"frames {frames.shape}, masks {masks.shape}, opacity {opacity}: want one mask a "
            "frame, of its height and width, and an opacity from 0 to 1"
        )
    colours = OBJECTS[(masks - 1) % len(OBJECTS)].astype(np.float64)
    mixed = (1 - opacity) * frames + opacity * colours
    return np.where((masks > 0)[..., None], mixed.round(), frames).astype(np.uint8)
