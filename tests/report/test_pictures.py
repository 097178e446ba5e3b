"""Frames side by side, untouched."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from scaling.analysis.figures.pictures import (
    OBJECTS,
    contact_sheet,
    data_uri,
    overlay,
    psnr_decibel,
)


def test_a_sheet_holds_every_pixel() -> None:
    noise = np.random.default_rng(0)
    rows = noise.integers(0, 256, (2, 3, 8, 5, 3), dtype=np.uint8)
    uri = data_uri(contact_sheet(list(rows)))
    assert uri.startswith("data:image/png;base64,")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert image.shape == (2 * 8 + 1, 3 * 5 + 2, 4)
    np.testing.assert_array_equal(image[9:, 6:11, :3], rows[1, 1])
    assert (image[8, :, 3] == 0).all() and (image[:, 5, 3] == 0).all(), "gaps are transparent"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [np.zeros((2, 4, 4, 3))],
        [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)],
        [np.zeros((4, 4, 3), np.uint8)],
    ],
)
def test_a_sheet_refuses_what_is_not_clips(rows: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="uint8 clips"):
        contact_sheet(rows)


def test_psnr() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr_decibel(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr_decibel(grey, black) == psnr_decibel(black, grey), "unsigned bytes do not wrap"
    assert psnr_decibel(grey, grey) == float("inf")


def test_masks_lie_over_their_objects_only() -> None:
    frames = np.full((2, 3, 3, 3), 100, np.uint8)
    masks = np.zeros((2, 3, 3), np.int64)
    masks[1, 0, 0], masks[1, 2, 2] = 1, 9
    out = overlay(frames, masks, opacity=0.5)
    assert out.dtype == np.uint8
    for pixel, colour in ((out[1, 0, 0], OBJECTS[0]), (out[1, 2, 2], OBJECTS[1])):
        np.testing.assert_allclose(pixel, (100 + colour.astype(float)) / 2, atol=0.5)
    changed = (out != frames).any(-1)
    np.testing.assert_array_equal(changed, masks > 0)
    with pytest.raises(ValueError, match="one mask a frame"):
        overlay(frames, masks[:1])
