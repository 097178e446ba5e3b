#!/usr/bin/env bash
# torch 2.13.0, a finished cosine schedule resumed with a longer horizon.
#
# Guess: CosineAnnealingLR(T_max=20) that loads the state of a T_max=10 one goes on with the cosine
# of 20 steps.
# Seen: the state carries T_max (and eta_min, and the base rates) and puts it over the new one, in
# silence; past the old T_max the rate climbs, up to its maximum at the step where the longer run
# ends. A LambdaLR does take the new function: what a state restores depends on the class.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "numpy==2.4.*"
"$work/venv/bin/python" -W error - <<'PY'
import math
import sys

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

SHORT, LONG = 10, 20


def resumed(schedule):
    """Rates from the end of the short run to the end of the long one."""
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = SGD(weights, lr=1.0)
    made = schedule(optimizer, SHORT)
    for _ in range(SHORT):
        optimizer.step()
        made.step()
    again = SGD(weights, lr=1.0)
    longer = schedule(again, LONG)
    again.load_state_dict(optimizer.state_dict())
    longer.load_state_dict(made.state_dict())
    rates = []
    for _ in range(SHORT, LONG):
        again.step()
        longer.step()
        rates.append(again.param_groups[0]["lr"])
    return rates


def by_lambda(optimizer, steps):
    return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)


seen = {"CosineAnnealingLR": resumed(CosineAnnealingLR), "LambdaLR": resumed(by_lambda)}
for name, rates in seen.items():
    print(f"torch {torch.__version__}: {name}:", *(f"{rate:.3f}" for rate in rates))
steps = range(SHORT + 1, LONG + 1)
old = [(1 + math.cos(math.pi * step / SHORT)) / 2 for step in steps]
new = [(1 + math.cos(math.pi * step / LONG)) / 2 for step in steps]
for name, expected in (("CosineAnnealingLR", old), ("LambdaLR", new)):
    if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(seen[name], expected)):
        sys.exit(f"changed: a resumed {name} gives other rates than stated above")
PY
