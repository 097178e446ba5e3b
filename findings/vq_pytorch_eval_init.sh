#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0 (torch 2.13.0), VectorQuantize(kmeans_init=True) in eval mode.
#
# Guess: a forward in eval mode changes no buffer; k-means takes its codes from the first training
# batch.
# Seen: it takes them from the first batch of all, in eval mode and under no_grad too. A validation
# pass before training (Lightning's sanity check is one) fits the codes to validation data, and they
# are not fitted to training data afterwards; a baseline of random weights is not random: here its
# error is a small part of that of random codes. Without kmeans_init the codes stay as they are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "vector-quantize-pytorch==1.32.0" "numpy==2.4.*"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch
from vector_quantize_pytorch import VectorQuantize

assert version("vector-quantize-pytorch") == "1.32.0"
torch.manual_seed(0)
validation = 10 + torch.randn(1, 512, 4)
training = torch.randn(1, 512, 4)


def error(quantizer, x):
    with torch.no_grad():
        return float((quantizer(x)[0] - x).square().mean())


seen = {}
for kmeans in (True, False):
    quantizer = VectorQuantize(dim=4, codebook_size=16, kmeans_init=kmeans).eval()
    before = quantizer.codebook.clone()
    at_validation = error(quantizer, validation)
    after = quantizer.codebook.clone()
    quantizer.train()
    quantizer(training)
    mean = float(quantizer.codebook.mean())
    seen[kmeans] = (not torch.equal(before, after), float(after.mean()) > 9, mean > 5)
    print(
        f"kmeans_init={kmeans}: codes changed in eval mode: {seen[kmeans][0]}, error there "
        f"{at_validation:.2f}, mean of the codes {float(after.mean()):.2f}, after a training batch "
        f"of mean 0 {mean:.2f}"
    )
if seen != {True: (True, True, True), False: (False, False, False)}:
    print("changed: vector-quantize-pytorch 1.32.0 treats its codes otherwise than stated above")
    sys.exit(1)
PY
