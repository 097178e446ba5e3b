#!/usr/bin/env bash
# imageio 2.38.1 with imageio-ffmpeg 0.8.1 (a clip made by av 18.1.0).
#
# Guess: a clip of ten coded frames whose times are uneven has ten frames, in both of imageio's
# plugins, and count_frames() says how many come.
# Seen: the plugin FFMPEG, which is also what get_reader takes, repeats frames until the rate is even:
# 23 come out of iteration, where count_frames() says 10, and frame i is not the i-th coded one. A
# reader that takes frames 0 to 7 has four pictures, the last of them five times. The plugin pyav
# gives the ten.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "imageio==2.38.1" "imageio-ffmpeg==0.8.1" "psutil" \
  "av==18.1.0" "numpy==2.4.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log"
import sys
from fractions import Fraction

import av
import imageio
import imageio.v3 as iio

TIMES = [0, 1, 2, 3, 8, 9, 10, 20, 21, 22]  # in 25ths of a second
with av.open("clip.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
    stream.options = {"crf": "5", "bf": "0"}
    stream.codec_context.time_base = Fraction(1, 25)
    for i, time in enumerate(TIMES):  # each frame is one grey, brighter than the one before
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.pts, frame.time_base = time, Fraction(1, 25)
        for plane, level in zip(frame.planes, (20 + 20 * i, 128, 128)):
            plane.update(bytes([level]) * plane.buffer_size)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def greys(frames):
    return [int(frame[32, 32, 0]) for frame in frames]


by_ffmpeg = greys(iio.imiter("clip.mp4", plugin="FFMPEG"))
by_pyav = greys(iio.imiter("clip.mp4", plugin="pyav"))
with imageio.get_reader("clip.mp4") as reader:
    counted, first = reader.count_frames(), greys(reader.get_data(i) for i in range(8))
print(f"imageio {imageio.__version__}, FFMPEG: {len(by_ffmpeg)} frames, counted {counted}")
print(f"  their greys {by_ffmpeg}")
print(f"  get_data 0 to 7 {first}")
print(f"pyav: {len(by_pyav)} frames, their greys {by_pyav}")
same = (len(by_ffmpeg), counted, len(by_pyav)) == (23, 10, 10)
if not same or len(set(first)) != 4 or len(set(by_pyav)) != 10:
    print("changed: imageio counts or repeats frames otherwise than stated above")
    sys.exit(1)
PY
