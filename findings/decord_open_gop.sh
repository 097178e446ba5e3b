#!/usr/bin/env bash
# decord 0.6.0, single frames of a clip with open groups of pictures (clips made by av 18.1.0).
#
# Guess: reader[i], whose seek is described as accurate, is the i-th frame that reading on gives.
# Seen: only where groups are closed. With open ones, which is what x265 makes unless told otherwise,
# frames about a keyframe come back as a neighbour in MP4 and as frames of a whole group before in
# Matroska, without a word; get_batch does the same, and its later indices are shifted along with it.
# Reading from the start to the end is right in all cases.
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
FRAMES, GROUP, SIDE, ASKED = 90, 30, 64, (10, 29, 59, 60, 80)


def make(path, options=""):
    """Every frame is one grey, two levels brighter than the frame before."""
    with av.open(path, "w") as out:
        stream = out.add_stream("libx265", rate=25, width=SIDE, height=SIDE, pix_fmt="yuv420p")
        stream.options = {"crf": "5", "g": str(GROUP), "x265-params": "log-level=none" + options}
        for i in range(FRAMES):
            frame = av.VideoFrame(SIDE, SIDE, "yuv420p")
            frame.pts = i
            for plane, level in zip(frame.planes, (20 + 2 * i, 128, 128)):
                plane.update(bytes([level]) * plane.buffer_size)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def grey(frame):
    return int(frame[SIDE // 2, SIDE // 2, 0])


seen = {}
for name, options in (("default.mp4", ""), ("default.mkv", ""), ("closed.mkv", ":open-gop=0")):
    make(name, options)
    with av.open(name) as clip:
        levels = np.array([grey(f.to_ndarray(format="rgb24")) for f in clip.decode(video=0)])

    def index(frame):
        return int(abs(levels - grey(frame)).argmin())

    reader = decord.VideoReader(name)
    assert [index(reader[i].asnumpy()) for i in range(len(reader))] == list(range(FRAMES))
    single = [index(decord.VideoReader(name)[i].asnumpy()) for i in ASKED]
    batch = [index(f) for f in decord.VideoReader(name).get_batch(ASKED).asnumpy()]
    seen[name] = (single, batch)
    print(f"decord 0.6.0: {name}: asked for {list(ASKED)}, singly {single}, as a batch {batch}")
expected = {
    "default.mp4": ([10, 29, 60, 61, 80], [10, 29, 60, 61, 81]),
    "default.mkv": ([10, 29, 30, 31, 80], [10, 29, 30, 31, 51]),
    "closed.mkv": (list(ASKED), list(ASKED)),
}
if seen != expected:
    print("changed: decord 0.6.0 gives other frames than stated above")
    sys.exit(1)
PY
