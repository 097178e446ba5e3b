"""Every frame of every file against the ffmpeg command line's, over containers, codecs and damage.

    python -m tests.data.against_ffmpeg [HOW_MANY] [FOLDER]

The files are made by the ffmpeg command line too. A file is `equal` when all frames that ffmpeg
shows are read, in its order; else it must carry a note. `silent` is neither.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.data.media import MediaError
from scaling.data.video import read_video

SIDE = 64
FRAMES = 30
X264 = "-c:v libx264 -g 12"
KINDS = [
    ("mp4", f"{X264} -bf 3"),
    ("mp4", f"{X264} -bf 2 -x264-params open-gop=1"),
    ("mp4", f"{X264} -bf 0"),
    ("mp4", "-c:v libx265 -x265-params log-level=none -g 12"),
    ("mp4", "-c:v mpeg4 -bf 2"),
    ("mp4", "-c:v libsvtav1 -svtav1-params lp=1"),
    ("mkv", f"{X264} -bf 3"),
    ("mkv", "-c:v ffv1"),
    ("mkv", "-c:v mpeg2video -bf 2"),
    ("webm", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 10"),
    ("webm", "-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 10 -row-mt 0"),
    ("avi", "-c:v mpeg4"),
    ("avi", "-c:v mpeg4 -bf 2"),
    ("avi", "-c:v mjpeg -pix_fmt yuvj420p"),
    ("avi", f"{X264} -bf 2"),
    ("ts", f"{X264} -bf 3"),
    ("ts", "-c:v mpeg2video -bf 2"),
    ("ts", "-c:v libx265 -x265-params log-level=none -g 12"),
    ("m2ts", f"{X264} -bf 2"),
    ("mpg", "-c:v mpeg2video -bf 2"),
    ("mpg", "-c:v mpeg1video"),
    ("vob", "-c:v mpeg2video -bf 2"),
    ("flv", f"{X264} -bf 2"),
    ("flv", "-c:v flv1"),
    ("mov", "-c:v prores_ks"),
    ("mov", f"{X264} -bf 2 -bsf:v setts=dts=DTS"),
    ("wmv", "-c:v wmv2"),
    ("ogv", "-c:v libtheora"),
    ("gif", ""),
    ("y4m", ""),
]
DAMAGE = ["none", "joined", "cut", "hole", "headless", "sparse", "decoding times", "coarse", "ss"]


@dataclass(frozen=True)
class Found:
    """What became of one file."""

    name: str
    verdict: str  # "equal", "rest equal" but for what the note says, "told", "silent"
    about: str


def ffmpeg() -> str | None:
    """The command line program, of the system or of the imageio-ffmpeg package."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def run(*arguments: str) -> bytes:
    program = ffmpeg()
    assert program
    done = subprocess.run(
        [program, "-nostdin", "-v", "error", "-threads", "1", *arguments],
        capture_output=True,
        timeout=120,
    )
    return done.stdout


def make(path: Path, options: str, damage: str, seed: int) -> Path | None:
    """One file; None where the container cannot have this damage."""
    rng = np.random.default_rng(seed)
    source = f"testsrc2=size={SIDE}x{SIDE}:rate=25,hue=H={seed % 6}"
    filters, extra = "", options.split()
    if damage == "sparse":  # a variable frame rate
        filters = r",select=not(between(mod(n\,10)\,3\,6))"
    if damage == "decoding times":
        extra += ["-bsf:v", "setts=pts=DTS"]
    if damage == "coarse":  # pairs of frames in one tick
        extra += ["-bsf:v", "setts=pts=trunc(PTS*12.5*TB)/12.5/TB"]
    arguments = ["-f", "lavfi", "-i", source + filters, "-frames:v", str(FRAMES)]
    if path.suffix not in (".gif", ".y4m", ".mov") and "-pix_fmt" not in options:
        arguments += ["-pix_fmt", "yuv420p"]
    run(*arguments, "-fps_mode", "passthrough", "-threads", "1", *extra, "-y", str(path))
    if not path.exists() or not path.stat().st_size:
        return None
    content = path.read_bytes()
    size = len(content)
    if damage == "joined":
        if path.suffix not in (".ts", ".m2ts", ".mpg", ".vob", ".ogv", ".flv", ".mkv", ".gif"):
            return None
        content += content
    elif damage == "cut":
        content = content[: size * 7 // 10]
    elif damage == "hole":
        at = int(size * rng.uniform(0.3, 0.8))
        content = content[:at] + bytes(min(300, size // 50)) + content[at + min(300, size // 50) :]
    elif damage == "headless":
        if path.suffix not in (".ts", ".m2ts", ".mpg", ".vob"):
            return None
        content = content[size // 3 :]
    elif damage == "ss":
        copy = path.with_name("copy-" + path.name)
        run("-ss", "0.5", "-i", str(path), "-c", "copy", "-y", str(copy))
        if not copy.exists() or not copy.stat().st_size:
            return None
        content = copy.read_bytes()
        copy.unlink()
    path.write_bytes(content)
    return path


def shown_by_ffmpeg(path: Path) -> np.ndarray:
    """All frames, uint8 (F, SIDE, SIDE, 3), in the order in which ffmpeg shows them."""
    raw = run("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo",
              "-pix_fmt", "rgb24", "-")  # fmt: skip
    each = SIDE * SIDE * 3
    return np.frombuffer(raw[: len(raw) // each * each], np.uint8).reshape(-1, SIDE, SIDE, 3)


def every_frame(path: Path, size: int = SIDE) -> tuple[np.ndarray, str]:
    """All frames, uint8 (F, S, S, 3), and the note: as many clips of one frame as there are."""
    settings = {"frames": 1, "size": size, "stride": 1, "rng": None, "crops": 1}
    count = read_video(path, clips=12, **settings).frames  # type: ignore[arg-type]
    found = read_video(path, clips=count, **settings)  # type: ignore[arg-type]
    return found.pixels[:, 0], found.note


def judge(path: Path) -> tuple[str, str]:
    """The verdict on one file, and what is behind it."""
    reference = shown_by_ffmpeg(path)
    try:
        mine, note = every_frame(path)
    except MediaError as error:
        return ("told" if len(reference) else "equal"), str(error)
    same = len(mine) == len(reference)
    worst = 255.0
    if same:
        difference = np.abs(mine.astype(int) - reference.astype(int)).mean((1, 2, 3))
        worst = float(difference.max(initial=0))
        same = worst < 2.5
    about = f"{len(mine)} of {len(reference)} frames, worst difference {worst:.2f}; note: {note!r}"
    if same:
        return "equal", about
    if not note:
        return "silent", about
    # What is left out aside, the frames must be ffmpeg's, in its order.
    nearest = [int(np.abs(reference.astype(int) - f).mean((1, 2, 3)).argmin()) for f in mine]
    exact = [
        np.abs(reference[i].astype(int) - f).mean() < 2.5
        for i, f in zip(nearest, mine, strict=True)
    ]
    whole = all(exact) and bool((np.diff(nearest) > 0).all())
    return ("rest equal" if whole else "told"), about


def cases(how_many: int) -> Iterator[tuple[int, str, str, str]]:
    """(seed, suffix, options, damage): all combinations in an order that mixes them."""
    all_of_them = [(s, o, d) for d in DAMAGE for s, o in KINDS]
    order = np.random.default_rng(17).permutation(len(all_of_them))
    for seed, at in enumerate(order[:how_many] if how_many else order):
        yield seed, *all_of_them[at]


def campaign(how_many: int, folder: Path) -> list[Found]:
    found = []
    for seed, suffix, options, damage in cases(0):
        path = make(folder / f"{seed:03d}.{suffix}", options, damage, seed)
        if path is None:
            continue
        verdict, about = judge(path)
        found.append(Found(f"{path.name} {options} [{damage}]", verdict, about))
        if len(found) == how_many:
            break
    return found


def main(how_many: int, folder: Path) -> None:
    found = campaign(how_many, folder)
    for one in found:
        if one.verdict != "equal" or "note: ''" not in one.about:
            print(f"{one.verdict:7} {one.name}: {one.about}")
    counts = {
        v: sum(one.verdict == v for one in found) for v in ("equal", "rest equal", "told", "silent")
    }
    print(f"{len(found)} files: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    sys.exit(bool(counts["silent"]))


if __name__ == "__main__":
    if ffmpeg() is None:
        sys.exit("no ffmpeg: install it, or the package imageio-ffmpeg")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as temporary:
        main(count, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary))
