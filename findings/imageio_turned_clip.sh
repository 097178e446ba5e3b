#!/usr/bin/env bash
# imageio 2.38.1 with imageio-ffmpeg 0.8.1 and av 18.1.0: a clip that is marked as turned by a quarter.
#
# Guess: a clip of 96 x 64 that is to be shown turned by 90 degrees, as telephones write it, has one
# shape in imageio, whichever of its two plugins for video reads it.
# Seen: FFMPEG turns it (frames of 96 rows and 64 columns), pyav does not (64 rows and 96 columns), and
# says nothing. Which of the two is taken where none is named depends on what is installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "imageio==2.38.1" "imageio-ffmpeg==0.8.1" "psutil" \
  "av==18.1.0" "numpy==2.4.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log"
import subprocess
import sys

import av
import imageio
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

with av.open("as_coded.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25, width=96, height=64, pix_fmt="yuv420p")
    for _ in range(5):
        grey = np.full((64, 96, 3), 100, np.uint8)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
    out.mux(stream.encode(None))
subprocess.run(
    [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i",
     "as_coded.mp4", "-c", "copy", "turned.mp4"],
    check=True,
)
seen = {
    (clip, plugin): iio.imread(f"{clip}.mp4", plugin=plugin, index=0).shape
    for clip in ("as_coded", "turned")
    for plugin in ("FFMPEG", "pyav")
}
for (clip, plugin), shape in seen.items():
    print(f"imageio {imageio.__version__}, {plugin}: {clip}.mp4 has frames of {shape}")
flat, upright = (64, 96, 3), (96, 64, 3)
if list(seen.values()) != [flat, flat, upright, flat]:
    print("changed: imageio's plugins turn the clip otherwise than stated above")
    sys.exit(1)
PY
