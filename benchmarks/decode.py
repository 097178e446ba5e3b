"""Selective decoding beside plain PyAV: frames of video per second, and equality of the pixels.

    python benchmarks/decode.py VIDEO...

All give every 4th frame with its short side at 128 px, on one decoder thread; rounds alternate and
medians are compared.
`plain`: every frame decoded; the wanted ones converted to RGB and resized (area) by Pillow.
`all`: every frame decoded; the wanted ones go through the resizer of `scaling encode`.
`selective`: what `scaling encode` does. Its pixels must equal those of `all`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from scaling.data import media, packets, video
from scaling.data.picture import picture

STRIDE, SIZE, ROUNDS = 4, 128, 5


def plain(path: Path) -> np.ndarray:
    return decode_all(path, pillow)


def everything(path: Path) -> np.ndarray:
    return decode_all(path, picture)


def decode_all(path: Path, convert: Callable[[av.VideoFrame, int], np.ndarray]) -> np.ndarray:
    frames = []
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda s: s.width * s.height)
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index % STRIDE == 0:
                frames.append(convert(frame, SIZE))
    return np.stack(frames)


def pillow(frame: av.VideoFrame, size: int) -> np.ndarray:
    height, width = media.resized_to(frame.height, frame.width, size)
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def selective(path: Path) -> np.ndarray:
    scan = video._scan(path)
    shows = scan.timeline.shows
    return np.stack(
        [
            picture(frame, SIZE)
            for packet, frame in video._decode(scan, chosen_packets(scan), [])
            if shows[packet] >= 0 and shows[packet] % STRIDE == 0
        ]
    )


def chosen_packets(scan: video._Video) -> np.ndarray:
    shows = scan.timeline.shows
    if not scan.timeline.order_known:
        return np.ones(len(shows), bool)
    return packets.to_decode(scan.kinds, (shows >= 0) & (shows % STRIDE == 0))


def seconds(function: Callable[[Path], np.ndarray], path: Path) -> float:
    start = time.perf_counter()
    function(path)
    return time.perf_counter() - start


def main(paths: list[Path]) -> None:
    print(f"{'video':40} decoded  frames/s: plain    all  selective  x plain  x all  equal")
    for path in paths:
        scan = video._scan(path)
        equal = np.array_equal(everything(path), selective(path))
        rounds = [[seconds(f, path) for f in (plain, everything, selective)] for _ in range(ROUNDS)]
        slow, whole, fast = (statistics.median(side) for side in zip(*rounds, strict=True))
        n = len(scan.timeline.times)
        print(
            f"{path.name[:40]:40} {chosen_packets(scan).mean():7.0%} {n / slow:16.0f} "
            f"{n / whole:6.0f} {n / fast:10.0f} {slow / fast:8.2f} {whole / fast:6.2f}  {equal}"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
