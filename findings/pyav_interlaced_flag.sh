#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1, swscale 9.5), VideoFrame.to_ndarray and reformat; ffmpeg 9.0.2 beside it.
#
# Guess: the same YUV planes give the same RGB, whatever else a frame says of itself.
# Seen: of a frame that is marked as interlaced swscale converts (and resizes) the two fields apart.
# Pictures that were never interlaced, and only bear the mark (x264 with interlaced=1 on a screen or
# film), come out with coloured fringes; the ffmpeg command line converts the same frames as whole
# pictures. Video that is interlaced in truth gains by it: the mark does not tell which it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "av==18.1.0" "numpy==2.4.*" "imageio-ffmpeg==0.6.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log"
import subprocess

import av
import imageio_ffmpeg
import numpy as np

assert av.__version__ == "18.1.0"
ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
SIDE = 96


def run(*arguments):
    return subprocess.run([ffmpeg, "-v", "error", *arguments], capture_output=True).stdout


def psnr(a, b):
    error = ((a.astype(float) - b) ** 2).mean()
    return "equal" if error == 0 else f"{10 * np.log10(255**2 / error):.1f} dB"


for name, params in (("plain", ""), ("marked", ":interlaced=1")):
    run("-f", "lavfi", "-i", f"testsrc2=size={SIDE}x{SIDE}:rate=25", "-frames:v", "3", "-c:v",
        "libx264", "-crf", "0", "-pix_fmt", "yuv420p", "-x264-params", "bframes=0" + params,
        "-y", f"{name}.mkv")
    raw = run("-i", f"{name}.mkv", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)
    with av.open(f"{name}.mkv") as container:
        frames = list(container.decode(video=0))
        ours = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        yuv = np.stack([frame.to_ndarray() for frame in frames])
    print(f"{name}: interlaced_frame {bool(frames[0].interlaced_frame)}, RGB of PyAV against the "
          f"command line's: {psnr(ours, theirs)}")
    if name == "plain":
        planes = yuv
        assert psnr(ours, theirs) == "equal"
    else:
        assert np.array_equal(planes, yuv), "lossless: the planes are the same"
        assert psnr(ours, theirs) != "equal"
PY
