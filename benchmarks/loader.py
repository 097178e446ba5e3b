"""The loader: tokens per second from one process, at the paper's sequence length.

    python benchmarks/loader.py [GIGABYTES] [FOLDER]

Writes shards of four sources (20/10/10/60%) of that size to FOLDER (default: a temporary one), then
reads random batches as training does: the draw, the gather from the memory-mapped shards, and the
conversion to int64. The page cache is warm: the disk is not what is measured.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import shards

FRAMES, PER_FRAME, WEIGHTS = 16, 256, (0.2, 0.1, 0.1, 0.6)
SECONDS, ROUNDS = 2.0, 5


def write(folder: Path, gigabytes: float) -> None:
    rng = np.random.default_rng(0)
    codes = FRAMES * PER_FRAME
    total = int(gigabytes * 1e9 / (2 * (codes + 2)))
    sources = []
    for number, weight in enumerate(WEIGHTS):
        entry: dict[str, Any] = {"name": f"s{number}", "kind": "video", "weight": weight}
        for split, count in (("train", max(1, round(weight * total))), ("validation", 1)):
            writer = shards.Writer(folder, f"{number}.{split}", codes + 2)
            for first in range(0, count, 4096):
                n = min(4096, count - first)
                random = rng.integers(0, 8192, (n, codes), np.uint16)
                writer.write(shards.sequence(random, shards.VIDEO_START))
            entry[split] = writer.close()
        sources.append(entry)
    index = {
        "schema": shards.SCHEMA, "key": "loader", "vocab": 8196, "context": codes + 1,
        "frames": FRAMES, "size": 128, "tokens_per_frame": PER_FRAME,
        "tokenizer": {"label": "random"}, "sources": sources,
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))


def tokens_per_second(data: shards.TokenData, batch: int, first: int) -> float:
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        tokens, _ = data.batch(first + done, batch, seed=0)
        done += 1
    return done * tokens.size / (time.perf_counter() - start)


def main(gigabytes: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, gigabytes)
    data = shards.TokenData.open(folder)
    for batch in (8, 64, 256):
        data.batch(0, batch, 0)
        rounds = [tokens_per_second(data, batch, 1000 * (1 + r)) for r in range(ROUNDS)]
        print(
            f"batch {batch:4}: median {np.median(rounds) / 1e6:6.1f} M tokens/s "
            f"({min(rounds) / 1e6:.1f} to {max(rounds) / 1e6:.1f}), {gigabytes:g} GB of shards"
        )


if __name__ == "__main__":
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    if len(sys.argv) > 2:
        main(size, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(size, Path(made))
