"""Masks of objects as they are handed round: indexed, grey, coloured or 16-bit PNGs.

What a value means is told by all masks of a sequence together: 0 and 255 in a grey PNG are one
object and its surroundings (DAVIS 2016); small values are the objects' numbers, and 255 beside them
marks what counts for none (void), as in an indexed PNG.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from scaling.errors import UserError
from scaling.representations.davis_measures import VOID

MOST_OBJECTS = 64


def read_masks(paths: list[Path]) -> np.ndarray:
    """Object numbers, uint8 (T, H, W); 0 is background, 255 void.

    Raises UserError, naming folder and file: a file that cannot be read, sizes that differ, values
    that can be no objects, a first frame that marks none.
    """
    held: list[np.ndarray] = []
    kinds: set[str] = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                kind = _kind(image.mode)
                values = np.asarray(image.convert(kind) if kind in ("L", "RGB") else image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a mask ({error})") from None
        if held and values.shape[:2] != held[0].shape[:2]:
            raise UserError(
                f"{path}: {values.shape[1]} x {values.shape[0]} px, and {paths[0].name} "
                f"{held[0].shape[1]} x {held[0].shape[0]}; masks of a sequence are of one size"
            )
        held.append(values)
        kinds.add(kind)
    if len(kinds) > 1:
        raise UserError(f"{paths[0].parent}: masks of several kinds ({', '.join(sorted(kinds))})")
    (kind,) = kinds
    stacked = np.stack(held)
    if kind == "RGB":
        numbers = _of_colours(stacked, paths[0])
    elif kind == "P":
        numbers = stacked.astype(np.uint8)
    else:
        numbers = _of_greys(stacked, 255 if kind == "L" else 65535, paths[0])
    if not (set(np.unique(numbers[0]).tolist()) - {0, VOID}):
        raise UserError(
            f"{paths[0]}: marks no object (its values: {_values(held[0])}), and the first mask is "
            "what is carried on"
        )
    return numbers


def _kind(mode: str) -> str:
    """P, I (16 or 32 bits), L or RGB."""
    if mode == "P":
        return "P"
    if mode.startswith("I"):
        return "I"
    return "L" if mode in ("1", "L", "LA") else "RGB"


def _of_greys(values: np.ndarray, white: int, path: Path) -> np.ndarray:
    found = [int(value) for value in np.unique(values) if value]
    numbers = [value for value in found if value != white]
    if numbers and max(numbers) <= MOST_OBJECTS:
        return np.where(values == white, VOID, values).astype(np.uint8)
    if not numbers or len(found) > MOST_OBJECTS:  # one object, perhaps with soft edges
        return (values > white // 2).astype(np.uint8)
    raise UserError(
        f"{path.parent}: grey masks of the values {_values(values)}: want the objects' numbers "
        f"(1 to {MOST_OBJECTS}, {white} for void), or one object of {white}"
    )


def _of_colours(rgb_THW3: np.ndarray, path: Path) -> np.ndarray:
    """By PASCAL VOC's palette, which DAVIS uses, or in the order of the colours' values."""
    packed = rgb_THW3.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    colours, numbers = np.unique(packed, return_inverse=True)
    known = {colour: number for number, colour in enumerate(_voc_palette())}
    if all(int(colour) in known for colour in colours):
        of_colour = [known[int(colour)] for colour in colours]
    elif len(colours) <= MOST_OBJECTS:
        of_colour = list(range(len(colours)))
        if colours[0] != 0:
            of_colour = [number + 1 for number in of_colour]
    else:
        raise UserError(
            f"{path.parent}: masks of {len(colours):,} colours: want one colour an object on "
            "black, without soft edges (PNG, not JPEG)"
        )
    numbered: np.ndarray = np.array(of_colour)[numbers].reshape(packed.shape).astype(np.uint8)
    return numbered


def _voc_palette() -> list[int]:
    """256 colours, R << 16 | G << 8 | B: the bits of a number, from the lowest, dealt to the three
    channels from their highest bit down."""
    palette = []
    for number in range(256):
        channels = [
            sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
            for channel in range(3)
        ]
        palette.append(channels[0] << 16 | channels[1] << 8 | channels[2])
    return palette


def _values(values: np.ndarray) -> str:
    flat = values.reshape(-1, values.shape[-1]) if values.shape[-1] == 3 else values.reshape(-1, 1)
    found = [" ".join(map(str, row)) for row in np.unique(flat, axis=0)[:9].tolist()]
    return ", ".join(found[:8]) + (" ..." if len(found) > 8 else "")
