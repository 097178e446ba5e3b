#!/usr/bin/env bash
# decord 0.6.0, frames scaled while they are read (a clip made by av 18.1.0).
#
# Guess: VideoReader(path, width=W, height=H)[i] is a frame of shape (H, W, 3), whatever W and H are.
# Seen: at widths 16, 24 and 48 the last axis is longer than 3 (6, 4 and 4 here). The rows are the
# picture's, padded at their end, cut up as if a pixel had that many values: the first three values of
# a "pixel" are not its red, green and blue, and the right part of the frame is nought. Nothing is
# said. Widths of 32, 40, 56, 64, 112 and 224 are as guessed, and height does not matter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "decord==0.6.0" "av==18.1.0" "numpy==2.4.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log"
import sys

import av
import decord
import numpy as np

assert (decord.__version__, av.__version__) == ("0.6.0", "18.1.0")
with av.open("clip.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25, width=96, height=64, pix_fmt="yuv420p")
    for i in range(5):  # left red, right green
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, :48, 0] = picture[:, 48:, 1] = 200
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    out.mux(stream.encode(None))

seen = {}
for width in (16, 24, 48, 32, 40, 56, 64, 112, 224):
    frame = decord.VideoReader("clip.mp4", width=width, height=32)[0].asnumpy()
    right = frame[16, -2]
    print(f"decord 0.6.0: width {width}: {frame.shape}, near the right edge {right.tolist()}")
    seen[width] = (frame.shape == (32, width, 3), bool(right.any()))
wrong = {width for width, (three, filled) in seen.items() if not three and not filled}
right = {width for width, (three, filled) in seen.items() if three and filled}
if wrong != {16, 24, 48} or wrong | right != set(seen):
    print("changed: decord 0.6.0 gives other shapes than stated above")
    sys.exit(1)
PY
