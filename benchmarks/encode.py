"""What it costs to make tokens of a folder of videos, beside another version of this code.

    python benchmarks/encode.py FOLDER [--beside CHECKOUT] [--rounds 3] [--stride 4]

k-means tokens at 128 px with two workers, everything else as `scaling encode` has it by default.
The versions take turns. Printed are seconds of the processor, medians of the rounds: of the process
that fits the codebook and joins the shards, and of the workers, which decode and encode. Other work
on the machine does not count in them; `--threads` is what a user's environment allows each process
of OpenBLAS. The shards must be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from scaling.config.schema import DataConfig, TokenizerConfig
    except ImportError:
        from scaling.config import DataConfig, TokenizerConfig
    from scaling.data import encode
    media, out, stride, workers = sys.argv[1:]
    source = {"name": "media", "kind": "video", "path": media}
    data = DataConfig(sources=(source,), size=128, stride=int(stride))
    made = encode.prepare(data, TokenizerConfig(), Path(out), seed=0, workers=int(workers))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps([str(made), *(u.ru_utime + u.ru_stime for u in used)]))
"""


def measure(checkout: Path, media: Path, stride: int, threads: int | None) -> list[float | str]:
    """Digest of the shards, and seconds of the processor: driver, workers."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    if threads is not None:
        environment["OPENBLAS_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        child = Path(folder) / "child.py"  # a file: the workers import it again
        child.write_text(CHILD)
        command = [sys.executable, str(child), str(media), f"{folder}/tokens", str(stride), "2"]
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        made, *seconds = json.loads(ended.stdout.splitlines()[-1])
        digest = hashlib.sha256()
        for shard in sorted(Path(made).glob("*.bin")):
            digest.update(shard.read_bytes())
    return [digest.hexdigest(), *seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("media", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    versions = {"here": Path(__file__).resolve().parents[1]}
    if asked.beside is not None:
        versions["beside"] = asked.beside.resolve()
    seen: dict[str, list[list[float | str]]] = {name: [] for name in versions}
    for _ in range(asked.rounds):
        for name, checkout in versions.items():
            found = measure(checkout, asked.media.resolve(), asked.stride, asked.threads)
            seen[name].append(found)
            print(name, *found, flush=True)
    medians = {}
    for name, rounds in seen.items():
        driver, workers = (statistics.median(float(r[i]) for r in rounds) for i in (1, 2))
        medians[name] = {"driver": driver, "workers": workers, "all": driver + workers}
        print(f"{name:8}" + "".join(f"  {k} {v:.1f} s" for k, v in medians[name].items()))
    if "beside" in medians:
        ratios = (f"  {k} {medians['beside'][k] / v:.2f}" for k, v in medians["here"].items())
        print("times as fast" + "".join(ratios))
        print("same bytes:", len({r[0] for rounds in seen.values() for r in rounds}) == 1)


if __name__ == "__main__":
    main()
