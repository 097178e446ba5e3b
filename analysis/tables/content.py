"""The bytes of a file as text: unpacked, and in its own encoding."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling.errors import UserError

HEAD = 1 << 16  # bytes looked at to find the encoding and delimiter; no line of names is longer
LARGEST = 1 << 30  # bytes of a file that is read whole (JSON, Markdown), or unpacked
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def encoding_of(head: bytes) -> str:
    """UTF-16 by its mark or its zeros, UTF-8, else Windows' Latin."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(head) > 8 and head[1:64:2].count(0) > 0.8 * len(head[1:64:2]):
        return "utf-16-le"
    if len(head) > 8 and head[0:64:2].count(0) > 0.8 * len(head[0:64:2]):
        return "utf-16-be"
    try:
        head[: len(head) - 4 if len(head) == HEAD else None].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 4 or len(head) < HEAD:
            return "cp1252"
    return "utf-8"  # pandas drops its mark


def whole(path: Path, packed: str, encoding: str) -> str:
    return unpacked(path, packed).decode(encoding, errors="replace").removeprefix("\ufeff")


def unpacked(path: Path, packed: str) -> bytes:
    with OPENERS.get(packed, open)(path, "rb") as file:
        data: bytes = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"more than {LARGEST:,} bytes: save it as Parquet or CSV")
    return data
