#!/usr/bin/env bash
# torch 2.13.0, an optimizer that loads the state of another in memory.
#
# Guess: load_state_dict copies values, as that of a module does.
# Seen: moments of the right type and device are not copied but taken: both optimizers then hold the
# same tensors. Two branches of one trunk (a cooldown, and the trunk that goes on) so write into each
# other's moments, and neither is the run that it would have been alone; nothing is raised. Step
# counts of AdamW are shared too. A deep copy of the state, or a way through a file, gives the right
# run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "numpy==2.4.*"
"$work/venv/bin/python" - <<'PY'
import copy
import sys

import torch

assert torch.__version__.startswith("2.13.0")
STEPS = 5


def start():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(16, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def branch(trunk, state):
    """A second model and optimizer that begin where the trunk is."""
    model, optimizer = start()
    model.load_state_dict(trunk[0].state_dict())
    optimizer.load_state_dict(state)
    return model, optimizer


def run(copied):
    """The trunk's weights at the end: its branch trained in between, step after step with it."""
    trunk = start()
    train(*trunk, seed=1)
    state = trunk[1].state_dict()
    other = branch(trunk, copy.deepcopy(state) if copied else state)
    train(*other, seed=2)
    train(*trunk, seed=3)
    return trunk[0].weight.detach().clone()


alone = start()
train(*alone, seed=1)
train(*alone, seed=3)
expected = alone[0].weight.detach()
same = {copied: bool(torch.equal(run(copied), expected)) for copied in (False, True)}
trunk = start()
train(*trunk, seed=1)
other = branch(trunk, trunk[1].state_dict())
pairs = zip(trunk[1].state.values(), other[1].state.values())
shared = {key: a[key] is b[key] for a, b in pairs for key in ("exp_avg", "exp_avg_sq", "step")}
apart = float((run(False) - expected).abs().max())
print(f"the same tensors in both optimizers: {shared}")
print(f"trunk equal to one without a branch: state as it is {same[False]} (off by {apart:.3f}), "
      f"deep copy {same[True]}")
if same != {False: False, True: True} or not (shared["exp_avg"] and shared["exp_avg_sq"]):
    print("changed: torch 2.13.0 loads an optimizer's state otherwise than stated above")
    sys.exit(1)
print(f"step shared: {shared['step']}")
PY
