#!/usr/bin/env bash
# av 18.1.0 (its FFmpeg 8), a seek to a frame's own pts in an MP4 with B-frames.
#
# Guess: decoding after container.seek(pts, stream=...), which looks backward, begins at or before the
# frame with that pts, so that decoding on reaches it.
# Seen: the index of an MP4 is searched by decoding time. With open groups of pictures the keyframe
# after the wanted frame is decoded earlier than that frame is shown; the seek lands there, the first
# frame that comes is already past the wanted one, and that one never comes. Matroska, and a seek to
# a few frames earlier, do not miss it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "av==18.1.0"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log"
import sys

import av

assert av.__version__ == "18.1.0"
FRAMES, SIDE = 90, 64
OPEN = {"bf": "3", "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0"}


def make(path):
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, width=SIDE, height=SIDE, pix_fmt="yuv420p")
        stream.options = OPEN
        for i in range(FRAMES):
            frame = av.VideoFrame(SIDE, SIDE, "yuv420p")
            frame.pts = i
            for plane, level in zip(frame.planes, (20 + 2 * i, 128, 128)):
                plane.update(bytes([level]) * plane.buffer_size)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def missed(path, earlier=0):
    """Indices of the frames that do not come after a seek to their own pts, less some frames."""
    with av.open(path) as clip:
        stamps = [frame.pts for frame in clip.decode(video=0)]
    assert len(stamps) == FRAMES
    out = []
    for i, stamp in enumerate(stamps):
        with av.open(path) as clip:
            stream = clip.streams.video[0]
            clip.seek(stamps[max(0, i - earlier)], stream=stream)
            if next(clip.decode(stream)).pts > stamp:
                out.append(i)
    return out


make("clip.mp4")
make("clip.mkv")
seen = {
    "MP4": missed("clip.mp4"),
    "MP4, four frames earlier": missed("clip.mp4", earlier=4),
    "Matroska": missed("clip.mkv"),
}
for name, frames in seen.items():
    print(f"av {av.__version__}: {name}: keyframes at 0, 30, 60; passed over: {frames}")
if seen != {"MP4": [29, 59], "MP4, four frames earlier": [], "Matroska": []}:
    print("changed: seeks pass over other frames than stated above")
    sys.exit(1)
PY
