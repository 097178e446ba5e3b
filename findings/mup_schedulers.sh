#!/usr/bin/env bash
# mup 1.0.0 under the schedules of torch 2.13.0.
#
# Guess: MuAdamW gives hidden matrices a group of their own with rate lr / width_mult (a quarter of
# the others' at four times the base width), and a schedule keeps that ratio.
# Seen: it lasts only where a schedule multiplies. OneCycleLR gives every group its one max_lr from
# the first step on, so that nothing of muP is left in the rates, without a word; CosineAnnealingLR
# with eta_min brings all groups to one rate at the end. LambdaLR keeps the ratio.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "numpy==2.4.*" pyyaml tqdm
"$work/venv/bin/pip" install --quiet --no-deps "mup==1.0.0" # its torchvision is not needed here
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from mup import MuAdamW, MuReadout, set_base_shapes
from torch import nn
from torch.optim import lr_scheduler as schedules

STEPS = 11


def mlp(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), MuReadout(width, 2))


def ratios(schedule):
    """Rate of the hidden matrix over that of the rest, at every step."""
    model = mlp(32)
    set_base_shapes(model, mlp(8), delta=mlp(16))
    optimizer = MuAdamW(model.parameters(), lr=1e-3)
    shapes = [{tuple(p.shape) for p in group["params"]} for group in optimizer.param_groups]
    hidden = next(i for i, group in enumerate(shapes) if (32, 32) in group)
    made, out = schedule(optimizer), []
    for step in range(STEPS):
        rates = [group["lr"] for group in optimizer.param_groups]
        out.append(rates[hidden] / max(rates[:hidden] + rates[hidden + 1 :]))
        optimizer.step()
        if step + 1 < STEPS:
            made.step()
    return out


seen = {
    "LambdaLR": ratios(lambda o: schedules.LambdaLR(o, lambda step: 1 - step / STEPS)),
    "CosineAnnealingLR": ratios(lambda o: schedules.CosineAnnealingLR(o, STEPS - 1, eta_min=1e-5)),
    "OneCycleLR": ratios(lambda o: schedules.OneCycleLR(o, 1e-3, total_steps=STEPS)),
}
for name, ratio in seen.items():
    print(f"mup 1.0.0, torch {torch.__version__}: {name}: hidden / other rate", end=" ")
    print(f"{ratio[0]:.3f} at first, {ratio[STEPS // 2]:.3f} half way, {ratio[-1]:.3f} at the end")
ends = {name: (round(ratio[0], 3), round(ratio[-1], 3)) for name, ratio in seen.items()}
expected = {"LambdaLR": (0.25, 0.25), "CosineAnnealingLR": (0.25, 1.0), "OneCycleLR": (1.0, 1.0)}
sys.exit(ends != expected)
PY
