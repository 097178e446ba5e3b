"""python -m tests.representations.memory_work FOLDER GB: probes 150 MB of states; prints the peak.

The peak is of the whole process, in bytes, above what it held before its first state.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scaling.models.decoder import Decoder
from scaling.models.family import size
from scaling.models.memory import peak_bytes
from scaling.models.parametrization import build
from scaling.models.probes import LINEAR, Heads, Recipe, file_scores, grid_of, train_heads
from scaling.representations.features import Features, write_features

FILES, TOKENS, WIDTH, LAYERS = 1500, 256, 64, 2


def main(folder: Path, memory: float) -> None:
    torch.set_num_threads(1)
    model = build(size(WIDTH, LAYERS, 2, vocab=68, context=TOKENS + 1, base_width=16), seed=0)
    codes = np.random.default_rng(0).integers(0, 64, (FILES, TOKENS)).astype(np.uint16)
    labels = torch.from_numpy(codes[:, 0] % 3).long()
    # What any training step and forward pass load and keep, before it is measured.
    tiny = folder / "tiny.bin"
    probe(model, codes[:4], labels[:4], tiny, memory)
    before = peak_bytes()
    probe(model, codes, labels, folder / "states.bin", memory)
    print(peak_bytes() - before)


def probe(
    model: Decoder, codes: np.ndarray, labels: torch.Tensor, path: Path, memory: float
) -> None:
    shape = write_features(model, codes, path, start=1, side=16, memory_bytes=memory)
    layers = list(range(shape[1]))
    grids = {grid_of(kind, 16, shape[3]) for kind in LINEAR}
    features = Features(path, shape, memory, layers=layers, side=16, grids=grids)
    rows = torch.arange(len(codes))
    features.standardise(rows)
    for kind in ("average", "attention", "grid"):
        heads = Heads(kind, layers, shape[3], 3, side=16)
        states = partial(features.pooled, grid=heads.grid) if kind in LINEAR else features
        settings = {"seed": 0, "at_once": features.rows_at_once}
        train_heads(heads, states, rows, labels, Recipe(steps=3), **settings)
        file_scores(heads, states, rows, rows, len(rows), batch=features.rows_at_once)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) * 1e9)
