"""Selective decoding beside plain PyAV and torchcodec: speed, and equality of the pixels.

    python benchmarks/decode.py VIDEO...

All give every 4th frame with its short side at 128 px, on one decoder thread; opening the file and
looking for its frames count. Rounds alternate, medians of seconds of CPU are compared.
`plain`: every frame decoded; the wanted ones converted to RGB and resized (area) by Pillow.
`all`: every frame decoded; the wanted ones go through the resizer of `scaling encode`.
`selective`: what `scaling encode` does. Its pixels must equal those of `all`.
`exact`, `approx`: torchcodec with its own resizer in the decoder, asked for the wanted frames at
once, in both seek modes; `grey levels` is how far the exact one's pixels are from ours (another
filter and, where larger, other frames). It is no dependency: `pip install torchcodec`, of the
release that fits torch, and FFmpeg's shared libraries; without them the columns stay empty.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from scaling.data import media, packets, video
from scaling.data.picture import picture

STRIDE, SIZE, ROUNDS = 4, 128, 5
Decode = Callable[[Path], np.ndarray]


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


def torchcodecs() -> list[Decode]:
    """Exact and approximate; none, and why, where torchcodec does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
    except (ImportError, RuntimeError, OSError) as error:
        print(f"no torchcodec: {str(error).splitlines()[0]}")
        return []

    def decoder(mode: str) -> Decode:
        def decode(path: Path) -> np.ndarray:
            options: dict[str, Any] = {
                "seek_mode": mode, "num_ffmpeg_threads": 1, "dimension_order": "NHWC"
            }  # fmt: skip
            # The size has to be known before: the file is opened for it, and not counted as work.
            decoder = VideoDecoder(
                str(path), **options, transforms=[Resize(media.resized_to(*sides[path], SIZE))]
            )
            wanted = list(range(0, decoder.metadata.num_frames, STRIDE))
            frames: np.ndarray = decoder.get_frames_at(wanted).data.numpy()
            return frames

        return decode

    return [decoder("exact"), decoder("approximate")]


sides: dict[Path, tuple[int, int]] = {}  # height and width of each video, px


def seconds(function: Decode, path: Path) -> float:
    start = time.process_time()
    try:
        function(path)
    except RuntimeError:  # torchcodec, of a file that promises more frames than it has
        return math.nan
    return time.process_time() - start


def main(paths: list[Path]) -> None:
    peers = torchcodecs()
    columns = "plain   all selective exact approx"
    print(f"{'video':40} {'decoded':>7} frames/s: {columns}  x plain x all x exact x approx  equal")
    ratios = []
    for path in paths:
        scan = video._scan(path)
        whole = everything(path)
        with av.open(str(path)) as container:
            stream = max(container.streams.video, key=lambda s: s.width * s.height)
            sides[path] = stream.height, stream.width
        equal = np.array_equal(whole, selective(path))
        far = ""
        if peers:
            theirs = peers[0](path)
            far = f" {len(theirs)} frames of {len(whole)}"
            if theirs.shape == whole.shape:
                far = f" grey levels {np.abs(theirs - whole.astype(float)).mean():.1f}"
        all_of_them = (selective, plain, everything, *peers)
        rounds = [[seconds(f, path) for f in all_of_them] for _ in range(ROUNDS)]
        ours, *others = (statistics.median(side) for side in zip(*rounds, strict=True))
        ratios.append([other / ours for other in others])
        n = len(scan.timeline.times)
        rates = [n / others[0], n / others[1], n / ours, *(n / other for other in others[2:])]
        print(
            f"{path.name[:40]:40} {chosen_packets(scan).mean():7.0%}          ",
            *(f"{rate:6.0f}" for rate in rates), " ",
            *(f"{ratio:6.2f}" for ratio in ratios[-1]), f" {equal}{far}", flush=True
        )  # fmt: skip
    medians = (float(np.nanmedian(side)) for side in zip(*ratios, strict=True))
    print(f"{'median of ' + str(len(paths)):40}", *(f"{ratio:.2f}" for ratio in medians))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
