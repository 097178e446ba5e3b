#!/usr/bin/env bash
# torch 2.13.0, FlopCounterMode on a CPU.
#
# Guess: scaled_dot_product_attention counts its two products (not halved where causal), forward and
# backward; nn.TransformerEncoderLayer counts in eval mode what it counts in training.
# Seen: the CPU's fused attention kernel is not among the counted operations: 0, forward and
# backward. TransformerEncoderLayer in eval mode without gradients is one fused operation: 0 for
# the whole layer. On the meta device, and with the MATH backend, the attention counts in full.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "numpy==2.4.*"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BATCH, HEADS, TIME, DEPTH = 2, 4, 64, 8
WIDTH = HEADS * DEPTH
products = 2 * 2 * BATCH * HEADS * TIME * TIME * DEPTH


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def attention(device):
    q, k, v = (
        torch.ones(BATCH, HEADS, TIME, DEPTH, device=device, requires_grad=True) for _ in range(3)
    )
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


seen = {
    "CPU": counted(lambda: attention("cpu")),
    "CPU, with backward": counted(lambda: attention("cpu").sum().backward()),
    "meta": counted(lambda: attention("meta")),
}
with sdpa_kernel(SDPBackend.MATH):
    seen["CPU, MATH"] = counted(lambda: attention("cpu"))
layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)
linears = 2 * BATCH * TIME * 12 * WIDTH * WIDTH
x = torch.ones(BATCH, TIME, WIDTH)
seen["encoder layer, training"] = counted(lambda: layer(x))
with torch.no_grad():
    seen["encoder layer, eval"] = counted(lambda: layer.eval()(x))
for name, flops in seen.items():
    print(f"torch {torch.__version__}: {name}: {flops}")
print(f"closed form: attention {products}, the layer's linears {linears}")
if list(seen.values()) != [0, 0, products, products, linears, 0]:
    sys.exit("changed: torch counts attention on a CPU otherwise than stated above")
PY
