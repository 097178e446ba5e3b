#!/usr/bin/env bash
# torchinfo 1.8.0 (torch 2.13.0), total_mult_adds of a model on sequences.
#
# Guess: a Linear on (batch, time, width) counts batch x time x weights; attention's own products,
# which belong to no layer, are left out.
# Seen: a Linear counts batch x weights, whatever the time: a transformer's count is too small by
# the number of tokens in a sequence. On (batch x time, width), the same product counts in full.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "torchinfo==1.8.0" "numpy==2.4.*"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torchinfo
from torch import nn

BATCH, TIME, WIDTH = 2, 64, 32
mlp = nn.Sequential(
    nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH, bias=False)
)
weights = sum(p.numel() for p in mlp.parameters())
seen = {}
for shape in ((BATCH, TIME, WIDTH), (BATCH * TIME, WIDTH)):
    seen[shape] = torchinfo.summary(mlp, input_data=torch.ones(shape), verbose=0).total_mult_adds
    print(f"torchinfo {torchinfo.__version__}: {shape}: {seen[shape]}; "
          f"closed form {BATCH * TIME * weights}")
if list(seen.values()) != [BATCH * weights, BATCH * TIME * weights]:
    sys.exit("changed: torchinfo counts a Linear on a sequence otherwise than stated above")
PY
